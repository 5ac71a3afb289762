//! The sender of confirmed delivery and its source, and what must be true of them; what both ends share.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    mem,
};

use bytes::BytesMut;
use ropewalk_patterns::{
    Body, Message, Pattern, Peer, Room, Tally, Why as NotDone,
    delivery::{Deliveries, Flight, Keeps, MessageId, Outcome, Rules, StreamId, Why},
    extension::delivery::What,
    push_pull::Push,
    ranges::Ranges,
    zmtp::{Command, Header, Limits},
};

use crate::net::{Bounds, Did, Hub, Item, number, numbered, within};

/// A command as it comes out at the far end: through its bytes.
pub(crate) fn through(command: &Command) -> Command {
    let mut out = BytesMut::new();
    command.encode(false, &mut out);
    let frame = out.freeze();
    let header = Header::read(&frame).unwrap().expect("a whole header");
    let read = Command::decode(frame.slice(header.len()..), &Limits::default()).expect("our own command");
    assert_eq!(read, *command);
    read
}

/// What one end told its peers.
pub(crate) type Told = Vec<(Peer, Command)>;

/// Which life of a stream so old is.
pub(crate) fn life(age: u64) -> u64 {
    (age << 32) | ((age * 7919) % 1000)
}

/// What stands in the header of a message: seq, incarnation, attempt.
pub(crate) fn header(message: &Message) -> (u64, u64, u32) {
    let part = message.part(0).unwrap();
    let number = |at: usize| u64::from_le_bytes(part[at..at + 8].try_into().unwrap());
    (number(0), number(8), u32::from_le_bytes(part[16..20].try_into().unwrap()))
}

pub(crate) fn message(item: Item) -> Message {
    match item {
        Item::Message(message) => message,
        Item::Gap(_) => panic!("a push leaves nothing out"),
    }
}

/// What became of a message, as its source sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fate {
    Pending(Place),
    Settled,
    /// The source may not have kept it elsewhere yet.
    Dead {
        rescued: bool,
    },
}

/// Where a message is that is not settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// With the source, not read out in this life.
    Source,
    Waiting,
    /// With the source, to come again.
    Later,
    Under(Peer),
}

#[derive(Debug)]
struct Record {
    message: Message,
    incarnation: u64,
    attempt: u32,
    /// Given to a link in this life.
    sent: bool,
    fate: Fate,
}

#[derive(Debug)]
struct Far {
    resumed: bool,
    largest: u64,
    /// What it has not confirmed, by place.
    under: BTreeMap<u64, u64>,
    sent: u64,
    /// The newest that was sent to it for the first time.
    newest: Option<u64>,
}

/// A source and its push.
pub(crate) struct Sender {
    pub(crate) hub: Hub<Push>,
    pub(crate) stream: StreamId,
    age: u64,
    verbs: bool,
    rules: Rules,
    records: BTreeMap<u64, Record>,
    /// The next message that is made has this seq.
    next: u64,
    wanted: bool,
    later: Vec<Flight>,
    dead: Vec<u64>,
    links: BTreeMap<Peer, Far>,
    /// Whose next delivery is another attempt.
    returning: BTreeSet<u64>,
    /// What was ever settled, also where the source forgot that.
    ever: BTreeSet<MessageId>,
    /// Sends of the application that wait.
    line: VecDeque<Message>,
    pub(crate) forked: Vec<u64>,
}

impl Sender {
    pub(crate) fn new(stream: StreamId, verbs: bool, rules: Rules) -> Self {
        let mut sender = Self {
            hub: Hub::new(Push::default(), Tally::ZERO),
            stream,
            age: 0,
            verbs,
            rules,
            records: BTreeMap::new(),
            next: 0,
            wanted: true,
            later: Vec::new(),
            dead: Vec::new(),
            links: BTreeMap::new(),
            returning: BTreeSet::new(),
            ever: BTreeSet::new(),
            line: VecDeque::new(),
            forked: Vec::new(),
        };
        sender.live();
        sender
    }

    /// A new life begins: what was not settled is to be fed once more.
    fn live(&mut self) {
        self.age += 1;
        let open = |record: &&mut Record| !matches!(record.fate, Fate::Settled | Fate::Dead { rescued: true });
        for record in self.records.values_mut().filter(open) {
            (record.fate, record.sent) = (Fate::Pending(Place::Source), false);
        }
        let unread = |(_, record): &(&u64, &Record)| record.fate == Fate::Pending(Place::Source);
        let from = self.records.iter().find(unread).map_or(self.next, |(&seq, _)| seq);
        let deliveries = Deliveries::new(self.stream, life(self.age), from, self.rules);
        self.hub = Hub::new(Push::keeping(deliveries, self.verbs), Tally::ZERO);
        (self.wanted, self.later, self.dead) = (true, Vec::new(), Vec::new());
        self.links.clear();
    }

    /// The sender dies and is back. That the last so many were settled had not reached the disk.
    pub(crate) fn restart(&mut self, forgotten: usize) {
        assert!(!self.verbs, "without a source nothing outlives a restart");
        let settled = self.records.values_mut().filter(|record| record.fate == Fate::Settled);
        for record in settled.rev().take(forgotten) {
            record.fate = Fate::Pending(Place::Source);
        }
        self.live();
    }

    pub(crate) fn incarnation(&self) -> u64 {
        life(self.age)
    }

    pub(crate) fn id(&self, seq: u64) -> MessageId {
        MessageId { stream: self.stream, incarnation: self.records[&seq].incarnation, seq }
    }

    /// Whether this need not be handed out: somebody had it, or nobody is to have it.
    pub(crate) fn is_over(&self, id: &MessageId) -> bool {
        self.ever.contains(id) || matches!(self.records[&id.seq].fate, Fate::Dead { .. })
    }

    /// The source has one more message.
    pub(crate) fn make(&mut self, size: usize, gap: u64) {
        if self.verbs {
            self.line.push_back(numbered(self.next + self.line.len() as u64, size));
            self.hub.net.ready |= self.line.len() == 1;
            return;
        }
        let seq = self.next + gap;
        self.next = seq + 1;
        self.keep(seq, numbered(seq, size), Place::Source);
    }

    fn keep(&mut self, seq: u64, message: Message, place: Place) {
        let fate = Fate::Pending(place);
        self.records.insert(seq, Record { message, incarnation: life(self.age), attempt: 1, sent: false, fate });
    }

    /// The source feeds what it was asked for.
    pub(crate) fn feed(&mut self, at_most: usize) {
        if !self.wanted {
            return;
        }
        let deliveries = self.hub.pattern.deliveries().unwrap();
        let (room, mut fed, mut flights) = (deliveries.room(), Tally::ZERO, Vec::new());
        for (&seq, record) in &mut self.records {
            if record.fate != Fate::Pending(Place::Source) {
                continue;
            }
            let cost = record.message.cost();
            if flights.len() >= at_most || !fed.admits(cost, room) {
                break;
            }
            fed.add(cost);
            record.fate = Fate::Pending(Place::Waiting);
            let &mut Record { incarnation, attempt, ref message, .. } = record;
            flights.push(Flight::new(seq, incarnation, attempt, message.clone()));
        }
        if !flights.is_empty() {
            self.wanted = false;
            self.hub.pattern.deliver(None, &mut self.hub.net, |deliveries, _| deliveries.feed(flights));
        }
    }

    /// The time of one that was to come later has come.
    pub(crate) fn again(&mut self, which: usize) {
        if !self.later.is_empty() {
            let flight = self.later.swap_remove(which % self.later.len());
            self.record(flight.seq).fate = Fate::Pending(Place::Waiting);
            self.hub.pattern.deliver(None, &mut self.hub.net, |deliveries, _| deliveries.again(flight));
        }
    }

    /// One that is dead is kept elsewhere now.
    pub(crate) fn rescue(&mut self, which: usize) {
        if !self.dead.is_empty() {
            let seq = self.dead.swap_remove(which % self.dead.len());
            self.record(seq).fate = Fate::Dead { rescued: true };
            self.hub.pattern.deliver(None, &mut self.hub.net, |deliveries, turn| deliveries.settle(seq, turn));
        }
    }

    pub(crate) fn join(&mut self, bounds: Bounds) -> Peer {
        let peer = self.hub.join(bounds, true);
        let largest = bounds.largest;
        self.links.insert(peer, Far { resumed: false, largest, under: BTreeMap::new(), sent: 0, newest: None });
        peer
    }

    /// A link dies. What was wholly written.
    pub(crate) fn leave(&mut self, peer: Peer) -> Vec<Message> {
        let remains = self.hub.leave(peer);
        let far = self.links.remove(&peer).unwrap();
        let written = far.sent - remains.unsent.len() as u64;
        for (place, seq) in far.under {
            self.record(seq).fate = Fate::Pending(Place::Waiting);
            if place < written {
                self.returning.insert(seq);
            }
        }
        remains.arrived.into_iter().map(message).collect()
    }

    fn record(&mut self, seq: u64) -> &mut Record {
        self.records.get_mut(&seq).expect("a message of this source")
    }

    /// A receiver says something. `done`: what any receiver was ever done with.
    pub(crate) fn hear(&mut self, peer: Peer, command: Command, done: &BTreeSet<MessageId>) -> Told {
        let far = self.links.get_mut(&peer).expect("a linked peer");
        let (mut settled, mut rejected, mut later) = (Vec::new(), None, None);
        match &command {
            Command::Resume(resume) => {
                far.resumed = true;
                let waits = |record: &Record| record.fate == Fate::Pending(Place::Waiting);
                let knows = |seq: u64, record: &Record| {
                    let is_in =
                        |(life, seqs): &(u64, Ranges)| *life == record.incarnation && seqs.range_of(seq).is_some();
                    resume.done.iter().any(is_in)
                };
                let known = self.records.iter().filter(|&(&seq, record)| waits(record) && knows(seq, record));
                settled.extend(known.map(|(&seq, _)| seq));
            }
            Command::Ack(ack) => {
                let places = ack.places.iter().flatten();
                settled.extend(places.filter_map(|place| far.under.remove(&place)));
            }
            Command::Verdict(verdict) => match (far.under.remove(&verdict.place), &verdict.what) {
                (Some(seq), What::Reject { reason }) => rejected = Some((seq, reason.clone())),
                (Some(seq), what) => {
                    self.record(seq).fate = Fate::Pending(Place::Waiting);
                    self.returning.insert(seq);
                    later = (*what != What::Release { millis: 0 }).then_some(seq);
                }
                (None, _) => {}
            },
            _ => {}
        }
        self.hub.pattern.on_command(peer, command, &mut self.hub.net).expect("an honest peer");
        if let Some((seq, reason)) = rejected {
            let because = |why: &Why| *why == Why::Rejected(reason.clone());
            let is_it =
                |event: &Outcome| matches!(event, Outcome::Dead { flight, why } if flight.seq == seq && because(why));
            assert!(self.hub.net.events.iter().any(is_it), "{seq} was rejected");
        }
        let told = self.follow(done);
        for seq in settled {
            assert_eq!(self.records[&seq].fate, Fate::Settled, "the receiver is done with {seq}");
        }
        if let Some(seq) = later {
            let fate = &self.records[&seq].fate;
            assert!(matches!(fate, Fate::Pending(Place::Later) | Fate::Dead { .. }), "{seq} does not wait");
        }
        told
    }

    /// What the push did is what it may. What it tells its peers.
    pub(crate) fn follow(&mut self, done: &BTreeSet<MessageId>) -> Told {
        let mut told = Vec::new();
        for event in mem::take(&mut self.hub.net.events) {
            self.on_outcome(event, done);
        }
        assert!(self.returning.is_empty(), "delivered, and its next attempt is no other: {:?}", self.returning);
        for did in self.hub.take_did() {
            match did {
                Did::Sent { peer, message, .. } => self.on_sent(peer, &message),
                Did::Told(peer, command) => told.push((peer, through(&command))),
                other => panic!("a push that keeps does not do {other:?}"),
            }
        }
        self.check();
        told
    }

    fn on_outcome(&mut self, outcome: Outcome, done: &BTreeSet<MessageId>) {
        match outcome {
            Outcome::Settled(seqs) => {
                for seq in seqs.iter().flatten() {
                    let id = self.id(seq);
                    match &self.records[&seq].fate {
                        Fate::Dead { rescued: true } => continue,
                        Fate::Pending(Place::Waiting | Place::Under(_)) => {}
                        other => panic!("{seq} is settled, and was {other:?}"),
                    }
                    assert!(done.contains(&id), "{seq} is settled, and no receiver is done with it");
                    self.ever.insert(id);
                    self.record(seq).fate = Fate::Settled;
                }
            }
            Outcome::Again { seq, attempt } => {
                assert!(self.returning.remove(&seq), "{seq} was not delivered");
                assert_eq!(attempt, self.records[&seq].attempt + 1);
                self.record(seq).attempt = attempt;
            }
            Outcome::Later { flight, millis } => {
                assert_eq!((flight.attempt, millis), (self.records[&flight.seq].attempt, 7));
                self.record(flight.seq).fate = Fate::Pending(Place::Later);
                self.later.push(flight);
            }
            Outcome::Dead { flight, why } => {
                match why {
                    Why::Attempts => {
                        assert!(self.returning.remove(&flight.seq) && flight.attempt >= self.rules.attempts);
                    }
                    Why::TooLarge => {
                        let refuse = |far: &Far| !far.resumed || flight.message.bytes() + 20 > far.largest;
                        assert!(self.links.values().all(refuse), "{} is too large for nobody", flight.seq);
                    }
                    _ => {}
                }
                let record = self.record(flight.seq);
                assert_eq!((flight.attempt, &flight.message), (record.attempt, &record.message));
                assert!(matches!(record.fate, Fate::Pending(_)));
                record.fate = Fate::Dead { rescued: false };
                self.dead.push(flight.seq);
            }
            Outcome::Wants => assert!(!mem::replace(&mut self.wanted, true), "asked twice"),
            Outcome::Forked { incarnation } => self.forked.push(incarnation),
        }
    }

    fn on_sent(&mut self, peer: Peer, message: &Message) {
        let (seq, incarnation, attempt) = header(message);
        let at_most = self.rules.attempts;
        let record = self.records.get_mut(&seq).expect("a message of this source");
        assert_eq!(
            (incarnation, attempt, record.fate.clone()),
            (record.incarnation, record.attempt, Fate::Pending(Place::Waiting))
        );
        assert!(attempt <= at_most, "delivered too often");
        assert_eq!(message.parts()[1..], *record.message.parts());
        record.fate = Fate::Pending(Place::Under(peer));
        let first = !mem::replace(&mut record.sent, true);
        let far = self.links.get_mut(&peer).expect("a linked peer");
        assert!(far.resumed, "sent before the peer had answered");
        assert!(!first || far.newest.is_none_or(|newest| newest < seq), "{seq} comes late");
        far.newest = if first { Some(seq) } else { far.newest };
        far.under.insert(far.sent, seq);
        far.sent += 1;
        let mut open = Tally::ZERO;
        far.under.values().for_each(|seq| open.add(self.records[seq].message.cost()));
        assert!(within(open, self.rules.under_way), "more is under way than may be");
    }

    /// What must be true at any time.
    fn check(&mut self) {
        let (mut waiting, mut open, mut bytes) = (Tally::ZERO, 0, 0);
        let mut floor = None;
        for (&seq, record) in &self.records {
            match record.fate {
                Fate::Pending(Place::Source) | Fate::Settled | Fate::Dead { rescued: true } => continue,
                Fate::Pending(Place::Waiting) => waiting.add(record.message.cost()),
                Fate::Pending(Place::Under(_)) => bytes += record.message.cost(),
                _ => {}
            }
            floor = floor.or(Some(seq));
            open += 1;
        }
        let deliveries = self.hub.pattern.deliveries().unwrap();
        assert_eq!(deliveries.floor(), floor.unwrap_or(deliveries.next()));
        assert_eq!(deliveries.unsettled(), Tally::new(open, bytes + waiting.bytes));
        let (room, may) = (deliveries.room(), self.rules.waiting);
        assert_eq!(room.messages, may.messages.saturating_sub(waiting.messages));
        // What comes later, or is on its way elsewhere, takes room as well.
        assert!(waiting.is_zero() || room.bytes <= may.bytes.saturating_sub(waiting.bytes));
        if !self.verbs && !self.wanted {
            let half = room.messages >= may.messages.div_ceil(2) && room.bytes >= may.bytes.div_ceil(2);
            assert!(!half, "there is room for half, and the source was not told");
        }
        assert_eq!(deliveries.front().is_some(), !waiting.is_zero());
        if let Some(front) = deliveries.front() {
            let takes = |peer: &Peer| deliveries.takes(*peer, front.cost(), 0);
            let open: Vec<Peer> = self.links.keys().copied().filter(takes).collect();
            let fits = |peer: &Peer| self.hub.net.room_of(*peer, front.bytes()) == Room::Fits;
            assert!(!open.iter().any(fits), "a message waits while a peer has room");
        }
    }

    /// The application's sends that wait are tried again, if they may be.
    pub(crate) fn try_line(&mut self) {
        while mem::take(&mut self.hub.net.ready) {
            while let Some(message) = self.line.pop_front() {
                let (body, seq) = (Body::from(&message), self.next);
                let accepted = if number(&message).is_multiple_of(2) {
                    self.hub.pattern.accept(body, &mut self.hub.net, |given| given).map(|given| assert_eq!(given, seq))
                } else {
                    self.hub.pattern.on_verb(body, &mut self.hub.net)
                };
                if let Err((body, why)) = accepted {
                    assert_eq!((body.into_message(), why), (message.clone(), NotDone::Full));
                    self.line.push_front(message);
                    break;
                }
                self.keep(seq, message, Place::Waiting);
                self.next += 1;
            }
        }
    }

    /// Whether nothing is left to be settled.
    pub(crate) fn is_done(&self) -> bool {
        let done = |record: &Record| matches!(record.fate, Fate::Settled | Fate::Dead { rescued: true });
        self.line.is_empty() && self.records.values().all(done)
    }

    pub(crate) fn left_over(&self) -> Vec<(u64, String)> {
        let open = self.records.iter().filter(|(_, record)| matches!(record.fate, Fate::Pending(_)));
        open.map(|(&seq, record)| (seq, format!("{:?}", record.fate))).collect()
    }
}
