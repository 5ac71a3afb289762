//! What a pattern wants done is done at once: the Turn of the hub, and everything else that goes out.

use std::{sync::Arc, time::Instant};

use bytes::{Bytes, BytesMut};
use ropewalk_patterns::{
    Action, MESSAGE_OVERHEAD, Message, Outgoing, Peer, Room, Tally, Turn,
    extension::{Refusal, RefusalReason},
    zmtp::{Command, encode_part},
};

use super::{
    batch::Batch,
    core::{Core, Phase},
    incoming::Owed,
    outbox::Control,
    peer::is_told,
};
use crate::{
    events::{Denial, DownReason, Event, PeerInfo},
    options::Options,
};

/// What fits well into a processor's cache beside everything else.
pub(super) const CACHED: u64 = 512 << 10;

/// So many peers that are owed a word are remembered for when the application waits.
const DEBTS: usize = 64;

/// About what the hub keeps of a peer.
const PLACE: u64 = 1024;

impl<E> Core<E> {
    /// Fills the batch for a link.
    pub(crate) fn take_batch(&mut self, peer: Peer, batch: &mut Batch, done: bool) {
        let clamp = self.clamp();
        let closing = self.phase > Phase::Open && done;
        let Some(slot) = self.slots.live(peer) else { return };
        let credit = if slot.out.control == Control::Ahead { self.credit_due(peer) } else { None };
        let Some(slot) = self.slots.live(peer) else { return };
        let farewell = closing || slot.closing;
        slot.out.take_batch(batch, credit, farewell, clamp, &slot.incoming);
        slot.out.asleep = batch.is_empty() && !batch.last;
    }

    /// Puts into the buffer what goes into a stream of its own.
    pub(crate) fn take_control(&mut self, peer: Peer, buffer: &mut BytesMut) {
        let credit = self.credit_due(peer);
        let Some(slot) = self.slots.live(peer) else { return };
        slot.out.take_control(credit).iter().for_each(|command| command.encode(false, buffer));
        slot.out.control = Control::Beside { asleep: buffer.is_empty() };
    }

    /// The link has written its batch.
    pub(crate) fn written(&mut self, peer: Peer) {
        let Some(slot) = self.slots.live(peer) else { return };
        self.written_at = Some(Instant::now());
        let freed = slot.out.written();
        self.freed(peer, freed);
        self.gives_way_at = self.queued + CACHED;
    }

    /// Whether one who sends should let links write first: so much was queued since they last did that they, and all who
    /// come after them, would find it in memory instead of the processor's cache.
    pub(super) fn gives_way(&mut self) -> bool {
        let gives = self.queued >= self.gives_way_at && self.live > 0;
        if gives {
            self.gives_way_at = self.queued + CACHED;
        }
        gives
    }

    /// Room may have come free at this peer: if it was called full, the pattern is to be told.
    pub(crate) fn freed(&mut self, peer: Peer, bytes: u64) {
        self.queued -= bytes;
        if bytes > 0 && std::mem::take(&mut self.budget_blocked) {
            let blocked: Vec<Peer> = self.slots.iter().filter(|(_, slot)| slot.blocked).map(|(peer, _)| peer).collect();
            self.roomy.extend(blocked);
        } else if self.slots.live(peer).is_some_and(|slot| slot.blocked) {
            self.roomy.push_back(peer);
        }
    }

    /// A peer of which the pattern is to be told that it has room again.
    #[inline]
    pub(crate) fn next_roomy(&mut self) -> Option<Peer> {
        if self.roomy.is_empty() { None } else { self.next_with_room() }
    }

    fn next_with_room(&mut self) -> Option<Peer> {
        while let Some(peer) = self.roomy.pop_front() {
            let (hwm, clamp) = (self.options.send_hwm, self.clamp());
            let full = self.queued >= self.options.send_budget && self.queued > 0;
            let Some(slot) = self.slots.live(peer).filter(|slot| slot.blocked) else { continue };
            if full {
                self.budget_blocked = true;
            } else if slot.out.room(MESSAGE_OVERHEAD, hwm, clamp) == Room::Fits {
                slot.blocked = false;
                slot.dropping = false;
                self.effects.events.extend(slot.dropped_event());
                return Some(peer);
            }
        }
        None
    }

    #[inline]
    fn push(&mut self, peer: Peer, message: &Outgoing<'_>, frames: Option<&Bytes>, cost: u64) {
        let clamp = self.clamp();
        let Some(slot) = self.slots.live(peer) else {
            self.totals.lost += 1;
            return;
        };
        let ready = slot.out.push(message, frames, cost, clamp);
        let wakes = ready && slot.out.asleep;
        self.queued += cost;
        self.promised = self.promised.saturating_sub(cost);
        if wakes {
            self.wake_writer(peer);
        }
    }
}

impl<E> Turn for Core<E> {
    type Event = E;

    #[inline]
    fn room(&mut self, peer: Peer, message: &Outgoing<'_>) -> Room {
        let cost = message.cost();
        let (hwm, clamp, budget) = (self.options.send_hwm, self.clamp(), self.options.send_budget);
        let taken = self.queued.saturating_add(self.promised);
        let over = self.queued > 0 && taken.saturating_add(cost) > budget;
        let Some(slot) = self.slots.live(peer).filter(|slot| !slot.closing) else { return Room::Gone };
        if message.bytes() > slot.out.largest {
            return Room::Never;
        }
        let room = slot.out.room(cost, hwm, clamp);
        let room = if room == Room::Fits && over {
            self.budget_blocked = true;
            Room::Spent
        } else {
            room
        };
        if room == Room::Fits {
            self.promised += cost;
        } else {
            slot.blocked = true;
        }
        room
    }

    #[inline]
    fn send(&mut self, peer: Peer, message: &Outgoing<'_>) {
        self.push(peer, message, None, message.cost());
    }

    fn send_all(&mut self, peers: &[Peer], message: &Outgoing<'_>) {
        let cost = message.cost();
        if let &[peer] = peers {
            return self.push(peer, message, None, cost);
        }
        message.for_each_part(|part, more| {
            encode_part(&mut self.scratch, more, part.bytes().len());
            self.scratch.extend_from_slice(part.bytes());
        });
        let frames = self.scratch.split().freeze();
        for &peer in peers {
            self.push(peer, message, Some(&frames), cost);
        }
    }

    #[inline]
    fn keep_to(&mut self, peer: Peer) {
        self.open_stretch(peer);
    }

    fn keep_to_all(&mut self, peers: &[Peer]) {
        self.open_fan(peers);
    }

    fn tell(&mut self, peer: Peer, command: Command) {
        let Some(slot) = self.slots.live(peer) else { return };
        let taken = slot.out.tell(command, &self.options.limits);
        self.wake_writer(peer);
        if !taken {
            self.end_link(peer, DownReason::ControlOverflow);
        }
    }

    #[inline]
    fn owe(&mut self, peer: Peer, urgent: bool) {
        let Some(slot) = self.slots.live(peer) else { return };
        let known = std::mem::replace(&mut slot.owing, true);
        if urgent {
            self.wake_writer(peer);
        } else if !known {
            // Beyond these the tick is soon enough.
            if self.debts.len() < DEBTS {
                self.debts.push(peer);
            }
            self.tick_soon(peer);
        }
    }

    fn one_by_one(&mut self, peer: Peer) {
        self.end_run();
        if let Some(slot) = self.slots.get(peer) {
            slot.one_by_one = true;
        }
    }

    fn forget(&mut self, peer: Peer) {
        let Some(slot) = self.slots.get(peer).filter(|slot| !slot.live) else { return };
        slot.incoming.let_go();
        self.turns.retain(|turn| *turn != peer);
        self.rebalance(peer);
        self.slots.remove(peer);
    }

    fn miss(&mut self, peer: Peer, messages: u64) {
        let Some(slot) = self.slots.live(peer) else { return };
        if slot.out.miss(messages) {
            self.wake_writer(peer);
        }
        self.dropping(peer);
    }

    fn drop_oldest(&mut self, peer: Peer) -> bool {
        let clamp = self.clamp();
        let Some(slot) = self.slots.live(peer) else { return false };
        let Some(freed) = slot.out.drop_oldest() else { return false };
        let next_goes = slot.out.goes_on(clamp);
        self.queued -= freed;
        self.dropping(peer);
        if next_goes {
            self.wake_writer(peer);
        }
        true
    }

    fn disconnect(&mut self, peer: Peer) {
        self.end_link(peer, DownReason::TooSlow);
    }

    fn abandon(&mut self, peer: Peer) {
        self.end_link(peer, DownReason::Abandoned);
    }

    fn supersede(&mut self, peer: Peer) {
        self.end_link(peer, DownReason::Superseded);
    }

    fn relink(&mut self, peer: Peer) {
        self.end_link(peer, DownReason::Closed);
    }

    fn lose(&mut self, messages: u64) {
        if messages > 0 {
            self.totals.lost += messages;
            self.effects.events.push(Event::Lost { messages });
        }
    }

    #[inline]
    fn may(&mut self, peer: Peer, action: Action<'_>, about: &[u8]) -> bool {
        if !self.asks {
            return true;
        }
        let Some(info) = self.slots.get(peer).map(|slot| Arc::clone(&slot.info)) else { return false };
        self.ask(peer, info, action, about)
    }

    fn deliver(&mut self, event: E) {
        if self.direct {
            self.effects.delivered.push(event);
        } else {
            self.delivered.push_back(event);
            self.effects.wakers.extend(self.takers.wake_first(0));
        }
    }

    fn ready(&mut self) {
        if !self.senders.is_empty() {
            self.senders.wake_firsts(&mut self.effects.wakers);
        }
    }

    fn unlinked_limit(&self) -> Tally {
        let Options { send_hwm, send_budget, .. } = *self.options;
        let bytes = send_hwm.bytes.saturating_mul(self.dialled).min(send_budget);
        Tally::new(send_hwm.messages.saturating_mul(self.dialled), bytes)
    }
}

impl<E> Core<E> {
    /// Asks the application, and tells both ends if it says no.
    pub(super) fn ask(&mut self, peer: Peer, info: Arc<PeerInfo>, action: Action<'_>, about: &[u8]) -> bool {
        if self.options.authorize.as_ref().is_none_or(|authorize| authorize.permits(&info, action)) {
            return true;
        }
        let about = Bytes::copy_from_slice(about);
        let denial = match action {
            Action::Subscribe(_) => Denial::Subscribe(about.clone()),
            Action::Follow(_) => Denial::Follow(about.clone()),
            Action::Request(_) => Denial::Request,
            _ => Denial::Publish,
        };
        let slot = self.slots.live(peer);
        let speaks_extension = slot.as_ref().is_none_or(|slot| slot.out.speaks_extension());
        // Of one that is gone the totals have what it was denied before.
        let denied = slot.map_or(&mut self.totals.denied, |slot| &mut slot.denied);
        *denied += 1;
        let times = *denied;
        if is_told(times) {
            self.effects.events.push(Event::Denied { peer: PeerInfo::clone(&info), denial, times });
        }
        if speaks_extension {
            self.tell(peer, Command::Refusal(Refusal { reason: RefusalReason::Denied, id: about }));
        } else {
            self.end_link(peer, DownReason::NotAuthorized);
        }
        false
    }

    /// A peer has joined: it hears at once of the window it has beyond the one our hello opened.
    pub(super) fn widen_now(&mut self, peer: Peer) {
        // A plain peer has no window: what our hello opened is free again.
        let unused = self.slots.live(peer).filter(|slot| slot.incoming.grants.is_none());
        let unused = unused.map_or(0, |slot| slot.incoming.reserved);
        self.rebalance(peer);
        self.drop_window(unused);
        self.widen(peer);
        if self.slots.live(peer).is_some_and(|slot| slot.incoming.owes()) {
            self.owe(peer, Owed::Now);
        }
        self.starve(peer);
    }

    /// A peer's link has ended: what was not wholly written to it, and the event that says so. What came from it stays
    /// until it is taken.
    pub(super) fn left(&mut self, peer: Peer, reason: DownReason, batch: &mut Batch) -> Option<(Vec<Message>, Event)> {
        let slot = self.slots.live(peer)?;
        slot.live = false;
        let queued = slot.out.queued().bytes;
        let unsent = slot.out.close(batch);
        let in_doubt = if self.keeps { 0 } else { slot.out.in_doubt() };
        let info = PeerInfo::clone(&slot.info);
        self.effects.events.extend(slot.dropped_event());
        self.totals.sent += slot.out.sent;
        self.totals.delivered += slot.out.delivered();
        self.totals.in_doubt += in_doubt;
        self.totals.dropped += slot.out.dropped;
        self.totals.received += slot.incoming.received;
        self.totals.denied += slot.denied;
        self.totals.denied_by += slot.denied_by;
        let window = slot.incoming.window(true);
        slot.incoming.end();
        self.live -= 1;
        self.leased = self.leased.filter(|leased| *leased != peer);
        self.accepted -= usize::from(slot.accepted);
        self.freed(peer, queued);
        self.rebalance(peer);
        self.drop_window(window);
        self.keep_remains(peer);
        Some((unsent, Event::PeerDown { peer: info, reason, in_doubt }))
    }

    /// What a peer that is gone leaves to be taken keeps its place, which counts like messages: else those who come, send
    /// a little and go would fill the memory. Where there is no room for that, gaps alone are not worth it.
    fn keep_remains(&mut self, peer: Peer) {
        let spare = self.options.recv_budget.saturating_sub(self.reserved);
        let Some(slot) = self.slots.get(peer) else { return };
        if slot.incoming.only_gaps() && (spare < PLACE || slot.incoming.is_empty()) {
            let queued = slot.incoming.queued;
            self.slots.remove(peer);
            if queued {
                self.turns.retain(|turn| *turn != peer);
            }
            return;
        }
        slot.incoming.remains = PLACE.min(spare);
        self.rebalance(peer);
    }

    /// Tells of the first drop since the peer last had room.
    fn dropping(&mut self, peer: Peer) {
        if let Some(slot) = self.slots.live(peer)
            && !std::mem::replace(&mut slot.dropping, true)
        {
            self.effects.events.extend(slot.dropped_event());
        }
    }
}
