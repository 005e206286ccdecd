//! Where settings come from: default < file < environment < command line. Each value remembers its origin.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use toml::Value;

use super::error::{ConfigError, ConfigErrors, Origin, Problem};
use super::file::File;
use super::keys::{KeyPath, Segment, root};
use super::layers::Layers;
use super::lines;
use super::machine::Machine;
use super::resolve::Config;
use super::rules;

/// What environment variables that set something begin with.
const PREFIX: &str = "CASBAH_";

/// Everything that may set something.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// A TOML file.
    pub file: Option<PathBuf>,
    /// All variables of the environment.
    pub environment: Vec<(OsString, OsString)>,
    /// `KEY=VALUE` of each `--set`.
    pub set: Vec<String>,
    /// `--dir`.
    pub dir: Option<PathBuf>,
    /// Each `--listen`: an address in plaintext with reading and writing.
    pub listen: Vec<String>,
    /// What options of other commands stand for; they beat everything else.
    pub assignments: Vec<Assignment>,
    /// What depends on the machine.
    pub machine: Machine,
}

/// A value that an option stands for.
#[derive(Debug, Clone)]
pub struct Assignment {
    /// Its key, with dots.
    pub key: &'static str,
    /// A path in it starts from the current directory.
    pub value: Value,
    /// The option, with dashes.
    pub option: &'static str,
}

/// A configuration that can be run, and where each of its values came from.
#[derive(Debug)]
pub struct Loaded {
    /// The checked configuration.
    pub config: Config,
    /// The same as it would be written.
    pub file: File,
    /// The origins of the values that somebody set.
    pub layers: Layers,
}

// === impl Sources ===

impl Sources {
    /// The environment and the machine of this process, and nothing else.
    #[must_use]
    pub fn of_this_process() -> Sources {
        Sources { environment: std::env::vars_os().collect(), machine: Machine::this(), ..Sources::default() }
    }

    /// Reads all sources and checks what comes out.
    ///
    /// # Errors
    /// [`ConfigErrors`] with everything that is wrong.
    pub fn load(&self) -> Result<Loaded, ConfigErrors> {
        let mut layers = Layers::default();
        if let Some(path) = &self.file {
            match std::fs::read_to_string(path) {
                Ok(text) => self.add_file(&mut layers, path, &text),
                Err(source) => {
                    let problem = Problem::Unreadable { path: path.clone(), source };
                    let origin = Origin::Flag { name: "--config" };
                    return Err(ConfigErrors(vec![ConfigError { key: None, origin, problem }]));
                }
            }
        }
        self.add_environment(&mut layers);
        self.add_flags(&mut layers);
        finish(layers, &self.machine)
    }

    fn add_file(&self, layers: &mut Layers, path: &Path, text: &str) {
        let at = |line| Origin::File { path: path.to_path_buf(), line };
        let (table, lines) = match lines::parse(text) {
            Ok(parsed) => parsed,
            Err(error) => return layers.fail(None, at(error.line), Problem::Syntax { message: error.message }),
        };
        let folder = self.machine.absolute(path.parent().unwrap_or(Path::new("")));
        let origin = |path: &KeyPath| at(lines::line_of(&lines, path));
        layers.put(&KeyPath::default(), Value::Table(table), &origin, &folder);
    }

    fn add_environment(&self, layers: &mut Layers) {
        let mut variables: Vec<_> = self.environment.iter().collect();
        variables.sort();
        for (name, value) in variables {
            let Some(path) = name.to_str().and_then(path_of_variable) else { continue };
            let origin = Origin::Environment { name: name.to_string_lossy().into_owned() };
            match value.to_str() {
                Some(text) => layers.put_text(&path, text, &origin, &self.machine.current_dir),
                None => layers.fail(Some(path), origin, Problem::NotText),
            }
        }
    }

    fn add_flags(&self, layers: &mut Layers) {
        let here = &self.machine.current_dir;
        if let Some(dir) = &self.dir {
            let origin = Origin::Flag { name: "--dir" };
            match dir.to_str() {
                Some(text) => layers.put_text(&KeyPath::from_dotted("node.dir"), text, &origin, here),
                None => layers.fail(None, origin, Problem::NotText),
            }
        }
        self.add_listen(layers);
        let origin = Origin::Flag { name: "--set" };
        for assignment in &self.set {
            match assignment.split_once('=') {
                Some((key, value)) => layers.put_text(&KeyPath::from_dotted(key), value.trim(), &origin, here),
                None => layers.fail(None, origin.clone(), Problem::NotAnAssignment { text: assignment.clone() }),
            }
        }
        for Assignment { key, value, option } in &self.assignments {
            let origin = |_: &KeyPath| Origin::Flag { name: option };
            layers.put(&KeyPath::from_dotted(key), value.clone(), &origin, here);
        }
    }

    fn add_listen(&self, layers: &mut Layers) {
        let origin = Origin::Flag { name: "--listen" };
        let list = KeyPath::default().name("listener");
        if let Some(at) = layers.first_element_origin().filter(|_| !self.listen.is_empty()) {
            return layers.fail(None, origin, Problem::ListenTwice { at });
        }
        for (index, address) in self.listen.iter().enumerate() {
            let element = list.join(Segment::Index(index));
            layers.put_text(&element.name("address"), address, &origin, &self.machine.current_dir);
            layers.put_text(&element.name("allow"), "read,write", &origin, &self.machine.current_dir);
        }
    }
}

/// Fills in what nobody set, and checks the whole.
fn finish(mut layers: Layers, machine: &Machine) -> Result<Loaded, ConfigErrors> {
    let mut file = layers.file();
    machine.complete(&mut file);
    let checked = rules::check(&file, &layers);
    let mut errors = std::mem::take(&mut layers.errors);
    match checked {
        Ok(config) if errors.is_empty() => return Ok(Loaded { config, file, layers }),
        Ok(_) => {}
        Err(broken) => errors.extend(broken),
    }
    // In the order in which a reader meets them.
    errors.sort_by_key(|error| match error.origin {
        Origin::File { line, .. } => line,
        _ => usize::MAX,
    });
    Err(ConfigErrors(errors))
}

/// The path that a variable means to set. Others may have variables that begin with the same word, such as those that
/// Kubernetes makes for a service called casbah (`CASBAH_PORT_8980_TCP`, `CASBAH_NODE_SERVICE_HOST`); what counts is
/// two underscores, the name of a section, or a known key that is written with one underscore.
fn path_of_variable(name: &str) -> Option<KeyPath> {
    let rest = name.strip_prefix(PREFIX)?;
    if rest.contains("__") {
        return Some(KeyPath::from_variable(rest));
    }
    let rest = rest.to_ascii_lowercase();
    let is_section = |section: &str| section != "log" && root().child(section).is_some();
    if is_section(&rest) {
        return Some(KeyPath::from_variable(&rest));
    }
    let (section, key) = rest.split_once('_')?;
    let known = root().child(section)?.child(key).is_some();
    // Not `section.key`: it is to be reported as unknown, with the right spelling beside it.
    known.then(|| KeyPath::from_variable(&rest))
}

#[cfg(test)]
#[path = "sources_test.rs"]
mod tests;
