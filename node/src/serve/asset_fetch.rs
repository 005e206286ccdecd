//! Remote Asset Fetch: answers from the index, and only with what is whole.
//!
//! Nothing is downloaded from an origin: an asset is known because somebody pushed it.

use std::sync::Arc;

use casbah_cluster::asset::{AssetKind, AssetRecord};
use casbah_cluster::digest::DigestFunction;
use casbah_proto::build::bazel::remote::asset::v1 as api;
use casbah_proto::google::rpc;
use tonic::{Request, Response, Status};

use crate::index::{AssetIndex, IndexError, now};
use crate::observe::counters::COUNTERS;
use crate::observe::labels::Lookup;
use crate::observe::with_causes;
use crate::serve::access::Access;
use crate::serve::asset_request;
use crate::serve::cas::{function_of, to_message};
use crate::serve::completeness::{Completeness, Incomplete};
use crate::serve::instances::Instances;
use crate::serve::status_map;

/// The Fetch service.
pub struct Fetch {
    /// What is known.
    pub index: AssetIndex,
    /// Whether it is whole.
    pub completeness: Arc<Completeness>,
    /// The instances that are served.
    pub instances: Instances,
}

/// What both calls ask for.
struct Question<'r> {
    instance: &'r str,
    kind: AssetKind,
    uris: &'r [String],
    qualifiers: &'r [api::Qualifier],
    oldest_content_accepted: Option<&'r prost_types::Timestamp>,
    /// That of the answer's digest. Where a request names none, the API has SHA-256 meant.
    function: DigestFunction,
    checks: bool,
}

// === impl Fetch ===

impl Fetch {
    /// The first of the URIs that stands for a whole asset, and the asset.
    async fn first_known<'r>(&self, question: &Question<'r>) -> Result<(&'r str, AssetRecord), Status> {
        let keys = asset_request::keys(
            question.instance,
            question.kind,
            question.function,
            question.uris,
            question.qualifiers,
        )?;
        let oldest = asset_request::moment(question.oldest_content_accepted, "oldest_content_accepted")?;
        let mut view = self.index.view(&keys).await.map_err(|error| status_map::index(&error))?;
        let mut incomplete = None;
        for (at, (uri, key)) in question.uris.iter().zip(&keys).enumerate() {
            let record = match view.get(at).await {
                // A push heals it; an error would keep BuildStream from pushing.
                Err(error @ IndexError::Record(_)) => {
                    tracing::error!(uri, %error, "an asset is taken for unknown");
                    continue;
                }
                outcome => outcome.map_err(|error| status_map::index(&error))?,
            };
            let Some(record) = record else { continue };
            let too_old = oldest.is_some_and(|oldest| record.pushed_at < oldest);
            if record.is_expired(now()) || too_old {
                continue;
            }
            if question.checks {
                match check(&self.completeness, question.kind, &record).await {
                    Ok(()) => {}
                    Err(Incomplete::Store(error)) => return Err(status_map::read(&error)),
                    Err(error) => {
                        incomplete = Some(error);
                        continue;
                    }
                }
            }
            self.index.used(key);
            COUNTERS.asset_lookups.add(Lookup::Hit as usize, 1);
            return Ok((uri, record));
        }
        let outcome = if incomplete.is_some() { Lookup::Incomplete } else { Lookup::Miss };
        COUNTERS.asset_lookups.add(outcome as usize, 1);
        Err(Status::not_found(match incomplete {
            Some(error) => format!("the asset was pushed but is no longer whole: {}", with_causes(&error)),
            None => format!("no asset is known as {} with these qualifiers", listed(question.uris)),
        }))
    }
}

/// Whether all that a record names is in the store.
pub(super) async fn check(
    completeness: &Completeness,
    kind: AssetKind,
    record: &AssetRecord,
) -> Result<(), Incomplete> {
    let (mut blobs, mut trees) = (record.referenced_blobs.clone(), record.referenced_directories.clone());
    match kind {
        AssetKind::Blob => blobs.push(record.target),
        AssetKind::Directory => trees.push(record.target),
    }
    completeness.check(&blobs, &trees).await
}

/// The URIs for a message, cut where it would get long.
fn listed(uris: &[String]) -> String {
    const SHOWN: usize = 3;
    let mut text = uris.iter().take(SHOWN).map(|uri| format!("\"{uri:.200}\"")).collect::<Vec<_>>().join(", ");
    if uris.len() > SHOWN {
        text.push_str(&format!(" and {} more", uris.len() - SHOWN));
    }
    text
}

#[tonic::async_trait]
impl api::fetch_server::Fetch for Fetch {
    async fn fetch_blob(
        &self,
        request: Request<api::FetchBlobRequest>,
    ) -> Result<Response<api::FetchBlobResponse>, Status> {
        let checks = Access::of(&request)?.checks_assets();
        let request = request.into_inner();
        self.instances.check(&request.instance_name)?;
        let question = Question {
            instance: &request.instance_name,
            kind: AssetKind::Blob,
            uris: &request.uris,
            qualifiers: &request.qualifiers,
            oldest_content_accepted: request.oldest_content_accepted.as_ref(),
            function: function_of(request.digest_function, None)?,
            checks,
        };
        let (uri, record) = self.first_known(&question).await?;
        Ok(Response::new(api::FetchBlobResponse {
            status: Some(rpc::Status::default()),
            uri: uri.to_owned(),
            expires_at: record.expires_at.and_then(asset_request::timestamp),
            blob_digest: Some(to_message(&record.target)),
            digest_function: i32::from(record.target.function().number()),
            qualifiers: request.qualifiers,
        }))
    }

    async fn fetch_directory(
        &self,
        request: Request<api::FetchDirectoryRequest>,
    ) -> Result<Response<api::FetchDirectoryResponse>, Status> {
        let checks = Access::of(&request)?.checks_assets();
        let request = request.into_inner();
        self.instances.check(&request.instance_name)?;
        let question = Question {
            instance: &request.instance_name,
            kind: AssetKind::Directory,
            uris: &request.uris,
            qualifiers: &request.qualifiers,
            oldest_content_accepted: request.oldest_content_accepted.as_ref(),
            function: function_of(request.digest_function, None)?,
            checks,
        };
        let (uri, record) = self.first_known(&question).await?;
        Ok(Response::new(api::FetchDirectoryResponse {
            status: Some(rpc::Status::default()),
            uri: uri.to_owned(),
            expires_at: record.expires_at.and_then(asset_request::timestamp),
            root_directory_digest: Some(to_message(&record.target)),
            digest_function: i32::from(record.target.function().number()),
            qualifiers: request.qualifiers,
        }))
    }
}
