//! The defaults that depend on the machine and the user.

use std::path::{Path, PathBuf};

use super::file::{File, FilePath, ListenerSection, Permission};
use super::units::ByteSize;

/// Calls under way may hold one part in so many of the memory; the indexes and the page cache want the rest.
const MEMORY_SHARE: u64 = 4;

/// Of a machine with little memory: enough for a handful of clients.
const CALL_MEMORY_BYTES_MIN: u64 = 256 << 20;

/// Of a machine with much: some hundred of the largest calls. More would not make them faster.
const CALL_MEMORY_BYTES_MAX: u64 = 2 << 30;

/// What a configuration takes from the machine.
#[derive(Debug, Clone, Default)]
pub struct Machine {
    /// The name of the host.
    pub host_name: String,
    /// Where paths that no file gives start from.
    pub current_dir: PathBuf,
    /// The directory for data when nobody names one.
    pub data_dir: PathBuf,
    /// Bytes of memory that there are; 0 if that is not known.
    pub memory_bytes: u64,
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
        Machine { host_name: fit_for_name(&host_name), current_dir, data_dir, memory_bytes: memory_bytes() }
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
        let share = (self.memory_bytes / MEMORY_SHARE).clamp(CALL_MEMORY_BYTES_MIN, CALL_MEMORY_BYTES_MAX);
        file.limits.memory.get_or_insert(ByteSize::from_bytes(share >> 20 << 20));
        if file.listener.is_empty() {
            let allow = vec![Permission::Read, Permission::Write];
            file.listener.push(ListenerSection { allow, ..ListenerSection::default() });
        }
    }
}

/// What this machine has, or this container may have, whichever is less.
fn memory_bytes() -> u64 {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let machine = memory_total(&read("/proc/meminfo"));
    let own = read("/proc/self/cgroup");
    let groups = control_groups(&own);
    let bounds = groups.iter().map(|group| format!("/sys/fs/cgroup{group}/memory.max"));
    // The first version has it elsewhere.
    let bounds = bounds.chain(std::iter::once("/sys/fs/cgroup/memory/memory.limit_in_bytes".to_owned()));
    let bounds = bounds.filter_map(|path| read(&path).trim().parse::<u64>().ok());
    bounds.chain(machine).min().unwrap_or(0)
}

/// The control group of a process and those around it, from `0::/system.slice/casbah.service`.
fn control_groups(cgroup: &str) -> Vec<&str> {
    let path = cgroup.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default().trim_end_matches('/');
    let around = path.match_indices('/').map(|(end, _)| path.split_at(end).0);
    around.chain(std::iter::once(path)).collect()
}

/// `MemTotal:       24608148 kB`
fn memory_total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
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
        assert!(machine.memory_bytes > 0);
    }

    #[test]
    fn memory_is_read_as_linux_tells_it() {
        assert_eq!(memory_total("MemTotal:       24608148 kB\nMemFree: 1 kB\n"), Some(24_608_148 << 10));
        assert_eq!(memory_total("MemFree: 1 kB\n"), None);
        assert_eq!(memory_total("MemTotal: much\n"), None);
    }

    #[test]
    fn the_bounds_of_every_group_around_a_process_count() {
        assert_eq!(control_groups("0::/a/b\n"), ["", "/a", "/a/b"]);
        assert_eq!(control_groups("1:memory:/x\n0::/\n"), [""]);
        assert_eq!(control_groups(""), [""]);
    }

    #[test]
    fn calls_may_hold_a_part_of_the_memory() {
        let share = |memory_bytes| {
            let mut file = File::default();
            Machine { memory_bytes, ..Machine::default() }.complete(&mut file);
            file.limits.memory.unwrap().bytes()
        };
        assert_eq!([share(0), share(4 << 30), share(1 << 40)], [256 << 20, 1 << 30, 2 << 30]);
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
