//! The subscribers of a publisher with a directory: each reads what was published from where it is, and settles it under its
//! name.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use ropewalk_patterns::{
    Peer,
    delivery::{Followed, Following, Start},
    pub_sub::Pub,
};
use tokio::runtime::Handle;

use super::{
    disk::{OnDisk, Source},
    lane::{Counts, Lane},
    tasks::Tasks,
};
use crate::{events::Event, hub::Hub};

#[derive(Debug)]
pub(crate) struct Followers {
    disk: Arc<OnDisk>,
    counts: Arc<Counts>,
    runtime: Handle,
    state: Mutex<State>,
    /// Of those that are there, and of some that are gone.
    tasks: Tasks,
}

#[derive(Debug, Default)]
struct State {
    by_peer: HashMap<Peer, Follower>,
    /// The names of those that are gone and whose tasks still see to what became of their last messages.
    ending: Vec<Bytes>,
}

#[derive(Debug, Default)]
struct Follower {
    /// What was published from here on is for it, unless it says otherwise.
    since: Option<u64>,
    resumed: Option<(Bytes, Start)>,
    lane: Option<Arc<Lane>>,
    /// Nobody reads for it any more, though it is there.
    ended: bool,
}

impl Follower {
    fn name(&self) -> Option<&Bytes> {
        self.resumed.as_ref().map(|(name, _)| name).filter(|name| !name.is_empty())
    }
}

impl State {
    /// Whether somebody reads for a subscriber of this name.
    fn is_read_for(&self, name: &Bytes) -> bool {
        self.ending.contains(name)
            || self.by_peer.values().any(|follower| follower.lane.is_some() && follower.name() == Some(name))
    }

    /// Who waits until its predecessor of this name is gone. If it is on its way out itself, the next follows it.
    fn waiting(&self, name: &Bytes) -> Option<Peer> {
        let waits = |follower: &Follower| follower.lane.is_none() && follower.name() == Some(name);
        self.by_peer.iter().find(|(_, follower)| waits(follower)).map(|(&peer, _)| peer)
    }
}

impl Followers {
    pub(super) fn new(disk: Arc<OnDisk>, counts: Arc<Counts>) -> Self {
        Self { disk, counts, runtime: Handle::current(), state: Mutex::default(), tasks: Tasks::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For how many of these it is known from where on they get what is published. Until then what comes may be before that.
    pub(crate) fn known(&self, peers: &[Peer]) -> usize {
        let state = self.state();
        let known = |peer| state.by_peer.get(peer).is_some_and(|follower: &Follower| follower.since.is_some());
        peers.iter().filter(|peer| known(peer)).count()
    }

    /// What the rules say, as soon as the hub's lock is given back.
    pub(crate) fn heard(self: &Arc<Self>, hub: &Arc<Hub<Pub>>, Followed { peer, what }: Followed) {
        let mut state = self.state();
        match what {
            Following::Subscribed => {
                state.by_peer.entry(peer).or_default().since = Some(self.disk.spool.accepted());
                self.begin(state, hub, peer);
            }
            Following::Resumed { name, start } => {
                state.by_peer.entry(peer).or_default().resumed = Some((name, start));
                self.begin(state, hub, peer);
            }
            Following::Left => {
                let Some(gone) = state.by_peer.remove(&peer) else { return };
                let name = gone.name().cloned();
                match gone.lane.filter(|_| !gone.ended) {
                    // A message that came to its end with the link is buried before another reads on under this name.
                    Some(lane) => {
                        state.ending.extend(name);
                        drop(state);
                        lane.leave();
                    }
                    None => self.begin_next(state, hub, name.as_ref()),
                }
            }
            Following::Outcome(outcome) => {
                let lane = state.by_peer.get(&peer).and_then(|follower| follower.lane.clone());
                drop(state);
                if let Some(lane) = lane {
                    lane.heard(outcome);
                }
            }
        }
    }

    /// Once a subscriber has said what it wants and from where on, and its predecessor of the same name is gone, somebody
    /// reads for it. Before that it is not known how often the predecessor was given what it has not confirmed.
    fn begin(self: &Arc<Self>, mut state: MutexGuard<'_, State>, hub: &Arc<Hub<Pub>>, peer: Peer) {
        let Some(follower) = state.by_peer.get(&peer).filter(|follower| follower.lane.is_none()) else { return };
        let (Some(since), Some((name, start))) = (follower.since, follower.resumed.clone()) else { return };
        if state.is_read_for(&name) {
            return;
        }
        // A name on the wire is text.
        let cursor = (!name.is_empty()).then(|| String::from_utf8_lossy(&name));
        let (disk, counts) = (Arc::clone(&self.disk), Arc::clone(&self.counts));
        let lane = Arc::new(Lane::on_disk(disk, cursor.as_deref(), Some(peer), counts));
        state.by_peer.entry(peer).or_default().lane = Some(Arc::clone(&lane));
        let (followers, hub) = (Arc::clone(self), Arc::clone(hub));
        let task = self.runtime.spawn(async move {
            // Only once it runs: a runtime that shuts down drops it here, under the lock.
            let ends = Ends { followers, hub, peer, name };
            let Ends { followers, hub, .. } = &ends;
            match followers.source(lane.cursor.as_deref(), start, since).await {
                Ok(source) => {
                    if let Some(cursor) = &lane.cursor {
                        // What went while it was away.
                        lane.miss(hub, followers.disk.spool.take_missed(cursor));
                    }
                    lane.run(Arc::clone(hub), source).await;
                }
                Err(error) => {
                    let name = lane.cursor.as_deref().unwrap_or_default().into();
                    hub.log.tell(Event::SubscriberNotKept { name, error });
                    // It may come again, when there is room for it.
                    hub.act(|_, core| ropewalk_patterns::Turn::relink(core, peer));
                }
            }
        });
        self.tasks.own(task);
    }

    /// If somebody of this name waits for its turn, it is there.
    fn begin_next(self: &Arc<Self>, state: MutexGuard<'_, State>, hub: &Arc<Hub<Pub>>, name: Option<&Bytes>) {
        if let Some(next) = name.and_then(|name| state.waiting(name)) {
            self.begin(state, hub, next);
        }
    }

    /// Nobody reads for this peer any more.
    fn ended(self: &Arc<Self>, hub: &Arc<Hub<Pub>>, peer: Peer, name: &Bytes) {
        let mut state = self.state();
        if let Some(follower) = state.by_peer.get_mut(&peer) {
            follower.ended = true;
            return;
        }
        if let Some(place) = state.ending.iter().position(|ending| ending == name) {
            state.ending.swap_remove(place);
            self.begin_next(state, hub, Some(name));
        }
    }

    /// Where this subscriber reads on.
    async fn source(&self, cursor: Option<&str>, start: Start, since: u64) -> Result<Source, String> {
        let spool = &self.disk.spool;
        let new = cursor.filter(|cursor| spool.settled(cursor).is_none());
        // A name goes on where it was, wherever it would begin if it were new: a program says the same each time it starts.
        let start = if cursor.is_some() && new.is_none() { Start::Cursor } else { start };
        if let Some(cursor) = new {
            // From now on nothing goes that is before it.
            spool.cursor(cursor).await.map_err(|error| error.to_string())?;
        }
        let from = match start {
            Start::Cursor if new.is_some() => since,
            Start::Cursor => cursor.and_then(|cursor| spool.settled(cursor)).unwrap_or(since),
            Start::Earliest => 0,
            Start::Seq(seq) => seq,
            Start::Time(millis) => {
                let time = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(millis));
                let at = spool.seq_at(time.unwrap_or(SystemTime::UNIX_EPOCH)).await;
                at.map_err(|error| error.to_string())?
            }
            _ => since,
        };
        if let Some(cursor) = new {
            // What is not for it is not kept for it.
            spool.settle(cursor, 0..from).map_err(|error| error.to_string())?;
        }
        Ok(match cursor {
            Some(_) => self.disk.source_from(from, if start == Start::Cursor { u64::MAX } else { 0 }),
            None => self.disk.unheld_source_from(from, since),
        })
    }

    pub(super) async fn end(&self) {
        // One that ends may begin another.
        self.tasks.join().await;
    }
}

/// The task that reads for a subscriber. However it ends, who waits for the name hears of it.
struct Ends {
    followers: Arc<Followers>,
    hub: Arc<Hub<Pub>>,
    peer: Peer,
    name: Bytes,
}

impl Drop for Ends {
    fn drop(&mut self) {
        self.followers.ended(&self.hub, self.peer, &self.name);
    }
}
