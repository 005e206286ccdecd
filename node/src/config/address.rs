//! Addresses to listen on, as people write them: `localhost:8980`, `0.0.0.0:11001`, `[::]:11001`.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserialize, Deserializer};
use serde::{Serialize, Serializer};

use super::resolve::ListenAddress;

/// Why a text is not an address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// No `:PORT` at its end.
    #[error("\"{text}\" has no port")]
    PortMissing {
        /// As it was given.
        text: String,
    },
    /// The port is not a number up to 65535.
    #[error("\"{port}\" is not a port")]
    Port {
        /// As it was given.
        port: String,
    },
    /// An IPv6 address without brackets.
    #[error("\"{text}\" is ambiguous")]
    Brackets {
        /// As it was given.
        text: String,
    },
    /// Nothing before the port.
    #[error("\":{port}\" has no host")]
    HostMissing {
        /// Its port.
        port: u16,
    },
    /// Neither a name nor an IP address.
    #[error("\"{host}\" is neither a host name nor an IP address")]
    Host {
        /// As it was given.
        host: String,
    },
    /// A URL.
    #[error("\"{text}\" is a URL, not an address")]
    Url {
        /// As it was given.
        text: String,
    },
}

// === impl AddressError ===

impl AddressError {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            AddressError::PortMissing { text } => format!("write {text}:8980, or {text}:0 for any free port"),
            AddressError::Port { .. } => "ports are numbers from 1 to 65535, and 0 stands for any free one".into(),
            AddressError::Brackets { .. } => "write IPv6 addresses in brackets, such as [::1]:8980".into(),
            AddressError::HostMissing { port } => {
                format!("write localhost:{port} for this machine alone, [::]:{port} for every address it has")
            }
            AddressError::Host { .. } => "write HOST:PORT, such as localhost:8980, 0.0.0.0:11001 or [::]:11001".into(),
            AddressError::Url { .. } => "write HOST:PORT alone; TLS is a setting of its own".into(),
        }
    }
}

// === impl ListenAddress ===

impl ListenAddress {
    /// Whether only this machine can reach it.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.host.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
    }

    /// Whether both cannot be had at once: same port, and an IP address in common. Names other than `localhost` are
    /// compared as they are written.
    #[must_use]
    pub fn overlaps(&self, other: &ListenAddress) -> bool {
        if self.port != other.port || self.port == 0 {
            return false;
        }
        let covers = |wide: IpAddr, narrow: IpAddr| {
            wide == narrow
                || wide == IpAddr::V6(Ipv6Addr::UNSPECIFIED)
                || (wide == IpAddr::V4(Ipv4Addr::UNSPECIFIED) && narrow.to_canonical().is_ipv4())
        };
        let (ours, theirs) = (self.known_ips(), other.known_ips());
        if ours.is_empty() || theirs.is_empty() {
            return self.host.eq_ignore_ascii_case(&other.host);
        }
        ours.iter().any(|a| theirs.iter().any(|b| covers(*a, *b) || covers(*b, *a)))
    }

    fn known_ips(&self) -> Vec<IpAddr> {
        if self.host == "localhost" {
            return vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        }
        self.host.parse().into_iter().collect()
    }
}

impl FromStr for ListenAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<ListenAddress, AddressError> {
        let text = text.trim();
        if text.contains("://") {
            return Err(AddressError::Url { text: text.to_owned() });
        }
        let missing = || AddressError::PortMissing { text: text.to_owned() };
        let (host, port) = match text.strip_prefix('[') {
            Some(bracketed) => {
                let (host, rest) = bracketed.split_once(']').ok_or_else(|| brackets(text))?;
                host.parse::<Ipv6Addr>().map_err(|_| AddressError::Host { host: host.to_owned() })?;
                (host, rest.strip_prefix(':').ok_or_else(missing)?)
            }
            None => text.rsplit_once(':').ok_or_else(missing)?,
        };
        if !text.starts_with('[') && host.contains(':') {
            return Err(brackets(text));
        }
        let well_formed = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
        let number = port.parse::<u16>().ok().filter(|_| well_formed);
        let port = number.ok_or_else(|| AddressError::Port { port: port.to_owned() })?;
        if host.is_empty() {
            return Err(AddressError::HostMissing { port });
        }
        if host.parse::<IpAddr>().is_err() && !is_host_name(host) {
            return Err(AddressError::Host { host: host.to_owned() });
        }
        let host = if host.eq_ignore_ascii_case("localhost") { "localhost".to_owned() } else { host.to_owned() };
        Ok(ListenAddress { host, port })
    }
}

fn brackets(text: &str) -> AddressError {
    AddressError::Brackets { text: text.to_owned() }
}

/// Labels of letters, digits and hyphens (RFC 1123); the last one is not a number, which a mistyped IP address has.
fn is_host_name(host: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    let name = host.strip_suffix('.').unwrap_or(host);
    let last_is_number = name.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()));
    name.len() <= 253 && !last_is_number && name.split('.').all(label)
}

// === serde ===

impl Serialize for ListenAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ListenAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ListenAddress, D::Error> {
        Cow::<str>::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for ListenAddress {
    fn schema_name() -> Cow<'static, str> {
        "ListenAddress".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": "address" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> ListenAddress {
        text.parse().unwrap()
    }

    #[test]
    fn addresses_print_as_they_are_read() {
        for text in
            ["localhost:8980", "0.0.0.0:11001", "[::]:11001", "[::1]:0", "127.0.0.1:65535", "cache.example.org:1"]
        {
            assert_eq!(address(text).to_string(), text);
        }
        assert_eq!(address("[::]:11001").host, "::");
        assert_eq!(address("LocalHost:1").host, "localhost");
    }

    #[test]
    fn each_slip_has_its_own_answer() {
        let refused = |text: &str| text.parse::<ListenAddress>().unwrap_err().to_string();
        assert_eq!(refused(":8980"), "\":8980\" has no host");
        assert_eq!(refused("localhost"), "\"localhost\" has no port");
        assert_eq!(refused("::1:8980"), "\"::1:8980\" is ambiguous");
        assert!(refused("http://localhost:8980").contains("is a URL"));
        assert!(refused("localhost:65536").contains("\"65536\" is not a port"));
        assert!(refused("localhost:+80").contains("is not a port"));
        assert!(refused("localhost:").contains("is not a port"));
        assert!(refused("[::1]").contains("has no port"));
        assert!(refused("[::1:80").contains("ambiguous"));
        for host in ["256.0.0.1", "1.2.3", "a b", "-a", "a..b", "käse", &"a".repeat(64)] {
            assert!(refused(&format!("{host}:80")).contains("neither"), "{host}");
        }
        assert!(refused("[127.0.0.1]:80").contains("neither"));
    }

    #[test]
    fn loopback_is_what_only_this_machine_reaches() {
        for text in ["localhost:1", "127.0.0.1:1", "127.8.8.8:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            assert!(address(text).is_loopback(), "{text}");
        }
        for text in ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "localhost.example.org:1"] {
            assert!(!address(text).is_loopback(), "{text}");
        }
    }

    #[test]
    fn two_addresses_overlap_when_the_kernel_would_refuse_the_second() {
        for (one, other) in [
            ("localhost:1", "127.0.0.1:1"),
            ("localhost:1", "[::1]:1"),
            ("0.0.0.0:1", "10.0.0.1:1"),
            ("[::]:1", "10.0.0.1:1"),
            ("[::]:1", "localhost:1"),
            ("a.example:1", "A.example:1"),
        ] {
            assert!(address(one).overlaps(&address(other)) && address(other).overlaps(&address(one)), "{one} {other}");
        }
        for (one, other) in [
            ("localhost:1", "localhost:2"),
            ("localhost:0", "localhost:0"),
            ("0.0.0.0:1", "[::1]:1"),
            ("10.0.0.1:1", "10.0.0.2:1"),
        ] {
            assert!(!address(one).overlaps(&address(other)), "{one} {other}");
        }
    }
}
