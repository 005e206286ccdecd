//! What a test of the API runs against: a node of its own, or any server that the tester names.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::clients::Client;
use crate::process::Server;

/// The variable that names a server, in place of one of the test's own.
pub const ENDPOINT: &str = "CASBAH_TEST_ENDPOINT";

/// What a test says that looks into its node, or sets it up, where it was given a server.
pub const NEEDS_ITS_OWN: &str = "this test needs a node of its own: unset CASBAH_TEST_ENDPOINT";

/// A reading and writing address of a server that holds nothing the test relies on.
pub struct Target {
    client: Client,
    authority: String,
    /// `None` for a server that runs elsewhere.
    node: Option<Node>,
}

/// A server of the test's own, with its directory.
pub struct Node {
    // In this order: the process is gone before its directory.
    server: Server,
    dir: TempDir,
}

// === impl Target ===

impl Target {
    /// The server of `CASBAH_TEST_ENDPOINT` (`host:port`, plaintext; with several of them, separated by commas, every call goes
    /// to one or another), or a new node without a configuration.
    ///
    /// # Errors
    /// When it cannot be started or reached.
    pub async fn start() -> Result<Target> {
        if let Ok(authorities) = std::env::var(ENDPOINT) {
            let authorities: Vec<&str> = authorities.split(',').collect();
            let authority = (*authorities.first().context("no endpoint")?).to_owned();
            let client = match authorities.as_slice() {
                [one] => Client::plaintext(one).await?,
                several => Client::spread(several)?,
            };
            return Ok(Target { client, authority, node: None });
        }
        let node = Node::start(&[])?;
        let authority = node.server.endpoint(0).authority();
        Ok(Target { client: Client::plaintext(&authority).await?, authority, node: Some(node) })
    }

    /// A client of it.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// `host:port`.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// The process, for tests that look at or into it.
    ///
    /// # Errors
    /// When the server runs elsewhere: such a test has nothing to look at.
    pub fn node(&self) -> Result<&Node> {
        self.node.as_ref().context(NEEDS_ITS_OWN)
    }
}

// === impl Node ===

impl Node {
    /// `casbah serve` on a free loopback port and a new directory, with these `KEY=VALUE` settings.
    ///
    /// # Errors
    /// When it does not start, and where the test was to run against another server.
    pub fn start(settings: &[&str]) -> Result<Node> {
        ensure!(std::env::var_os(ENDPOINT).is_none(), NEEDS_ITS_OWN);
        let dir = tempfile::tempdir()?;
        Ok(Node { server: serve(dir.path(), settings)?, dir })
    }

    /// The process.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// The node's directory.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A client of it.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub async fn client(&self) -> Result<Client> {
        Client::plaintext(&self.server.endpoint(0).authority()).await
    }

    /// `kill -9`, then the same command line again (on another free port).
    ///
    /// # Errors
    /// When it was not running or does not start again.
    pub fn kill9_and_restart(&mut self, settings: &[&str]) -> Result<()> {
        self.server.kill9()?;
        self.start_again(settings)
    }

    /// Starts it again after it has ended.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_again(&mut self, settings: &[&str]) -> Result<()> {
        self.server = serve(self.dir.path(), settings)?;
        Ok(())
    }
}

fn serve(dir: &Path, settings: &[&str]) -> Result<Server> {
    let dir = dir.to_str().context("the temporary directory is not UTF-8")?;
    let mut args = vec!["serve", "--dir", dir, "--listen", "127.0.0.1:0"];
    for setting in settings {
        args.extend(["--set", setting]);
    }
    Server::start(&args)
}
