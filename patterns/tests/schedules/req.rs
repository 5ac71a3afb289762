//! Req against a table of requests: each ends once, by the peer it was given to, or is forgotten.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use proptest::prelude::*;
use ropewalk_patterns::{
    Body, Message, Pattern, Peer, Room, Tally, Why,
    delivery::{MessageId, RequestTag},
    extension::{Refusal, RefusalReason},
    req_rep::{Answer, Ask, Req, Unanswered},
    zmtp::Command,
};

use crate::net::{Bounds, Did, Fairness, Hub, Item, bounds, number, numbered, schedules, tally};

/// Some requests are kept until they are answered, and say which they are.
fn tagged(id: u32) -> Option<[u8; 44]> {
    let seq = u64::from(id);
    let tag = RequestTag { id: MessageId { stream: [7; 16], incarnation: 1, seq }, floor: seq / 2 };
    (id % 3 == 1).then(|| tag.part(id))
}

#[derive(Debug, Clone)]
enum Step {
    Join(Bounds),
    Leave(u8),
    Ask(usize),
    Forget(u8),
    Write {
        who: u8,
        count: usize,
    },
    /// The far application takes requests.
    Take {
        who: u8,
        count: usize,
    },
    Grant(u8),
    /// The far application answers one of those it took.
    Reply {
        who: u8,
        which: u8,
        how: How,
    },
    /// An answer is sent again.
    Repeat(u8),
}

#[derive(Debug, Clone, Copy)]
enum How {
    Answer,
    Refuse,
    /// Another peer answers in its place.
    Elsewhere,
    /// Something comes that is no answer, and the request stays.
    Malformed(u8),
}

fn step() -> impl Strategy<Value = Step> {
    let count = 1usize..5;
    let how = prop_oneof![
        6 => Just(How::Answer),
        1 => Just(How::Refuse),
        1 => Just(How::Elsewhere),
        1 => any::<u8>().prop_map(How::Malformed),
    ];
    prop_oneof![
        2 => bounds().prop_map(Step::Join),
        1 => any::<u8>().prop_map(Step::Leave),
        8 => (0usize..250).prop_map(Step::Ask),
        1 => any::<u8>().prop_map(Step::Forget),
        3 => (any::<u8>(), count.clone()).prop_map(|(who, count)| Step::Write { who, count }),
        3 => (any::<u8>(), count).prop_map(|(who, count)| Step::Take { who, count }),
        2 => any::<u8>().prop_map(Step::Grant),
        5 => (any::<u8>(), any::<u8>(), how).prop_map(|(who, which, how)| Step::Reply { who, which, how }),
        1 => any::<u8>().prop_map(Step::Repeat),
    ]
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Answered,
    Refused,
    PeerLost,
    TooLarge,
    Forgotten,
}

struct World {
    correlate: bool,
    outstanding: usize,
    hub: Hub<Req<u64>>,
    asked: u32,
    /// Requests that wait to be accepted.
    line: VecDeque<u32>,
    /// Accepted and given to nobody, in the order they must go.
    due: VecDeque<u32>,
    /// Accepted and not ended, and whom they were given to.
    live: BTreeMap<u32, Option<Peer>>,
    bodies: Vec<Message>,
    ended: BTreeMap<u32, End>,
    /// Without ids: peers that were asked something, until it is answered or the link dies.
    busy: BTreeMap<Peer, u32>,
    /// What the far applications took and did not answer.
    taken: BTreeMap<Peer, Vec<Message>>,
    answers: Vec<(Peer, Message)>,
    /// How many the far applications took in all.
    moved: u64,
    fairness: Fairness,
}

fn asker(id: u32) -> u64 {
    u64::from(id) * 1_000 + 7
}

fn id_asked(asker: u64) -> u32 {
    (asker / 1_000).try_into().unwrap()
}

fn id_of(message: &Message) -> u32 {
    number(message).try_into().unwrap()
}

/// The parts before the delimiter, and the delimiter.
fn envelope(message: &Message) -> Vec<Bytes> {
    let end = message.parts().iter().position(Bytes::is_empty).expect("a delimiter");
    message.parts()[..=end].to_vec()
}

fn with_body(mut envelope: Vec<Bytes>, body: &Message) -> Message {
    envelope.extend_from_slice(body.parts());
    Message::from_parts(envelope)
}

impl World {
    fn new(correlate: bool, outstanding: usize, unlinked: Tally) -> Self {
        Self {
            correlate,
            outstanding,
            hub: Hub::new(Req::new(outstanding).correlate(correlate), unlinked),
            asked: 0,
            line: VecDeque::new(),
            due: VecDeque::new(),
            live: BTreeMap::new(),
            bodies: Vec::new(),
            ended: BTreeMap::new(),
            busy: BTreeMap::new(),
            taken: BTreeMap::new(),
            answers: Vec::new(),
            moved: 0,
            fairness: Fairness::default(),
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Join(bounds) => {
                let peer = self.hub.join(bounds, true);
                self.taken.insert(peer, Vec::new());
            }
            Step::Leave(who) => self.with(who, Self::leave),
            Step::Ask(size) => {
                let (id, body) = (self.asked, numbered(self.asked.into(), size));
                // One part or two.
                let head = size.is_multiple_of(3).then(|| Bytes::from("head"));
                self.bodies.push(Message::from_parts(head.into_iter().chain([body.into_payload()])));
                self.asked += 1;
                self.line.push_back(id);
                self.hub.net.ready |= self.line.len() == 1;
            }
            Step::Forget(which) => self.forget(u32::from(which) % self.asked.max(1)),
            Step::Write { who, count } => self.with(who, |world, peer| world.hub.write(peer, count)),
            Step::Take { who, count } => self.with(who, |world, peer| world.take(peer, count)),
            Step::Grant(who) => self.with(who, |world, peer| {
                world.hub.grant(peer);
            }),
            Step::Reply { who, which, how } => self.with(who, |world, peer| world.reply(peer, which, how)),
            Step::Repeat(which) => {
                let place = usize::from(which) % self.answers.len().max(1);
                if let Some((peer, message)) = self.answers.get(place).cloned() {
                    self.stray(peer, message);
                }
            }
        }
        self.follow();
        while std::mem::take(&mut self.hub.net.ready) {
            while !self.line.is_empty() && self.try_first() {}
        }
        assert_eq!(self.hub.pattern.pending(), self.live.len());
        assert!(self.live.len() <= self.outstanding);
        assert_eq!(self.hub.pattern.held(), self.held());
        let waits = self.due.front().is_some_and(|&id| self.rooms(id).contains(&Room::Fits));
        assert!(!waits, "a request waits while a peer has room");
    }

    fn with(&mut self, who: u8, act: impl FnOnce(&mut Self, Peer)) {
        if let Some(peer) = self.hub.pick(who) {
            act(self, peer);
        }
    }

    /// What waits costs what it takes with its id.
    fn held(&self) -> Tally {
        let stored: Vec<Message> = self.due.iter().map(|&id| self.with_id(id)).collect();
        tally(&stored)
    }

    fn with_id(&self, id: u32) -> Message {
        let tag = tagged(id).filter(|_| self.correlate);
        let first = tag.map_or_else(|| Bytes::copy_from_slice(&id.to_be_bytes()), |tag| Bytes::copy_from_slice(&tag));
        with_body(vec![first, Bytes::new()], &self.bodies[id as usize])
    }

    fn on_wire(&self, id: u32) -> Message {
        if self.correlate { self.with_id(id) } else { with_body(vec![Bytes::new()], &self.bodies[id as usize]) }
    }

    /// How each linked peer would take this request; one that is busy does not.
    fn rooms(&self, id: u32) -> Vec<Room> {
        let bytes = self.on_wire(id).bytes();
        let room = |peer| if self.busy.contains_key(&peer) { Room::Full } else { self.hub.net.room_of(peer, bytes) };
        self.hub.net.linked().into_iter().map(room).collect()
    }

    fn end(&mut self, id: u32, end: End) {
        assert!(self.live.remove(&id).is_some(), "{id} ended {end:?} and {:?}", self.ended.get(&id));
        self.ended.insert(id, end);
        self.busy.retain(|_, asked| *asked != id || end == End::Forgotten);
    }

    fn leave(&mut self, peer: Peer) {
        let remains = self.hub.leave(peer);
        self.taken.remove(&peer);
        self.busy.remove(&peer);
        let again: Vec<u32> = remains.unsent.iter().map(id_of).filter(|id| self.live.contains_key(id)).collect();
        for &id in again.iter().rev() {
            assert_eq!(self.live.insert(id, None), Some(Some(peer)));
            self.due.push_front(id);
        }
        let whose = |(id, whom): (&u32, &Option<Peer>)| (*whom == Some(peer)).then_some(*id);
        let lost: Vec<u32> = self.live.iter().filter_map(whose).collect();
        let told = self
            .hub
            .net
            .events
            .extract_if(.., |answer| answer.result == Err(Unanswered::PeerLost))
            .map(|answer| id_asked(answer.asker));
        let told: Vec<u32> = told.collect();
        assert_eq!(told, lost, "those that were written to it, and no other");
        lost.into_iter().for_each(|id| self.end(id, End::PeerLost));
    }

    fn forget(&mut self, id: u32) {
        // When the first that waits gives up, the next is tried: it may be smaller.
        self.hub.net.ready |= self.line.front() == Some(&id);
        self.line.retain(|waits| *waits != id);
        let whom = self.live.get(&id).copied();
        self.hub.pattern.on_verb(Ask::Forget { id }, &mut self.hub.net).unwrap();
        if let Some(whom) = whom {
            self.end(id, End::Forgotten);
            self.due.retain(|due| *due != id);
            if let Some(peer) = whom.filter(|_| !self.correlate) {
                assert_eq!(self.hub.net.did.remove(0), Did::Abandoned(peer));
            }
        }
    }

    fn take(&mut self, peer: Peer, count: usize) {
        for _ in 0..count {
            let Some(Item::Message(message)) = self.hub.take(peer) else { break };
            self.taken.get_mut(&peer).unwrap().push(message);
            self.moved += 1;
        }
    }

    fn reply(&mut self, peer: Peer, which: u8, how: How) {
        let taken = self.taken.get_mut(&peer).unwrap();
        if taken.is_empty() {
            return;
        }
        let place = usize::from(which) % taken.len();
        let request = match how {
            How::Answer | How::Refuse => taken.remove(place),
            How::Elsewhere | How::Malformed(_) => taken[place].clone(),
        };
        let id = id_of(&request);
        let counts = self.live.get(&id) == Some(&Some(peer));
        let answer = with_body(envelope(&request), &Message::from(format!("re {id}")));
        match how {
            How::Answer => {
                self.answers.push((peer, answer.clone()));
                let got = self.hub.pattern.on_message(peer, answer, &mut self.hub.net).unwrap();
                let expected = Answer { asker: asker(id), result: Ok(Message::from(format!("re {id}"))) };
                assert_eq!(got, counts.then_some(expected));
                if counts {
                    self.end(id, End::Answered);
                }
            }
            How::Refuse => {
                let part = envelope(&request).remove(0);
                let refusal = Command::Refusal(Refusal { reason: RefusalReason::Dropped, id: part });
                self.hub.pattern.on_command(peer, refusal, &mut self.hub.net).unwrap();
                if counts {
                    let refused = Err(Unanswered::Refused(RefusalReason::Dropped));
                    let told = Answer { asker: asker(id), result: refused };
                    assert_eq!(self.hub.net.events.remove(0), told);
                    self.end(id, End::Refused);
                }
            }
            How::Elsewhere => {
                for other in self.hub.net.linked().into_iter().filter(|&other| other != peer) {
                    self.stray(other, answer.clone());
                    if self.correlate {
                        let refusal = Refusal { reason: RefusalReason::Dropped, id: envelope(&request).remove(0) };
                        self.hub.pattern.on_command(other, Command::Refusal(refusal), &mut self.hub.net).unwrap();
                    }
                }
            }
            How::Malformed(kind) => {
                let id = Bytes::copy_from_slice(&id.to_be_bytes());
                let (empty, text) = (Bytes::new(), Bytes::from("text"));
                let forms: &[&[&Bytes]] = if self.correlate {
                    &[
                        &[&id],
                        &[&id, &empty],
                        &[&id, &text, &text],
                        &[&empty, &text],
                        &[&text, &empty, &text],
                        &[&empty],
                    ]
                } else {
                    &[&[&empty], &[&text], &[&text, &empty], &[&text, &text]]
                };
                let form = forms[usize::from(kind) % forms.len()];
                let message = Message::from_parts(form.iter().map(|part| (*part).clone()));
                let got = self.hub.pattern.on_message(peer, message, &mut self.hub.net).unwrap();
                assert_eq!(got, None);
            }
        }
    }

    /// An answer comes that is not, or no longer, for anything this peer was asked.
    fn stray(&mut self, peer: Peer, message: Message) {
        // Without ids an answer too many is taken for the next one's: nothing can tell them apart.
        let asked = self.busy.get(&peer).is_some_and(|id| self.live.contains_key(id));
        if asked || !self.hub.net.linked().contains(&peer) {
            return;
        }
        let got = self.hub.pattern.on_message(peer, message, &mut self.hub.net).unwrap();
        assert_eq!(got, None, "from {peer}, which was not asked");
    }

    /// What the pattern did is what the model says must be next.
    fn follow(&mut self) {
        for answer in std::mem::take(&mut self.hub.net.events) {
            let id = id_asked(answer.asker);
            assert_eq!(answer, Answer { asker: asker(id), result: Err(Unanswered::TooLarge) });
            assert!(self.rooms(id).iter().all(|room| *room == Room::Never));
            let at = self.due.iter().position(|due| *due == id).expect("it waited for a peer");
            self.due.remove(at);
            self.end(id, End::TooLarge);
        }
        for did in self.hub.take_did() {
            let Did::Sent { peer, message, open } = did else { panic!("a requester does not do {did:?}") };
            let next = self.due.pop_front().expect("sent what was never asked");
            assert_eq!(message, self.on_wire(next), "out of order, or in a wrong form");
            assert_eq!(self.live.insert(next, Some(peer)), Some(None));
            let open: Vec<Peer> = open.into_iter().filter(|peer| !self.busy.contains_key(peer)).collect();
            self.fairness.sent(peer, &open);
            if !self.correlate {
                assert_eq!(self.busy.insert(peer, next), None, "two at a time");
            }
        }
    }

    fn try_first(&mut self) -> bool {
        let id = self.line.pop_front().unwrap();
        let (rooms, before, crowded) = (self.rooms(id), self.held(), self.live.len() >= self.outstanding);
        let body = self.bodies[id as usize].clone();
        let tag = tagged(id);
        let verb = Ask::Request { id, asker: asker(id), tag: tag.as_ref(), body: Body::from(&body) };
        let result = match self.hub.pattern.on_verb(verb, &mut self.hub.net) {
            Ok(()) => Ok(()),
            Err((Ask::Request { id: back, asker: to, body: given, .. }, why)) => {
                assert_eq!((back, to, given.into_message()), (id, asker(id), body));
                Err(why)
            }
            Err(other) => panic!("{other:?}"),
        };
        if result.is_ok() {
            assert!(!crowded);
            self.live.insert(id, None);
            self.due.push_back(id);
            if rooms.is_empty() {
                let (held, limit) = (self.held(), self.hub.net.unlinked_limit);
                assert!(held.messages <= limit.messages && (held.bytes <= limit.bytes || held.messages == 1));
            } else {
                assert!(before.is_zero(), "overtook what waits");
            }
            let sent = usize::from(!rooms.is_empty());
            assert_eq!(self.hub.net.did.len(), sent);
            self.follow();
            return true;
        }
        assert!(self.hub.net.did.is_empty());
        if result == Err(Why::TooLarge) {
            assert!(!rooms.is_empty() && rooms.iter().all(|room| *room == Room::Never));
            return true;
        }
        assert_eq!(result, Err(Why::Full));
        let limit = self.hub.net.unlinked_limit;
        let cost = self.with_id(id).bytes() + 64;
        let over =
            before.messages >= limit.messages || (!before.is_zero() && before.bytes.saturating_add(cost) > limit.bytes);
        assert!(crowded || !before.is_zero() || !rooms.contains(&Room::Fits), "called full while a peer has room");
        assert!(crowded || !rooms.is_empty() || over, "called full below the limit");
        self.line.push_front(id);
        false
    }

    /// The socket closes: each request that has not ended is told so, once, and nothing more goes out or comes in.
    fn close(mut self) {
        self.hub.pattern.on_close(&mut self.hub.net);
        for answer in std::mem::take(&mut self.hub.net.events) {
            let id = id_asked(answer.asker);
            assert_eq!(answer, Answer { asker: asker(id), result: Err(Unanswered::Closed) });
            assert!(self.live.remove(&id).is_some());
        }
        assert!(self.live.is_empty());
        self.hub.join(Bounds::WIDE, true);
        for (peer, requests) in std::mem::take(&mut self.taken) {
            for request in requests {
                let answer = with_body(envelope(&request), &Message::from("late"));
                assert_eq!(self.hub.pattern.on_message(peer, answer, &mut self.hub.net), Ok(None));
            }
            self.hub.leave(peer);
        }
        assert!(self.hub.net.did.is_empty() && self.hub.net.events.is_empty());
        assert_eq!((self.hub.pattern.pending(), self.hub.pattern.held()), (0, Tally::ZERO));
    }

    fn finish(mut self) {
        if !self.line.is_empty() {
            assert!(!self.try_first(), "a request waited though it could have gone");
        }
        self.step(Step::Join(Bounds::WIDE));
        // A turn without an end may have brought credit; the next then brings requests.
        let mut idle = 0;
        while idle < 2 {
            let before = (self.moved, self.ended.len());
            for peer in self.hub.net.linked() {
                if self.hub.net.is_closing(peer) {
                    self.leave(peer);
                    self.follow();
                    continue;
                }
                self.hub.write(peer, usize::MAX);
                self.take(peer, usize::MAX);
                self.hub.grant(peer);
                self.follow();
                while !self.taken[&peer].is_empty() {
                    self.reply(peer, 0, How::Answer);
                    self.step(Step::Grant(0));
                }
            }
            idle = if before == (self.moved, self.ended.len()) { idle + 1 } else { 0 };
        }
        assert!(self.live.is_empty() && self.line.is_empty(), "never ended: {:?} {:?}", self.live, self.line);
        assert_eq!(self.hub.pattern.pending(), 0);
    }
}

fn run(correlate: bool, outstanding: usize, unlinked: (u64, u64), steps: Vec<Step>) {
    let mut world = World::new(correlate, outstanding, Tally::new(unlinked.0, unlinked.1));
    let closes = steps.len() % 8 == 7;
    steps.into_iter().for_each(|step| world.step(step));
    if closes { world.close() } else { world.finish() }
}

proptest! {
    #![proptest_config(schedules(600))]

    #[test]
    fn every_request_ends_once_and_by_whom_it_was_given_to(
        steps in prop::collection::vec(step(), 0..100),
        (outstanding, unlinked) in (1usize..12, (0u64..6, 64u64..800)),
    ) {
        run(true, outstanding, unlinked, steps);
    }

    #[test]
    fn without_ids_one_request_at_a_time_goes_to_each_peer(
        steps in prop::collection::vec(step(), 0..100),
        (outstanding, unlinked) in (1usize..12, (0u64..6, 64u64..800)),
    ) {
        run(false, outstanding, unlinked, steps);
    }
}
