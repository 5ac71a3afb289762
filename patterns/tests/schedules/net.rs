//! The far ends of a socket in memory: what the hub and its links do, plainly.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt::Debug,
};

use bytes::Bytes;
use proptest::prelude::*;
use ropewalk_patterns::{
    Action, Message, Outgoing, Pattern, Peer, Role, Room, Tally, Turn,
    extension::Hello,
    zmtp::{Command, Ready},
};

/// What one link may hold.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Without credit.
    pub(crate) hwm: Tally,
    /// With credit, until the far application has taken it and said so.
    pub(crate) window: Tally,
    /// Bytes of one message.
    pub(crate) largest: u64,
}

impl Bounds {
    pub(crate) const WIDE: Self =
        Self { hwm: Tally::new(10_000, 1 << 40), window: Tally::new(10_000, 1 << 40), largest: 1 << 30 };
}

/// Bounds so tight that every schedule meets them.
pub(crate) fn bounds() -> impl Strategy<Value = Bounds> {
    let tally = || (1u64..5, 64u64..600).prop_map(|(messages, bytes)| Tally::new(messages, bytes));
    let largest = prop_oneof![3 => Just(1u64 << 20), 1 => 30u64..200];
    (tally(), tally(), largest).prop_map(|(hwm, window, largest)| Bounds { hwm, window, largest })
}

/// What stands in the stream to a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Item {
    Message(Message),
    Gap(u64),
}

/// What the pattern asked for, in order.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Did {
    /// A message to one peer; `open` are all that had room for it.
    Sent {
        peer: Peer,
        message: Message,
        open: Vec<Peer>,
    },
    Told(Peer, Command),
    Missed(Peer),
    DroppedOldest(Peer),
    Disconnected(Peer),
    Abandoned(Peer),
    Lost(u64),
}

#[derive(Debug)]
struct Link {
    bounds: Bounds,
    waiting: VecDeque<Item>,
    /// With credit, not written.
    going: VecDeque<Item>,
    /// Wholly written, not taken by the far application.
    arrived: VecDeque<Item>,
    /// What took credit and was not given back.
    in_flight: Tally,
    /// Taken by the far application, which has not told.
    owed: Tally,
    called_full: bool,
    closing: bool,
}

/// Whether one more fits below the bound: the byte bound may be passed by a message that is alone.
fn fits(held: Tally, cost: u64, bound: Tally) -> bool {
    held.messages < bound.messages && (held.bytes + cost <= bound.bytes || held.messages == 0)
}

pub(crate) fn within(held: Tally, bound: Tally) -> bool {
    held.messages <= bound.messages && (held.bytes <= bound.bytes || held.messages <= 1)
}

pub(crate) fn tally<'a>(messages: impl IntoIterator<Item = &'a Message>) -> Tally {
    let mut tally = Tally::ZERO;
    for message in messages {
        tally.messages += 1;
        tally.bytes += message.bytes() + 64;
    }
    tally
}

fn messages(items: &VecDeque<Item>) -> impl Iterator<Item = &Message> {
    items.iter().filter_map(|item| match item {
        Item::Message(message) => Some(message),
        Item::Gap(_) => None,
    })
}

fn push(items: &mut VecDeque<Item>, item: Item) {
    match (items.back_mut(), item) {
        (Some(Item::Gap(before)), Item::Gap(more)) => *before += more,
        (_, item) => items.push_back(item),
    }
}

impl Link {
    fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            waiting: VecDeque::new(),
            going: VecDeque::new(),
            arrived: VecDeque::new(),
            in_flight: Tally::ZERO,
            owed: Tally::ZERO,
            called_full: false,
            closing: false,
        }
    }

    fn room(&self, bytes: u64) -> Room {
        let takes = |cost| {
            let waiting = tally(messages(&self.waiting));
            (waiting.is_zero() && fits(self.in_flight, cost, self.bounds.window))
                || fits(waiting, cost, self.bounds.hwm)
        };
        match () {
            () if self.closing => Room::Gone,
            () if bytes > self.bounds.largest => Room::Never,
            () if takes(bytes + 64) => Room::Fits,
            () if takes(64) => Room::TooLittle,
            () => Room::Full,
        }
    }

    fn is_full(&self) -> bool {
        self.room(0) == Room::Full
    }

    /// Gives credit to what waits, as far as it goes, and holds the bounds.
    fn settle(&mut self) {
        while let Some(item) = self.waiting.front() {
            if let Item::Message(message) = item {
                let cost = message.bytes() + 64;
                if !fits(self.in_flight, cost, self.bounds.window) {
                    break;
                }
                self.in_flight.add(cost);
            }
            push(&mut self.going, self.waiting.pop_front().unwrap());
        }
        assert!(within(tally(messages(&self.waiting)), self.bounds.hwm), "send_hwm is passed: {self:?}");
        assert!(within(self.in_flight, self.bounds.window), "the window is passed: {self:?}");
    }
}

/// A Turn that keeps a list.
#[derive(Debug)]
pub(crate) struct Net<E> {
    links: BTreeMap<Peer, Link>,
    pub(crate) unlinked_limit: Tally,
    pub(crate) did: Vec<Did>,
    pub(crate) events: Vec<E>,
    /// Whether a verb that waits may be tried again.
    pub(crate) ready: bool,
    /// What the application lets peers do.
    pub(crate) lets: fn(Action<'_>) -> bool,
}

impl<E> Net<E> {
    /// How this link would take a message of so many bytes; without being called full for it.
    pub(crate) fn room_of(&self, peer: Peer, bytes: u64) -> Room {
        self.links.get(&peer).map_or(Room::Gone, |link| link.room(bytes))
    }

    pub(crate) fn linked(&self) -> Vec<Peer> {
        self.links.keys().copied().collect()
    }

    pub(crate) fn is_closing(&self, peer: Peer) -> bool {
        self.links.get(&peer).is_none_or(|link| link.closing)
    }

    pub(crate) fn close(&mut self, peer: Peer) {
        self.links.get_mut(&peer).expect("a linked peer").closing = true;
    }
}

impl<E> Turn for Net<E> {
    type Event = E;

    fn room(&mut self, peer: Peer, message: &Outgoing<'_>) -> Room {
        let link = self.links.get_mut(&peer).expect("asked for the room of a peer that is not linked");
        let room = link.room(message.bytes());
        link.called_full |= matches!(room, Room::Full | Room::TooLittle);
        room
    }

    fn send(&mut self, peer: Peer, message: &Outgoing<'_>) {
        let (message, bytes) = (message.to_message(), message.bytes());
        let open = self.linked().into_iter().filter(|&peer| self.room_of(peer, bytes) == Room::Fits).collect();
        let link = self.links.get_mut(&peer).expect("sent to a peer that is not linked");
        assert_eq!(link.room(bytes), Room::Fits, "sent without room");
        push(&mut link.waiting, Item::Message(message.clone()));
        link.settle();
        self.did.push(Did::Sent { peer, message, open });
    }

    fn tell(&mut self, peer: Peer, command: Command) {
        assert!(self.links.contains_key(&peer), "told a peer that is not linked");
        self.did.push(Did::Told(peer, command));
    }

    fn owe(&mut self, _: Peer, _: bool) {}

    fn forget(&mut self, _: Peer) {}

    fn miss(&mut self, peer: Peer, messages: u64) {
        let link = self.links.get_mut(&peer).expect("a linked peer");
        push(&mut link.waiting, Item::Gap(messages));
        link.settle();
        self.did.push(Did::Missed(peer));
    }

    fn drop_oldest(&mut self, peer: Peer) -> bool {
        let link = self.links.get_mut(&peer).expect("a linked peer");
        let Some(at) = link.waiting.iter().position(|item| matches!(item, Item::Message(_))) else { return false };
        let mut kept = VecDeque::new();
        for (index, item) in link.waiting.drain(..).enumerate() {
            push(&mut kept, if index == at { Item::Gap(1) } else { item });
        }
        link.waiting = kept;
        link.settle();
        self.did.push(Did::DroppedOldest(peer));
        true
    }

    fn disconnect(&mut self, peer: Peer) {
        self.close(peer);
        self.did.push(Did::Disconnected(peer));
    }

    fn abandon(&mut self, peer: Peer) {
        self.close(peer);
        self.did.push(Did::Abandoned(peer));
    }

    fn supersede(&mut self, peer: Peer) {
        self.close(peer);
        self.did.push(Did::Disconnected(peer));
    }

    fn relink(&mut self, peer: Peer) {
        self.close(peer);
        self.did.push(Did::Disconnected(peer));
    }

    fn lose(&mut self, messages: u64) {
        if messages > 0 {
            self.did.push(Did::Lost(messages));
        }
    }

    fn may(&mut self, _: Peer, action: Action<'_>, _: &[u8]) -> bool {
        (self.lets)(action)
    }

    fn deliver(&mut self, event: E) {
        self.events.push(event);
    }

    fn ready(&mut self) {
        self.ready = true;
    }

    fn unlinked_limit(&self) -> Tally {
        self.unlinked_limit
    }
}

/// A pattern and its far ends.
#[derive(Debug)]
pub(crate) struct Hub<P: Pattern> {
    pub(crate) pattern: P,
    pub(crate) net: Net<P::Event>,
    /// Places of the table, and how many peers each had.
    slots: Vec<(u32, bool)>,
}

/// What was left of a link when it died.
pub(crate) struct Remains {
    /// Wholly written, not taken: nobody knows.
    pub(crate) arrived: Vec<Item>,
    /// Not wholly written, given back to the pattern.
    pub(crate) unsent: Vec<Message>,
}

impl<P: Pattern> Hub<P> {
    pub(crate) fn new(pattern: P, unlinked_limit: Tally) -> Self {
        let net = Net {
            links: BTreeMap::new(),
            unlinked_limit,
            did: Vec::new(),
            events: Vec::new(),
            ready: false,
            lets: |_| true,
        };
        Self { pattern, net, slots: Vec::new() }
    }

    /// A peer joins, in the first free place.
    pub(crate) fn join(&mut self, bounds: Bounds, extension: bool) -> Peer {
        let slot = self.slots.iter().position(|(_, taken)| !taken).unwrap_or_else(|| {
            self.slots.push((0, false));
            self.slots.len() - 1
        });
        let place = &mut self.slots[slot];
        *place = (place.0 + 1, true);
        let peer = Peer { slot: slot.try_into().unwrap(), generation: place.0 };
        self.net.links.insert(peer, Link::new(bounds));
        let hello = extension.then(|| Hello::new(bounds.window, bounds.largest));
        let ready = Ready { role: Role::new(""), identity: Bytes::new(), hello };
        self.pattern.on_join(peer, &ready, &mut self.net);
        peer
    }

    /// A link dies.
    pub(crate) fn leave(&mut self, peer: Peer) -> Remains {
        let link = self.net.links.remove(&peer).expect("a linked peer");
        self.slots[peer.slot as usize].1 = false;
        let unsent: Vec<Message> = messages(&link.going).chain(messages(&link.waiting)).cloned().collect();
        self.pattern.on_leave(peer, unsent.clone(), &mut self.net);
        Remains { arrived: link.arrived.into(), unsent }
    }

    /// The link writes so many messages and what stands between them.
    pub(crate) fn write(&mut self, peer: Peer, count: usize) {
        let link = self.net.links.get_mut(&peer).expect("a linked peer");
        for _ in 0..count.min(link.going.len()) {
            let item = link.going.pop_front().unwrap();
            push(&mut link.arrived, item);
        }
    }

    /// The far application takes what is next in its stream.
    pub(crate) fn take(&mut self, peer: Peer) -> Option<Item> {
        let link = self.net.links.get_mut(&peer).expect("a linked peer");
        let item = link.arrived.pop_front()?;
        if let Item::Message(message) = &item {
            link.owed.add(message.bytes() + 64);
        }
        Some(item)
    }

    /// The far side gives credit back for all it took. True if the pattern was told of room.
    pub(crate) fn grant(&mut self, peer: Peer) -> bool {
        let link = self.net.links.get_mut(&peer).expect("a linked peer");
        let owed = std::mem::take(&mut link.owed);
        link.in_flight = link.in_flight.minus(owed);
        link.settle();
        let tell = !owed.is_zero() && link.called_full && !link.closing && !link.is_full();
        if tell {
            link.called_full = false;
            self.pattern.on_room(peer, &mut self.net);
        }
        tell
    }

    /// The peer at this place among those linked.
    pub(crate) fn pick(&self, who: u8) -> Option<Peer> {
        let linked = self.net.linked();
        linked.get(usize::from(who) % linked.len().max(1)).copied()
    }

    pub(crate) fn take_did(&mut self) -> Vec<Did> {
        std::mem::take(&mut self.net.did)
    }
}

/// Nobody who has room all the while is passed over while another gets two messages.
#[derive(Debug, Default)]
pub(crate) struct Fairness(BTreeMap<Peer, BTreeMap<Peer, u32>>);

impl Fairness {
    /// A message went to this peer while these could have had it.
    pub(crate) fn sent(&mut self, peer: Peer, open: &[Peer]) {
        self.0.retain(|other, _| *other != peer && open.contains(other));
        for &other in open.iter().filter(|&&other| other != peer) {
            let count = self.0.entry(other).or_default().entry(peer).or_default();
            *count += 1;
            assert!(*count <= 1, "{other} had room and was passed over while {peer} got {count}");
        }
    }
}

/// A message whose first bytes are its number.
pub(crate) fn numbered(number: u64, size: usize) -> Message {
    let mut bytes = number.to_be_bytes().to_vec();
    bytes.resize(8 + size, b'.');
    Message::from(bytes)
}

/// The number of such a message.
pub(crate) fn number(message: &Message) -> u64 {
    u64::from_be_bytes(message.payload()[..8].try_into().unwrap())
}

/// Every schedule counts; none is kept.
pub(crate) fn schedules(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}
