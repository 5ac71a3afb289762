//! What the writer does next, and who hears of what it did.

use std::{
    io,
    sync::{
        Arc, MutexGuard, PoisonError,
        atomic::Ordering::{Acquire, Release},
    },
    task::Waker,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use super::{
    batch::Batch,
    cursors::Marks,
    error::SpoolError,
    read::{Chunk, Place},
    shared::{LINE, Shared, State},
};

/// How long what was settled may wait for a record to travel with.
const SETTLE_DELAY: Duration = Duration::from_millis(10);

/// Whom no other has woken after so long is woken by the writer.
const WAKES_AFTER: Duration = Duration::from_micros(100);

/// So long the writer spins before it sleeps, where no sync is to be waited for and several were just woken, who are likely
/// to come again: about what it takes to wake it.
const SPINS: Duration = Duration::from_micros(20);

/// What the writer is asked for.
#[derive(Debug)]
pub(super) enum Request {
    /// Put the cursors into the log and sync it.
    Checkpoint(oneshot::Sender<()>),
    /// Sync what was accepted before.
    Sync(oneshot::Sender<()>),
    Read {
        from: u64,
        place: Option<Place>,
        reply: oneshot::Sender<io::Result<Chunk>>,
    },
    /// The first seq that was appended at this time or later.
    SeqAt(u64, oneshot::Sender<io::Result<u64>>),
    /// Be another stream from now on.
    Fork(oneshot::Sender<()>),
    /// End, and say how.
    Close(oneshot::Sender<Result<(), SpoolError>>),
}

/// What the writer has to do.
#[derive(Debug)]
pub(super) struct Work {
    /// With what cursors did until then.
    pub(super) batch: Option<(Batch, Marks)>,
    pub(super) requests: Vec<Request>,
    pub(super) closing: bool,
}

/// Whether the writer has nothing to do, and nobody has called it yet.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rests {
    #[default]
    No,
    Spins,
    /// To wake it is a system call.
    Sleeps,
}

impl Shared {
    /// There is something to do, or soon will be. Whether the writer sleeps, and is to be woken.
    pub(super) fn call(&self, state: &mut State) -> bool {
        let rests = std::mem::take(&mut state.rests);
        if rests == Rests::Spins {
            self.called.store(true, Release);
        }
        rests == Rests::Sleeps
    }

    pub(super) fn wake(&self, state: &mut State) {
        if self.call(state) {
            self.work.notify_one();
        }
    }

    /// Waits for something to do, at most until `deadline`. A batch is taken only by who has none left.
    ///
    /// Those whose records were just synced are being woken, and the first to come again would have the next sync for
    /// itself. So the others are waited for, once, for at most `patience`, which is short beside a sync; a sender that is
    /// alone never waits.
    pub(super) fn wait(&self, takes: bool, deadline: Option<Instant>, patience: Duration) -> Work {
        let mut state = self.lock();
        let mut patient_until: Option<Instant> = None;
        let mut spins = std::mem::take(&mut state.woke) && state.returning > 1 && self.may_spin;
        loop {
            // Also when there is something to do: it may be long until it rests.
            if state.arrived_at.is_some_and(|at| at.elapsed() >= WAKES_AFTER) {
                let late = state.take_arrived();
                drop(state);
                late.into_iter().for_each(Waker::wake);
                state = self.lock();
            }
            let others_come = takes && state.appends > 0 && state.appends < state.returning;
            if others_come && patient_until.is_none() {
                patient_until = Some(Instant::now() + patience);
            }
            let gathers_until = patient_until.filter(|until| others_come && Instant::now() < *until);
            let settled = state.settled_since.map(|since| since + SETTLE_DELAY).filter(|_| takes);
            let deadline = deadline.into_iter().chain(settled).chain(gathers_until).min();
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let due = left.is_some_and(|left| left.is_zero());
            let written = takes && !state.batch.is_empty() && gathers_until.is_none();
            let something = written || !state.requests.is_empty() || state.nudged;
            if something || state.closing || due {
                return state.take(takes);
            }
            state = if std::mem::take(&mut spins) { self.spin(state) } else { self.rest(state, left) };
        }
    }

    /// Waits until it is called, for as long as it would take to be woken.
    fn spin<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.called.store(false, Release);
        state.rests = Rests::Spins;
        drop(state);
        let until = Instant::now() + SPINS;
        while !self.called.load(Acquire) && Instant::now() < until {
            std::hint::spin_loop();
        }
        let mut state = self.lock();
        state.rests = Rests::No;
        state
    }

    /// Waits until it is woken, at most for so long.
    fn rest<'a>(&'a self, mut state: MutexGuard<'a, State>, left: Option<Duration>) -> MutexGuard<'a, State> {
        let late = (!state.arrived.is_empty()).then_some(WAKES_AFTER);
        // After work once, for what is written is settled soon, most often.
        let looks = state.looks.then_some(SETTLE_DELAY);
        state.rests = Rests::Sleeps;
        let mut state = match left.into_iter().chain(late).chain(looks).min() {
            None => self.work.wait(state).unwrap_or_else(PoisonError::into_inner),
            Some(left) => {
                let (mut state, waited) = self.work.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
                state.looks &= !(waited.timed_out() && looks == Some(left));
                state
            }
        };
        state.rests = Rests::No;
        state
    }

    /// The writer ends, for this reason.
    pub(super) fn end(&self, failed: Option<io::Error>) {
        let mut wakers = Vec::new();
        {
            let mut state = self.lock();
            if state.ended {
                return;
            }
            state.failed = failed.map(Arc::new);
            (state.closing, state.ended) = (true, true);
            state.requests.clear();
            state.room.wake_all(&mut wakers);
            wakers.extend(std::mem::take(&mut state.appenders).into_values());
            wakers.extend(state.take_arrived());
        }
        wakers.into_iter().for_each(Waker::wake);
        self.ended.send_replace(true);
    }

    /// Tells how far the log has come. Who is to be woken for it.
    ///
    /// To wake a task from here is a system call, and the next group would wait for as many as there are senders. So one is
    /// woken, which [wakes the others](Self::reached) where that is none; if it does not come to it, [`wait`](Self::wait)
    /// does.
    #[must_use]
    pub(super) fn publish(&self, tell: impl FnOnce(&mut State)) -> Vec<Waker> {
        let mut wakers = Vec::new();
        {
            let mut state = self.lock();
            tell(&mut state);
            let above = (state.accepted + 1, 0);
            let waiting = state.appenders.split_off(&above);
            let arrived = std::mem::replace(&mut state.appenders, waiting);
            if !arrived.is_empty() {
                (state.returning, state.woke) = (arrived.len(), true);
                wakers.extend(state.take_arrived());
                let mut arrived = arrived.into_values();
                wakers.extend(arrived.next());
                state.arrived.extend(arrived);
                state.arrived_at = (!state.arrived.is_empty()).then(Instant::now);
            }
            wakers.extend(state.room.wake_first(LINE));
        }
        wakers
    }
}

impl State {
    /// Who is still to be woken, to be woken now.
    pub(super) fn take_arrived(&mut self) -> Vec<Waker> {
        self.arrived_at = None;
        std::mem::take(&mut self.arrived)
    }

    fn take(&mut self, takes: bool) -> Work {
        (self.nudged, self.looks) = (false, true);
        let batch = takes.then(|| {
            let mut batch = self.batch.take();
            self.appends = 0;
            let (settled, marks) = self.take_settled(self.next_seq);
            batch.extend(settled);
            self.held += batch.len();
            (batch, marks)
        });
        Work { batch, requests: std::mem::take(&mut self.requests), closing: self.closing }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        sync::atomic::{AtomicUsize, Ordering::SeqCst},
        task::{Context, Poll, Wake},
    };

    use super::*;
    use crate::spool::{Durability, SpoolOptions, cursors::Cursors};

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, SeqCst);
        }
    }

    fn shared() -> Shared {
        Shared::new(SpoolOptions::from(Durability::Os), [0; 16], 1, Cursors::default(), 0)
    }

    fn accept(shared: &Shared, end: u64) {
        shared.publish(|state| state.accepted = end).into_iter().for_each(Waker::wake);
    }

    #[test]
    fn all_who_wait_for_the_same_record_are_woken() {
        let shared = shared();
        let woken: [Arc<Woken>; 2] = Default::default();
        let wakers = woken.clone().map(Waker::from);
        let (mut first, mut second) = (pin!(shared.reached(1)), pin!(shared.reached(1)));
        assert!(first.as_mut().poll(&mut Context::from_waker(&wakers[0])).is_pending());
        assert!(second.as_mut().poll(&mut Context::from_waker(&wakers[1])).is_pending());
        accept(&shared, 1);
        assert!(woken.iter().any(|woken| woken.0.load(SeqCst) > 0));
        for (one, waker) in [first, second].iter_mut().zip(&wakers) {
            assert!(matches!(one.as_mut().poll(&mut Context::from_waker(waker)), Poll::Ready(Ok(()))));
        }
        assert!(woken.iter().all(|woken| woken.0.load(SeqCst) > 0), "whoever goes on wakes the others");
    }

    #[test]
    fn who_is_gone_keeps_nobody_waiting() {
        let shared = shared();
        let woken = Arc::<Woken>::default();
        let waker = Waker::from(Arc::clone(&woken));
        let mut stays = pin!(shared.reached(2));
        {
            let mut before = pin!(shared.reached(1));
            assert!(before.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
            assert!(stays.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
            accept(&shared, 2);
            // It was woken, and is dropped before it looks.
        }
        assert_eq!(woken.0.load(SeqCst), 1);
        let mut never = Box::pin(shared.reached(3));
        assert!(never.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        drop(never);
        assert!(shared.lock().appenders.is_empty(), "nothing is left of it");
    }
}
