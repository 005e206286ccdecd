//! The real Bazel and the real BuildStream behind the one address, while the pods are replaced.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, ensure};
use casbah_tests::bazel::{Bazel, RemoteCache, Workspace};
use casbah_tests::bst::{Bst, Project, Remote};
use casbah_tests::kubernetes::{self, Kubernetes};
use serde_json::{Value, json};

/// Builds with Bazel, and again with nothing at hand but the cache, until it is over; how often.
fn build_with_bazel(cache: &RemoteCache, is_over: &AtomicBool) -> Result<u32> {
    let workspace = Workspace::sample()?;
    let bazel = Bazel::new(&workspace)?;
    bazel.test(cache, &["//..."])?.succeeded()?;
    let built = bazel.outputs()?;
    let mut builds = 1;
    loop {
        // Looked at first, so that the last one is built when all pods are new.
        let is_last = is_over.load(Ordering::Relaxed);
        bazel.clean()?;
        let again = bazel.test(cache, &["//..."])?.succeeded()?;
        bazel.outputs()?.same_as(&built)?;
        builds += 1;
        if is_last {
            again.all_hits()?;
            return Ok(builds);
        }
    }
}

/// Builds with BuildStream and pushes, and has others pull, until it is over; how often.
fn build_with_bst(remote: &Remote, is_over: &AtomicBool) -> Result<u32> {
    let project = Project::sample()?;
    let builder = Bst::new(&project)?;
    builder.configure(&[remote.clone().pushing()], &[remote.clone().pushing()])?;
    builder.build("all.bst")?.succeeded()?;
    let built = builder.checkout("all.bst")?;
    let mut builds = 1;
    loop {
        let is_last = is_over.load(Ordering::Relaxed);
        let puller = Bst::new(&project)?;
        puller.configure(std::slice::from_ref(remote), &[])?;
        let queue = puller.build("all.bst")?.succeeded()?.queue("Build")?;
        ensure!(queue.processed == 0, "something was built again: {queue:?}");
        puller.checkout("all.bst")?.same_as(&built)?;
        builds += 1;
        if is_last {
            return Ok(builds);
        }
    }
}

#[test]
fn no_build_fails_while_all_pods_are_replaced() -> Result<()> {
    kubernetes::inside("kubernetes_builds::no_build_fails_while_all_pods_are_replaced", async {
        let mut cluster = Kubernetes::start("prod")?;
        cluster.settle().await?;
        let (endpoint, authority, builder) = cluster.push_by_name()?;
        let cache = RemoteCache::of(&endpoint).trusting(&authority).showing(&builder).with("--remote_retries=5");
        let remote = Remote::of(&endpoint).trusting(&authority).showing(&builder);
        let is_over = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&is_over);
        let bazel = tokio::task::spawn_blocking(move || build_with_bazel(&cache, &over));
        let over = Arc::clone(&is_over);
        let bst = tokio::task::spawn_blocking(move || build_with_bst(&remote, &over));
        cluster.command(&json!({"do": "roll"}))?;
        let rolled = cluster.settle().await;
        is_over.store(true, Ordering::Relaxed);
        let (with_bazel, with_bst) = (bazel.await?.context("Bazel"), bst.await?.context("BuildStream"));
        rolled?;
        let (with_bazel, with_bst) = (with_bazel?, with_bst?);
        println!("{with_bazel} builds with Bazel, {with_bst} with BuildStream");
        assert_eq!(cluster.events("gone").len(), 3);
        assert_eq!(cluster.events("killed"), Vec::<Value>::new(), "a pod did not end in its grace");
        Ok(())
    })
}
