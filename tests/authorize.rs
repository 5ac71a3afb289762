//! What peers may do is for the application to say, and a no is heard at both ends.

mod common;

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use common::{
    Place, address_of, event, keyed,
    raw::{Came, Raw, frames},
    soon, stays, until,
};
use ropewalk::{
    Action, Denial, DownReason, Event, Message, Misbehaved, PeerInfo, Pub, Pull, Push, RefusalReason, Rep, Req,
    RequestError, Role, Sub, SubTryRecvError, TryRecvError,
};

over_every_transport! {
    who_may_not_be_linked_hears_it,
    who_may_not_subscribe_hears_it,
    who_may_not_ask_hears_it,
    what_may_not_be_pushed_is_not_handed_over,
    what_may_not_be_published_is_not_handed_over,
    who_cannot_be_told_is_let_go,
    everybody_is_known_to_the_end,
    one_that_is_gone_is_denied_all_the_same,
}

async fn who_may_not_be_linked_hears_it(at: Place) {
    let asked = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&asked);
    let pull = keyed(Pull::builder()).authorize(move |peer, action| {
        // It says no twice, and yes then.
        let connects = action == Action::Connect && peer.role == Role::PUSH;
        !connects || count.fetch_add(1, Relaxed) >= 2
    });
    let pull = pull.bind(at.address()).await.unwrap();
    let push = keyed(Push::builder()).build();
    let (mut here, mut there) = (pull.events(), push.events());
    push.connect_to(address_of(&pull)).await.unwrap();
    push.send("at last").await.unwrap();
    for _ in 0..2 {
        let reason = event(&mut here, "of a denial", |event| match event {
            Event::HandshakeFailed { reason, .. } => Some(reason),
            Event::PeerUp { peer } => panic!("{peer} is up"),
            _ => None,
        });
        assert!(matches!(reason.await, DownReason::NotAuthorized));
        if at.is("inproc") {
            continue;
        }
        let reason = event(&mut there, "of a refusal", |event| match event {
            Event::HandshakeFailed { reason, .. } | Event::PeerDown { reason, .. } => Some(reason),
            _ => None,
        });
        match reason.await {
            DownReason::Misbehaved(Misbehaved::Refused { reason }) => assert_eq!(reason, "not authorized"),
            other => panic!("{other}"),
        }
    }
    assert_eq!(soon("a message", pull.recv()).await.unwrap(), "at last");
    assert_eq!(pull.stats().peers.len(), 1);
}

async fn who_may_not_subscribe_hears_it(at: Place) {
    let publisher = keyed(Pub::builder()).authorize(|_, action| !matches!(action, Action::Subscribe(b"secret")));
    let publisher = publisher.bind(at.address()).await.unwrap();
    let sub = keyed(Sub::builder()).connect(address_of(&publisher)).await.unwrap();
    let (mut here, mut there) = (publisher.events(), sub.events());
    sub.subscribe("secret").await.unwrap();
    sub.subscribe("news").await.unwrap();
    soon("the other", publisher.subscribers("news", 1)).await.unwrap();
    let denied = event(&mut here, "of a denial", |event| match event {
        Event::Denied { denial, .. } => Some(denial),
        _ => None,
    });
    assert_eq!(denied.await, Denial::Subscribe("secret".into()));
    let told = event(&mut there, "that it is denied", |event| match event {
        Event::DeniedBy { denial, .. } => Some(denial),
        Event::PeerDown { reason, .. } => panic!("{reason}"),
        _ => None,
    });
    assert_eq!(told.await, Denial::Subscribe("secret".into()));
    publisher.publish("secret", "1").await.unwrap();
    publisher.publish("news", "2").await.unwrap();
    assert_eq!(soon("the news", sub.recv()).await.unwrap().topic(), b"news");
    assert!(matches!(sub.try_recv(), Err(SubTryRecvError::Empty)));
}

async fn who_may_not_ask_hears_it(at: Place) {
    let rep = keyed(Rep::builder()).authorize(|_, action| match action {
        Action::Request(question) => *question != "the secret",
        _ => true,
    });
    let rep = rep.bind(at.address()).await.unwrap();
    let req = keyed(Req::builder()).connect(address_of(&rep)).await.unwrap();
    let mut events = rep.events();
    let serving = tokio::spawn({
        let rep = rep.clone();
        async move { rep.serve(4, |question| async move { question }).await }
    });
    for _ in 0..10 {
        let refused = soon("a refusal", async { req.request("the secret").await }).await;
        assert_eq!(refused, Err(RequestError::Refused(RefusalReason::Denied)));
        assert_eq!(soon("an answer", async { req.request("the weather").await }).await.unwrap(), "the weather");
        let denied = event(&mut events, "of a denial", |event| match event {
            Event::Denied { denial, .. } => Some(denial),
            _ => None,
        });
        assert_eq!(denied.await, Denial::Request);
    }
    serving.abort();
}

/// Also where messages are handed out one after the other, without a look at anything else.
async fn what_may_not_be_pushed_is_not_handed_over(at: Place) {
    let pull = keyed(Pull::builder()).authorize(|_, action| match action {
        Action::Publish(message) => message.text().unwrap().parse::<u64>().unwrap() % 3 > 0,
        _ => true,
    });
    let (push, pull) = at.link(keyed(Push::builder()), pull).await;
    let (mut here, mut there) = (pull.events(), push.events());
    // Far more than there is credit for: what is denied gives its credit back.
    let sending = tokio::spawn(async move {
        for number in 0..6_000_u64 {
            push.send(number.to_string()).await.unwrap();
        }
        push
    });
    for number in (0..6_000).filter(|number| number % 3 > 0) {
        assert_eq!(soon("a message", pull.recv()).await.unwrap(), number.to_string().as_str());
    }
    let push = soon("the sender", sending).await.unwrap();
    assert!(matches!(pull.try_recv(), Err(TryRecvError::Empty)));
    for events in [&mut here, &mut there] {
        let denied = event(events, "of a denial", |event| match event {
            Event::Denied { denial, .. } | Event::DeniedBy { denial, .. } => Some(denial),
            _ => None,
        });
        assert_eq!(denied.await, Denial::Publish);
    }
    drop(push);
}

async fn what_may_not_be_published_is_not_handed_over(at: Place) {
    let sub = keyed(Sub::builder()).authorize(|_, action| match action {
        Action::Publish(message) => message.topic() != b"forged",
        _ => true,
    });
    let (publisher, sub) = at.link(keyed(Pub::builder()), sub).await;
    let mut there = publisher.events();
    sub.subscribe("").await.unwrap();
    soon("the subscription", publisher.subscribers("", 1)).await.unwrap();
    for topic in ["true", "forged", "true"] {
        publisher.publish(topic, "it").await.unwrap();
    }
    for _ in 0..2 {
        assert_eq!(soon("a message", sub.recv()).await.unwrap().topic(), b"true");
    }
    let told = event(&mut there, "that it is denied", |event| match event {
        Event::DeniedBy { denial, .. } => Some(denial),
        _ => None,
    });
    assert_eq!(told.await, Denial::Publish);
    stays("the subscriber's rest", || matches!(sub.try_recv(), Err(SubTryRecvError::Empty))).await;
}

/// Peers that do not speak the extension: what they may not do ends their link.
async fn who_cannot_be_told_is_let_go(at: Place) {
    if at.is("inproc") {
        return;
    }
    let no = |_: &PeerInfo, action: Action<'_>| action == Action::Connect;
    let rep = keyed(Rep::builder()).authorize(no).bind(at.address()).await.unwrap();
    let publisher = keyed(Pub::builder()).authorize(no).bind(at.address()).await.unwrap();
    let asks = (address_of(&rep), rep.events(), Role::REQ, frames(&[b"", b"a question"]));
    // As subscribers of ZMTP 3.0 say it, and those of 3.1.
    let subscribes = (address_of(&publisher), publisher.events(), Role::SUB, frames(&[b"\x01news"]));
    let command = b"\x04\x0e\x09SUBSCRIBEnews".to_vec().into();
    let commands = (address_of(&publisher), publisher.events(), Role::SUB, command);
    for (address, mut events, role, bytes) in [asks, subscribes, commands] {
        let (mut peer, _) = Raw::link(&address, role, None).await;
        peer.write(&bytes).await;
        // A request is met when the application wants one.
        let met = async {
            let _handed_over = rep.recv().await;
        };
        let reason = tokio::select! {
            (reason, _) = common::down(&mut events) => reason,
            () = met => panic!("it was handed over"),
        };
        assert!(matches!(reason, DownReason::NotAuthorized), "{reason}");
        assert_eq!(peer.next().await, Came::End);
    }
}

/// Who sent something is told, also when it is gone by the time that is taken.
async fn one_that_is_gone_is_denied_all_the_same(at: Place) {
    let denies = |_: &PeerInfo, action: Action<'_>| !matches!(action, Action::Publish(message) if *message == "no");
    let pull = keyed(Pull::builder()).authorize(denies).bind(at.address()).await.unwrap();
    let push = keyed(Push::builder()).connect(address_of(&pull)).await.unwrap();
    for word in ["no", "yes", "no"] {
        push.send(word).await.unwrap();
    }
    soon("its goodbye", push.close()).await;
    until("its end", || pull.stats().peers.is_empty()).await;
    assert_eq!(soon("what it may say", pull.recv()).await.unwrap(), "yes");
    assert_eq!(pull.try_recv(), Err(TryRecvError::Empty));
    assert_eq!(pull.stats().denied, 2);
}

async fn everybody_is_known_to_the_end(at: Place) {
    let pull = keyed(Pull::builder()).authorize(|_, _| true).bind(at.address()).await.unwrap();
    let mut numbers = Vec::new();
    for name in ["one", "two"] {
        let push = keyed(Push::builder()).connect(address_of(&pull)).await.unwrap();
        for _ in 0..5 {
            push.send(name).await.unwrap();
        }
        soon("its goodbye", push.close()).await;
        until("its end", || pull.stats().peers.is_empty()).await;
        numbers.push(pull.stats().received);
    }
    assert_eq!(numbers, [5, 10]);
    let mut seen: Vec<(Message, u64)> = Vec::new();
    for _ in 0..10 {
        let (message, peer) = soon("a message", pull.recv_from()).await.unwrap();
        assert_eq!((peer.role.clone(), peer.ropewalk), (Role::PUSH, true));
        assert_eq!(peer.id.is_some(), at.is("tls") || at.is("quic"));
        seen.push((message, peer.number));
    }
    let of = |name: &str| -> Vec<u64> {
        let all = seen.iter().filter(|(message, _)| *message == name);
        all.map(|(_, number)| *number).collect()
    };
    assert_eq!((of("one").len(), of("two").len()), (5, 5));
    assert!(of("one").iter().all(|number| *number == of("one")[0] && *number != of("two")[0]));
    assert!(of("two").iter().all(|number| *number == of("two")[0]));
}

/// It would wait for itself. That is a panic, and a panic is a no, wherever it comes: in a link's task, too.
#[test]
fn whoever_decides_must_not_use_the_socket_itself() {
    common::run(async {
        static OTHER: std::sync::OnceLock<Pub> = std::sync::OnceLock::new();
        let decides = |_: &PeerInfo, action: Action<'_>| {
            if action == Action::Subscribe(b"self") {
                OTHER.get().unwrap().stats();
            }
            true
        };
        let at = Place::new("tcp://127.0.0.1:0");
        let (publisher, sub) = at.link(keyed(Pub::builder()).authorize(decides), keyed(Sub::builder())).await;
        assert!(OTHER.set(publisher.clone()).is_ok());
        let mut events = publisher.events();
        sub.subscribe("self").await.unwrap();
        let denied = event(&mut events, "of a denial", |event| match event {
            Event::Denied { denial, times, .. } => Some((denial, times)),
            _ => None,
        });
        assert_eq!(denied.await, (Denial::Subscribe("self".into()), 1));
        // The link goes on.
        sub.subscribe("other").await.unwrap();
        soon("the other", publisher.subscribers("other", 1)).await.unwrap();
        publisher.publish("other", "news").await.unwrap();
        assert_eq!(soon("the news", sub.recv_from()).await.unwrap().0.topic(), b"other");
        assert_eq!((publisher.stats().denied, sub.stats().denied_by), (1, 1));
        OTHER.get().unwrap().close().await;
    });
}

/// One who does what it may not again and again crowds out no other events.
#[test]
fn denials_are_counted_and_not_all_told() {
    common::run(async {
        let pull = keyed(Pull::builder()).authorize(|_, action| action == Action::Connect);
        let (push, pull) = Place::new("tcp://127.0.0.1:0").link(keyed(Push::builder()), pull).await;
        let (mut here, mut there) = (pull.events(), push.events());
        let taking = tokio::spawn({
            let pull = pull.clone();
            async move { pull.recv().await.is_ok() }
        });
        for _ in 0..5_000 {
            push.send("unwanted").await.unwrap();
        }
        until("all denials", || (pull.stats().denied, push.stats().denied_by) == (5_000, 5_000)).await;
        let report = push.close().await;
        assert_eq!(report.delivered, 5_000);
        pull.close().await;
        assert!(!soon("the taker", taking).await.unwrap());
        for events in [&mut here, &mut there] {
            let mut told = Vec::new();
            while let Some(event) = events.next().await {
                match event {
                    Event::Denied { times, .. } | Event::DeniedBy { times, .. } => told.push(times),
                    Event::Missed { events } => panic!("{events} missed"),
                    _ => {}
                }
            }
            let all: Vec<u64> = (1..=16).chain([32, 64, 128, 256, 512, 1024, 2048, 4096]).collect();
            assert_eq!(told, all);
        }
    });
}
