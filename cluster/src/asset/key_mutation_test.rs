//! Keys of assets that nobody has thought of: what is the same has one key, and what is not has two.

use super::*;
use rand::rngs::SmallRng;
use rand::seq::{IndexedRandom as _, SliceRandom as _};
use rand::{RngExt as _, SeedableRng as _};

const MUTATIONS: usize = 20_000;

/// Texts that run into each other where parts are not told apart: lengths, separators and beginnings of others.
const TEXTS: &[&str] = &[
    "",
    "a",
    "aa",
    "ab",
    "b",
    "\0",
    "\0\0\0\0\0\0\0\u{1}a",
    "=",
    "&",
    ",",
    "a=b",
    "/",
    "team/a",
    "urn:x",
    "é",
    "e\u{301}",
    "checksum.sri",
    "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=",
    " ",
    "A",
];

/// All that an asset is named by.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Name {
    instance: String,
    kind: AssetKind,
    uri: String,
    qualifiers: Vec<Qualifier>,
}

impl Name {
    fn any(rng: &mut SmallRng) -> Name {
        let count = rng.random_range(0..5);
        Name {
            instance: text(rng),
            kind: if rng.random() { AssetKind::Blob } else { AssetKind::Directory },
            uri: format!("urn:{}", text(rng)),
            qualifiers: (0..count).map(|_| Qualifier { name: text(rng), value: text(rng) }).collect(),
        }
    }

    fn key(&self) -> AssetKey {
        AssetKey::new(&self.instance, self.kind, &self.uri, self.qualifiers.clone()).unwrap()
    }

    /// The same asset in one form: what two names have in common exactly when they mean the same.
    fn canonical(mut self) -> Name {
        self.qualifiers.sort();
        self.qualifiers.dedup();
        self
    }

    fn mutate(&mut self, rng: &mut SmallRng) {
        let place = rng.random_range(0..=self.qualifiers.len());
        match (rng.random_range(0..8), self.qualifiers.get_mut(place)) {
            (0, _) => self.instance = text(rng),
            (1, _) => self.kind = if self.kind == AssetKind::Blob { AssetKind::Directory } else { AssetKind::Blob },
            (2, _) => self.uri = format!("urn:{}", text(rng)),
            (3, Some(qualifier)) => qualifier.name = text(rng),
            (4, Some(qualifier)) => qualifier.value = text(rng),
            (5, Some(qualifier)) => std::mem::swap(&mut qualifier.name, &mut qualifier.value),
            (6, Some(_)) => drop(self.qualifiers.remove(place)),
            _ => self.qualifiers.push(Qualifier { name: text(rng), value: text(rng) }),
        }
    }
}

fn text(rng: &mut SmallRng) -> String {
    let count = rng.random_range(1..3);
    (0..count).map(|_| *TEXTS.choose(rng).unwrap()).collect()
}

/// The seed of a random test: from `CASBAH_TEST_SEED`, or a new one. Printed, and so shown when the test fails.
fn seed() -> u64 {
    let given = std::env::var("CASBAH_TEST_SEED").ok().and_then(|text| text.parse().ok());
    let seed = given.unwrap_or_else(|| rand::rng().random());
    println!("CASBAH_TEST_SEED={seed}");
    seed
}

/// What a key says, read part by part.
fn read(key: &AssetKey) -> Name {
    let (head, mut rest) = key.as_bytes().split_at(2);
    let mut parts = Vec::new();
    while !rest.is_empty() {
        let (length, after) = rest.split_at(8);
        let length = u64::from_be_bytes(length.try_into().unwrap());
        let (part, after) = after.split_at(usize::try_from(length).unwrap());
        parts.push(String::from_utf8(part.to_vec()).unwrap());
        rest = after;
    }
    let mut parts = parts.into_iter();
    let (instance, uri) = (parts.next().unwrap(), parts.next().unwrap());
    let mut qualifiers = Vec::new();
    while let Some(name) = parts.next() {
        qualifiers.push(Qualifier { name, value: parts.next().unwrap() });
    }
    let kind = if head.ends_with(&[1]) { AssetKind::Directory } else { AssetKind::Blob };
    Name { instance, kind, uri, qualifiers }
}

#[test]
fn a_key_says_what_it_was_made_of_and_equals_no_other() {
    let mut rng = SmallRng::seed_from_u64(seed());
    for round in 0..MUTATIONS {
        let name = Name::any(&mut rng);
        let key = name.key();
        assert_eq!(read(&key), name.clone().canonical(), "{round}");

        let mut shuffled = name.clone();
        shuffled.qualifiers.extend(name.qualifiers.choose(&mut rng).cloned());
        shuffled.qualifiers.shuffle(&mut rng);
        assert_eq!(shuffled.key(), key, "{round}: {shuffled:?}");

        let mut other = name.clone();
        other.mutate(&mut rng);
        let is_same = other.clone().canonical() == name.clone().canonical();
        assert_eq!(other.key() == key, is_same, "{round}: {name:?} and {other:?}");
    }
}
