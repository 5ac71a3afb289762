//! Topics, subscribers that do not keep up, and what they are told.

use std::time::Duration;

use ropewalk::{
    BindError, ConnectError, DownReason, Event, Heard, Message, Overflow, Pub, Role, Sub, SubRecvError,
    SubTryRecvError, SubscribeError,
};

use crate::{
    common::{
        Place, address_of, down, event, keyed,
        raw::{Raw, frames},
        soon, standing, stays, until,
    },
    over_every_transport,
};

over_every_transport! {
    everyone_who_subscribed_gets_it,
    what_is_missed_is_counted_exactly_and_told_at_its_place,
    the_oldest_go_first_when_told_so,
    what_has_credit_once_the_oldest_is_gone_goes_out,
    a_blocking_publisher_loses_nothing,
    each_hears_just_what_it_asked_for_in_order,
    a_subscriber_takes_only_what_it_asked_for,
    a_blocking_publisher_gives_to_all_in_one_step,
    a_blocked_publisher_goes_on_when_the_slow_one_leaves,
    one_who_does_not_keep_up_is_let_go_when_told_so,
    one_too_large_for_a_subscriber_is_missed_by_it,
    subscriptions_are_told_again_on_a_new_link,
    subscriptions_are_counted,
    a_publisher_tells_of_its_drops,
    subscriptions_have_bounds,
}

async fn pair(at: &Place, overflow: Overflow, hwm: u64) -> (Pub, Sub) {
    let publisher = keyed(Pub::builder()).overflow(overflow).send_hwm(hwm).bind(at.address()).await.unwrap();
    let sub = keyed(Sub::builder()).recv_hwm(hwm).connect(address_of(&publisher)).await.unwrap();
    sub.subscribe("").await.unwrap();
    soon("a subscriber", publisher.subscribers("", 1)).await.unwrap();
    (publisher, sub)
}

fn number(message: &Message) -> u64 {
    message.text().unwrap().parse().unwrap()
}

async fn everyone_who_subscribed_gets_it(at: Place) {
    let publisher = keyed(Pub::builder()).bind(at.address()).await.unwrap();
    let mut subs = Vec::new();
    for prefix in ["weather.", "weather.oslo", "news"] {
        let sub = keyed(Sub::builder()).connect(address_of(&publisher)).await.unwrap();
        sub.subscribe(prefix).await.unwrap();
        subs.push(sub);
    }
    soon("two for oslo", publisher.subscribers("weather.oslo", 2)).await.unwrap();
    soon("one for news", publisher.subscribers("news", 1)).await.unwrap();
    assert_eq!(publisher.subscriber_count("weather.rome"), 1);
    publisher.publish("weather.oslo", "rain").await.unwrap();
    publisher.publish("weather.rome", "sun").await.unwrap();
    publisher.publish("sport", "nobody").await.unwrap();
    publisher.send(["news", "a", "b"]).await.unwrap();
    let got = |sub: Sub, count: usize| async move {
        let mut got = Vec::new();
        for _ in 0..count {
            let message = soon("a message", sub.recv()).await.unwrap();
            got.push(message.parts().iter().map(|part| String::from_utf8_lossy(part).into_owned()).collect::<Vec<_>>());
        }
        assert_eq!(sub.try_recv(), Err(SubTryRecvError::Empty));
        got
    };
    assert_eq!(got(subs[0].clone(), 2).await, [["weather.oslo", "rain"], ["weather.rome", "sun"]]);
    assert_eq!(got(subs[1].clone(), 1).await, [["weather.oslo", "rain"]]);
    assert_eq!(got(subs[2].clone(), 1).await, [["news", "a", "b"]]);
}

/// What a subscriber gets until it has heard of all that was published: the numbers, and the gaps in their places.
async fn hear(sub: &Sub, published: u64) -> (u64, u64) {
    let (mut next, mut received, mut lagged) = (0, 0, 0);
    while next < published {
        match soon(format!("the rest behind {next}"), sub.recv()).await {
            Ok(message) => {
                assert_eq!(number(&message), next, "the gaps stand in their places");
                next += 1;
                received += 1;
            }
            Err(SubRecvError::Lagged(missed)) => {
                assert!(missed > 0);
                next += missed;
                lagged += missed;
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!((next, received + lagged), (published, published));
    (received, lagged)
}

async fn what_is_missed_is_counted_exactly_and_told_at_its_place(at: Place) {
    let (publisher, sub) = pair(&at, Overflow::DropNewest, 10).await;
    for number in 0..500u64 {
        publisher.publish("t", number.to_string()).await.unwrap();
    }
    until("drops", || publisher.stats().dropped > 0).await;
    assert_eq!(publisher.stats().dropped, 480, "both marks are kept, the rest is dropped");
    let (received, lagged) = hear(&sub, 500).await;
    assert_eq!((received, lagged), (20, 480));
    // Some more, against a subscriber that takes now and then.
    let taking = tokio::spawn({
        let sub = sub.clone();
        async move { hear(&sub, 5000).await }
    });
    for number in 0..5000u64 {
        publisher.publish("t", number.to_string()).await.unwrap();
    }
    let (received, _) = soon("the subscriber", taking).await.unwrap();
    assert!(received >= 20);
    assert_eq!(sub.try_recv(), Err(SubTryRecvError::Empty));
}

async fn the_oldest_go_first_when_told_so(at: Place) {
    let (publisher, sub) = pair(&at, Overflow::DropOldest, 10).await;
    for number in 0..500u64 {
        publisher.publish("t", number.to_string()).await.unwrap();
    }
    let mut got = Vec::new();
    let mut lagged = 0;
    while got.last() != Some(&499) {
        match soon("a message", sub.recv()).await {
            Ok(message) => got.push(number(&message)),
            Err(SubRecvError::Lagged(missed)) => lagged += missed,
            Err(error) => panic!("{error}"),
        }
    }
    // The window's worth that went at once, and the newest that waited.
    assert_eq!(got, (0..10).chain(490..500).collect::<Vec<_>>());
    assert_eq!(lagged, 480);
}

/// A large message that waits for credit holds up those behind it, until it is dropped.
async fn what_has_credit_once_the_oldest_is_gone_goes_out(at: Place) {
    let publisher = keyed(Pub::builder()).overflow(Overflow::DropOldest).send_hwm(2).bind(at.address()).await.unwrap();
    let sub = keyed(Sub::builder()).recv_hwm_bytes(1000).connect(address_of(&publisher)).await.unwrap();
    sub.subscribe("").await.unwrap();
    soon("a subscriber", publisher.subscribers("", 1)).await.unwrap();
    publisher.send("first").await.unwrap();
    until("the first to be there", || sub.stats().received == 1).await;
    publisher.send(vec![b'x'; 5000]).await.unwrap();
    publisher.send("third").await.unwrap();
    publisher.send("fourth").await.unwrap();
    until("what has credit to be there", || sub.stats().received == 3).await;
    assert_eq!(soon("the first", sub.recv()).await.unwrap().payload(), b"first");
    assert!(matches!(soon("a gap", sub.recv()).await, Err(SubRecvError::Lagged(1))));
    assert_eq!(soon("the third", sub.recv()).await.unwrap().payload(), b"third");
    assert_eq!(soon("the fourth", sub.recv()).await.unwrap().payload(), b"fourth");
}

async fn a_blocking_publisher_loses_nothing(at: Place) {
    let (publisher, sub) = pair(&at, Overflow::Block, 3).await;
    let second = keyed(Sub::builder()).recv_hwm(1).connect(address_of(&publisher)).await.unwrap();
    second.subscribe("").await.unwrap();
    soon("both", publisher.subscribers("", 2)).await.unwrap();
    let publishing = tokio::spawn({
        let publisher = publisher.clone();
        async move {
            for number in 0..1000u64 {
                publisher.publish("t", number.to_string()).await.unwrap();
            }
        }
    });
    let (first, second) = tokio::join!(hear(&sub, 1000), hear(&second, 1000));
    assert_eq!((first, second), ((1000, 0), (1000, 0)));
    soon("the publisher", publishing).await.unwrap();
    assert_eq!(publisher.stats().dropped, 0);
}

/// Runs of messages to the same subscribers, to others, of many parts, large ones, and one who comes in the middle.
async fn each_hears_just_what_it_asked_for_in_order(at: Place) {
    const RUN: u64 = 50;
    let (before, after) = (RUN * 30, RUN * 20);
    let topic = |number: u64| ["a", "ab", "b", "ab"][(number / RUN) as usize % 4];
    let size = |number: u64| if number.is_multiple_of(97) { 10_000 } else { (number % 300) as usize };
    let publisher = keyed(Pub::builder()).overflow(Overflow::Block).send_hwm(100).bind(at.address()).await.unwrap();
    let address = address_of(&publisher);
    let mut subs = tokio::task::JoinSet::new();
    let mut join = async |prefix: &'static str, hwm: u64, first: u64| {
        let sub = keyed(Sub::builder()).recv_hwm(hwm).connect(&address).await.unwrap();
        sub.subscribe(prefix).await.unwrap();
        subs.spawn(async move {
            for number in (first..before + after).filter(|&number| topic(number).starts_with(prefix)) {
                let message = sub.recv().await.unwrap();
                let [about, count, payload] = message.parts() else { panic!("{} parts", message.len()) };
                assert_eq!(count[..], number.to_be_bytes(), "{prefix:?} of {about:?}");
                assert_eq!((&about[..], payload.len()), (topic(number).as_bytes(), size(number)));
            }
            assert_eq!(sub.try_recv(), Err(SubTryRecvError::Empty));
        });
    };
    for (prefix, hwm) in [("", 10), ("", 1000), ("a", 100), ("ab", 37), ("b", 3)] {
        join(prefix, hwm, 0).await;
    }
    let matching = |topic: &'static str, count| soon("subscribers", publisher.subscribers(topic, count));
    matching("ab", 4).await.unwrap();
    matching("b", 3).await.unwrap();
    for number in 0..before + after {
        if number == before {
            join("", 1000, before).await;
            matching("b", 4).await.unwrap();
        }
        let payload = vec![b'x'; size(number)];
        let message = [topic(number).as_bytes(), &number.to_be_bytes(), &payload];
        soon("room", publisher.send(message)).await.unwrap();
    }
    while let Some(heard) = soon("all of it", subs.join_next()).await {
        heard.unwrap();
    }
    assert_eq!(publisher.stats().dropped, 0);
}

/// A publisher may send what nobody has asked for: in bulk, so that it comes between what is handed out in one go. However
/// the application takes messages, and of however many parts and bytes they are.
async fn a_subscriber_takes_only_what_it_asked_for(at: Place) {
    if at.is("inproc") {
        return;
    }
    let sub = keyed(Sub::builder()).bind(at.address()).await.unwrap();
    sub.subscribe("a").await.unwrap();
    let (mut peer, _) = Raw::link(&address_of(&sub), Role::PUB, None).await;
    let (mut bytes, mut wanted) = (Vec::new(), Vec::new());
    for number in 0..600_usize {
        // Runs of one kind become longer than what is handed out in one go.
        let topic = if number / 7 % (1 + number / 100) == 0 { "a" } else { "b" };
        let payload = vec![b'x'; [0, 3, 250, 300][number % 4]];
        let topic = format!("{topic}{number}");
        let parts: &[&[u8]] = if number % 3 == 0 { &[topic.as_bytes()] } else { &[topic.as_bytes(), &payload] };
        bytes.extend_from_slice(&frames(parts));
        wanted.extend(topic.starts_with('a').then(|| Message::from_parts(parts.iter().map(|part| part.to_vec()))));
    }
    bytes.extend_from_slice(&frames(&[b"a, the last"]));
    wanted.push(Message::from("a, the last"));
    peer.write(&bytes).await;
    let (mut got, mut ways) = (Vec::new(), [0, 1, 2, 3, 3].into_iter().cycle());
    while got.len() < wanted.len() {
        match ways.next().unwrap() {
            0 => _ = soon("messages", sub.recv_many(&mut got, 10)).await.unwrap(),
            1 => got.extend(sub.try_recv().map(Heard::Message)),
            2 => got.push(Heard::Message(soon("a message", sub.recv_from()).await.unwrap().0)),
            _ => got.push(Heard::Message(soon("a message", sub.recv()).await.unwrap())),
        }
    }
    assert!(got == wanted.into_iter().map(Heard::Message).collect::<Vec<_>>());
}

async fn a_blocking_publisher_gives_to_all_in_one_step(at: Place) {
    let (publisher, slow) = pair(&at, Overflow::Block, 1).await;
    let quick = keyed(Sub::builder()).connect(address_of(&publisher)).await.unwrap();
    quick.subscribe("").await.unwrap();
    soon("both", publisher.subscribers("", 2)).await.unwrap();
    for number in 0..2u64 {
        publisher.try_publish("t", number.to_string()).unwrap();
    }
    let publishing = standing(publisher.publish("t", "2")).await;
    for expected in 0..2 {
        assert_eq!(number(&soon("a message", quick.recv()).await.unwrap()), expected);
    }
    stays("nothing for the quick one", || quick.try_recv() == Err(SubTryRecvError::Empty)).await;
    let (published, got) = tokio::join!(soon("room", publishing), soon("the first", slow.recv()));
    published.unwrap();
    assert_eq!(number(&got.unwrap()), 0);
    assert_eq!(number(&soon("the third", quick.recv()).await.unwrap()), 2);
}

async fn a_blocked_publisher_goes_on_when_the_slow_one_leaves(at: Place) {
    let (publisher, slow) = pair(&at, Overflow::Block, 1).await;
    publisher.try_publish("t", "0").unwrap();
    publisher.try_publish("t", "1").unwrap();
    assert!(publisher.try_publish("t", "2").is_err());
    let publishing = standing(publisher.publish("t", "2")).await;
    slow.close().await;
    soon("the publisher", publishing).await.unwrap();

    // And when it no longer wants the topic.
    let (publisher, slow) = pair(&at, Overflow::Block, 1).await;
    publisher.try_publish("t", "0").unwrap();
    publisher.try_publish("t", "1").unwrap();
    let publishing = standing(publisher.publish("t", "2")).await;
    slow.unsubscribe("").await.unwrap();
    soon("the publisher", publishing).await.unwrap();
}

async fn one_who_does_not_keep_up_is_let_go_when_told_so(at: Place) {
    let (publisher, sub) = pair(&at, Overflow::Disconnect, 5).await;
    let mut events = publisher.events();
    let mut published = 0;
    until("the link to be closed", || {
        for _ in 0..20 {
            publisher.try_publish("t", "x").unwrap();
            published += 1;
        }
        publisher.stats().peers.is_empty()
    })
    .await;
    let (reason, _) = down(&mut events).await;
    assert!(matches!(reason, DownReason::TooSlow), "{reason}");
    // It comes back, with its subscriptions.
    soon("the subscriber again", publisher.subscribers("", 1)).await.unwrap();
    publisher.publish("t", "after").await.unwrap();
    soon("the message after", async { while sub.recv().await.unwrap().text() != Ok("after") {} }).await;
}

async fn one_too_large_for_a_subscriber_is_missed_by_it(at: Place) {
    let publisher = keyed(Pub::builder()).bind(at.address()).await.unwrap();
    let sub = keyed(Sub::builder()).max_message(1000).connect(address_of(&publisher)).await.unwrap();
    sub.subscribe("").await.unwrap();
    soon("a subscriber", publisher.subscribers("", 1)).await.unwrap();
    publisher.publish("t", vec![0; 2000]).await.unwrap();
    assert_eq!(soon("to hear of it", sub.recv()).await, Err(SubRecvError::Lagged(1)));
    publisher.publish("t", "small").await.unwrap();
    assert_eq!(soon("the next", sub.recv()).await.unwrap().text(), Ok("small"));
    assert_eq!(publisher.stats().dropped, 1);
}

async fn subscriptions_are_told_again_on_a_new_link(at: Place) {
    let publisher = keyed(Pub::builder()).bind(at.address()).await.unwrap();
    let address = address_of(&publisher);
    let quick = Duration::from_millis(20);
    let sub = keyed(Sub::builder()).reconnect(Duration::ZERO, quick).connect(&address).await.unwrap();
    for prefix in ["a", "b", "c"] {
        sub.subscribe(prefix).await.unwrap();
    }
    soon("the subscriber", publisher.subscribers("c", 1)).await.unwrap();
    for _ in 0..3 {
        let publisher_before = publisher.clone();
        drop(publisher_before);
    }
    publisher.close().await;
    sub.unsubscribe("b").await.unwrap();
    sub.subscribe("d").await.unwrap();
    let publisher = keyed(Pub::builder()).bind(&address).await.unwrap();
    for topic in ["a", "c", "d"] {
        soon(format!("the subscriber to {topic} again"), publisher.subscribers(topic, 1)).await.unwrap();
    }
    assert_eq!(publisher.subscriber_count("b"), 0);
    publisher.publish("d", "x").await.unwrap();
    assert_eq!(soon("a message", sub.recv()).await.unwrap().topic(), b"d");
}

async fn subscriptions_are_counted(at: Place) {
    let publisher = keyed(Pub::builder()).bind(at.address()).await.unwrap();
    let sub = keyed(Sub::builder()).connect(address_of(&publisher)).await.unwrap();
    sub.subscribe("a").await.unwrap();
    sub.subscribe("a").await.unwrap();
    sub.subscribe("end").await.unwrap();
    soon("the subscriber", publisher.subscribers("end", 1)).await.unwrap();
    assert_eq!(publisher.subscriber_count("abc"), 1);
    sub.unsubscribe("a").await.unwrap();
    publisher.publish("a", "still").await.unwrap();
    assert_eq!(soon("a message", sub.recv()).await.unwrap().text(), Ok("still"));
    sub.unsubscribe("a").await.unwrap();
    sub.unsubscribe("never subscribed").await.unwrap();
    until("no subscriber", || publisher.subscriber_count("a") == 0).await;
    publisher.publish("a", "for nobody").await.unwrap();
    publisher.publish("end", "x").await.unwrap();
    assert_eq!(soon("a message", sub.recv()).await.unwrap().topic(), b"end");
}

async fn a_publisher_tells_of_its_drops(at: Place) {
    let (publisher, _sub) = pair(&at, Overflow::DropNewest, 5).await;
    let mut events = publisher.events();
    for _ in 0..50 {
        publisher.publish("t", "x").await.unwrap();
    }
    let role = event(&mut events, "of drops", |event| match event {
        Event::Dropped { peer, .. } => Some(peer.role),
        _ => None,
    });
    assert_eq!(role.await, Role::SUB);
    let stats = publisher.stats();
    assert_eq!((stats.dropped, stats.peers[0].dropped), (40, 40));
    assert_eq!(soon("the end", publisher.close()).await.dropped, 40);
}

async fn subscriptions_have_bounds(at: Place) {
    let sub = keyed(Sub::builder()).max_subscriptions(2, 10).max_topic(8).build();
    assert_eq!(sub.subscribe("123456789").await, Err(SubscribeError::TooLarge));
    sub.subscribe("1").await.unwrap();
    sub.subscribe("12345678").await.unwrap();
    assert_eq!(sub.subscribe("3").await, Err(SubscribeError::TooLarge));
    sub.close().await;
    assert_eq!(sub.subscribe("1").await, Err(SubscribeError::Closed));

    let subscribed = |prefix: &str| keyed(Sub::builder()).max_topic(8).subscribe("12345678").subscribe(prefix);
    let refused = subscribed("123456789").connect(at.address()).await;
    assert_eq!(refused.map(drop), Err(ConnectError::Subscribe(SubscribeError::TooLarge)));
    let refused = subscribed("123456789").bind(at.address()).await;
    assert!(matches!(refused, Err(BindError::Subscribe(SubscribeError::TooLarge))), "{refused:?}");
    let publisher = keyed(Pub::builder()).bind(at.address()).await.unwrap();
    let sub = subscribed("a").connect(address_of(&publisher)).await.unwrap();
    soon("the second", publisher.subscribers("abc", 1)).await.unwrap();
    sub.unsubscribe("a").await.unwrap();
    until("it to be cancelled", || publisher.subscriber_count("abc") == 0).await;
    assert_eq!(publisher.subscriber_count("123456789"), 1);
}

/// All that may be subscribed to can be told to a peer that links.
#[test]
fn as_many_subscriptions_as_there_may_be() {
    crate::common::run(async {
        let (topics, bytes) = (40_000, 1 << 20);
        let publisher = keyed(Pub::builder()).max_subscriptions(topics, bytes).bind("tcp://127.0.0.1:0").await.unwrap();
        let sub = keyed(Sub::builder()).max_subscriptions(topics, bytes).build();
        for topic in 0..topics {
            sub.subscribe(format!("{topic:010}")).await.unwrap();
        }
        sub.connect_to(address_of(&publisher)).await.unwrap();
        let last = format!("{:010}", topics - 1);
        soon("the last subscription", publisher.subscribers(&last, 1)).await.unwrap();
        publisher.publish(&last, "news").await.unwrap();
        soon("a message", sub.recv()).await.unwrap();
    });
}
