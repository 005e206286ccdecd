//! In which form the bytes of a blob travel.

use casbah_proto::build::bazel::remote::execution::v2::compressor::Value;

use crate::observe::labels::Encoding;
use crate::route;

/// The compressors that are offered, as Capabilities lists them. IDENTITY is always offered and never listed.
pub const COMPRESSORS: [Value; 1] = [Value::Zstd];

/// The same for the one who asked for another.
pub const OFFERED: &str = "zstd, and none at all";

/// The form of a blob on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Form {
    /// As it is.
    Identity,
    /// As zstd frames, any number of them one after the other.
    Zstd,
}

impl From<route::Form> for Form {
    fn from(form: route::Form) -> Form {
        match form {
            route::Form::Identity => Form::Identity,
            route::Form::Zstd => Form::Zstd,
        }
    }
}

// === impl Form ===

impl Form {
    /// As metrics have it.
    pub fn encoding(self) -> Encoding {
        match self {
            Form::Identity => Encoding::Identity,
            Form::Zstd => Encoding::Zstd,
        }
    }

    /// By the name that stands in resource names.
    pub fn by_name(name: &str) -> Option<Form> {
        match name {
            "identity" => Some(Form::Identity),
            "zstd" => Some(Form::Zstd),
            _ => None,
        }
    }

    /// By the number that stands in messages.
    pub fn by_number(number: i32) -> Option<Form> {
        match Value::try_from(number) {
            Ok(Value::Identity) => Some(Form::Identity),
            Ok(Value::Zstd) => Some(Form::Zstd),
            _ => None,
        }
    }

    /// The number that stands in messages.
    pub fn number(self) -> i32 {
        match self {
            Form::Identity => Value::Identity as i32,
            Form::Zstd => Value::Zstd as i32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_offered_has_no_form() {
        assert_eq!(Form::by_name("zstd"), Some(Form::Zstd));
        for name in ["", "ZSTD", "zst", "deflate", "brotli", "gzip", "1"] {
            assert_eq!(Form::by_name(name), None, "{name}");
        }
        for number in [-1, 2, 3, 4, i32::MAX] {
            assert_eq!(Form::by_number(number), None, "{number}");
        }
        for form in [Form::Identity, Form::Zstd] {
            assert_eq!(Form::by_number(form.number()), Some(form));
        }
    }
}
