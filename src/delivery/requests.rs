//! Requests that are kept in a directory until they are answered.
//!
//! ```text
//!   request --> spool --> asked of one peer, then of the next, until it is answered --> whoever waits
//!                 ^                                        |                                 |  when it is handed out,
//!   found there when it was opened                         +--> nobody waits: recover        v  or acknowledged
//!                                                                                         settled
//! ```
//! Answers that nobody takes are bounded: what was [found](super::asking) beyond that is not asked, and of what came the
//! answers are dropped and asked for again, until somebody takes some.

use std::{
    collections::{HashMap, VecDeque},
    ops::Range,
    path::Path,
    slice,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

use ropewalk_patterns::{Message, delivery::MessageId, ranges::Ranges};
use tokio::{
    select,
    sync::{Notify, oneshot},
    time::{Instant, timeout_at},
};

use super::{
    Answered,
    asking::{ask_found, ask_new},
    disk::{self, was_closed},
};
use crate::{
    error::{Closed, RequestError},
    hub::{Hub, Phase},
    options::Options,
    sockets::Requester,
    spool::{CursorError, OpenError, RecoveryReport, Spool, SpoolError, SpoolOptions, WhenFull},
};

/// How far its requests are answered.
const CURSOR: &str = "req";

/// Answers that were dropped are remembered as so many ranges of seqs; those beyond are asked for after the next opening.
const RANGES: usize = 1 << 16;

/// The requests of one socket.
#[derive(Debug)]
pub(crate) struct Requests {
    pub(crate) spool: Spool,
    pub(crate) report: RecoveryReport,
    /// So many are asked at once, of those that were found and of those that come.
    pub(super) most: usize,
    /// So many bytes of answers, and what was asked, wait for somebody to take them; or one that is larger.
    most_bytes: u64,
    /// No request below comes again, whatever crashes: that is synced.
    floor: AtomicU64,
    state: Mutex<State>,
    /// An answer is there that nobody waited for.
    answered: Notify,
    /// Whose turn it is to take it.
    turn: tokio::sync::Mutex<()>,
    /// One was taken.
    pub(super) taken: Notify,
    settled: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Those who wait for an answer, by the seq of their request.
    waiting: HashMap<u64, oneshot::Sender<Answered>>,
    /// Answers that nobody waited for, and their bytes.
    answers: VecDeque<Answered>,
    bytes: u64,
    /// Requests whose answers found no room.
    left: Ranges,
    /// One found none since any was taken.
    full: bool,
    ended: bool,
}

impl State {
    fn wait(&mut self, seq: u64, tell: oneshot::Sender<Answered>) {
        if self.waiting.len() == self.waiting.capacity() {
            self.waiting.retain(|_, waiting| !waiting.is_closed());
            self.waiting.reserve(self.waiting.len());
        }
        // One who comes at the last moment is told at once that the socket has closed.
        if !self.ended {
            self.waiting.insert(seq, tell);
        }
    }
}

impl Requests {
    pub(crate) async fn open(directory: &Path, spool: SpoolOptions, options: &Options) -> Result<Arc<Self>, OpenError> {
        // What was recovered is synced with the cursor.
        let (spool, report) = disk::open(directory, spool.when_full(WhenFull::Wait), Some(CURSOR)).await?;
        Ok(Arc::new(Self {
            floor: AtomicU64::new(spool.settled(CURSOR).unwrap_or(0)),
            spool,
            report,
            most: options.outstanding,
            most_bytes: options.recv_hwm.bytes,
            state: Mutex::default(),
            answered: Notify::new(),
            turn: tokio::sync::Mutex::new(()),
            taken: Notify::new(),
            settled: Notify::new(),
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Accepts a request, and waits for its answer.
    pub(crate) async fn request(&self, request: Message, until: Instant) -> Result<Answered, RequestError> {
        let (tell, answer) = oneshot::channel();
        let answered = async |_| {
            if let Ok(answered) = answer.await {
                return Ok(answered);
            }
            Err(if self.spool.is_failed() { self.spool.failed().await } else { SpoolError::Closed })
        };
        self.accept(request, until, |seq| self.state().wait(seq, tell), answered).await
    }

    /// Accepts a request whose answer is to be recovered.
    pub(crate) async fn request_later(&self, request: Message, until: Instant) -> Result<MessageId, RequestError> {
        let (stream, incarnation) = (self.spool.stream(), self.spool.incarnation());
        self.accept(request, until, |_| (), async |seq| Ok(MessageId { stream, incarnation, seq })).await
    }

    /// Does the rest once it is as durable as the policy says. `numbered` is told its seq before anybody can read it: from
    /// then on it is asked, whoever waits for that.
    async fn accept<R>(
        &self,
        request: Message,
        until: Instant,
        numbered: impl FnOnce(u64),
        then: impl AsyncFnOnce(u64) -> Result<R, SpoolError>,
    ) -> Result<R, RequestError> {
        let accepted = AtomicBool::new(false);
        // The log's lock is held: nothing is asked of the log while this one is.
        let told = |seqs: Range<u64>| {
            accepted.store(true, Relaxed);
            numbered(seqs.start);
        };
        let done = async {
            let (seqs, ()) = self.spool.accept(slice::from_ref(&request), told).await?;
            self.spool.reached(seqs.end).await?;
            then(seqs.start).await
        };
        match timeout_at(until, done).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(SpoolError::Closed)) => Err(RequestError::Closed),
            Ok(Err(SpoolError::TooLarge { .. })) => Err(RequestError::TooLarge(request)),
            Ok(Err(error)) => Err(RequestError::SpoolFailed(request, error.to_string())),
            Err(_) if accepted.load(Relaxed) => Err(RequestError::NotYet),
            Err(_) => Err(RequestError::NotAsked),
        }
    }

    /// The next answer that nobody waited for.
    pub(crate) async fn recover(self: &Arc<Self>) -> Result<Answered, Closed> {
        let _turn = self.turn.lock().await;
        loop {
            {
                let mut state = self.state();
                if state.ended {
                    return Err(Closed);
                }
                if let Some(mut answer) = state.answers.pop_front() {
                    state.bytes -= answer.cost();
                    state.full = false;
                    drop(state);
                    self.taken.notify_one();
                    answer.of = Some(Arc::clone(self));
                    return Ok(answer);
                }
            }
            self.answered.notified().await;
        }
    }

    /// Gives it to whoever waits for it.
    pub(super) fn hand_out(&self, answered: Answered) {
        let waiting = answered.id.and_then(|id| self.state().waiting.remove(&id.seq));
        match waiting {
            // Whoever has gone meanwhile drops it.
            Some(waiting) => drop(waiting.send(answered)),
            None => drop(answered),
        }
    }

    /// Nobody waits for it: it waits for somebody to recover it, if there is room for it.
    pub(super) fn keep(&self, answer: Answered) {
        let mut state = self.state();
        let (seq, cost) = (answer.id.map_or(0, |id| id.seq), answer.cost());
        let fits = state.answers.len() < 2 * self.most && state.bytes + cost <= self.most_bytes;
        if state.ended {
            return;
        }
        if fits || state.answers.is_empty() {
            state.bytes += cost;
            state.answers.push_back(answer);
            drop(state);
            self.answered.notify_one();
            return;
        }
        state.full = true;
        if state.left.len() < RANGES {
            state.left.insert(seq..seq + 1);
        }
    }

    /// The application is done with these.
    pub(super) fn settle(&self, seqs: Range<u64>) -> Result<(), CursorError> {
        self.spool.settle(CURSOR, seqs)?;
        self.settled.notify_one();
        Ok(())
    }

    /// How many have no answer yet that somebody took.
    pub(crate) fn unsettled(&self) -> u64 {
        self.spool.stats().cursors.get(CURSOR).map_or(0, |cursor| cursor.unsettled)
    }

    /// Asks what was found and what comes, until the socket closes.
    pub(crate) fn run(self: Arc<Self>, hub: Arc<Hub<Requester>>) -> impl Future<Output = ()> {
        let at_last = EndsAnyway(Arc::clone(&self));
        async move {
            let _at_last = at_last;
            let mut phase = hub.watch_phase();
            let opened = self.report.next_seq;
            let found = self.floor.load(Relaxed)..opened;
            tokio::join!(ask_found(&self, &hub, found), ask_new(&self, &hub, opened), async {
                select! {
                    // An error is the end of the socket, too.
                    _ = phase.wait_for(|phase| *phase > Phase::Open) => {}
                    () = self.raise_floor() => {}
                }
            });
        }
    }

    pub(super) fn is_settled(&self, seq: u64) -> bool {
        self.spool.is_settled(CURSOR, seq) == Some(true)
    }

    /// How often it was asked in vain.
    pub(super) fn tries(&self, seq: u64) -> u32 {
        self.spool.noted(CURSOR, seq)
    }

    pub(super) fn tried(&self, seq: u64, times: u32) {
        // What is not noted is counted anew after a restart.
        let _not_noted = self.spool.note(CURSOR, seq, times);
    }

    /// No request below is asked again, whatever crashes.
    pub(super) fn floor(&self) -> u64 {
        self.floor.load(Relaxed)
    }

    /// Whether one more of those that were found may be asked beside so many: somebody has to take their answers.
    pub(super) fn has_room_for_found(&self, asking: usize) -> bool {
        let state = self.state();
        asking + state.answers.len() < self.most && !state.full
    }

    /// The first whose answer found no room.
    pub(super) fn take_left(&self) -> Option<u64> {
        let mut state = self.state();
        let first = state.left.take_first(1).iter().next()?;
        state.left.insert(first.start + 1..first.end);
        Some(first.start)
    }

    pub(super) fn is_awaited(&self, seq: u64) -> bool {
        self.state().waiting.get(&seq).is_some_and(|waiting| !waiting.is_closed())
    }

    /// Syncs what was settled each time that as many were as may be outstanding. Only what is synced is told: what a crash
    /// unsettles is asked again.
    async fn raise_floor(&self) {
        loop {
            self.settled.notified().await;
            let floor = self.spool.settled(CURSOR).unwrap_or(0);
            if floor < self.floor.load(Relaxed).saturating_add(self.most as u64) {
                continue;
            }
            // Twice: while the disk is full, one that waits for it may leave out what was settled meanwhile.
            for _ in 0..2 {
                if self.spool.sync().await.is_err() {
                    return;
                }
            }
            self.floor.store(floor, Relaxed);
        }
    }

    pub(crate) async fn end(&self) {
        was_closed(self.spool.close().await);
    }
}

/// Nobody waits for ever, not even where the runtime has ended.
struct EndsAnyway(Arc<Requests>);

impl Drop for EndsAnyway {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.ended = true;
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        drop(waiting);
        self.0.answered.notify_one();
    }
}
