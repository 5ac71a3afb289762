//! Req in single cases, each in the words of its promise.

use bytes::Bytes;
use ropewalk_patterns::{
    Body, Message, Pattern, Peer, Role, Tally, Why,
    extension::{Refusal, RefusalReason},
    req_rep::{Answer, Ask, Req, Unanswered},
    zmtp::Command,
};

use crate::net::{Bounds, Did, Hub};

const SOME: Tally = Tally::new(10, 10_000);

fn ask(hub: &mut Hub<Req<u64>>, id: u32) -> Result<(), Why> {
    let verb = Ask::Request { id, asker: u64::from(id) + 100, tag: None, body: Body::from("question") };
    hub.pattern.on_verb(verb, &mut hub.net).map_err(|(_, why)| why)
}

fn forget(hub: &mut Hub<Req<u64>>, id: u32) {
    hub.pattern.on_verb(Ask::Forget { id }, &mut hub.net).unwrap();
}

fn answer(hub: &mut Hub<Req<u64>>, peer: Peer, parts: &[&'static [u8]]) -> Option<Answer<u64>> {
    let message = Message::from_parts(parts.iter().map(|part| Bytes::from_static(part)));
    hub.pattern.on_message(peer, message, &mut hub.net).unwrap()
}

fn sent(hub: &mut Hub<Req<u64>>) -> Vec<(Peer, Message)> {
    let sent = |did| match did {
        Did::Sent { peer, message, .. } => (peer, message),
        other => panic!("{other:?}"),
    };
    hub.take_did().into_iter().map(sent).collect()
}

fn with_id(id: u8) -> Message {
    Message::from_parts([vec![0, 0, 0, id].into(), Bytes::new(), Bytes::from("question")])
}

#[test]
fn an_answer_counts_once_and_only_from_the_peer_that_was_asked() {
    let mut hub = Hub::new(Req::new(8), SOME);
    let (first, second) = (hub.join(Bounds::WIDE, true), hub.join(Bounds::WIDE, true));
    assert_eq!((ask(&mut hub, 1), ask(&mut hub, 2)), (Ok(()), Ok(())));
    assert_eq!(sent(&mut hub), [(first, with_id(1)), (second, with_id(2))]);
    assert_eq!(answer(&mut hub, second, &[b"\0\0\0\x01", b"", b"lie"]), None);
    for malformed in [&[&b"\0\0\0\x01"[..], b""][..], &[b"\0\0\x01", b"", b"x"], &[b"", b"x"], &[b"\0\0\0\x01", b"x"]] {
        assert_eq!(answer(&mut hub, first, malformed), None, "{malformed:?}");
    }
    let good: &[&[u8]] = &[b"\0\0\0\x01", b"", b"yes", b""];
    let told = Answer { asker: 101, result: Ok(Message::from(["yes", ""])) };
    assert_eq!(answer(&mut hub, first, good), Some(told));
    assert_eq!(answer(&mut hub, first, good), None, "once");
    forget(&mut hub, 2);
    assert_eq!(answer(&mut hub, second, &[b"\0\0\0\x02", b"", b"late"]), None);
    assert_eq!((hub.pattern.pending(), sent(&mut hub)), (0, vec![]));
}

#[test]
fn what_was_not_written_moves_on_and_what_was_is_lost_with_its_peer() {
    let mut hub = Hub::new(Req::new(8), SOME);
    let first = hub.join(Bounds::WIDE, true);
    (1..=4).for_each(|id| ask(&mut hub, id).unwrap());
    hub.write(first, 1);
    forget(&mut hub, 3);
    sent(&mut hub);
    let second = hub.join(Bounds::WIDE, true);
    hub.leave(first);
    assert_eq!(hub.net.events, [Answer { asker: 101, result: Err(Unanswered::PeerLost) }]);
    assert_eq!(sent(&mut hub), [(second, with_id(2)), (second, with_id(4))]);
    assert_eq!(hub.pattern.pending(), 2);
}

#[test]
fn a_refusal_ends_the_request_it_names() {
    let mut hub = Hub::new(Req::new(8), SOME);
    let (first, second) = (hub.join(Bounds::WIDE, true), hub.join(Bounds::WIDE, true));
    ask(&mut hub, 1).unwrap();
    let refusal = Command::Refusal(Refusal { reason: RefusalReason::Dropped, id: vec![0, 0, 0, 1].into() });
    for (peer, told) in [(second, 0), (first, 1), (first, 1)] {
        hub.pattern.on_command(peer, refusal.clone(), &mut hub.net).unwrap();
        assert_eq!(hub.net.events.len(), told);
    }
    let refused = Err(Unanswered::Refused(RefusalReason::Dropped));
    assert_eq!(hub.net.events, [Answer { asker: 101, result: refused }]);
}

#[test]
fn without_ids_a_peer_is_asked_again_only_when_it_has_answered() {
    let mut hub = Hub::new(Req::new(8).correlate(false), SOME);
    let peer = hub.join(Bounds::WIDE, false);
    let plain = Message::from(["", "question"]);
    assert_eq!((ask(&mut hub, 1), ask(&mut hub, 2)), (Ok(()), Err(Why::Full)));
    assert_eq!(sent(&mut hub), [(peer, plain.clone())]);
    let told = Answer { asker: 101, result: Ok(Message::from("yes")) };
    assert_eq!(answer(&mut hub, peer, &[b"", b"yes"]), Some(told));
    assert_eq!(ask(&mut hub, 2), Ok(()));
    assert_eq!(sent(&mut hub), [(peer, plain)]);

    forget(&mut hub, 2);
    assert_eq!(hub.take_did(), [Did::Abandoned(peer)]);
    assert_eq!(ask(&mut hub, 3), Err(Why::Full), "its answer could be taken for the next one's");
    assert_eq!(answer(&mut hub, peer, &[b"", b"late"]), None);
    hub.leave(peer);
    assert_eq!(hub.net.events, []);
}

#[test]
fn a_request_that_waits_hears_of_the_place_that_a_forgotten_one_leaves() {
    let mut hub = Hub::new(Req::new(2), SOME);
    assert_eq!((ask(&mut hub, 0), ask(&mut hub, 1), ask(&mut hub, 2)), (Ok(()), Ok(()), Err(Why::Full)));
    hub.net.ready = false;
    forget(&mut hub, 0);
    assert!(hub.net.ready, "one fewer is outstanding, and there is room for one more");
    assert_eq!(ask(&mut hub, 2), Ok(()));
}

#[test]
fn a_number_is_not_used_twice_at_once_and_to_forget_need_not_wait() {
    let mut hub = Hub::new(Req::new(8), Tally::ZERO);
    hub.join(Bounds::WIDE, true);
    assert_eq!((ask(&mut hub, 5), ask(&mut hub, 5)), (Ok(()), Err(Why::Full)));
    assert_eq!(hub.pattern.pending(), 1);
    let request = Ask::Request { id: 6, asker: 0, tag: None, body: Body::from("") };
    assert_ne!(Req::<u64>::line(&request), Req::<u64>::line(&Ask::Forget { id: 6 }));
    assert!(Req::<u64>::accepts(&Role::REP) && Req::<u64>::accepts(&Role::ROUTER));
    assert!(!Req::<u64>::accepts(&Role::REQ) && !Req::<u64>::accepts(&Role::DEALER));
}
