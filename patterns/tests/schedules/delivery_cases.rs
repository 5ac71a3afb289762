//! Confirmed delivery, case by case: what schedules at random seldom meet.

use std::collections::BTreeSet;

use bytes::Bytes;
use ropewalk_patterns::{
    Body, Message, Misbehaved, Pattern, Peer, Tally, Why as NotDone,
    delivery::{Claim, Confirms, Deliveries, Flight, Inbox, Keeps, MessageId, Outcome, Rules, Start, Why},
    extension::delivery::{Ack, Attach, Fence, Floor, Header, Resume, Verdict, What},
    push_pull::{Pull, Push},
    ranges::Ranges,
    zmtp::Command,
};

use crate::{
    delivery_receiver::lets,
    delivery_sender::{header, life, message, through},
    net::{Bounds, Did, Hub, numbered},
};

const STREAM: [u8; 16] = [7; 16];
const WINDOW: u64 = 1 << 16;
const MANY: Tally = Tally::new(1 << 20, 1 << 40);
const RULES: Rules = Rules { waiting: MANY, under_way: MANY, budget: u64::MAX, attempts: 3 };
const OPEN: Bounds = Bounds { hwm: MANY, window: MANY, ..Bounds::WIDE };

fn keeping(age: u64, from: u64, rules: Rules) -> Hub<Push> {
    Hub::new(Push::keeping(Deliveries::new(STREAM, life(age), from, rules), false), Tally::ZERO)
}

fn feed(hub: &mut Hub<Push>, incarnation: u64, seqs: impl IntoIterator<Item = u64>) {
    let flight = |seq| Flight::new(seq, incarnation, 1, numbered(seq, 0));
    let flights: Vec<Flight> = seqs.into_iter().map(flight).collect();
    hub.pattern.deliver(None, &mut hub.net, |deliveries, _| deliveries.feed(flights));
}

fn ranges(all: &[(u64, u64)]) -> Ranges {
    let mut ranges = Ranges::default();
    all.iter().for_each(|&(start, end)| ranges.insert(start..end));
    ranges
}

fn ack(places: std::ops::Range<u64>) -> Command {
    Command::Ack(Ack { places: ranges(&[(places.start, places.end)]) })
}

fn resume(done: Vec<(u64, Ranges)>) -> Command {
    Command::Resume(Resume { name: Bytes::new(), start: Start::Cursor, done })
}

fn say<P: Pattern>(hub: &mut Hub<P>, peer: Peer, command: &Command) -> Result<(), Misbehaved> {
    hub.pattern.on_command(peer, through(command), &mut hub.net)
}

fn resumed(hub: &mut Hub<Push>) -> Peer {
    let peer = hub.join(OPEN, true);
    say(hub, peer, &resume(Vec::new())).unwrap();
    peer
}

fn events(hub: &mut Hub<Push>) -> Vec<Outcome> {
    std::mem::take(&mut hub.net.events)
}

fn seqs(hub: &mut Hub<Push>) -> Vec<u64> {
    let sent = |did| if let Did::Sent { message, .. } = did { Some(header(&message).0) } else { None };
    hub.take_did().into_iter().filter_map(sent).collect()
}

fn told<P: Pattern>(hub: &mut Hub<P>) -> Vec<Command> {
    let told = |did| if let Did::Told(_, command) = did { Some(through(&command)) } else { None };
    hub.take_did().into_iter().filter_map(told).collect()
}

fn pull() -> Hub<Pull> {
    Hub::new(Pull::default(), Tally::ZERO)
}

/// Links a life of the stream; what it is answered.
fn attach(hub: &mut Hub<Pull>, incarnation: u64, floor: u64) -> (Peer, Command) {
    let peer = hub.join(OPEN, true);
    say(hub, peer, &Command::Attach(Attach { stream: STREAM, incarnation, floor })).unwrap();
    let answer = hub.take_did().pop();
    let Some(Did::Told(to, command)) = answer else { panic!("{answer:?}") };
    assert_eq!(to, peer);
    (peer, command)
}

fn give(hub: &mut Hub<Pull>, peer: Peer, seq: u64, incarnation: u64) -> Result<Option<Message>, Misbehaved> {
    let header = Header { seq, incarnation, attempt: 1 }.to_bytes();
    let message = Message::from_parts([Bytes::copy_from_slice(&header), numbered(seq, 0).into_payload()]);
    hub.pattern.on_message(peer, message, &mut hub.net)
}

#[test]
fn no_more_is_read_out_beyond_the_oldest_than_a_receiver_remembers() {
    let mut push = keeping(1, 0, RULES);
    let peer = resumed(&mut push);
    feed(&mut push, life(1), 0..WINDOW);
    assert_eq!(seqs(&mut push).len() as u64, WINDOW);
    say(&mut push, peer, &ack(1..WINDOW)).unwrap();
    assert_eq!(push.pattern.deliveries().unwrap().room().messages, 0);
    assert_eq!(push.pattern.held().messages, 1);
    assert!(!events(&mut push).contains(&Outcome::Wants));
    say(&mut push, peer, &ack(0..1)).unwrap();
    assert_eq!(push.pattern.deliveries().unwrap().floor(), WINDOW);
    assert!(events(&mut push).contains(&Outcome::Wants));
    assert_eq!(told(&mut push), [Command::Floor(Floor { seq: WINDOW })]);
}

#[test]
fn a_receiver_forgets_what_is_below_the_floor() {
    let mut pull = pull();
    let (peer, _) = attach(&mut pull, life(1), 0);
    (0..100).for_each(|seq| assert!(give(&mut pull, peer, 2 * seq, life(1)).unwrap().is_some()));
    let owed = pull.pattern.owed(peer);
    assert_eq!(owed, Some(ack(0..100)));
    let before = pull.pattern.inbound().inbox().to_bytes().len();
    say(&mut pull, peer, &Command::Floor(Floor { seq: 200 })).unwrap();
    let after = pull.pattern.inbound().inbox().to_bytes().len();
    assert!(after < 40 && before > 200, "{before} {after}");
    assert_eq!(attach(&mut pull, life(1), 200).1, resume(Vec::new()));
}

#[test]
fn what_is_said_at_once_fits_into_a_command() {
    // Of each of very many lives one message was done before.
    let mut inbox = Inbox::default();
    for age in 1..=20_000 {
        inbox.claim(MessageId { stream: STREAM, incarnation: life(age), seq: 2 * age });
    }
    let mut many = Hub::new(Pull::with_inbox(inbox), Tally::ZERO);
    let (_, answer) = attach(&mut many, life(20_000), 0);
    let mut bytes = bytes::BytesMut::new();
    answer.encode(false, &mut bytes);
    assert!(bytes.len() < 64 << 10, "{} bytes", bytes.len());

    // Every second place is done.
    let mut pull = pull();
    let (peer, _) = attach(&mut pull, life(1), 0);
    for seq in 0..3000 {
        assert!(give(&mut pull, peer, seq, life(1)).unwrap().is_some());
        if seq % 2 == 0 {
            pull.pattern.inbound().hold(1).unwrap();
        }
    }
    let owed = std::iter::from_fn(|| pull.pattern.owed(peer));
    let said = owed.map(|command| if let Command::Ack(ack) = through(&command) { ack.places.len() } else { 0 });
    assert_eq!(said.collect::<Vec<_>>(), [1024, 476]);
}

#[test]
fn an_older_life_and_one_of_the_same_age_deliver_nothing_and_are_told() {
    let mut pull = pull();
    let newest = 5 << 32 | 50;
    attach(&mut pull, newest, 0);
    for old in [5 << 32 | 51, 5 << 32 | 49, 4 << 32 | 99] {
        let (peer, answer) = attach(&mut pull, old, 1000);
        assert_eq!(answer, Command::Fence(Fence { incarnation: newest }));
        assert_eq!(give(&mut pull, peer, 5, old), Ok(None));
        say(&mut pull, peer, &Command::Floor(Floor { seq: 1000 })).unwrap();

        let mut push = Hub::new(Push::keeping(Deliveries::new(STREAM, old, 0, RULES), false), Tally::ZERO);
        let peer = push.join(Bounds::WIDE, true);
        feed(&mut push, old, 0..3);
        say(&mut push, peer, &answer).unwrap();
        assert!(events(&mut push).contains(&Outcome::Forked { incarnation: newest }));
        assert_eq!(seqs(&mut push), []);
    }
    let (peer, _) = attach(&mut pull, newest, 0);
    assert!(give(&mut pull, peer, 5, newest).unwrap().is_some(), "their floor counts for nothing");
}

#[test]
fn a_stream_that_was_put_back_from_a_copy_loses_nothing_that_it_accepts() {
    let mut pull = pull();
    let (first, _) = attach(&mut pull, life(1), 0);
    (0..900).for_each(|seq| assert!(give(&mut pull, first, seq, life(1)).unwrap().is_some()));
    say(&mut pull, first, &Command::Floor(Floor { seq: 900 })).unwrap();

    // The copy knows of 500 of them and goes on from there.
    let (copy, answer) = attach(&mut pull, life(2), 490);
    assert!(matches!(answer, Command::Resume(_)));
    assert_eq!(give(&mut pull, copy, 495, life(1)), Ok(None), "that one was done");
    let mut own = Inbox::default();
    for seq in 500..1000 {
        assert!(give(&mut pull, copy, seq, life(2)).unwrap().is_some());
        let held = pull.pattern.inbound().hold(1).unwrap();
        assert_eq!(own.claim(held.id), Claim::Fresh);
        own.forget_below(&held.id.stream, held.floor);
        pull.pattern.inbound().ack(&held, &mut pull.net);
    }
    assert_eq!(give(&mut pull, copy, 500, life(2)), Ok(None));

    // The original is told, and neither its messages nor its floors count.
    say(&mut pull, first, &Command::Floor(Floor { seq: 5000 })).unwrap();
    assert_eq!(give(&mut pull, first, 1001, life(1)), Ok(None));
    assert!(give(&mut pull, copy, 1001, life(2)).unwrap().is_some());
}

#[test]
fn a_copy_that_attaches_tells_the_original_that_is_linked() {
    let mut pull = pull();
    let (original, _) = attach(&mut pull, life(1), 0);
    let other = pull.join(OPEN, true);
    let stranger = Command::Attach(Attach { stream: [1; 16], incarnation: life(1), floor: 0 });
    say(&mut pull, other, &stranger).unwrap();
    pull.take_did();
    let copy = pull.join(OPEN, true);
    say(&mut pull, copy, &Command::Attach(Attach { stream: STREAM, incarnation: life(2), floor: 0 })).unwrap();
    let fence = Command::Fence(Fence { incarnation: life(2) });
    assert_eq!(pull.take_did(), [Did::Told(original, fence), Did::Told(copy, resume(Vec::new()))]);
    assert!(give(&mut pull, other, 1, life(1)).unwrap().is_some(), "another stream has nothing to do with it");
}

/// What is told of a place in the stream waits for what is before it.
#[test]
fn a_source_that_asks_is_told_when_nothing_waits() {
    let mut push = keeping(1, 0, Rules { waiting: Tally::new(8, 1 << 20), under_way: Tally::new(2, 1 << 20), ..RULES });
    let idle =
        |push: &mut Hub<Push>| push.pattern.deliver(None, &mut push.net, |deliveries, _| deliveries.idle_or_told());
    assert!(idle(&mut push));
    let peer = push.join(OPEN, true);
    feed(&mut push, life(1), 0..4);
    say(&mut push, peer, &resume(Vec::new())).unwrap();
    assert_eq!(seqs(&mut push), [0, 1]);
    events(&mut push);
    assert!(!idle(&mut push));
    assert_eq!(events(&mut push), [], "there is room, and that was not the question");
    say(&mut push, peer, &ack(0..1)).unwrap();
    assert!(!events(&mut push).contains(&Outcome::Wants), "one waits");
    say(&mut push, peer, &ack(1..2)).unwrap();
    assert!(events(&mut push).contains(&Outcome::Wants));
    assert!(idle(&mut push));
}

#[test]
fn senders_that_lie_are_named() {
    let mut pull = pull();
    let (peer, _) = attach(&mut pull, life(2), 0);
    let later = life(3);
    assert_eq!(give(&mut pull, peer, 1, later), Err(Misbehaved::BadHeader));
    let again = Command::Attach(Attach { stream: STREAM, incarnation: later, floor: 0 });
    assert_eq!(say(&mut pull, peer, &again), Err(Misbehaved::AttachedTwice));
    assert_eq!(say(&mut pull, peer, &Command::Floor(Floor { seq: u64::MAX })), Ok(()));
    // That was its own stream; what others send is as it was.
    let other = pull.join(OPEN, true);
    assert_eq!(pull.pattern.on_message(other, Message::from("plain"), &mut pull.net), Ok(Some(Message::from("plain"))));
}

#[test]
fn receivers_that_lie_are_named_or_not_heard() {
    let mut push = keeping(2, 0, Rules { attempts: 16, ..RULES });
    let (liar, honest) = (push.join(OPEN, true), push.join(OPEN, true));
    feed(&mut push, life(2), 0..4);
    assert_eq!(say(&mut push, liar, &ack(0..1)), Err(Misbehaved::ImpossibleCount), "it has nothing");
    assert_eq!(seqs(&mut push), [], "nobody has answered");
    say(&mut push, liar, &resume(Vec::new())).unwrap();
    assert_eq!(seqs(&mut push), [0, 1, 2, 3]);
    events(&mut push);
    for incarnation in [life(2), life(1), 0] {
        let fence = Command::Fence(Fence { incarnation });
        assert_eq!(say(&mut push, liar, &fence), Err(Misbehaved::UnexpectedCommand));
    }
    let fence = Command::Fence(Fence { incarnation: life(3) });
    say(&mut push, liar, &fence).unwrap();
    assert_eq!(events(&mut push), [Outcome::Forked { incarnation: life(3) }]);
    assert_eq!(say(&mut push, liar, &fence), Err(Misbehaved::UnexpectedCommand), "it says so once");
    // To answer twice changes nothing.
    say(&mut push, liar, &resume(vec![(life(2), ranges(&[(0, 9)]))])).unwrap();
    let reject = What::Reject { reason: Bytes::from_static(b"no") };
    let verdict = Command::Verdict(Verdict { place: 4, what: reject });
    assert_eq!(say(&mut push, liar, &verdict), Err(Misbehaved::ImpossibleCount));
    let both = Command::Ack(Ack { places: ranges(&[(1, 3), (9, 10)]) });
    assert_eq!(say(&mut push, liar, &both), Err(Misbehaved::ImpossibleCount));
    assert_eq!(events(&mut push), []);
    push.write(liar, 1);
    push.leave(liar);
    say(&mut push, honest, &resume(Vec::new())).unwrap();
    assert_eq!(events(&mut push), [Outcome::Again { seq: 0, attempt: 2 }]);
    assert_eq!(seqs(&mut push), [0, 1, 2, 3]);
    say(&mut push, honest, &ack(0..4)).unwrap();
    assert!(push.pattern.held().is_zero());
    assert_eq!(say(&mut push, liar, &ack(0..4)), Ok(()), "it is gone");
}

#[test]
fn what_is_not_authorized_is_rejected_and_handed_to_nobody() {
    let mut pull = pull();
    pull.net.lets = lets;
    let (far, answer) = attach(&mut pull, life(1), 0);
    let mut push = keeping(1, 0, RULES);
    let near = push.join(OPEN, true);
    say(&mut push, near, &answer).unwrap();
    feed(&mut push, life(1), 2..5);
    push.write(near, 3);
    let mut got = Vec::new();
    while let Some(item) = push.take(near) {
        got.extend(pull.pattern.on_message(far, message(item), &mut pull.net).unwrap());
    }
    assert_eq!(got, [numbered(2, 0), numbered(4, 0)]);
    let told = told(&mut pull);
    assert_eq!(told.len(), 1);
    say(&mut push, near, &told[0]).unwrap();
    let dead = |event: &Outcome| match event {
        Outcome::Dead { flight, why: Why::Rejected(reason) } => Some((flight.seq, reason.clone())),
        _ => None,
    };
    let dead: Vec<_> = events(&mut push).iter().filter_map(dead).collect();
    assert_eq!(dead, [(3, Bytes::from_static(b"not authorized"))]);
    assert_eq!(pull.pattern.owed(far), Some(Command::Ack(Ack { places: ranges(&[(0, 1), (2, 3)]) })));
}

#[test]
fn a_source_that_feeds_only_what_is_wanted_gets_everything_through() {
    let few =
        Rules { waiting: Tally::new(8, 1 << 20), under_way: Tally::new(3, 1 << 20), budget: u64::MAX, attempts: 1 };
    let mut push = keeping(1, 0, few);
    let peer = resumed(&mut push);
    feed(&mut push, life(1), 0..8);
    let (mut next, mut acked, mut asked) = (8, 0, 0);
    while acked < 1000 {
        say(&mut push, peer, &ack(acked..acked + 1)).unwrap();
        acked += 1;
        for _ in events(&mut push).into_iter().filter(|event| *event == Outcome::Wants) {
            let room = push.pattern.deliveries().unwrap().room().messages;
            assert!(room >= 4, "asked for the sake of {room}");
            feed(&mut push, life(1), next..next + room);
            (next, asked) = (next + room, asked + 1);
        }
    }
    assert!(asked <= 251, "asked {asked} times");
}

#[test]
fn all_peers_together_keep_to_the_budget_and_each_may_have_one() {
    // Each message costs 8 bytes and 64 more, and 20 on its way.
    let mut push = keeping(1, 0, Rules { budget: 4 * 72 + 20, ..RULES });
    let (one, two) = (resumed(&mut push), resumed(&mut push));
    feed(&mut push, life(1), 0..10);
    assert_eq!(seqs(&mut push).len(), 4);
    let three = resumed(&mut push);
    assert_eq!(seqs(&mut push).len(), 1, "one that has nothing gets one");
    assert_eq!(push.pattern.deliveries().unwrap().under_way(), 5 * 72);
    say(&mut push, one, &ack(0..1)).unwrap();
    assert_eq!(seqs(&mut push).len(), 0);
    say(&mut push, two, &ack(0..1)).unwrap();
    assert_eq!(seqs(&mut push).len(), 1);
    push.leave(one);
    push.leave(two);
    let left = push.pattern.deliveries().unwrap().under_way();
    say(&mut push, three, &ack(0..1)).unwrap();
    assert!(left <= 4 * 72 && !push.pattern.held().is_zero());
}

#[test]
fn what_is_to_come_later_takes_room_until_it_is_back() {
    let mut push = keeping(1, 0, Rules { waiting: Tally::new(1000, 3 * 72), ..RULES });
    let peer = resumed(&mut push);
    feed(&mut push, life(1), 0..1);
    seqs(&mut push);
    let release = Verdict { place: 0, what: What::Release { millis: 1000 } };
    say(&mut push, peer, &Command::Verdict(release)).unwrap();
    assert_eq!(push.pattern.deliveries().unwrap().room().bytes, 2 * 72);
    let later = events(&mut push).into_iter().find_map(|event| match event {
        Outcome::Later { flight, .. } => Some(flight),
        _ => None,
    });
    push.pattern.deliveries().unwrap().again(later.unwrap());
    assert_eq!(push.pattern.deliveries().unwrap().room().bytes, 2 * 72, "it waits here");
    // Where the application is the source, its bytes are bounded, too.
    let few = Rules { waiting: Tally::new(1000, 3 * 72), ..RULES };
    let mut push = Hub::new(Push::keeping(Deliveries::new(STREAM, life(1), 0, few), true), Tally::ZERO);
    let accepted = (0..5).filter(|_| push.pattern.on_verb(Body::from("8 bytes!"), &mut push.net).is_ok()).count();
    assert_eq!(accepted, 3);
}

#[test]
fn what_the_application_sends_is_numbered_where_it_is_the_source() {
    let few = Rules { waiting: Tally::new(2, 1 << 20), ..RULES };
    let deliveries = Deliveries::new(STREAM, life(1), 5, few);
    let mut push = Hub::new(Push::keeping(deliveries, true), Tally::ZERO);
    assert_eq!(push.pattern.accept(Body::from("a"), &mut push.net, |seq| seq).unwrap(), 5);
    push.pattern.on_verb(Body::from("b"), &mut push.net).unwrap();
    push.net.ready = false;
    let full = push.pattern.on_verb(Body::from("c"), &mut push.net);
    assert!(matches!(full, Err((_, NotDone::Full))));
    resumed(&mut push);
    assert!(push.net.ready && events(&mut push).is_empty(), "the application is asked, not a source");
    assert_eq!(push.pattern.accept(Body::from("c"), &mut push.net, |seq| seq).unwrap(), 7);
    let seqs: BTreeSet<u64> = seqs(&mut push).into_iter().collect();
    assert_eq!(seqs, [5, 6, 7].into());
    // Where a source feeds, the application's own word is not taken.
    let mut fed = keeping(1, 0, few);
    assert!(matches!(fed.pattern.accept(Body::from("a"), &mut fed.net, |seq| seq), Err((_, NotDone::Full))));
}

#[test]
fn peers_get_equal_shares_also_of_what_is_kept() {
    let mut push = keeping(1, 0, RULES);
    let (greedy, other) = (resumed(&mut push), resumed(&mut push));
    say(&mut push, greedy, &resume(Vec::new())).unwrap();
    feed(&mut push, life(1), 0..10);
    let sent = |did| if let Did::Sent { peer, .. } = did { Some(peer) } else { None };
    let sent: Vec<Peer> = push.take_did().into_iter().filter_map(sent).collect();
    let to = |peer: Peer| sent.iter().filter(|to| **to == peer).count();
    assert_eq!((to(greedy), to(other)), (5, 5));
}

#[test]
fn what_a_receiver_did_for_another_life_is_not_done() {
    let mut push = keeping(2, 0, RULES);
    feed(&mut push, life(1), [0, 1]);
    feed(&mut push, life(2), [2, 3]);
    let peer = push.join(OPEN, true);
    events(&mut push);
    say(&mut push, peer, &resume(vec![(life(1), ranges(&[(0, 1), (3, 4)])), (life(2), ranges(&[(1, 3)]))])).unwrap();
    assert_eq!(events(&mut push)[0], Outcome::Settled(ranges(&[(0, 1), (2, 3)])));
    assert_eq!(seqs(&mut push), [1, 3]);
}

#[test]
fn what_all_peers_refuse_for_its_size_is_dead_and_stops_nobody() {
    let mut push = keeping(1, 0, RULES);
    let small = push.join(Bounds { largest: 100, ..OPEN }, true);
    let flight = |seq, size| Flight::new(seq, life(1), 1, numbered(seq, size));
    push.pattern.deliver(None, &mut push.net, |deliveries, _| deliveries.feed([flight(0, 90), flight(1, 0)]));
    assert_eq!(events(&mut push), [Outcome::Wants], "nobody has answered yet");
    say(&mut push, small, &resume(Vec::new())).unwrap();
    let dead = Outcome::Dead { flight: flight(0, 90), why: Why::TooLarge };
    assert_eq!((events(&mut push), seqs(&mut push)), (vec![dead], vec![1]));
    push.pattern.deliver(None, &mut push.net, |deliveries, turn| deliveries.settle(0, turn));
    assert_eq!((events(&mut push), push.pattern.held().messages), (vec![Outcome::Settled(ranges(&[(0, 1)]))], 1));
}

/// A receiver confirms what it is given at once when it has handled all of that, and dies of one message, each time.
#[test]
fn who_dies_of_one_message_takes_no_other_with_it() {
    const POISON: u64 = 20;
    for attempts in [3, 4, 16] {
        let mut push = keeping(1, 0, Rules { attempts, ..RULES });
        feed(&mut push, life(1), 0..40);
        let (mut confirmed, mut dead, mut deaths) = (BTreeSet::new(), Vec::new(), 0);
        while confirmed.len() + dead.len() < 40 {
            let peer = resumed(&mut push);
            let mut place = 0;
            loop {
                let given = seqs(&mut push);
                if given.is_empty() || given.contains(&POISON) {
                    break;
                }
                // It lives, and what it has handled is confirmed.
                say(&mut push, peer, &ack(place..place + given.len() as u64)).unwrap();
                place += given.len() as u64;
                confirmed.extend(given);
            }
            deaths += 1;
            assert!(deaths <= 2 * attempts, "it comes to an end");
            push.write(peer, 40);
            push.leave(peer);
            dead.extend(events(&mut push).into_iter().filter_map(|event| match event {
                Outcome::Dead { flight, why: Why::Attempts } => Some(flight.seq),
                _ => None,
            }));
            dead.iter().for_each(|&seq| {
                push.pattern.deliver(None, &mut push.net, |deliveries, turn| deliveries.settle(seq, turn));
            });
        }
        assert_eq!((dead, confirmed.len()), (vec![POISON], 39), "of {attempts} attempts");
    }
}

#[test]
fn a_socket_that_closes_waits_for_its_source_to_say_that_there_is_no_more() {
    let mut push = keeping(1, 0, RULES);
    assert!(push.pattern.held().is_zero());
    push.pattern.on_close(&mut push.net);
    assert_eq!(push.pattern.held().messages, 1);
    push.pattern.deliveries().unwrap().has_more(false);
    assert!(push.pattern.held().is_zero());
}
