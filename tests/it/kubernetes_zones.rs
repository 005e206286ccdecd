//! Two zones, of which one is lost: what is kept in both is read on.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use casbah_tests::admin;
use casbah_tests::clients::{AssetName, Client, digest_of};
use casbah_tests::history::Kind;
use casbah_tests::kubernetes::{self, Kubernetes, at_last};
use casbah_tests::load::new_bytes;
use casbah_tests::workload::Workload;
use serde_json::{Value, json};

/// What was acknowledged: blobs, and assets that name them.
struct Kept(Vec<(AssetName, Vec<u8>)>);

impl Kept {
    async fn push(client: &Client, count: usize) -> Result<Kept> {
        let mut kept = Vec::new();
        for _ in 0..count {
            let (name, blob) = (AssetName::unique(), new_bytes(20_000));
            let digest = at_last("a blob is stored", || client.upload(blob.clone())).await?;
            at_last("an asset is pushed", || client.push_blob(&name, &digest)).await?;
            kept.push((name, blob.to_vec()));
        }
        Ok(Kept(kept))
    }

    /// Whether all is read.
    async fn is_read(&self, client: &Client) -> Result<()> {
        for (name, blob) in &self.0 {
            let asset = at_last("an asset is fetched", || client.fetch_blob(name)).await?;
            let digest = asset.blob_digest.context("it names no blob")?;
            ensure!(digest == digest_of(blob), "another blob: {digest:?}");
            let read = at_last("its blob is read", || client.download(&digest)).await?;
            ensure!(read == *blob, "{} other bytes came", read.len());
        }
        Ok(())
    }
}

/// How many voters each zone has.
fn voters(cluster: &mut Kubernetes) -> Result<BTreeMap<String, usize>> {
    let status = admin::status(cluster.admin("casbah-0")?)?;
    let members = status.pointer("/cluster/members").and_then(Value::as_array).context("it is in no cluster")?;
    let text = |member: &Value, key: &str| Some(member.get(key)?.as_str()?.to_owned());
    let mut voters = BTreeMap::from(["a", "b"].map(|zone| (zone.to_owned(), 0)));
    for member in members.iter().filter(|member| text(member, "part").as_deref() == Some("voter")) {
        *voters.entry(text(member, "zone").context("it has a zone")?).or_default() += 1;
    }
    Ok(voters)
}

#[test]
fn with_one_of_two_zones_lost_all_is_read_and_with_most_voters_all_goes_on() -> Result<()> {
    kubernetes::inside(
        "kubernetes_zones::with_one_of_two_zones_lost_all_is_read_and_with_most_voters_all_goes_on",
        async {
            let mut objects = kubernetes::rendered("prod")?;
            let mut sets = objects.iter_mut().filter(|object| object["kind"] == "StatefulSet");
            sets.next().context("there is no StatefulSet")?["spec"]["replicas"] = json!(4);
            let mut cluster = Kubernetes::start_in("a,b", objects)?;
            cluster.settle().await?;
            let (service, tls) = (cluster.push()?, cluster.tls(true)?);
            let client = cluster.client(&service, true)?;
            let kept = Kept::push(&client, 30).await?;

            let counts = voters(&mut cluster)?;
            assert_eq!(counts.values().sum::<usize>(), 3, "{counts:?}");
            let zones: Vec<&str> = counts.keys().map(String::as_str).collect();
            let few = if counts[zones[0]] < counts[zones[1]] { zones[0] } else { zones[1] };
            let many = if few == zones[0] { zones[1] } else { zones[0] };

            // The zone with fewer voters: everything goes on, writes too.
            let workload = Workload { clients: 6, ..Workload::mixed(91) };
            let load = workload.start_tls(&[service.clone(), service.clone(), service], &tls);
            load.goes_on(Kind::Store, 20).await?;
            cluster.command(&json!({"do": "lose_zone", "zone": few}))?;
            for (kind, further) in [(Kind::Store, 40), (Kind::Load, 40), (Kind::Push, 5)] {
                load.goes_on(kind, further).await?;
            }
            kept.is_read(&client).await?;
            cluster.command(&json!({"do": "regain_zone", "zone": few}))?;
            cluster.settle().await?;
            load.stop().await?.check().await?;

            // The one with most of them: nobody leads, and all is read.
            cluster.command(&json!({"do": "lose_zone", "zone": many}))?;
            kept.is_read(&client).await?;
            let refused = client.push_blob(&AssetName::unique(), &digest_of(&kept.0[0].1)).await;
            ensure!(refused.is_err(), "an asset was pushed without a majority");
            let left: Vec<String> = cluster.pods()?.into_iter().map(|pod| pod.zone).collect();
            assert!(left.iter().all(|zone| zone == few), "{left:?}");
            cluster.command(&json!({"do": "regain_zone", "zone": many}))?;
            cluster.settle().await?;
            kept.is_read(&client).await?;
            let pushed = AssetName::unique();
            let digest = digest_of(&kept.0[0].1);
            at_last("assets are pushed again", || client.push_blob(&pushed, &digest)).await
        },
    )
}
