//! What the caller of a request may do: decided by the layers above, carried in the request's extensions.

use std::net::IpAddr;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};
use tonic::Status;

use crate::config::{Permissions, Services};

const HEADER: HeaderName = HeaderName::from_static("casbah-access");

/// Where the caller is, beside [`HEADER`]; an older instance does not know of it.
const FROM_HEADER: HeaderName = HeaderName::from_static("casbah-from");

/// What the caller of one request may do, and who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// For logs: what the caller's certificate says, or `anyone`.
    pub who: Arc<str>,
    /// What its listener and its identity allow.
    pub permissions: Permissions,
    /// What its listener serves.
    pub services: Services,
    /// Where the caller is, if nothing else tells it from others.
    pub from: Option<IpAddr>,
}

impl Access {
    /// The access of this request.
    ///
    /// # Errors
    /// `INTERNAL` when no layer decided: nothing is allowed by default.
    pub fn of<T>(request: &tonic::Request<T>) -> Result<Access, Status> {
        let access = request.extensions().get::<Access>().cloned();
        access.ok_or_else(|| Status::internal("the request came past the access check; this is a defect of casbah"))
    }

    /// Adds this access to the headers of a request, from one instance to the owner of their common directory. Whatever a client
    /// wrote there is overwritten: nobody speaks for himself.
    pub fn add_to(&self, headers: &mut HeaderMap) {
        let (name, value) = self.to_header();
        headers.insert(name, value);
        headers.remove(FROM_HEADER);
        if let Some(from) = self.from {
            let value = HeaderValue::from_str(&from.to_string());
            headers.insert(FROM_HEADER, value.expect("an address is visible ASCII"));
        }
    }

    /// The version is the first word.
    fn to_header(&self) -> (HeaderName, HeaderValue) {
        let Permissions { read, write, admin } = self.permissions;
        let services = match self.services {
            Services::All => "all",
            Services::Storage => "storage",
            Services::Index => "index",
        };
        let who: String = self.who.chars().map(|c| if c.is_ascii_graphic() { c } else { '_' }).collect();
        let text = format!("1 {} {} {} {services} {who}", u8::from(read), u8::from(write), u8::from(admin));
        (HEADER, HeaderValue::from_str(&text).expect("visible ASCII and spaces make a header value"))
    }

    /// The access that [`Access::add_to`] wrote; `None` when there is none or it is not understood.
    pub fn from_header(headers: &HeaderMap) -> Option<Access> {
        let words: Vec<&str> = headers.get(HEADER)?.to_str().ok()?.splitn(6, ' ').collect();
        let ["1", read, write, admin, services, who] = words.as_slice() else { return None };
        let flag = |word: &str| match word {
            "0" => Some(false),
            "1" => Some(true),
            _ => None,
        };
        let services = match *services {
            "all" => Services::All,
            "storage" => Services::Storage,
            "index" => Services::Index,
            _ => return None,
        };
        let permissions = Permissions { read: flag(read)?, write: flag(write)?, admin: flag(admin)? };
        let from = headers.get(FROM_HEADER).and_then(|from| from.to_str().ok()?.parse().ok());
        Some(Access { who: (*who).into(), permissions, services, from })
    }

    /// Whether the blobs that assets name are to be looked for in this node's store: not where only the index is
    /// served, since then they live elsewhere.
    pub fn checks_assets(&self) -> bool {
        self.services != Services::Index
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_access_survives_the_way_to_the_owner() {
        for services in [Services::All, Services::Storage, Services::Index] {
            for (read, write, admin) in [(true, false, false), (true, true, false), (false, false, true)] {
                let permissions = Permissions { read, write, admin };
                for from in [None, Some("10.0.0.1".parse().unwrap()), Some("::1".parse().unwrap())] {
                    let access = Access { who: "CN=client".into(), permissions, services, from };
                    let forged = (FROM_HEADER, HeaderValue::from_static("10.9.9.9"));
                    let mut headers = HeaderMap::from_iter([forged]);
                    access.add_to(&mut headers);
                    assert_eq!(Access::from_header(&headers), Some(access));
                }
            }
        }
    }

    #[test]
    fn a_name_with_spaces_or_line_breaks_adds_no_words() {
        let permissions = Permissions::default();
        let who = "x\r\n1 1 1 all é".into();
        let access = Access { who, permissions, services: Services::Index, from: None };
        let read = Access::from_header(&HeaderMap::from_iter([access.to_header()])).unwrap();
        assert_eq!((read.permissions, read.services), (permissions, Services::Index));
    }

    #[test]
    fn what_is_not_understood_gives_no_access() {
        assert_eq!(Access::from_header(&HeaderMap::new()), None);
        for text in ["", "1", "2 1 1 1 all x", "1 1 1 1 some x", "1 1 1 yes all x", "1 1 1 1 all", "1 1 1 1 1 all x"] {
            let headers = HeaderMap::from_iter([(HEADER, HeaderValue::from_str(text).unwrap())]);
            assert_eq!(Access::from_header(&headers), None, "{text}");
        }
    }
}
