//! One way that messages go: to all receivers of a socket that pushes, or to one subscriber. It feeds the rules of
//! delivery and does what they say.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    future::pending,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use ropewalk_patterns::{
    Peer,
    delivery::{Deliveries, Flight, Keeps, Outcome, Why},
};
use tokio::{
    sync::{Notify, oneshot},
    task::{JoinError, JoinSet},
    time::{Instant, sleep_until, timeout},
};
#[cfg(feature = "spool")]
use {ropewalk_patterns::ranges::Ranges, std::ops::Range};

use super::FOR_A_DISK;
#[cfg(feature = "spool")]
use super::disk::{Fed, OnDisk, Source};
use crate::{
    events::{DeadReason, Event},
    hub::{Hub, Phase},
    sockets::deadline,
};

/// How long until something that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// What became of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fate {
    Confirmed,
    Rejected(Bytes),
    Exhausted,
    TooLarge,
    /// There was no room for it any more.
    #[cfg(feature = "spool")]
    Dropped,
}

impl From<&Why> for Fate {
    fn from(why: &Why) -> Self {
        match why {
            Why::Rejected(reason) => Self::Rejected(reason.clone()),
            Why::TooLarge => Self::TooLarge,
            _ => Self::Exhausted,
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Lane {
    /// The subscriber, if it is one's.
    pub(super) only: Option<Peer>,
    #[cfg(feature = "spool")]
    pub(super) disk: Option<Arc<OnDisk>>,
    /// Whose progress is kept on disk, and under which name; none for a subscriber without one.
    #[cfg(feature = "spool")]
    pub(super) cursor: Option<Box<str>>,
    work: Mutex<Work>,
    notify: Notify,
    pub(super) counts: Arc<Counts>,
}

/// What became of messages, of all lanes of a socket.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// Confirmed, or given up.
    settled: AtomicU64,
    /// Given up.
    dead: AtomicU64,
}

impl Counts {
    pub(super) fn confirmed(&self) -> u64 {
        self.settled.load(Relaxed).saturating_sub(self.dead())
    }

    pub(super) fn dead(&self) -> u64 {
        self.dead.load(Relaxed)
    }
}

#[derive(Debug, Default)]
struct Work {
    /// The rules have room for more.
    wants: bool,
    /// The subscriber is gone; until when what it came to may take.
    left: Option<Instant>,
    /// Nobody sees to anything any more.
    ended: bool,
    /// What cannot be seen to at once.
    todo: Vec<Outcome>,
    /// What could not be settled, and when it is tried again: others may have closed gaps by then.
    #[cfg(feature = "spool")]
    refused: Option<(Instant, Ranges)>,
    /// Those who wait for a message to be confirmed, by its seq.
    waiting: HashMap<u64, oneshot::Sender<Fate>>,
}

impl Work {
    fn tell(&mut self, seq: u64, fate: Fate) {
        if let Some(waiting) = self.waiting.remove(&seq) {
            // Who no longer waits need not know.
            let _gone = waiting.send(fate);
        }
    }
}

impl Lane {
    pub(super) fn in_memory(counts: Arc<Counts>) -> Self {
        Self { counts, ..Self::default() }
    }

    #[cfg(feature = "spool")]
    pub(super) fn on_disk(disk: Arc<OnDisk>, cursor: Option<&str>, only: Option<Peer>, counts: Arc<Counts>) -> Self {
        Self { only, disk: Some(disk), cursor: cursor.map(Box::from), counts, ..Self::default() }
    }

    fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What became of the message with this seq, which is not given to anybody yet.
    pub(crate) fn wait_for(&self, seq: u64) -> oneshot::Receiver<Fate> {
        let (tell, fate) = oneshot::channel();
        let mut work = self.work();
        if work.waiting.len() == work.waiting.capacity() {
            work.waiting.retain(|_, waiting| !waiting.is_closed());
        }
        // One who comes at the last moment is told at once that the socket has closed.
        if !work.ended {
            work.waiting.insert(seq, tell);
        }
        fate
    }

    /// Nobody waits any more.
    pub(super) fn end(&self) {
        let mut work = self.work();
        work.ended = true;
        work.waiting.clear();
    }

    /// The subscriber is gone.
    #[cfg(feature = "spool")]
    pub(super) fn leave(&self) {
        self.work().left = Some(deadline(FOR_A_DISK));
        self.notify.notify_one();
    }

    /// If the subscriber is gone, until when, and whether nothing more is to be seen to: what it came to is there before.
    fn has_left(&self) -> (Option<Instant>, bool) {
        let work = self.work();
        (work.left, work.todo.is_empty())
    }

    /// What the rules say, as soon as the hub's lock is given back.
    pub(super) fn heard(&self, outcome: Outcome) {
        match outcome {
            Outcome::Settled(seqs) => {
                let count: u64 = seqs.iter().map(|range| range.end - range.start).sum();
                self.counts.settled.fetch_add(count, Relaxed);
                #[cfg(feature = "spool")]
                self.settle(&seqs);
                let mut work = self.work();
                if !work.waiting.is_empty() {
                    seqs.iter().flatten().for_each(|seq| work.tell(seq, Fate::Confirmed));
                }
            }
            Outcome::Again { seq, attempt } => {
                #[cfg(feature = "spool")]
                self.note(seq, attempt);
                let _only_disks_note = (seq, attempt);
            }
            Outcome::Wants => {
                self.work().wants = true;
                self.notify.notify_one();
            }
            other => {
                self.work().todo.push(other);
                self.notify.notify_one();
            }
        }
    }

    #[cfg(feature = "spool")]
    pub(super) fn settle(&self, seqs: &Ranges) {
        let (Some(disk), Some(cursor)) = (&self.disk, &self.cursor) else { return };
        let refused = disk.settle(cursor, seqs);
        if !refused.is_empty() {
            self.work().refused.get_or_insert_with(|| (deadline(RETRY), Ranges::default())).1.extend(&refused);
            self.notify.notify_one();
        }
    }

    /// Settles what was refused, after a while.
    async fn settle_refused(&self) {
        #[cfg(feature = "spool")]
        {
            let again_at = self.work().refused.as_ref().map(|(at, _)| *at);
            if let Some(at) = again_at {
                sleep_until(at).await;
                let refused = self.work().refused.take();
                return refused.into_iter().for_each(|(_, refused)| self.settle(&refused));
            }
        }
        pending::<()>().await;
    }

    #[cfg(feature = "spool")]
    fn note(&self, seq: u64, attempt: u32) {
        if let (Some(disk), Some(cursor)) = (&self.disk, &self.cursor) {
            // One that is not noted is counted from the second again after a restart.
            let _not_noted = disk.spool.note(cursor, seq, attempt);
        }
    }

    /// So many records are not there any more: the subscriber hears of it, or else those who sent them.
    #[cfg(feature = "spool")]
    pub(super) fn miss<P: Keeps>(&self, hub: &Hub<P>, records: u64) {
        if records > 0 {
            hub.act(|_, core| match self.only {
                Some(peer) => ropewalk_patterns::Turn::miss(core, peer, records),
                None => ropewalk_patterns::Turn::lose(core, records),
            });
        }
    }

    /// Who waits for one of these waits in vain.
    #[cfg(feature = "spool")]
    pub(super) fn drop_those(&self, seqs: &Range<u64>) {
        let mut work = self.work();
        let dropped: Vec<u64> = work.waiting.keys().copied().filter(|seq| seqs.contains(seq)).collect();
        dropped.into_iter().for_each(|seq| work.tell(seq, Fate::Dropped));
    }

    /// Does something with the deliveries, and gives peers what follows from it.
    pub(super) fn deliver<P: Keeps>(&self, hub: &Hub<P>, act: impl FnOnce(&mut Deliveries)) {
        hub.act(|pattern, core| pattern.deliver(self.only, core, |deliveries, _| act(deliveries)));
    }

    /// Feeds the rules and sees to what takes time, until the socket has ended or the subscriber is gone.
    pub(super) async fn run<P: Keeps>(self: Arc<Self>, hub: Arc<Hub<P>>, mut source: Source) {
        let (mut later, mut burials) = (Later::default(), Burials::default());
        let mut phase = hub.watch_phase();
        self.work().wants = true;
        loop {
            let todo = std::mem::take(&mut self.work().todo);
            for outcome in todo.into_iter().chain(later.due()) {
                self.see_to(outcome, &hub, &mut later, &mut burials).await;
            }
            while let Some(buried) = burials.under_way.try_join_next() {
                self.was_buried(buried, &hub, &mut later);
            }
            burials.go_on(&self);
            let now = *phase.borrow_and_update();
            if now == Phase::Ending {
                // What was begun is done, unless the disk is full.
                let _in_time = timeout(FOR_A_DISK, self.bury_all(&hub, &mut later, &mut burials)).await;
                return source.end(&self, &hub);
            }
            if let (Some(until), nothing_left) = self.has_left() {
                // What came to its end with the link is buried first.
                let buries = !burials.under_way.is_empty() || !later.is_empty_of_dead();
                if nothing_left && (!buries || Instant::now() >= until) {
                    return;
                }
                if nothing_left {
                    tokio::select! {
                        _ = phase.changed() => {}
                        () = later.next() => {}
                        () = sleep_until(until) => {}
                        Some(buried) = burials.under_way.join_next() => self.was_buried(buried, &hub, &mut later),
                    }
                }
                continue;
            }
            if self.work().wants {
                // What the rules say while they are fed counts.
                self.work().wants = false;
                match source.feed(&self, &hub).await {
                    Fed::Some => continue,
                    Fed::Gap => {
                        self.work().wants = true;
                        continue;
                    }
                    Fed::NoRoom => {}
                    Fed::Nothing => {
                        self.work().wants = true;
                        if now > Phase::Open {
                            self.deliver(&hub, |deliveries| deliveries.has_more(false));
                        }
                    }
                }
            }
            let wants = self.work().wants;
            tokio::select! {
                () = self.notify.notified() => {}
                // An error is the end of the socket, which the next turn finds.
                _ = phase.changed() => {}
                () = later.next() => {}
                () = source.more(&self, &hub), if wants => {}
                () = self.settle_refused() => {}
                Some(buried) = burials.under_way.join_next() => self.was_buried(buried, &hub, &mut later),
            }
        }
    }

    async fn see_to<P: Keeps>(&self, outcome: Outcome, hub: &Arc<Hub<P>>, later: &mut Later, burials: &mut Burials) {
        match outcome {
            Outcome::Later { flight, millis: 0 } => self.deliver(hub, |deliveries| deliveries.again(flight)),
            Outcome::Later { flight, millis } => {
                let seq = flight.seq;
                later.add(seq, Outcome::Later { flight, millis: 0 }, Duration::from_millis(millis));
            }
            Outcome::Dead { flight, why } => burials.waiting.push_back((flight, why)),
            Outcome::Forked { incarnation } => {
                #[cfg(feature = "spool")]
                if let Some(disk) = &self.disk {
                    disk.fork(hub).await;
                }
                tracing::warn!(incarnation, "a receiver knows of another life of this stream");
            }
            Outcome::Settled(_) | Outcome::Again { .. } | Outcome::Wants => {}
        }
    }

    /// Puts a message to the dead letters, if there is a directory. Its number there.
    #[cfg_attr(not(feature = "spool"), allow(clippy::unused_async, reason = "there are no directories"))]
    async fn bury(&self, flight: &Flight, why: &Why) -> Result<Option<u64>, String> {
        #[cfg(feature = "spool")]
        if let Some(disk) = &self.disk {
            return disk.bury(self.cursor.as_deref(), flight, why).await.map(Some);
        }
        let _nowhere = (flight, why);
        Ok(None)
    }

    async fn bury_all<P: Keeps>(self: &Arc<Self>, hub: &Arc<Hub<P>>, later: &mut Later, burials: &mut Burials) {
        while let Some(buried) = burials.under_way.join_next().await {
            self.was_buried(buried, hub, later);
            burials.go_on(self);
        }
    }

    /// A message is with the dead letters, or could not be put there.
    fn was_buried<P: Keeps>(&self, buried: Result<Buried, JoinError>, hub: &Arc<Hub<P>>, later: &mut Later) {
        let Buried { flight, why, number } = match buried {
            Ok(buried) => buried,
            Err(error) => {
                tracing::error!(%error, "a dead letter was not kept: it comes again after the next opening");
                return;
            }
        };
        let number = match number {
            Ok(number) => number,
            Err(error) => {
                #[cfg(feature = "spool")]
                hub.log.tell(Event::DeadLetterNotKept { seq: flight.seq, error });
                #[cfg(not(feature = "spool"))]
                tracing::error!(%error, "without a directory nothing keeps dead letters from being counted");
                later.add(flight.seq, Outcome::Dead { flight, why }, RETRY);
                return;
            }
        };
        // It is kept there now, whatever becomes of the peer it was for.
        #[cfg(feature = "spool")]
        self.settle(&Ranges::from(flight.seq..flight.seq + 1));
        self.work().tell(flight.seq, Fate::from(&why));
        self.counts.dead.fetch_add(1, Relaxed);
        let reason = DeadReason::from(&why);
        hub.log.tell(Event::DeadLetter { number, seq: flight.seq, attempts: flight.attempt, reason });
        let on_disk = self.is_on_disk();
        hub.act(|pattern, core| {
            if !on_disk {
                ropewalk_patterns::Turn::lose(core, 1);
            }
            pattern.deliver(self.only, core, |deliveries, core| deliveries.settle(flight.seq, core));
        });
    }

    pub(super) fn is_on_disk(&self) -> bool {
        #[cfg(feature = "spool")]
        return self.disk.is_some();
        #[cfg(not(feature = "spool"))]
        false
    }
}

/// Messages that are put to the dead letters, one after the other. The disk may be full: others go on meanwhile, and what
/// they are confirmed with may make the room.
#[derive(Debug, Default)]
struct Burials {
    waiting: VecDeque<(Flight, Why)>,
    /// One at most.
    under_way: JoinSet<Buried>,
}

impl Burials {
    fn go_on(&mut self, lane: &Arc<Lane>) {
        if self.under_way.is_empty()
            && let Some((flight, why)) = self.waiting.pop_front()
        {
            let lane = Arc::clone(lane);
            self.under_way.spawn(async move {
                let number = lane.bury(&flight, &why).await;
                Buried { flight, why, number }
            });
        }
    }
}

/// A message that was to be put to the dead letters, and its number there, or why it has none.
#[derive(Debug)]
struct Buried {
    flight: Flight,
    why: Why,
    number: Result<Option<u64>, String>,
}

/// What is to be seen to after a while.
#[derive(Debug, Default)]
struct Later(BTreeMap<(Instant, u64), Outcome>);

impl Later {
    fn add(&mut self, seq: u64, outcome: Outcome, delay: Duration) {
        self.0.insert((deadline(delay), seq), outcome);
    }

    fn due(&mut self) -> Vec<Outcome> {
        let later = self.0.split_off(&(Instant::now(), u64::MAX));
        std::mem::replace(&mut self.0, later).into_values().collect()
    }

    fn is_empty_of_dead(&self) -> bool {
        !self.0.values().any(|outcome| matches!(outcome, Outcome::Dead { .. }))
    }

    async fn next(&self) {
        match self.0.first_key_value() {
            Some((&(at, _), _)) => sleep_until(at).await,
            None => pending().await,
        }
    }
}

/// The application's verbs are the source.
#[cfg(not(feature = "spool"))]
#[derive(Debug)]
pub(super) struct Source;

/// What came of feeding the rules.
#[cfg(not(feature = "spool"))]
#[allow(dead_code, reason = "with a directory there is more")]
pub(super) enum Fed {
    Some,
    Nothing,
    Gap,
    NoRoom,
}

#[cfg(not(feature = "spool"))]
impl Source {
    pub(super) fn none() -> Self {
        Self
    }

    async fn feed<P: Keeps>(&mut self, _: &Lane, _: &Hub<P>) -> Fed {
        Fed::Nothing
    }

    async fn more<P: Keeps>(&mut self, _: &Lane, _: &Hub<P>) {
        pending::<()>().await;
    }

    fn end<P: Keeps>(&self, _: &Lane, _: &Hub<P>) {}
}
