//! Resource names that nobody has thought of: whatever they are, they are understood or refused, and what is understood
//! has one meaning.

use super::*;
use crate::serve::fuzzing;
use crate::store::testing::{random, seed};
use rand::rngs::SmallRng;
use rand::{RngExt as _, seq::IndexedRandom as _};

const MUTATIONS: usize = 40_000;

/// What is put where it does not belong.
const PIECES: &[&str] = &[
    "/",
    "//",
    "blobs",
    "/blobs/",
    "uploads",
    "/uploads/",
    "compressed-blobs",
    "identity",
    "zstd",
    "sha256",
    "sha1",
    "md5",
    "blake3",
    "murmur3",
    "unknown",
    "actions",
    "a",
    "A",
    "0",
    "-1",
    "+1",
    "00",
    " ",
    "\0",
    "\n",
    "%2F",
    "..",
    "é",
    "\u{202e}",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551616",
    "deadbeef",
];

fn originals() -> Vec<String> {
    let mut names = Vec::new();
    for &function in DigestFunction::ALL {
        let digest = Digest::of(function, b"some blob");
        let (hash, size) = (digest.hash_hex(), digest.size_bytes());
        for instance in ["", "main/", "team/a/"] {
            names.push(format!("{instance}blobs/{hash}/{size}"));
            names.push(format!("{instance}blobs/{}/{hash}/{size}", function.name()));
            names.push(format!("{instance}compressed-blobs/identity/{hash}/{size}"));
            names.push(format!("{instance}uploads/u-1/blobs/{hash}/{size}"));
            names.push(format!("{instance}uploads/u-1/blobs/{}/{hash}/{size}/out/main.o", function.name()));
            names.push(format!("{instance}uploads/u-1/compressed-blobs/zstd/{hash}/{size}"));
        }
    }
    names
}

/// A place between two characters.
fn place(rng: &mut SmallRng, name: &str) -> usize {
    let places: Vec<usize> = name.char_indices().map(|(at, _)| at).chain([name.len()]).collect();
    *places.choose(rng).unwrap()
}

fn mutate(rng: &mut SmallRng, name: &mut String, others: &[String]) {
    let (one, two) = (place(rng, name), place(rng, name));
    let (from, to) = (one.min(two), one.max(two));
    match rng.random_range(0..8) {
        0 => name.insert_str(from, PIECES.choose(rng).unwrap()),
        1 => drop(name.drain(from..to)),
        2 => name.truncate(from),
        3 => name.replace_range(from..to, PIECES.choose(rng).unwrap()),
        4 => {
            let piece = name[from..to].to_owned();
            name.insert_str(from, &piece);
        }
        5 => {
            let mut segments: Vec<&str> = name.split('/').collect();
            let (a, b) = (rng.random_range(0..segments.len()), rng.random_range(0..segments.len()));
            segments.swap(a, b);
            *name = segments.join("/");
        }
        6 => {
            let other = others.choose(rng).unwrap();
            *name = format!("{}{}", &name[..from], &other[place(rng, other)..]);
        }
        _ => *name = name.to_uppercase(),
    }
}

#[test]
fn names_of_any_kind_are_understood_or_refused_and_mean_the_same_when_written_again() {
    let mut rng = random(seed());
    let originals = originals();
    let mut understood = 0;
    for _ in 0..MUTATIONS {
        let mut name = originals.choose(&mut rng).unwrap().clone();
        for _ in 0..rng.random_range(0..4) {
            mutate(&mut rng, &mut name, &originals);
        }
        understood += fuzzing::resource_name(name.as_bytes());
    }
    // Neither all nor nothing: otherwise the test tests nothing.
    assert!((MUTATIONS / 10..MUTATIONS).contains(&understood), "{understood} of {MUTATIONS}");
}
