//! What the four Remote Asset calls have in common: forms and limits of their requests.

use std::collections::HashSet;

use casbah_cluster::asset::{AssetKey, AssetKind, KeyError, Moment, Qualifier};
use casbah_cluster::digest::{Digest, DigestFunction};
use casbah_proto::build::bazel::remote::asset::v1 as api;
use casbah_proto::build::bazel::remote::execution::v2::Digest as DigestMessage;
use tonic::Status;

use crate::serve::cas::digest_of;
use crate::serve::status_map;

/// URIs of one request; clients give a handful of mirrors.
const MAX_URIS: usize = 1_000;

/// Qualifiers of one request.
const MAX_QUALIFIERS: usize = 1_000;

const NANOSECONDS: i128 = 1_000_000_000;

/// The keys of these URIs, in their order.
///
/// # Errors
/// `INVALID_ARGUMENT` when there is no URI, an empty one, more than a request may have, or a qualifier twice.
pub(super) fn keys(
    instance: &str,
    kind: AssetKind,
    function: DigestFunction,
    uris: &[String],
    qualifiers: &[api::Qualifier],
) -> Result<Vec<AssetKey>, Status> {
    if uris.is_empty() {
        return Err(Status::invalid_argument("the request names no URI; give at least one"));
    }
    for (count, limit, what) in [(uris.len(), MAX_URIS, "URIs"), (qualifiers.len(), MAX_QUALIFIERS, "qualifiers")] {
        if count > limit {
            return Err(Status::invalid_argument(format!("the request has {count} {what} where {limit} are allowed")));
        }
    }
    let mut names = HashSet::with_capacity(qualifiers.len());
    if let Some(twice) = qualifiers.iter().find(|qualifier| !names.insert(qualifier.name.as_str())) {
        let message = format!("the qualifier \"{:.200}\" is given twice where names must be unique", twice.name);
        return Err(Status::invalid_argument(message));
    }
    let set: Vec<Qualifier> =
        qualifiers.iter().map(|q| Qualifier { name: q.name.clone(), value: q.value.clone() }).collect();
    uris.iter()
        .map(|uri| Ok(AssetKey::new(instance, kind, uri, set.iter().cloned())?.of_function(function)))
        .collect::<Result<_, KeyError>>()
        .map_err(|error| status_map::invalid(&error))
}

/// The digest that a push must have.
///
/// # Errors
/// `INVALID_ARGUMENT` when it is absent or malformed.
pub(super) fn target(function: DigestFunction, digest: Option<&DigestMessage>, field: &str) -> Result<Digest, Status> {
    let digest = digest.ok_or_else(|| Status::invalid_argument(format!("the request has no {field}")))?;
    digest_of(function, digest).map_err(|error| status_map::digest(&error))
}

/// The digests of a repeated field.
///
/// # Errors
/// `INVALID_ARGUMENT` for a malformed one.
pub(super) fn digests(function: DigestFunction, list: &[DigestMessage]) -> Result<Vec<Digest>, Status> {
    list.iter()
        .map(|digest| digest_of(function, digest))
        .collect::<Result<_, _>>()
        .map_err(|error| status_map::digest(&error))
}

/// The moment of a timestamp field.
///
/// # Errors
/// `INVALID_ARGUMENT` when it is outside the years 1 to 9999 or its nanoseconds are no fraction of a second.
pub(super) fn moment(timestamp: Option<&prost_types::Timestamp>, field: &str) -> Result<Option<Moment>, Status> {
    const YEAR_1: i64 = -62_135_596_800;
    const YEAR_10000: i64 = 253_402_300_800;
    let Some(timestamp) = timestamp else { return Ok(None) };
    let fraction = i128::from(timestamp.nanos);
    if !(YEAR_1..YEAR_10000).contains(&timestamp.seconds) || !(0..NANOSECONDS).contains(&fraction) {
        return Err(Status::invalid_argument(format!(
            "{field} is no valid time: {} seconds and {} nanoseconds",
            timestamp.seconds, timestamp.nanos
        )));
    }
    Ok(Some(Moment(i128::from(timestamp.seconds) * NANOSECONDS + fraction)))
}

/// The timestamp of a moment, as messages carry it.
pub(super) fn timestamp(moment: Moment) -> Option<prost_types::Timestamp> {
    let seconds = i64::try_from(moment.0.div_euclid(NANOSECONDS)).ok()?;
    let nanos = i32::try_from(moment.0.rem_euclid(NANOSECONDS)).ok()?;
    Some(prost_types::Timestamp { seconds, nanos })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_survive_the_round_trip() {
        for (seconds, nanos) in [(0, 0), (-1, 999_999_999), (1_800_000_000, 1), (-62_135_596_800, 0)] {
            let given = prost_types::Timestamp { seconds, nanos };
            let moment = moment(Some(&given), "x").unwrap().unwrap();
            assert_eq!(timestamp(moment), Some(given));
        }
        assert_eq!(moment(None, "x").unwrap(), None);
    }

    #[test]
    fn times_that_cannot_be_are_refused_and_named() {
        for (seconds, nanos) in [(0, -1), (0, 1_000_000_000), (i64::MAX, 0), (i64::MIN, 0), (253_402_300_800, 0)] {
            let error = moment(Some(&prost_types::Timestamp { seconds, nanos }), "expire_at").unwrap_err();
            assert!(error.message().contains("expire_at"), "{error}");
        }
    }

    #[test]
    fn a_request_without_a_uri_is_refused() {
        assert_eq!(
            keys("", AssetKind::Blob, DigestFunction::Sha256, &[], &[]).unwrap_err().code(),
            tonic::Code::InvalidArgument
        );
        let many = vec![String::from("urn:a"); MAX_URIS + 1];
        assert_eq!(
            keys("", AssetKind::Blob, DigestFunction::Sha256, &many, &[]).unwrap_err().code(),
            tonic::Code::InvalidArgument
        );
        let empty = [String::from("urn:a"), String::new()];
        assert_eq!(
            keys("", AssetKind::Blob, DigestFunction::Sha256, &empty, &[]).unwrap_err().code(),
            tonic::Code::InvalidArgument
        );
    }
}
