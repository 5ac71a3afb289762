//! What goes out to one peer: messages with and without credit, commands ahead of them, goodbyes behind them.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use ropewalk_patterns::{
    Message, Misbehaved, Outgoing, Room, Tally,
    credit::Granted,
    extension::{Credit, Goodbye},
    zmtp::{Command, Limits},
};

use super::{
    batch::Batch,
    incoming::Incoming,
    lane::{Lane, Mark},
};

/// Commands that wait for a peer may take so many bytes beyond all that may be subscribed to; one that does not read
/// them is let go.
const CONTROL_BYTES: u64 = 1 << 20;

/// What a subscription takes besides its topic while it waits to be told.
const SUBSCRIPTION_OVERHEAD: usize = 32;

/// What a range of places takes while it waits to be told.
const RANGE: usize = 16;

/// So many PONGs may wait; a peer that asks faster than it reads the answers misses some.
const PONGS: usize = 16;

/// Where PING, PONG and credit go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Control {
    /// Ahead of messages.
    Ahead,
    /// Into a stream of their own, whose link waits for the next if it is asleep.
    Beside { asleep: bool },
}

/// What goes out.
#[derive(Debug)]
pub(crate) struct Outbox {
    legacy: bool,
    memory: bool,
    /// The largest message the peer accepts.
    pub(crate) largest: u64,
    /// Its credit; none for a plain peer.
    granted: Option<Granted>,
    /// What may be written.
    ready: Lane,
    /// What waits for credit, bounded by `send_hwm`.
    waiting: Lane,
    /// What the link is writing.
    writing: Tally,
    /// Missed messages to be told before the next one.
    gap: u64,
    /// Missed messages to be told before the oldest that waits.
    oldest_gap: u64,
    commands: VecDeque<Command>,
    command_bytes: u64,
    pongs: VecDeque<Bytes>,
    ping: Option<u16>,
    pub(crate) control: Control,
    farewell: Farewell,
    /// The link waits for something to write.
    pub(crate) asleep: bool,
    pub(crate) sent: u64,
    pub(crate) dropped: u64,
    confirmed: u64,
}

/// How far the goodbyes are.
#[derive(Debug, Default)]
struct Farewell {
    /// We said ours.
    said: bool,
    /// The peer answered ours.
    answered: bool,
    /// The peer said its own, which wants an answer.
    heard: bool,
    /// We answered it.
    replied: bool,
}

impl Outbox {
    pub(crate) fn new(memory: bool, legacy: bool, largest: u64, granted: Option<Granted>) -> Self {
        Self {
            legacy,
            memory,
            largest,
            granted,
            ready: Lane::new(memory),
            waiting: Lane::new(memory),
            writing: Tally::ZERO,
            gap: 0,
            oldest_gap: 0,
            commands: VecDeque::new(),
            command_bytes: 0,
            pongs: VecDeque::new(),
            ping: None,
            control: Control::Ahead,
            farewell: Farewell::default(),
            asleep: false,
            sent: 0,
            dropped: 0,
            confirmed: 0,
        }
    }

    pub(crate) fn speaks_extension(&self) -> bool {
        self.granted.is_some()
    }

    /// Whether a message of this cost fits now. What has credit waits at the receiver's expense, up to `clamp` bytes;
    /// the rest waits at ours.
    #[inline]
    pub(crate) fn room(&self, cost: u64, hwm: Tally, clamp: u64) -> Room {
        let held = match &self.granted {
            Some(_) if self.goes_ready(cost, clamp) => return Room::Fits,
            Some(_) => self.waiting.tally(),
            None => self.ready.tally().plus(self.writing),
        };
        if held.admits(cost, hwm) {
            Room::Fits
        } else if held.messages < hwm.messages && held.bytes < hwm.bytes {
            Room::TooLittle
        } else {
            Room::Full
        }
    }

    /// Whether a message of this cost needs not wait for credit.
    #[inline]
    fn goes_ready(&self, cost: u64, clamp: u64) -> bool {
        match &self.granted {
            None => true,
            Some(granted) => self.waiting.is_empty() && covers(granted, self.ready.tally().bytes, cost, clamp),
        }
    }

    /// Puts a message where it belongs. `frames`: it is already encoded. Whether it may be written now; if not, it waits
    /// for credit, which comes with a wake-up of its own.
    #[inline]
    pub(crate) fn push(&mut self, message: &Outgoing<'_>, frames: Option<&Bytes>, cost: u64, clamp: u64) -> bool {
        let ready = self.goes_ready(cost, clamp);
        let lane = if ready { &mut self.ready } else { &mut self.waiting };
        if self.granted.is_some() {
            // What goes ready overtakes nothing, so nothing waits that the oldest gap could stand before.
            let oldest = if ready { std::mem::take(&mut self.oldest_gap) } else { 0 };
            let missed = oldest + std::mem::take(&mut self.gap);
            if missed > 0 {
                lane.push_gap(missed);
            }
        }
        match frames {
            Some(frames) => lane.push_copy(frames, cost),
            None => lane.push(message, cost),
        }
        if ready && let Some(granted) = &mut self.granted {
            granted.spend(cost);
        }
        ready
    }

    /// How much more can be pushed like the last message, with nothing else to be looked at, and whether it has credit.
    pub(super) fn stretch(&self, hwm: Tally, clamp: u64) -> (Tally, bool) {
        let ready = self.ready.tally();
        match &self.granted {
            None => (hwm.minus(ready.plus(self.writing)), true),
            // A gap stands before the next message.
            Some(_) if self.missed() > 0 => (Tally::ZERO, false),
            Some(granted) if self.waiting.is_empty() => {
                let left = granted.left();
                (Tally::new(left.messages, left.bytes.min(clamp.saturating_sub(ready.bytes))), true)
            }
            Some(_) => (hwm.minus(self.waiting.tally()), false),
        }
    }

    /// Puts a message of one small part behind the last, as [`stretch`](Self::stretch) said it may be.
    #[inline]
    pub(super) fn push_small(&mut self, part: &[u8], cost: u64, ready: bool) {
        let lane = if ready { &mut self.ready } else { &mut self.waiting };
        lane.push_small(part, cost);
        if ready && let Some(granted) = &mut self.granted {
            granted.spend(cost);
        }
    }

    /// Puts messages behind the last, as [`stretch`](Self::stretch) said they may be: they are these frames, marked so.
    pub(super) fn push_run(&mut self, frames: &Bytes, marks: &[Mark], tally: Tally, ready: bool) {
        let lane = if ready { &mut self.ready } else { &mut self.waiting };
        lane.push_run(frames, marks, tally);
        if ready && let Some(granted) = &mut self.granted {
            granted.spend_all(tally);
        }
    }

    /// The newest messages are left out. Whether the peer can be told now: nothing waits before them.
    pub(crate) fn miss(&mut self, messages: u64) -> bool {
        self.dropped += messages;
        self.gap += messages;
        self.waiting.is_empty() && self.granted.is_some()
    }

    /// The oldest message that may still be taken back is left out.
    pub(crate) fn drop_oldest(&mut self) -> Option<u64> {
        let lane = if self.granted.is_some() { &mut self.waiting } else { &mut self.ready };
        let before = lane.tally().bytes;
        let missed = lane.drop_oldest()?;
        let freed = before - lane.tally().bytes;
        self.dropped += 1;
        self.oldest_gap += missed + 1;
        Some(freed)
    }

    /// Adds a command ahead of messages. False: the peer does not take them.
    pub(crate) fn tell(&mut self, command: Command, limits: &Limits) -> bool {
        let (bytes, bound) = match &command {
            Command::Subscribe(topic) | Command::Cancel(topic) => {
                // A peer that links is told of all subscriptions at once.
                let subscriptions = limits.subscriptions.saturating_mul(SUBSCRIPTION_OVERHEAD);
                let all = limits.subscribed_bytes.saturating_add(subscriptions) as u64;
                (topic.len() + SUBSCRIPTION_OVERHEAD, CONTROL_BYTES.saturating_add(all))
            }
            // The id is what the peer sent, and as large as it liked.
            Command::Refusal(refusal) => (refusal.id.len() + 64, CONTROL_BYTES),
            Command::Ack(ack) => (ack.places.len() * RANGE + 64, CONTROL_BYTES),
            Command::Verdict(verdict) => (verdict.what.reason().len() + 64, CONTROL_BYTES),
            _ => (64, CONTROL_BYTES),
        };
        self.command_bytes += bytes as u64;
        self.commands.push_back(command);
        self.command_bytes <= bound
    }

    pub(crate) fn pong(&mut self, context: Bytes) {
        if self.pongs.len() < PONGS {
            self.pongs.push_back(context);
        }
    }

    /// Asks whether the peer is there. The context says how many messages were wholly written before.
    pub(crate) fn ping(&mut self, ttl: u16) {
        if !self.legacy {
            self.ping = Some(ttl);
        }
    }

    /// The peer has read all that was written before the PING it answers. Of a plain peer that is all we ever hear; one
    /// that gives credit says what its application took, and what it only read is in doubt.
    pub(crate) fn ponged(&mut self, context: &[u8]) {
        if self.granted.is_none()
            && let Ok(count) = context.try_into().map(u64::from_be_bytes)
        {
            self.confirm(count);
        }
    }

    pub(crate) fn credit(&mut self, credit: &Credit) -> Result<(), Misbehaved> {
        let Some(granted) = &mut self.granted else { return Ok(()) };
        granted.grant(credit)?;
        self.confirm(credit.taken);
        Ok(())
    }

    /// Whether the oldest that waits has credit by now.
    pub(super) fn goes_on(&self, clamp: u64) -> bool {
        let Some((granted, cost)) = self.granted.as_ref().zip(self.waiting.oldest()) else { return false };
        covers(granted, self.ready.tally().bytes, cost, clamp)
    }

    /// Moves what has got credit.
    fn refill(&mut self, clamp: u64) {
        if self.oldest_gap > 0 && self.goes_on(clamp) {
            self.ready.push_gap(std::mem::take(&mut self.oldest_gap));
        }
        let Some(granted) = &mut self.granted else { return };
        let mut bytes = self.ready.tally().bytes;
        self.waiting.move_while(&mut self.ready, |cost| {
            let covered = covers(granted, bytes, cost, clamp);
            if covered {
                granted.spend(cost);
                bytes += cost;
            }
            covered
        });
    }

    /// A peer may have what the link is writing before we know that it is written.
    fn confirm(&mut self, count: u64) {
        self.confirmed = self.confirmed.max(count.min(self.sent + self.writing.messages));
    }

    /// A goodbye of the peer. True: an answer is due.
    pub(crate) fn goodbye(&mut self, goodbye: &Goodbye) -> bool {
        // What its application has not taken when it leaves is in doubt; what came before an answer has arrived.
        self.confirm(if goodbye.answer { goodbye.received } else { goodbye.taken });
        if goodbye.answer {
            self.farewell.answered = true;
        } else {
            self.farewell.heard = true;
        }
        !goodbye.answer
    }

    /// The end of the stream. Of a plain peer to which we have written all there was nothing else is ever heard; another
    /// would have answered our goodbye.
    pub(crate) fn ended(&mut self) {
        if self.farewell.said && self.granted.is_none() {
            self.confirmed = self.sent;
        }
    }

    /// Whether all goodbyes that were begun are answered, and at least one was begun.
    pub(crate) fn has_parted(&self) -> bool {
        let Farewell { said, answered, heard, replied } = self.farewell;
        (said || heard) && said == answered && heard == replied
    }

    /// Whether the peer said goodbye first.
    pub(crate) fn heard_goodbye(&self) -> bool {
        self.farewell.heard
    }

    /// Missed messages the peer was not told of.
    fn missed(&self) -> u64 {
        self.oldest_gap + self.gap
    }

    /// Whether nothing of the application waits here.
    fn is_empty(&self) -> bool {
        self.ready.is_empty() && self.waiting.is_empty() && (self.missed() == 0 || self.granted.is_none())
    }

    /// Fills a batch with what is to be written next. `farewell`: say goodbye once nothing waits. `grants` are counted
    /// into goodbyes.
    pub(crate) fn take_batch(
        &mut self,
        batch: &mut Batch,
        credit: Option<Credit>,
        farewell: bool,
        clamp: u64,
        incoming: &Incoming,
    ) {
        let mut commands = if self.control == Control::Ahead { self.take_control(credit) } else { Vec::new() };
        commands.extend(self.commands.drain(..));
        self.command_bytes = 0;
        if self.memory {
            batch.commands = commands;
        } else if !commands.is_empty() {
            let mut control = BytesMut::new();
            commands.iter().for_each(|command| command.encode(self.legacy, &mut control));
            batch.control = control.freeze();
        }
        if !self.farewell.said && !self.farewell.heard {
            self.refill(clamp);
            if self.missed() > 0 && self.granted.is_some() && self.waiting.is_empty() {
                self.ready.push_gap(std::mem::take(&mut self.oldest_gap) + std::mem::take(&mut self.gap));
            }
            self.ready.take_batch(batch);
        }
        self.writing = batch.tally();
        let answer = self.farewell.heard && !self.farewell.replied;
        if answer || (farewell && !self.farewell.said && !self.farewell.heard && self.is_empty()) {
            if answer {
                self.farewell.replied = true;
            } else {
                self.farewell.said = true;
            }
            batch.last = true;
            batch.plain_end = self.granted.is_none();
            if self.granted.is_some() {
                let goodbye = Goodbye {
                    sent: self.sent + self.writing.messages,
                    received: incoming.received,
                    taken: incoming.taken,
                    answer,
                };
                batch.finish(goodbye, !self.memory);
            }
        }
    }

    /// The commands that may go into a stream of their own.
    pub(crate) fn take_control(&mut self, credit: Option<Credit>) -> Vec<Command> {
        let mut commands: Vec<_> = self.pongs.drain(..).map(|context| Command::Pong { context }).collect();
        if let Some(ttl) = self.ping.take() {
            commands.push(Command::Ping { ttl, context: Bytes::copy_from_slice(&self.sent.to_be_bytes()) });
        }
        commands.extend(credit.map(Command::Credit));
        commands
    }

    /// Lets go of empty buffers.
    pub(crate) fn rest(&mut self) {
        self.ready.rest();
        self.waiting.rest();
    }

    /// The batch is wholly written. The bytes it had held.
    pub(crate) fn written(&mut self) -> u64 {
        self.sent += self.writing.messages;
        std::mem::take(&mut self.writing).bytes
    }

    /// What is accepted and not wholly written; its bytes count against `send_budget`.
    pub(crate) fn queued(&self) -> Tally {
        self.ready.tally().plus(self.waiting.tally()).plus(self.writing)
    }

    /// What of it waits for credit.
    pub(crate) fn without_credit(&self) -> Tally {
        self.waiting.tally()
    }

    /// What the peer lets us send now.
    pub(crate) fn credit_left(&self) -> Option<Tally> {
        self.granted.as_ref().map(Granted::left)
    }

    /// The link died. Counts what was wholly written, gives back what was not, oldest first.
    pub(crate) fn close(&mut self, batch: &mut Batch) -> Vec<Message> {
        let (done, mut unsent) = batch.break_off();
        self.sent += done.messages;
        self.writing = Tally::ZERO;
        unsent.extend(self.ready.drain());
        unsent.extend(self.waiting.drain());
        unsent
    }

    pub(crate) fn in_doubt(&self) -> u64 {
        self.sent - self.delivered()
    }

    /// Of what was wholly written.
    pub(crate) fn delivered(&self) -> u64 {
        self.confirmed.min(self.sent)
    }
}

/// Whether a message may wait at the receiver's expense, behind so many bytes that do.
#[inline]
fn covers(granted: &Granted, ready: u64, cost: u64, clamp: u64) -> bool {
    granted.covers(cost) && (ready == 0 || ready + cost <= clamp)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLAMP: u64 = 1 << 20;

    /// An outbox whose link is writing this many messages.
    fn writing(messages: u64) -> (Outbox, Batch) {
        let granted = Granted::new(Tally::new(100, CLAMP));
        let (mut out, mut batch) = (Outbox::new(false, false, 1 << 20, Some(granted)), Batch::default());
        for _ in 0..messages {
            let message = Message::from("text");
            let cost = message.cost();
            assert!(out.push(&message.into(), None, cost, CLAMP));
        }
        out.take_batch(&mut batch, None, false, CLAMP, &Incoming::new(None, 0));
        (out, batch)
    }

    fn leaves(out: &mut Outbox, taken: u64) {
        assert!(out.goodbye(&Goodbye { sent: 0, received: taken, taken, answer: false }));
    }

    /// A peer that takes what it gets and leaves says so before the link has counted what it wrote.
    #[test]
    fn what_a_peer_took_before_it_was_counted_is_not_in_doubt() {
        let (mut out, _) = writing(3);
        leaves(&mut out, 2);
        assert_eq!((out.delivered(), out.in_doubt()), (0, 0));
        out.written();
        assert_eq!((out.delivered(), out.in_doubt()), (2, 1));
    }

    /// Nor can it say that it took what was never wholly written.
    #[test]
    fn what_a_peer_cannot_have_is_not_delivered() {
        let (mut out, mut batch) = writing(3);
        leaves(&mut out, 1_000);
        batch.advance(6 + 6 + 5);
        assert_eq!(out.close(&mut batch).len(), 1);
        assert_eq!((out.sent, out.delivered(), out.in_doubt()), (2, 2, 0));

        let (mut out, _) = writing(3);
        leaves(&mut out, 1_000);
        out.written();
        assert_eq!((out.delivered(), out.in_doubt()), (3, 0));
    }
}
