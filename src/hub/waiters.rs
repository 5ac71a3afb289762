//! Who waits for what, served in the order they came.

use std::{collections::BTreeMap, task::Waker};

/// A place in a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticket {
    line: u64,
    number: u64,
}

/// Lines of waiters. Only the first of a line is ever woken; when it is served or gives up, the next one is.
#[derive(Debug, Default)]
pub(crate) struct Waiters {
    waiting: BTreeMap<Ticket, Waker>,
    numbers: u64,
}

impl Waiters {
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether somebody waits in this line.
    pub(crate) fn any_in(&self, line: u64) -> bool {
        self.first(line).is_some()
    }

    /// Joins the end of a line.
    pub(crate) fn join(&mut self, line: u64, waker: Waker) -> Ticket {
        self.numbers += 1;
        let ticket = Ticket { line, number: self.numbers };
        self.waiting.insert(ticket, waker);
        ticket
    }

    /// Whether it is this one's turn.
    pub(crate) fn is_first(&self, ticket: Ticket) -> bool {
        self.first(ticket.line) == Some(ticket)
    }

    /// Keeps waiting, from a task that may be another by now.
    pub(crate) fn keep(&mut self, ticket: Ticket, waker: &Waker) {
        self.waiting.entry(ticket).and_modify(|kept| kept.clone_from(waker)).or_insert_with(|| waker.clone());
    }

    /// Leaves the line; gives the next one's waker if that is first now.
    pub(crate) fn leave(&mut self, ticket: Ticket) -> Option<Waker> {
        let was_first = self.is_first(ticket);
        self.waiting.remove(&ticket);
        if was_first { self.wake_first(ticket.line) } else { None }
    }

    /// The waker of the first in a line.
    pub(crate) fn wake_first(&self, line: u64) -> Option<Waker> {
        self.waiting.get(&self.first(line)?).cloned()
    }

    /// The wakers of the first in every line.
    pub(crate) fn wake_firsts(&self, wakers: &mut Vec<Waker>) {
        let mut line = None;
        for (ticket, waker) in &self.waiting {
            if line != Some(ticket.line) {
                line = Some(ticket.line);
                wakers.push(waker.clone());
            }
        }
    }

    /// Everybody's wakers, for good.
    pub(crate) fn wake_all(&mut self, wakers: &mut Vec<Waker>) {
        wakers.extend(std::mem::take(&mut self.waiting).into_values());
    }

    fn first(&self, line: u64) -> Option<Ticket> {
        let from = Ticket { line, number: 0 };
        self.waiting.range(from..).next().map(|(ticket, _)| *ticket).filter(|ticket| ticket.line == line)
    }
}
