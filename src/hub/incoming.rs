//! What came in from one peer and was not taken, and what it may still send.

use std::collections::VecDeque;

use bytes::Bytes;
use ropewalk_patterns::{
    Message, Misbehaved, Tally,
    credit::{Due, Grants},
    zmtp::take_message,
};

/// What came in and was not taken.
#[derive(Debug)]
pub(crate) struct Incoming {
    queue: VecDeque<Chunk>,
    pub(crate) held: Tally,
    /// What we let the peer send; none for a plain one.
    pub(crate) grants: Option<Grants>,
    /// Bytes the link wants to gather for one large message.
    pub(crate) gathering: u64,
    /// What this peer takes of `recv_budget`.
    pub(crate) reserved: u64,
    pub(crate) owed: Owed,
    /// The link has stopped reading.
    pub(crate) reader_waits: bool,
    /// It was let on as one of those who starve, and has not gone on yet.
    pub(crate) fed: bool,
    /// It is in the line of those without a window.
    pub(crate) windowless: bool,
    /// What the place of a peer that is gone takes besides, as long as something of it is to be taken.
    pub(crate) remains: u64,
    /// It is in the line of those that have something to take.
    pub(crate) queued: bool,
    pub(crate) received: u64,
    pub(crate) taken: u64,
    /// What came without room for it in the socket's budget: one message larger than its peer's window. The link waits
    /// with it, and reads no further.
    overdue: Option<(Chunk, Tally)>,
}

/// Credit that should be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Owed {
    /// None, or it can wait.
    No,
    /// Within a millisecond.
    Soon,
    /// Now.
    Now,
}

#[derive(Debug)]
pub(crate) enum Chunk {
    /// Whole messages in frames.
    Encoded(Bytes),
    /// A message.
    Message(Message),
    /// Messages were left out here.
    Gap(u64),
}

/// One thing off the queue.
#[derive(Debug)]
pub(crate) enum Taken {
    Message(Message),
    Gap(u64),
}

impl Incoming {
    pub(crate) fn new(grants: Option<Grants>, reserved: u64) -> Self {
        Self {
            queue: VecDeque::new(),
            held: Tally::ZERO,
            grants,
            gathering: 0,
            reserved,
            owed: Owed::No,
            reader_waits: false,
            fed: false,
            windowless: false,
            remains: 0,
            queued: false,
            received: 0,
            taken: 0,
            overdue: None,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Whether nothing is here but word of what is not.
    pub(crate) fn only_gaps(&self) -> bool {
        self.queue.iter().all(|chunk| matches!(chunk, Chunk::Gap(_)))
    }

    /// What this peer should have reserved: its window, what is held, what is being gathered.
    pub(crate) fn wants(&self, live: bool) -> u64 {
        let held = self.held.bytes + self.gathering;
        let remains = if self.is_empty() { 0 } else { self.remains };
        held.max(self.window(live)) + remains
    }

    /// A chunk of these messages has come; it is kept aside until it is admitted. How much more than is reserved it
    /// takes.
    pub(crate) fn arrive(&mut self, chunk: Chunk, tally: Tally) -> Result<u64, Misbehaved> {
        if let Some(grants) = &mut self.grants {
            match &chunk {
                Chunk::Encoded(_) if grants.receive_all(tally) => {}
                Chunk::Encoded(frames) => {
                    let mut verdict = Ok(());
                    ropewalk_patterns::zmtp::whole_messages(frames, |cost| {
                        verdict = cost.map_or(Ok(()), |cost| grants.receive(cost));
                        verdict.is_ok()
                    });
                    verdict?;
                }
                Chunk::Message(message) => grants.receive(message.cost())?,
                Chunk::Gap(_) => {}
            }
        }
        self.overdue = Some((chunk, tally));
        Ok(self.lacks())
    }

    /// How much more than is reserved is needed for what is kept aside.
    pub(crate) fn lacks(&self) -> u64 {
        let overdue = self.overdue.as_ref().map_or(0, |(_, tally)| tally.bytes);
        (self.held.bytes + overdue).saturating_sub(self.reserved)
    }

    /// Takes in what was kept aside. Whether there is anything new to take.
    pub(crate) fn admit(&mut self) -> bool {
        let Some((chunk, tally)) = self.overdue.take() else { return false };
        self.received += tally.messages;
        self.held = self.held.plus(tally);
        if tally.messages > 0 {
            self.gathering = 0;
        }
        match (self.queue.back_mut(), chunk) {
            // Gaps take no credit, so they must not take memory.
            (Some(Chunk::Gap(before)), Chunk::Gap(missed)) => *before = before.saturating_add(missed),
            (_, chunk) => self.queue.push_back(chunk),
        }
        true
    }

    /// The link is gone, and with it what was kept aside.
    pub(crate) fn end(&mut self) {
        self.gathering = 0;
        self.overdue = None;
    }

    /// What was not taken is let go, too.
    pub(crate) fn let_go(&mut self) {
        self.queue.clear();
        (self.held, self.remains, self.queued) = (Tally::ZERO, 0, false);
    }

    /// Bytes reserved beyond the window.
    pub(crate) fn beyond(&self, live: bool) -> u64 {
        self.reserved.saturating_sub(self.window(live))
    }

    /// The bytes of the window.
    pub(crate) fn window(&self, live: bool) -> u64 {
        self.grants.as_ref().filter(|_| live).map_or(0, |grants| grants.window().bytes)
    }

    /// The oldest thing.
    #[inline]
    pub(crate) fn take(&mut self) -> Option<Taken> {
        let item = loop {
            match self.queue.front_mut()? {
                Chunk::Encoded(frames) => {
                    let message = take_message(frames);
                    if message.is_none() || frames.is_empty() {
                        self.queue.pop_front();
                    }
                    if let Some(message) = message {
                        break Taken::Message(message);
                    }
                }
                Chunk::Message(_) | Chunk::Gap(_) => match self.queue.pop_front()? {
                    Chunk::Message(message) => break Taken::Message(message),
                    Chunk::Gap(missed) => break Taken::Gap(missed),
                    Chunk::Encoded(_) => {}
                },
            }
        };
        if let Taken::Message(message) = &item {
            self.count(Tally::new(1, message.cost()));
        }
        Some(item)
    }

    /// These were taken.
    #[inline]
    fn count(&mut self, taken: Tally) {
        self.taken += taken.messages;
        self.held = self.held.minus(taken);
        if let Some(grants) = &mut self.grants {
            let owed = match grants.take(taken) {
                Due::Now => Owed::Now,
                Due::Soon => Owed::Soon,
                Due::Later | Due::No => Owed::No,
            };
            self.owed = self.owed.max(owed);
        }
    }

    /// The frames at the front, if they are at least so many bytes, to be handed out elsewhere. They come back by
    /// [`put_back`](Self::put_back).
    pub(super) fn take_frames(&mut self, least: usize) -> Option<Bytes> {
        match self.queue.front_mut()? {
            Chunk::Encoded(frames) if frames.len() < least => None,
            Chunk::Encoded(_) => match self.queue.pop_front() {
                Some(Chunk::Encoded(frames)) => Some(frames),
                _ => None,
            },
            Chunk::Message(_) | Chunk::Gap(_) => None,
        }
    }

    /// These frames are left of what [`take_frames`](Self::take_frames) gave, and so much was handed out.
    pub(super) fn put_back(&mut self, frames: Bytes, taken: Tally) {
        if !frames.is_empty() {
            self.queue.push_front(Chunk::Encoded(frames));
        }
        if !taken.is_zero() {
            self.count(taken);
        }
    }

    /// Whether the peer is out of credit and there is some to tell it.
    #[inline]
    pub(crate) fn owes_soon(&self) -> bool {
        self.owed == Owed::No && self.grants.as_ref().is_some_and(|grants| grants.due() >= Due::Soon)
    }

    /// Whether there is anything new to tell the peer.
    pub(crate) fn owes(&self) -> bool {
        self.grants.as_ref().is_some_and(|grants| grants.due() != Due::No)
    }
}
