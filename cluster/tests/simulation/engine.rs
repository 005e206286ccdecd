//! The scheduler: events in the order of a clock that nobody waits for, and tasks that go on when an event says so.
//!
//! One thread, one source of randomness: a seed says everything that happens.

use std::cell::{Cell, RefCell, RefMut};
use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use casbah_cluster::membership::{Epoch, NodeId};

use crate::calls::Answer;
use crate::world::World;

/// A task's number.
pub type TaskId = u64;

type Event = Box<dyn FnOnce(&Sim)>;
type Task = Pin<Box<dyn Future<Output = ()>>>;

/// A run of the simulation. Cheap to clone.
#[derive(Clone)]
pub struct Sim(Rc<Inner>);

struct Inner {
    now_ms: Cell<u64>,
    next: Cell<u64>,
    /// By when they happen, and then by when they were made.
    events: RefCell<BTreeMap<(u64, u64), Event>>,
    tasks: RefCell<BTreeMap<TaskId, Task>>,
    ready: RefCell<VecDeque<TaskId>>,
    current: Cell<TaskId>,
    world: RefCell<World>,
}

/// What a task is told, in the order in which it happens.
#[derive(Clone)]
pub struct Inbox {
    sim: Sim,
    task: TaskId,
    told: Rc<RefCell<VecDeque<Told>>>,
}

/// What a task waits for.
#[derive(Debug, Clone)]
pub enum Told {
    /// A node has answered a call, by this epoch.
    Answer { node: NodeId, tag: usize, epoch: Epoch, answer: Answer },
    /// A call has ended without an answer.
    Silence { node: NodeId, tag: usize },
    /// A command has been committed: its position in the log.
    Committed(usize),
    /// A command was not committed, or has been all the same.
    InDoubt,
    /// Time has passed.
    Timer,
}

// === impl Sim ===

impl Sim {
    pub fn new(world: World) -> Sim {
        Sim(Rc::new(Inner {
            now_ms: Cell::new(0),
            next: Cell::new(1),
            events: RefCell::default(),
            tasks: RefCell::default(),
            ready: RefCell::default(),
            current: Cell::new(0),
            world: RefCell::new(world),
        }))
    }

    /// What there is. Not to be held across anything that waits, or schedules.
    pub fn world(&self) -> RefMut<'_, World> {
        self.0.world.borrow_mut()
    }

    pub fn now_ms(&self) -> u64 {
        self.0.now_ms.get()
    }

    /// Has something happen later.
    pub fn after(&self, delay_ms: u64, event: impl FnOnce(&Sim) + 'static) {
        let at = (self.now_ms() + delay_ms, self.number());
        self.0.events.borrow_mut().insert(at, Box::new(event));
    }

    /// Begins a task.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) -> TaskId {
        let id = self.number();
        self.0.tasks.borrow_mut().insert(id, Box::pin(task));
        self.0.ready.borrow_mut().push_back(id);
        id
    }

    /// Ends a task where it is.
    pub fn end(&self, task: TaskId) {
        let ended = self.0.tasks.borrow_mut().remove(&task);
        drop(ended);
    }

    /// An inbox of the task that runs.
    pub fn inbox(&self) -> Inbox {
        Inbox { sim: self.clone(), task: self.0.current.get(), told: Rc::default() }
    }

    /// Runs what happens up to this time, or until something is wrong.
    pub fn run_until(&self, end_ms: u64) {
        loop {
            self.run_tasks();
            if self.world().oracle.violation.is_some() {
                return;
            }
            let Some((at_ms, event)) = self.next_event(end_ms) else { break };
            self.pass(at_ms);
            event(self);
        }
        self.pass(end_ms);
    }

    /// Drops all that is under way, which holds on to the simulation.
    pub fn close(&self) {
        self.0.events.borrow_mut().clear();
        let tasks = std::mem::take(&mut *self.0.tasks.borrow_mut());
        drop(tasks);
    }

    fn next_event(&self, end_ms: u64) -> Option<(u64, Event)> {
        let mut events = self.0.events.borrow_mut();
        let is_due = events.first_key_value().is_some_and(|(at, _)| at.0 <= end_ms);
        let ((at_ms, _), event) = is_due.then(|| events.pop_first()).flatten()?;
        Some((at_ms, event))
    }

    fn pass(&self, to_ms: u64) {
        self.0.now_ms.set(to_ms);
        self.world().now_ms = to_ms;
    }

    fn number(&self) -> u64 {
        let number = self.0.next.get();
        self.0.next.set(number + 1);
        number
    }

    fn run_tasks(&self) {
        loop {
            let Some(id) = self.0.ready.borrow_mut().pop_front() else { return };
            let Some(mut task) = self.0.tasks.borrow_mut().remove(&id) else { continue };
            self.0.current.set(id);
            if task.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
                self.0.tasks.borrow_mut().insert(id, task);
            }
        }
    }
}

// === impl Inbox ===

impl Inbox {
    pub fn tell(&self, told: Told) {
        self.told.borrow_mut().push_back(told);
        self.sim.0.ready.borrow_mut().push_back(self.task);
    }

    /// Says so when a time has passed.
    pub fn remind(&self, delay_ms: u64) {
        let inbox = self.clone();
        self.sim.after(delay_ms, move |_| inbox.tell(Told::Timer));
    }

    pub async fn next(&self) -> Told {
        poll_fn(|_| match self.told.borrow_mut().pop_front() {
            Some(told) => Poll::Ready(told),
            None => Poll::Pending,
        })
        .await
    }
}
