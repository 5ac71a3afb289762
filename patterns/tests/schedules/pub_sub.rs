//! Pub against a list of subscriptions: each subscriber's stream holds every message it asked for, or a gap at its
//! place that counts it.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use proptest::prelude::*;
use ropewalk_patterns::{
    Body, Head, Message, Misbehaved, Outgoing, Pattern, Peer, Role, Room, Tally, Why,
    pub_sub::{Overflow, Pub, Publish},
    zmtp::{Command, Limits},
};

use crate::net::{Bounds, Did, Hub, Item, bounds, number, numbered, schedules};

#[derive(Debug, Clone)]
enum Step {
    Join(Bounds),
    Leave(u8),
    /// `legacy`: by a message, as peers of ZMTP 3.0 do.
    Subscribe {
        who: u8,
        prefix: String,
        legacy: bool,
    },
    Cancel {
        who: u8,
        prefix: String,
        legacy: bool,
    },
    Publish {
        topic: String,
        size: usize,
        patient: bool,
    },
    Write {
        who: u8,
        count: usize,
    },
    Take {
        who: u8,
        count: usize,
    },
    Grant(u8),
}

fn step() -> impl Strategy<Value = Step> {
    let (prefix, count) = ("[ab]{0,2}", 1usize..6);
    prop_oneof![
        2 => bounds().prop_map(Step::Join),
        1 => any::<u8>().prop_map(Step::Leave),
        4 => (any::<u8>(), prefix, any::<bool>()).prop_map(|(who, prefix, legacy)| Step::Subscribe { who, prefix, legacy }),
        1 => (any::<u8>(), prefix, any::<bool>()).prop_map(|(who, prefix, legacy)| Step::Cancel { who, prefix, legacy }),
        8 => ("[ab]{0,3}", 0usize..250, any::<bool>())
            .prop_map(|(topic, size, patient)| Step::Publish { topic, size, patient }),
        3 => (any::<u8>(), count.clone()).prop_map(|(who, count)| Step::Write { who, count }),
        3 => (any::<u8>(), count).prop_map(|(who, count)| Step::Take { who, count }),
        3 => any::<u8>().prop_map(Step::Grant),
    ]
}

#[derive(Debug, Default)]
struct Subscriber {
    prefixes: Vec<String>,
    /// Messages it must hear of, oldest first: one way or the other.
    expected: VecDeque<u64>,
    got: u64,
    missed: u64,
    /// Was found full and has not had room since.
    marked: bool,
}

impl Subscriber {
    fn hear(&mut self, item: &Item) {
        match item {
            Item::Message(message) => {
                assert_eq!(Some(number(message)), self.expected.pop_front(), "not what comes next in its stream");
                self.got += 1;
            }
            Item::Gap(missed) => {
                assert!(*missed > 0 && *missed <= self.expected.len() as u64, "a gap of more than was published");
                self.expected.drain(..usize::try_from(*missed).unwrap());
                self.missed += missed;
            }
        }
    }
}

struct World {
    overflow: Overflow,
    hub: Hub<Pub>,
    published: u64,
    subscribers: BTreeMap<Peer, Subscriber>,
    /// With `Block`, what waits: topic and message.
    line: VecDeque<(String, Message)>,
}

impl World {
    fn new(overflow: Overflow) -> Self {
        Self {
            overflow,
            hub: Hub::new(Pub::new(overflow, Limits::default()), Tally::ZERO),
            published: 0,
            subscribers: BTreeMap::new(),
            line: VecDeque::new(),
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Join(bounds) => {
                let peer = self.hub.join(bounds, true);
                self.subscribers.insert(peer, Subscriber::default());
            }
            Step::Leave(who) => {
                if let Some(peer) = self.hub.pick(who) {
                    self.leave(peer);
                }
            }
            Step::Subscribe { who, prefix, legacy } => {
                if let Some(peer) = self.hub.pick(who) {
                    self.tell(peer, &prefix, true, legacy);
                    self.subscribers.get_mut(&peer).unwrap().prefixes.push(prefix);
                }
            }
            Step::Cancel { who, prefix, legacy } => {
                if let Some(peer) = self.hub.pick(who) {
                    self.tell(peer, &prefix, false, legacy);
                    let prefixes = &mut self.subscribers.get_mut(&peer).unwrap().prefixes;
                    if let Some(at) = prefixes.iter().position(|other| *other == prefix) {
                        prefixes.swap_remove(at);
                    }
                }
            }
            Step::Publish { topic, size, patient } => self.publish(&topic, size, patient),
            Step::Write { who, count } => {
                if let Some(peer) = self.hub.pick(who) {
                    self.hub.write(peer, count);
                }
            }
            Step::Take { who, count } => {
                if let Some(peer) = self.hub.pick(who) {
                    self.take(peer, count);
                }
            }
            Step::Grant(who) => {
                if let Some(peer) = self.hub.pick(who) {
                    self.grant(peer);
                }
            }
        }
        while std::mem::take(&mut self.hub.net.ready) {
            while let Some((topic, message)) = self.line.pop_front() {
                if self.attempt(&topic, &message, false).is_err() {
                    self.line.push_front((topic, message));
                    break;
                }
            }
        }
        for topic in ["", "a", "ab", "bab"] {
            assert_eq!(self.hub.pattern.subscribers(topic.as_bytes()).len(), self.matching(topic).len());
        }
    }

    fn tell(&mut self, peer: Peer, prefix: &str, wanted: bool, legacy: bool) {
        let (pattern, net) = (&mut self.hub.pattern, &mut self.hub.net);
        if legacy {
            let message = [&[u8::from(wanted)], prefix.as_bytes()].concat().into();
            assert_eq!(pattern.on_message(peer, message, net), Ok(None));
        } else {
            let prefix = Bytes::copy_from_slice(prefix.as_bytes());
            let command = if wanted { Command::Subscribe(prefix) } else { Command::Cancel(prefix) };
            assert_eq!(pattern.on_command(peer, command, net), Ok(()));
        }
    }

    fn matching(&self, topic: &str) -> Vec<Peer> {
        let wants = |subscriber: &Subscriber| subscriber.prefixes.iter().any(|prefix| topic.starts_with(prefix));
        self.subscribers.iter().filter(|(_, subscriber)| wants(subscriber)).map(|(peer, _)| *peer).collect()
    }

    fn publish(&mut self, topic: &str, size: usize, patient: bool) {
        let message = numbered(self.published, size);
        self.published += 1;
        if self.overflow == Overflow::Block {
            self.line.push_back((topic.to_owned(), message));
            self.hub.net.ready |= self.line.len() == 1;
        } else if patient && self.attempt(topic, &message, true).is_err() {
            // Some links get to write once before anything is dropped.
            if let Some(peer) = self.hub.pick(u8::try_from(size).unwrap()) {
                self.hub.write(peer, 2);
                self.take(peer, 2);
                self.grant(peer);
            }
            self.attempt(topic, &message, false).expect("nothing but Block waits");
        } else if !patient {
            self.attempt(topic, &message, false).expect("nothing but Block waits");
        }
    }

    /// Publishes, and holds what was done to each subscriber against what should be.
    fn attempt(&mut self, topic: &str, message: &Message, patient: bool) -> Result<(), Why> {
        let matching = self.matching(topic);
        let whole = (topic.len() as u64) + message.bytes();
        let rooms: Vec<Room> = matching.iter().map(|&peer| self.hub.net.room_of(peer, whole)).collect();
        let lacks = |room: Room| matches!(room, Room::Full | Room::TooLittle);
        let tell = matching.iter().zip(&rooms).any(|(peer, &room)| {
            lacks(room) && (self.overflow == Overflow::Block || (patient && !self.subscribers[peer].marked))
        });

        // Given apart or as one message, the topic is the first part.
        let outgoing = if number(message).is_multiple_of(2) {
            Outgoing { head: Head::Topic(topic.as_bytes()), body: Body::from(message) }
        } else {
            let parts = [Bytes::copy_from_slice(topic.as_bytes()), message.clone().into_payload()];
            Outgoing::from(Message::from_parts(parts))
        };
        let verb = Publish { message: outgoing, patient };
        let result = self.hub.pattern.on_verb(verb, &mut self.hub.net).map_err(|(_, why)| why);
        assert_eq!(result, if tell { Err(Why::Full) } else { Ok(()) }, "{:?} {rooms:?}", self.overflow);
        let did = self.hub.take_did();
        if tell {
            assert_eq!(did, [], "all or none");
            return result;
        }

        for (&peer, &room) in matching.iter().zip(&rooms) {
            let subscriber = self.subscribers.get_mut(&peer).unwrap();
            subscriber.marked |= lacks(room);
            if room != Room::Gone {
                subscriber.expected.push_back(number(message));
            }
            let sent = did.iter().filter(|did| matches!(did, Did::Sent { peer: to, .. } if *to == peer)).count();
            let count = |what: Did| did.iter().filter(|did| **did == what).count();
            let (missed, oldest) = (count(Did::Missed(peer)), count(Did::DroppedOldest(peer)));
            let closed = count(Did::Disconnected(peer));
            match (room, self.overflow) {
                (Room::Fits, _) => assert_eq!((sent, missed, oldest, closed), (1, 0, 0, 0)),
                (Room::Gone, _) => assert_eq!((sent, missed, oldest, closed), (0, 0, 0, 0)),
                (Room::Never, _) | (_, Overflow::DropNewest) => {
                    assert_eq!((sent, missed, oldest, closed), (0, 1, 0, 0));
                }
                (_, Overflow::DropOldest) => {
                    assert_eq!((sent + missed, closed), (1, 0));
                    assert!(oldest > 0 || missed == 1);
                }
                (_, Overflow::Disconnect) => assert_eq!((sent, missed, oldest, closed), (0, 1, 0, 1)),
                (_, other) => panic!("{other:?} did not wait"),
            }
        }
        let touched = |did: &Did| match did {
            Did::Sent { peer, .. } | Did::Missed(peer) | Did::DroppedOldest(peer) | Did::Disconnected(peer) => *peer,
            other => panic!("a publisher does not do {other:?}"),
        };
        assert!(did.iter().all(|did| matching.contains(&touched(did))), "given to one who did not ask for it");
        result
    }

    fn take(&mut self, peer: Peer, count: usize) {
        for _ in 0..count {
            let Some(item) = self.hub.take(peer) else { break };
            self.subscribers.get_mut(&peer).unwrap().hear(&item);
        }
    }

    fn grant(&mut self, peer: Peer) {
        if self.hub.grant(peer) {
            self.subscribers.get_mut(&peer).unwrap().marked = false;
        }
    }

    fn leave(&mut self, peer: Peer) {
        let unsent = self.hub.leave(peer).unsent.len() as u64;
        let lost = self.hub.take_did();
        assert_eq!(lost, if unsent == 0 { vec![] } else { vec![Did::Lost(unsent)] });
        self.subscribers.remove(&peer);
    }

    fn finish(mut self) {
        // Full and closing links aside, one that waits would still wait if it were tried now.
        if let Some((topic, message)) = self.line.pop_front() {
            assert_eq!(self.attempt(&topic, &message, false), Err(Why::Full), "waited though it could be done");
            self.line.push_front((topic, message));
        }
        for _ in 0..=2 * self.published {
            for peer in self.hub.net.linked() {
                self.hub.write(peer, usize::MAX);
                self.take(peer, usize::MAX);
                self.grant(peer);
            }
            // Any step tries again what waits.
            self.step(Step::Take { who: 0, count: 0 });
        }
        assert!(self.line.is_empty(), "blocked for ever: {:?}", self.line);
        for (peer, subscriber) in &self.subscribers {
            let open = !self.hub.net.is_closing(*peer);
            assert!(!open || subscriber.expected.is_empty(), "{peer} was not told of {:?}", subscriber.expected);
        }
    }
}

fn run(overflow: Overflow, steps: Vec<Step>) {
    let mut world = World::new(overflow);
    steps.into_iter().for_each(|step| world.step(step));
    world.finish();
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(step(), 0..80)
}

proptest! {
    #![proptest_config(schedules(400))]

    #[test]
    fn drop_newest_leaves_out_the_newest_and_counts_it(steps in steps()) {
        run(Overflow::DropNewest, steps);
    }

    #[test]
    fn drop_oldest_leaves_out_the_oldest_and_counts_it(steps in steps()) {
        run(Overflow::DropOldest, steps);
    }

    #[test]
    fn block_gives_to_all_or_none_and_loses_nothing(steps in steps()) {
        run(Overflow::Block, steps);
    }

    #[test]
    fn disconnect_closes_the_link_of_who_does_not_keep_up(steps in steps()) {
        run(Overflow::Disconnect, steps);
    }
}

fn publish(hub: &mut Hub<Pub>, message: &str, patient: bool) -> Result<(), Why> {
    let verb = Publish { message: Outgoing::from(Message::from(message)), patient };
    hub.pattern.on_verb(verb, &mut hub.net).map_err(|(_, why)| why)
}

fn subscribed(overflow: Overflow, bounds: Bounds) -> (Hub<Pub>, Peer) {
    let mut hub = Hub::new(Pub::new(overflow, Limits::default()), Tally::ZERO);
    let peer = hub.join(bounds, true);
    hub.pattern.on_command(peer, Command::Subscribe("".into()), &mut hub.net).unwrap();
    (hub, peer)
}

/// One message waits for credit and one has it.
const TWO: Bounds = Bounds { hwm: Tally::new(1, 10_000), window: Tally::new(1, 10_000), largest: 1_000 };

fn heard(hub: &mut Hub<Pub>, peer: Peer) -> Vec<Item> {
    let mut heard = Vec::new();
    loop {
        hub.write(peer, 10);
        let Some(item) = hub.take(peer) else { return heard };
        heard.push(item);
        hub.grant(peer);
    }
}

#[test]
fn the_place_of_what_is_left_out_is_the_policys() {
    let message = |text: &str| Item::Message(Message::from(text));
    let (mut hub, peer) = subscribed(Overflow::DropNewest, TWO);
    ["1", "2", "3", "4"].iter().for_each(|text| publish(&mut hub, text, false).unwrap());
    assert_eq!(heard(&mut hub, peer), [message("1"), message("2"), Item::Gap(2)]);

    let (mut hub, peer) = subscribed(Overflow::DropOldest, TWO);
    ["1", "2", "3", "4"].iter().for_each(|text| publish(&mut hub, text, false).unwrap());
    assert_eq!(heard(&mut hub, peer), [message("1"), Item::Gap(2), message("4")]);
}

#[test]
fn a_patient_publisher_is_told_once_of_each_that_becomes_full() {
    let (mut hub, peer) = subscribed(Overflow::DropNewest, TWO);
    ["1", "2"].iter().for_each(|text| publish(&mut hub, text, true).unwrap());
    assert_eq!(publish(&mut hub, "3", true), Err(Why::Full));
    assert_eq!(publish(&mut hub, "3", false), Ok(()));
    assert_eq!(publish(&mut hub, "4", true), Ok(()), "known to be full");
    heard(&mut hub, peer);
    ["5", "6"].iter().for_each(|text| publish(&mut hub, text, true).unwrap());
    assert_eq!(publish(&mut hub, "7", true), Err(Why::Full));
}

#[test]
fn one_who_waits_hears_when_the_full_subscriber_cancels_or_leaves() {
    for leaves in [true, false] {
        let (mut hub, peer) = subscribed(Overflow::Block, TWO);
        ["1", "2"].iter().for_each(|text| publish(&mut hub, text, true).unwrap());
        assert_eq!(publish(&mut hub, "3", true), Err(Why::Full));
        hub.net.ready = false;
        if leaves {
            hub.leave(peer);
        } else {
            hub.pattern.on_command(peer, Command::Cancel("".into()), &mut hub.net).unwrap();
        }
        assert!(hub.net.ready);
        assert_eq!(publish(&mut hub, "3", true), Ok(()));
    }
}

#[test]
fn subscriptions_without_end_break_the_protocol_and_other_messages_do_not() {
    let limits = Limits { subscriptions: 2, topic: 4, ..Limits::default() };
    let mut hub = Hub::new(Pub::new(Overflow::default(), limits), Tally::ZERO);
    let peer = hub.join(Bounds::WIDE, true);
    let (pattern, net) = (&mut hub.pattern, &mut hub.net);
    for message in [Message::from("\x01a"), Message::from("\x01b"), Message::from("\x01b"), Message::from("\x02c")] {
        assert_eq!(pattern.on_message(peer, message, net), Ok(None));
    }
    for message in [Message::from(""), Message::from(["\x01a", "b"])] {
        assert_eq!(pattern.on_message(peer, message, net), Ok(None), "nobody has a use for it");
    }
    let refused = pattern.on_message(peer, Message::from("\x01c"), net);
    assert_eq!(refused, Err(Misbehaved::TooManySubscriptions { limit: 2 }));
    let refused = pattern.on_message(peer, Message::from("\x01abcde"), net);
    assert_eq!(refused, Err(Misbehaved::TopicTooLong { limit: 4 }));
    assert_eq!((pattern.subscribers(b"a").len(), pattern.subscribers(b"c").len()), (1, 0));
    assert!(Pub::accepts(&Role::SUB) && Pub::accepts(&Role::XSUB) && !Pub::accepts(&Role::PULL));
}
