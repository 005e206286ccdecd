//! A cluster grows and shrinks while clients work (G8): no build fails, and nothing is lost.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use casbah_tests::bazel::{Bazel, RemoteCache, Workspace};
use casbah_tests::bst::{Bst, Project, Remote};
use casbah_tests::cluster::{Cluster, ClusterOptions};
use casbah_tests::history::Kind;
use casbah_tests::process;
use casbah_tests::workload::Workload;

/// Takes a node out as a person would: drains it, stops it, removes it.
fn take_out(cluster: &mut Cluster, place: usize, asked: usize) -> Result<()> {
    let (name, admin) = (format!("node-{}", place + 1), cluster.admin(asked).to_string());
    for command in [["drain", &name, "--wait"].as_slice(), ["remove", &name].as_slice()] {
        let args: Vec<&str> = ["node"].iter().chain(command).copied().chain(["--admin", &admin]).collect();
        let output = process::run(&args)?;
        ensure!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    cluster.stop(place)
}

/// Starts the nodes that are not there yet, and waits until blobs have moved to them.
fn grow(cluster: &mut Cluster) -> Result<()> {
    cluster.start_all()?;
    cluster.wait_settled(&cluster.places())
}

/// Builds again and again, each time from nothing but the cache, until it is told to stop; at least once.
fn keep_building(caches: &[RemoteCache], workspace: &Workspace, is_over: &AtomicBool) -> Result<usize> {
    let mut builds = 0;
    for cache in caches.iter().cycle() {
        Bazel::new(workspace)?.test(cache, &["//..."])?.succeeded()?.all_hits()?;
        builds += 1;
        if is_over.load(Ordering::Relaxed) {
            break;
        }
    }
    Ok(builds)
}

/// The same with BuildStream.
fn keep_pulling(remotes: &[Remote], project: &Project, is_over: &AtomicBool) -> Result<usize> {
    let mut builds = 0;
    for remote in remotes.iter().cycle() {
        let puller = Bst::new(project)?;
        puller.configure(std::slice::from_ref(remote), &[])?;
        let queue = puller.build("all.bst")?.succeeded()?.queue("Build")?;
        ensure!(queue.processed == 0, "something was built again: {queue:?}");
        builds += 1;
        if is_over.load(Ordering::Relaxed) {
            break;
        }
    }
    Ok(builds)
}

fn endpoints(cluster: &Cluster, places: &[usize]) -> Result<(Vec<RemoteCache>, Vec<Remote>)> {
    let mut caches = Vec::new();
    let mut remotes = Vec::new();
    for place in places {
        let endpoint = cluster.server(*place)?.endpoint(0);
        caches.push(RemoteCache::of(endpoint));
        remotes.push(Remote::of(endpoint));
    }
    Ok((caches, remotes))
}

#[tokio::test(flavor = "multi_thread")]
async fn from_three_nodes_to_five_and_to_three_others_no_build_fails_and_nothing_is_lost() -> Result<()> {
    let options = ClusterOptions { bootstrap_expect: Some(3), ..ClusterOptions::nodes(5) };
    let mut cluster = Cluster::prepare(&options)?;
    for place in [0, 1, 2] {
        cluster.restart(place)?;
    }
    cluster.wait_formed(&[0, 1, 2])?;
    let (workspace, project) = (Workspace::sample()?, Project::sample()?);
    let (caches, remotes) = endpoints(&cluster, &[0, 1, 2])?;
    Bazel::new(&workspace)?.test(caches.first().context("three nodes")?, &["//..."])?.succeeded()?.no_hits()?;
    let builder = Bst::new(&project)?;
    let remote = remotes.first().context("three nodes")?.clone();
    builder.configure(&[remote.clone().pushing()], &[remote.pushing()])?;
    builder.build("all.bst")?.succeeded()?;

    // Those who go are the ones that were there first; clients know the three that are there throughout, or at the time.
    let stay = [2, 3, 4];
    let authorities = cluster.authorities();
    let known = |places: &[usize]| -> Vec<String> {
        places.iter().filter_map(|place| authorities.get(*place).cloned()).collect()
    };
    for (places, is_growing) in [([0, 1, 2], true), (stay, false)] {
        let (caches, remotes) = endpoints(&cluster, &places)?;
        let is_over = AtomicBool::new(false);
        let workload = Workload { blob_bytes_max: 100_000, clients: 4, ..Workload::mixed(places[0] as u64) };
        let running = workload.start(&known(&places));
        running.goes_on(Kind::Store, 20).await?;
        let (bazel, bst) = std::thread::scope(|scope| -> Result<(usize, usize)> {
            let bazel = scope.spawn(|| keep_building(&caches, &workspace, &is_over));
            let bst = scope.spawn(|| keep_pulling(&remotes, &project, &is_over));
            let changed = match is_growing {
                true => grow(&mut cluster),
                false => take_out(&mut cluster, 0, 2).and_then(|()| take_out(&mut cluster, 1, 2)),
            };
            is_over.store(true, Ordering::Relaxed);
            let (bazel, bst) = (bazel.join().expect("no panic"), bst.join().expect("no panic"));
            changed?;
            Ok((bazel?, bst?))
        })?;
        if !is_growing {
            cluster.wait_settled(&stay)?;
        }
        running.goes_on(Kind::Store, 20).await?;
        let stopped = running.stop().await?;
        eprintln!("{bazel} builds with Bazel and {bst} with BuildStream meanwhile");
        stopped.history().check_readable(&[0, 1, 2], Duration::ZERO..Duration::MAX)?;
        stopped.check().await?;
    }
    // What was built when others were there comes from those who are there now.
    let (caches, remotes) = endpoints(&cluster, &stay)?;
    let is_over = AtomicBool::new(true);
    for (cache, remote) in caches.into_iter().zip(remotes) {
        keep_building(&[cache], &workspace, &is_over)?;
        keep_pulling(&[remote], &project, &is_over)?;
    }
    Ok(())
}
