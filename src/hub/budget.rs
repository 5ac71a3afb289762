//! `recv_budget`: what all peers together may have under way to us, in windows and beyond them.

use std::sync::Arc;

use ropewalk_patterns::{Peer, Tally, zmtp};

use super::{
    core::{Core, Signal},
    incoming::Owed,
};
use crate::options::Options;

/// A link that has not proven anything gets at most this beyond what every link gets.
const FIRST_SHARE: u64 = 4096;

impl<E> Core<E> {
    /// What every link may count on: so that idle windows never keep a new link out, a quarter of `recv_budget` is for
    /// these. With however little a link has, one message may always come, and waits if there is no room for it.
    fn floor(&self) -> u64 {
        let Options { recv_budget, accepted_peers, .. } = *self.options;
        (recv_budget / 4 / (accepted_peers as u64).max(1)).max(1).min(self.left_for_windows())
    }

    /// Bytes that windows may still take. The last quarter of `recv_budget` is for messages that are larger than their
    /// peer's window.
    fn left_for_windows(&self) -> u64 {
        let budget = self.options.recv_budget;
        (budget - budget / 4).saturating_sub(self.windows).min(budget.saturating_sub(self.reserved))
    }

    /// What windows may have beyond the floor goes out in shares of what is left, so the first have all they may and
    /// the thousandth still has something.
    fn share(&self) -> u64 {
        (self.options.recv_budget / 2).saturating_sub(self.windows).min(self.left_for_windows()) / 16
    }

    /// The window a new link's hello opens: a small one, for nobody is known yet.
    pub(crate) fn open_window(&mut self) -> Tally {
        let recv_hwm = self.options.recv_hwm;
        let bytes = recv_hwm.bytes.min(self.floor() + self.share().min(FIRST_SHARE)).min(self.left_for_windows());
        self.reserved += bytes;
        self.windows += bytes;
        Tally::new(if bytes == 0 { 0 } else { recv_hwm.messages }, bytes)
    }

    pub(crate) fn close_window(&mut self, window: Tally) {
        self.reserved -= window.bytes;
        self.windows -= window.bytes;
        self.feed();
    }

    /// Widens the window of a peer if it is below `recv_hwm`.
    pub(super) fn widen(&mut self, peer: Peer) {
        let recv_hwm = self.options.recv_hwm;
        let (floor, share, left) = (self.floor(), self.share(), self.left_for_windows());
        let Some(slot) = self.slots.live(peer) else { return };
        let Some(grants) = &mut slot.incoming.grants else { return };
        let window = grants.window();
        let more = (share + if window.bytes == 0 { floor } else { 0 }).min(left);
        let bytes = (window.bytes + more).min(recv_hwm.bytes);
        if bytes > window.bytes {
            grants.widen(Tally::new(recv_hwm.messages, bytes));
            self.windows += bytes - window.bytes;
            self.rebalance(peer);
        }
    }

    /// A window of so many bytes is free again.
    pub(super) fn drop_window(&mut self, bytes: u64) {
        self.windows -= bytes;
        self.feed();
    }

    /// Reserves what the peer should have reserved.
    pub(super) fn rebalance(&mut self, peer: Peer) {
        let Some(slot) = self.slots.get(peer) else { return };
        let wants = slot.incoming.wants(slot.live);
        let had = std::mem::replace(&mut slot.incoming.reserved, wants);
        self.reserved = self.reserved - had + wants;
        if wants < had {
            self.feed();
        }
    }

    /// Lets those go on who waited for a part of `recv_budget`: as many links without a window as may get one, and one
    /// that has something at hand, which lets on the next.
    pub(super) fn feed(&mut self) {
        let mut left = self.left_for_windows();
        while left > 0
            && let Some(peer) = self.windowless.pop_front()
        {
            if let Some(slot) = self.slots.live(peer) {
                slot.incoming.windowless = false;
                left = left.saturating_sub(FIRST_SHARE);
                self.owe(peer, Owed::Now);
            }
        }
        while let Some(peer) = self.starving.pop_front() {
            if let Some(slot) = self.slots.live(peer)
                && std::mem::take(&mut slot.incoming.reader_waits)
            {
                slot.incoming.fed = true;
                self.effects.signals.push((Arc::clone(&slot.signals), Signal::Read));
                return;
            }
        }
    }

    /// A link that waited for room goes on. If it was let on as one of those who starve, it lets on the next, also when
    /// it took nothing of what there was.
    pub(crate) fn goes_on(&mut self, peer: Peer) {
        if self.slots.live(peer).is_some_and(|slot| std::mem::take(&mut slot.incoming.fed)) {
            self.feed();
        }
    }

    /// How much a plain peer's link may take out of the stream. None: it is told when it may.
    pub(crate) fn read_room(&mut self, peer: Peer) -> Option<zmtp::Room> {
        let hwm = self.options.recv_hwm;
        let left = self.options.recv_budget.saturating_sub(self.reserved);
        let beyond = self.reserved - self.windows;
        let slot = self.slots.live(peer)?;
        let incoming = &mut slot.incoming;
        if incoming.grants.is_some() {
            return Some(zmtp::Room::UNBOUNDED);
        }
        let own = hwm.minus(incoming.held);
        let bytes = own.bytes.min(left.saturating_add(incoming.gathering));
        let any_first = incoming.held.is_zero() && (incoming.gathering > 0 || beyond <= incoming.reserved);
        let room = zmtp::Room { tally: Tally::new(own.messages, bytes), any_first };
        Some(room)
    }

    /// The link stops reading until there is room.
    pub(crate) fn reader_stops(&mut self, peer: Peer) {
        let hwm = self.options.recv_hwm;
        let Some(slot) = self.slots.live(peer) else { return };
        slot.incoming.fed = false;
        if std::mem::replace(&mut slot.incoming.reader_waits, true) {
            return;
        }
        let held = slot.incoming.held;
        if held.is_zero() || (held.messages < hwm.messages && held.bytes < hwm.bytes) {
            self.starving.push_back(peer);
        }
    }

    /// The link wants to gather one message of this size; whether it may.
    pub(crate) fn gather(&mut self, peer: Peer, bytes: u64) -> bool {
        let Some(slot) = self.slots.live(peer) else { return false };
        let before = slot.incoming.gathering;
        slot.incoming.gathering = before.max(bytes);
        let more = slot.incoming.wants(true).saturating_sub(slot.incoming.reserved);
        if !self.afford(peer, more) {
            if let Some(slot) = self.slots.live(peer) {
                slot.incoming.gathering = before;
            }
            return false;
        }
        self.rebalance(peer);
        self.goes_on(peer);
        true
    }

    /// Whether a message of this peer may take so much more of `recv_budget`; if not, the peer is told when to ask again.
    /// One that is larger than all that is left may if nothing else is held beyond the windows: it could never come
    /// otherwise.
    pub(super) fn afford(&mut self, peer: Peer, more: u64) -> bool {
        if more == 0 {
            return true;
        }
        let (reserved, windows, budget) = (self.reserved, self.windows, self.options.recv_budget);
        let Some(slot) = self.slots.live(peer) else { return false };
        let others = reserved - windows - slot.incoming.beyond(true);
        if reserved.saturating_add(more) <= budget || others == 0 {
            return true;
        }
        slot.incoming.fed = false;
        if !std::mem::replace(&mut slot.incoming.reader_waits, true) {
            self.starving.push_back(peer);
        }
        false
    }

    /// A link without any window hears when there is something for it.
    pub(super) fn starve(&mut self, peer: Peer) {
        if let Some(slot) = self.slots.live(peer)
            && slot.incoming.grants.as_ref().is_some_and(|grants| grants.window().bytes == 0)
            && !std::mem::replace(&mut slot.incoming.windowless, true)
        {
            self.windowless.push_back(peer);
        }
    }
}
