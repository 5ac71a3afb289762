//! The sender's half: what waits, what is under way on which link, and what became of it.

use alloc::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use super::StreamId;
use crate::{
    credit::Tally,
    extension::delivery::{Ack, Attach, Fence, Floor, Header, Resume, Verdict, What},
    message::{Body, Head, Message, Outgoing},
    misbehaved::Misbehaved,
    pattern::Peer,
    ranges::Ranges,
    turn::Turn,
    zmtp::Command,
};

/// So many messages may lie between the oldest that is not settled and the newest that was read out: so a receiver need not
/// remember more.
const WINDOW: usize = 1 << 16;

/// After so many settled messages peers are told of the floor.
const FLOOR_EVERY: u64 = 1024;

/// What bounds deliveries.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// What may wait here for a peer.
    pub waiting: Tally,
    /// What one peer may have that it has not confirmed.
    pub under_way: Tally,
    /// How many bytes all peers together may have that they have not confirmed; each may have one message besides.
    pub budget: u64,
    /// The how-manieth delivery is the last. At least 1.
    pub attempts: u32,
}

/// A message on its way to be settled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flight {
    /// Its number in the stream.
    pub seq: u64,
    /// The life of the stream that accepted it.
    pub incarnation: u64,
    /// The how-manieth delivery is next, or under way.
    pub attempt: u32,
    /// How many links were lost that had it, perhaps.
    pub lost: u32,
    /// The message.
    pub message: Message,
}

impl Flight {
    /// A message whose how-manieth delivery is next.
    pub fn new(seq: u64, incarnation: u64, attempt: u32, message: Message) -> Self {
        Self { seq, incarnation, attempt, lost: 0, message }
    }

    /// Whether it is given to a peer that has nothing else: one message that no receiver survives takes others with it each
    /// time, and nobody knows which of them it is. From half of the attempts on they go one by one; then it is known. Not
    /// after a single loss, which says nothing.
    fn goes_alone(&self, rules: &Rules) -> bool {
        self.lost >= (rules.attempts / 2).max(2)
    }
}

/// What the source of the messages is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// There is room for [more](Deliveries::feed).
    Wants,
    /// These seqs are done with.
    Settled(Ranges),
    /// This one was delivered before and will be again, for the so-manieth time.
    Again {
        /// Its seq.
        seq: u64,
        /// Which attempt is next.
        attempt: u32,
    },
    /// This one is to be [given back](Deliveries::again) after so many milliseconds.
    Later {
        /// It.
        flight: Flight,
        /// How long to wait.
        millis: u64,
    },
    /// This one is given to nobody any more. [`settle`](Deliveries::settle) it when it is kept elsewhere.
    Dead {
        /// It.
        flight: Flight,
        /// Why.
        why: Why,
    },
    /// A receiver knows of a later life of our stream, or of another of the same age: this one was copied.
    Forked {
        /// That life.
        incarnation: u64,
    },
}

/// Why a message is given to nobody any more.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Why {
    /// It was delivered as often as it may be.
    Attempts,
    /// The far application rejected it.
    Rejected(Bytes),
    /// All peers refuse messages of its size.
    TooLarge,
}

/// What became of deliveries, and whose they are: of the one peer they are all for, if there is one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Of(pub Option<Peer>, pub Outcome);

impl From<Of> for Outcome {
    fn from(Of(_, outcome): Of) -> Self {
        outcome
    }
}

/// Messages of one stream that are kept until they are confirmed.
#[derive(Debug)]
pub struct Deliveries {
    stream: StreamId,
    /// The peer that all are for.
    only: Option<Peer>,
    incarnation: u64,
    rules: Rules,
    /// What no peer has, by seq; and what it takes.
    waiting: BTreeMap<u64, Flight>,
    held: Tally,
    links: BTreeMap<Peer, Link>,
    /// Bytes of what they have.
    under_way: u64,
    /// What somebody else keeps for us: it comes again later, or is on its way to be kept elsewhere. By seq what it costs,
    /// and all of it.
    away: BTreeMap<u64, u64>,
    away_bytes: u64,
    /// All that was read out from the oldest on that is not settled, and whether it is.
    ledger: VecDeque<(u64, bool)>,
    /// How many of the ledger are not settled.
    open: u64,
    /// One past the newest that was read out.
    next: u64,
    /// The source was told that there is room, and has not given more since.
    wanting: bool,
    /// It is to be told only when nothing waits.
    wants_idle: bool,
    /// The source has more.
    more: bool,
}

#[derive(Debug, Default)]
struct Link {
    /// The peer has answered.
    resumed: bool,
    /// What the stream was called when the peer was asked.
    stream: StreamId,
    /// The peer knows of another life of it, and passes over what comes here.
    fenced: bool,
    /// The place of the first of `flights`.
    base: u64,
    /// What is under way, in the order of places.
    flights: VecDeque<Option<Flight>>,
    open: Tally,
    told_floor: u64,
}

impl Link {
    fn take(&mut self, place: u64) -> Option<Flight> {
        let index = usize::try_from(place.checked_sub(self.base)?).ok()?;
        let flight = self.flights.get_mut(index)?.take()?;
        self.open.remove(flight.message.cost());
        while let Some(None) = self.flights.front() {
            self.flights.pop_front();
            self.base += 1;
        }
        Some(flight)
    }

    fn next(&self) -> u64 {
        self.base + self.flights.len() as u64
    }

    /// Whether it has a message that [goes alone](Flight::goes_alone): none is given after that until it is settled.
    fn is_taken(&self, rules: &Rules) -> bool {
        matches!(self.flights.back(), Some(Some(last)) if last.goes_alone(rules))
    }
}

impl Deliveries {
    /// Nothing is under way. `from` is below all seqs to come.
    pub fn new(stream: StreamId, incarnation: u64, from: u64, rules: Rules) -> Self {
        Self {
            stream,
            only: None,
            incarnation,
            rules,
            waiting: BTreeMap::new(),
            held: Tally::ZERO,
            links: BTreeMap::new(),
            under_way: 0,
            away: BTreeMap::new(),
            away_bytes: 0,
            ledger: VecDeque::new(),
            open: 0,
            next: from,
            wanting: true,
            wants_idle: false,
            more: false,
        }
    }

    /// All are for this peer.
    #[must_use]
    pub fn only_for(mut self, peer: Peer) -> Self {
        self.only = Some(peer);
        self
    }

    fn tell<T: Turn<Event: From<Of>>>(&self, turn: &mut T, outcome: Outcome) {
        turn.deliver(Of(self.only, outcome).into());
    }

    /// From now on the stream has this name, for peers that link later. Those that know of another life of the old one, or
    /// have not answered and may, are to link anew.
    pub fn rename<T: Turn>(&mut self, stream: StreamId, turn: &mut T) {
        self.stream = stream;
        let useless = self.links.iter().filter(|(_, link)| link.fenced || !link.resumed);
        useless.for_each(|(&peer, _)| turn.relink(peer));
    }

    /// Below this seq all is settled.
    pub fn floor(&self) -> u64 {
        self.ledger.front().map_or(self.next, |&(seq, _)| seq)
    }

    /// The seq that the next message has, where the source does not number them itself.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Which life of the stream this is.
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// What was read out and is not settled; if the source has more, at least one.
    pub fn unsettled(&self) -> Tally {
        Tally::new(self.open.max(u64::from(self.more)), self.held.bytes.saturating_add(self.under_way))
    }

    /// Whether the source has more that it will give.
    pub fn has_more(&mut self, more: bool) {
        self.more = more;
    }

    /// Whether nothing waits here for a peer. If something does, the source is told when nothing does any more.
    pub fn idle_or_told(&mut self) -> bool {
        self.wants_idle = !self.waiting.is_empty();
        self.wanting &= !self.wants_idle;
        !self.wants_idle
    }

    /// How much more may be fed.
    pub fn room(&self) -> Tally {
        let window = WINDOW.saturating_sub(self.ledger.len()) as u64;
        let room = self.rules.waiting.minus(self.held);
        let bytes = match self.held.is_zero() && self.away.is_empty() {
            true => u64::MAX,
            false => room.bytes.saturating_sub(self.away_bytes),
        };
        Tally::new(room.messages.min(window), bytes)
    }

    /// Takes these, whose seqs are beyond all before.
    pub fn feed(&mut self, flights: impl IntoIterator<Item = Flight>) {
        (self.wanting, self.wants_idle) = (false, false);
        for flight in flights {
            debug_assert!(flight.seq >= self.next, "a seq comes once");
            self.next = flight.seq + 1;
            self.ledger.push_back((flight.seq, false));
            self.open += 1;
            self.wait(flight);
        }
    }

    /// Gives a message another try that was to come later.
    pub fn again(&mut self, flight: Flight) {
        self.back(flight.seq);
        self.wait(flight);
    }

    /// Somebody else keeps this one for us.
    fn away(&mut self, flight: &Flight) {
        self.away.insert(flight.seq, flight.message.cost());
        self.away_bytes += flight.message.cost();
    }

    fn back(&mut self, seq: u64) {
        self.away_bytes -= self.away.remove(&seq).unwrap_or_default();
    }

    fn wait(&mut self, flight: Flight) {
        self.held.add(flight.message.cost());
        self.waiting.insert(flight.seq, flight);
    }

    /// What is to be sent next.
    pub fn front(&self) -> Option<Outgoing<'static>> {
        let (_, flight) = self.waiting.first_key_value()?;
        let &Flight { seq, incarnation, attempt, ref message, .. } = flight;
        let head = Head::Delivery(Header { seq, incarnation, attempt });
        Some(Outgoing { head, body: Body::Message(message.clone()) })
    }

    /// What peers have that they have not confirmed, in bytes.
    pub fn under_way(&self) -> u64 {
        self.under_way
    }

    /// Whether this peer may have the front, where those that are not ours have so many bytes.
    #[inline]
    pub fn takes(&self, peer: Peer, cost: u64, others: u64) -> bool {
        let all = self.under_way.saturating_add(others).saturating_add(cost);
        let alone = self.waiting.first_key_value().is_some_and(|(_, flight)| flight.goes_alone(&self.rules));
        self.links.get(&peer).is_some_and(|link| {
            let within = (all <= self.rules.budget && !alone) || link.open.is_zero();
            link.resumed && !link.is_taken(&self.rules) && within && link.open.admits(cost, self.rules.under_way)
        })
    }

    /// The front went to this peer.
    pub fn sent(&mut self, peer: Peer) {
        let Some(flight) = self.pop() else { return };
        let Some(link) = self.links.get_mut(&peer) else { return self.wait(flight) };
        link.open.add(flight.message.cost());
        self.under_way += flight.message.cost();
        link.flights.push_back(Some(flight));
    }

    /// Nobody takes the front.
    pub fn refused<T: Turn<Event: From<Of>>>(&mut self, turn: &mut T) {
        if let Some(flight) = self.pop() {
            self.away(&flight);
            self.tell(turn, Outcome::Dead { flight, why: Why::TooLarge });
        }
    }

    fn pop(&mut self) -> Option<Flight> {
        let (_, flight) = self.waiting.pop_first()?;
        self.held.remove(flight.message.cost());
        Some(flight)
    }

    /// Asks the source for more, if there is room for a good deal and it was not asked before.
    pub fn want<T: Turn<Event: From<Of>>>(&mut self, turn: &mut T) {
        let half = Tally::new(self.rules.waiting.messages.div_ceil(2), self.rules.waiting.bytes.div_ceil(2));
        let room = self.room();
        let enough = room.messages >= half.messages.min(WINDOW as u64 / 2) && room.bytes >= half.bytes;
        if !self.wanting && if self.wants_idle { self.waiting.is_empty() } else { enough } {
            self.wanting = true;
            self.tell(turn, Outcome::Wants);
        }
    }

    // ---- what peers say -------------------------------------------------------------------------------------------

    /// A peer is linked: it is asked what it knows, and gets nothing before it has answered.
    pub fn on_join<T: Turn>(&mut self, peer: Peer, turn: &mut T) {
        let floor = self.floor();
        self.links.insert(peer, Link { told_floor: floor, stream: self.stream, ..Link::default() });
        turn.tell(peer, Command::Attach(Attach { stream: self.stream, incarnation: self.incarnation, floor }));
    }

    /// The peer has answered. Whether it is the first time.
    pub fn on_resume<T: Turn<Event: From<Of>>>(&mut self, peer: Peer, resume: &Resume, turn: &mut T) -> bool {
        let Some(link) = self.links.get_mut(&peer) else { return false };
        if core::mem::replace(&mut link.resumed, true) {
            return false;
        }
        // What it has done need not be sent; what of it is still to be read out, it will pass over.
        let mut settled = Ranges::default();
        let held = &mut self.held;
        self.waiting.retain(|&seq, flight| {
            let of = resume.done.iter().find(|(incarnation, _)| *incarnation == flight.incarnation);
            let done = of.is_some_and(|(_, ranges)| ranges.range_of(seq).is_some());
            if done {
                held.remove(flight.message.cost());
                settled.insert(seq..seq + 1);
            }
            !done
        });
        self.settled(settled, turn);
        true
    }

    /// The peer is done with these.
    ///
    /// # Errors
    /// When it never had them.
    pub fn on_ack<T: Turn<Event: From<Of>>>(&mut self, peer: Peer, ack: &Ack, turn: &mut T) -> Result<(), Misbehaved> {
        let Some(link) = self.links.get_mut(&peer) else { return Ok(()) };
        // Before any is taken: what a liar had goes to another.
        if ack.places.iter().any(|range| range.end > link.next()) {
            return Err(Misbehaved::ImpossibleCount);
        }
        let mut settled = Ranges::default();
        for range in ack.places.iter() {
            for place in range.start.max(link.base)..range.end {
                if let Some(flight) = link.take(place) {
                    self.under_way = self.under_way.saturating_sub(flight.message.cost());
                    settled.insert(flight.seq..flight.seq + 1);
                }
            }
        }
        self.settled(settled, turn);
        Ok(())
    }

    /// The peer is not done with this one.
    ///
    /// # Errors
    /// When it never had it.
    pub fn on_verdict<T: Turn<Event: From<Of>>>(
        &mut self,
        peer: Peer,
        verdict: &Verdict,
        turn: &mut T,
    ) -> Result<(), Misbehaved> {
        let Some(link) = self.links.get_mut(&peer) else { return Ok(()) };
        if verdict.place >= link.next() {
            return Err(Misbehaved::ImpossibleCount);
        }
        let Some(flight) = link.take(verdict.place) else { return Ok(()) };
        self.under_way = self.under_way.saturating_sub(flight.message.cost());
        match &verdict.what {
            What::Reject { reason } => {
                self.away(&flight);
                self.tell(turn, Outcome::Dead { flight, why: Why::Rejected(reason.clone()) });
            }
            What::Release { millis } => self.delivered(flight, *millis, turn),
        }
        Ok(())
    }

    /// The peer knows of another life of our stream.
    ///
    /// # Errors
    /// When that is none that could keep ours out, or it has said so before.
    pub fn on_fence<T: Turn<Event: From<Of>>>(
        &mut self,
        peer: Peer,
        fence: &Fence,
        turn: &mut T,
    ) -> Result<(), Misbehaved> {
        let &Fence { incarnation } = fence;
        let Some(link) = self.links.get_mut(&peer) else { return Ok(()) };
        if link.fenced || incarnation == self.incarnation || incarnation >> 32 < self.incarnation >> 32 {
            return Err(Misbehaved::UnexpectedCommand);
        }
        link.fenced = true;
        if link.stream == self.stream {
            self.tell(turn, Outcome::Forked { incarnation });
        } else {
            // It has another name by now.
            turn.relink(peer);
        }
        Ok(())
    }

    /// A link is gone; so many of the last that were given to it were not wholly written. All that it has not confirmed
    /// waits again.
    pub fn on_leave<T: Turn<Event: From<Of>>>(&mut self, peer: Peer, unsent: usize, turn: &mut T) {
        let Some(link) = self.links.remove(&peer) else { return };
        self.under_way = self.under_way.saturating_sub(link.open.bytes);
        let written = link.flights.len().saturating_sub(unsent);
        for (index, flight) in link.flights.into_iter().enumerate() {
            match flight {
                Some(flight) if index < written => {
                    let lost = flight.lost.saturating_add(1);
                    self.delivered(Flight { lost, ..flight }, 0, turn);
                }
                Some(flight) => self.wait(flight),
                None => {}
            }
        }
    }

    /// It was delivered, or may have been, and is to be again.
    fn delivered<T: Turn<Event: From<Of>>>(&mut self, mut flight: Flight, millis: u64, turn: &mut T) {
        if flight.attempt >= self.rules.attempts {
            self.away(&flight);
            self.tell(turn, Outcome::Dead { flight, why: Why::Attempts });
            return;
        }
        flight.attempt += 1;
        self.tell(turn, Outcome::Again { seq: flight.seq, attempt: flight.attempt });
        match millis {
            0 => self.wait(flight),
            millis => {
                self.away(&flight);
                self.tell(turn, Outcome::Later { flight, millis });
            }
        }
    }

    /// This one, which was [dead](Outcome::Dead), is kept elsewhere.
    pub fn settle<T: Turn<Event: From<Of>>>(&mut self, seq: u64, turn: &mut T) {
        self.settled(Ranges::from(seq..seq.saturating_add(1)), turn);
    }

    fn settled<T: Turn<Event: From<Of>>>(&mut self, settled: Ranges, turn: &mut T) {
        if settled.is_empty() {
            return;
        }
        for seq in settled.iter().flatten() {
            self.back(seq);
            let index = self.ledger.partition_point(|&(other, _)| other < seq);
            if let Some((_, done)) = self.ledger.get_mut(index).filter(|entry| **entry == (seq, false)) {
                *done = true;
                self.open -= 1;
            }
        }
        while let Some((_, true)) = self.ledger.front() {
            self.ledger.pop_front();
        }
        let floor = self.floor();
        for (&peer, link) in self.links.iter_mut().filter(|(_, link)| link.resumed) {
            if floor >= link.told_floor + FLOOR_EVERY {
                link.told_floor = floor;
                turn.tell(peer, Command::Floor(Floor { seq: floor }));
            }
        }
        self.tell(turn, Outcome::Settled(settled));
    }
}
