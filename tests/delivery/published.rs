//! A publisher that keeps what it publishes, and its subscribers.

use std::{
    collections::BTreeSet,
    time::{Duration, SystemTime},
};

use ropewalk::{
    Builder, DownReason, Event, Overflow, Pub, Replay, Sub, SubRecvError, TrySendError,
    delivery::DeadLetters,
    patterns::pub_sub,
    spool::{CursorError, Durability, SpoolOptions},
};
use tempfile::TempDir;

use crate::common::{Place, address_of, event, keyed, soon, until};

over_every_transport!(
    a_named_subscriber_goes_on_where_it_was,
    only_what_was_subscribed_to_comes,
    all_that_was_subscribed_to_before_the_link_comes,
    what_was_kept_is_replayed,
    a_new_name_begins_where_it_asks_to_and_then_goes_on,
    who_falls_behind_what_is_kept_hears_how_far,
    one_without_a_name_hears_what_went_before_it_got_it,
    a_subscriber_without_a_name_begins_now,
    who_is_counted_gets_what_is_published_then,
    the_later_one_of_a_name_takes_its_place,
    what_an_earlier_one_of_a_name_had_is_another_attempt,
    a_restarted_publisher_goes_on_with_each_subscriber,
    what_a_subscriber_does_not_settle_comes_again,
    a_message_that_no_subscriber_survives_takes_no_other_with_it,
    what_came_to_its_last_attempt_comes_no_more,
    a_subscriber_may_have_any_name,
    a_subscriber_that_comes_and_goes_misses_nothing,
);

fn kept(directory: &TempDir) -> Builder<pub_sub::Pub, ropewalk::Directory> {
    keyed(Pub::builder()).spool(directory.path(), Durability::Os).linger(Duration::from_secs(2))
}

async fn named(name: &str, address: &str) -> Sub {
    keyed(Sub::builder()).name(name).subscribe("").connect(address).await.unwrap()
}

async fn hears(sub: &Sub, expected: impl IntoIterator<Item = u64>) {
    for number in expected {
        let message = soon(format!("message {number}"), sub.recv()).await.unwrap();
        assert_eq!(message.text().unwrap(), number.to_string());
    }
}

async fn publish(publisher: &Pub, numbers: impl IntoIterator<Item = u64>) {
    for number in numbers {
        publisher.publish("n", number.to_string()).await.unwrap();
    }
}

fn unsettled(publisher: &Pub, name: &str) -> Option<u64> {
    publisher.spool_stats().unwrap().cursors.get(name).map(|cursor| cursor.unsettled)
}

async fn a_named_subscriber_goes_on_where_it_was(at: Place) {
    let directory = TempDir::new().unwrap();
    let publisher = kept(&directory).bind(at.address()).await.unwrap();
    let address = address_of(&publisher);
    // What was published before it first came is not for it.
    publish(&publisher, 0..3).await;
    let billing = named("billing", &address).await;
    until("its cursor", || unsettled(&publisher, "billing") == Some(0)).await;
    publish(&publisher, 3..6).await;
    hears(&billing, 3..6).await;
    until("all to be settled", || unsettled(&publisher, "billing") == Some(0)).await;
    billing.close().await;
    publish(&publisher, 6..20).await;
    assert_eq!(unsettled(&publisher, "billing"), Some(14));
    let billing = named("billing", &address).await;
    hears(&billing, 6..20).await;
    publish(&publisher, 20..22).await;
    hears(&billing, 20..22).await;
    assert!(matches!(publisher.try_publish("n", "no"), Err(TrySendError::Spooled(_))));
    let report = soon("the end", publisher.close()).await;
    assert!(report.all_delivered(), "{report:?}");
    billing.close().await;
}

async fn only_what_was_subscribed_to_comes(at: Place) {
    let directory = TempDir::new().unwrap();
    let publisher = kept(&directory).bind(at.address()).await.unwrap();
    let sub = keyed(Sub::builder()).name("a").connect(address_of(&publisher)).await.unwrap();
    // Linked, and subscribed to nothing yet: nothing is passed over meanwhile.
    soon("a link", publisher.ready()).await.unwrap();
    sub.subscribe("a.").await.unwrap();
    soon("its subscription", publisher.subscribers("a.", 1)).await.unwrap();
    for topic in ["a.1", "b.1", "a.2", "", "a.3"] {
        publisher.publish(topic, "").await.unwrap();
    }
    for topic in ["a.1", "a.2", "a.3"] {
        assert_eq!(soon(topic, sub.recv()).await.unwrap().topic(), topic.as_bytes());
    }
    until("what is not for it to be settled", || unsettled(&publisher, "a") == Some(0)).await;
    sub.close().await;
    // Until then its subscriptions stand.
    until("it to be gone", || publisher.stats().peers.is_empty()).await;
    publisher.publish("a.4", "").await.unwrap();
    publisher.publish("b.4", "").await.unwrap();
    let sub = keyed(Sub::builder()).name("a").connect(address_of(&publisher)).await.unwrap();
    sub.subscribe("b.").await.unwrap();
    assert_eq!(soon("b.4", sub.recv()).await.unwrap().topic(), b"b.4");
    sub.close().await;
    publisher.close().await;
}

async fn all_that_was_subscribed_to_before_the_link_comes(at: Place) {
    let directory = TempDir::new().unwrap();
    let publisher = kept(&directory).bind(at.address()).await.unwrap();
    for number in 0..90 {
        let topic = ["a.", "b.", "c."][number % 3];
        publisher.publish(topic, number.to_string()).await.unwrap();
    }
    // So many that they do not come in one piece.
    let others = (0..4000).map(|number| format!("another {number:020}"));
    let mut sub = keyed(Sub::builder()).name("both").replay(Replay::Earliest).subscribe("a.");
    for prefix in others.chain(["b.".into()]) {
        sub = sub.subscribe(prefix);
    }
    let sub = sub.connect(address_of(&publisher)).await.unwrap();
    hears(&sub, (0..90).filter(|number| number % 3 < 2)).await;
    until("the rest to be passed over", || unsettled(&publisher, "both") == Some(0)).await;
    sub.close().await;
    publisher.close().await;
}

async fn what_was_kept_is_replayed(at: Place) {
    let directory = TempDir::new().unwrap();
    let publisher = kept(&directory).bind(at.address()).await.unwrap();
    let address = address_of(&publisher);
    publish(&publisher, 0..10).await;
    let replays = async |replay: Replay, name: &str| {
        let sub = keyed(Sub::builder()).name(name).replay(replay).connect(&address).await.unwrap();
        sub.subscribe("").await.unwrap();
        sub
    };
    let all = replays(Replay::Earliest, "").await;
    let first = soon("the first", all.recv_delivery()).await.unwrap();
    let seq = first.id().unwrap().seq;
    first.ack().await.unwrap();
    hears(&all, 1..10).await;
    let some = replays(Replay::Seq(seq + 7), "").await;
    hears(&some, 7..10).await;
    let time = SystemTime::now();
    until("the clock to go on", || SystemTime::now() > time + Duration::from_millis(2)).await;
    publish(&publisher, 10..12).await;
    let late = replays(Replay::Time(time + Duration::from_millis(1)), "").await;
    hears(&late, 10..12).await;
    // What is replayed and what comes are one stream.
    publish(&publisher, 12..14).await;
    hears(&all, 10..14).await;
    hears(&some, 10..14).await;
    hears(&late, 12..14).await;
    // After a link has died, a replay goes on where it was.
    all.disconnect(&address).await.unwrap();
    publish(&publisher, 14..16).await;
    all.connect_to(&address).await.unwrap();
    hears(&all, 14..16).await;
    for sub in [all, some, late] {
        sub.close().await;
    }
    publisher.close().await;
}

async fn a_new_name_begins_where_it_asks_to_and_then_goes_on(at: Place) {
    let directory = TempDir::new().unwrap();
    let publisher = kept(&directory).bind(at.address()).await.unwrap();
    let address = address_of(&publisher);
    publish(&publisher, 0..10).await;
    let replays = async |replay: Replay, name: &str| {
        let sub = keyed(Sub::builder()).name(name).replay(replay).connect(&address).await.unwrap();
        sub.subscribe("").await.unwrap();
        sub
    };
    let all = replays(Replay::Earliest, "all").await;
    let first = soon("the first", all.recv_delivery()).await.unwrap();
    let seq = first.id().unwrap().seq;
    first.ack().await.unwrap();
    let some = replays(Replay::Seq(seq + 7), "some").await;
    hears(&all, 1..10).await;
    hears(&some, 7..10).await;
    for name in ["all", "some"] {
        until("nothing to be kept for it", || unsettled(&publisher, name) == Some(0)).await;
    }
    all.close().await;
    some.close().await;
    publish(&publisher, 10..12).await;
    // Who is started again says the same.
    let all = replays(Replay::Earliest, "all").await;
    let some = replays(Replay::Seq(seq + 7), "some").await;
    hears(&all, 10..12).await;
    hears(&some, 10..12).await;
    all.close().await;
    some.close().await;
    publisher.close().await;
}

async fn who_falls_behind_what_is_kept_hears_how_far(at: Place) {
    let directory = TempDir::new().unwrap();
    let options = SpoolOptions::new(Durability::Os).segment(8 << 10).quota(32 << 10);
    let builder = || keyed(Pub::builder()).spool(directory.path(), options.clone()).linger(Duration::ZERO);
    let publisher = builder().bind(at.address()).await.unwrap();
    let address = address_of(&publisher);
    let slow = named("slow", &address).await;
    until("its cursor", || unsettled(&publisher, "slow") == Some(0)).await;
    publish(&publisher, 0..2).await;
    hears(&slow, 0..2).await;
    until("both to be settled", || unsettled(&publisher, "slow") == Some(0)).await;
    slow.close().await;
    for number in 2..200_u64 {
        publisher.publish("n", format!("{number:01000}")).await.unwrap();
    }
    let slow = named("slow", &address).await;
    let Err(SubRecvError::Lagged(missed)) = soon("the gap", slow.recv()).await else { panic!("a gap") };
    for number in 2 + missed..200 {
        let message = soon("what is left", slow.recv()).await.unwrap();
        assert_eq!(message.text().unwrap().parse(), Ok(number));
    }
    publisher.close().await;
    slow.close().await;
    // One that waits instead loses nothing.
    let directory = TempDir::new().unwrap();
    let publisher = keyed(Pub::builder()).overflow(Overflow::Block).spool(directory.path(), options.clone());
    let publisher = publisher.bind(at.address()).await.unwrap();
    let slow = named("slow", &address_of(&publisher)).await;
    until("its cursor", || unsettled(&publisher, "slow") == Some(0)).await;
    let all = async {
        for number in 0..200_u64 {
            publisher.publish("n", format!("{number:01000}")).await.unwrap();
        }
    };
    let takes = async {
        for number in 0..200_u64 {
            assert_eq!(slow.recv().await.unwrap().text().unwrap().parse(), Ok(number));
        }
    };
    soon("all of it", async { tokio::join!(all, takes) }).await;
    publisher.close().await;
    slow.close().await;
}

/// Nothing is held for it: what those with a name have settled goes.
async fn one_without_a_name_hears_what_went_before_it_got_it(at: Place) {
    let directory = TempDir::new().unwrap();
    let options = SpoolOptions::new(Durability::Os).segment(8 << 10).tail(4 << 10);
    let publisher =
        keyed(Pub::builder()).send_hwm(4).under_way(4).linger(Duration::ZERO).spool(directory.path(), options);
    let publisher = publisher.bind(at.address()).await.unwrap();
    let address = address_of(&publisher);
    let (fast, slow) = (named("fast", &address).await, named("", &address).await);
    soon("both", publisher.subscribers("n", 2)).await.unwrap();
    let taken = tokio::spawn(async move {
        for number in 0..200_u64 {
            assert_eq!(fast.recv().await.unwrap().text().unwrap().parse(), Ok(number));
        }
        fast
    });
    for number in 0..200_u64 {
        publisher.publish("n", format!("{number:01000}")).await.unwrap();
    }
    let fast = soon("all of it", taken).await.unwrap();
    let first = || publisher.spool_stats().unwrap().seqs.start;
    until("most of it to be gone", || first() >= 150).await;
    let (mut came, mut missed) = (0, 0);
    while came + missed < 200 {
        match soon("the next", slow.recv()).await {
            Ok(message) => {
                assert_eq!(message.text().unwrap().parse(), Ok(came + missed));
                came += 1;
            }
            Err(SubRecvError::Lagged(lagged)) => missed += lagged,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(missed > 100, "{missed}");
    publisher.close().await;
    fast.close().await;
    slow.close().await;
}

async fn a_subscriber_without_a_name_begins_now(at: Place) {
    let directory = TempDir::new().unwrap();
    let publisher = kept(&directory).bind(at.address()).await.unwrap();
    publish(&publisher, 0..5).await;
    let sub = keyed(Sub::builder()).connect(address_of(&publisher)).await.unwrap();
    sub.subscribe("n").await.unwrap();
    soon("its subscription", publisher.subscribers("n", 1)).await.unwrap();
    publish(&publisher, 5..8).await;
    hears(&sub, 5..8).await;
    sub.close().await;
    assert!(publisher.spool_stats().unwrap().cursors.is_empty());
    assert_eq!(publisher.forget("nobody").await, Err(CursorError::Unknown));
    let named = named("somebody", &address_of(&publisher)).await;
    until("its cursor", || unsettled(&publisher, "somebody").is_some()).await;
    named.close().await;
    publisher.forget("somebody").await.unwrap();
    assert_eq!(unsettled(&publisher, "somebody"), None);
    publisher.close().await;
}

async fn who_is_counted_gets_what_is_published_then(at: Place) {
    let directory = TempDir::new().unwrap();
    let publisher = kept(&directory).linger(Duration::ZERO).bind(at.address()).await.unwrap();
    let address = address_of(&publisher);
    for number in 0..40_u64 {
        let (publishes, runtime) = (publisher.clone(), tokio::runtime::Handle::current());
        let published = tokio::task::spawn_blocking(move || {
            // At the very moment.
            while publishes.subscriber_count("") == 0 {
                std::hint::spin_loop();
            }
            runtime.block_on(publish(&publishes, [number]));
        });
        let sub = keyed(Sub::builder()).subscribe("").connect(&address).await.unwrap();
        soon("it to be published", published).await.unwrap();
        hears(&sub, [number]).await;
        sub.close().await;
        until("it to be gone", || publisher.subscriber_count("") == 0).await;
    }
    publisher.close().await;
}

async fn the_later_one_of_a_name_takes_its_place(at: Place) {
    let directory = TempDir::new().unwrap();
    let publisher = kept(&directory).bind(at.address()).await.unwrap();
    let address = address_of(&publisher);
    let mut events = publisher.events();
    let first = named("one", &address).await;
    until("its cursor", || unsettled(&publisher, "one") == Some(0)).await;
    publish(&publisher, 0..2).await;
    hears(&first, 0..1).await;
    first.disconnect(&address).await.unwrap();
    first.connect_to(&address).await.unwrap();
    hears(&first, 1..2).await;
    until("both to be settled", || unsettled(&publisher, "one") == Some(0)).await;
    let mut first_events = first.events();
    let second = named("one", &address).await;
    event(&mut events, "the first to be let go", |event| {
        matches!(event, Event::PeerDown { reason: DownReason::Superseded, .. }).then_some(())
    })
    .await;
    let why = event(&mut first_events, "the first to hear why", |event| match event {
        Event::PeerDown { reason, .. } => Some(reason.to_string()),
        _ => None,
    });
    let why = why.await;
    assert!(at.is("inproc") || why.contains("another subscriber has come under its name"), "{why}");
    first.close().await;
    publish(&publisher, 2..4).await;
    hears(&second, 2..4).await;
    second.close().await;
    publisher.close().await;
}

async fn what_an_earlier_one_of_a_name_had_is_another_attempt(at: Place) {
    let directory = TempDir::new().unwrap();
    let publisher = kept(&directory).bind(at.address()).await.unwrap();
    let address = address_of(&publisher);
    let first = named("one", &address).await;
    until("its cursor", || unsettled(&publisher, "one") == Some(0)).await;
    publish(&publisher, 0..1).await;
    let (mut subs, mut attempts) = (vec![first], Vec::new());
    for _ in 0..5 {
        let delivery = soon("a delivery", subs[subs.len() - 1].recv_delivery()).await.unwrap();
        assert_eq!(delivery.text().unwrap(), "0");
        attempts.push(delivery.attempt());
        // The link of the one before is still there when the next comes.
        subs.push(named("one", &address).await);
    }
    // Those that were let go dial again, and may have had it in between.
    assert!(attempts[0] == 1 && attempts.is_sorted_by(|one, next| one < next), "{attempts:?}");
    for sub in subs {
        sub.close().await;
    }
    publisher.close().await;
}

async fn a_restarted_publisher_goes_on_with_each_subscriber(at: Place) {
    let directory = TempDir::new().unwrap();
    let publisher = kept(&directory).bind(at.address()).await.unwrap();
    let address = address_of(&publisher);
    let (one, two) = (named("one", &address).await, named("two", &address).await);
    for name in ["one", "two"] {
        until("its cursor", || unsettled(&publisher, name) == Some(0)).await;
    }
    publish(&publisher, 0..5).await;
    hears(&one, 0..5).await;
    until("all to be settled", || unsettled(&publisher, "one") == Some(0)).await;
    two.close().await;
    publisher.close().await;
    let publisher = kept(&directory).bind(&address).await.unwrap();
    publish(&publisher, 5..7).await;
    let two = named("two", &address).await;
    hears(&one, 5..7).await;
    hears(&two, 0..7).await;
    assert!(soon("the end", publisher.close()).await.all_delivered());
    one.close().await;
    two.close().await;
}

async fn what_a_subscriber_does_not_settle_comes_again(at: Place) {
    let directory = TempDir::new().unwrap();
    let publisher = kept(&directory).max_attempts(3).bind(at.address()).await.unwrap();
    let sub = named("one", &address_of(&publisher)).await;
    until("its cursor", || unsettled(&publisher, "one") == Some(0)).await;
    publish(&publisher, 0..1).await;
    for attempt in 1..=3 {
        let delivery = soon("a delivery", sub.recv_delivery()).await.unwrap();
        assert_eq!((delivery.attempt(), delivery.text().unwrap()), (attempt, "0"));
    }
    until("it to be settled", || unsettled(&publisher, "one") == Some(0)).await;
    let letters = publisher.dead_letters().unwrap().list(0, 10).await.unwrap();
    assert_eq!(letters.len(), 1);
    assert!(letters[0].reason.starts_with("one: "), "{letters:?}");
    publisher.close().await;
    sub.close().await;
    // Where no socket runs they are sent again as well, and nobody else's cursor comes into being.
    let dead = DeadLetters::of(directory.path());
    assert!(dead.requeue(letters[0].number).await.unwrap());
    assert!(!dead.requeue(letters[0].number).await.unwrap());
    dead.close().await.unwrap();
    let publisher = kept(&directory).linger(Duration::ZERO).open().await.unwrap();
    let cursors = publisher.spool_stats().unwrap().cursors;
    assert_eq!(cursors.iter().map(|(name, cursor)| (&name[..], cursor.unsettled)).collect::<Vec<_>>(), [("one", 1)]);
    publisher.close().await;
}

async fn a_message_that_no_subscriber_survives_takes_no_other_with_it(at: Place) {
    const POISON: &str = "5";
    let directory = TempDir::new().unwrap();
    let publisher = kept(&directory).max_attempts(4).bind(at.address()).await.unwrap();
    let address = address_of(&publisher);
    let first = named("one", &address).await;
    until("its cursor", || unsettled(&publisher, "one") == Some(0)).await;
    first.close().await;
    publish(&publisher, 0..10).await;
    let (mut deaths, mut done) = (0, BTreeSet::new());
    while done.len() < 9 {
        // What it has in hand when it dies is not confirmed. From half of the attempts on it has one at a time.
        let (sub, mut in_hand) = (named("one", &address).await, Vec::new());
        loop {
            let delivery = soon("a delivery", sub.recv_delivery()).await.unwrap();
            if delivery.text() == Ok(POISON) {
                in_hand.push(delivery);
                break;
            }
            if delivery.attempt() <= 2 && delivery.text().unwrap() < POISON {
                in_hand.push(delivery);
                continue;
            }
            done.insert(delivery.text().unwrap().to_owned());
            delivery.ack().await.unwrap();
            if done.len() == 9 {
                break;
            }
        }
        deaths += u32::from(done.len() < 9);
        // A crash gives nothing back.
        in_hand.into_iter().for_each(std::mem::forget);
        sub.close().await;
    }
    assert_eq!(deaths, 4);
    until("all to be settled", || unsettled(&publisher, "one") == Some(0)).await;
    let letters = publisher.dead_letters().unwrap().list(0, 20).await.unwrap();
    let letters: Vec<_> = letters.iter().map(|letter| letter.message.text().unwrap()).collect();
    assert_eq!(letters, [POISON]);
    publisher.close().await;
}

/// Also that under which a socket that pushes keeps how far its receivers are.
async fn a_subscriber_may_have_any_name(at: Place) {
    let directory = TempDir::new().unwrap();
    let publisher = kept(&directory).max_attempts(1).bind(at.address()).await.unwrap();
    let address = address_of(&publisher);
    let (push, other) = (named("push", &address).await, named("other", &address).await);
    until("their cursors", || unsettled(&publisher, "push").and(unsettled(&publisher, "other")).is_some()).await;
    other.close().await;
    until("it to be gone", || publisher.stats().peers.len() == 1).await;
    publish(&publisher, 0..2).await;
    hears(&push, 0..1).await;
    soon("message 1", push.recv_delivery()).await.unwrap().reject("no").unwrap();
    until("all to be settled", || unsettled(&publisher, "push") == Some(0)).await;
    let letters = publisher.dead_letters().unwrap().list(0, 2).await.unwrap();
    assert!(matches!(&letters[..], [letter] if letter.reason.starts_with("push: ")), "{letters:?}");
    push.close().await;
    assert_eq!(soon("the end", publisher.close()).await.spooled, 2, "for the other");
}

async fn what_came_to_its_last_attempt_comes_no_more(at: Place) {
    const ALL: u64 = 100;
    let directory = TempDir::new().unwrap();
    let publisher = kept(&directory).max_attempts(1).bind(at.address()).await.unwrap();
    let address = address_of(&publisher);
    let sub = named("one", &address).await;
    until("its cursor", || unsettled(&publisher, "one") == Some(0)).await;
    publish(&publisher, 0..ALL).await;
    let mut deliveries = Vec::new();
    for _ in 0..ALL {
        deliveries.push(soon("a delivery", sub.recv_delivery()).await.unwrap());
    }
    for (number, delivery) in deliveries.into_iter().enumerate() {
        // While these are buried the link is lost; a crash gives nothing back.
        if number % 2 == 0 { delivery.reject("no").unwrap() } else { std::mem::forget(delivery) }
    }
    sub.close().await;
    // It is there before the letters are.
    let next = named("one", &address).await;
    publish(&publisher, ALL..ALL + 1).await;
    hears(&next, ALL..ALL + 1).await;
    let letters = publisher.dead_letters().unwrap().list(0, 2 * ALL as usize).await.unwrap();
    assert_eq!(letters.len() as u64, ALL);
    next.close().await;
    publisher.close().await;
}

async fn a_subscriber_that_comes_and_goes_misses_nothing(at: Place) {
    const ALL: u64 = 1500;
    let directory = TempDir::new().unwrap();
    // Few at once, so that there is always more to be read out when it goes.
    let publisher = kept(&directory).send_hwm(16).max_attempts(u32::MAX).bind(at.address()).await.unwrap();
    let address = address_of(&publisher);
    let sub = named("one", &address).await;
    until("its cursor", || unsettled(&publisher, "one") == Some(0)).await;
    let publishes = tokio::spawn({
        let publisher = publisher.clone();
        async move { publish(&publisher, 0..ALL).await }
    });
    let (mut came, mut next) = (0, sub);
    while came < ALL {
        for _ in 0..40.min(ALL - came) {
            let delivery = soon(format!("message {came}"), next.recv_delivery()).await.unwrap();
            // What was not confirmed in time comes again; nothing is left out.
            let number: u64 = delivery.text().unwrap().parse().unwrap();
            assert!(number <= came, "{number} comes, and not {came}");
            came = came.max(number + 1);
            delivery.ack().await.unwrap();
        }
        next.close().await;
        next = named("one", &address).await;
    }
    soon("all to be published", publishes).await.unwrap();
    next.close().await;
    publisher.close().await;
}
