//! Pods that are removed for good: they leave their cluster before they end, and where they cannot, nothing is lost either.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use casbah_tests::admin;
use casbah_tests::clients::{Client, digest_of};
use casbah_tests::deadline::eventually;
use casbah_tests::history::Kind;
use casbah_tests::kubernetes::{self, Kubernetes, at_last};
use casbah_tests::load::new_bytes;
use casbah_tests::workload::{Running, Workload};
use serde_json::{Value, json};
use tokio::sync::Mutex;

/// What a node says when its pod is removed.
const LEAVES: &str = "this pod is removed for good";
const HAS_LEFT: &str = "it is no member of the cluster any more";
const GIVES_UP: &str = "this node ends, and could not give away all it has";
const DOES_NOT_KNOW: &str = "it is not known whether this pod comes back";

/// Waits until something of everything was done, through whichever pods there are.
async fn goes_on(load: &Running) -> Result<()> {
    load.goes_on(Kind::Store, 20).await?;
    load.goes_on(Kind::Load, 20).await?;
    load.goes_on(Kind::Push, 3).await
}

/// The objects of `prod`, with so many replicas.
fn objects(replicas: u64) -> Result<Vec<Value>> {
    let mut objects = kubernetes::rendered("prod")?;
    *of_kind(&mut objects, "StatefulSet", "/spec/replicas")? = json!(replicas);
    Ok(objects)
}

/// Whether a key has this text.
fn is(value: &Value, key: &str, text: &str) -> bool {
    value.get(key).and_then(Value::as_str) == Some(text)
}

fn of_kind<'a>(objects: &'a mut [Value], kind: &str, pointer: &str) -> Result<&'a mut Value> {
    let mut found = objects.iter_mut().filter(|object| is(object, "kind", kind));
    found.find_map(|object| object.pointer_mut(pointer)).with_context(|| format!("no {kind} has {pointer}"))
}

/// Adds lines to the configuration of every node.
fn configure(objects: &mut [Value], section: &str, lines: &str) -> Result<()> {
    let config = of_kind(objects, "ConfigMap", "/data/node.toml")?;
    let before = config.as_str().context("it is text")?.to_owned();
    *config = json!(match before.contains(section) {
        true => before.replace(section, &format!("{section}\n{lines}")),
        false => format!("{before}\n{section}\n{lines}\n"),
    });
    Ok(())
}

fn scale(cluster: &mut Kubernetes, replicas: u64) -> Result<()> {
    cluster.command(&json!({"do": "scale", "replicas": replicas})).map(drop)
}

/// The members, as the first pod knows them: name, and what it says of each.
fn members(cluster: &mut Kubernetes) -> Result<BTreeMap<String, Value>> {
    let status = admin::status(cluster.admin("casbah-0")?)?;
    let members = status.pointer("/cluster/members").and_then(Value::as_array).context("it is in no cluster")?;
    let named = |member: &Value| Some((member.get("name")?.as_str()?.to_owned(), member.clone()));
    Ok(members.iter().filter_map(named).collect())
}

async fn until_standing(cluster: &mut Kubernetes, name: &str, standing: &str) -> Result<()> {
    let cluster = Mutex::new(cluster);
    eventually(&format!("{name} is {standing}"), || async {
        let mut cluster = cluster.lock().await;
        Ok(members(&mut cluster)?.get(name).is_some_and(|member| is(member, "standing", standing)))
    })
    .await
}

/// A builder, whose connections lead to any pods.
fn client_of(cluster: &mut Kubernetes) -> Result<Client> {
    let service = cluster.push()?;
    cluster.client(&service, true)
}

/// Blobs that were acknowledged.
struct Blobs(Vec<Vec<u8>>);

impl Blobs {
    async fn upload(client: &Client, count: usize, size_bytes: usize) -> Result<Blobs> {
        let mut blobs = Vec::new();
        for _ in 0..count {
            let blob = new_bytes(size_bytes);
            at_last("a blob is stored", || client.upload(blob.clone())).await?;
            blobs.push(blob.to_vec());
        }
        Ok(Blobs(blobs))
    }

    async fn are_there(&self, client: &Client) -> Result<()> {
        for blob in &self.0 {
            let digest = digest_of(blob);
            let read = at_last("a blob is read", || client.download(&digest)).await?;
            ensure!(read == *blob, "{} other bytes came", read.len());
        }
        Ok(())
    }

    /// Whether each is on two nodes that are there.
    fn are_there_twice(&self, cluster: &mut Kubernetes) -> Result<bool> {
        let admin = cluster.admin("casbah-0")?;
        for blob in &self.0 {
            let digest = digest_of(blob);
            let answer = admin::get(admin, &format!("/blobs/{}/{}", digest.hash, digest.size_bytes))?;
            let said: Value = serde_json::from_str(&answer.body)?;
            let nodes = said.get("nodes").and_then(Value::as_array).context("it says nothing of nodes")?;
            if nodes.iter().filter(|node| is(node, "copy", "present")).count() < 2 {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

#[test]
fn removed_pods_leave_their_cluster_and_may_come_again() -> Result<()> {
    kubernetes::inside("kubernetes_scale::removed_pods_leave_their_cluster_and_may_come_again", async {
        let mut cluster = Kubernetes::start("prod")?;
        cluster.settle().await?;
        let (service, tls) = (cluster.push()?, cluster.tls(true)?);
        let workload = Workload { clients: 6, ..Workload::mixed(81) };
        let load = workload.start_tls(&[service.clone(), service.clone(), service], &tls);
        goes_on(&load).await?;

        scale(&mut cluster, 5)?;
        cluster.settle().await?;
        goes_on(&load).await?;
        let five = members(&mut cluster)?;
        assert_eq!(five.len(), 5);

        // All at once, as the StatefulSet does it.
        scale(&mut cluster, 3)?;
        cluster.settle().await?;
        goes_on(&load).await?;
        assert_eq!(cluster.events("killed"), Vec::<Value>::new(), "a pod did not end in its grace");
        let three = members(&mut cluster)?;
        assert_eq!(three.keys().collect::<Vec<_>>(), ["casbah-0", "casbah-1", "casbah-2"]);
        for pod in ["casbah-3", "casbah-4"] {
            let log = cluster.log(pod)?;
            assert!(log.contains(LEAVES) && log.contains(HAS_LEFT), "{pod}: {log}");
        }
        let listed = cluster.exec("casbah-1", &["node", "list"])?;
        assert!(listed.contains("casbah-2") && !listed.contains("casbah-3"), "{listed}");

        // Their volumes are kept, as the StatefulSet says; who begins with one again is a new node.
        assert_eq!(cluster.command(&json!({"do": "volumes"}))?.as_array().map(Vec::len), Some(5));
        scale(&mut cluster, 5)?;
        cluster.settle().await?;
        goes_on(&load).await?;
        load.stop().await?.check().await?;
        let again = members(&mut cluster)?;
        for pod in ["casbah-3", "casbah-4"] {
            let (old, new) = (&five[pod]["id"], &again[pod]["id"]);
            assert!(old.as_u64() < new.as_u64(), "{pod} was {old} and is {new}");
        }
        for pod in again.keys() {
            assert_eq!(again[pod]["standing"], "serving", "{pod}");
        }
        Ok(())
    })
}

#[test]
fn without_the_api_server_a_removed_pod_is_taken_for_one_that_comes_back() -> Result<()> {
    kubernetes::inside(
        "kubernetes_scale::without_the_api_server_a_removed_pod_is_taken_for_one_that_comes_back",
        async {
            let mut cluster = Kubernetes::start_in("a,b,c", objects(4)?)?;
            cluster.settle().await?;
            let client = client_of(&mut cluster)?;
            let blobs = Blobs::upload(&client, 40, 10_000).await?;
            let id = members(&mut cluster)?["casbah-3"]["id"].clone();

            for (how, told) in [
                (json!({"do": "api", "state": "away"}), "did not answer within 5s"),
                (json!({"do": "api", "state": "slow"}), "did not answer within 5s"),
                (json!({"do": "forbid"}), "403 Forbidden"),
            ] {
                cluster.command(&how)?;
                scale(&mut cluster, 3)?;
                cluster.settle().await?;
                blobs.are_there(&client).await?;
                let log = cluster.log("casbah-3")?;
                let said = log.lines().rev().find(|line| line.contains(DOES_NOT_KNOW));
                let said = said.with_context(|| format!("{how}: {log}"))?;
                assert!(said.contains(told) && said.contains("casbah node drain casbah-3 --wait"), "{how}: {said}");
                assert_eq!(members(&mut cluster)?["casbah-3"]["standing"], "serving", "{how}: nobody took it out");

                cluster.command(&json!({"do": "api", "state": "there"}))?;
                scale(&mut cluster, 4)?;
                cluster.settle().await?;
                assert_eq!(members(&mut cluster)?["casbah-3"]["id"], id, "{how}: it is what it was");
            }

            // What is documented for that.
            cluster.exec("casbah-0", &["node", "drain", "casbah-3", "--wait"])?;
            scale(&mut cluster, 3)?;
            cluster.settle().await?;
            cluster.exec("casbah-0", &["node", "remove", "casbah-3"])?;
            assert_eq!(members(&mut cluster)?.len(), 3);
            blobs.are_there(&client).await?;
            ensure!(blobs.are_there_twice(&mut cluster)?, "a copy left with the pod");
            assert!(!cluster.log("casbah-3")?.contains(LEAVES), "it left by itself");
            Ok(())
        },
    )
}

#[test]
fn a_pod_that_has_too_little_time_to_leave_takes_nothing_along() -> Result<()> {
    kubernetes::inside("kubernetes_scale::a_pod_that_has_too_little_time_to_leave_takes_nothing_along", async {
        let mut objects = objects(4)?;
        // So slowly that nobody can leave within two seconds.
        configure(&mut objects, "[repair]", "rate = \"64KiB\"\ninterval = \"2s\"")?;
        configure(&mut objects, "[cluster]", "lost_after = \"2s\"")?;
        let env = of_kind(&mut objects, "StatefulSet", "/spec/template/spec/containers/0/env")?;
        let env = env.as_array_mut().context("it is a list")?;
        let deadline = env.iter_mut().find(|variable| variable["name"] == "CASBAH_KUBERNETES__DRAIN_DEADLINE");
        deadline.context("it is set")?["value"] = json!("2s");
        let mut cluster = Kubernetes::start_in("a,b,c", objects)?;
        cluster.settle().await?;
        let client = client_of(&mut cluster)?;
        let blobs = Blobs::upload(&client, 24, 64 << 10).await?;
        let id = members(&mut cluster)?["casbah-3"]["id"].clone();

        // Its own deadline first; then it is killed in the middle.
        for (grace, gives_up) in [(json!(null), true), (json!(1), false)] {
            cluster.command(&json!({"do": "grace", "seconds": grace}))?;
            scale(&mut cluster, 3)?;
            cluster.settle().await?;
            blobs.are_there(&client).await?;
            assert_eq!(cluster.events("killed").is_empty(), gives_up, "{:?}", cluster.events("ended"));
            ensure!(cluster.log("casbah-3")?.contains(GIVES_UP), "{}", cluster.log("casbah-3")?);
            until_standing(&mut cluster, "casbah-3", "lost").await?;
            {
                let cluster = Mutex::new(&mut cluster);
                eventually("the others have made new copies", || async {
                    let mut cluster = cluster.lock().await;
                    blobs.are_there_twice(&mut cluster)
                })
                .await?;
            }

            // It may come again, with what it has, and stays then.
            cluster.command(&json!({"do": "grace", "seconds": null}))?;
            scale(&mut cluster, 4)?;
            cluster.settle().await?;
            until_standing(&mut cluster, "casbah-3", "serving").await?;
            assert_eq!(members(&mut cluster)?["casbah-3"]["id"], id);
            blobs.are_there(&client).await?;
        }
        Ok(())
    })
}
