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
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether somebody waits in this line.
    #[inline]
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

    #[inline]
    fn first(&self, line: u64) -> Option<Ticket> {
        if self.waiting.is_empty() { None } else { self.first_in(line) }
    }

    fn first_in(&self, line: u64) -> Option<Ticket> {
        let from = Ticket { line, number: 0 };
        self.waiting.range(from..).next().map(|(ticket, _)| *ticket).filter(|ticket| ticket.line == line)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering::SeqCst},
        },
        task::Wake,
    };

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, SeqCst);
        }
    }

    #[test]
    fn the_first_of_each_line_is_served_first() {
        let mut waiters = Waiters::default();
        let tickets: Vec<Ticket> = [1, 1, 2, 1].map(|line| waiters.join(line, Waker::noop().clone())).into();
        assert!(waiters.is_first(tickets[0]) && waiters.is_first(tickets[2]));
        assert!(!waiters.is_first(tickets[1]));
        assert!(waiters.leave(tickets[1]).is_none(), "who is not first owes nobody a wake");
        assert!(waiters.leave(tickets[0]).is_some(), "who was first wakes the next");
        assert!(waiters.is_first(tickets[3]));
        assert!(waiters.leave(tickets[3]).is_none() && !waiters.any_in(1) && waiters.any_in(2));
    }

    #[test]
    fn one_of_each_line_is_woken() {
        let mut waiters = Waiters::default();
        let counts: Vec<Arc<Count>> = (0..4).map(|_| Arc::default()).collect();
        for (count, line) in counts.iter().zip([1, 1, 2, 2]) {
            waiters.join(line, Waker::from(Arc::clone(count)));
        }
        let mut wakers = Vec::new();
        waiters.wake_firsts(&mut wakers);
        wakers.drain(..).for_each(Waker::wake);
        assert_eq!(counts.iter().map(|count| count.0.load(SeqCst)).collect::<Vec<_>>(), [1, 0, 1, 0]);
        waiters.wake_all(&mut wakers);
        assert_eq!(wakers.len(), 4);
        assert!(waiters.is_empty());
    }
}
