use rand::RngExt as _;

use super::index::{Index, Mark};
use super::key::{Form, Key, Place, Stored};
use super::testing::{random, seed};

fn stored(name: u32) -> Stored {
    // Few partitions and equal prefixes, so that tables and chains are exercised.
    let mut hash = [0; 32];
    hash[0] = name as u8 % 4;
    hash[20..24].copy_from_slice(&name.to_le_bytes());
    let place = Place::File { serial: 0 };
    Stored { key: Key { function: 1, hash }, size_bytes: u64::from(name) + 1, place, form: Form::Plain }
}

/// The blobs in the order of their use, as a walk sees them.
fn order(index: &mut Index) -> Vec<u32> {
    let mark = index.mark_oldest();
    let walk = std::iter::from_fn(|| index.advance(&mark, None)).collect::<Vec<_>>();
    index.remove_mark(mark);
    walk.into_iter().map(|slot| index.get(slot).unwrap().stored.size_bytes as u32 - 1).collect()
}

#[test]
fn the_index_is_a_list_in_the_order_of_use_whatever_walks_it() {
    let mut random = random(seed());
    let (mut index, mut model) = (Index::new(), Vec::<u32>::new());
    let mut marks: Vec<Mark> = Vec::new();
    for now in 0..20_000 {
        let name = random.random_range(0..300);
        let slot = index.find(&stored(name).key);
        assert_eq!(slot.is_some(), model.contains(&name));
        match (random.random_range(0..10), slot) {
            (0..4, None) => {
                index.insert(&stored(name), now, false).unwrap();
                model.push(name);
            }
            (0..4, Some(_)) => assert_eq!(index.insert(&stored(name), now, false), None),
            (4..6, Some(slot)) => {
                index.touch(slot, now);
                model.retain(|other| *other != name);
                model.push(name);
            }
            (6..8, Some(slot)) => {
                assert_eq!(index.remove(slot).unwrap().stored, stored(name));
                model.retain(|other| *other != name);
            }
            (8, _) if marks.len() < 5 => {
                marks.push(if random.random() { index.mark_oldest() } else { index.mark_newest() })
            }
            (8, _) => index.remove_mark(marks.swap_remove(0)),
            _ => {
                for mark in &marks {
                    index.advance(mark, None);
                }
            }
        }
        if now % 50 == 0 {
            assert_eq!(order(&mut index), model);
            assert_eq!(
                index.oldest().map(|slot| index.get(slot).unwrap().stored.size_bytes as u32 - 1),
                model.first().copied()
            );
            assert_eq!(index.blobs(), model.len() as u64);
            assert_eq!(index.charged_bytes(), 4096 * model.len() as u64);
        }
    }
}

#[test]
fn a_mark_sees_each_blob_used_after_it_once() {
    let mut index = Index::new();
    let slots: Vec<u32> = (0..5).map(|name| index.insert(&stored(name), 1, false).unwrap()).collect();
    let mark = index.mark_newest();
    assert_eq!(index.advance(&mark, None), None);
    index.touch(slots[3], 2);
    index.touch(slots[1], 2);
    index.touch(slots[3], 2);
    let seen: Vec<u32> = std::iter::from_fn(|| index.advance(&mark, None)).collect();
    assert_eq!(seen, [slots[1], slots[3]]);
    index.touch(slots[0], 3);
    assert_eq!(index.advance(&mark, None), Some(slots[0]));
    index.remove_mark(mark);
}

#[test]
fn a_walk_to_a_mark_ends_there() {
    let mut index = Index::new();
    let slots: Vec<u32> = (0..3).map(|name| index.insert(&stored(name), 1, false).unwrap()).collect();
    let (walk, end) = (index.mark_oldest(), index.mark_newest());
    index.touch(slots[0], 2);
    assert_eq!(index.advance(&walk, Some(&end)), Some(slots[1]));
    assert_eq!(index.advance(&walk, Some(&end)), Some(slots[2]));
    assert_eq!(index.advance(&walk, Some(&end)), None);
}

#[test]
fn an_entry_takes_less_than_64_bytes_all_told() {
    let mut index = Index::new();
    for name in 0..1_000_000_u64 {
        let hash =
            casbah_cluster::digest::Digest::of(casbah_cluster::digest::DigestFunction::Sha256, &name.to_le_bytes());
        let place = Place::Segment { slot: 0, offset_bytes: 0 };
        index.insert(&Stored { key: Key::of(&hash), size_bytes: 8, place, form: Form::Plain }, 0, false).unwrap();
    }
    let each = index.memory_bytes() as f64 / 1e6;
    assert!(each < 64.0, "{each}");
}
