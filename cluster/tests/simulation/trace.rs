//! What happened, for people to read: written down only when a run that failed is run again.

use crate::disk::{Action, Blob};

/// Lines of a trace that are shown, at the most: the last ones.
const SHOWN: usize = 300;

/// What something that happens is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum About {
    All,
    Machine(usize),
    Blob(Blob),
    Action(Action),
}

pub struct Trace {
    is_on: bool,
    lines: Vec<(u64, About, String)>,
}

// === impl Trace ===

impl Trace {
    pub fn new(is_on: bool) -> Trace {
        Trace { is_on, lines: Vec::new() }
    }

    pub fn note(&mut self, now_ms: u64, about: About, text: impl FnOnce() -> String) {
        if self.is_on {
            self.lines.push((now_ms, about, text()));
        }
    }

    /// What matters for this one thing.
    pub fn of(&self, about: About) -> String {
        let matters = |other: &About| *other == about || matches!(other, About::All | About::Machine(_));
        let lines: Vec<String> = self.lines.iter().filter(|(_, other, _)| matters(other)).map(line).collect();
        lines.get(lines.len().saturating_sub(SHOWN)..).unwrap_or_default().join("\n")
    }
}

fn line((at_ms, about, text): &(u64, About, String)) -> String {
    let (seconds, millis) = (at_ms / 1000, at_ms % 1000);
    let about = match about {
        About::All => String::new(),
        About::Machine(machine) => format!("m{machine} "),
        About::Blob(blob) => format!("blob {blob}: "),
        About::Action(action) => format!("action {action}: "),
    };
    format!("{seconds:>6}.{millis:03}  {about}{text}")
}
