//! What libzmq's own tests of the RFCs assert, and what they only would assert, said again for these sockets.
//!
//! libzmq has switched off four of them, because it does not do what the RFCs demand: that a queue dies with its link
//! (PUSH, and so for PUB and REP), and that a REQ listens only to the peer it asked. The first are here; for PUSH it is
//! the better opposite. The last needs ROUTERs, as the assertions about envelopes do: `tests/interop`.
//!
//! Not here because there is nothing like it: marks of zero (no bound) and marks changed in use (`test_sockopt_hwm`).

mod common;

use std::{collections::BTreeSet, time::Duration};

use ropewalk::{
    Event, Message, Overflow, Pub, Pull, Push, Rep, ReplyError, Req, Request, RequestError, Role, Sub, SubRecvError,
    TryRecvError, TrySendError, patterns::zmtp::Command,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::common::{
    LONG, Place, address_of, down, event, fill, keyed,
    raw::{Came, Raw, Stream, connect, frame, frames},
    soon, stays, until,
};

over_every_transport! {
    requests_go_out_in_turn,
    a_request_with_nobody_to_ask_waits,
    requests_come_in_fairly,
    messages_go_out_in_turn,
    messages_come_in_fairly,
    a_message_with_nobody_to_take_it_waits,
    messages_arrive_whole_or_not_at_all,
    commands_come_between_the_parts_of_a_message,
    two_thousand_fit_unless_told_otherwise,
    marks_hold_again_after_all_is_taken,
    a_subscriber_has_all_up_to_the_marks,
    beyond_the_marks_a_subscriber_knows_what_it_missed,
    nothing_waits_where_nobody_is,
    a_publishers_queue_dies_with_the_link,
    a_repliers_queue_dies_with_the_link,
    a_pushers_queue_goes_to_the_next_link,
}

const PEERS: usize = 5;

fn text(message: &Message) -> String {
    message.text().expect("text").to_owned()
}

async fn next(rep: &Rep) -> Request {
    soon("a request", rep.recv()).await.expect("a request")
}

async fn take(pull: &Pull) -> String {
    text(&soon("a message", pull.recv()).await.expect("a message"))
}

/// Asks in the background.
fn ask(req: &Req, question: &str) -> tokio::task::JoinHandle<Result<Message, RequestError>> {
    let (req, question) = (req.clone(), question.to_owned());
    tokio::spawn(async move { req.request(question).await })
}

// ---- test_spec_req, test_spec_rep ---------------------------------------------------------------------------------

async fn requests_go_out_in_turn(at: Place) {
    let req = keyed(Req::builder()).bind(at.address()).await.unwrap();
    let mut reps = Vec::new();
    for _ in 0..PEERS {
        reps.push(keyed(Rep::builder()).connect(address_of(&req)).await.unwrap());
    }
    soon("all", req.ready_with(PEERS)).await.unwrap();
    // One at a time, as a REQ of libzmq would; each replier is asked once in a round.
    for _ in 0..2 {
        let mut asked = BTreeSet::new();
        for _ in 0..PEERS {
            let answer = ask(&req, "ABC");
            let mut found = None;
            let look = || {
                found = reps.iter().enumerate().find_map(|(index, rep)| Some((index, rep.try_recv().ok()?)));
                found.is_some()
            };
            until("a replier to be asked", look).await;
            let (index, request) = found.unwrap();
            assert!(asked.insert(index), "asked twice before the others were");
            request.reply("DEF").await.unwrap();
            assert_eq!(soon("the answer", answer).await.unwrap().unwrap(), "DEF");
        }
    }
}

async fn a_request_with_nobody_to_ask_waits(at: Place) {
    let req = keyed(Req::builder()).bind(at.address()).await.unwrap();
    for timeout in [Duration::ZERO, Duration::from_millis(250)] {
        let before = tokio::time::Instant::now();
        let asked = soon("the timeout", async { req.request("ABC").timeout(timeout).await }).await;
        assert_eq!(asked, Err(RequestError::NotAsked));
        assert!(before.elapsed() >= timeout);
    }
    // It has not been kept for whoever comes.
    let rep = keyed(Rep::builder()).connect(address_of(&req)).await.unwrap();
    soon("a replier", req.ready()).await.unwrap();
    stays("the replier's rest", || matches!(rep.try_recv(), Err(TryRecvError::Empty))).await;
}

async fn requests_come_in_fairly(at: Place) {
    let rep = keyed(Rep::builder()).bind(at.address()).await.unwrap();
    let mut reqs = Vec::new();
    for _ in 0..PEERS {
        reqs.push(keyed(Req::builder()).connect(address_of(&rep)).await.unwrap());
    }
    for _ in 0..2 {
        let answer = ask(&reqs[0], "A");
        let request = next(&rep).await;
        assert_eq!(*request.message(), "A");
        request.reply("A").await.unwrap();
        assert_eq!(soon("the answer", answer).await.unwrap().unwrap(), "A");
    }
    // The first asks often, the others once: they are not behind it.
    let mut answers: Vec<_> = (0..10).map(|_| ask(&reqs[0], "often")).collect();
    answers.extend(reqs.iter().skip(1).map(|req| ask(req, "once")));
    until("all requests", || rep.stats().received == 2 + 10 + PEERS as u64 - 1).await;
    let mut first = Vec::new();
    for _ in 0..PEERS {
        first.push(next(&rep).await);
    }
    let asked: BTreeSet<u64> = first.iter().map(|request| request.peer().number).collect();
    assert_eq!(asked.len(), PEERS, "one of each");
    for request in first {
        request.reply("B").await.unwrap();
    }
    for _ in 0..9 {
        next(&rep).await.reply("B").await.unwrap();
    }
    for answer in answers {
        assert_eq!(soon("the answer", answer).await.unwrap().unwrap(), "B");
    }
}

// ---- test_spec_pushpull -------------------------------------------------------------------------------------------

async fn messages_go_out_in_turn(at: Place) {
    let push = keyed(Push::builder()).bind(at.address()).await.unwrap();
    let mut pulls = Vec::new();
    for _ in 0..PEERS {
        pulls.push(keyed(Pull::builder()).connect(address_of(&push)).await.unwrap());
    }
    soon("all", push.ready_with(PEERS)).await.unwrap();
    for round in ["ABC", "DEF"] {
        for _ in 0..PEERS {
            push.try_send(round).unwrap();
        }
    }
    for pull in &pulls {
        assert_eq!([take(pull).await, take(pull).await], ["ABC", "DEF"]);
    }
}

async fn messages_come_in_fairly(at: Place) {
    let pull = keyed(Pull::builder()).bind(at.address()).await.unwrap();
    let mut pushes = Vec::new();
    for number in 0..PEERS {
        let push = keyed(Push::builder()).connect(address_of(&pull)).await.unwrap();
        for round in ["first", "second"] {
            push.try_send(format!("{round} of {number}")).unwrap();
        }
        pushes.push(push);
    }
    until("all messages", || pull.stats().received == 2 * PEERS as u64).await;
    for round in ["first", "second"] {
        let mut got = BTreeSet::new();
        for _ in 0..PEERS {
            got.insert(take(&pull).await);
        }
        assert_eq!(got, (0..PEERS).map(|number| format!("{round} of {number}")).collect());
    }
}

async fn a_message_with_nobody_to_take_it_waits(at: Place) {
    let push = keyed(Push::builder()).bind(at.address()).await.unwrap();
    assert_eq!(push.try_send("ABC"), Err(TrySendError::Full(Message::from("ABC"))));
    assert!(tokio::time::timeout(Duration::from_millis(250), push.send("ABC")).await.is_err());
    // It has not been kept for whoever comes.
    let pull = keyed(Pull::builder()).connect(address_of(&push)).await.unwrap();
    soon("a peer", push.ready()).await.unwrap();
    stays("the receiver's rest", || matches!(pull.try_recv(), Err(TryRecvError::Empty))).await;
}

/// Links end in the middle of a message; what the next one gets begins with a first part and has all the others.
async fn messages_arrive_whole_or_not_at_all(at: Place) {
    // More than kernel buffers hold.
    let large = 16 << 20;
    let message = |name: &str, fill: u8| Message::from([name.into(), name.into(), vec![fill; large], name.into()]);
    let (hwm, most) = (100 << 20, 20 << 20);
    let push = keyed(Push::builder()).max_message(most).send_hwm_bytes(hwm).bind(at.address()).await.unwrap();
    let mut events = push.events();
    let send = |name: &'static str, fill| {
        let (push, message) = (push.clone(), message(name, fill));
        tokio::spawn(async move { push.send(message).await.unwrap() })
    };
    let one = send("1", b'a');
    let two = send("2", b'b');
    for bytes in [1, 5, 70_000, 1 << 20] {
        if at.is("inproc") {
            break;
        }
        let mut stream = plain_puller(&address_of(&push)).await;
        let mut some = vec![0; bytes];
        soon("a part of the message", stream.read_exact(&mut some)).await.unwrap();
        drop(stream);
        let (_, in_doubt) = down(&mut events).await;
        assert_eq!(in_doubt, 0, "it was not wholly written");
    }
    let pull = keyed(Pull::builder()).max_message(most).connect(address_of(&push)).await.unwrap();
    let three = send("3", b'c');
    let mut names = Vec::new();
    for _ in 0..3 {
        let got = soon("a message", pull.recv()).await.unwrap();
        let name = String::from_utf8(got.topic().to_vec()).unwrap();
        let fill = b'a' + name.parse::<u8>().unwrap() - 1;
        assert!(got == message(&name, fill), "a message in pieces, {} parts", got.len());
        names.push(name);
    }
    names.sort();
    assert_eq!(names, ["1", "2", "3"], "each once");
    for sent in [one, two, three] {
        soon("the sender", sent).await.unwrap();
    }
    assert!(matches!(pull.try_recv(), Err(TryRecvError::Empty)));
}

/// The grammar has none there, but libzmq's timers do not ask where its sender is in a message.
async fn commands_come_between_the_parts_of_a_message(at: Place) {
    if at.is("inproc") {
        return;
    }
    let pull = keyed(Pull::builder()).bind(at.address()).await.unwrap();
    let (mut peer, _) = Raw::link(&address_of(&pull), Role::PUSH, None).await;
    let ping = |context: &'static [u8]| frame(&Command::Ping { ttl: 0, context: context.into() });
    let parts = [&b"one"[..], &[b'2'; 100_000], b"three"].map(|part| frames(&[part]));
    // Each PING is answered while the rest of the message is still to come.
    for (part, context) in parts.iter().zip([&b"a"[..], b"b"]) {
        let mut bytes = part.to_vec();
        bytes[0] |= 1;
        peer.write(&[&bytes, &ping(context)[..]].concat()).await;
        assert_eq!(peer.next().await, Came::Command(Command::Pong { context: context.into() }));
        assert!(matches!(pull.try_recv(), Err(TryRecvError::Empty)));
    }
    peer.write(&[&parts[2], &frames(&[b"next"])[..]].concat()).await;
    let got = soon("the message", pull.recv()).await.unwrap();
    assert_eq!(got, Message::from([b"one".to_vec(), vec![b'2'; 100_000], b"three".to_vec()]));
    assert_eq!(soon("the next", pull.recv()).await.unwrap(), "next");
}

/// A PULL that knows nothing of the extension, of which the greeting and READY of the other side have been read.
async fn plain_puller(address: &str) -> Box<dyn Stream> {
    let mut stream = connect(address).await;
    let mut greeting = [0; 64];
    (greeting[0], greeting[9], greeting[10], greeting[11]) = (0xFF, 0x7F, 3, 1);
    greeting[12..16].copy_from_slice(b"NULL");
    stream.write_all(&greeting).await.unwrap();
    stream.write_all(b"\x04\x1A\x05READY\x0BSocket-Type\0\0\0\x04PULL").await.unwrap();
    let hear = async {
        stream.read_exact(&mut greeting).await.unwrap();
        let mut header = [0; 2];
        stream.read_exact(&mut header).await.unwrap();
        let mut ready = vec![0; usize::from(header[1])];
        stream.read_exact(&mut ready).await.unwrap();
    };
    soon("READY", hear).await;
    stream
}

// ---- test_hwm, test_hwm_pubsub, test_immediate --------------------------------------------------------------------

async fn two_thousand_fit_unless_told_otherwise(at: Place) {
    let (push, pull) = at.link(keyed(Push::builder()), keyed(Pull::builder())).await;
    let mut sent = 0;
    let full = || {
        sent += fill(&push, 1);
        sent >= 2000
    };
    until("1,000 at either end", full).await;
    stays("the sender full", || matches!(push.try_send("one more"), Err(TrySendError::Full(_)))).await;
    assert_eq!(sent, 2000);
    for _ in 0..2000 {
        soon("a message", pull.recv()).await.unwrap();
    }
}

async fn marks_hold_again_after_all_is_taken(at: Place) {
    for (send_hwm, recv_hwm) in [(1, 1), (1, 10), (10, 1), (7, 3)] {
        let sending = keyed(Push::builder()).send_hwm(send_hwm);
        let (push, pull) = at.link(sending, keyed(Pull::builder()).recv_hwm(recv_hwm)).await;
        for _ in 0..3 {
            let mut sent = 0;
            let full = || {
                sent += fill(&push, 1);
                sent >= send_hwm + recv_hwm
            };
            until("both to be full", full).await;
            stays("the sender full", || matches!(push.try_send("one more"), Err(TrySendError::Full(_)))).await;
            assert_eq!(sent, send_hwm + recv_hwm);
            for _ in 0..sent {
                soon("a message", pull.recv()).await.unwrap();
            }
            assert!(matches!(pull.try_recv(), Err(TryRecvError::Empty)));
        }
    }
}

/// A publisher, and a subscriber that takes nothing yet.
async fn subscribed(at: &Place, hwm: u64) -> (Pub, Sub) {
    let publisher = keyed(Pub::builder()).send_hwm(hwm).bind(at.address()).await.unwrap();
    let sub = keyed(Sub::builder()).recv_hwm(hwm).connect(address_of(&publisher)).await.unwrap();
    sub.subscribe("").await.unwrap();
    soon("the subscriber", publisher.subscribers("", 1)).await.unwrap();
    (publisher, sub)
}

async fn a_subscriber_has_all_up_to_the_marks(at: Place) {
    let (publisher, sub) = subscribed(&at, 1000).await;
    // Again after it was emptied, as test_hwm_pubsub does.
    for _ in 0..3 {
        for number in 0..1000u64 {
            publisher.send(number.to_string()).await.unwrap();
        }
        for number in 0..1000u64 {
            let got = soon("a message", sub.recv()).await.unwrap();
            assert_eq!(text(&got), number.to_string());
        }
    }
    assert_eq!(publisher.stats().dropped, 0);
}

async fn beyond_the_marks_a_subscriber_knows_what_it_missed(at: Place) {
    let (publisher, sub) = subscribed(&at, 100).await;
    for number in 0..1000u64 {
        publisher.send(number.to_string()).await.unwrap();
    }
    let (mut got, mut missed, mut next) = (0, 0, 0u64);
    while got + missed < 1000 {
        match soon("a message or a gap", sub.recv()).await {
            Ok(message) => {
                assert_eq!(text(&message), next.to_string());
                (got, next) = (got + 1, next + 1);
            }
            Err(SubRecvError::Lagged(count)) => (missed, next) = (missed + count, next + count),
            Err(error) => panic!("{error}"),
        }
    }
    assert!((100..=200).contains(&got), "{got} came, and both ends together hold 200");
    assert_eq!((missed, publisher.stats().dropped), (1000 - got, missed));
}

/// libzmq gives every second message to an endpoint where nobody is yet, unless it is told ZMQ_IMMEDIATE.
async fn nothing_waits_where_nobody_is(at: Place) {
    let gone = keyed(Pull::builder()).bind(at.address()).await.unwrap();
    let nobody = address_of(&gone);
    gone.close().await;
    let pull = keyed(Pull::builder()).bind(at.address()).await.unwrap();
    let address = address_of(&pull);
    let push = keyed(Push::builder()).reconnect(Duration::ZERO, Duration::from_millis(20)).build();
    push.connect_to(&nobody).await.unwrap();
    push.connect_to(&address).await.unwrap();
    soon("the one that is there", push.ready()).await.unwrap();
    let mut events = push.events();
    for round in 0..2 {
        for number in 0..10 {
            push.try_send(format!("{round} {number}")).unwrap();
        }
        let pull = if round == 0 { pull.clone() } else { keyed(Pull::builder()).bind(&address).await.unwrap() };
        for number in 0..10 {
            assert_eq!(take(&pull).await, format!("{round} {number}"));
        }
        if round == 0 {
            // Nobody is left; what is sent now is kept for the first that comes, wherever.
            pull.close().await;
            down(&mut events).await;
        }
    }
}

// ---- what libzmq has switched off ---------------------------------------------------------------------------------

async fn a_publishers_queue_dies_with_the_link(at: Place) {
    let publisher =
        keyed(Pub::builder()).send_hwm(100).overflow(Overflow::DropNewest).bind(at.address()).await.unwrap();
    let mut events = publisher.events();
    let sub = keyed(Sub::builder()).recv_hwm(10).connect(address_of(&publisher)).await.unwrap();
    sub.subscribe("").await.unwrap();
    soon("the subscriber", publisher.subscribers("", 1)).await.unwrap();
    for number in 0..60 {
        publisher.send(format!("old {number}")).await.unwrap();
    }
    until("what has credit is written", || publisher.stats().sent == 10).await;
    sub.close().await;
    let (_, in_doubt) = down(&mut events).await;
    let stats = publisher.stats();
    assert_eq!((stats.sent, in_doubt), (10, 10), "its application took none");
    assert_eq!((stats.lost, stats.dropped, stats.send_queued), (50, 0, 0), "the queue is gone, and that is counted");

    let sub = keyed(Sub::builder()).connect(address_of(&publisher)).await.unwrap();
    sub.subscribe("").await.unwrap();
    soon("the next subscriber", publisher.subscribers("", 1)).await.unwrap();
    publisher.send("new").await.unwrap();
    assert_eq!(text(&soon("a message", sub.recv()).await.unwrap()), "new");
}

async fn a_repliers_queue_dies_with_the_link(at: Place) {
    let rep = keyed(Rep::builder()).send_hwm(1000).bind(at.address()).await.unwrap();
    let mut events = rep.events();
    let req = keyed(Req::builder()).connect(address_of(&rep)).await.unwrap();
    let asked = ask(&req, "old");
    let request = next(&rep).await;
    req.close().await;
    assert_eq!(soon("the end of the request", asked).await.unwrap(), Err(RequestError::Closed));
    down(&mut events).await;
    assert_eq!(request.reply("late").await, Err(ReplyError::PeerLost(Message::from("late"))));

    // Answers that were accepted and lie in the queue of one that does not read.
    if !at.is("inproc") {
        let (mut raw, _) = Raw::link(&address_of(&rep), Role::DEALER, None).await;
        let answers = 400;
        for _ in 0..answers {
            raw.send(&[b"", b"old" as &[u8]]).await;
        }
        for _ in 0..answers {
            soon("the queue", next(&rep).await.reply(vec![b'x'; 20_000])).await.unwrap();
        }
        drop(raw);
        let lost = event(&mut events, "what was lost", |event| match event {
            Event::Lost { messages } => Some(messages),
            _ => None,
        })
        .await;
        let stats = rep.stats();
        assert!(lost > 0 && lost < answers);
        assert_eq!((stats.lost, stats.lost + stats.sent, stats.send_queued), (lost, answers, 0));
    }

    let req = keyed(Req::builder()).connect(address_of(&rep)).await.unwrap();
    let asked = ask(&req, "new");
    next(&rep).await.reply("new").await.unwrap();
    assert_eq!(soon("the answer", asked).await.unwrap().unwrap(), "new");
}

/// The RFC has the queue of a peer destroyed with everything in it when the peer leaves. Here what was not written
/// goes to the next, once; and the marks hold as before.
async fn a_pushers_queue_goes_to_the_next_link(at: Place) {
    let push = keyed(Push::builder()).send_hwm(1).bind(at.address()).await.unwrap();
    let mut events = push.events();
    let pull = keyed(Pull::builder()).recv_hwm(1).build();
    pull.connect_to(address_of(&push)).await.unwrap();
    soon("the link", push.ready()).await.unwrap();
    push.try_send("ABC").unwrap();
    push.try_send("DEF").unwrap();
    assert!(matches!(push.try_send("more"), Err(TrySendError::Full(_))));
    until("the first to arrive", || pull.stats().received == 1).await;

    pull.disconnect(address_of(&push)).await.unwrap();
    let (_, in_doubt) = down(&mut events).await;
    assert_eq!(in_doubt, 1, "what has arrived was not taken when the link ended");
    assert!(matches!(push.try_send("more"), Err(TrySendError::Full(_))), "nobody is there");
    // What had arrived is still to be taken, and nothing else.
    assert_eq!(take(&pull).await, "ABC");
    stays("the receiver's rest", || matches!(pull.try_recv(), Err(TryRecvError::Empty))).await;

    pull.connect_to(address_of(&push)).await.unwrap();
    assert_eq!(take(&pull).await, "DEF");
    let send = |text: &'static str| tokio::time::timeout(LONG, push.send(text));
    send("GHI").await.unwrap().unwrap();
    send("JKL").await.unwrap().unwrap();
    stays("the sender full", || matches!(push.try_send("more"), Err(TrySendError::Full(_)))).await;
    assert_eq!([take(&pull).await, take(&pull).await], ["GHI", "JKL"]);
    stays("the receiver's rest", || matches!(pull.try_recv(), Err(TryRecvError::Empty))).await;
}
