//! The manifests at work: pods that form a cluster behind one address, are rolled, killed, evicted and emptied.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use casbah_tests::admin;
use casbah_tests::clients::{Client, Tls, Trust, digest_of};
use casbah_tests::deadline::eventually;
use casbah_tests::history::Kind;
use casbah_tests::kubernetes::{self, Kubernetes};
use casbah_tests::load::new_bytes;
use casbah_tests::workload::{Running, Workload};
use serde_json::{Value, json};
use tonic::Code;

/// Waits until something of everything was done, through whichever pods there are.
async fn goes_on(load: &Running) -> Result<()> {
    load.goes_on(Kind::Store, 20).await?;
    load.goes_on(Kind::Load, 20).await?;
    load.goes_on(Kind::Push, 3).await
}

/// Clients behind the one address, each with connections of its own, which lead to any pods.
fn load(cluster: &mut Kubernetes, seed: u64) -> Result<Running> {
    let service = cluster.push()?;
    let tls = cluster.tls(true)?;
    Ok(Workload { clients: 6, ..Workload::mixed(seed) }.start_tls(&[service.clone(), service.clone(), service], &tls))
}

/// Waits until the pod was started again where it was.
async fn restarted(cluster: &mut Kubernetes, pod: &str) -> Result<()> {
    let cluster = tokio::sync::Mutex::new(cluster);
    eventually("the pod is started again", || async { Ok(cluster.lock().await.pod(pod)?.restarts == 1) }).await
}

#[test]
fn pods_that_start_at_once_are_a_cluster_behind_one_address() -> Result<()> {
    kubernetes::inside("kubernetes_pods::pods_that_start_at_once_are_a_cluster_behind_one_address", async {
        let mut cluster = Kubernetes::start("prod")?;
        cluster.settle().await?;

        let pods = cluster.pods()?;
        assert_eq!(pods.len(), 3);
        for pod in &pods {
            assert_eq!(pod.restarts, 0, "{pod:?}");
            let status = admin::status(cluster.admin(&pod.pod)?)?;
            assert_eq!(status["name"], pod.pod);
            let members = status["cluster"]["members"].as_array().context("it is in no cluster")?;
            for other in &pods {
                let member = members.iter().find(|member| member["name"] == other.pod);
                let member = member.with_context(|| format!("{} does not know {}", pod.pod, other.pod))?;
                assert_eq!(member["zone"], other.zone, "{member}");
                assert_eq!(member["address"], format!("{}.casbah-peers:7980", other.pod), "{member}");
            }
        }

        let (pull, push) = (cluster.pull()?, cluster.push()?);
        let blob = new_bytes(100_000);
        cluster.client(&push, true)?.upload(blob.clone()).await?;
        let reader = cluster.client(&pull, false)?;
        assert_eq!(reader.download(&digest_of(&blob)).await?, blob);
        let refused = reader.upload(new_bytes(1000)).await.map(drop).unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
        let stranger = cluster.client(&push, false)?.upload(new_bytes(1000)).await.map(drop).unwrap_err();
        assert_ne!(stranger.code(), Code::PermissionDenied, "who has no certificate comes to no service: {stranger}");
        Ok(())
    })
}

#[test]
fn a_rolling_update_under_load_costs_no_build() -> Result<()> {
    kubernetes::inside("kubernetes_pods::a_rolling_update_under_load_costs_no_build", async {
        let mut cluster = Kubernetes::start("prod")?;
        cluster.settle().await?;
        let (before, members) = (cluster.pods()?, ids(&mut cluster)?);
        let load = load(&mut cluster, 71)?;
        goes_on(&load).await?;

        cluster.command(&json!({"do": "roll"}))?;
        cluster.settle().await?;
        goes_on(&load).await?;
        load.stop().await?.check().await?;

        // Each asked whether it was removed, was told that it was not, and so remained what it was.
        let asked = cluster.events("asked");
        assert!(asked.len() == 3 && asked.iter().all(|event| event["code"] == 200), "{asked:?}");
        assert_eq!(ids(&mut cluster)?, members);

        // Each pod was ready again before the next one went, and all have new addresses.
        let gone: Vec<String> = cluster.events("gone").iter().map(|event| event["pod"].to_string()).collect();
        assert_eq!(gone, [r#""casbah-2""#, r#""casbah-1""#, r#""casbah-0""#]);
        assert_eq!(cluster.events("killed"), Vec::<Value>::new(), "a pod did not end in its grace");
        for pod in cluster.pods()? {
            assert!(before.iter().all(|old| old.ip != pod.ip) && pod.restarts == 0, "{pod:?}");
        }
        Ok(())
    })
}

#[test]
fn pods_that_are_killed_evicted_or_emptied_cost_no_build() -> Result<()> {
    kubernetes::inside("kubernetes_pods::pods_that_are_killed_evicted_or_emptied_cost_no_build", async {
        let mut cluster = Kubernetes::start("prod")?;
        cluster.settle().await?;
        let load = load(&mut cluster, 72)?;
        goes_on(&load).await?;

        cluster.command(&json!({"do": "kill", "pod": "casbah-1"}))?;
        restarted(&mut cluster, "casbah-1").await?;
        goes_on(&load).await?;
        cluster.settle().await?;

        // A machine is drained: one pod at a time.
        let evicted = cluster.pod("casbah-0")?;
        assert_eq!(cluster.command(&json!({"do": "evict", "pod": "casbah-0"}))?, json!({"allowed": true}));
        assert_eq!(cluster.command(&json!({"do": "evict", "pod": "casbah-2"}))?, json!({"allowed": false}));
        cluster.settle().await?;
        ensure!(cluster.pod("casbah-0")?.ip != evicted.ip, "it is the same pod");
        goes_on(&load).await?;

        // A machine is gone, and what was on its disk.
        cluster.command(&json!({"do": "lose_volume", "pod": "casbah-2"}))?;
        cluster.settle().await?;
        goes_on(&load).await?;
        load.stop().await?.check().await
    })
}

#[test]
fn a_full_outage_costs_no_acknowledged_write() -> Result<()> {
    kubernetes::inside("kubernetes_pods::a_full_outage_costs_no_acknowledged_write", async {
        let mut cluster = Kubernetes::start("prod")?;
        cluster.settle().await?;
        let id = cluster_id(&mut cluster)?;
        let before = cluster.pods()?;
        let load = load(&mut cluster, 73)?;
        goes_on(&load).await?;

        cluster.command(&json!({"do": "outage"}))?;
        goes_on(&load).await?;
        cluster.settle().await?;
        load.stop().await?.check().await?;
        assert_eq!(cluster_id(&mut cluster)?, id, "it is another cluster");
        for pod in cluster.pods()? {
            assert!(before.iter().all(|old| old.ip != pod.ip), "{pod:?}");
        }
        Ok(())
    })
}

#[test]
fn more_replicas_join_and_no_other_pod_is_touched() -> Result<()> {
    kubernetes::inside("kubernetes_pods::more_replicas_join_and_no_other_pod_is_touched", async {
        let mut cluster = Kubernetes::start("prod")?;
        cluster.settle().await?;
        let before = cluster.pods()?;
        let load = load(&mut cluster, 74)?;
        goes_on(&load).await?;

        cluster.command(&json!({"do": "scale", "replicas": 5}))?;
        cluster.settle().await?;
        goes_on(&load).await?;
        load.stop().await?.check().await?;
        let after = cluster.pods()?;
        assert_eq!(after.len(), 5);
        assert!(before.iter().all(|old| after.iter().any(|pod| pod.ip == old.ip && pod.restarts == 0)), "{after:?}");
        let status = admin::status(cluster.admin("casbah-4")?)?;
        assert_eq!(status["cluster"]["members"].as_array().map(Vec::len), Some(5));
        Ok(())
    })
}

#[test]
fn renewed_certificates_are_shown_without_a_restart() -> Result<()> {
    kubernetes::inside("kubernetes_pods::renewed_certificates_are_shown_without_a_restart", async {
        let mut cluster = Kubernetes::start("prod")?;
        cluster.settle().await?;
        let load = load(&mut cluster, 75)?;
        goes_on(&load).await?;

        cluster.renew_certificates()?;
        let push = cluster.push()?;
        let renewed = Trust::Exactly(cluster.server_certificate()?.certificate_pem);
        let config = renewed.config(Some(&cluster.builder()?), rustls::ALL_VERSIONS)?;
        let tls = Tls { config: Arc::new(config), ..cluster.tls(true)? };
        eventually("every pod shows its renewed certificate", || async {
            // Each attempt is a new connection, to any pod.
            for _ in 0..12 {
                if Client::lazy_tls(&push, &tls)?.find_missing(&[]).await.is_err() {
                    return Ok(false);
                }
            }
            Ok(true)
        })
        .await?;
        goes_on(&load).await?;
        load.stop().await?.check().await?;
        assert!(cluster.pods()?.iter().all(|pod| pod.restarts == 0));
        Ok(())
    })
}

/// The ids of the members.
fn ids(cluster: &mut Kubernetes) -> Result<Vec<u64>> {
    let status = admin::status(cluster.admin("casbah-0")?)?;
    let members = status.pointer("/cluster/members").and_then(Value::as_array).context("it is in no cluster")?;
    Ok(members.iter().filter_map(|member| member.get("id")?.as_u64()).collect())
}

fn cluster_id(cluster: &mut Kubernetes) -> Result<String> {
    let status = admin::status(cluster.admin("casbah-0")?)?;
    let id = status.pointer("/cluster/id").and_then(Value::as_str);
    Ok(id.context("it is in no cluster")?.to_owned())
}
