//! The three patterns against libzmq's: PUSH/PULL, PUB/SUB, REQ/REP, Ropewalk on either side.

use ropewalk::{Message, Pub, Pull, Push, Rep, Req, Sub};
use ropewalk_interop::{Case, Parts, Peer, SIZES, SocketType, everywhere, filled, parts, roomy, until, within};

everywhere!(
    pushes_every_size,
    pulls_every_size,
    publishes_every_size,
    subscribes_to_every_size,
    requests_every_size,
    replies_to_every_size,
    pushes_in_order,
    pulls_in_order,
    publishes_only_what_is_subscribed_to,
    subscribes_and_unsubscribes,
);

/// One part of each size, and the same sizes as parts of longer messages, empty parts in the middle and at the end.
fn every_size() -> Vec<Parts> {
    let alone = SIZES.iter().map(|&size| vec![filled(size)]);
    let together = SIZES.iter().map(|&size| vec![b"head".to_vec(), filled(size), Vec::new(), filled(size % 300)]);
    let last = [
        vec![Vec::new(); 3],
        SIZES.iter().map(|&size| filled(size)).collect(),
        // The most parts a message may have.
        (0..64).map(|index| filled(index * 8)).collect(),
    ];
    alone.chain(together).chain(last).collect()
}

/// Large messages fail without pages of bytes.
#[track_caller]
fn same(got: &Parts, wanted: &Parts) {
    let sizes = |parts: &Parts| parts.iter().map(Vec::len).collect::<Vec<_>>();
    assert_eq!(sizes(got), sizes(wanted));
    assert!(got == wanted, "other bytes than were sent");
}

fn message(parts: &Parts) -> Message {
    parts.iter().cloned().collect()
}

async fn pushes_every_size(case: Case) {
    let peer = Peer::new(SocketType::PULL);
    let push = case.link(roomy(Push::builder()), &peer).await;
    for wanted in every_size() {
        within("send", push.send(message(&wanted))).await.unwrap();
        same(&peer.recv(), &wanted);
    }
    // The peer may have a message before we have counted it.
    until("all are counted", || push.stats().sent == every_size().len() as u64).await;
}

async fn pulls_every_size(case: Case) {
    let peer = Peer::new(SocketType::PUSH);
    let pull = case.link(roomy(Pull::builder()), &peer).await;
    for wanted in every_size() {
        peer.send(&wanted);
        same(&parts(&within("recv", pull.recv()).await.unwrap()), &wanted);
    }
    assert_eq!(pull.stats().received, every_size().len() as u64);
}

async fn publishes_every_size(case: Case) {
    let peer = Peer::with(SocketType::SUB, |sub| sub.set_subscribe(b"").unwrap());
    let publisher = case.link(roomy(Pub::builder()), &peer).await;
    until("the subscription", || peer.lives() && publisher.subscriber_count("") == 1).await;
    for wanted in every_size() {
        within("send", publisher.send(message(&wanted))).await.unwrap();
        same(&peer.recv(), &wanted);
    }
    assert_eq!(publisher.stats().dropped, 0);
}

async fn subscribes_to_every_size(case: Case) {
    let peer = Peer::new(SocketType::XPUB);
    let subscriber = case.link(roomy(Sub::builder()), &peer).await;
    subscriber.subscribe("").await.unwrap();
    assert_eq!(peer.recv(), [b"\x01".to_vec()], "XPUB hands out the subscription");
    for wanted in every_size() {
        peer.send(&wanted);
        same(&parts(&within("recv", subscriber.recv()).await.unwrap()), &wanted);
    }
}

async fn requests_every_size(case: Case) {
    let peer = Peer::new(SocketType::REP);
    let req = case.link(roomy(Req::builder()).max_parts(80), &peer).await;
    for wanted in every_size() {
        let asking = tokio::spawn({
            let (req, wanted) = (req.clone(), message(&wanted));
            async move { req.request(wanted).await }
        });
        let asked = peer.recv();
        same(&asked, &wanted);
        peer.send(asked);
        same(&parts(&within("the answer", asking).await.unwrap().unwrap()), &wanted);
    }
}

async fn replies_to_every_size(case: Case) {
    let peer = Peer::new(SocketType::REQ);
    let rep = case.link(roomy(Rep::builder()).max_parts(80), &peer).await;
    for wanted in every_size() {
        peer.send(&wanted);
        let request = within("the request", rep.recv()).await.unwrap();
        same(&parts(request.message()), &wanted);
        let answer = request.message().clone();
        within("the reply", request.reply(answer)).await.unwrap();
        same(&peer.recv(), &wanted);
    }
}

/// More than all queues of both ends hold, so that each side waits for the other now and then.
const MANY: u32 = 20_000;

async fn pushes_in_order(case: Case) {
    let peer = Peer::new(SocketType::PULL);
    let push = case.link(Push::builder(), &peer).await;
    let sending = tokio::spawn(async move {
        for number in 0..MANY {
            push.send(&number.to_be_bytes()).await.unwrap();
        }
        push.close().await
    });
    for number in 0..MANY {
        assert_eq!(peer.recv(), [number.to_be_bytes().to_vec()]);
    }
    let report = within("the end", sending).await.unwrap();
    assert_eq!((report.unsent, report.dropped), (0, 0));
}

async fn pulls_in_order(case: Case) {
    let peer = Peer::new(SocketType::PUSH);
    let pull = case.link(Pull::builder(), &peer).await;
    let sending = tokio::task::spawn_blocking(move || {
        for number in 0..MANY {
            peer.raw().send(&number.to_be_bytes()[..], 0).unwrap();
        }
        peer
    });
    for number in 0..MANY {
        assert_eq!(within("recv", pull.recv()).await.unwrap(), &number.to_be_bytes()[..]);
    }
    within("the end", sending).await.unwrap();
}

async fn publishes_only_what_is_subscribed_to(case: Case) {
    let peer = Peer::with(SocketType::SUB, |sub| {
        sub.set_subscribe(b"b").unwrap();
        sub.set_subscribe(b"cc").unwrap();
        sub.set_subscribe(b"cc").unwrap();
    });
    let publisher = case.link(Pub::builder(), &peer).await;
    for topic in ["b", "cc"] {
        until("the subscription", || peer.lives() && publisher.subscriber_count(topic) == 1).await;
    }
    let topics = ["a", "b", "c", "cc", "bb", "ccc", "", "end"];
    let heard = async |wanted: &[&str]| {
        for topic in topics {
            publisher.publish(topic, "x").await.unwrap();
        }
        for topic in wanted {
            assert_eq!(peer.recv(), [topic.as_bytes(), b"x"]);
        }
    };
    heard(&["b", "cc", "bb", "ccc"]).await;
    // What is subscribed twice must be unsubscribed twice. libzmq's SUB counts by itself and tells the last one.
    peer.raw().set_unsubscribe(b"cc").unwrap();
    peer.raw().set_unsubscribe(b"b").unwrap();
    until("b is cancelled", || publisher.subscriber_count("b") == 0).await;
    heard(&["cc", "ccc"]).await;
    peer.raw().set_subscribe(b"end").unwrap();
    peer.raw().set_unsubscribe(b"cc").unwrap();
    until("cc is cancelled", || publisher.subscriber_count("cc") == 0).await;
    heard(&["end"]).await;
    assert_eq!(publisher.stats().dropped, 0, "what nobody subscribed to is no drop");
}

async fn subscribes_and_unsubscribes(case: Case) {
    let peer = Peer::new(SocketType::XPUB);
    let subscriber = Sub::builder().build();
    // Before there is a link, and with it.
    subscriber.subscribe("b").await.unwrap();
    case.attach(&subscriber, &peer).await;
    assert_eq!(peer.recv(), [b"\x01b"]);
    subscriber.subscribe("b").await.unwrap();
    subscriber.subscribe("cc").await.unwrap();
    assert_eq!(peer.recv(), [b"\x01cc"], "XPUB hands out a topic's first subscription only");
    for topic in ["a", "b", "c", "cc", "bb"] {
        peer.send([topic, "x"]);
    }
    for topic in ["b", "cc", "bb"] {
        let got = within("recv", subscriber.recv()).await.unwrap();
        assert_eq!(parts(&got), [topic.as_bytes(), b"x"]);
    }
    subscriber.unsubscribe("b").await.unwrap();
    subscriber.unsubscribe("cc").await.unwrap();
    assert_eq!(peer.recv(), [b"\0cc"]);
    peer.send(["cc", "no"]);
    peer.send(["b", "yes"]);
    let got = within("recv", subscriber.recv()).await.unwrap();
    assert_eq!(parts(&got), [b"b".to_vec(), b"yes".to_vec()]);
    subscriber.unsubscribe("b").await.unwrap();
    assert_eq!(peer.recv(), [b"\0b"], "the second of two");
}
