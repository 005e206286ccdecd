//! What a node does with what it holds and does not own.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{DROP_AFTER_MS, HandOvers, Said, Summary, Surplus};
use crate::membership::{Epoch, Layout, NodeId};
use crate::ring::PARTITIONS;
use crate::testing::{plain_layout, state};
use crate::view::View;

const INTERVAL_MS: u64 = 60_000;

fn view(layouts: Vec<Layout>) -> Arc<View> {
    Arc::new(View::new(NodeId(1), state(2, 2, layouts)))
}

fn foreign(view: &View) -> u16 {
    (0..PARTITIONS).find(|partition| !view.owns(NodeId(1), *partition)).unwrap() as u16
}

fn own(view: &View) -> u16 {
    (0..PARTITIONS).find(|partition| view.owns(NodeId(1), *partition)).unwrap() as u16
}

fn holding(blobs: &[(u16, u128)]) -> impl Fn(u16) -> Summary + use<> {
    let blobs: BTreeMap<u16, u128> = blobs.iter().copied().collect();
    move |partition| {
        let mark = blobs.get(&partition).copied().unwrap_or(0);
        Summary { count: mark.count_ones().into(), mark }
    }
}

#[test]
fn only_what_others_own_is_handed_over() {
    let view = view(vec![plain_layout(1, 1..=4)]);
    let (foreign, own) = (foreign(&view), own(&view));
    let mut hand_overs = HandOvers::new(INTERVAL_MS);
    hand_overs.look(&view, |_| true, holding(&[(own, 0b1), (foreign, 0b111)]), 1000);
    assert_eq!(hand_overs.held(), 3);
    assert_eq!((hand_overs.next(1999), hand_overs.wake_ms()), (None, Some(2000)));
    assert_eq!((hand_overs.next(2000), hand_overs.next(2000)), (Some(foreign), None));
    hand_overs.done(foreign, false, 2000);
    hand_overs.look(&view, |_| true, holding(&[(own, 0b1)]), 2500);
    assert_eq!((hand_overs.held(), hand_overs.next(90_000)), (0, None));
}

#[test]
fn what_remains_is_looked_after_again_in_the_interval_and_what_failed_sooner() {
    let view = view(vec![plain_layout(1, 1..=4)]);
    let foreign = foreign(&view);
    let mut hand_overs = HandOvers::new(INTERVAL_MS);
    let look = |hand_overs: &mut HandOvers, now_ms| hand_overs.look(&view, |_| true, holding(&[(foreign, 1)]), now_ms);
    look(&mut hand_overs, 0);
    assert_eq!(hand_overs.next(1000), Some(foreign));
    hand_overs.done(foreign, false, 1100);
    look(&mut hand_overs, 1200);
    assert_eq!(hand_overs.wake_ms(), Some(1000 + INTERVAL_MS));
    assert_eq!(hand_overs.next(61_000), Some(foreign));
    hand_overs.done(foreign, true, 61_000);
    assert_eq!((hand_overs.next(61_499), hand_overs.next(61_500)), (None, Some(foreign)));
    hand_overs.done(foreign, true, 61_500);
    assert_eq!((hand_overs.next(62_499), hand_overs.next(62_500)), (None, Some(foreign)));
}

#[test]
fn an_owner_that_comes_back_is_asked_soon_however_often_it_failed() {
    let view = view(vec![plain_layout(1, 1..=4)]);
    let foreign = foreign(&view);
    let owner = view.owners(usize::from(foreign))[0];
    let stranger = (2..).map(NodeId).find(|node| !view.owns(*node, usize::from(foreign))).unwrap();
    let mut hand_overs = HandOvers::new(INTERVAL_MS);
    let mut now_ms = 0;
    let mine = || holding(&[(foreign, 1)]);
    hand_overs.look(&view, |node| node != owner, mine(), now_ms);
    for _ in 0..10 {
        now_ms = hand_overs.wake_ms().unwrap();
        assert_eq!(hand_overs.next(now_ms), Some(foreign));
        hand_overs.done(foreign, true, now_ms);
    }
    assert!(hand_overs.wake_ms() > Some(now_ms + 30_000));
    hand_overs.look(&view, |node| node != owner && node != stranger, mine(), now_ms);
    hand_overs.look(&view, |node| node != owner, mine(), now_ms);
    assert!(hand_overs.wake_ms() > Some(now_ms + 30_000), "another node is back");
    hand_overs.look(&view, |_| true, mine(), now_ms);
    assert_eq!(hand_overs.wake_ms(), Some(now_ms + 1000));
}

#[test]
fn another_copy_or_another_layout_has_it_looked_after_soon_and_one_copy_less_does_not() {
    let view = view(vec![plain_layout(1, 1..=4)]);
    let foreign = foreign(&view);
    let mut hand_overs = HandOvers::new(INTERVAL_MS);
    hand_overs.look(&view, |_| true, holding(&[(foreign, 0b11)]), 0);
    assert_eq!(hand_overs.next(1000), Some(foreign));
    hand_overs.done(foreign, false, 1000);
    hand_overs.look(&view, |_| true, holding(&[(foreign, 0b1)]), 2000);
    assert_eq!(hand_overs.wake_ms(), Some(61_000));
    hand_overs.look(&view, |_| true, holding(&[(foreign, 0b101)]), 2000);
    assert_eq!(hand_overs.wake_ms(), Some(3000));
    assert_eq!(hand_overs.next(3000), Some(foreign));
    hand_overs.done(foreign, false, 3000);
    let later = Arc::new(view.next(state(2, 2, vec![plain_layout(1, 1..=4), plain_layout(2, 1..=4)])));
    hand_overs.look(&later, |_| true, holding(&[(foreign, 0b101)]), 4000);
    assert_eq!(hand_overs.wake_ms(), Some(5000));
}

#[test]
fn what_comes_while_it_is_looked_after_is_looked_after_next() {
    let view = view(vec![plain_layout(1, 1..=4)]);
    let foreign = foreign(&view);
    let mut hand_overs = HandOvers::new(INTERVAL_MS);
    hand_overs.look(&view, |_| true, holding(&[(foreign, 0b1)]), 0);
    assert_eq!(hand_overs.next(1000), Some(foreign));
    hand_overs.look(&view, |_| true, holding(&[(foreign, 0b11)]), 1500);
    assert_eq!((hand_overs.next(9000), hand_overs.wake_ms()), (None, None));
    hand_overs.done(foreign, false, 2000);
    assert_eq!(hand_overs.wake_ms(), Some(2500));
}

#[test]
fn without_a_layout_nothing_is_anybodys() {
    let mut hand_overs = HandOvers::new(INTERVAL_MS);
    hand_overs.look(&view(vec![]), |_| true, holding(&[(7, 1)]), 0);
    assert_eq!((hand_overs.held(), hand_overs.next(90_000)), (0, None));
}

#[test]
fn a_copy_is_dropped_when_every_owner_has_one() {
    let view = view(vec![plain_layout(3, 1..=4)]);
    let foreign = foreign(&view);
    let [one, two] = view.owners(usize::from(foreign)) else { unreachable!() };
    let mut surplus = Surplus::new(&view, foreign);
    assert!(!surplus.may_drop());
    surplus.heard(*one, Epoch(3), Said::Has);
    assert!(!surplus.may_drop());
    surplus.heard(*two, Epoch(3), Said::Lacks);
    assert_eq!((surplus.may_drop(), surplus.lacking().collect::<Vec<_>>()), (false, vec![*two]));
    surplus.heard(*two, Epoch(3), Said::Has);
    assert_eq!((surplus.may_drop(), surplus.lacking().count()), (true, 0));
    surplus.heard(*one, Epoch(3), Said::Nothing);
    assert!(!surplus.may_drop());
}

#[test]
fn the_word_of_an_owner_that_decides_by_an_older_layout_is_not_enough() {
    let view = view(vec![plain_layout(3, 1..=4)]);
    let foreign = foreign(&view);
    let [one, two] = view.owners(usize::from(foreign)) else { unreachable!() };
    let mut surplus = Surplus::new(&view, foreign);
    surplus.heard(*one, Epoch(2), Said::Has);
    surplus.heard(*two, Epoch(3), Said::Has);
    assert!(!surplus.may_drop());
    surplus.heard(*one, Epoch(2), Said::Lacks);
    assert_eq!(surplus.lacking().collect::<Vec<_>>(), [*one], "it may be given it all the same");
}

#[test]
fn nothing_is_dropped_when_somebody_knows_of_a_newer_layout() {
    let view = view(vec![plain_layout(3, 1..=4)]);
    let foreign = foreign(&view);
    let [one, two] = view.owners(usize::from(foreign)) else { unreachable!() };
    let mut surplus = Surplus::new(&view, foreign);
    surplus.heard(*one, Epoch(4), Said::Has);
    surplus.heard(*two, Epoch(3), Said::Has);
    assert!(!surplus.may_drop());
}

#[test]
fn owners_by_older_layouts_that_are_in_force_have_to_have_it_too() {
    let layouts = vec![plain_layout(1, 2..=4), plain_layout(2, 2..=6)];
    let view = view(layouts);
    let moved = |partition: &usize| view.owners(*partition).len() > 2;
    let partition = (0..PARTITIONS).find(moved).unwrap();
    let mut surplus = Surplus::new(&view, partition as u16);
    let owners = view.owners(partition);
    for (at, owner) in owners.iter().enumerate() {
        surplus.heard(*owner, Epoch(2), Said::Has);
        assert_eq!(surplus.may_drop(), at + 1 == owners.len());
    }
}

#[test]
fn what_an_owner_would_evict_need_not_be_kept_for_it() {
    let view = view(vec![plain_layout(3, 1..=4)]);
    let foreign = foreign(&view);
    let [one, two] = view.owners(usize::from(foreign)) else { unreachable!() };
    let mut surplus = Surplus::new(&view, foreign);
    surplus.heard(*one, Epoch(3), Said::WouldEvict);
    surplus.heard(*two, Epoch(3), Said::Has);
    assert!(surplus.may_drop());
    assert_eq!(surplus.lacking().count(), 0);
}

#[test]
fn a_partition_without_owners_keeps_what_there_is() {
    let mut surplus = Surplus::new(&view(vec![]), 5);
    surplus.heard(NodeId(2), Epoch(0), Said::Has);
    assert!(!surplus.may_drop());
}

#[test]
fn what_all_owners_have_is_dropped_when_they_have_had_it_for_a_while() {
    let view = view(vec![plain_layout(1, 1..=4)]);
    let foreign = foreign(&view);
    let mut hand_overs = HandOvers::new(INTERVAL_MS * 10);
    let look = |now_ms, blobs, hand_overs: &mut HandOvers| {
        hand_overs.look(&view, |_| true, holding(&[(foreign, blobs)]), now_ms);
        hand_overs.next(now_ms)
    };
    assert_eq!(look(0, 0b11, &mut hand_overs), None);
    assert_eq!(look(1000, 0b11, &mut hand_overs), Some(foreign));
    assert!(!hand_overs.may_drop(foreign, 1000), "a read under way may have asked the owners before");
    hand_overs.done(foreign, false, 2000);
    assert_eq!(hand_overs.wake_ms(), Some(2000 + DROP_AFTER_MS));
    assert_eq!(look(1999 + DROP_AFTER_MS, 0b11, &mut hand_overs), None);
    assert_eq!(look(2000 + DROP_AFTER_MS, 0b11, &mut hand_overs), Some(foreign));
    assert!(hand_overs.may_drop(foreign, 2000 + DROP_AFTER_MS));
}

#[test]
fn what_has_come_or_failed_meanwhile_waits_for_as_long_again() {
    let view = view(vec![plain_layout(1, 1..=4)]);
    let foreign = foreign(&view);
    let mut hand_overs = HandOvers::new(INTERVAL_MS * 10);
    let look = |now_ms, blobs, hand_overs: &mut HandOvers| {
        hand_overs.look(&view, |_| true, holding(&[(foreign, blobs)]), now_ms);
        hand_overs.next(now_ms)
    };
    let mut now_ms = 1000;
    look(0, 0b1, &mut hand_overs);
    assert_eq!(look(now_ms, 0b1, &mut hand_overs), Some(foreign));
    // It comes while others are looked after.
    look(now_ms, 0b11, &mut hand_overs);
    hand_overs.done(foreign, false, now_ms);
    now_ms += DROP_AFTER_MS;
    assert_eq!(look(now_ms, 0b11, &mut hand_overs), Some(foreign));
    assert!(!hand_overs.may_drop(foreign, now_ms));
    hand_overs.done(foreign, true, now_ms);
    now_ms += DROP_AFTER_MS;
    assert_eq!(look(now_ms, 0b11, &mut hand_overs), Some(foreign));
    assert!(!hand_overs.may_drop(foreign, now_ms), "an owner did not take it");
    hand_overs.done(foreign, false, now_ms);
    now_ms += DROP_AFTER_MS;
    assert_eq!(look(now_ms, 0b11, &mut hand_overs), Some(foreign));
    assert!(hand_overs.may_drop(foreign, now_ms));
}
