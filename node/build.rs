//! Puts the commit into the program, where there is one.
//!
//! Sources without git, and those inside another project's git, are built without. So are debug builds, unless the
//! variable is set: they would be built anew at every commit.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-env-changed=CASBAH_COMMIT");
    println!("cargo::rerun-if-changed=build.rs");
    let version = env!("CARGO_PKG_VERSION");
    match from_environment().or_else(from_git) {
        Some(commit) => {
            println!("cargo::rustc-env=CASBAH_COMMIT={commit}");
            println!("cargo::rustc-env=CASBAH_VERSION={version} ({commit})");
        }
        None => println!("cargo::rustc-env=CASBAH_VERSION={version}"),
    }
}

/// What a packager says.
fn from_environment() -> Option<String> {
    std::env::var("CASBAH_COMMIT").ok().filter(|commit| !commit.is_empty())
}

fn from_git() -> Option<String> {
    if std::env::var("PROFILE").is_ok_and(|profile| profile == "debug") {
        return None;
    }
    let top = git(&["rev-parse", "--show-toplevel"])?;
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent()?.canonicalize().ok()?;
    if Path::new(&top).canonicalize().ok()? != workspace {
        return None;
    }
    // Both change with every commit and every change of the branch.
    for file in ["HEAD", "logs/HEAD"] {
        let path = git(&["rev-parse", "--git-path", file])?;
        println!("cargo::rerun-if-changed={path}");
    }
    git(&["rev-parse", "--short=12", "HEAD"])
}

/// What git says in the folder of this crate; `None` when there is no git or it says nothing.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    (output.status.success() && !text.trim().is_empty()).then(|| text.trim().to_owned())
}
