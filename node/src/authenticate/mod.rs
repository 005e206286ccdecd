//! Who is it (certificate to identity), and what may it do (identity to role to operation).
