//! The real BuildStream against the server: what its users do (docs/clients/buildstream.md), and what goes wrong for
//! them.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use casbah_tests::authority::{Identity, IdentityFiles};
use casbah_tests::bst::{Artifact, Bst, Entry, Files, Outcome, Project, Queue, Remote};
use casbah_tests::clients::{Client, Trust};
use casbah_tests::process::{Config, Listener, Server};
use tempfile::TempDir;

/// Elements of the sample project's `all.bst`, itself included.
const ELEMENTS: u32 = 8;

/// What BuildStream's own tests give to a server.
const QUOTA: &str = "22000000";

/// `bst-artifact-server` on free ports, with these options before the directory.
fn start(dir: &Path, options: &[&str]) -> Result<Server> {
    let mut args = vec!["bst-artifact-server", "--port", "0"];
    args.extend(options);
    args.push(utf8(dir)?);
    Server::start(&args)
}

fn utf8(path: &Path) -> Result<&str> {
    path.to_str().context("the path is not UTF-8")
}

async fn plaintext_client(server: &Server) -> Result<Client> {
    Client::plaintext(&format!("localhost:{}", server.port(0))).await
}

/// Builds `all.bst` without any server, and returns the files that everybody has to see.
fn build_alone(bst: &Bst) -> Result<Files> {
    bst.build("all.bst")?.succeeded()?;
    bst.checkout("all.bst")
}

fn all(processed: u32) -> Queue {
    Queue { processed, skipped: 0, failed: 0 }
}

/// Builds with nothing at hand but the server, and sees to it that nothing was built.
fn build_from_server(bst: &Bst, expected: &Files) -> Result<()> {
    let built = bst.build("all.bst")?.succeeded()?;
    // What only other elements were made of is not even pulled.
    let pulled = built.queue("Pull")?;
    ensure!(pulled.processed > 0 && pulled == all(pulled.processed), "{pulled:?}");
    ensure!(built.queue("Build")?.processed == 0, "something was built again");
    bst.checkout("all.bst")?.same_as(expected)
}

/// That the server has neither the artifact's name nor its files.
async fn check_not_stored(client: &Client, puller: &Bst, artifact: &Artifact) -> Result<()> {
    ensure!(!client.has(&artifact.tree).await?, "the tree of {} is stored", artifact.name);
    puller.wipe()?;
    puller.pull(&artifact.name)?.succeeded()?.saying("does not have artifact")?;
    Ok(())
}

/// That it has both.
fn check_stored(puller: &Bst, artifact: &Artifact) -> Result<()> {
    puller.wipe()?;
    // Known by its name alone, it is pulled before there is a queue.
    puller.pull(&artifact.name)?.succeeded()?.saying("Pulled artifact")?;
    Ok(())
}

/// Whether a server can be pulled from: BuildStream warns and goes on without one that it cannot use.
fn is_refused(outcome: &Outcome, remote: &Remote) -> bool {
    outcome.says(&format!("Failed to initialize remote {}", remote.url()))
}

/// The certificates of BuildStream's documentation, in files.
struct Certificates {
    dir: TempDir,
    server: IdentityFiles,
    client: IdentityFiles,
    other: IdentityFiles,
}

impl Certificates {
    fn new() -> Result<Certificates> {
        let dir = tempfile::tempdir()?;
        let server = Identity::documented_server()?.write(dir.path(), "server")?;
        let client = Identity::documented_client()?.write(dir.path(), "client")?;
        let other = Identity::another_documented_client()?.write(dir.path(), "other")?;
        Ok(Certificates { dir, server, client, other })
    }

    /// `authorized.crt`, which is made with `cat`.
    fn authorized(&self, clients: &[&IdentityFiles]) -> Result<PathBuf> {
        let authorized = self.dir.path().join("authorized.crt");
        let pems: Result<Vec<String>, _> = clients.iter().map(|it| std::fs::read_to_string(&it.certificate)).collect();
        std::fs::write(&authorized, pems?.concat())?;
        Ok(authorized)
    }

    fn server_options(&self) -> Result<[&str; 4]> {
        Ok(["--server-key", utf8(&self.server.key)?, "--server-cert", utf8(&self.server.certificate)?])
    }

    /// A server that wants to see a certificate and lets those who have one push.
    fn start_server_for(&self, dir: &Path, clients: &[&IdentityFiles]) -> Result<Server> {
        let authorized = self.authorized(clients)?;
        let mut options = self.server_options()?.to_vec();
        options.extend(["--client-certs", utf8(&authorized)?, "--enable-push"]);
        start(dir, &options)
    }

    /// A client of the API that may see what is stored.
    async fn api_client(&self, server: &Server) -> Result<Client> {
        let trust = Trust::Exactly(Identity::documented_server()?.certificate_pem);
        let authority = format!("localhost:{}", server.port(0));
        Client::tls(&authority, &trust, Some(&Identity::documented_client()?)).await
    }
}

// === push, pull, build ===

#[test]
fn what_was_pushed_is_pulled_after_the_local_cache_is_lost() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let server = start(dir.path(), &["--enable-push"])?;
    let bst = Bst::new(&Project::sample()?)?;
    let expected = build_alone(&bst)?;
    let remote = Remote::of(server.endpoint(0)).pushing();
    bst.configure(std::slice::from_ref(&remote), &[])?;

    let pushed = bst.push("all.bst")?.succeeded()?;
    assert_eq!(pushed.queue("Push")?, all(ELEMENTS));
    // The second time the server has everything.
    let again = bst.push("all.bst")?.succeeded()?.saying("already has artifact")?;
    assert_eq!(again.queue("Push")?, Queue { processed: 0, skipped: ELEMENTS, failed: 0 });

    bst.wipe()?;
    build_from_server(&bst, &expected)
}

#[test]
fn a_build_pushes_what_it_made_and_another_machine_pulls_it() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let server = start(dir.path(), &["--enable-push"])?;
    let remote = Remote::of(server.endpoint(0));
    let project = Project::sample()?;
    let builder = Bst::new(&project)?;
    builder.configure(&[remote.clone().pushing()], &[])?;
    let built = builder.build("all.bst")?.succeeded()?;
    assert_eq!(built.queue("Build")?, all(ELEMENTS));
    assert_eq!(built.queue("Push")?, all(ELEMENTS));
    let expected = builder.checkout("all.bst")?;

    let other = Bst::new(&project)?;
    other.configure(&[remote], &[])?;
    build_from_server(&other, &expected)
}

#[test]
fn an_artifact_is_whole_for_those_who_have_none_of_its_sources() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let server = start(dir.path(), &["--enable-push"])?;
    let remote = Remote::of(server.endpoint(0));
    let builder = Bst::new(&Project::sample()?)?;
    builder.configure(&[remote.clone().pushing()], &[])?;
    builder.build("all.bst")?.succeeded()?;

    // Local sources are in the client's own store as soon as it has loaded a project: here every byte is the server's.
    let stranger = Bst::new(&Project::bare()?)?;
    stranger.configure(&[remote], &[])?;
    for element in ["tree.bst", "large.bst", "compiled.bst", "image.bst"] {
        let artifact = builder.artifact(element)?;
        check_stored(&stranger, &artifact)?;
        stranger.checkout(&artifact.name)?.same_as(&builder.checkout(element)?)?;
    }
    let image = stranger.checkout(&builder.artifact("image.bst")?.name)?;
    assert_eq!(image.get("links/dangling"), Some(&Entry::Symlink("nowhere".into())));
    assert_eq!(image.get("opt/app/latest"), Some(&Entry::Symlink("program".into())));
    assert!(matches!(image.get("opt/app/empty"), Some(Entry::Directory(_))));
    Ok(())
}

#[test]
fn instances_do_not_see_each_other() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let server = start(dir.path(), &["--enable-push"])?;
    let remote = Remote::of(server.endpoint(0));
    let bst = Bst::new(&Project::sample()?)?;
    bst.configure(&[remote.clone().instance("team/a").pushing()], &[])?;
    bst.build("tree.bst")?.succeeded()?;
    let artifact = bst.artifact("tree.bst")?;

    let stranger = Bst::new(&Project::bare()?)?;
    stranger.configure(&[remote.clone().instance("team/b")], &[])?;
    stranger.pull(&artifact.name)?.succeeded()?.saying("does not have artifact")?;
    stranger.configure(&[remote.instance("team/a")], &[])?;
    check_stored(&stranger, &artifact)
}

#[test]
fn a_storage_service_holds_the_blobs_of_builds() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let server = start(dir.path(), &["--enable-push"])?;
    let remote = Remote::of(server.endpoint(0));
    let project = Project::sample()?;
    let bst = Bst::new(&project)?;
    let expected = build_alone(&bst)?;
    let pushing = [remote.clone().pushing()];
    bst.configure_storage_service(&remote, &pushing)?;
    bst.wipe()?;
    let built = bst.build("all.bst")?.succeeded()?;
    assert_eq!(built.queue("Build")?, all(ELEMENTS));
    bst.checkout("all.bst")?.same_as(&expected)?;
    bst.wipe()?;
    build_from_server(&bst, &expected)
}

// === sources ===

#[test]
fn sources_are_fetched_from_the_cache_when_upstream_is_gone() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let server = start(dir.path(), &["--enable-push"])?;
    let remote = Remote::of(server.endpoint(0));
    let project = Project::sample()?;
    let bst = Bst::new(&project)?;
    bst.configure(&[], &[remote.clone().pushing()])?;
    let pushed = bst.push_sources("all.bst")?.succeeded()?.queue("Src-push")?;
    // Two elements have a source in common: the later one may find it pushed.
    assert_eq!((pushed.processed + pushed.skipped, pushed.failed), (ELEMENTS, 0));
    let expected = build_alone(&bst)?;

    project.lose_upstream()?;
    bst.wipe()?;
    bst.configure(&[], &[remote])?;
    let fetched = bst.fetch_sources("all.bst")?.succeeded()?;
    assert_eq!(fetched.queue("Fetch")?, all(ELEMENTS));
    let built = bst.build("all.bst")?.succeeded()?;
    assert_eq!(built.queue("Build")?, all(ELEMENTS));
    bst.checkout("all.bst")?.same_as(&expected)
}

#[test]
fn a_build_pushes_its_sources_and_one_source_serves_another_element() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let server = start(dir.path(), &["--enable-push"])?;
    let remote = Remote::of(server.endpoint(0));
    let project = Project::sample()?;
    let bst = Bst::new(&project)?;
    bst.configure(&[], &[remote.clone().pushing()])?;
    let built = bst.build("downloads.bst")?.succeeded()?;
    assert_eq!(built.queue("Src-push")?, all(1));

    // The sources of compiled.bst as a whole are unknown, but the archive among them is known by itself.
    project.lose_upstream()?;
    bst.wipe()?;
    bst.configure(&[], &[remote])?;
    let fetched = bst.run(&["source", "fetch", "--deps", "none", "compiled.bst"])?.succeeded()?;
    let fetched = fetched.saying("does not have source")?.saying("Pulled source")?;
    assert_eq!(fetched.queue("Fetch")?, all(1));
    // What nobody has pushed is nowhere.
    bst.run(&["source", "fetch", "--deps", "none", "large.bst"])?.failed()?;
    Ok(())
}

// === the server's own life ===

#[test]
fn what_was_pushed_outlives_a_restart_and_a_crash() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let bst = Bst::new(&Project::sample()?)?;
    let expected = build_alone(&bst)?;
    let server = start(dir.path(), &["--enable-push"])?;
    let remote = [Remote::of(server.endpoint(0)).pushing()];
    bst.configure(&remote, &remote)?;
    bst.push("all.bst")?.succeeded()?;
    server.stop()?;

    let server = start(dir.path(), &["--enable-push"])?;
    let remote = [Remote::of(server.endpoint(0)).pushing()];
    bst.configure(&remote, &remote)?;
    bst.wipe()?;
    build_from_server(&bst, &expected)?;
    bst.push_sources("all.bst")?.succeeded()?;
    server.kill9()?;

    let server = start(dir.path(), &[])?;
    let remote = [Remote::of(server.endpoint(0))];
    bst.configure(&remote, &remote)?;
    bst.wipe()?;
    build_from_server(&bst, &expected)?;
    bst.fetch_sources("all.bst")?.succeeded()?.saying("Pulled source")?;
    Ok(())
}

#[test]
fn without_the_server_a_build_goes_on_and_a_push_fails() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let server = start(dir.path(), &["--enable-push"])?;
    let remote = Remote::of(server.endpoint(0)).pushing().impatient();
    server.stop()?;
    let bst = Bst::new(&Project::sample()?)?;
    bst.configure(std::slice::from_ref(&remote), &[])?;
    let built = bst.build("tree.bst")?.succeeded()?;
    assert!(is_refused(&built, &remote));
    bst.push("tree.bst")?.failed()?;
    Ok(())
}

// === TLS ===

#[test]
fn the_documented_server_certificate_serves_over_tls() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let certificates = Certificates::new()?;
    let mut options = certificates.server_options()?.to_vec();
    options.push("--enable-push");
    let server = start(dir.path(), &options)?;
    let remote = Remote::of(server.endpoint(0)).pushing().trusting(&certificates.server.certificate);
    assert!(remote.url().starts_with("https://"));
    let bst = Bst::new(&Project::sample()?)?;
    let expected = build_alone(&bst)?;
    bst.configure(std::slice::from_ref(&remote), std::slice::from_ref(&remote))?;
    bst.push("all.bst")?.succeeded()?;
    bst.push_sources("large.bst")?.succeeded()?;
    bst.wipe()?;
    build_from_server(&bst, &expected)
}

#[test]
fn every_client_of_authorized_crt_may_push_and_pull() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let certificates = Certificates::new()?;
    let server = certificates.start_server_for(dir.path(), &[&certificates.client, &certificates.other])?;
    let remote = Remote::of(server.endpoint(0)).pushing().trusting(&certificates.server.certificate);
    let project = Project::sample()?;

    let first = Bst::new(&project)?;
    first.configure(&[remote.clone().showing(&certificates.client)], &[])?;
    first.build("image.bst")?.succeeded()?;
    let image = first.artifact("image.bst")?;

    let second = Bst::new(&project)?;
    second.configure(&[remote.showing(&certificates.other)], &[])?;
    let built = second.build("all.bst")?.succeeded()?;
    assert_eq!(built.queue("Build")?.processed, 2, "large.bst and all.bst are new");
    assert_eq!(built.queue("Push")?.processed, 2);
    second.checkout("image.bst")?.same_as(&first.checkout("image.bst")?)?;
    check_stored(&first, &image)
}

#[tokio::test]
async fn whom_the_server_does_not_know_stores_nothing_and_is_told() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let certificates = Certificates::new()?;
    let server = certificates.start_server_for(dir.path(), &[&certificates.client])?;
    let bst = Bst::new(&Project::sample()?)?;
    bst.build("tree.bst")?.succeeded()?;
    let artifact = bst.artifact("tree.bst")?;
    let remote = Remote::of(server.endpoint(0)).pushing().impatient();
    let trusting = remote.clone().trusting(&certificates.server.certificate);

    let mut thief = certificates.client.clone();
    thief.key.clone_from(&certificates.other.key);
    let refused = [
        ("another certificate of the same name", trusting.clone().showing(&certificates.other)),
        ("a certificate without its key", trusting.clone().showing(&thief)),
        ("no certificate", trusting.clone()),
        ("a client that does not know the server", remote.clone().showing(&certificates.client)),
        ("plaintext", remote.plaintext()),
    ];
    for (who, remote) in refused {
        bst.configure(std::slice::from_ref(&remote), &[])?;
        let pushed = bst.push("tree.bst")?.failed().context(who)?;
        ensure!(is_refused(&pushed, &remote), "{who} was not told\n{}", pushed.stderr);
        ensure!(pushed.says("No artifact caches available for pushing artifacts"), "{who}\n{}", pushed.stderr);
    }

    let client = certificates.api_client(&server).await?;
    let stranger = Bst::new(&Project::bare()?)?;
    let known = trusting.showing(&certificates.client);
    stranger.configure(std::slice::from_ref(&known), &[])?;
    check_not_stored(&client, &stranger, &artifact).await?;
    // The one that is listed still may.
    bst.configure(&[known], &[])?;
    bst.push("tree.bst")?.succeeded()?;
    check_stored(&stranger, &artifact)
}

// === pull-only ports ===

#[tokio::test]
async fn pushing_to_a_pull_only_port_fails_clearly_and_stores_nothing() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let server = start(dir.path(), &[])?;
    let bst = Bst::new(&Project::sample()?)?;
    bst.build("tree.bst")?.succeeded()?;
    let artifact = bst.artifact("tree.bst")?;
    let remote = Remote::of(server.endpoint(0));
    let pushing = [remote.clone().pushing()];
    bst.configure(&pushing, &pushing)?;

    let why = "Configured remote does not implement the Remote Asset Push service";
    bst.push("tree.bst")?.failed()?.saying(why)?.saying("No artifact caches available for pushing artifacts")?;
    bst.push_sources("tree.bst")?.failed()?.saying(why)?;
    // A build is told as well, and goes on without the server.
    bst.wipe()?;
    bst.build("tree.bst")?.succeeded()?.saying(why)?;

    let stranger = Bst::new(&Project::bare()?)?;
    stranger.configure(&[remote], &[])?;
    check_not_stored(&plaintext_client(&server).await?, &stranger, &artifact).await
}

#[test]
fn everybody_pulls_from_one_port_and_the_authorized_push_to_the_other() -> Result<()> {
    let certificates = Certificates::new()?;
    let authorized = certificates.authorized(&[&certificates.client])?;
    let anyone = Listener::tls(&certificates.server)?.allow(&["read"]);
    let listed = Listener::tls(&certificates.server)?.authorized(&authorized)?.allow(&["read", "write"]);
    let config = Config::new()?.listener(&anyone).listener(&listed);
    let server = config.start()?;
    let public = Remote::of(server.endpoint(0)).trusting(&certificates.server.certificate);
    let private = Remote::of(server.endpoint(1)).pushing().trusting(&certificates.server.certificate);

    let project = Project::sample()?;
    let developer = Bst::new(&project)?;
    let pair = [public.clone(), private.clone().showing(&certificates.client)];
    developer.configure(&pair, &pair)?;
    let built = developer.build("all.bst")?.succeeded()?;
    assert_eq!(built.queue("Push")?, all(ELEMENTS));
    assert_eq!(built.queue("Src-push")?.failed, 0);
    let expected = developer.checkout("all.bst")?;

    let anybody = Bst::new(&project)?;
    anybody.configure(std::slice::from_ref(&public), std::slice::from_ref(&public))?;
    build_from_server(&anybody, &expected)?;
    // Without a certificate the second port says nothing, and pushing to the first one is refused.
    anybody.configure(&[private.clone().impatient()], &[])?;
    anybody.push("all.bst")?.failed()?.saying("Failed to initialize remote")?;
    anybody.configure(&[public.pushing()], &[])?;
    anybody.push("all.bst")?.failed()?.saying("does not implement the Remote Asset Push service")?;
    Ok(())
}

#[test]
fn the_documented_two_processes_on_one_directory_are_one_cache() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let certificates = Certificates::new()?;
    let mut options = certificates.server_options()?.to_vec();
    let pull_server = start(dir.path(), &options)?;
    let authorized = certificates.authorized(&[&certificates.client])?;
    options.extend(["--client-certs", utf8(&authorized)?, "--enable-push"]);
    let push_server = start(dir.path(), &options)?;
    let pull = Remote::of(pull_server.endpoint(0)).trusting(&certificates.server.certificate);
    let push = Remote::of(push_server.endpoint(0)).pushing().trusting(&certificates.server.certificate);

    let project = Project::sample()?;
    let developer = Bst::new(&project)?;
    developer.configure(&[push.showing(&certificates.client)], &[])?;
    developer.build("all.bst")?.succeeded()?;
    let expected = developer.checkout("all.bst")?;
    let anybody = Bst::new(&project)?;
    anybody.configure(&[pull], &[])?;
    build_from_server(&anybody, &expected)
}

// === index and storage apart ===

#[tokio::test]
async fn an_index_only_server_names_what_a_storage_server_holds() -> Result<()> {
    let dirs = [tempfile::tempdir()?, tempfile::tempdir()?];
    let [index_dir, storage_dir] = &dirs;
    let index_server = start(index_dir.path(), &["--enable-push", "--index-only"])?;
    let storage_server = start(storage_dir.path(), &["--enable-push"])?;
    let index = Remote::of(index_server.endpoint(0)).index();
    let storage = Remote::of(storage_server.endpoint(0)).storage();

    let project = Project::sample()?;
    let bst = Bst::new(&project)?;
    let expected = build_alone(&bst)?;
    let tree = bst.artifact("image.bst")?.tree;
    let pushing = [index.clone().pushing(), storage.clone().pushing()];
    bst.configure(&pushing, &pushing)?;
    let pushed = bst.push("all.bst")?.succeeded()?;
    assert_eq!(pushed.queue("Push")?, all(ELEMENTS));
    bst.push_sources("all.bst")?.succeeded()?;
    assert!(plaintext_client(&storage_server).await?.has(&tree).await?);

    let pulling = [index, storage.clone()];
    bst.configure(&pulling, &pulling)?;
    bst.wipe()?;
    build_from_server(&bst, &expected)?;
    project.lose_upstream()?;
    bst.wipe()?;
    bst.fetch_sources("all.bst")?.succeeded()?;
    // The storage alone has no names.
    bst.wipe()?;
    let alone = Remote::of(storage_server.endpoint(0));
    bst.configure(&[alone], &[])?;
    bst.pull("tree.bst")?.succeeded()?.saying("does not have artifact")?;
    Ok(())
}

// === quota ===

#[test]
fn the_least_recently_used_artifact_makes_room_and_a_pulled_one_stays() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let server = start(dir.path(), &["--enable-push", "--quota", QUOTA])?;
    let remote = Remote::of(server.endpoint(0));
    let mut project = Project::sample()?;
    project.add_download("first", &[3_000_000, 4_000_000])?;
    project.add_download("second", &[3_500_000, 3_500_000])?;
    project.add_download("third", &[8_000_000, 1_000_000])?;
    let bst = Bst::new(&project)?;
    for element in ["first.bst", "second.bst", "third.bst"] {
        bst.build(element)?.succeeded()?;
    }
    let artifact = |element| bst.artifact(element);
    let [first, second, third] = [artifact("first.bst")?, artifact("second.bst")?, artifact("third.bst")?];
    bst.configure(&[remote.clone().pushing()], &[])?;
    let stranger = Bst::new(&Project::bare()?)?;
    stranger.configure(&[remote], &[])?;

    bst.push("first.bst")?.succeeded()?;
    bst.push("second.bst")?.succeeded()?;
    check_stored(&stranger, &first)?;
    bst.push("third.bst")?.succeeded()?;

    stranger.wipe()?;
    stranger.pull(&second.name)?.succeeded()?.saying("does not have artifact")?;
    for artifact in [&first, &third] {
        check_stored(&stranger, artifact)?;
    }
    stranger.checkout(&third.name)?.same_as(&bst.checkout("third.bst")?)?;
    // The one that had to go can be pushed again. Its name may still be known: whole again, it is found again.
    bst.push("second.bst")?.succeeded()?;
    check_stored(&stranger, &second)
}

#[test]
fn an_artifact_larger_than_the_quota_fails_to_be_pushed() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let server = start(dir.path(), &["--enable-push", "--quota", QUOTA])?;
    let remote = Remote::of(server.endpoint(0));
    let mut project = Project::sample()?;
    project.add_download("one-file", &[30_000_000])?;
    // Each of them would fit.
    project.add_download("many-files", &[5_000_000; 6])?;
    let bst = Bst::new(&project)?;
    let stranger = Bst::new(&Project::bare()?)?;
    stranger.configure(std::slice::from_ref(&remote), &[])?;
    for element in ["one-file.bst", "many-files.bst"] {
        bst.configure(&[], &[])?;
        bst.build(element)?.succeeded()?;
        let artifact = bst.artifact(element)?;
        bst.configure(&[remote.clone().pushing()], &[])?;
        bst.push(element)?.failed().context(element)?;
        stranger.wipe()?;
        stranger.pull(&artifact.name)?.succeeded()?.saying("does not have artifact").context(element)?;
    }
    // What fits still goes in.
    bst.configure(&[remote.pushing()], &[])?;
    bst.build("tree.bst")?.succeeded()?;
    check_stored(&stranger, &bst.artifact("tree.bst")?)
}
