//! Push against a queue: what was accepted goes out in its order, what a dead link gives back before all else.

use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;
use ropewalk_patterns::{
    Body, Message, Misbehaved, Pattern, Peer, Role, Room, Tally, Why,
    push_pull::{Pull, Push},
};

use crate::net::{Bounds, Did, Fairness, Hub, Item, bounds, number, numbered, schedules, tally};

#[derive(Debug, Clone)]
enum Step {
    Join(Bounds),
    /// A link dies; of what was written, so many messages did not arrive.
    Leave {
        who: u8,
        in_doubt: usize,
    },
    Send(usize),
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
    let count = 1usize..5;
    prop_oneof![
        2 => bounds().prop_map(Step::Join),
        1 => (any::<u8>(), 0usize..4).prop_map(|(who, in_doubt)| Step::Leave { who, in_doubt }),
        8 => (0usize..250).prop_map(Step::Send),
        3 => (any::<u8>(), count.clone()).prop_map(|(who, count)| Step::Write { who, count }),
        3 => (any::<u8>(), count).prop_map(|(who, count)| Step::Take { who, count }),
        3 => any::<u8>().prop_map(Step::Grant),
    ]
}

/// The model: three places a message can be in, and the sums.
struct World {
    hub: Hub<Push>,
    sent: u64,
    /// Sends that wait.
    line: VecDeque<Message>,
    /// Accepted and with no link, in the order they must go.
    due: VecDeque<Message>,
    fairness: Fairness,
    refused: Vec<u64>,
    delivered: Vec<u64>,
    in_doubt: Vec<u64>,
    lost: Vec<u64>,
}

impl World {
    fn new(unlinked: Tally) -> Self {
        Self {
            hub: Hub::new(Push::default(), unlinked),
            sent: 0,
            line: VecDeque::new(),
            due: VecDeque::new(),
            fairness: Fairness::default(),
            refused: Vec::new(),
            delivered: Vec::new(),
            in_doubt: Vec::new(),
            lost: Vec::new(),
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Join(bounds) => {
                self.hub.join(bounds, true);
            }
            Step::Leave { who, in_doubt } => {
                if let Some(peer) = self.hub.pick(who) {
                    self.leave(peer, in_doubt);
                }
            }
            Step::Send(size) => {
                let message = numbered(self.sent, size);
                self.sent += 1;
                self.line.push_back(message);
                // Newcomers queue behind those who wait.
                self.hub.net.ready |= self.line.len() == 1;
            }
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
                    self.hub.grant(peer);
                }
            }
        }
        self.follow();
        while std::mem::take(&mut self.hub.net.ready) {
            while !self.line.is_empty() && self.try_first() {}
        }
        assert_eq!(self.hub.pattern.held(), tally(&self.due));
        assert!(self.due.is_empty() || self.nobody_takes(&self.due[0]), "a message waits while a peer has room");
    }

    fn leave(&mut self, peer: Peer, in_doubt: usize) {
        let remains = self.hub.leave(peer);
        for message in remains.unsent.into_iter().rev() {
            self.due.push_front(message);
        }
        let mut arrived = remains.arrived;
        let doubted = arrived.split_off(arrived.len().saturating_sub(in_doubt));
        self.in_doubt.extend(doubted.iter().map(item_number));
        self.delivered.extend(arrived.iter().map(item_number));
    }

    fn take(&mut self, peer: Peer, count: usize) {
        for _ in 0..count {
            let Some(item) = self.hub.take(peer) else { break };
            self.delivered.push(item_number(&item));
        }
    }

    /// What the pattern did is what the model says must be next.
    fn follow(&mut self) {
        for did in self.hub.take_did() {
            let next = self.due.pop_front().expect("sent or lost what was never accepted");
            match did {
                Did::Sent { peer, message, open } => {
                    assert_eq!(number(&message), number(&next), "out of order, or a message left out");
                    assert_eq!(message, next);
                    self.fairness.sent(peer, &open);
                }
                Did::Lost(1) => self.lost.push(number(&next)),
                other => panic!("a push does not do {other:?}"),
            }
        }
    }

    /// Tries the send that waits first; false if it goes on waiting.
    fn try_first(&mut self) -> bool {
        let message = self.line.pop_front().unwrap();
        let linked = self.hub.net.linked();
        let before = tally(&self.due);
        let rooms: Vec<Room> = linked.iter().map(|&peer| self.hub.net.room_of(peer, message.bytes())).collect();
        // A slice and a message must be treated alike.
        let slice = message.payload().to_vec();
        let body = if number(&message).is_multiple_of(2) { Body::from(&slice) } else { Body::from(&message) };
        self.due.push_back(message.clone());
        let result = self.hub.pattern.on_verb(body, &mut self.hub.net).map_err(|(body, why)| {
            assert_eq!(body.into_message(), message, "the message comes back as it was");
            why
        });
        match result {
            Ok(()) => {
                if linked.is_empty() {
                    let held = tally(&self.due);
                    let limit = self.hub.net.unlinked_limit;
                    assert!(held.messages <= limit.messages && (held.bytes <= limit.bytes || held.messages == 1));
                    assert!(self.hub.net.did.is_empty());
                } else {
                    assert!(before.is_zero(), "overtook what waits");
                    assert_eq!(self.hub.net.did.len(), 1);
                }
                self.follow();
                return true;
            }
            Err(Why::TooLarge) => {
                assert!(!rooms.is_empty() && rooms.iter().all(|room| *room == Room::Never));
                self.refused.push(number(&message));
            }
            Err(why) => {
                assert_eq!(why, Why::Full);
                assert!(!before.is_zero() || !rooms.contains(&Room::Fits), "called full while a peer has room");
                let limit = self.hub.net.unlinked_limit;
                let over = before.messages >= limit.messages
                    || (!before.is_zero() && before.bytes + message.cost() > limit.bytes);
                assert!(!linked.is_empty() || over, "called full below the limit");
            }
        }
        self.due.pop_back();
        assert!(self.hub.net.did.is_empty(), "what was handed back is done with");
        if result == Err(Why::Full) {
            self.line.push_front(message);
            return false;
        }
        true
    }

    fn nobody_takes(&self, message: &Message) -> bool {
        let net = &self.hub.net;
        net.linked().iter().all(|&peer| net.room_of(peer, message.bytes()) != Room::Fits)
    }

    /// A send that waits would still wait if it were tried now: it was told of everything that changed that.
    fn nobody_waits_in_vain(&mut self) {
        if !self.line.is_empty() {
            assert!(!self.try_first(), "a send waited though it could have been done");
        }
    }

    /// One peer that takes everything comes, and each message is accounted for.
    fn finish(mut self) {
        self.step(Step::Join(Bounds::WIDE));
        // A turn that delivers nothing may have brought credit; the next then brings messages.
        let mut idle = 0;
        while idle < 2 {
            let before = (self.line.len(), self.delivered.len());
            for peer in self.hub.net.linked() {
                self.hub.write(peer, usize::MAX);
                self.take(peer, usize::MAX);
                self.hub.grant(peer);
                self.step(Step::Grant(0));
            }
            idle = if before == (self.line.len(), self.delivered.len()) { idle + 1 } else { 0 };
        }
        assert!(self.line.is_empty() && self.due.is_empty(), "left over: {:?} {:?}", self.line, self.due);
        let mut all = [self.refused, self.delivered, self.in_doubt, self.lost].concat();
        all.sort_unstable();
        assert_eq!(all, (0..self.sent).collect::<Vec<_>>(), "each message is in one place, once");
    }
}

fn item_number(item: &Item) -> u64 {
    match item {
        Item::Message(message) => number(message),
        Item::Gap(_) => panic!("a push leaves nothing out"),
    }
}

proptest! {
    #![proptest_config(schedules(800))]

    #[test]
    fn nothing_is_lost_doubled_or_overtaken(
        steps in prop::collection::vec(step(), 0..100),
        unlinked in (0u64..6, 64u64..800),
    ) {
        let mut world = World::new(Tally::new(unlinked.0, unlinked.1));
        steps.into_iter().for_each(|step| world.step(step));
        world.nobody_waits_in_vain();
        world.finish();
    }

    #[test]
    fn open_peers_get_equal_shares(peers in 1usize..12, messages in 0u64..60) {
        let mut hub = Hub::new(Push::default(), Tally::ZERO);
        let mut counts: BTreeMap<Peer, u64> = (0..peers).map(|_| (hub.join(Bounds::WIDE, true), 0)).collect();
        for sent in 0..messages {
            hub.pattern.on_verb(Body::from(numbered(sent, 0)), &mut hub.net).unwrap();
            for did in hub.take_did() {
                let Did::Sent { peer, .. } = did else { panic!("{did:?}") };
                *counts.get_mut(&peer).unwrap() += 1;
            }
            let (least, most) = (counts.values().min().unwrap(), counts.values().max().unwrap());
            prop_assert!(most - least <= 1);
            prop_assert!((sent + 1) % peers as u64 != 0 || most == least);
        }
    }
}

fn send(hub: &mut Hub<Push>, number: u64) -> Result<(), Why> {
    hub.pattern.on_verb(Body::from(numbered(number, 0)), &mut hub.net).map_err(|(_, why)| why)
}

fn sent(hub: &mut Hub<Push>) -> Vec<(Peer, u64)> {
    let sent = |did| match did {
        Did::Sent { peer, message, .. } => (peer, number(&message)),
        other => panic!("{other:?}"),
    };
    hub.take_did().into_iter().map(sent).collect()
}

#[test]
fn what_a_dead_link_had_not_written_goes_to_another_before_anything_newer() {
    let mut hub = Hub::new(Push::default(), Tally::new(10, 10_000));
    let first = hub.join(Bounds::WIDE, true);
    (0..4).for_each(|number| send(&mut hub, number).unwrap());
    hub.write(first, 1);
    sent(&mut hub);
    hub.leave(first);
    send(&mut hub, 4).unwrap();
    assert_eq!(sent(&mut hub), []);
    let second = hub.join(Bounds { hwm: Tally::new(1, 1_000), window: Tally::new(1, 1_000), ..Bounds::WIDE }, true);
    assert_eq!(sent(&mut hub), [(second, 1), (second, 2)]);
    assert_eq!(send(&mut hub, 5), Err(Why::Full));
    let third = hub.join(Bounds::WIDE, true);
    assert_eq!(sent(&mut hub), [(third, 3), (third, 4)]);
    send(&mut hub, 5).unwrap();
    assert_eq!(sent(&mut hub), [(third, 5)]);
}

#[test]
fn a_send_that_waits_hears_of_the_room_that_a_dead_link_leaves() {
    let mut hub = Hub::new(Push::default(), Tally::new(10, 10_000));
    let tight = Bounds { hwm: Tally::new(1, 1_000), window: Tally::new(1, 1_000), ..Bounds::WIDE };
    let peer = hub.join(tight, true);
    (0..2).for_each(|number| send(&mut hub, number).unwrap());
    assert_eq!(send(&mut hub, 2), Err(Why::Full));
    hub.net.ready = false;
    hub.leave(peer);
    assert!(hub.net.ready, "messages wait for the next peer now, and there is room for one more");
    assert_eq!(send(&mut hub, 2), Ok(()));
    assert_eq!(hub.pattern.held().messages, 3);
}

#[test]
fn a_socket_that_only_listens_keeps_nothing_for_nobody() {
    let mut hub = Hub::new(Push::default(), Tally::ZERO);
    assert_eq!(send(&mut hub, 0), Err(Why::Full));
    assert!(hub.pattern.held().is_zero());
}

#[test]
fn what_was_accepted_for_nobody_and_is_too_large_for_all_is_counted() {
    let mut hub = Hub::new(Push::default(), Tally::new(10, 10_000));
    hub.pattern.on_verb(Body::from(numbered(0, 500)), &mut hub.net).unwrap();
    send(&mut hub, 1).unwrap();
    let peer = hub.join(Bounds { largest: 100, ..Bounds::WIDE }, true);
    let did = hub.take_did();
    assert!(matches!(&did[..], [Did::Lost(1), Did::Sent { peer: to, .. }] if *to == peer), "{did:?}");
    let refused = hub.pattern.on_verb(Body::from(numbered(2, 500)), &mut hub.net);
    assert!(matches!(refused, Err((_, Why::TooLarge))));
}

#[test]
fn nothing_comes_to_a_push_and_everything_to_a_pull() {
    let mut push = Hub::new(Push::default(), Tally::ZERO);
    let peer = push.join(Bounds::WIDE, true);
    let refused = push.pattern.on_message(peer, Message::from("no"), &mut push.net);
    assert!(matches!(refused, Err(Misbehaved::UnexpectedMessage)));
    let mut pull = Hub::new(Pull::default(), Tally::ZERO);
    let peer = pull.join(Bounds::WIDE, true);
    let message = Message::from(["a", "b"]);
    assert_eq!(pull.pattern.on_message(peer, message.clone(), &mut pull.net), Ok(Some(message)));
    assert!(Push::accepts(&Role::PULL) && !Push::accepts(&Role::PUSH) && !Push::accepts(&Role::SUB));
    assert!(Pull::accepts(&Role::PUSH) && !Pull::accepts(&Role::PULL));
}
