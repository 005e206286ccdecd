//! casbah as Kubernetes would run it: what `deploy/k8s` renders, carried out by `tests/kubernetes/emulator.py`.
//!
//! The pods have a network of their own, and so has the test: it runs once more, inside.

use std::future::Future;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;
use tonic::{Code, Status};

use crate::authority::{Authority, Identity, IdentityFiles};
use crate::clients::{Client, Tls, Trust, is_transport_error};
use crate::process::{self, Endpoint, Process};

/// The variable that tells a test that it is inside.
const INSIDE: &str = "CASBAH_TEST_INSIDE";

/// How long a test inside may take: far longer than any does.
const TEST_DEADLINE: Duration = Duration::from_secs(300);

/// How long the pods may take until all are as they should be.
const SETTLE_DEADLINE: Duration = Duration::from_secs(150);

/// How long a command to the emulator may take.
const COMMAND_DEADLINE: Duration = Duration::from_secs(60);

/// Between two looks at the pods.
const PAUSE: Duration = Duration::from_millis(100);

/// What the waiting by design is divided by: preStop and minReadySeconds.
const HURRY: &str = "5";

/// The programs that tests are made of are larger than what is shipped.
const IMAGE_BYTES_MAX: &str = "200000000";

/// The name by which clients in the same Kubernetes cluster call the service.
const SERVER: &str = "casbah.casbah.svc";

/// Where pods find the API server.
const API_SERVER: [&str; 2] = ["kubernetes.default.svc", "10.244.0.1"];

/// The zones that there are, where a test does not say.
const ZONES: &str = "a,b,c";

const PULL: u16 = 11001;
const PUSH: u16 = 11002;
const ADMIN: u16 = 8982;

/// A Kubernetes cluster with the objects of one overlay.
pub struct Kubernetes {
    // In this order: the emulator is gone before its directory.
    emulator: Emulator,
    clients: Authority,
    peers: Authority,
    objects: Vec<Value>,
    dir: TempDir,
}

/// A pod, as the emulator tells of it.
#[derive(Debug, Clone, serde::Deserialize)]
pub struct Pod {
    /// `casbah-0`
    pub pod: String,
    /// Its address, which no pod had before.
    pub ip: String,
    /// Whether it is in the services.
    pub ready: bool,
    /// Where it is.
    pub zone: String,
    /// How often it ended by itself.
    pub restarts: u32,
}

struct Emulator {
    child: Child,
    /// Closed, it tells the emulator to end everything.
    input: Option<ChildStdin>,
    lines: Receiver<Value>,
    events: Vec<Value>,
}

/// Runs the test of this name (`module::function`) inside a network of its own, in which nothing is but what it makes.
///
/// # Errors
/// What the test says, or when there can be no such network.
pub fn inside(test: &str, body: impl Future<Output = Result<()>>) -> Result<()> {
    if std::env::var(INSIDE).is_ok_and(|name| name == test) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        return runtime.block_on(body);
    }
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount", "--propagation", "private"]);
    if !rustix::process::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    command.arg(std::env::current_exe()?).args(["--exact", test, "--nocapture"]).env(INSIDE, test);
    let process = Process::spawn(command)?;
    let status = process.exit_within(TEST_DEADLINE)?.with_context(|| format!("{test} takes too long"))?;
    let said = process.stdout();
    ensure!(status.success(), "inside: {status}\n{said}\n{}", process.stderr());
    ensure!(said.contains("1 passed"), "there is no test {test}: {said}");
    Ok(())
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Whether a text in JSON is this one.
fn is(value: &Value, pointer: &str, text: &str) -> bool {
    value.pointer(pointer).and_then(Value::as_str) == Some(text)
}

fn text<'a>(value: &'a Value, pointer: &str) -> Result<&'a str> {
    value.pointer(pointer).and_then(Value::as_str).with_context(|| format!("no {pointer} in {value}"))
}

fn succeeds(what: &str, output: std::io::Result<Output>) -> Result<Vec<u8>> {
    let output = output.with_context(|| what.to_owned())?;
    ensure!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(output.stdout)
}

/// What `kubectl apply -k` would send.
///
/// # Errors
/// When it cannot be rendered.
pub fn rendered(overlay: &str) -> Result<Vec<Value>> {
    let tools = root().join(".venv-k8s/bin");
    let overlay = root().join("deploy/k8s/overlays").join(overlay);
    let yaml = succeeds("kubectl", Command::new(tools.join("kubectl")).arg("kustomize").arg(overlay).output())?;
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("objects.yaml");
    std::fs::write(&file, yaml)?;
    let to_json = "import json, sys, yaml; json.dump(list(yaml.safe_load_all(open(sys.argv[1]))), sys.stdout)";
    let python = Command::new(tools.join("python")).args(["-c", to_json]).arg(&file).output();
    Ok(serde_json::from_slice(&succeeds("python", python)?)?)
}

// === impl Kubernetes ===

impl Kubernetes {
    /// Starts the pods of an overlay, in three zones. It takes the part of cert-manager, too.
    ///
    /// # Errors
    /// When a part of it cannot be made.
    pub fn start(overlay: &str) -> Result<Kubernetes> {
        Kubernetes::start_in(ZONES, rendered(overlay)?)
    }

    /// The same of these objects, in zones of these names, with commas between.
    ///
    /// # Errors
    /// When a part of it cannot be made.
    pub fn start_in(zones: &str, objects: Vec<Value>) -> Result<Kubernetes> {
        let dir = tempfile::tempdir()?;
        std::fs::write(dir.path().join("objects.json"), serde_json::to_vec(&objects)?)?;
        let (clients, peers) = (Authority::new("casbah clients")?, Authority::new("casbah peers")?);
        issue_all(&objects, &clients, &peers, &dir.path().join("secrets"))?;
        let authority = Authority::new("kubernetes")?;
        let api_server = authority.server_named(&API_SERVER.map(str::to_owned))?;
        keep(&dir.path().join("api"), &api_server, &authority)?;
        let path = |name: &str| dir.path().join(name);
        let strip = Command::new("strip").arg("-o").arg(path("casbah")).arg(process::binary()).output();
        succeeds("strip (Debian: package binutils)", strip)?;
        let mut image = Command::new(root().join("deploy/oci-image"));
        image.args(["--root", "--bytes-max", IMAGE_BYTES_MAX, "--config"]).arg(path("image.json"));
        succeeds("deploy/oci-image", image.arg(path("casbah")).arg(path("image")).output())?;

        let mut command = Command::new(root().join(".venv-k8s/bin/python"));
        command.arg(root().join("tests/kubernetes/emulator.py"));
        for (option, name) in [
            ("--objects", "objects.json"),
            ("--image", "image"),
            ("--image-config", "image.json"),
            ("--secrets", "secrets"),
            ("--api", "api"),
            ("--dir", "pods"),
        ] {
            command.arg(option).arg(path(name));
        }
        command.args(["--zones", zones, "--hurry", HURRY]);
        Ok(Kubernetes { emulator: Emulator::spawn(command)?, clients, peers, objects, dir })
    }

    /// Issues every certificate anew, as cert-manager does when they are to end, and puts them into the pods.
    ///
    /// # Errors
    /// When one cannot be made.
    pub fn renew_certificates(&mut self) -> Result<()> {
        issue_all(&self.objects, &self.clients, &self.peers, &self.dir.path().join("secrets"))?;
        self.command(&json!({"do": "refresh"})).map(drop)
    }

    /// The certificate that servers show now, PEM.
    ///
    /// # Errors
    /// When there is none.
    pub fn server_certificate(&self) -> Result<Identity> {
        let secret = self.dir.path().join("secrets/casbah-server-tls");
        Identity::read(&secret.join("tls.crt"), &secret.join("tls.key"))
    }

    /// The pods that there are.
    ///
    /// # Errors
    /// When the emulator does not say.
    pub fn pods(&mut self) -> Result<Vec<Pod>> {
        let status = self.emulator.ask(&json!({"do": "status"}))?;
        Ok(serde_json::from_value(status.pointer("/pods").cloned().unwrap_or_default())?)
    }

    /// One of them.
    ///
    /// # Errors
    /// When it is not there.
    pub fn pod(&mut self, name: &str) -> Result<Pod> {
        self.pods()?.into_iter().find(|pod| pod.pod == name).with_context(|| format!("there is no {name}"))
    }

    /// Waits until all pods are there, of the newest revision, and have been ready for long enough.
    ///
    /// # Errors
    /// When that takes too long, or a pod cannot be made.
    pub async fn settle(&mut self) -> Result<()> {
        let until = Instant::now() + SETTLE_DEADLINE;
        loop {
            let status = self.emulator.ask(&json!({"do": "status"}))?;
            if status.pointer("/settled") == Some(&Value::Bool(true)) {
                return Ok(());
            }
            if let Some(error) = self.emulator.events.iter().find(|event| is(event, "/event", "error")) {
                bail!("{error}");
            }
            if Instant::now() > until {
                bail!("the pods do not settle: {status}\n{}", self.logs());
            }
            tokio::time::sleep(PAUSE).await; // why: pods settle when all of several things are so, for a while
        }
    }

    /// A command to the emulator: see its methods `do_*`.
    ///
    /// # Errors
    /// When it fails.
    pub fn command(&mut self, command: &Value) -> Result<Value> {
        self.emulator.ask(command)
    }

    /// What happened so far, of one kind.
    pub fn events(&self, kind: &str) -> Vec<Value> {
        self.emulator.events.iter().filter(|event| is(event, "/event", kind)).cloned().collect()
    }

    /// Where clients pull, without a certificate: the service's address.
    ///
    /// # Errors
    /// When there is none.
    pub fn pull(&mut self) -> Result<String> {
        self.service(PULL)
    }

    /// Where clients push.
    ///
    /// # Errors
    /// When there is none.
    pub fn push(&mut self) -> Result<String> {
        self.service(PUSH)
    }

    /// Where clients push, by its name, for programs that are given no certificate's name to expect: `/etc/hosts` has it from
    /// now on, in this test alone. With the file of the authority by which they know the server, and a builder's files.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn push_by_name(&mut self) -> Result<(Endpoint, PathBuf, IdentityFiles)> {
        let service = self.push()?;
        let (address, _) = service.rsplit_once(':').context("it has a port")?;
        let path = |name: &str| self.dir.path().join(name);
        std::fs::write(path("hosts"), format!("127.0.0.1 localhost\n::1 localhost\n{address} {SERVER}\n"))?;
        let mount = Command::new("mount").arg("--bind").arg(path("hosts")).arg("/etc/hosts").output();
        succeeds("mount", mount)?;
        std::fs::write(path("clients-ca.crt"), self.clients.certificate_pem())?;
        let builder = self.builder()?.write(self.dir.path(), "builder")?;
        let endpoint = Endpoint { tls: true, host: SERVER.to_owned(), port: PUSH, description: String::new() };
        Ok((endpoint, path("clients-ca.crt"), builder))
    }

    fn service(&mut self, port: u16) -> Result<String> {
        let status = self.emulator.ask(&json!({"do": "status"}))?;
        let address = text(&status, "/services/casbah")?;
        Ok(format!("{address}:{port}"))
    }

    /// The admin port of a pod.
    ///
    /// # Errors
    /// When there is no such pod.
    pub fn admin(&mut self, name: &str) -> Result<SocketAddr> {
        Ok(format!("{}:{ADMIN}", self.pod(name)?.ip).parse()?)
    }

    /// A certificate of a builder.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn builder(&self) -> Result<Identity> {
        self.clients.client("builders")
    }

    /// The TLS of a builder, with its certificate, or of somebody without one.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn tls(&self, with_certificate: bool) -> Result<Tls> {
        let identity = if with_certificate { Some(self.builder()?) } else { None };
        let trust = Trust::Authority(self.clients.certificate_pem().to_owned());
        let config = trust.config(identity.as_ref(), rustls::ALL_VERSIONS)?;
        Ok(Tls { server: SERVER.to_owned(), config: Arc::new(config) })
    }

    /// A client of a service, or of a pod.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn client(&self, authority: &str, with_certificate: bool) -> Result<Client> {
        Client::lazy_tls(authority, &self.tls(with_certificate)?)
    }

    /// Gives a command of the program to a pod, as `kubectl exec` does; what it prints.
    ///
    /// # Errors
    /// When the command fails.
    pub fn exec(&mut self, pod: &str, arguments: &[&str]) -> Result<String> {
        let program = process::binary().display().to_string();
        let command: Vec<&str> = [program.as_str()].iter().chain(arguments).copied().collect();
        let done = self.command(&json!({"do": "exec", "pod": pod, "command": command}))?;
        ensure!(done.pointer("/code") == Some(&json!(0)), "{arguments:?} in {pod}: {done}");
        Ok(text(&done, "/stdout")?.to_owned())
    }

    /// All that the pods of this name have logged.
    ///
    /// # Errors
    /// When there was none.
    pub fn log(&self, pod: &str) -> Result<String> {
        let path = self.dir.path().join("pods").join(format!("{pod}.log"));
        std::fs::read_to_string(&path).with_context(|| path.display().to_string())
    }

    /// What the nodes have to say, for the reader of a test that fails.
    pub fn logs(&self) -> String {
        let tail = |text: &str| {
            text.lines().rev().take(30).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n")
        };
        let logs =
            std::fs::read_dir(self.dir.path().join("pods")).into_iter().flatten().flatten().filter_map(|entry| {
                let is_log = entry.path().extension().is_some_and(|extension| extension == "log");
                is_log.then(|| std::fs::read_to_string(entry.path()).ok()).flatten()
            });
        logs.map(|log| tail(&log)).collect::<Vec<_>>().join("\n---\n")
    }
}

/// Calls again and again, as clients do that are told that a node or all of them cannot now, or that lose their connection: pods
/// come and go.
///
/// # Errors
/// Any other answer, a miss among them; and when it does not work for long.
pub async fn at_last<T, F>(what: &str, mut call: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<T, Status>>,
{
    let until = Instant::now() + process::DEADLINE;
    loop {
        match call().await {
            Ok(answer) => return Ok(answer),
            Err(status) if status.code() != Code::Unavailable && !is_transport_error(&status) => {
                bail!("{what}: {status}")
            }
            Err(status) => ensure!(Instant::now() < until, "{what}: still {status}"),
        }
        tokio::time::sleep(PAUSE).await; // why: who is refused does not come again at once
    }
}

fn issue_all(objects: &[Value], clients: &Authority, peers: &Authority, secrets: &Path) -> Result<()> {
    let mut certificates = objects.iter().filter(|object| is(object, "/kind", "Certificate"));
    certificates.try_for_each(|certificate| issue(certificate, clients, peers, secrets))
}

/// Makes the Secret of a Certificate, as cert-manager would.
fn issue(certificate: &Value, clients: &Authority, peers: &Authority, secrets: &Path) -> Result<()> {
    let name = text(certificate, "/spec/secretName")?;
    let list = |key: &str| -> Vec<String> {
        let list = certificate.pointer(&format!("/spec/{key}")).cloned().unwrap_or_default();
        serde_json::from_value(list).unwrap_or_default()
    };
    let (names, usages) = (list("dnsNames"), list("usages"));
    let is_for = |usage: &str| usages.iter().any(|one| one == usage);
    let authority = match text(certificate, "/spec/issuerRef/name")? {
        "casbah-peers" => peers,
        "casbah-clients" => clients,
        // The authorities themselves.
        _ => return Ok(()),
    };
    let identity: Identity = match (is_for("server auth"), is_for("client auth")) {
        (true, true) => authority.peer(name, &names)?,
        (true, false) => authority.server_named(&names)?,
        (false, true) => authority.client(name)?,
        (false, false) => bail!("{name} is for nothing"),
    };
    keep(&secrets.join(name), &identity, authority)
}

/// Writes an identity as Secrets have it.
fn keep(dir: &Path, identity: &Identity, authority: &Authority) -> Result<()> {
    std::fs::create_dir_all(dir)?;
    std::fs::write(dir.join("tls.crt"), &identity.certificate_pem)?;
    std::fs::write(dir.join("tls.key"), &identity.key_pem)?;
    std::fs::write(dir.join("ca.crt"), authority.certificate_pem())?;
    Ok(())
}

// === impl Emulator ===

impl Emulator {
    fn spawn(mut command: Command) -> Result<Emulator> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("the emulator")?;
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().context("it has an output")?);
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(std::result::Result::ok) {
                let line = serde_json::from_str(&line).unwrap_or_else(|_| json!({"event": "error", "error": line}));
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Ok(Emulator { child, input, lines, events: Vec::new() })
    }

    fn ask(&mut self, command: &Value) -> Result<Value> {
        let input = self.input.as_mut().context("it was told to end")?;
        writeln!(input, "{command}")?;
        loop {
            let line = self.lines.recv_timeout(COMMAND_DEADLINE).with_context(|| format!("{command} has no answer"))?;
            if let Some(done) = line.get("done") {
                return Ok(done.clone());
            }
            if let Some(failed) = line.get("failed") {
                bail!("{command}: {failed}");
            }
            self.events.push(line);
        }
    }
}

impl Drop for Emulator {
    /// All pods are killed, and their directories can go.
    fn drop(&mut self) {
        drop(self.input.take());
        if let Err(error) = self.child.wait() {
            eprintln!("the emulator: {error}");
        }
    }
}
