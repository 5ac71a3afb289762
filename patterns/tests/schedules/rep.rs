//! Rep against a list of open questions: each answer goes back in its envelope to who asked, and nobody waits for
//! another's room.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use proptest::prelude::*;
use ropewalk_patterns::{
    Body, Message, Pattern, Peer, Role, Room, Tally, Why,
    delivery::{MessageId, RequestTag},
    extension::{Refusal, RefusalReason},
    req_rep::{Question, Rep, Reply},
    zmtp::Command,
};

use crate::net::{Bounds, Did, Hub, Item, bounds, schedules};

#[derive(Debug, Clone)]
enum Step {
    Join {
        bounds: Bounds,
        extension: bool,
    },
    Leave(u8),
    /// A request with so many parts before the delimiter.
    Ask {
        who: u8,
        labels: usize,
        delimiter: bool,
        body: usize,
    },
    Answer {
        which: u8,
        size: usize,
    },
    Refuse {
        which: u8,
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
    let count = 1usize..5;
    prop_oneof![
        2 => (bounds(), any::<bool>()).prop_map(|(bounds, extension)| Step::Join { bounds, extension }),
        1 => any::<u8>().prop_map(Step::Leave),
        8 => (any::<u8>(), 0usize..3, prop::bool::weighted(0.9), 0usize..3)
            .prop_map(|(who, labels, delimiter, body)| Step::Ask { who, labels, delimiter, body }),
        6 => (any::<u8>(), 0usize..250).prop_map(|(which, size)| Step::Answer { which, size }),
        1 => any::<u8>().prop_map(|which| Step::Refuse { which }),
        3 => (any::<u8>(), count.clone()).prop_map(|(who, count)| Step::Write { who, count }),
        3 => (any::<u8>(), count).prop_map(|(who, count)| Step::Take { who, count }),
        3 => any::<u8>().prop_map(Step::Grant),
    ]
}

struct World {
    hub: Hub<Rep>,
    extension: BTreeMap<Peer, bool>,
    asked: u64,
    /// Taken by the application, with the envelope each came in.
    open: Vec<(Question, Vec<Bytes>)>,
    /// Replies that wait, by the line the pattern named.
    lines: BTreeMap<u64, VecDeque<(Question, Vec<Bytes>, Message)>>,
    /// What each requester must get next.
    due: BTreeMap<Peer, VecDeque<Message>>,
}

impl World {
    fn new() -> Self {
        Self {
            hub: Hub::new(Rep::default(), Tally::ZERO),
            extension: BTreeMap::new(),
            asked: 0,
            open: Vec::new(),
            lines: BTreeMap::new(),
            due: BTreeMap::new(),
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Join { bounds, extension } => {
                let peer = self.hub.join(bounds, extension);
                self.extension.insert(peer, extension);
                self.due.insert(peer, VecDeque::new());
            }
            Step::Leave(who) => self.with(who, Self::leave),
            Step::Ask { who, labels, delimiter, body } => {
                self.with(who, |world, peer| world.ask(peer, labels, delimiter, body));
            }
            Step::Answer { which, size } => self.with_open(which, |world, question, envelope| {
                let message = Message::from_parts([vec![b'r'; size].into(), Bytes::from("last")]);
                let line = world.lines.entry(line_of(&question)).or_default();
                line.push_back((question, envelope, message));
                world.hub.net.ready |= line.len() == 1;
            }),
            Step::Refuse { which } => {
                self.with_open(which, |world, question, envelope| world.refuse(&question, &envelope));
            }
            Step::Write { who, count } => self.with(who, |world, peer| world.hub.write(peer, count)),
            Step::Take { who, count } => self.with(who, |world, peer| world.take(peer, count)),
            Step::Grant(who) => self.with(who, |world, peer| {
                world.hub.grant(peer);
            }),
        }
        while std::mem::take(&mut self.hub.net.ready) {
            let lines: Vec<u64> = self.lines.keys().copied().collect();
            for line in lines {
                while self.try_first(line) {}
            }
        }
        self.lines.retain(|_, line| !line.is_empty());
        for line in self.lines.values() {
            let (question, envelope, body) = &line[0];
            let bytes = envelope.iter().map(|part| part.len() as u64).sum::<u64>() + body.bytes();
            let room = self.hub.net.room_of(question.peer, bytes);
            assert!(matches!(room, Room::Full | Room::TooLittle), "waits though its own requester has {room:?}");
        }
    }

    fn with(&mut self, who: u8, act: impl FnOnce(&mut Self, Peer)) {
        if let Some(peer) = self.hub.pick(who) {
            act(self, peer);
        }
    }

    fn with_open(&mut self, which: u8, act: impl FnOnce(&mut Self, Question, Vec<Bytes>)) {
        if !self.open.is_empty() {
            let (question, envelope) = self.open.swap_remove(usize::from(which) % self.open.len());
            act(self, question, envelope);
        }
    }

    fn ask(&mut self, peer: Peer, labels: usize, delimiter: bool, body: usize) {
        self.asked += 1;
        let number = Bytes::copy_from_slice(&self.asked.to_be_bytes());
        let mut envelope = vec![number.clone(); labels];
        if delimiter {
            envelope.push(Bytes::new());
        }
        // Behind the delimiter an empty part is a part like any other.
        let body: Vec<Bytes> = [number, Bytes::new()].into_iter().take(body).collect();
        let whole = Message::from_parts(envelope.iter().chain(&body).cloned());
        let question = self.hub.pattern.on_message(peer, whole.clone(), &mut self.hub.net).unwrap();
        // Without a delimiter of its own, the body's empty part is one with nothing behind it.
        if !delimiter || body.is_empty() {
            assert_eq!(question, None, "nothing to answer in {whole:?}");
            return;
        }
        let question = question.expect("a request");
        assert_eq!((question.peer, &question.message), (peer, &Message::from_parts(body)));
        assert_eq!(question.envelope(), envelope);
        self.open.push((question, envelope));
    }

    fn refuse(&mut self, question: &Question, envelope: &[Bytes]) {
        let verb = Reply::Refuse { question, reason: RefusalReason::Dropped };
        let result = self.hub.pattern.on_verb(verb, &mut self.hub.net).map_err(|(_, why)| why);
        let did = self.hub.take_did();
        match self.extension.get(&question.peer) {
            None => assert_eq!((result, did), (Err(Why::Gone), vec![])),
            Some(false) => assert_eq!((result, did), (Ok(()), vec![])),
            Some(true) => {
                let refusal = Refusal { reason: RefusalReason::Dropped, id: envelope[0].clone() };
                let told = Did::Told(question.peer, Command::Refusal(refusal));
                assert_eq!((result, did), (Ok(()), vec![told]));
            }
        }
    }

    /// Tries the first reply of this line; true if it is done with.
    fn try_first(&mut self, line: u64) -> bool {
        let Some((question, envelope, body)) = self.lines.get_mut(&line).and_then(VecDeque::pop_front) else {
            return false;
        };
        let peer = question.peer;
        let whole = Message::from_parts(envelope.iter().chain(body.parts()).cloned());
        let room = self.hub.net.room_of(peer, whole.bytes());
        let verb = Reply::Answer { question: &question, body: Body::from(&body) };
        let result = self.hub.pattern.on_verb(verb, &mut self.hub.net).map_err(|(verb, why)| {
            let Reply::Answer { body: back, .. } = verb else { panic!("{verb:?}") };
            assert_eq!(back.into_message(), body);
            why
        });
        let did = self.hub.take_did();
        let expected = match room {
            Room::Fits => Ok(()),
            Room::Full | Room::TooLittle | Room::Spent => Err(Why::Full),
            Room::Never => Err(Why::TooLarge),
            Room::Gone => Err(Why::Gone),
        };
        assert_eq!(result, expected);
        if result.is_ok() {
            let [Did::Sent { peer: to, message, .. }] = &did[..] else { panic!("{did:?}") };
            assert_eq!((*to, message), (peer, &whole), "in its envelope to who asked");
            self.due.get_mut(&peer).unwrap().push_back(whole);
        } else {
            assert_eq!(did, []);
        }
        if result == Err(Why::Full) {
            self.lines.get_mut(&line).unwrap().push_front((question, envelope, body));
            return false;
        }
        true
    }

    fn take(&mut self, peer: Peer, count: usize) {
        for _ in 0..count {
            let Some(item) = self.hub.take(peer) else { break };
            let next = self.due.get_mut(&peer).unwrap().pop_front().expect("an answer that was never given");
            assert_eq!(item, Item::Message(next));
        }
    }

    fn leave(&mut self, peer: Peer) {
        let unsent = self.hub.leave(peer).unsent.len() as u64;
        let lost = self.hub.take_did();
        assert_eq!(lost, if unsent == 0 { vec![] } else { vec![Did::Lost(unsent)] });
        self.extension.remove(&peer);
        self.due.remove(&peer);
    }

    fn finish(mut self) {
        for line in self.lines.keys().copied().collect::<Vec<_>>() {
            assert!(!self.try_first(line), "a reply waited though it could have gone");
        }
        for _ in 0..=2 * self.asked {
            for peer in self.hub.net.linked() {
                self.hub.write(peer, usize::MAX);
                self.take(peer, usize::MAX);
                self.hub.grant(peer);
            }
            self.step(Step::Grant(0));
        }
        assert!(self.lines.is_empty(), "waits for ever: {:?}", self.lines);
        assert!(self.due.values().all(VecDeque::is_empty));
    }
}

fn line_of(question: &Question) -> u64 {
    let refuse = Rep::line(&Reply::Refuse { question, reason: RefusalReason::Dropped });
    let answer = Rep::line(&Reply::Answer { question, body: Body::from("") });
    assert_ne!(refuse, answer, "a refusal waits for nobody");
    answer
}

proptest! {
    #![proptest_config(schedules(800))]

    #[test]
    fn each_answer_goes_back_as_it_came_to_who_asked(steps in prop::collection::vec(step(), 0..100)) {
        let mut world = World::new();
        steps.into_iter().for_each(|step| world.step(step));
        world.finish();
    }
}

fn question(hub: &mut Hub<Rep>, peer: Peer, parts: &[&'static str]) -> Option<Question> {
    let message = Message::from_parts(parts.iter().map(|part| Bytes::from(*part)));
    hub.pattern.on_message(peer, message, &mut hub.net).unwrap()
}

fn answer(hub: &mut Hub<Rep>, question: &Question, body: &str) -> Result<(), Why> {
    let verb = Reply::Answer { question, body: Body::from(body) };
    hub.pattern.on_verb(verb, &mut hub.net).map_err(|(_, why)| why)
}

#[test]
fn the_envelope_goes_back_whoever_made_it() {
    let mut hub = Hub::new(Rep::default(), Tally::ZERO);
    let peer = hub.join(Bounds::WIDE, false);
    let cases: [(&[&str], &[&str]); 4] = [
        (&["", "A"], &["", "re"]),
        (&["id01", "", "A"], &["id01", "", "re"]),
        (&["X", "Y", "", "A"], &["X", "Y", "", "re"]),
        (&["X", "", "", "A"], &["X", "", "re"]),
    ];
    for (request, reply) in cases {
        let question = question(&mut hub, peer, request).expect("a request");
        answer(&mut hub, &question, "re").unwrap();
        let did = hub.take_did();
        let [Did::Sent { message, .. }] = &did[..] else { panic!("{did:?}") };
        assert_eq!(*message, reply.iter().copied().collect::<Message>());
    }
    for discarded in [&["A"][..], &["A", "B"], &[""], &["X", ""]] {
        assert_eq!(question(&mut hub, peer, discarded), None, "{discarded:?}");
    }
    assert!(Rep::accepts(&Role::REQ) && Rep::accepts(&Role::DEALER) && !Rep::accepts(&Role::ROUTER));
}

#[test]
fn only_who_speaks_the_extension_says_which_request_it_is() {
    let mut hub = Hub::new(Rep::default(), Tally::ZERO);
    let (plain, speaks) = (hub.join(Bounds::WIDE, false), hub.join(Bounds::WIDE, true));
    let id = MessageId { stream: [7; 16], incarnation: 1, seq: 1 };
    let tag = RequestTag { id, floor: 1 };
    let part = tag.part(1);
    let mut of = |peer, envelope: &[&[u8]]| {
        let parts = envelope.iter().copied().chain([&b""[..], b"A"]).map(Bytes::copy_from_slice);
        hub.pattern.on_message(peer, Message::from_parts(parts), &mut hub.net).unwrap().unwrap().tag
    };
    assert_eq!(of(speaks, &[&part]), Some(tag));
    assert_eq!(of(plain, &[&part]), None);
    assert_eq!(of(speaks, &[b"through another", &part]), None, "it has another name there");
    assert_eq!((of(speaks, &[b"id01"]), of(speaks, &[])), (None, None));
}

#[test]
fn one_slow_requester_keeps_no_other_waiting() {
    let mut hub = Hub::new(Rep::default(), Tally::ZERO);
    let one = Tally::new(1, 1_000);
    let slow = hub.join(Bounds { hwm: one, window: one, ..Bounds::WIDE }, true);
    let quick = hub.join(Bounds::WIDE, true);
    let from_slow = question(&mut hub, slow, &["", "A"]).unwrap();
    let from_quick = question(&mut hub, quick, &["", "A"]).unwrap();
    assert_eq!((answer(&mut hub, &from_slow, "1"), answer(&mut hub, &from_slow, "2")), (Ok(()), Ok(())));
    assert_eq!(answer(&mut hub, &from_slow, "3"), Err(Why::Full));
    assert_eq!(answer(&mut hub, &from_quick, "1"), Ok(()));
    assert_ne!(line_of(&from_slow), line_of(&from_quick));
}

#[test]
fn one_who_took_the_place_of_a_dead_requester_gets_none_of_its_answers() {
    let mut hub = Hub::new(Rep::default(), Tally::ZERO);
    let peer = hub.join(Bounds::WIDE, true);
    let asked = question(&mut hub, peer, &["", "A"]).unwrap();
    hub.leave(peer);
    let heir = hub.join(Bounds::WIDE, true);
    assert_eq!(heir.slot, peer.slot);
    assert_eq!(answer(&mut hub, &asked, "1"), Err(Why::Gone));
    let refuse = Reply::Refuse { question: &asked, reason: RefusalReason::Dropped };
    assert!(matches!(hub.pattern.on_verb(refuse, &mut hub.net), Err((_, Why::Gone))));
    assert_eq!(hub.take_did(), []);
    assert_ne!(line_of(&asked), heir.number());
}
