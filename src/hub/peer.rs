//! What the hub keeps of one peer, and the table of all peers.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use ropewalk_patterns::Peer;
use tokio::sync::Notify;

use super::{incoming::Incoming, lease::Inline, outbox::Outbox};
use crate::{
    events::{DownReason, Event, PeerInfo},
    stats::PeerStats,
};

/// How the hub tells a link that there is something to do.
pub(crate) struct Signals {
    pub(crate) peer: Peer,
    pub(crate) inline: Option<Arc<dyn Inline>>,
    /// Something is to be written.
    pub(crate) write: Notify,
    /// A command is to be written in the stream for them.
    pub(crate) control: Notify,
    /// There is room to read again.
    pub(crate) read: Notify,
    /// Something is to be looked after within milliseconds.
    pub(crate) tick: Notify,
    /// The link is to end.
    pub(crate) stop: Notify,
    stopping: Mutex<Option<DownReason>>,
}

impl Signals {
    pub(crate) fn new(peer: Peer, inline: Option<Arc<dyn Inline>>) -> Self {
        Self {
            peer,
            inline,
            write: Notify::new(),
            control: Notify::new(),
            read: Notify::new(),
            tick: Notify::new(),
            stop: Notify::new(),
            stopping: Mutex::default(),
        }
    }

    /// Ends the link; the first reason counts.
    pub(crate) fn end(&self, reason: DownReason) {
        self.stopping.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(reason);
        self.stop.notify_one();
    }

    /// Why the link is to end, if it is.
    pub(crate) fn stopping(&self) -> Option<DownReason> {
        self.stopping.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl fmt::Debug for Signals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signals").field("peer", &self.peer).field("stopping", &self.stopping()).finish_non_exhaustive()
    }
}

/// One peer, linked or gone with messages of it still to be taken.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) info: Arc<PeerInfo>,
    pub(crate) signals: Arc<Signals>,
    pub(crate) live: bool,
    pub(crate) accepted: bool,
    /// [`Room::Full`] or [`Room::TooLittle`] was said and no room since.
    pub(crate) blocked: bool,
    /// The first drop since it last had room was told of.
    pub(crate) dropping: bool,
    /// Drops that were told of.
    pub(crate) dropped_told: u64,
    /// What it was denied, and what it has denied us.
    pub(crate) denied: u64,
    pub(crate) denied_by: u64,
    /// Its link will look after what was put off, within milliseconds.
    pub(crate) ticking: bool,
    /// No new messages: the link says goodbye once what it has is written.
    pub(crate) closing: bool,
    /// The pattern has something to say to it.
    pub(crate) owing: bool,
    pub(crate) out: Outbox,
    pub(crate) incoming: Incoming,
}

/// Whether one more denial is worth an event: else one peer could crowd out all others.
pub(crate) fn is_told(times: u64) -> bool {
    times <= 16 || times.is_power_of_two()
}

impl Slot {
    /// Tells of the drops that were not told of yet.
    pub(crate) fn dropped_event(&mut self) -> Option<Event> {
        let messages = self.out.dropped - std::mem::replace(&mut self.dropped_told, self.out.dropped);
        (messages > 0).then(|| Event::Dropped { peer: PeerInfo::clone(&self.info), messages })
    }

    pub(crate) fn stats(&self) -> PeerStats {
        let out = &self.out;
        PeerStats {
            peer: PeerInfo::clone(&self.info),
            queued: out.queued(),
            without_credit: out.without_credit(),
            inbox: self.incoming.held,
            sent: out.sent,
            received: self.incoming.received,
            dropped: out.dropped,
            denied: self.denied,
            denied_by: self.denied_by,
            in_doubt: out.in_doubt(),
            credit: out.credit_left(),
        }
    }
}

/// All peers of a socket by their handles.
#[derive(Debug, Default)]
pub(crate) struct Table {
    places: Vec<Place>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct Place {
    generation: u32,
    slot: Option<Box<Slot>>,
}

impl Table {
    pub(crate) fn insert(&mut self, make: impl FnOnce(Peer) -> Slot) -> Peer {
        let index = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place { generation: 0, slot: None });
            // There are never 2^32 peers: each takes kilobytes.
            u32::try_from(self.places.len() - 1).unwrap_or(u32::MAX)
        });
        let place = &mut self.places[index as usize];
        let peer = Peer { slot: index, generation: place.generation };
        place.slot = Some(Box::new(make(peer)));
        peer
    }

    #[inline]
    pub(crate) fn get(&mut self, peer: Peer) -> Option<&mut Slot> {
        let place = self.places.get_mut(peer.slot as usize)?;
        if place.generation == peer.generation { place.slot.as_deref_mut() } else { None }
    }

    /// One that is linked.
    #[inline]
    pub(crate) fn live(&mut self, peer: Peer) -> Option<&mut Slot> {
        self.get(peer).filter(|slot| slot.live)
    }

    pub(crate) fn remove(&mut self, peer: Peer) {
        if self.get(peer).is_some() {
            let place = &mut self.places[peer.slot as usize];
            place.slot = None;
            place.generation = place.generation.wrapping_add(1);
            self.free.push(peer.slot);
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Peer, &Slot)> {
        self.places.iter().enumerate().filter_map(|(index, place)| {
            let peer = Peer { slot: u32::try_from(index).ok()?, generation: place.generation };
            Some((peer, place.slot.as_deref()?))
        })
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (Peer, &mut Slot)> {
        self.places.iter_mut().enumerate().filter_map(|(index, place)| {
            let peer = Peer { slot: u32::try_from(index).ok()?, generation: place.generation };
            Some((peer, place.slot.as_deref_mut()?))
        })
    }
}
