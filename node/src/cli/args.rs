//! What can be typed. The comments here are the help texts and `docs/reference/cli.md`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// A build cache that does not go down.
///
/// casbah keeps what BuildStream, Bazel and every other client of the Remote Execution API have built, so that it is
/// built once.
#[derive(Debug, Parser)]
#[command(name = "casbah", version = super::version::LINE, max_term_width = 100, disable_help_subcommand = true)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Try it: a cluster on this machine, with certificates, ready to paste into your clients
    Dev(DevArguments),
    /// Run a node
    ///
    /// Without any option, it listens on localhost:8980 in plaintext, where this machine alone reaches it, and keeps its
    /// data in a directory of the user.
    Serve(ServeArguments),
    /// Run a node with the options of BuildStream's bst-artifact-server
    ///
    /// For those who had it: units and scripts go on working with only the path changed. Several instances may share one
    /// REPO, such as one for pulling and one for pushing.
    BstArtifactServer(BstArguments),
    /// Print how a node is, as its admin port says
    ///
    /// The node's configuration sets admin.address; a node of `casbah dev` has an admin port.
    Status(StatusArguments),
    /// Look at the nodes of a cluster, through any of them, and have them come and go
    #[command(subcommand)]
    Node(NodeCommand),
    /// Look at which node owns what, and at what a change would move
    #[command(subcommand)]
    Ring(RingCommand),
    /// Look at the Raft group, which holds the index and the membership, and choose who leads it
    #[command(subcommand)]
    Raft(RaftCommand),
    /// Check a configuration, show it, or start one
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Look after blobs
    #[command(subcommand)]
    Blob(BlobCommand),
    /// Print the version
    Version(VersionArguments),
    /// Print a completion script for a shell
    ///
    /// For bash: casbah completion bash > ~/.local/share/bash-completion/completions/casbah
    Completion(CompletionArguments),
    /// Print the manual page, or write the pages of all commands into a directory
    Man(ManArguments),
}

/// Arguments of `casbah serve`.
#[derive(Debug, Args)]
pub struct ServeArguments {
    #[command(flatten)]
    #[expect(missing_docs, reason = "described at its type; a comment here would become a help text")]
    pub configuration: ConfigurationArguments,
    /// End when standard input ends, so that no node outlives the program that started it.
    #[arg(long, hide = true)]
    pub exit_with_stdin: bool,
}

/// What a configuration is made of.
#[derive(Debug, Args)]
pub struct ConfigurationArguments {
    /// A TOML file; `casbah config init` prints one to start from
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The directory that holds everything the node keeps
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// An address to listen on, in plaintext, for reading and writing, such as localhost:8980
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Vec<String>,
    /// Any setting, such as store.capacity=500GiB; beats the file and the environment
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

/// Arguments of `casbah bst-artifact-server`, as they were. As then, the last of several wins, and an empty text is none.
#[derive(Debug, Args)]
#[command(args_override_self = true)]
pub struct BstArguments {
    /// Port number
    #[arg(short, long, value_name = "PORT", allow_negative_numbers = true)]
    pub port: String,
    /// Private server key for TLS (PEM)
    #[arg(long, value_name = "FILE")]
    pub server_key: Option<OsString>,
    /// Public server certificate for TLS (PEM)
    #[arg(long, value_name = "FILE")]
    pub server_cert: Option<OsString>,
    /// Client certificates that may connect (PEM, one after the other)
    #[arg(long, value_name = "FILE")]
    pub client_certs: Option<OsString>,
    /// Allow clients to upload
    #[arg(long)]
    pub enable_push: bool,
    /// Disk space for blobs, in bytes or with a unit such as 500GiB; the least recently used go first
    #[arg(long, value_name = "BYTES", default_value = "10e9", allow_negative_numbers = true)]
    pub quota: String,
    /// Serve the index of artifacts and sources, not their blobs
    #[arg(long)]
    pub index_only: bool,
    /// What is written to standard error
    #[arg(long, value_name = "LEVEL", default_value = "warning", ignore_case = true)]
    pub log_level: BstLogLevel,
    /// The directory that holds everything; made if it is not there
    #[arg(value_name = "REPO")]
    pub repo: OsString,
}

/// The levels of `bst-artifact-server`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BstLogLevel {
    /// What is wrong
    Warning,
    /// What an operator wants to have seen
    Info,
    /// Everything
    Trace,
}

/// Arguments of `casbah dev`.
#[derive(Debug, Args)]
pub struct DevArguments {
    /// How many nodes, which form a cluster
    #[arg(long, value_name = "NODES", default_value_t = 3)]
    pub nodes: u16,
    /// On how many nodes each blob is kept; never more than there are
    #[arg(long, value_name = "COPIES", default_value_t = 2)]
    pub replicas: u16,
    /// Where data and certificates are; kept, and used again the next time [default: temporary]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// The first node listens on PORT+1 (reading), PORT+2 (reading and writing), PORT+3 (its admin port) and PORT+4 (the other
    /// nodes), the next one on PORT+11 and so on; 0 for any free ports
    #[arg(long, value_name = "PORT", default_value_t = 11000)]
    pub port_base: u16,
    /// Plaintext, and everybody on this machine may write
    #[arg(long)]
    pub insecure: bool,
    /// How to print what was started
    #[arg(long, value_name = "FORMAT", default_value_t = OutputFormat::Text)]
    pub output: OutputFormat,
}

/// Arguments of `casbah status`.
#[derive(Debug, Args)]
pub struct StatusArguments {
    /// The admin port of the node
    #[arg(long, value_name = "ADDRESS", default_value = "localhost:8982")]
    pub admin: String,
    /// How to print it
    #[arg(long, value_name = "FORMAT", default_value_t = OutputFormat::Text)]
    pub output: OutputFormat,
    /// Look again every two seconds
    #[arg(long)]
    pub watch: bool,
    /// Say only whether the node takes requests; the exit code is 0 or 1, as probes of containers want it
    #[arg(long, conflicts_with_all = ["watch", "output"])]
    pub ready: bool,
    /// Say only whether the node answers at all, in the same way; a health check by which a container is started again asks
    /// this
    #[arg(long, conflicts_with_all = ["watch", "output", "ready"])]
    pub live: bool,
}

/// Which node is asked, and how its answer is printed.
#[derive(Debug, Args)]
pub struct AskArguments {
    /// The admin port of any node of the cluster
    #[arg(long, value_name = "ADDRESS", default_value = "localhost:8982")]
    pub admin: String,
    /// How to print it
    #[arg(long, value_name = "FORMAT", default_value_t = OutputFormat::Text)]
    pub output: OutputFormat,
}

/// `casbah node`.
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// Print the nodes of the cluster, and how the one that is asked sees them
    List(AskArguments),
    /// Print what is known of one node
    Show(NodeArguments),
    /// Have a node leave: what it has is moved to others, and it leads no longer
    ///
    /// It takes requests all the while. It is not stopped, and remains a member until `casbah node remove`.
    Drain(NodeDrainArguments),
    /// Have a node stay that was asked to leave
    Undrain(NodeArguments),
    /// Take a node out of the cluster that has no part of the blobs, or is lost
    Remove(NodeRemoveArguments),
}

/// Arguments of `casbah node drain`.
#[derive(Debug, Args)]
pub struct NodeDrainArguments {
    /// Its name or its id
    #[arg(value_name = "NODE")]
    pub node: String,
    /// Wait until it may be stopped, and show how far it is
    #[arg(long)]
    pub wait: bool,
    #[command(flatten)]
    #[expect(missing_docs, reason = "described at its type; a comment here would become a help text")]
    pub ask: AskArguments,
}

/// Arguments of `casbah node remove`.
#[derive(Debug, Args)]
pub struct NodeRemoveArguments {
    /// Its name or its id
    #[arg(value_name = "NODE")]
    pub node: String,
    /// Even if it has a part of the blobs: what nobody else has is lost
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    #[expect(missing_docs, reason = "described at its type; a comment here would become a help text")]
    pub ask: AskArguments,
}

/// Arguments of commands about one node.
#[derive(Debug, Args)]
pub struct NodeArguments {
    /// Its name or its id
    #[arg(value_name = "NODE")]
    pub node: String,
    #[command(flatten)]
    #[expect(missing_docs, reason = "described at its type; a comment here would become a help text")]
    pub ask: AskArguments,
}

/// `casbah ring`.
#[derive(Debug, Subcommand)]
pub enum RingCommand {
    /// Print the share of each node in the 4096 partitions, by the newest layout
    ///
    /// A partition is the first 12 bits of a hash. As JSON, the owners of each partition are printed.
    Show(AskArguments),
    /// Print what would move if all that waits were applied, or if nodes were otherwise
    ///
    /// Nothing is changed. Bytes are estimated from what the nodes hold now.
    Plan(RingPlanArguments),
    /// Make the layout that was planned
    ///
    /// Refused when another one would be made than the one that was looked at.
    Apply(RingApplyArguments),
}

/// Arguments of `casbah ring plan`.
#[derive(Debug, Args)]
pub struct RingPlanArguments {
    /// As if this node were not there; may be given several times
    #[arg(long, value_name = "NODE")]
    pub without: Vec<String>,
    /// As if this node had another weight; may be given several times
    #[arg(long, value_name = "NODE=WEIGHT")]
    pub weight: Vec<String>,
    #[command(flatten)]
    #[expect(missing_docs, reason = "described at its type; a comment here would become a help text")]
    pub ask: AskArguments,
}

/// Arguments of `casbah ring apply`.
#[derive(Debug, Args)]
pub struct RingApplyArguments {
    /// As `casbah ring plan` printed it
    #[arg(long, value_name = "EPOCH")]
    pub epoch: u64,
    #[command(flatten)]
    #[expect(missing_docs, reason = "described at its type; a comment here would become a help text")]
    pub ask: AskArguments,
}

/// `casbah raft`.
#[derive(Debug, Subcommand)]
pub enum RaftCommand {
    /// Print who leads, who votes, and how far the node that is asked has come
    Status(AskArguments),
    /// Have another voter lead: to be asked of the node that leads
    Transfer(NodeArguments),
}

/// `casbah config`.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Tell everything that is wrong with a configuration
    Check(ConfigurationArguments),
    /// Print the configuration in effect, as a file that says the same
    Show(ConfigShowArguments),
    /// Print a file to start from, or write it to PATH
    Init(ConfigInitArguments),
}

/// Arguments of `casbah config show`.
#[derive(Debug, Args)]
pub struct ConfigShowArguments {
    #[command(flatten)]
    #[expect(missing_docs, reason = "described at its type; a comment here would become a help text")]
    pub configuration: ConfigurationArguments,
    /// Say where each value came from
    #[arg(long)]
    pub origin: bool,
}

/// Arguments of `casbah config init`.
#[derive(Debug, Args)]
pub struct ConfigInitArguments {
    /// Where to write it; nothing is overwritten [default: standard output]
    #[arg(value_name = "PATH")]
    pub path: Option<PathBuf>,
}

/// `casbah blob`.
#[derive(Debug, Subcommand)]
pub enum BlobCommand {
    /// Read every blob of a node that is stopped, and tell which are damaged
    ///
    /// Each blob is compared with its checksums and with its digest. Nothing is changed: a node drops a damaged blob when
    /// it comes across it, and the next upload heals it. What is damaged is printed, a line for each blob, and then how
    /// much was read; the exit code is 1 if there is any damage.
    Verify(BlobVerifyArguments),
    /// Print which nodes have a copy of a blob, by asking each that may
    Where(BlobWhereArguments),
}

/// Arguments of `casbah blob where`.
#[derive(Debug, Args)]
pub struct BlobWhereArguments {
    /// HASH/SIZE; with the name of the digest function before it where it is not the usual one, as in blake3/HASH/SIZE
    #[arg(value_name = "DIGEST")]
    pub digest: String,
    #[command(flatten)]
    #[expect(missing_docs, reason = "described at its type; a comment here would become a help text")]
    pub ask: AskArguments,
}

/// Arguments of `casbah blob verify`.
#[derive(Debug, Args)]
pub struct BlobVerifyArguments {
    /// The directory of the node (node.dir), or the directory store in it
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// How to print what was found
    #[arg(long, value_name = "FORMAT", default_value_t = OutputFormat::Text)]
    pub output: OutputFormat,
}

/// Arguments of `casbah version`.
#[derive(Debug, Args)]
pub struct VersionArguments {
    /// How to print it
    #[arg(long, value_name = "FORMAT", default_value_t = OutputFormat::Text)]
    pub output: OutputFormat,
}

/// Arguments of `casbah completion`.
#[derive(Debug, Args)]
pub struct CompletionArguments {
    /// The shell
    pub shell: clap_complete::Shell,
}

/// Arguments of `casbah man`.
#[derive(Debug, Args)]
pub struct ManArguments {
    /// Where to write the pages of all commands
    #[arg(value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

/// For eyes or for machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// For eyes
    Text,
    /// For machines
    Json,
}

// === impl OutputFormat ===

impl std::fmt::Display for OutputFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            OutputFormat::Text => "text",
            OutputFormat::Json => "json",
        })
    }
}
