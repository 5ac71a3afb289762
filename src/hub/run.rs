//! Messages of one peer, one after the other, with nothing else done for each.
//!
//! Coming in: a *run* is handed out, and what it comes to is settled as soon as anything else happens in the socket, at
//! the latest at the link's next tick. Going out: a *stretch* says how much may follow what was just sent; it ends when
//! anything else happens.

use bytes::{Buf, Bytes};
use ropewalk_patterns::{MESSAGE_OVERHEAD, Message, Peer, Tally, zmtp::Span};

use super::{core::Core, lane::SHARE_FROM};

/// No peer has more than this taken at a time.
const AT_MOST: Tally = Tally::new(64, 256 << 10);

/// Where several peers have something, only one that has so many bytes of frames has more than one message in a turn.
const BESIDE_OTHERS: usize = 2 << 10;

/// Messages at the front of a peer's inbox.
#[derive(Debug, Default)]
pub(super) struct Run {
    of: Option<Peer>,
    /// They are not in the inbox meanwhile.
    frames: Bytes,
    /// Where in the frames the next message begins.
    at: usize,
    taken: Tally,
    /// No more begins once so much is taken.
    until: Tally,
}

impl Run {
    /// Whose the next message is, if there is one.
    pub(super) fn whose(&self) -> Option<Peer> {
        self.of.filter(|_| self.goes_on() && self.at < self.frames.len())
    }

    #[inline(always)]
    fn goes_on(&self) -> bool {
        self.taken.messages < self.until.messages && self.taken.bytes < self.until.bytes
    }

    /// Where the next message stands, as long as the run goes. It is taken.
    #[inline(always)]
    pub(super) fn next(&mut self) -> Option<(Peer, Span)> {
        let peer = self.of.filter(|_| self.goes_on())?;
        let span = Span::at(&self.frames, self.at)?;
        self.at = span.end();
        self.taken.add(span.cost());
        Some((peer, span))
    }

    /// The first part of the message that stands there.
    #[inline]
    pub(super) fn first(&self, span: Span) -> &[u8] {
        span.first(&self.frames)
    }

    /// What is to be copied for the message that stands there, if that is all there is to it.
    #[inline(always)]
    pub(super) fn small(&self, span: Span) -> Option<&[u8]> {
        span.small(&self.frames)
    }

    /// The message that stands there.
    #[inline]
    pub(super) fn message(&self, span: Span) -> Message {
        span.message(&self.frames)
    }
}

/// How much more may go to the peer that the last message went to.
#[derive(Debug, Default)]
pub(super) struct Stretch {
    to: Option<Peer>,
    left: Tally,
    /// It has credit.
    ready: bool,
    /// The largest part the peer accepts.
    largest: u64,
}

impl<E> Core<E> {
    /// Lets messages follow the last one to this peer, where nobody needs to be told.
    #[inline]
    pub(super) fn open_stretch(&mut self, peer: Peer) {
        let budget = self.options.send_budget.saturating_sub(self.queued);
        if !self.senders.is_empty() {
            return;
        }
        let Some((left, ready, largest)) = self.may_follow(peer) else { return };
        let left = Tally::new(left.messages, left.bytes.min(budget));
        self.stretch = Stretch { to: Some(peer), left, ready, largest };
    }

    /// How much may go to this peer as the last message did, whether that has credit, and the largest part it accepts. None
    /// where somebody would have to be told of it: its link must be awake, to look for what follows; or be woken by credit,
    /// for which that waits.
    #[inline]
    pub(super) fn may_follow(&mut self, peer: Peer) -> Option<(Tally, bool, u64)> {
        let (hwm, clamp) = (self.options.send_hwm, self.clamp());
        let slot = self.slots.live(peer).filter(|slot| !slot.closing)?;
        let (left, ready) = slot.out.stretch(hwm, clamp);
        (!ready || !slot.out.asleep).then_some((left, ready, slot.out.largest))
    }

    /// Sends one part behind the last message, if it may follow there.
    #[inline]
    pub(super) fn push_in_stretch(&mut self, part: &[u8]) -> bool {
        let Stretch { to: Some(peer), left, ready, largest } = &mut self.stretch else { return false };
        let bytes = part.len() as u64;
        let cost = bytes + MESSAGE_OVERHEAD;
        if left.messages == 0 || cost > left.bytes || bytes > *largest || part.len() >= SHARE_FROM {
            return false;
        }
        let Some(slot) = self.slots.get(*peer) else { return false };
        slot.out.push_small(part, cost, *ready);
        left.remove(cost);
        self.queued += cost;
        true
    }

    /// Something else happens: nothing follows.
    #[inline]
    pub(super) fn interrupt(&mut self) {
        self.stretch.to = None;
        self.end_fan();
        self.end_run();
    }

    /// Lets what is at the front of this peer's inbox be handed out, if nobody stands in line for it and no reader waits
    /// for what is to be settled. That is its turn then.
    #[inline]
    pub(super) fn open_run(&mut self, peer: Peer) {
        // Where the application is asked about each message, or has it one by one, something else is done for each.
        if self.asks || self.one_by_one || !self.takers.is_empty() {
            return;
        }
        let least = if self.turns.len() > 1 { BESIDE_OTHERS } else { 0 };
        let Some(slot) = self.slots.live(peer).filter(|slot| !slot.incoming.reader_waits && !slot.one_by_one) else {
            return;
        };
        let until_due = slot.incoming.grants.as_ref().map_or(Tally::MAX, |grants| grants.until_due());
        let Some(frames) = slot.incoming.take_frames(least) else { return };
        let until = Tally::new(AT_MOST.messages.min(until_due.messages), AT_MOST.bytes.min(until_due.bytes));
        self.run = Run { of: Some(peer), frames, at: 0, taken: Tally::ZERO, until };
        self.tick_soon(peer);
    }

    /// Puts back what was not handed out and counts what was.
    #[inline]
    pub(super) fn end_run(&mut self) {
        if self.run.of.is_some() {
            self.settle_run();
        }
    }

    fn settle_run(&mut self) {
        let Run { of, mut frames, at, taken, .. } = std::mem::take(&mut self.run);
        frames.advance(at);
        // A peer keeps its place as long as something of it is to be taken.
        let Some((peer, slot)) = of.and_then(|peer| Some((peer, self.slots.get(peer)?))) else { return };
        let owed = slot.incoming.owed;
        slot.incoming.put_back(frames, taken);
        if slot.incoming.is_empty() {
            slot.incoming.queued = false;
            self.turns.retain(|turn| *turn != peer);
        }
        self.took(peer, owed);
    }
}
