//! Sub against a list of what was asked for: each publisher knows every prefix once, and only what was asked for comes
//! through.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use proptest::prelude::*;
use ropewalk_patterns::{
    Message, Pattern, Peer, Role, Tally, Why,
    pub_sub::{Heard, Sub, Subscription},
    zmtp::{Command, Limits},
};

use crate::net::{Bounds, Did, Hub, schedules};

#[derive(Debug, Clone)]
enum Step {
    Join,
    Leave(u8),
    Subscribe(String),
    Unsubscribe(String),
    Message { who: u8, topic: String },
    Gap { who: u8, missed: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    let prefix = "[ab]{0,2}";
    prop_oneof![
        1 => Just(Step::Join),
        1 => any::<u8>().prop_map(Step::Leave),
        3 => prefix.prop_map(Step::Subscribe),
        3 => prefix.prop_map(Step::Unsubscribe),
        4 => (any::<u8>(), "[ab]{0,3}").prop_map(|(who, topic)| Step::Message { who, topic }),
        1 => (any::<u8>(), 1u64..9).prop_map(|(who, missed)| Step::Gap { who, missed }),
    ]
}

struct World {
    hub: Hub<Sub>,
    wanted: Vec<String>,
    /// What each publisher was told, counted as it counts.
    told: BTreeMap<Peer, Vec<String>>,
}

impl World {
    fn step(&mut self, step: Step) {
        let who = |hub: &Hub<Sub>, who| hub.pick(who);
        match step {
            Step::Join => {
                let peer = self.hub.join(Bounds::WIDE, true);
                self.told.insert(peer, Vec::new());
            }
            Step::Leave(peer) => {
                if let Some(peer) = who(&self.hub, peer) {
                    self.hub.leave(peer);
                    self.told.remove(&peer);
                }
            }
            Step::Subscribe(prefix) => {
                self.wanted.push(prefix.clone());
                self.ask(Subscription::Subscribe(prefix.into()));
            }
            Step::Unsubscribe(prefix) => {
                if let Some(at) = self.wanted.iter().position(|other| *other == prefix) {
                    self.wanted.swap_remove(at);
                }
                self.ask(Subscription::Unsubscribe(prefix.into()));
            }
            Step::Message { who: peer, topic } => {
                if let Some(peer) = who(&self.hub, peer) {
                    let message = Message::from([topic.as_str(), "payload"]);
                    let heard = self.hub.pattern.on_message(peer, message.clone(), &mut self.hub.net).unwrap();
                    let wanted = self.wanted.iter().any(|prefix| topic.starts_with(prefix));
                    assert_eq!(heard, wanted.then_some(Heard::Message(message)));
                }
            }
            Step::Gap { who: peer, missed } => {
                if let Some(peer) = who(&self.hub, peer) {
                    let heard = self.hub.pattern.on_gap(peer, missed, &mut self.hub.net);
                    assert_eq!(heard, Some(Heard::Lagged(missed)));
                }
            }
        }
        self.follow();
    }

    fn ask(&mut self, verb: Subscription) {
        self.hub.pattern.on_verb(verb, &mut self.hub.net).unwrap();
    }

    fn follow(&mut self) {
        for did in self.hub.take_did() {
            let Did::Told(peer, command) = did else { panic!("a subscriber does not do {did:?}") };
            let told = self.told.get_mut(&peer).unwrap();
            let text = |prefix: Bytes| String::from_utf8(prefix.to_vec()).unwrap();
            match command {
                Command::Subscribe(prefix) => told.push(text(prefix)),
                Command::Cancel(prefix) => {
                    let prefix = text(prefix);
                    let at = told.iter().position(|other| *other == prefix).expect("cancelled what it never told");
                    told.swap_remove(at);
                }
                other => panic!("a subscriber does not tell {other:?}"),
            }
        }
        let wanted: BTreeSet<&String> = self.wanted.iter().collect();
        for told in self.told.values_mut() {
            told.sort_unstable();
            assert!(told.iter().eq(wanted.iter().copied()), "told {told:?}, wanted {wanted:?}");
        }
    }
}

proptest! {
    #![proptest_config(schedules(500))]

    #[test]
    fn every_publisher_knows_what_is_wanted_and_nothing_else_comes_through(
        steps in prop::collection::vec(step(), 0..100),
    ) {
        let hub = Hub::new(Sub::new(Limits::default()), Tally::ZERO);
        let mut world = World { hub, wanted: Vec::new(), told: BTreeMap::new() };
        steps.into_iter().for_each(|step| world.step(step));
    }
}

#[test]
fn what_no_publisher_would_take_is_refused_here() {
    let limits = Limits { topic: 4, subscriptions: 2, subscribed_bytes: 6, ..Limits::default() };
    let mut hub = Hub::new(Sub::new(limits), Tally::ZERO);
    hub.join(Bounds::WIDE, true);
    let mut ask = |prefix: &'static str| {
        let verb = Subscription::Subscribe(Bytes::from(prefix));
        hub.pattern.on_verb(verb, &mut hub.net).map_err(|(_, why)| why)
    };
    assert_eq!(ask("abcde"), Err(Why::TooLarge));
    assert_eq!(ask("abcd"), Ok(()));
    assert_eq!(ask("xyz"), Err(Why::TooLarge), "seven bytes together");
    assert_eq!(ask("xy"), Ok(()));
    assert_eq!(ask(""), Err(Why::TooLarge), "the third");
    assert_eq!(ask("xy"), Ok(()), "no third: the same again");
    assert_eq!(hub.take_did().len(), 2, "the publisher was told of two");
    assert!(Sub::accepts(&Role::PUB) && Sub::accepts(&Role::XPUB) && !Sub::accepts(&Role::SUB));
}
