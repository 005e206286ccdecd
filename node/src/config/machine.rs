//! The defaults that depend on the machine and the user.

use std::path::{Path, PathBuf};

use super::file::{File, FilePath, ListenerSection, Permission};

/// What a configuration takes from the machine.
#[derive(Debug, Clone, Default)]
pub struct Machine {
    /// The name of the host.
    pub host_name: String,
    /// Where paths that no file gives start from.
    pub current_dir: PathBuf,
    /// The directory for data when nobody names one.
    pub data_dir: PathBuf,
}

// === impl Machine ===

impl Machine {
    /// This one.
    #[must_use]
    pub fn this() -> Machine {
        let directory = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let current_dir = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
        let from_systemd = directory("STATE_DIRECTORY").map(|list| first_of(&list));
        let of_user = || {
            let home = directory("HOME").map(|home| home.join(".local/share"));
            directory("XDG_DATA_HOME").or(home).map(|data| data.join("casbah"))
        };
        let data_dir = match from_systemd {
            Some(dir) => dir,
            None if rustix::process::geteuid().is_root() => PathBuf::from("/var/lib/casbah"),
            None => of_user().unwrap_or_else(|| current_dir.join("casbah")),
        };
        let host_name = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Machine { host_name: fit_for_name(&host_name), current_dir, data_dir }
    }

    /// The same path from the root; symbolic links stay.
    #[must_use]
    pub fn absolute(&self, path: &Path) -> PathBuf {
        if path.as_os_str().is_empty() { self.current_dir.clone() } else { self.current_dir.join(path) }
    }

    /// Fills in what nobody set.
    pub(super) fn complete(&self, file: &mut File) {
        file.node.name.get_or_insert_with(|| self.host_name.clone());
        file.node.dir.get_or_insert_with(|| FilePath::new(self.absolute(&self.data_dir)));
        if file.listener.is_empty() {
            let allow = vec![Permission::Read, Permission::Write];
            file.listener.push(ListenerSection { allow, ..ListenerSection::default() });
        }
    }
}

/// systemd lists several directories with colons between.
fn first_of(list: &Path) -> PathBuf {
    let text = list.to_string_lossy();
    text.split_once(':').map_or_else(|| list.to_path_buf(), |(first, _)| PathBuf::from(first))
}

/// Host names may hold anything; names of nodes may not.
fn fit_for_name(host_name: &str) -> String {
    let fit: String = host_name.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_')).collect();
    if fit.is_empty() { "node-1".to_owned() } else { fit }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_a_usable_name_and_directory() {
        let machine = Machine::this();
        assert!(!machine.host_name.is_empty());
        assert!(machine.data_dir.is_absolute());
    }

    #[test]
    fn the_first_of_several_state_directories_is_taken() {
        assert_eq!(first_of(Path::new("/var/lib/casbah")), Path::new("/var/lib/casbah"));
        assert_eq!(first_of(Path::new("/var/lib/casbah:/var/lib/other")), Path::new("/var/lib/casbah"));
    }

    #[test]
    fn odd_host_names_become_names_of_nodes() {
        assert_eq!(fit_for_name("build-7.example.org"), "build-7.example.org");
        assert_eq!(fit_for_name("käse host"), "ksehost");
        assert_eq!(fit_for_name("(none)"), "none");
        assert_eq!(fit_for_name("???"), "node-1");
    }
}
