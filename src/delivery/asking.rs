//! Asking what is kept: of one peer after the other, until it is answered.
//!
//! What was found and what comes are asked side by side, each in the order of their seqs and so many at once as may be
//! outstanding. What was found has nobody who waits for its answers: it is held back while too many wait to be taken.

use std::{future::poll_fn, ops::Range, pin::pin, sync::Arc, task::Poll, time::Duration};

use ropewalk_patterns::{
    Body, Message,
    delivery::{MessageId, RequestTag},
    extension::RefusalReason,
    req_rep::Unanswered,
};
use tokio::{
    select,
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{Answered, Requests, disk::may_read_on};
use crate::{
    endpoint::BackOff,
    error::RequestError,
    events::Event,
    hub::{Hub, Phase},
    sockets::{Asked, Requester, deadline},
    spool::{ReadError, Record},
};

/// No peer has less time for an answer, and none gets more by having had too little.
const TRY_AT_LEAST: Duration = Duration::from_millis(100);
const TRY_AT_MOST: Duration = Duration::from_secs(60 * 60);

/// Asks what comes, from this seq on, until the socket closes.
pub(super) async fn ask_new(requests: &Arc<Requests>, hub: &Arc<Hub<Requester>>, from: u64) {
    let (mut asking, mut reader, mut reads) = (Asking::new(requests, hub), requests.spool.read_from(from), true);
    while asking.is_open() {
        let has_room = asking.tasks.len() < requests.most;
        select! {
            _ = asking.changes() => {}
            read = reader.next(), if reads && has_room => match asking.ask(read).await {
                Ok(_) => {}
                Err(error) => reads = may_read_on(error, &requests.spool, hub).await,
            },
        }
    }
    asking.end().await;
}

/// Asks what was found, and then again what found no room for its answer, until the socket closes.
pub(super) async fn ask_found(requests: &Arc<Requests>, hub: &Arc<Hub<Requester>>, found: Range<u64>) {
    let (mut asking, mut reader) = (Asking::new(requests, hub), requests.spool.read_from(found.start));
    let (mut seqs, mut again, mut reads) = (found, false, true);
    // What is asked again goes one by one, for how large the answers are shows when they come; but none holds up others
    // for longer than this.
    let mut alone = None;
    while asking.is_open() {
        let has_room = reads && requests.has_room_for_found(asking.tasks.len());
        if has_room
            && seqs.is_empty()
            && alone.is_none()
            && let Some(seq) = requests.take_left()
        {
            (seqs, reader, again) = (seq..seq + 1, requests.spool.read_from(seq), true);
        }
        let read = select! {
            ended = asking.changes() => {
                alone = alone.filter(|(seq, _)| Some(*seq) != ended);
                continue;
            }
            () = sleep_until(alone.map_or_else(Instant::now, |(_, until)| until)), if alone.is_some() => {
                alone = None;
                continue;
            }
            () = requests.taken.notified() => continue,
            read = reader.try_next(), if has_room && !seqs.is_empty() => read.transpose(),
        };
        let Some(read) = read.filter(|read| read.as_ref().map_or(true, |record| record.seq < seqs.end)) else {
            seqs = 0..0;
            continue;
        };
        seqs.start = read.as_ref().map_or(seqs.start, |record| record.seq + 1);
        match asking.ask(read).await {
            Ok(None) => {}
            Ok(Some(seq)) => alone = again.then(|| (seq, deadline(hub.options.timeout))).or(alone),
            // What is asked again is read anew; the end of it all is told where new ones are read.
            Err(error @ ReadError::Io(_)) => reads = may_read_on(error, &requests.spool, hub).await,
            Err(_) => reads = false,
        }
    }
    asking.end().await;
}

/// Requests that are being asked.
struct Asking<'a> {
    requests: &'a Arc<Requests>,
    hub: &'a Arc<Hub<Requester>>,
    /// Each says whose it was.
    tasks: JoinSet<u64>,
    phase: watch::Receiver<Phase>,
}

impl<'a> Asking<'a> {
    fn new(requests: &'a Arc<Requests>, hub: &'a Arc<Hub<Requester>>) -> Self {
        Self { requests, hub, tasks: JoinSet::new(), phase: hub.watch_phase() }
    }

    fn is_open(&mut self) -> bool {
        *self.phase.borrow_and_update() == Phase::Open
    }

    /// Returns when one has ended, whose seq this is, or the socket closes.
    async fn changes(&mut self) -> Option<u64> {
        select! {
            // An error is the end of the socket, too.
            _ = self.phase.changed() => None,
            Some(asked) = self.tasks.join_next() => match asked {
                Ok(seq) => Some(seq),
                Err(error) => {
                    tracing::error!(%error, "a request was not asked: it is after the next opening");
                    None
                }
            },
        }
    }

    /// Asks what was read, unless it is settled. The seq, if it waits for its answer now.
    async fn ask(&mut self, read: Result<Record, ReadError>) -> Result<Option<u64>, ReadError> {
        let record = match read {
            Ok(record) => record,
            Err(ReadError::Damaged(damage)) => {
                // What is not settled is found damaged once more after the next opening.
                let _found_again = self.requests.settle(damage.seqs.clone());
                self.hub.log.tell(Event::SpoolDamaged { damage });
                return Ok(None);
            }
            // Nothing goes of it that is not settled.
            Err(ReadError::Missed { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let seq = record.seq;
        if self.requests.is_settled(seq) {
            return Ok(None);
        }
        // Once here, so that they stand in line in their order.
        let mut ask = Box::pin(until_answered(Arc::clone(self.requests), Arc::clone(self.hub), record));
        if poll_fn(|cx| Poll::Ready(ask.as_mut().poll(cx))).await.is_ready() {
            return Ok(None);
        }
        self.tasks.spawn(async move {
            ask.await;
            seq
        });
        Ok(Some(seq))
    }

    /// The socket has closed, which ends them.
    async fn end(mut self) {
        while self.tasks.join_next().await.is_some() {}
    }
}

/// Asks one peer after the other, until there is an answer or the socket closes.
async fn until_answered(requests: Arc<Requests>, hub: Arc<Hub<Requester>>, record: Record) {
    let Record { seq, incarnation, message, .. } = record;
    let id = MessageId { stream: requests.spool.stream(), incarnation, seq };
    let mut back_off = BackOff::new(hub.options.reconnect);
    let mut lost = requests.tries(seq);
    // It may have taken too long in an earlier life: then it has more time in this one.
    let mut patience = longer(hub.options.timeout.max(TRY_AT_LEAST), 1 << lost.min(4));
    let result = loop {
        let tag = RequestTag { id, floor: requests.floor() };
        let error = match once(&hub, &message, tag, patience).await {
            Err(RequestError::Closed) => return,
            // Whoever waits may have it smaller. What nobody waits for may find a peer that takes it.
            Err(RequestError::TooLarge(message)) if !requests.is_awaited(seq) => RequestError::TooLarge(message),
            Err(error @ (RequestError::PeerLost | RequestError::TimedOut)) => error,
            Err(error @ RequestError::Refused(RefusalReason::Dropped)) => error,
            result => break result,
        };
        lost = lost.saturating_add(1);
        if lost >= hub.options.attempts {
            break Err(error);
        }
        requests.tried(seq, lost);
        if error == RequestError::TimedOut {
            // A peer that is only slow has twice the time now: else its answers would always come too late.
            patience = longer(patience, 2);
        } else if !pause(&hub, back_off.delay()).await {
            return;
        }
    };
    requests.hand_out(Answered { id: Some(id), request: message, result, of: Some(Arc::clone(&requests)) });
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
