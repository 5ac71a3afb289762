//! Where a socket's messages are until they are confirmed: between the spool and the rules of delivery.
//!
//! ```text
//!   send --> spool --> keeper's task --feed--> Deliveries --> links
//!             ^                                    |
//!             +--- settle, note <--- heard <-------+ outcomes, as soon as the hub's lock is given back
//!                                     dead letters, later tries: the task
//! ```

use std::{
    collections::{BTreeMap, HashMap},
    future::pending,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use ropewalk_patterns::{
    delivery::{Deliveries, Outcome, Why},
    push_pull::Push,
};
use tokio::{
    sync::{Notify, oneshot},
    time::{Instant, sleep_until},
};

#[cfg(feature = "spool")]
use super::disk;
use crate::{
    events::{DeadReason, Event},
    hub::{Hub, Phase},
};

/// What became of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fate {
    Confirmed,
    Rejected(Bytes),
    Exhausted,
    TooLarge,
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
pub(crate) struct Keeper {
    #[cfg(feature = "spool")]
    pub(crate) disk: Option<disk::OnDisk>,
    work: Mutex<Work>,
    notify: Notify,
    settled: AtomicU64,
}

#[derive(Debug, Default)]
struct Work {
    /// The rules have room for more.
    wants: bool,
    /// What cannot be seen to at once.
    todo: Vec<Outcome>,
    /// Those who wait for a message to be confirmed, by its seq.
    waiting: HashMap<u64, oneshot::Sender<Fate>>,
}

impl Keeper {
    /// In memory.
    pub(crate) fn in_memory() -> Self {
        Self::default()
    }

    /// In a directory.
    #[cfg(feature = "spool")]
    pub(crate) fn on_disk(disk: disk::OnDisk) -> Self {
        Self { disk: Some(disk), ..Self::default() }
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
        work.waiting.insert(seq, tell);
        fate
    }

    /// Messages that were confirmed.
    pub(crate) fn settled(&self) -> u64 {
        self.settled.load(Relaxed)
    }

    /// What the rules say, as soon as the hub's lock is given back.
    pub(crate) fn heard(&self, outcome: Outcome) {
        match outcome {
            Outcome::Settled(seqs) => {
                let count: u64 = seqs.iter().map(|range| range.end - range.start).sum();
                self.settled.fetch_add(count, Relaxed);
                #[cfg(feature = "spool")]
                if let Some(disk) = &self.disk {
                    disk.settle(&seqs);
                }
                let mut work = self.work();
                if !work.waiting.is_empty() {
                    seqs.iter().flatten().for_each(|seq| work.tell(seq, Fate::Confirmed));
                }
            }
            Outcome::Again { seq, attempt } => {
                #[cfg(feature = "spool")]
                if let Some(disk) = &self.disk {
                    disk.note(seq, attempt);
                }
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

    /// Feeds the rules and sees to what takes time, until the socket has ended.
    pub(crate) async fn run(self: Arc<Self>, hub: Arc<Hub<Push>>) {
        let mut later = Later::default();
        let mut phase = hub.watch_phase();
        let mut source = self.source();
        self.work().wants = true;
        loop {
            let todo = std::mem::take(&mut self.work().todo);
            for outcome in todo.into_iter().chain(later.due()) {
                self.see_to(outcome, &hub, &mut later).await;
            }
            let now = *phase.borrow_and_update();
            if now == Phase::Ending {
                return;
            }
            if self.work().wants {
                // What the rules say while they are fed counts.
                self.work().wants = false;
                if source.feed(&hub).await {
                    continue;
                }
                self.work().wants = true;
                if now > Phase::Open {
                    deliver(&hub, |deliveries| deliveries.has_more(false));
                }
            }
            let wants = self.work().wants;
            tokio::select! {
                () = self.notify.notified() => {}
                // An error is the end of the socket, which the next turn finds.
                _ = phase.changed() => {}
                () = later.next() => {}
                () = source.more(&hub), if wants => {}
            }
        }
    }

    async fn see_to(&self, outcome: Outcome, hub: &Arc<Hub<Push>>, later: &mut Later) {
        match outcome {
            Outcome::Later { flight, millis: 0 } => deliver(hub, |deliveries| deliveries.again(flight)),
            Outcome::Later { flight, millis } => {
                let seq = flight.seq;
                later.add(seq, Outcome::Later { flight, millis: 0 }, Duration::from_millis(millis));
            }
            Outcome::Dead { flight, why } => {
                #[cfg(feature = "spool")]
                if let Some(disk) = &self.disk
                    && let Err(error) = disk.bury(&flight, &why).await
                {
                    tracing::error!(%error, "a dead letter cannot be kept; it is tried again");
                    later.add(flight.seq, Outcome::Dead { flight, why }, RETRY);
                    return;
                }
                self.work().tell(flight.seq, Fate::from(&why));
                let reason = DeadReason::from(&why);
                hub.log.tell(Event::DeadLetter { seq: flight.seq, attempts: flight.attempt, reason });
                hub.act(|pattern, core| {
                    if !self.is_on_disk() {
                        ropewalk_patterns::Turn::lose(core, 1);
                    }
                    pattern.deliver(core, |deliveries, core| deliveries.settle(flight.seq, core));
                });
            }
            Outcome::Forked { incarnation } => {
                #[cfg(feature = "spool")]
                if let Some(disk) = &self.disk {
                    disk.fork(hub, incarnation).await;
                }
                let _only_a_disk_is_copied = incarnation;
            }
            Outcome::Settled(_) | Outcome::Again { .. } | Outcome::Wants => {}
        }
    }

    pub(crate) fn is_on_disk(&self) -> bool {
        #[cfg(feature = "spool")]
        return self.disk.is_some();
        #[cfg(not(feature = "spool"))]
        false
    }

    #[cfg(feature = "spool")]
    fn source(&self) -> disk::Source {
        self.disk.as_ref().map_or_else(disk::Source::none, disk::OnDisk::source)
    }

    #[cfg(not(feature = "spool"))]
    fn source(&self) -> NoSource {
        NoSource
    }

    /// How many messages are in the directory, if there is one.
    pub(crate) fn spooled(&self) -> Option<u64> {
        #[cfg(feature = "spool")]
        return self.disk.as_ref().map(disk::OnDisk::unsettled);
        #[cfg(not(feature = "spool"))]
        None
    }

    pub(crate) async fn end(&self) {
        self.work().waiting.clear();
        #[cfg(feature = "spool")]
        if let Some(disk) = &self.disk {
            disk.end().await;
        }
    }
}

impl Work {
    fn tell(&mut self, seq: u64, fate: Fate) {
        if let Some(waiting) = self.waiting.remove(&seq) {
            // Who no longer waits need not know.
            let _gone = waiting.send(fate);
        }
    }
}

/// How long until something that failed is tried again.
#[cfg(feature = "spool")]
const RETRY: Duration = Duration::from_secs(1);

/// Does something with the deliveries of a socket, and gives peers what follows from it.
fn deliver(hub: &Hub<Push>, act: impl FnOnce(&mut Deliveries)) {
    hub.act(|pattern, core| pattern.deliver(core, |deliveries, _| act(deliveries)));
}

/// What is to be seen to after a while.
#[derive(Debug, Default)]
struct Later(BTreeMap<(Instant, u64), Outcome>);

impl Later {
    fn add(&mut self, seq: u64, outcome: Outcome, delay: Duration) {
        let now = Instant::now();
        let at = now.checked_add(delay).unwrap_or(now + Duration::from_secs(86_400 * 365 * 30));
        self.0.insert((at, seq), outcome);
    }

    fn due(&mut self) -> Vec<Outcome> {
        let later = self.0.split_off(&(Instant::now(), u64::MAX));
        std::mem::replace(&mut self.0, later).into_values().collect()
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
struct NoSource;

#[cfg(not(feature = "spool"))]
impl NoSource {
    async fn feed(&mut self, _: &Hub<Push>) -> bool {
        false
    }

    async fn more(&mut self, _: &Hub<Push>) {
        pending::<()>().await;
    }
}
