//! Messages that follow one another to the same peers, however many those are: encoded once, and put one behind the other
//! with nothing done for each peer. What there is every peer gets as soon as anything else happens in the socket, at the
//! latest when one of the links writes.

use bytes::Bytes;
use ropewalk_patterns::{MESSAGE_OVERHEAD, Outgoing, Peer, Tally, zmtp::encode_part};

use super::{
    core::Core,
    lane::{Mark, SHARE_FROM},
};

/// So much is put behind each other at most: it is read again for every peer, and should still be in the processor's cache.
const AT_MOST: Tally = Tally::new(1024, 128 << 10);

/// What goes to several peers alike.
#[derive(Debug, Default)]
pub(super) struct Fan {
    /// Whom the last message went to for which everything was looked at.
    to: Vec<Peer>,
    /// Whether what follows has credit at each of them. Empty: nothing may follow.
    ready: Vec<bool>,
    /// How much more may follow: there is room for it at all of them.
    left: Tally,
    /// The largest message that all of them accept.
    largest: u64,
    frames: Vec<u8>,
    marks: Vec<Mark>,
    tally: Tally,
}

impl Fan {
    #[inline]
    pub(super) fn is_open(&self) -> bool {
        !self.ready.is_empty()
    }
}

impl<E> Core<E> {
    /// Lets messages follow the last one to these peers, if the one before it went to the same: where each message goes to
    /// others there is nothing to be saved.
    pub(super) fn open_fan(&mut self, peers: &[Peer]) {
        if self.fan.to != peers {
            self.fan.to.clear();
            self.fan.to.extend_from_slice(peers);
            return;
        }
        if peers.is_empty() || !self.senders.is_empty() {
            return;
        }
        let budget = self.options.send_budget.saturating_sub(self.queued) / peers.len() as u64;
        let (mut left, mut largest) = (Tally::new(AT_MOST.messages, AT_MOST.bytes.min(budget)), u64::MAX);
        for &peer in peers {
            let Some((room, ready, accepts)) = self.may_follow(peer).filter(|(room, ..)| !room.is_zero()) else {
                return self.fan.ready.clear();
            };
            left = Tally::new(left.messages.min(room.messages), left.bytes.min(room.bytes));
            largest = largest.min(accepts);
            self.fan.ready.push(ready);
        }
        (self.fan.left, self.fan.largest) = (left, largest);
    }

    /// Puts a message for these peers behind the last, if it may follow there.
    #[inline]
    pub(super) fn push_in_fan(&mut self, peers: &[Peer], message: &Outgoing<'_>) -> bool {
        let fan = &mut self.fan;
        let bytes = message.bytes();
        let cost = bytes + MESSAGE_OVERHEAD;
        let fits = fan.left.messages > 0 && cost <= fan.left.bytes && bytes <= fan.largest;
        if !fits || bytes >= SHARE_FROM as u64 || fan.to != peers {
            return false;
        }
        let before = fan.frames.len();
        message.for_each_part(|part, more| {
            encode_part(&mut fan.frames, more, part.bytes().len());
            fan.frames.extend_from_slice(part.bytes());
        });
        fan.marks.push(Mark { len: fan.frames.len() - before, cost });
        fan.tally.add(cost);
        fan.left.remove(cost);
        self.queued += cost * peers.len() as u64;
        true
    }

    /// Something else happens: nothing follows, and every peer gets what there is.
    #[inline]
    pub(super) fn end_fan(&mut self) {
        if self.fan.is_open() {
            self.settle_fan();
        }
    }

    fn settle_fan(&mut self) {
        let Self { fan, slots, .. } = self;
        if fan.tally.is_zero() {
            fan.ready.clear();
            return;
        }
        // What waits for a slow peer must not keep more alive than is counted.
        let usual = Vec::with_capacity(fan.frames.len());
        let mut frames = std::mem::replace(&mut fan.frames, usual);
        if frames.len() < frames.capacity() / 4 {
            frames.shrink_to_fit();
        }
        let frames = Bytes::from(frames);
        for (&peer, ready) in fan.to.iter().zip(fan.ready.drain(..)) {
            // Nobody has gone since the fan was opened: that is something else.
            let Some(slot) = slots.live(peer) else { continue };
            slot.out.push_run(&frames, &fan.marks, fan.tally, ready);
        }
        fan.marks.clear();
        fan.tally = Tally::ZERO;
    }
}
