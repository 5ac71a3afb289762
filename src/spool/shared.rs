//! What the handles of a spool and its writer share, under one short lock.

use std::{
    collections::BTreeMap,
    future::poll_fn,
    io,
    ops::Range,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, atomic::AtomicBool},
    task::{Context, Poll, Waker},
    time::Instant,
};

use ropewalk_patterns::Message;
use tokio::sync::{oneshot, watch};

use super::{
    batch::{Batch, Planned},
    cursors::{Cursors, Marks},
    error::{CursorError, SpoolError},
    options::{Durability, SpoolOptions},
    record::{HEAD, Kind, longest_record},
    tail::Tail,
    work::{Request, Rests},
};
use crate::hub::waiters::{Ticket, Waiters};

/// The one line that waiters for room stand in.
pub(super) const LINE: u64 = 0;

#[derive(Debug)]
pub(super) struct State {
    pub(super) batch: Batch,
    pub(super) next_seq: u64,
    /// All below were accepted: they are as durable as the policy says.
    pub(super) accepted: u64,
    /// All below were synced.
    pub(super) durable: u64,
    /// Bytes in the log, and taken by the writer to go there.
    pub(super) held: u64,
    /// Those of them that the quota does not count: checkpoints, which nobody can settle.
    pub(super) book: u64,
    /// Who waits for all below a seq to be accepted; several may wait for the same.
    pub(super) appenders: BTreeMap<(u64, u64), Waker>,
    /// How many ever did.
    tickets: u64,
    /// Of those who have what they wait for, who is still to be woken, and since when.
    pub(super) arrived: Vec<Waker>,
    pub(super) arrived_at: Option<Instant>,
    /// How many appends the open batch holds, and how many the last group had: those are likely to come again.
    pub(super) appends: usize,
    pub(super) returning: usize,
    /// Some of them were woken since the writer last had nothing to do.
    pub(super) woke: bool,
    pub(super) room: Waiters,
    /// What the first of those who wait needs, when it is the quota that it waits for.
    short_of: Option<u64>,
    pub(super) cursors: Cursors,
    pub(super) settled_since: Option<Instant>,
    /// The writer looks soon, by itself, whether something was settled: each settling would have to wake it.
    pub(super) looks: bool,
    pub(super) requests: Vec<Request>,
    pub(super) failed: Option<Arc<io::Error>>,
    pub(super) closing: bool,
    pub(super) ended: bool,
    pub(super) nudged: bool,
    pub(super) rests: Rests,
    /// The disk has no room.
    pub(super) full: bool,
    /// Where each segment begins: its first seq, and a time before which nothing in it was appended.
    pub(super) segments: Vec<(u64, u64)>,
    pub(super) stream: [u8; 16],
}

#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    pub(super) work: Condvar,
    /// Set for a writer that spins.
    pub(super) called: AtomicBool,
    /// Others have a processor while the writer spins.
    pub(super) may_spin: bool,
    pub(super) tail: Tail,
    pub(super) options: SpoolOptions,
    pub(super) incarnation: u64,
    /// Whether the writer has ended.
    pub(super) ended: watch::Sender<bool>,
}

impl Shared {
    pub(super) fn new(
        options: SpoolOptions,
        stream: [u8; 16],
        incarnation: u64,
        cursors: Cursors,
        next_seq: u64,
    ) -> Self {
        let state = State {
            batch: Batch::default(),
            next_seq,
            accepted: next_seq,
            durable: next_seq,
            held: 0,
            book: 0,
            appenders: BTreeMap::new(),
            tickets: 0,
            arrived: Vec::new(),
            arrived_at: None,
            appends: 0,
            returning: 0,
            woke: false,
            room: Waiters::default(),
            short_of: None,
            cursors,
            settled_since: None,
            looks: false,
            requests: Vec::new(),
            failed: None,
            closing: false,
            ended: false,
            nudged: false,
            rests: Rests::No,
            full: false,
            segments: Vec::new(),
            stream,
        };
        let tail = Tail::new(options.tail, next_seq);
        let (state, ended) = (Mutex::new(state), watch::Sender::new(false));
        let several = std::thread::available_parallelism().is_ok_and(|processors| processors.get() > 1);
        let may_spin = several && options.durability != Durability::Always;
        Self {
            state,
            work: Condvar::new(),
            called: AtomicBool::new(false),
            may_spin,
            tail,
            options,
            incarnation,
            ended,
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the records, once there is room for them. Whoever waits is served in the order they came.
    /// `numbered` is told their seqs before anybody can read them, and under the lock: it is short, and asks nothing here.
    pub(super) async fn accept<R>(
        &self,
        messages: &[Message],
        numbered: impl FnOnce(Range<u64>) -> R,
    ) -> Result<(Range<u64>, R), SpoolError> {
        let options = &self.options;
        let cost = self.cost(messages)?;
        let mut numbered = Some(numbered);
        let mut place = InLine { shared: self, ticket: None };
        poll_fn(|context| {
            let mut state = self.lock();
            state.usable()?;
            let my_turn = place.ticket.map_or(state.room.is_empty(), |ticket| state.room.is_first(ticket));
            let fits = state.fits(cost, options);
            let short_of = state.short_of;
            if my_turn {
                state.short_of = (!fits).then_some(cost);
            }
            if !my_turn || !fits || !state.has_queue(cost, options) {
                // Only what is new is told: who was woken and found no room again is not, or the two would wake each
                // other for ever.
                if place.ticket.is_none() || state.short_of != short_of {
                    state.nudged = true;
                    self.wake(&mut state);
                }
                place.wait(&mut state, context);
                return Poll::Pending;
            }
            let first = state.next_seq;
            for message in messages {
                let seq = state.next_seq;
                state.batch.push_record(seq, message, options.frame);
                state.next_seq += 1;
            }
            state.appends += 1;
            let seqs = first..state.next_seq;
            // It is ready once.
            let told = numbered.take().map(|numbered| numbered(seqs.clone()));
            let enough = state.appends == 1 || state.appends >= state.returning;
            let sleeps = enough && self.call(&mut state);
            // Not under the lock, which the writer takes as soon as it wakes.
            drop(state);
            if sleeps {
                self.work.notify_one();
            }
            told.map_or(Poll::Pending, |told| Poll::Ready(Ok((seqs, told))))
        })
        .await
    }

    /// At most so many bytes will these take.
    fn cost(&self, messages: &[Message]) -> Result<u64, SpoolError> {
        let frame = HEAD as u64 + 8;
        let largest = self.options.largest();
        let mut cost = frame;
        for message in messages {
            let record = longest_record(message) + frame;
            if record > largest {
                return Err(SpoolError::TooLarge { largest });
            }
            cost += record;
        }
        // Two segments may be there that cannot go: the one being written, and one that somebody still reads.
        let largest = self.options.log_quota() - 2 * self.options.segment;
        if self.options.with_heads(cost) > largest { Err(SpoolError::TooLarge { largest }) } else { Ok(cost) }
    }

    /// Returns when everything below this seq is as durable as the policy says.
    pub(super) async fn reached(&self, end: u64) -> Result<(), SpoolError> {
        let mut waits = Waits { shared: self, key: None };
        poll_fn(|context| {
            let mut state = self.lock();
            if state.accepted >= end {
                waits.key = None;
                let others = state.take_arrived();
                drop(state);
                others.into_iter().for_each(Waker::wake);
                return Poll::Ready(Ok(()));
            }
            if state.failed.is_some() || state.ended {
                waits.key = None;
                return Poll::Ready(state.usable());
            }
            let key = *waits.key.get_or_insert_with(|| {
                state.tickets += 1;
                (end, state.tickets)
            });
            state.appenders.insert(key, context.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Asks the writer, and waits for what it says.
    pub(super) async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Result<T, SpoolError> {
        let answer = self.request(request)?;
        answer.await.map_err(|_| self.lock().usable().err().unwrap_or(SpoolError::Closed))
    }

    pub(super) fn request<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<T>) -> Request,
    ) -> Result<oneshot::Receiver<T>, SpoolError> {
        let (reply, answer) = oneshot::channel();
        let mut state = self.lock();
        state.usable()?;
        let request = request(reply);
        state.closing |= matches!(request, Request::Close(_));
        state.requests.push(request);
        self.wake(&mut state);
        Ok(answer)
    }

    pub(super) fn settle(&self, cursor: &str, ranges: impl IntoIterator<Item = Range<u64>>) -> Result<(), CursorError> {
        self.follow(ranges, |state, seqs| {
            // What was not accepted yet cannot be settled.
            let end = seqs.end.min(state.accepted);
            state.cursors.settle(cursor, seqs.start.min(end)..end)
        })
    }

    pub(super) fn note(&self, cursor: &str, notes: impl IntoIterator<Item = (u64, u32)>) -> Result<(), CursorError> {
        self.follow(
            notes,
            |state, (seq, attempts)| {
                if seq < state.accepted { state.cursors.note(cursor, seq, attempts) } else { Ok(false) }
            },
        )
    }

    /// Does this with each, under one lock, up to the first that fails. The writer is told of what is to be written.
    fn follow<T>(
        &self,
        items: impl IntoIterator<Item = T>,
        mut change: impl FnMut(&mut State, T) -> Result<bool, CursorError>,
    ) -> Result<(), CursorError> {
        // Whatever the caller's iterator does, it does not do it under the lock.
        let items: Vec<T> = items.into_iter().collect();
        let mut state = self.lock();
        state.usable().map_err(|_| CursorError::Closed)?;
        let (mut result, mut settled) = (Ok(()), false);
        for item in items {
            match change(&mut state, item) {
                Ok(changed) => settled |= changed,
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
        }
        // Who waits for the time when it is written looks again then.
        let first = settled && state.settled_since.replace(Instant::now()).is_none() && !state.looks;
        let makes_room = !state.room.is_empty();
        state.nudged |= makes_room;
        if first || makes_room {
            self.wake(&mut state);
        }
        result
    }

    /// The last handle is gone.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.closing = true;
        self.wake(&mut state);
    }
}

impl State {
    /// Whether something may be asked for.
    pub(super) fn usable(&self) -> Result<(), SpoolError> {
        match &self.failed {
            Some(error) => Err(SpoolError::Failed(Arc::clone(error))),
            None if self.closing => Err(SpoolError::Closed),
            None => Ok(()),
        }
    }

    /// Whether the memory may take so much more.
    fn has_queue(&self, cost: u64, options: &SpoolOptions) -> bool {
        let waiting = self.batch.len();
        waiting == 0 || waiting + cost <= options.queue
    }

    /// Whether the quota lets so much more in.
    fn fits(&self, cost: u64, options: &SpoolOptions) -> bool {
        self.held - self.book.min(self.held) + options.with_heads(self.batch.len() + cost) <= options.log_quota()
    }

    /// Somebody waits for the quota.
    pub(super) fn is_short(&self, options: &SpoolOptions) -> bool {
        self.short_of.is_some_and(|cost| !self.fits(cost, options))
    }

    /// What was settled and is not yet on its way to the log, for a frame before the record of this seq.
    pub(super) fn take_settled(&mut self, seq: u64) -> (Option<Planned>, Marks) {
        self.settled_since = None;
        let settled = self.cursors.take_fresh();
        let frame = settled.map(|settled| Planned::new(Kind::Settled, seq, 0, &settled));
        (frame, self.cursors.marks())
    }
}

/// A place among those who wait for room, left when dropped.
struct InLine<'a> {
    shared: &'a Shared,
    ticket: Option<Ticket>,
}

impl InLine<'_> {
    fn wait(&mut self, state: &mut State, context: &Context<'_>) {
        match self.ticket {
            Some(ticket) => state.room.keep(ticket, context.waker()),
            None => self.ticket = Some(state.room.join(LINE, context.waker().clone())),
        }
    }
}

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        let next = self.ticket.and_then(|ticket| {
            let mut state = self.shared.lock();
            if state.room.is_first(ticket) {
                state.short_of = None;
            }
            state.room.leave(ticket)
        });
        if let Some(next) = next {
            next.wake();
        }
    }
}

/// Somebody who waits for what it appended.
struct Waits<'a> {
    shared: &'a Shared,
    key: Option<(u64, u64)>,
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        let Some(key) = self.key else { return };
        let mut state = self.shared.lock();
        if state.appenders.remove(&key).is_some() {
            return;
        }
        // Perhaps it was the one that is woken to wake the others.
        let others = state.take_arrived();
        drop(state);
        others.into_iter().for_each(Waker::wake);
    }
}
