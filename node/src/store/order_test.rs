//! Copies take their places in the order of use.

use rand::RngExt as _;

use super::index::Index;
use super::key::{Form, Key, Place, Stored};
use super::limits::{MILESTONES, SEARCH_STEPS};
use super::testing::{random, seed};

fn stored(name: u64) -> Stored {
    let mut hash = [0; 32];
    hash[..8].copy_from_slice(&name.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    let place = Place::Segment { slot: 0, offset_bytes: 64 };
    Stored { key: Key { function: 1, hash }, size_bytes: 10, place, form: Form::Plain }
}

/// Inserts a copy; how often the lock would have been taken.
fn insert(index: &mut Index, name: u64, used: u32) -> usize {
    let mut search = index.begin_search(used);
    let mut holds = 1;
    while !index.search(&mut search) {
        holds += 1;
    }
    index.insert_at(&stored(name), search, false).unwrap();
    holds
}

fn uses(index: &mut Index) -> Vec<u32> {
    let mark = index.mark_oldest();
    let mut uses = Vec::new();
    while let Some(slot) = index.advance(&mark, None) {
        uses.push(index.get(slot).unwrap().used);
    }
    index.remove_mark(mark);
    uses
}

#[test]
fn copies_of_any_age_come_to_lie_in_order() {
    let mut random = random(seed());
    let mut index = Index::new();
    for name in 0..100 {
        index.insert(&stored(name), 1000 + name as u32, false).unwrap();
    }
    for name in 100..1000 {
        insert(&mut index, name, random.random_range(900..1200));
        if name % 7 == 0 {
            // Some have gone.
            let slot = index.find(&stored(random.random_range(0..name)).key);
            slot.into_iter().for_each(|slot| index.touch(slot, 1200));
        }
        if name % 11 == 0 {
            let slot = index.oldest().unwrap();
            index.remove(slot);
        }
    }
    let uses = uses(&mut index);
    assert!(uses.is_sorted());
    assert_eq!(uses.len() as u64, index.blobs());
}

#[test]
fn among_those_of_the_same_second_a_copy_is_the_last_used() {
    let mut index = Index::new();
    for name in 0..4 {
        index.insert(&stored(name), 10 + name as u32 / 2, false).unwrap();
    }
    insert(&mut index, 9, 10);
    let mark = index.mark_oldest();
    let order: Vec<_> = std::iter::from_fn(|| index.advance(&mark, None)).collect();
    let place = order.iter().position(|slot| index.get(*slot).unwrap().stored == stored(9));
    assert_eq!(place, Some(2));
}

#[test]
fn searches_leave_milestones_so_that_the_next_ones_are_short() {
    let mut index = Index::new();
    let blobs = 20 * SEARCH_STEPS as u64;
    for name in 0..blobs {
        index.insert(&stored(name), name as u32 + 1, false).unwrap();
    }
    let middle = blobs as u32 / 2;
    assert!(insert(&mut index, blobs, middle) >= 10);
    for copy in 1..50 {
        assert!(insert(&mut index, blobs + copy, middle - copy as u32) <= 2);
    }
    assert!(uses(&mut index).is_sorted());
}

#[test]
fn milestones_are_bounded_and_order_is_kept_when_all_are_given_up() {
    let mut random = random(seed());
    let mut index = Index::new();
    let blobs = 8 * SEARCH_STEPS as u64;
    for name in 0..blobs {
        index.insert(&stored(name), name as u32 + 1, false).unwrap();
    }
    let mut next = blobs;
    for _ in 0..200 {
        insert(&mut index, next, random.random_range(0..next as u32));
        next += 1;
        // Everything else is used, so that milestones come together at the old end.
        for _ in 0..200 {
            let slot = index.oldest().unwrap();
            index.touch(slot, next as u32);
        }
    }
    assert!(uses(&mut index).is_sorted());
    assert!(u64::from(index.slots()) <= next + MILESTONES as u64 + 2);
}

#[test]
fn sorting_brings_copies_to_their_places_and_leaves_the_others_in_order() {
    let mut index = Index::new();
    for (name, used) in [(1, 10), (2, 20), (3, 5), (4, 20), (5, 15), (6, 20)] {
        index.insert(&stored(name), used, false).unwrap();
    }
    index.sort_by_use();
    let mark = index.mark_oldest();
    let order: Vec<_> = std::iter::from_fn(|| index.advance(&mark, None)).collect();
    let expected: Vec<_> = [3, 1, 5, 2, 4, 6].map(|name| index.find(&stored(name).key).unwrap()).into();
    assert_eq!(order, expected);
    index.remove_mark(mark);
    assert_eq!(index.oldest(), Some(expected[0]));
    let newest = index.find(&stored(1).key).unwrap();
    index.touch(newest, 30);
    assert_eq!(uses(&mut index), [5, 15, 20, 20, 20, 30]);
}
