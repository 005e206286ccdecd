//! Quantities as people write them: `500GiB`, `22MB`, `10e9`; `30s`, `1h30m`. Each prints as something that reads back
//! as the same quantity.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde::{Serialize, Serializer};

/// Units of size, largest first. A bare letter counts in 1024s, as in BuildStream's own configuration and in systemd's.
const SIZE_UNITS: &[(&str, u64)] = &[
    ("PiB", 1 << 50),
    ("PB", 1_000_000_000_000_000),
    ("TiB", 1 << 40),
    ("TB", 1_000_000_000_000),
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("kB", 1_000),
    ("B", 1),
];
const BARE_SIZE_UNITS: &[(&str, u64)] =
    &[("P", 1 << 50), ("T", 1 << 40), ("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10)];

/// Units of time in milliseconds, largest first.
const TIME_UNITS: &[(&str, u64)] = &[("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(u64);

/// A length of time, in whole milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TimeSpan {
    millis: u64,
}

/// Why a text is not a quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// Not a size.
    #[error("\"{text}\" is not a size")]
    Size {
        /// As it was given.
        text: String,
    },
    /// Not a length of time.
    #[error("\"{text}\" is not a length of time")]
    Time {
        /// As it was given.
        text: String,
    },
}

// === impl UnitError ===

impl UnitError {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match self {
            UnitError::Size { .. } => "write a number of bytes or a number with a unit, such as 500GiB, 22MB or 10e9",
            UnitError::Time { .. } => "write a number with a unit, such as 50ms, 30s or 1h30m",
        }
    }
}

// === impl ByteSize ===

impl ByteSize {
    /// So many bytes.
    #[must_use]
    pub const fn from_bytes(bytes: u64) -> ByteSize {
        ByteSize(bytes)
    }

    /// The number of bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for ByteSize {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<ByteSize, UnitError> {
        let wrong = || UnitError::Size { text: text.to_owned() };
        let trimmed = text.trim();
        let (number, unit) = split_number(trimmed);
        let factor = if unit.is_empty() {
            1
        } else {
            let mut units = SIZE_UNITS.iter().chain(BARE_SIZE_UNITS);
            units.find(|(name, _)| name.eq_ignore_ascii_case(unit)).ok_or_else(wrong)?.1
        };
        multiply(number, factor).map(ByteSize).ok_or_else(wrong)
    }
}

impl fmt::Display for ByteSize {
    /// In the unit that leaves the smallest whole number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = SIZE_UNITS.iter().filter(|(_, factor)| self.0 >= *factor && self.0.is_multiple_of(*factor));
        match whole.max_by_key(|(_, factor)| *factor) {
            Some((name, factor)) => write!(f, "{}{name}", self.0 / factor),
            None => write!(f, "{}B", self.0),
        }
    }
}

// === impl TimeSpan ===

impl TimeSpan {
    /// So many milliseconds.
    #[must_use]
    pub const fn from_millis(millis: u64) -> TimeSpan {
        TimeSpan { millis }
    }

    /// So many hours.
    #[must_use]
    pub const fn from_hours(hours: u32) -> TimeSpan {
        TimeSpan { millis: hours as u64 * 3_600_000 }
    }

    /// The same as the standard library has it.
    #[must_use]
    pub const fn duration(self) -> Duration {
        Duration::from_millis(self.millis)
    }
}

impl FromStr for TimeSpan {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<TimeSpan, UnitError> {
        let wrong = || UnitError::Time { text: text.to_owned() };
        let mut rest = text.trim();
        if rest == "0" {
            return Ok(TimeSpan { millis: 0 });
        }
        let mut millis = 0_u64;
        let mut smallest = u64::MAX;
        while !rest.is_empty() {
            let (number, after) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?);
            let (unit, next) = after.split_at(after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len()));
            let factor = TIME_UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?.1;
            // Largest first and each once: `30m1h` and `1s1s` are slips of the pen.
            if factor >= smallest {
                return Err(wrong());
            }
            smallest = factor;
            let part = number.parse::<u64>().ok().and_then(|count| count.checked_mul(factor)).ok_or_else(wrong)?;
            millis = millis.checked_add(part).ok_or_else(wrong)?;
            rest = next.trim_start();
        }
        if smallest == u64::MAX { Err(wrong()) } else { Ok(TimeSpan { millis }) }
    }
}

impl fmt::Display for TimeSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.millis == 0 {
            return f.write_str("0s");
        }
        let mut rest = self.millis;
        for (name, factor) in TIME_UNITS {
            if rest >= *factor && *name != "d" {
                write!(f, "{}{name}", rest / factor)?;
                rest %= factor;
            }
        }
        Ok(())
    }
}

// === parsing ===

/// The number at the start, and what follows without the space between.
fn split_number(text: &str) -> (&str, &str) {
    let mut end = text.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '_')).unwrap_or(text.len());
    // An exponent: `10e9`, but not the E of a unit.
    if let Some(exponent) = text.get(end..).and_then(|rest| rest.strip_prefix(['e', 'E'])) {
        let digits = exponent.strip_prefix('+').unwrap_or(exponent);
        let length = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
        if length > 0 {
            end = text.len() - digits.len() + length;
        }
    }
    let (number, unit) = text.split_at(end);
    (number, unit.trim_start())
}

/// The whole product; a fraction of a byte is dropped.
fn multiply(number: &str, factor: u64) -> Option<u64> {
    if !number.starts_with(|c: char| c.is_ascii_digit()) || !number.ends_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let plain: String = number.chars().filter(|c| *c != '_').collect();
    if let Ok(whole) = plain.parse::<u64>() {
        return whole.checked_mul(factor);
    }
    let product = plain.parse::<f64>().ok()? * factor as f64;
    // 2^64 as a float is exact; everything below it fits.
    (product.is_finite() && product < 18_446_744_073_709_551_616.0).then_some(product as u64)
}

// === serde ===

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for TimeSpan {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ByteSize, D::Error> {
        struct Bytes;
        impl Visitor<'_> for Bytes {
            type Value = ByteSize;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size such as \"500GiB\" or a number of bytes")
            }

            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<ByteSize, E> {
                u64::try_from(bytes).map(ByteSize).map_err(|_| E::invalid_value(de::Unexpected::Signed(bytes), &self))
            }

            fn visit_f64<E: de::Error>(self, bytes: f64) -> Result<ByteSize, E> {
                self.visit_str(&bytes.to_string())
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<ByteSize, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Bytes)
    }
}

impl<'de> Deserialize<'de> for TimeSpan {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<TimeSpan, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for ByteSize {
    fn schema_name() -> Cow<'static, str> {
        "ByteSize".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": "size" })
    }
}

impl JsonSchema for TimeSpan {
    fn schema_name() -> Cow<'static, str> {
        "TimeSpan".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": "duration" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(text: &str) -> u64 {
        text.parse::<ByteSize>().unwrap().bytes()
    }

    fn span(text: &str) -> Duration {
        text.parse::<TimeSpan>().unwrap().duration()
    }

    #[test]
    fn sizes_are_read_as_people_write_them() {
        assert_eq!(size("500GiB"), 500 << 30);
        assert_eq!(size("22MB"), 22_000_000);
        assert_eq!(size("10e9"), 10_000_000_000);
        assert_eq!(size("10E+9"), 10_000_000_000);
        assert_eq!(size("10000000000"), 10_000_000_000);
        assert_eq!(size("10_000_000_000"), 10_000_000_000);
        assert_eq!(size("1.5 GiB"), 3 << 29);
        assert_eq!(size(" 5k "), 5 << 10);
        assert_eq!(size("5kb"), 5000);
        assert_eq!(size("2T"), 2 << 40);
        assert_eq!(size("0"), 0);
        assert_eq!(size("18446744073709551615"), u64::MAX);
    }

    #[test]
    fn what_is_not_a_size_is_refused() {
        for text in [
            "",
            "GiB",
            "-1",
            "+1",
            "1 GiB GiB",
            "1Gob",
            "1.",
            ".5GiB",
            "1..5GiB",
            "nan",
            "inf",
            "0x10",
            "1e",
            "1e-3",
            "_1",
        ] {
            assert!(text.parse::<ByteSize>().is_err(), "{text:?}");
        }
        for too_large in ["18446744073709551616", "16384PiB", "1e20", "1e999"] {
            assert!(too_large.parse::<ByteSize>().is_err(), "{too_large}");
        }
    }

    #[test]
    fn times_are_read_as_people_write_them() {
        assert_eq!(span("30s"), Duration::from_secs(30));
        assert_eq!(span("50ms"), Duration::from_millis(50));
        assert_eq!(span("1h30m"), Duration::from_secs(5400));
        assert_eq!(span("1h 30m"), Duration::from_secs(5400));
        assert_eq!(span("2d"), Duration::from_secs(172_800));
        assert_eq!(span("0"), Duration::ZERO);
        assert_eq!(span("0s"), Duration::ZERO);
    }

    #[test]
    fn what_is_not_a_time_is_refused() {
        for text in ["", "30", "s", "1.5h", "-1s", "30m1h", "1s1s", "1w", "5M", "1h30", "999999999999999999999s", "1 h"]
        {
            assert!(text.parse::<TimeSpan>().is_err(), "{text:?}");
        }
        assert!(format!("{}d", u64::MAX).parse::<TimeSpan>().is_err());
    }

    #[test]
    fn what_is_printed_reads_back_as_the_same() {
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        let mut values = vec![0, 1, 999, 1000, 1024, 22_000_000, 10_000_000_000, 50 << 30, 1 << 63, u64::MAX];
        for shift in 0..64 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            values.extend([seed >> shift, 1 << shift]);
        }
        for value in values {
            let printed = ByteSize(value).to_string();
            assert_eq!(printed.parse(), Ok(ByteSize(value)), "{printed}");
            let printed = TimeSpan { millis: value }.to_string();
            assert_eq!(printed.parse(), Ok(TimeSpan { millis: value }), "{printed}");
        }
    }

    #[test]
    fn the_printed_form_is_the_short_one() {
        let printed = |text: &str| text.parse::<ByteSize>().unwrap().to_string();
        assert_eq!(printed("10e9"), "10GB");
        assert_eq!(printed("51200MiB"), "50GiB");
        assert_eq!(printed("1025"), "1025B");
        assert_eq!(printed("0"), "0B");
        assert_eq!("90m".parse::<TimeSpan>().unwrap().to_string(), "1h30m");
        assert_eq!("2d".parse::<TimeSpan>().unwrap().to_string(), "48h");
    }
}
