//! Requests that are kept in a directory until they are answered.
//!
//! ```text
//!   request --> spool --> asked of one peer, then of the next, until it is answered --> whoever waits
//!                 ^                                        |                                 |  when it is handed out,
//!   found there when it was opened                         +--> nobody waits: recover        v  or acknowledged
//!                                                                                         settled
//! ```
//! What was found and what comes are asked side by side, each in the order of their seqs and so many at once as may be
//! outstanding. Answers that nobody takes are bounded: what is beyond that is not asked, or is asked again after the next
//! opening.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    future::poll_fn,
    ops::Range,
    path::Path,
    pin::pin,
    slice,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Poll,
    time::Duration,
};

use ropewalk_patterns::{
    Body, Message,
    delivery::{MessageId, RequestTag},
    extension::RefusalReason,
};
use tokio::{
    select,
    sync::{Notify, oneshot},
    task::JoinSet,
    time::sleep,
};

use super::disk::may_read_on;
use crate::{
    endpoint::BackOff,
    error::{AckError, Closed, RequestError},
    events::Event,
    hub::{Hub, Phase},
    options::Options,
    sockets::{Requester, ask_once},
    spool::{OpenError, ReadError, Record, RecoveryReport, Spool, SpoolError, SpoolOptions, WhenFull},
};

/// How far its requests are answered.
const CURSOR: &str = "req";

/// No try takes less: one that may take no time would be made again and again.
const TRY_AT_LEAST: Duration = Duration::from_millis(100);

/// The requests of one socket.
#[derive(Debug)]
pub(crate) struct Requests {
    pub(crate) spool: Spool,
    pub(crate) report: RecoveryReport,
    /// So many are asked at once, of those that were found and of those that come.
    most: usize,
    state: Mutex<State>,
    /// An answer is there that nobody waited for.
    answered: Notify,
    /// One was taken.
    taken: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Those who wait for an answer, by the seq of their request.
    waiting: HashMap<u64, oneshot::Sender<Answered>>,
    /// Answers that nobody waited for.
    answers: VecDeque<Answered>,
    ended: bool,
}

impl State {
    fn wait(&mut self, seq: u64, tell: oneshot::Sender<Answered>) {
        if self.waiting.len() == self.waiting.capacity() {
            self.waiting.retain(|_, waiting| !waiting.is_closed());
        }
        // One who comes at the last moment is told at once that the socket has closed.
        if !self.ended {
            self.waiting.insert(seq, tell);
        }
    }
}

impl Requests {
    pub(crate) async fn open(directory: &Path, spool: SpoolOptions, options: &Options) -> Result<Arc<Self>, OpenError> {
        let (spool, report) = Spool::open(directory, spool.when_full(WhenFull::Wait)).await?;
        let failed = |error| OpenError::Io { directory: directory.into(), error: std::io::Error::other(error) };
        spool.cursor(CURSOR).await.map_err(failed)?;
        Ok(Arc::new(Self {
            spool,
            report,
            most: options.outstanding,
            state: Mutex::default(),
            answered: Notify::new(),
            taken: Notify::new(),
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Accepts a request, and waits for its answer.
    pub(crate) async fn request(&self, request: Message) -> Result<Answered, RequestError> {
        let (tell, answer) = oneshot::channel();
        let waits = |seqs: Range<u64>| self.state().wait(seqs.start, tell);
        let accepted = async {
            let (seqs, ()) = self.spool.accept(slice::from_ref(&request), waits).await?;
            self.spool.reached(seqs.end).await
        };
        match accepted.await {
            Ok(()) => answer.await.map_err(|_| RequestError::Closed),
            Err(SpoolError::Closed) => Err(RequestError::Closed),
            Err(SpoolError::TooLarge { .. }) => Err(RequestError::TooLarge(request)),
            Err(error) => Err(RequestError::SpoolFailed(request, error.to_string())),
        }
    }

    /// The next answer that nobody waited for.
    pub(crate) async fn recover(self: &Arc<Self>) -> Result<Answered, Closed> {
        loop {
            let answered = self.answered.notified();
            let (answer, left) = {
                let mut state = self.state();
                if state.ended {
                    // Whoever waits behind is told, too.
                    self.answered.notify_one();
                    return Err(Closed);
                }
                (state.answers.pop_front(), !state.answers.is_empty())
            };
            if left {
                self.answered.notify_one();
            }
            if let Some(mut answer) = answer {
                self.taken.notify_one();
                answer.of = Some(Arc::clone(self));
                return Ok(answer);
            }
            answered.await;
        }
    }

    /// Nobody waits for it: it waits for somebody to recover it, if there is room for it.
    fn keep(&self, answer: Answered) {
        let mut state = self.state();
        if !state.ended && state.answers.len() < 2 * self.most {
            state.answers.push_back(answer);
            drop(state);
            self.answered.notify_one();
        }
    }

    /// The application is done with this one.
    fn settle(&self, seqs: Range<u64>) -> Result<(), AckError> {
        self.spool.settle(CURSOR, seqs).map_err(|error| AckError::Spool(error.to_string()))
    }

    /// How many have no answer yet that somebody took.
    pub(crate) fn unsettled(&self) -> u64 {
        self.spool.stats().cursors.get(CURSOR).map_or(0, |cursor| cursor.unsettled)
    }

    /// Asks what was found and what comes, until the socket closes.
    pub(crate) async fn run(self: Arc<Self>, hub: Arc<Hub<Requester>>) {
        let (opened, floor) = (self.report.next_seq, self.spool.settled(CURSOR).unwrap_or(0));
        tokio::join!(self.ask_all(&hub, floor..opened), self.ask_all(&hub, opened..u64::MAX));
        let mut state = self.state();
        state.ended = true;
        state.waiting.clear();
        drop(state);
        self.answered.notify_one();
    }

    async fn ask_all(self: &Arc<Self>, hub: &Arc<Hub<Requester>>, seqs: Range<u64>) {
        let (mut reader, mut more) = (self.spool.read_from(seqs.start), !seqs.is_empty());
        let (mut asking, mut phase) = (JoinSet::new(), hub.watch_phase());
        while (more || !asking.is_empty()) && *phase.borrow_and_update() == Phase::Open {
            // Nobody waits for what was found: its answers have to be taken.
            let found = seqs.end < u64::MAX;
            let untaken = if found { self.state().answers.len() } else { 0 };
            let record = select! {
                // An error is the end of the socket, too.
                _ = phase.changed() => continue,
                Some(asked) = asking.join_next() => {
                    if let Err(error) = asked {
                        tracing::error!(%error, "a request was not asked: it is after the next opening");
                    }
                    continue;
                }
                () = self.taken.notified(), if found => continue,
                record = reader.next(), if more && asking.len() + untaken < self.most => record,
            };
            match record {
                Ok(record) if record.seq >= seqs.end => more = false,
                Ok(record) if self.spool.is_settled(CURSOR, record.seq) == Some(true) => {}
                Ok(record) => {
                    // Once here, so that they stand in line in their order.
                    let mut ask = Box::pin(Arc::clone(self).ask(Arc::clone(hub), record));
                    if poll_fn(|cx| Poll::Ready(ask.as_mut().poll(cx))).await.is_pending() {
                        asking.spawn(ask);
                    }
                }
                Err(ReadError::Damaged(damage)) => {
                    // What is not settled is found damaged once more after the next opening.
                    let _found_again = self.settle(damage.seqs.clone());
                    hub.log.tell(Event::SpoolDamaged { damage });
                }
                // Nothing goes of it that is not settled.
                Err(ReadError::Missed { .. }) => {}
                Err(error) => more = may_read_on(error, &self.spool, hub).await,
            }
        }
        // The socket has closed, which ends them.
        while asking.join_next().await.is_some() {}
    }

    /// Asks one peer after another, until there is an answer or the socket closes.
    async fn ask(self: Arc<Self>, hub: Arc<Hub<Requester>>, Record { seq, incarnation, message, .. }: Record) {
        let id = MessageId { stream: self.spool.stream(), incarnation, seq };
        let mut back_off = BackOff::new(hub.options.reconnect);
        let (try_for, mut lost) = (hub.options.timeout.max(TRY_AT_LEAST), self.spool.noted(CURSOR, seq));
        let result = loop {
            let tag = RequestTag { id, floor: self.spool.settled(CURSOR).unwrap_or(0) };
            match ask_once(&hub, Body::from(&message), Some(tag), try_for).await {
                Err(RequestError::Closed) => return,
                Err(RequestError::TimedOut) => {}
                Err(error @ (RequestError::PeerLost | RequestError::Refused(RefusalReason::Dropped))) => {
                    lost = lost.saturating_add(1);
                    if lost >= hub.options.attempts {
                        break Err(error);
                    }
                    // One that is not noted is counted anew after a restart.
                    let _not_noted = self.spool.note(CURSOR, seq, lost);
                    if !pause(&hub, back_off.delay()).await {
                        return;
                    }
                }
                result => break result,
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

    pub(crate) async fn end(&self) {
        match self.spool.close().await {
            Ok(()) | Err(SpoolError::Closed) => {}
            Err(error) => tracing::warn!(%error, "a spool was not closed in order"),
        }
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

/// What a request has come to, until the application has [acknowledged](Self::ack) it. Dropped before that, it is given
/// back: [`recover`](crate::Req::recover) hands it out again, in this life of the socket or, asked anew, in the next.
///
/// Of a socket without a directory it is acknowledged already.
pub struct Answered {
    id: Option<MessageId>,
    request: Message,
    result: Result<Message, RequestError>,
    /// None when it is acknowledged, or waits to be recovered.
    of: Option<Arc<Requests>>,
}

impl Answered {
    /// Of a socket that has no directory.
    pub(crate) fn plain(request: Message, answer: Message) -> Self {
        Self { id: None, request, result: Ok(answer), of: None }
    }

    /// Which request it was, however often it was asked; `None` of a socket without a directory. Whoever answered it knows
    /// it by the same: [`Request::id`](crate::Request::id).
    pub fn id(&self) -> Option<MessageId> {
        self.id
    }

    /// What was asked.
    pub fn request(&self) -> &Message {
        &self.request
    }

    /// The answer.
    ///
    /// # Errors
    /// When there will be none: it was refused, or no peer that it was asked of lived to answer it, so often that it is
    /// given up.
    pub fn answer(&self) -> Result<&Message, &RequestError> {
        self.result.as_ref()
    }

    /// The application is done with it: the request goes from the directory, and is not asked again. A crash in the next
    /// moments may undo that.
    ///
    /// # Errors
    /// When the directory is closed or has failed: it is asked again after the next opening.
    pub fn ack(mut self) -> Result<(), AckError> {
        self.settle()
    }

    /// Why there will be no answer, which is acknowledged with that.
    pub(crate) fn refused(self) -> RequestError {
        self.take().err().unwrap_or(RequestError::Closed)
    }

    /// The answer, which is acknowledged with that.
    pub(crate) fn take(mut self) -> Result<Message, RequestError> {
        // It is handed out in any case. If it was not settled it is asked again after the next opening.
        let _asked_again = self.settle();
        std::mem::replace(&mut self.result, Err(RequestError::Closed))
    }

    fn settle(&mut self) -> Result<(), AckError> {
        match (self.of.take(), self.id) {
            (Some(of), Some(id)) => of.settle(id.seq..id.seq + 1),
            _ => Ok(()),
        }
    }
}

impl Drop for Answered {
    fn drop(&mut self) {
        let Some(of) = self.of.take() else { return };
        let result = std::mem::replace(&mut self.result, Err(RequestError::Closed));
        of.keep(Self { id: self.id, request: std::mem::take(&mut self.request), result, of: None });
    }
}

impl fmt::Debug for Answered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answered").field("id", &self.id).field("result", &self.result).finish_non_exhaustive()
    }
}
