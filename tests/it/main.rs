//! it

mod deploy;
