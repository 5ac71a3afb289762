//! Requests that are kept in a directory until they are answered.
//!
//! ```text
//!   request --> spool --> asked of one peer, then of the next, until it is answered --> whoever waits
//!                 ^                                        |                                 |  when it is handed out,
//!   found there when it was opened                         +--> nobody waits: recover        v  or acknowledged
//!                                                                                         settled
//! ```
//! What was found and what comes are asked side by side, each in the order of their seqs and so many at once as may be
//! outstanding. Answers that nobody takes are bounded: what was found beyond that is not asked, and of what came the
//! answers are dropped and asked for again, until somebody takes some.

use std::{
    collections::{HashMap, VecDeque},
    future::{pending, poll_fn},
    ops::Range,
    path::Path,
    pin::pin,
    slice,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::Poll,
    time::Duration,
};

use ropewalk_patterns::{
    Body, Message,
    delivery::{MessageId, RequestTag},
    extension::RefusalReason,
    ranges::Ranges,
    req_rep::Unanswered,
};
use tokio::{
    select,
    sync::{Notify, oneshot},
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{
    Answered,
    disk::{self, may_read_on, was_closed},
};
use crate::{
    endpoint::BackOff,
    error::{Closed, RequestError},
    events::Event,
    hub::{Hub, Phase},
    options::Options,
    sockets::{Asked, Requester, deadline},
    spool::{
        CursorError, OpenError, ReadError, Reader, Record, RecoveryReport, Spool, SpoolError, SpoolOptions, WhenFull,
    },
};

/// How far its requests are answered.
const CURSOR: &str = "req";

/// No peer has less time for an answer, and none gets more by having had too little.
const TRY_AT_LEAST: Duration = Duration::from_millis(100);
const TRY_AT_MOST: Duration = Duration::from_secs(60 * 60);

/// Answers that were dropped are remembered as so many ranges of seqs; those beyond are asked for after the next opening.
const RANGES: usize = 1 << 16;

/// The requests of one socket.
#[derive(Debug)]
pub(crate) struct Requests {
    pub(crate) spool: Spool,
    pub(crate) report: RecoveryReport,
    /// So many are asked at once, of those that were found and of those that come.
    most: usize,
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
    taken: Notify,
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
    pub(crate) async fn request(&self, request: Message) -> Result<Answered, RequestError> {
        let (tell, answer) = oneshot::channel();
        // The log's lock is held: nothing is asked of the log while this one is.
        let waits = |seqs: Range<u64>| self.state().wait(seqs.start, tell);
        let answered = async {
            let (seqs, ()) = self.spool.accept(slice::from_ref(&request), waits).await?;
            self.spool.reached(seqs.end).await?;
            if let Ok(answered) = answer.await {
                return Ok(answered);
            }
            Err(if self.spool.is_failed() { self.spool.failed().await } else { SpoolError::Closed })
        };
        match answered.await {
            Ok(answered) => Ok(answered),
            Err(SpoolError::Closed) => Err(RequestError::Closed),
            Err(SpoolError::TooLarge { .. }) => Err(RequestError::TooLarge(request)),
            Err(error) => Err(RequestError::SpoolFailed(request, error.to_string())),
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
            tokio::join!(self.ask_all(&hub, found, true), self.ask_all(&hub, opened..u64::MAX, false), async {
                select! {
                    // An error is the end of the socket, too.
                    _ = phase.wait_for(|phase| *phase > Phase::Open) => {}
                    () = self.raise_floor() => {}
                }
            });
        }
    }

    async fn ask_all(self: &Arc<Self>, hub: &Arc<Hub<Requester>>, seqs: Range<u64>, found: bool) {
        let (mut reader, mut more) = (self.spool.read_from(seqs.start), !seqs.is_empty());
        let (mut asking, mut phase) = (JoinSet::new(), hub.watch_phase());
        // What is asked again goes one by one, for how large the answers are shows when they come; but none holds up others
        // for longer than this.
        let (mut again, mut alone) = (None, None);
        while *phase.borrow_and_update() == Phase::Open {
            if found && !more && again.is_none() && alone.is_none() && self.has_room(asking.len(), found) {
                again = self.take_left();
            }
            let record = select! {
                _ = phase.changed() => continue,
                Some(asked) = asking.join_next() => {
                    match asked {
                        Ok(seq) => alone = alone.filter(|(of, _)| *of != seq),
                        Err(error) => {
                            tracing::error!(%error, "a request was not asked: it is after the next opening");
                        }
                    }
                    continue;
                }
                () = sleep_until(alone.map_or_else(Instant::now, |(_, until)| until)), if alone.is_some() => {
                    alone = None;
                    continue;
                }
                () = self.taken.notified(), if found => continue,
                record = self.next(&mut reader, more, found, again), if self.has_room(asking.len(), found) => record,
            };
            match record {
                Ok(None) => more = false,
                Ok(Some(record)) if again.is_some_and(|seq| seq != record.seq) => again = None,
                Ok(Some(record)) if again.is_none() && record.seq >= seqs.end => more = false,
                Ok(Some(record)) if self.spool.is_settled(CURSOR, record.seq) == Some(true) => again = None,
                Ok(Some(record)) => {
                    let seq = record.seq;
                    // Once here, so that they stand in line in their order.
                    let mut ask = Box::pin(Arc::clone(self).ask(Arc::clone(hub), record));
                    if poll_fn(|cx| Poll::Ready(ask.as_mut().poll(cx))).await.is_pending() {
                        alone = again.map(|seq| (seq, deadline(hub.options.timeout))).or(alone);
                        asking.spawn(async move {
                            ask.await;
                            seq
                        });
                    }
                    again = None;
                }
                Err(ReadError::Damaged(damage)) => {
                    again = None;
                    // What is not settled is found damaged once more after the next opening.
                    let _found_again = self.settle(damage.seqs.clone());
                    hub.log.tell(Event::SpoolDamaged { damage });
                }
                // Nothing goes of it that is not settled.
                Err(ReadError::Missed { .. }) => again = None,
                Err(error) => {
                    if !may_read_on(error, &self.spool, hub).await {
                        // Nothing more is read in this life.
                        (more, again) = (false, None);
                        self.state().left = Ranges::default();
                    }
                }
            }
        }
        // The socket has closed, which ends them.
        while asking.join_next().await.is_some() {}
    }

    /// Whether one more may be asked beside so many. Nobody waits for what was found: its answers have to be taken.
    fn has_room(&self, asking: usize, found: bool) -> bool {
        let state = self.state();
        asking < self.most && (!found || (asking + state.answers.len() < self.most && !state.full))
    }

    /// The first whose answer found no room.
    fn take_left(&self) -> Option<u64> {
        let mut state = self.state();
        let first = state.left.take_first(1).iter().next()?;
        state.left.insert(first.start + 1..first.end);
        Some(first.start)
    }

    /// The next to be asked: behind those of the log one that is asked again. `None`: no more was found.
    async fn next(
        &self,
        reader: &mut Reader,
        more: bool,
        found: bool,
        again: Option<u64>,
    ) -> Result<Option<Record>, ReadError> {
        match again {
            _ if more && found => reader.try_next().await,
            _ if more => reader.next().await.map(Some),
            Some(seq) => self.spool.read_from(seq).next().await.map(Some),
            None => pending().await,
        }
    }

    /// Asks one peer after another, until there is an answer or the socket closes.
    async fn ask(self: Arc<Self>, hub: Arc<Hub<Requester>>, Record { seq, incarnation, message, .. }: Record) {
        let id = MessageId { stream: self.spool.stream(), incarnation, seq };
        let mut back_off = BackOff::new(hub.options.reconnect);
        let mut lost = self.spool.noted(CURSOR, seq);
        // It may have taken too long in an earlier life: then it has more time in this one.
        let mut patience = longer(hub.options.timeout.max(TRY_AT_LEAST), 1 << lost.min(4));
        let result = loop {
            let tag = RequestTag { id, floor: self.floor.load(Relaxed) };
            let error = match once(&hub, &message, tag, patience).await {
                Err(RequestError::Closed) => return,
                // Whoever waits may have it smaller. What nobody waits for may find a peer that takes it.
                Err(RequestError::TooLarge(message)) if !self.is_awaited(seq) => RequestError::TooLarge(message),
                Err(error @ (RequestError::PeerLost | RequestError::TimedOut)) => error,
                Err(error @ RequestError::Refused(RefusalReason::Dropped)) => error,
                result => break result,
            };
            lost = lost.saturating_add(1);
            if lost >= hub.options.attempts {
                break Err(error);
            }
            // One that is not noted is counted anew after a restart.
            let _not_noted = self.spool.note(CURSOR, seq, lost);
            if error == RequestError::TimedOut {
                // A peer that is only slow has twice the time now: else its answers would always come too late.
                patience = longer(patience, 2);
            } else if !pause(&hub, back_off.delay()).await {
                return;
            }
        };
        let waiting = self.state().waiting.remove(&seq);
        let answered = Answered { id: Some(id), request: message, result, of: Some(self) };
        match waiting {
            // Whoever has gone meanwhile drops it.
            Some(waiting) => drop(waiting.send(answered)),
            None => drop(answered),
        }
    }

    fn is_awaited(&self, seq: u64) -> bool {
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

/// So much longer a peer has for its answer.
fn longer(patience: Duration, times: u32) -> Duration {
    patience.max(patience.saturating_mul(times).min(TRY_AT_MOST))
}

/// Asks one peer. It has so much time for its answer, but it may take any time until it is asked.
async fn once(
    hub: &Hub<Requester>,
    message: &Message,
    tag: RequestTag,
    patience: Duration,
) -> Result<Message, RequestError> {
    let mut asked = Asked::begin(hub, Body::from(message), Some(tag)).await?;
    loop {
        let waited = asked.waits_for_a_peer();
        return match timeout(patience, asked.answer()).await {
            Err(_) if waited => continue,
            Err(_) => Err(RequestError::TimedOut),
            // Of all peers that were there when it had waited for one.
            Ok(Err(Unanswered::TooLarge)) => Err(RequestError::TooLarge(message.clone())),
            Ok(result) => result.map_err(RequestError::from),
        };
    }
}

/// Waits so long; false if the socket closes meanwhile.
async fn pause(hub: &Hub<Requester>, delay: Duration) -> bool {
    let mut phase = hub.watch_phase();
    let closes = pin!(phase.wait_for(|phase| *phase > Phase::Open));
    select! {
        _ = closes => false,
        () = sleep(delay) => true,
    }
}
