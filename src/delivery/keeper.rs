//! Where a socket's messages are until they are confirmed: between the spool and the rules of delivery.
//!
//! ```text
//!   send --> spool --> lane's task --feed--> Deliveries --> links
//!             ^                                  |
//!             +--- settle, note <--- heard <-----+ outcomes, as soon as the hub's lock is given back
//!                                     dead letters, later tries: the task
//! ```
//! A socket that pushes has one lane, one that publishes has one for each subscriber.

use std::sync::Arc;

use ropewalk_patterns::{delivery::Outcome, push_pull::Push};
use tokio::sync::oneshot;

#[cfg(not(feature = "spool"))]
use super::lane::Source;
use super::lane::{Counts, Fate, Lane};
#[cfg(feature = "spool")]
use super::{
    disk::{OnDisk, PUSH, Source},
    followers::Followers,
};
use crate::hub::Hub;

#[derive(Debug, Default)]
pub(crate) struct Keeper {
    #[cfg(feature = "spool")]
    pub(crate) disk: Option<Arc<OnDisk>>,
    /// Of a socket that pushes.
    lane: Arc<Lane>,
    /// Of a socket that publishes.
    #[cfg(feature = "spool")]
    pub(crate) followers: Option<Arc<Followers>>,
    counts: Arc<Counts>,
}

impl Keeper {
    /// What is pushed is kept in memory.
    #[cfg_attr(not(feature = "spool"), allow(clippy::needless_update, reason = "there are no directories"))]
    pub(crate) fn in_memory() -> Self {
        let counts = Arc::<Counts>::default();
        let lane = Arc::new(Lane::in_memory(Arc::clone(&counts)));
        Self { lane, counts, ..Self::default() }
    }

    /// What is pushed is kept in a directory.
    #[cfg(feature = "spool")]
    pub(crate) fn pushing(disk: OnDisk) -> Self {
        let (disk, counts) = (Arc::new(disk), Arc::<Counts>::default());
        let lane = Lane::on_disk(Arc::clone(&disk), Some(PUSH), None, Arc::clone(&counts));
        Self { lane: Arc::new(lane), disk: Some(disk), counts, ..Self::default() }
    }

    /// What is published is kept in a directory.
    #[cfg(feature = "spool")]
    pub(crate) fn publishing(disk: OnDisk) -> Self {
        let (disk, counts) = (Arc::new(disk), Arc::<Counts>::default());
        let followers = Arc::new(Followers::new(Arc::clone(&disk), Arc::clone(&counts)));
        Self { disk: Some(disk), followers: Some(followers), counts, ..Self::default() }
    }

    /// What became of the message with this seq, which is not given to anybody yet.
    pub(crate) fn wait_for(&self, seq: u64) -> oneshot::Receiver<Fate> {
        self.lane.wait_for(seq)
    }

    /// Messages that were confirmed.
    pub(crate) fn confirmed(&self) -> u64 {
        self.counts.confirmed()
    }

    /// Messages that were given up, and are with the dead letters if there is a directory.
    pub(crate) fn dead(&self) -> u64 {
        self.counts.dead()
    }

    /// What the rules say.
    pub(crate) fn heard(&self, outcome: Outcome) {
        self.lane.heard(outcome);
    }

    /// Sees to what is pushed, until the socket has ended.
    pub(crate) async fn run(self: Arc<Self>, hub: Arc<Hub<Push>>) {
        #[cfg(feature = "spool")]
        let source = self.disk.as_ref().map_or_else(Source::none, |disk| disk.source(PUSH));
        #[cfg(not(feature = "spool"))]
        let source = Source::none();
        #[cfg(feature = "spool")]
        if let Some(disk) = &self.disk {
            // In an earlier life, which did not come to say so.
            self.lane.miss(&hub, disk.take_missed());
        }
        Arc::clone(&self.lane).run(hub, source).await;
    }

    pub(crate) fn is_on_disk(&self) -> bool {
        #[cfg(feature = "spool")]
        return self.disk.is_some();
        #[cfg(not(feature = "spool"))]
        false
    }

    /// How many messages in the directory are not confirmed, if there is one.
    pub(crate) fn spooled(&self) -> Option<u64> {
        #[cfg(feature = "spool")]
        return self.disk.as_ref().map(|disk| disk.unsettled());
        #[cfg(not(feature = "spool"))]
        None
    }

    pub(crate) async fn end(&self) {
        self.lane.end();
        #[cfg(feature = "spool")]
        {
            if let Some(followers) = &self.followers {
                followers.end().await;
            }
            if let Some(disk) = &self.disk {
                disk.end().await;
            }
        }
    }
}
