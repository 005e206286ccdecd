//! The real BuildStream and the real Bazel, on different machines, each of which knows another node.

use anyhow::{Result, ensure};
use casbah_tests::authority::IdentityFiles;
use casbah_tests::bazel::{Bazel, RemoteCache, Workspace};
use casbah_tests::bst::{Bst, Project, Remote};
use casbah_tests::cluster::{Cluster, ClusterOptions};
use casbah_tests::process::Server;

fn cache_of(server: &Server) -> RemoteCache {
    RemoteCache::of(server.endpoint(0))
}

#[test]
fn what_bazel_has_built_through_one_node_it_gets_through_another() -> Result<()> {
    let mut cluster = Cluster::start(&ClusterOptions::nodes(3))?;
    let workspace = Workspace::sample()?;
    let builder = Bazel::new(&workspace)?;
    builder.test(&cache_of(cluster.server(0)?), &["//..."])?.succeeded()?.no_hits()?;
    let built = builder.outputs()?;
    for place in [1, 2] {
        let other = Bazel::new(&workspace)?;
        other.test(&cache_of(cluster.server(place)?), &["//..."])?.succeeded()?.all_hits()?;
        other.outputs()?.same_as(&built)?;
    }
    // And without the node through which it was built.
    cluster.kill9(0)?;
    let other = Bazel::new(&workspace)?;
    other.test(&cache_of(cluster.server(1)?), &["//..."])?.succeeded()?.all_hits()?;
    other.outputs()?.same_as(&built)
}

#[test]
fn what_bst_has_pushed_through_one_node_is_pulled_through_another() -> Result<()> {
    let options = ClusterOptions { client_tls: true, ..ClusterOptions::nodes(3) };
    let mut cluster = Cluster::start(&options)?;
    let dir = tempfile::tempdir()?;
    let (authority, identity) = cluster.client_identity()?;
    let ca = dir.path().join("ca.crt");
    std::fs::write(&ca, authority)?;
    let files: IdentityFiles = identity.write(dir.path(), "client")?;
    let remote = |cluster: &Cluster, place: usize| -> Result<Remote> {
        Ok(Remote::of(cluster.server(place)?.endpoint(0)).trusting(&ca).showing(&files))
    };
    let project = Project::sample()?;
    let builder = Bst::new(&project)?;
    builder.configure(&[remote(&cluster, 0)?.pushing()], &[remote(&cluster, 1)?.pushing()])?;
    builder.build("all.bst")?.succeeded()?;
    let built = builder.checkout("all.bst")?;
    for place in [1, 2] {
        let puller = Bst::new(&project)?;
        puller.configure(&[remote(&cluster, place)?], &[])?;
        let queue = puller.build("all.bst")?.succeeded()?.queue("Build")?;
        ensure!(queue.processed == 0, "something was built again: {queue:?}");
        puller.checkout("all.bst")?.same_as(&built)?;
    }
    // And without the node through which it was pushed.
    cluster.kill9(0)?;
    let puller = Bst::new(&project)?;
    puller.configure(&[remote(&cluster, 2)?], &[])?;
    let queue = puller.build("all.bst")?.succeeded()?.queue("Build")?;
    ensure!(queue.processed == 0, "something was built again: {queue:?}");
    puller.checkout("all.bst")?.same_as(&built)
}
