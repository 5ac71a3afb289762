//! Deliveries to each of many peers, of one stream.

use alloc::{collections::BTreeMap, vec::Vec};

use bytes::Bytes;

use super::{Deliveries, Of, Outcome, Rules, Start, StreamId};
use crate::{
    credit::Tally,
    misbehaved::Misbehaved,
    pattern::Peer,
    turn::{Action, Room, Turn},
    zmtp::Command,
};

/// What happens to a peer that has deliveries of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Followed {
    /// Which.
    pub peer: Peer,
    /// What.
    pub what: Following,
}

/// What happens to one who follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Following {
    /// It has said for the first time what it wants.
    Subscribed,
    /// It has said where it wants to begin.
    Resumed {
        /// Its name; empty if it has none.
        name: Bytes,
        /// Where.
        start: Start,
    },
    /// It is gone.
    Left,
    /// What became of its messages.
    Outcome(Outcome),
}

impl From<Of> for Followed {
    fn from(Of(peer, outcome): Of) -> Self {
        // Each peer has its own deliveries, which know whose they are.
        let nobody = Peer { slot: u32::MAX, generation: u32::MAX };
        Self { peer: peer.unwrap_or(nobody), what: Following::Outcome(outcome) }
    }
}

/// What each peer has not confirmed.
#[derive(Debug)]
pub struct Lanes {
    stream: StreamId,
    incarnation: u64,
    rules: Rules,
    lanes: BTreeMap<Peer, Lane>,
    /// Bytes under way to all of them.
    under_way: u64,
}

#[derive(Debug)]
struct Lane {
    deliveries: Deliveries,
    name: Bytes,
    subscribed: bool,
}

impl Lanes {
    /// Nobody is there yet.
    pub fn new(stream: StreamId, incarnation: u64, rules: Rules) -> Self {
        Self { stream, incarnation, rules, lanes: BTreeMap::new(), under_way: 0 }
    }

    /// From now on the stream has this name.
    pub fn rename<T: Turn>(&mut self, stream: StreamId, turn: &mut T) {
        self.stream = stream;
        self.lanes.values_mut().for_each(|lane| lane.deliveries.rename(stream, turn));
    }

    /// Whether this peer is there.
    pub fn has(&self, peer: Peer) -> bool {
        self.lanes.contains_key(&peer)
    }

    /// What was read out for all of them and is not settled.
    pub fn unsettled(&self) -> Tally {
        self.lanes.values().fold(Tally::ZERO, |all, lane| all.plus(lane.deliveries.unsettled()))
    }

    /// Nothing new comes: whoever reads for a peer says when there is no more for it; for those that have said nothing
    /// nobody reads.
    pub fn close(&mut self) {
        let read_for = self.lanes.values_mut().filter(|lane| lane.subscribed);
        read_for.for_each(|lane| lane.deliveries.has_more(true));
    }

    /// A peer is linked.
    pub fn on_join<T: Turn>(&mut self, peer: Peer, turn: &mut T) {
        let mut deliveries = Deliveries::new(self.stream, self.incarnation, 0, self.rules).only_for(peer);
        deliveries.on_join(peer, turn);
        self.lanes.insert(peer, Lane { deliveries, name: Bytes::new(), subscribed: false });
    }

    /// A peer is gone; so many of the last that were given to it were not wholly written.
    pub fn on_leave<T: Turn<Event = Followed>>(&mut self, peer: Peer, unsent: usize, turn: &mut T) {
        if let Some(mut lane) = self.lanes.remove(&peer) {
            self.under_way = self.under_way.saturating_sub(lane.deliveries.under_way());
            lane.deliveries.on_leave(peer, unsent, turn);
            turn.deliver(Followed { peer, what: Following::Left });
        }
    }

    /// A peer wants something.
    pub fn on_subscription<T: Turn<Event = Followed>>(&mut self, peer: Peer, turn: &mut T) {
        if let Some(lane) = self.lanes.get_mut(&peer)
            && !core::mem::replace(&mut lane.subscribed, true)
        {
            turn.deliver(Followed { peer, what: Following::Subscribed });
        }
    }

    /// What a peer says about what it was sent.
    ///
    /// # Errors
    /// It broke the protocol.
    pub fn on_command<T: Turn<Event = Followed>>(
        &mut self,
        peer: Peer,
        command: Command,
        turn: &mut T,
    ) -> Result<(), Misbehaved> {
        match command {
            // Who may not have the name gets nothing.
            Command::Resume(resume)
                if !resume.name.is_empty() && !turn.may(peer, Action::Follow(&resume.name), &resume.name) =>
            {
                return Ok(());
            }
            Command::Resume(resume) => {
                if self.with(peer, |deliveries| deliveries.on_resume(peer, &resume, turn)) {
                    self.supersede(peer, &resume.name, turn);
                    let what = Following::Resumed { name: resume.name, start: resume.start };
                    turn.deliver(Followed { peer, what });
                }
            }
            Command::Ack(ack) => {
                self.with(peer, |deliveries| Some(deliveries.on_ack(peer, &ack, turn))).unwrap_or(Ok(()))?;
            }
            Command::Verdict(verdict) => {
                self.with(peer, |deliveries| Some(deliveries.on_verdict(peer, &verdict, turn))).unwrap_or(Ok(()))?;
            }
            Command::Fence(fence) => {
                self.with(peer, |deliveries| Some(deliveries.on_fence(peer, &fence, turn))).unwrap_or(Ok(()))?;
            }
            _ => return Ok(()),
        }
        self.give(peer, turn);
        Ok(())
    }

    /// This peer has the name from now on.
    fn supersede<T: Turn>(&mut self, peer: Peer, name: &Bytes, turn: &mut T) {
        let others = self.lanes.iter().filter(|(other, lane)| **other != peer && !name.is_empty() && lane.name == name);
        let others: Vec<Peer> = others.map(|(&other, _)| other).collect();
        others.into_iter().for_each(|other| turn.supersede(other));
        if let Some(lane) = self.lanes.get_mut(&peer) {
            lane.name = name.clone();
        }
    }

    /// Does something with the deliveries of a peer, and gives it what follows from it.
    pub fn deliver<T: Turn<Event = Followed>, R: Default>(
        &mut self,
        peer: Peer,
        turn: &mut T,
        act: impl FnOnce(&mut Deliveries, &mut T) -> R,
    ) -> R {
        let result = self.with(peer, |deliveries| act(deliveries, turn));
        self.give(peer, turn);
        result
    }

    /// Keeps count of what is under way.
    fn with<R: Default>(&mut self, peer: Peer, act: impl FnOnce(&mut Deliveries) -> R) -> R {
        let Some(lane) = self.lanes.get_mut(&peer) else { return R::default() };
        let before = lane.deliveries.under_way();
        let result = act(&mut lane.deliveries);
        self.under_way = self.under_way.saturating_sub(before).saturating_add(lane.deliveries.under_way());
        result
    }

    /// Gives a peer what waits for it and it has room for. When all peers together have too much that they have not
    /// confirmed, each may have one message.
    pub fn give<T: Turn<Event = Followed>>(&mut self, peer: Peer, turn: &mut T) {
        let others = self.under_way;
        self.with(peer, |deliveries| {
            let others = others.saturating_sub(deliveries.under_way());
            while let Some(outgoing) = deliveries.front()
                && deliveries.takes(peer, outgoing.cost(), others)
            {
                match turn.room(peer, &outgoing) {
                    Room::Fits => {
                        turn.send(peer, &outgoing);
                        deliveries.sent(peer);
                    }
                    Room::Never => deliveries.refused(turn),
                    _ => break,
                }
            }
            deliveries.want(turn);
        });
    }
}
