//! Whose turn it is: bytes that calls may hold, shared among clients. A plain structure without clock or IO.
//!
//! A client gets more only as long as it has no more than what it leaves to others: alone it may have half of all, beside another
//! greedy one a third, and so on, so that there is always some for whoever comes next. Who waits, waits in the line of its own
//! client, and the clients take turns.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use casbah_cluster::membership::NodeId;

/// One client may hold one part in so many of what the others leave.
const SHARE: u64 = 2;

/// All copies that nodes make for their own sake may hold one part in so many, so that clients have the others.
const REPAIR_SHARE: u64 = 4;

/// No call is charged with more than one part in so many, so that each can be let in.
const CHARGE_SHARE: u64 = 4;

/// Who calls, as far as shares go.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Client {
    /// The holder of a certificate.
    Named(Arc<str>),
    /// Whoever is at this address.
    Address(IpAddr),
    /// Another node, for its clients.
    Node(NodeId),
    /// Other nodes, for copies that nobody waits for.
    Repair,
}

/// What a call costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cost {
    /// What it may hold, once it is let in.
    pub held_bytes: u64,
    /// What of it may have come already, and is held while it waits.
    pub sent_bytes: u64,
}

/// How long the line may become. One client may have half of what the others leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LineBounds {
    /// Calls that wait.
    pub calls: usize,
    /// What they have sent already, together.
    pub bytes: u64,
}

/// A call that waits.
pub type Ticket = u64;

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// It is let in.
    Now,
    /// It waits.
    Waits(Ticket),
    /// It is sent away: the line is too long.
    Never,
}

/// Bytes, who has them, and who waits for some.
#[derive(Debug)]
pub struct Turns {
    capacity_bytes: u64,
    line: LineBounds,
    held_bytes: u64,
    held_calls: usize,
    waiting_calls: usize,
    waiting_bytes: u64,
    clients: HashMap<Client, Account>,
    /// The clients for which calls wait, in the order of their turns.
    order: VecDeque<Client>,
    next: Ticket,
}

/// What a client has and wants.
#[derive(Debug, Default)]
struct Account {
    held_bytes: u64,
    waiting: VecDeque<(Ticket, Cost)>,
    waiting_bytes: u64,
}

// === impl Turns ===

impl Turns {
    /// All is free.
    pub fn new(capacity_bytes: u64, line: LineBounds) -> Turns {
        Turns {
            capacity_bytes,
            line,
            held_bytes: 0,
            held_calls: 0,
            waiting_calls: 0,
            waiting_bytes: 0,
            clients: HashMap::new(),
            order: VecDeque::new(),
            next: 0,
        }
    }

    /// What a call is charged with that may hold so much.
    pub fn charge_bytes(&self, bytes: u64) -> u64 {
        bytes.min(self.capacity_bytes / CHARGE_SHARE)
    }

    /// A call of this client. It holds no more than [`Turns::charge_bytes`] says.
    pub fn ask(&mut self, client: &Client, cost: Cost) -> Turn {
        // Nobody overtakes another call of the same client, or one for which there is not room enough yet.
        let is_first = self.clients.get(client).is_none_or(|account| account.waiting.is_empty());
        if is_first && !self.is_room_waited_for() && self.may_have(client, cost.held_bytes) {
            self.take(client, cost.held_bytes);
            return Turn::Now;
        }
        if !self.may_wait(client, cost.sent_bytes) {
            return Turn::Never;
        }
        let ticket = self.next;
        self.next += 1;
        let account = self.clients.entry(client.clone()).or_default();
        if account.waiting.is_empty() {
            self.order.push_back(client.clone());
        }
        account.waiting.push_back((ticket, cost));
        account.waiting_bytes += cost.sent_bytes;
        self.waiting_calls += 1;
        self.waiting_bytes += cost.sent_bytes;
        Turn::Waits(ticket)
    }

    /// More for a call that is in already; false if there is not as much. It does not wait: it holds what others wait for.
    pub fn grow(&mut self, client: &Client, bytes: u64) -> bool {
        if bytes > self.free_bytes() {
            return false;
        }
        self.held_bytes += bytes;
        self.clients.entry(client.clone()).or_default().held_bytes += bytes;
        true
    }

    /// A call has ended; the calls that are let in because of it.
    pub fn give_back(&mut self, client: &Client, bytes: u64) -> Vec<Ticket> {
        self.held_bytes = self.held_bytes.saturating_sub(bytes);
        self.held_calls = self.held_calls.saturating_sub(1);
        if let Some(account) = self.clients.get_mut(client) {
            account.held_bytes = account.held_bytes.saturating_sub(bytes);
        }
        self.forget_idle(client);
        self.let_in()
    }

    /// A call waits no longer; the calls that are let in because of it. `None` when it did not wait: it was let in.
    pub fn give_up(&mut self, client: &Client, ticket: Ticket) -> Option<Vec<Ticket>> {
        let account = self.clients.get_mut(client)?;
        let place = account.waiting.iter().position(|(other, _)| *other == ticket)?;
        let (_, cost) = account.waiting.remove(place)?;
        account.waiting_bytes -= cost.sent_bytes;
        self.waiting_calls -= 1;
        self.waiting_bytes -= cost.sent_bytes;
        if account.waiting.is_empty() {
            self.order.retain(|other| other != client);
        }
        self.forget_idle(client);
        // It may have been in the way of others.
        Some(self.let_in())
    }

    /// Bytes that calls hold.
    pub fn held_bytes(&self) -> u64 {
        self.held_bytes
    }

    /// Calls that hold some.
    pub fn held_calls(&self) -> usize {
        self.held_calls
    }

    /// Calls that wait.
    pub fn waiting_calls(&self) -> usize {
        self.waiting_calls
    }

    /// A client's first call that waits needs no more than room.
    fn may_wait(&self, client: &Client, bytes: u64) -> bool {
        let (calls, client_bytes) =
            self.clients.get(client).map_or((0, 0), |account| (account.waiting.len(), account.waiting_bytes));
        let free_calls = self.line.calls.saturating_sub(self.waiting_calls);
        let free_bytes = self.line.bytes.saturating_sub(self.waiting_bytes);
        // No more than it leaves to others, as with what it holds.
        let is_within_share = calls == 0 || (calls < free_calls && client_bytes + bytes <= free_bytes);
        free_calls > 0 && bytes <= free_bytes && is_within_share
    }

    fn free_bytes(&self) -> u64 {
        self.capacity_bytes.saturating_sub(self.held_bytes)
    }

    fn may_have(&self, client: &Client, bytes: u64) -> bool {
        bytes <= self.free_bytes() && self.is_within_share(client, bytes)
    }

    /// The first call of a client needs no more than room.
    fn is_within_share(&self, client: &Client, bytes: u64) -> bool {
        let held = self.clients.get(client).map_or(0, |account| account.held_bytes);
        held == 0 || held + bytes <= self.share_bytes(client, held)
    }

    /// Whether somebody whose turn it is waits for room alone.
    fn is_room_waited_for(&self) -> bool {
        let waits = |client: &Client| self.clients.get(client)?.waiting.front().copied();
        self.order.front().is_some_and(|client| {
            waits(client).is_some_and(|(_, cost)| {
                cost.held_bytes > self.free_bytes() && self.is_within_share(client, cost.held_bytes)
            })
        })
    }

    fn share_bytes(&self, client: &Client, held: u64) -> u64 {
        let others = self.held_bytes.saturating_sub(held);
        let share = self.capacity_bytes.saturating_sub(others) / SHARE;
        match client {
            Client::Repair => share.min(self.capacity_bytes / REPAIR_SHARE),
            _ => share,
        }
    }

    fn take(&mut self, client: &Client, bytes: u64) {
        self.held_bytes += bytes;
        self.held_calls += 1;
        match self.clients.get_mut(client) {
            Some(account) => account.held_bytes += bytes,
            None => drop(self.clients.insert(client.clone(), Account { held_bytes: bytes, ..Account::default() })),
        }
    }

    /// Goes round until nobody whose turn it is can be let in.
    fn let_in(&mut self) -> Vec<Ticket> {
        let mut tickets = Vec::new();
        let mut in_vain = 0;
        while in_vain < self.order.len() {
            let Some(client) = self.order.pop_front() else { break };
            let waits = self.clients.get(&client).and_then(|account| account.waiting.front().copied());
            let Some((ticket, cost)) = waits else { continue };
            if !self.may_have(&client, cost.held_bytes) {
                if self.is_within_share(&client, cost.held_bytes) {
                    // It keeps its turn, or many small calls would keep a large one waiting for ever.
                    self.order.push_front(client);
                    break;
                }
                self.order.push_back(client);
                in_vain += 1;
                continue;
            }
            self.take(&client, cost.held_bytes);
            self.waiting_calls -= 1;
            self.waiting_bytes -= cost.sent_bytes;
            tickets.push(ticket);
            in_vain = 0;
            if let Some(account) = self.clients.get_mut(&client) {
                account.waiting.pop_front();
                account.waiting_bytes -= cost.sent_bytes;
                if !account.waiting.is_empty() {
                    self.order.push_back(client);
                }
            }
        }
        tickets
    }

    /// What is known of clients is bounded by what is under way.
    fn forget_idle(&mut self, client: &Client) {
        let is_idle = |account: &Account| account.held_bytes == 0 && account.waiting.is_empty();
        if self.clients.get(client).is_some_and(is_idle) {
            self.clients.remove(client);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: LineBounds = LineBounds { calls: 100, bytes: 1000 };

    fn client(name: &str) -> Client {
        Client::Named(name.into())
    }

    fn turns() -> Turns {
        Turns::new(120, LINE)
    }

    fn cost(bytes: u64) -> Cost {
        Cost { held_bytes: bytes, sent_bytes: bytes }
    }

    /// How many calls of this size the client gets before one waits.
    fn takes(turns: &mut Turns, client: &Client, bytes: u64) -> usize {
        (0..).take_while(|_| turns.ask(client, cost(bytes)) == Turn::Now).count()
    }

    fn waits(turn: Turn) -> Ticket {
        match turn {
            Turn::Waits(ticket) => ticket,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn one_client_alone_has_half_and_each_further_one_half_of_what_is_left() {
        let mut turns = turns();
        assert_eq!(takes(&mut turns, &client("a"), 10), 6);
        assert_eq!(takes(&mut turns, &client("b"), 10), 3);
        assert_eq!(takes(&mut turns, &client("c"), 10), 1);
        assert_eq!(turns.held_bytes(), 100);
    }

    #[test]
    fn the_first_call_of_a_client_needs_no_more_than_room() {
        let mut turns = turns();
        takes(&mut turns, &client("a"), 10);
        assert_eq!(turns.ask(&client("b"), cost(55)), Turn::Now);
        assert_eq!(turns.ask(&client("c"), cost(10)), Turn::Waits(1), "there are 5 left");
    }

    #[test]
    fn nobody_overtakes_within_a_client() {
        let mut turns = turns();
        let a = client("a");
        takes(&mut turns, &a, 10);
        assert!(matches!(turns.ask(&a, cost(1)), Turn::Waits(_)));
        assert!(matches!(turns.give_back(&a, 10).as_slice(), [first, ..] if *first == 0));
    }

    #[test]
    fn clients_that_wait_take_turns() {
        let mut turns = turns();
        let (greedy, polite) = (client("greedy"), client("polite"));
        let all = client("all");
        turns.grow(&all, 120);
        let many: Vec<Ticket> = (0..10).map(|_| waits(turns.ask(&greedy, cost(10)))).collect();
        let one = waits(turns.ask(&polite, cost(10)));
        assert_eq!(turns.give_back(&all, 10), many[..1]);
        assert_eq!(turns.give_back(&all, 10), [one]);
    }

    #[test]
    fn a_large_call_is_not_kept_waiting_by_small_ones() {
        let mut turns = turns();
        let (all, large, small) = (client("all"), client("large"), client("small"));
        turns.grow(&all, 120);
        let large_one = waits(turns.ask(&large, cost(30)));
        let small_one = waits(turns.ask(&small, cost(10)));
        assert!(turns.give_back(&all, 10).is_empty());
        assert!(turns.give_back(&all, 10).is_empty());
        assert_eq!(turns.give_back(&all, 10), [large_one]);
        assert_eq!(turns.give_back(&all, 10), [small_one]);
    }

    #[test]
    fn whoever_has_its_share_keeps_nobody_else_waiting() {
        let mut turns = turns();
        let (greedy, polite) = (client("greedy"), client("polite"));
        takes(&mut turns, &greedy, 10);
        assert_eq!(turns.ask(&polite, cost(10)), Turn::Now, "the greedy one waits for its own");
    }

    #[test]
    fn nobody_overtakes_whoever_waits_for_room() {
        let mut turns = turns();
        turns.grow(&client("all"), 100);
        waits(turns.ask(&client("large"), cost(30)));
        waits(turns.ask(&client("small"), cost(10)));
    }

    #[test]
    fn the_line_is_bounded_by_calls_and_by_bytes() {
        let mut turns = Turns::new(120, LineBounds { calls: 3, bytes: 100 });
        turns.grow(&client("all"), 120);
        waits(turns.ask(&client("a"), cost(90)));
        assert_eq!(turns.ask(&client("b"), cost(11)), Turn::Never);
        waits(turns.ask(&client("b"), cost(5)));
        waits(turns.ask(&client("c"), cost(5)));
        assert_eq!(turns.ask(&client("d"), cost(1)), Turn::Never);
    }

    #[test]
    fn one_client_has_half_of_the_line_and_leaves_the_rest_to_others() {
        let mut turns = Turns::new(120, LineBounds { calls: 12, bytes: 1000 });
        turns.grow(&client("all"), 120);
        let line = |turns: &mut Turns, name: &str| {
            (0..).take_while(|_| matches!(turns.ask(&client(name), cost(10)), Turn::Waits(_))).count()
        };
        assert_eq!((line(&mut turns, "a"), line(&mut turns, "b"), line(&mut turns, "c")), (6, 3, 2));
    }

    #[test]
    fn whoever_gives_up_is_out_of_the_way() {
        let mut turns = turns();
        let (all, large, small) = (client("all"), client("large"), client("small"));
        turns.grow(&all, 110);
        let large_one = waits(turns.ask(&large, cost(30)));
        let small_one = waits(turns.ask(&small, cost(11)));
        assert!(turns.give_back(&all, 5).is_empty());
        assert_eq!(turns.give_up(&large, large_one), Some(vec![small_one]));
        assert_eq!(turns.give_up(&large, large_one), None);
        assert_eq!(turns.give_up(&small, small_one), None, "it is in");
    }

    #[test]
    fn nothing_is_known_of_clients_that_have_gone() {
        let mut turns = turns();
        for number in 0..100 {
            let one = client(&number.to_string());
            assert_eq!(turns.ask(&one, cost(10)), Turn::Now);
            turns.give_back(&one, 10);
        }
        assert_eq!((turns.clients.len(), turns.held_bytes(), turns.held_calls()), (0, 0, 0));
    }

    #[test]
    fn copies_for_repair_leave_room() {
        let mut turns = turns();
        assert_eq!(takes(&mut turns, &Client::Repair, 10), 3);
        assert_eq!(takes(&mut turns, &Client::Node(NodeId(1)), 10), 4);
    }

    #[test]
    fn whatever_comes_in_whatever_order_everybody_is_let_in_in_the_end() {
        use rand::{RngExt as _, SeedableRng as _};
        let seed: u64 = rand::rng().random();
        println!("seed {seed}");
        let mut random = rand::rngs::SmallRng::seed_from_u64(seed);
        for _ in 0..200 {
            let mut turns = turns();
            let mut held: Vec<(Client, u64)> = Vec::new();
            let mut waiting: HashMap<Ticket, (Client, u64)> = HashMap::new();
            for _ in 0..100 {
                let one = client(&random.random_range(0..5).to_string());
                let bytes = turns.charge_bytes(random.random_range(0..60));
                match turns.ask(&one, cost(bytes)) {
                    Turn::Now => held.push((one, bytes)),
                    Turn::Waits(ticket) => drop(waiting.insert(ticket, (one, bytes))),
                    Turn::Never => {}
                }
                if random.random_bool(0.3) && !held.is_empty() {
                    let (one, bytes) = held.swap_remove(random.random_range(0..held.len()));
                    held.extend(turns.give_back(&one, bytes).iter().map(|ticket| waiting.remove(ticket).unwrap()));
                }
                assert!(turns.held_bytes() <= 120);
                assert_eq!(turns.held_bytes(), held.iter().map(|(_, bytes)| bytes).sum::<u64>());
            }
            while let Some((one, bytes)) = held.pop() {
                held.extend(turns.give_back(&one, bytes).iter().map(|ticket| waiting.remove(ticket).unwrap()));
            }
            assert!(waiting.is_empty(), "{waiting:?}");
        }
    }
}
