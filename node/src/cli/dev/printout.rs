//! What `casbah dev` prints: where the nodes are, and lines to paste into the configurations of clients.

use std::fmt::Write as _;
use std::path::Path;

use serde::Serialize;

use super::layout::{Layout, NodeLayout};
use crate::authenticate::throwaway::Throwaway;
use crate::cli::output::Colours;

/// The line of `--output json`; a contract.
#[derive(Serialize)]
pub(super) struct Json<'a> {
    dir: &'a Path,
    ca: Option<&'a Path>,
    client_cert: Option<&'a Path>,
    client_key: Option<&'a Path>,
    nodes: Vec<JsonNode<'a>>,
}

#[derive(Serialize)]
struct JsonNode<'a> {
    name: &'a str,
    pid: u32,
    /// Reading and writing, with the client certificate.
    client: String,
    /// Reading, anyone.
    public: String,
    /// For the other nodes, where there are any.
    peer: Option<String>,
    /// Of the admin port.
    admin: Option<String>,
    config: &'a Path,
    dir: &'a Path,
}

/// For machines.
pub(super) fn json<'a>(layout: &'a Layout, pids: &[u32]) -> Json<'a> {
    let certificates = layout.certificates.as_ref();
    let node = |(node, pid): (&'a NodeLayout, &u32)| JsonNode {
        name: &node.name,
        pid: *pid,
        client: format!("localhost:{}", node.ports.client),
        public: format!("localhost:{}", node.ports.public),
        peer: node.ports.peer.map(|port| format!("localhost:{port}")),
        admin: Some(format!("localhost:{}", node.ports.admin)),
        config: &node.config,
        dir: &node.data,
    };
    Json {
        dir: &layout.dir,
        ca: certificates.map(|set| &*set.authority),
        client_cert: certificates.map(|set| &*set.client_certificate),
        client_key: certificates.map(|set| &*set.client_key),
        nodes: layout.nodes.iter().zip(pids).map(node).collect(),
    }
}

/// For eyes.
pub(super) fn text(layout: &Layout, pids: &[u32], program: &Path, colours: Colours) -> String {
    let mut text = String::new();
    let secure = layout.certificates.is_some();
    let (scheme, who) = match secure {
        true => ("https", "with the client certificate"),
        false => ("http", "anyone on this machine"),
    };
    for (place, (node, pid)) in layout.nodes.iter().zip(pids).enumerate() {
        if place > 0 {
            text.push('\n');
        }
        let title = format!("{} is serving", node.name);
        let _infallible = writeln!(text, "{} {}\n", colours.bold(&title), colours.dim(&format!("(pid {pid})")));
        let client = format!("{scheme}://localhost:{}", node.ports.client);
        let public = format!("{scheme}://localhost:{}", node.ports.public);
        let admin = format!("http://localhost:{}", node.ports.admin);
        let width = client.len().max(public.len()).max(admin.len());
        let rows = [
            ("client", format!("{}  reading and writing, {who}", colours.cyan(&format!("{client:width$}")))),
            ("public", format!("{}  reading, anyone", colours.cyan(&format!("{public:width$}")))),
            ("admin", format!("{}  status, metrics and probes", colours.cyan(&format!("{admin:width$}")))),
            ("log", node.log.display().to_string()),
            ("restart", restart_line(program, &node.config)),
        ];
        for (name, value) in rows {
            let _infallible = writeln!(text, "  {} {value}", colours.dim(&format!("{name:8}")));
        }
    }
    if let [first, _, ..] = layout.nodes.as_slice() {
        let title = colours.bold("One cluster");
        let (copies, nodes, first) = (layout.copies, layout.nodes.len(), &first.name);
        let _infallible = writeln!(
            text,
            "\n{title} of {nodes} nodes: any of them takes any request, and each blob is kept on {copies}.\n\
             The lines below name {first}; the client address of any other does as well."
        );
    }
    if let Some(node) = layout.nodes.first() {
        let certificates = layout.certificates.as_ref();
        let file = quoted(&layout.buildstream_file());
        heading(
            &mut text,
            colours,
            "BuildStream",
            "~/.config/buildstream.conf",
            &format!("bst --config {file} build …"),
        );
        text.push_str(&buildstream(node, certificates));
        let file = quoted(&layout.bazel_file());
        heading(&mut text, colours, "Bazel", ".bazelrc", &format!("bazel --bazelrc={file} build …"));
        text.push_str(&bazel(node, certificates));
    }
    let end = match layout.temporary {
        true => format!("Ctrl-C stops it and removes {}; with --dir DIR it is kept.", layout.dir.display()),
        false => format!("Ctrl-C stops it; {} is kept for the next time.", layout.dir.display()),
    };
    let _infallible = writeln!(text, "\n{end}");
    text
}

fn heading(text: &mut String, colours: Colours, client: &str, file: &str, command: &str) {
    let title = colours.bold(&format!("# {client}: paste into {file}"));
    let _infallible = writeln!(text, "\n{title}{}", colours.dim(&format!(", or run: {command}")));
}

/// A user configuration of BuildStream 2.
pub(super) fn buildstream(node: &NodeLayout, certificates: Option<&Throwaway>) -> String {
    let scheme = if certificates.is_some() { "https" } else { "http" };
    let mut server = format!("  servers:\n  - url: {scheme}://localhost:{}\n    push: true\n", node.ports.client);
    if let Some(set) = certificates {
        server.push_str("    auth:\n");
        let files = [
            ("server-cert", &set.authority),
            ("client-cert", &set.client_certificate),
            ("client-key", &set.client_key),
        ];
        for (key, path) in files {
            let _infallible = writeln!(server, "      {key}: {}", yaml(path));
        }
    }
    // Anchors would spare the repetition, and BuildStream does not read them.
    format!("artifacts:\n{server}source-caches:\n{server}")
}

/// Options of Bazel.
pub(super) fn bazel(node: &NodeLayout, certificates: Option<&Throwaway>) -> String {
    let Some(set) = certificates else {
        return format!("build --remote_cache=grpc://localhost:{}\n", node.ports.client);
    };
    let files = [
        ("tls_certificate", &set.authority),
        ("tls_client_certificate", &set.client_certificate),
        ("tls_client_key", &set.client_key),
    ];
    let mut lines = format!("build --remote_cache=grpcs://localhost:{}\n", node.ports.client);
    for (option, path) in files {
        let _infallible = writeln!(lines, "build {}", quoted_text(&format!("--{option}={}", path.display())));
    }
    lines
}

/// The command line that starts a node again.
pub(super) fn restart_line(program: &Path, config: &Path) -> String {
    format!("{} serve --config {}", quoted(program), quoted(config))
}

/// As a shell reads it.
fn quoted(path: &Path) -> String {
    quoted_text(&path.display().to_string())
}

/// In single quotes where a shell, or Bazel, would read something else.
fn quoted_text(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:,@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// As YAML reads it.
fn yaml(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+".contains(c);
    if text.starts_with('/') && text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', "''")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::dev::ports::Ports;
    use crate::cli::reference::assert_same;

    fn layout(dir: &str, temporary: bool, secure: bool) -> Layout {
        let dir = Path::new(dir);
        Layout {
            dir: dir.to_path_buf(),
            temporary,
            certificates: secure.then(|| Throwaway::at(&dir.join("tls"))),
            copies: 1,
            nodes: vec![NodeLayout::at(dir, 1, Ports { public: 11001, client: 11002, admin: 11003, peer: None })],
        }
    }

    fn cluster(dir: &str) -> Layout {
        let ports = |base| Ports { public: base + 1, client: base + 2, admin: base + 3, peer: Some(base + 4) };
        let node = |place: u16| NodeLayout::at(Path::new(dir), usize::from(place) + 1, ports(11000 + 10 * place));
        Layout { copies: 2, nodes: (0..3).map(node).collect(), ..layout(dir, true, true) }
    }

    const PROGRAM: &str = "/usr/bin/casbah";

    #[test]
    fn the_printout_is_the_face_of_the_project() {
        let pids = [4711, 4712, 4713];
        let printed = text(&cluster("/tmp/casbah-dev-1a2b3c4d"), &pids, Path::new(PROGRAM), Colours::NONE);
        assert_same("node/src/cli/snapshots/dev.txt", &printed);
        let printed = text(&layout("/home/me/cache", false, false), &[4711], Path::new(PROGRAM), Colours::NONE);
        assert_same("node/src/cli/snapshots/dev_insecure.txt", &printed);
    }

    #[test]
    fn colours_change_no_letter() {
        let layout = cluster("/d");
        let plain = text(&layout, &[1, 2, 3], Path::new(PROGRAM), Colours::NONE);
        let mut coloured = text(&layout, &[1, 2, 3], Path::new(PROGRAM), Colours::ALL);
        for code in ["1", "2", "1;31", "1;36", "0"] {
            coloured = coloured.replace(&format!("\u{1b}[{code}m"), "");
        }
        assert_eq!(coloured, plain);
    }

    #[test]
    fn the_line_for_machines_is_a_contract() {
        let line = serde_json::to_string(&json(&layout("/d", false, true), &[4711])).unwrap();
        assert_eq!(
            line,
            r#"{"dir":"/d","ca":"/d/tls/ca.crt","client_cert":"/d/tls/client.crt","client_key":"/d/tls/client.key","nodes":[{"#
                .to_owned()
                + r#""name":"node-1","pid":4711,"client":"localhost:11002","public":"localhost:11001","peer":null,"admin":"localhost:11003","#
                + r#""config":"/d/node-1/casbah.toml","dir":"/d/node-1/data"}]}"#
        );
        let line = serde_json::to_string(&json(&cluster("/d"), &[1, 2, 3])).unwrap();
        assert!(line.contains(
            r#""name":"node-3","pid":3,"client":"localhost:11022","public":"localhost:11021","peer":"localhost:11024","#
        ));
        let line = serde_json::to_string(&json(&layout("/d", false, false), &[4711])).unwrap();
        assert!(line.starts_with(r#"{"dir":"/d","ca":null,"client_cert":null,"client_key":null,"nodes":[{"#), "{line}");
    }

    #[test]
    fn odd_paths_are_quoted() {
        let odd = Path::new("/home/o'neil my/tls");
        assert_eq!(restart_line(Path::new("/a b"), Path::new("/c")), "'/a b' serve --config /c");
        assert_eq!(quoted(odd), r"'/home/o'\''neil my/tls'");
        assert_eq!(yaml(odd), "'/home/o''neil my/tls'");
    }
}
