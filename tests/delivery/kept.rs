//! A sender that keeps its messages, in memory or in a directory.

use std::time::Duration;

use ropewalk::{
    AckError, Builder, DeadReason, DeliverError, Event, Guarantee, Message, Pull, Push, TryRecvError, TrySendError,
    patterns::push_pull,
    spool::{Durability, OnDamage, OpenError, Spool, SpoolOptions},
};
use tempfile::TempDir;

use crate::common::{Place, address_of, event, keyed, soon, until};

over_every_transport!(
    what_was_accepted_before_anybody_was_there_is_delivered,
    a_delivery_that_is_dropped_goes_to_another,
    what_a_lost_receiver_had_goes_to_another,
    deliver_waits_until_the_application_is_done,
    a_message_that_fails_often_is_a_dead_letter,
    a_rejected_message_is_a_dead_letter_that_says_why,
    a_later_try_comes_later,
    what_is_kept_too_long_is_taken_back,
    a_restarted_sender_goes_on_where_it_was,
    what_was_done_is_passed_over_when_it_comes_again,
    an_inbox_knows_after_a_restart_what_was_done,
    every_delivery_hears_what_became_of_it,
    who_has_no_room_rests,
    where_dead_letters_find_no_room_the_others_go_on,
    what_was_taken_back_is_not_written_into_the_inbox,
    an_ack_that_is_dropped_goes_its_way,
    a_receiver_that_closes_has_said_what_it_is_done_with,
);

fn kept() -> Builder<push_pull::Push> {
    keyed(Push::builder()).guarantee(Guarantee::AtLeastOnce)
}

fn pull() -> Builder<push_pull::Pull> {
    keyed(Pull::builder())
}

async fn what_was_accepted_before_anybody_was_there_is_delivered(at: Place) {
    let directory = TempDir::new().unwrap();
    let push = keyed(Push::builder()).spool(directory.path(), Durability::Os).bind(at.address()).await.unwrap();
    for number in 0..100 {
        push.send(number.to_string()).await.unwrap();
    }
    assert!(matches!(push.try_send("no"), Err(TrySendError::Spooled(message)) if message == "no"));
    let pull = pull().connect(address_of(&push)).await.unwrap();
    for number in 0..100 {
        assert_eq!(soon("a message", pull.recv()).await.unwrap(), &number.to_string()[..]);
    }
    let report = soon("the end", push.close()).await;
    assert!(report.all_delivered(), "{report:?}");
    assert_eq!(report.delivered, 100);
    pull.close().await;
}

async fn a_delivery_that_is_dropped_goes_to_another(at: Place) {
    let (push, first) = at.link(kept(), pull()).await;
    let second = pull().bind(at.address()).await.unwrap();
    push.send("one").await.unwrap();
    let delivery = soon("a delivery", first.recv_delivery()).await.unwrap();
    assert_eq!(delivery.attempt(), 1);
    let id = delivery.id();
    drop(delivery);
    push.connect_to(address_of(&second)).await.unwrap();
    let delivery = tokio::select! {
        delivery = first.recv_delivery() => delivery.unwrap(),
        delivery = second.recv_delivery() => delivery.unwrap(),
    };
    assert_eq!((delivery.attempt(), delivery.id()), (2, id));
    delivery.ack().await.unwrap();
    let report = soon("the end", push.close()).await;
    assert_eq!((report.delivered, report.all_delivered()), (1, true), "{report:?}");
    first.close().await;
    second.close().await;
}

async fn what_a_lost_receiver_had_goes_to_another(at: Place) {
    let push = kept().bind(at.address()).await.unwrap();
    let first = pull().connect(address_of(&push)).await.unwrap();
    for number in 0..10 {
        push.send(number.to_string()).await.unwrap();
    }
    let held = soon("a delivery", first.recv_delivery()).await.unwrap();
    assert_eq!(*held, "0");
    first.close().await;
    let second = pull().connect(address_of(&push)).await.unwrap();
    for number in 0..10 {
        let delivery = soon("a delivery", second.recv_delivery()).await.unwrap();
        assert_eq!(*delivery, &number.to_string()[..]);
        assert!(delivery.attempt() <= 2);
        delivery.ack().await.unwrap();
    }
    // Whoever has it no longer cannot settle it.
    drop(held);
    assert!(soon("the end", push.close()).await.all_delivered());
    second.close().await;
}

async fn deliver_waits_until_the_application_is_done(at: Place) {
    let (push, pull) = at.link(kept(), pull()).await;
    let mut delivers = std::pin::pin!(push.deliver("one"));
    let delivery = tokio::select! {
        delivery = pull.recv_delivery() => delivery.unwrap(),
        done = &mut delivers => panic!("nobody was done with it: {done:?}"),
    };
    let (delivered, acked) = soon("the acknowledgement", async { tokio::join!(delivers, delivery.ack()) }).await;
    acked.unwrap();
    delivered.unwrap();
    // One that is handed out by `recv` is settled.
    let (delivered, received) = soon("the message", async { tokio::join!(push.deliver("two"), pull.recv()) }).await;
    assert_eq!(received.unwrap(), "two");
    delivered.unwrap();
    let plain = keyed(Push::builder()).build();
    assert!(matches!(plain.deliver("no").await, Err(DeliverError::NotConfirming(message)) if message == "no"));
    plain.close().await;
    push.close().await;
    pull.close().await;
}

async fn a_message_that_fails_often_is_a_dead_letter(at: Place) {
    let directory = TempDir::new().unwrap();
    let push = keyed(Push::builder()).spool(directory.path(), Durability::Os).max_attempts(3);
    let push = push.bind(at.address()).await.unwrap();
    let mut events = push.events();
    let pull = pull().connect(address_of(&push)).await.unwrap();
    let delivered = tokio::spawn({
        let push = push.clone();
        async move { push.deliver(["poison", "ivy"]).await }
    });
    for attempt in 1..=3 {
        let delivery = soon("a delivery", pull.recv_delivery()).await.unwrap();
        assert_eq!(delivery.attempt(), attempt);
        delivery.nack(Duration::ZERO).unwrap();
    }
    assert_eq!(soon("the end of it", delivered).await.unwrap(), Err(DeliverError::Exhausted));
    let told = event(&mut events, "the dead letter", |event| match event {
        Event::DeadLetter { number, attempts: 3, reason: DeadReason::Attempts, .. } => Some(number),
        _ => None,
    })
    .await;
    push.send("fine").await.unwrap();
    assert_eq!(soon("a message", pull.recv()).await.unwrap(), "fine");
    let dead = push.dead_letters().unwrap();
    let letters = dead.list(0, 10).await.unwrap();
    let [letter] = &letters[..] else { panic!("{letters:?}") };
    assert_eq!((letter.message.len(), letter.attempts, Some(letter.number)), (2, 3, told));
    assert_eq!(letter.message, Message::from(["poison", "ivy"]));
    assert!(dead.requeue(letter.number).await.unwrap());
    assert_eq!(soon("it again", pull.recv()).await.unwrap(), Message::from(["poison", "ivy"]));
    assert!(dead.list(0, 10).await.unwrap().is_empty());
    push.close().await;
    pull.close().await;
}

async fn a_rejected_message_is_a_dead_letter_that_says_why(at: Place) {
    let directory = TempDir::new().unwrap();
    let push = keyed(Push::builder()).spool(directory.path(), Durability::Os).bind(at.address()).await.unwrap();
    let pull = pull().connect(address_of(&push)).await.unwrap();
    push.send("not json").await.unwrap();
    soon("a delivery", pull.recv_delivery()).await.unwrap().reject("no { at byte 0").unwrap();
    let (delivered, rejected) = tokio::join!(push.deliver("nor this"), async {
        soon("a delivery", pull.recv_delivery()).await.unwrap().reject("nor here")
    });
    rejected.unwrap();
    assert_eq!(delivered, Err(DeliverError::Rejected("nor here".into())));
    let letters = push.dead_letters().unwrap().list(0, 10).await.unwrap();
    let reasons: Vec<_> = letters.iter().map(|letter| &letter.reason[..]).collect();
    assert_eq!(reasons, ["it was rejected: no { at byte 0", "it was rejected: nor here"]);
    // They are there after a restart, too, and what is purged is gone.
    push.dead_letters().unwrap().purge(letters[0].number).await.unwrap();
    let report = push.close().await;
    assert_eq!((report.delivered, report.dead, report.all_delivered()), (0, 2, false), "{report:?}");
    let push = keyed(Push::builder()).spool(directory.path(), Durability::Os).open().await.unwrap();
    let left = push.dead_letters().unwrap().list(0, 10).await.unwrap();
    assert_eq!(left, letters[1..]);
    push.close().await;
    pull.close().await;
}

async fn a_later_try_comes_later(at: Place) {
    let (push, pull) = at.link(kept(), pull()).await;
    push.send("first").await.unwrap();
    let delay = Duration::from_millis(100);
    let began = std::time::Instant::now();
    soon("a delivery", pull.recv_delivery()).await.unwrap().nack(delay).unwrap();
    push.send("second").await.unwrap();
    assert_eq!(soon("what overtakes it", pull.recv()).await.unwrap(), "second");
    let again = soon("it again", pull.recv_delivery()).await.unwrap();
    assert!(began.elapsed() >= delay);
    assert_eq!((again.text().unwrap(), again.attempt()), ("first", 2));
    again.ack().await.unwrap();
    let report = push.close().await;
    assert!(report.all_delivered(), "{report:?}");
    pull.close().await;
}

async fn what_is_kept_too_long_is_taken_back(at: Place) {
    let (push, pull) = at.link(kept(), pull().lease(Duration::from_millis(80))).await;
    push.send("slow").await.unwrap();
    let slow = soon("a delivery", pull.recv_delivery()).await.unwrap();
    let again = soon("it again", pull.recv_delivery()).await.unwrap();
    assert_eq!((again.attempt(), again.id()), (2, slow.id()));
    again.extend(Duration::from_secs(60)).unwrap();
    assert_eq!(slow.ack().await, Err(AckError::TakenBack));
    again.ack().await.unwrap();
    assert_eq!(pull.try_recv(), Err(TryRecvError::Empty));
    let report = push.close().await;
    assert!(report.all_delivered(), "{report:?}");
    pull.close().await;
}

async fn a_restarted_sender_goes_on_where_it_was(at: Place) {
    let directory = TempDir::new().unwrap();
    let builder = || keyed(Push::builder()).spool(directory.path(), Durability::Os).linger(Duration::ZERO);
    let push = builder().bind(at.address()).await.unwrap();
    let address = address_of(&push);
    let pull = pull().connect(&address).await.unwrap();
    for number in 0..10 {
        push.send(number.to_string()).await.unwrap();
    }
    let mut held = Vec::new();
    for number in 0..10 {
        let delivery = soon("a delivery", pull.recv_delivery()).await.unwrap();
        match number {
            0..5 => delivery.ack().await.unwrap(),
            _ => held.push(delivery),
        }
    }
    until("five to be settled", || push.spool_stats().unwrap().cursors["push"].unsettled == 5).await;
    let report = push.close().await;
    assert_eq!(report.unsent, 0);
    assert_eq!(report.spooled, 5, "{report:?}");
    let push = builder().open().await.unwrap();
    assert!(push.recovery().unwrap().clean);
    push.bind_to(&address).await.unwrap();
    // What the application still has is not handed out again, and is settled where it is now.
    push.send("new").await.unwrap();
    assert_eq!(soon("the new one", pull.recv()).await.unwrap(), "new");
    for delivery in held {
        delivery.ack().await.unwrap();
    }
    until("all to be settled", || push.spool_stats().unwrap().cursors["push"].unsettled == 0).await;
    push.close().await;
    pull.close().await;
}

async fn what_was_done_is_passed_over_when_it_comes_again(at: Place) {
    let push = kept().bind(at.address()).await.unwrap();
    let address = address_of(&push);
    let pull = pull().connect(&address).await.unwrap();
    push.send("once").await.unwrap();
    let delivery = soon("a delivery", pull.recv_delivery()).await.unwrap();
    // Its link dies, and it is done before there is another.
    pull.disconnect(&address).await.unwrap();
    delivery.ack().await.unwrap();
    pull.connect_to(&address).await.unwrap();
    push.send("next").await.unwrap();
    assert_eq!(soon("the next", pull.recv()).await.unwrap(), "next");
    // It may come again only now, and is passed over when the application asks for more.
    let report = tokio::select! {
        report = push.close() => report,
        again = pull.recv() => panic!("{again:?} came again"),
    };
    assert!(report.all_delivered(), "{report:?}");
    pull.close().await;
}

async fn an_inbox_knows_after_a_restart_what_was_done(at: Place) {
    let directory = TempDir::new().unwrap();
    let builder = || keyed(Pull::builder()).inbox(directory.path());
    let push = kept().bind(at.address()).await.unwrap();
    let address = address_of(&push);
    let pull = builder().connect(&address).await.unwrap();
    push.send("once").await.unwrap();
    push.send("twice").await.unwrap();
    let once = soon("a delivery", pull.recv_delivery()).await.unwrap();
    let twice = soon("a delivery", pull.recv_delivery()).await.unwrap();
    pull.disconnect(&address).await.unwrap();
    once.ack().await.unwrap();
    // The sender has not heard of it, and the other was not done.
    pull.close().await;
    drop(twice);
    let pull = builder().connect(&address).await.unwrap();
    let delivery = soon("what was not done", pull.recv_delivery()).await.unwrap();
    assert_eq!((delivery.text().unwrap(), delivery.attempt()), ("twice", 2));
    delivery.ack().await.unwrap();
    assert_eq!(pull.try_recv(), Err(TryRecvError::Empty));
    push.send("settled").await.unwrap();
    assert_eq!(soon("a message", pull.recv()).await.unwrap(), "settled");
    let report = push.close().await;
    assert!(report.all_delivered(), "{report:?}");
    pull.close().await;
}

async fn an_ack_that_is_dropped_goes_its_way(at: Place) {
    let (directory, inbox) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let push = keyed(Push::builder()).spool(directory.path(), Durability::Os).bind(at.address()).await.unwrap();
    let pull = pull().inbox(inbox.path()).connect(address_of(&push)).await.unwrap();
    for _ in 0..20 {
        let (delivered, ()) = tokio::join!(push.deliver("work"), async {
            let delivery = soon("a delivery", pull.recv_delivery()).await.unwrap();
            let mut ack = Box::pin(delivery.ack());
            // As a `select!` does that has something else to do.
            let _synced_at_once = futures::poll!(&mut ack);
        });
        delivered.unwrap();
    }
    assert_eq!(push.stats().sent, 20, "each once");
    let report = soon("the end", push.close()).await;
    assert!(report.all_delivered(), "{report:?}");
    pull.close().await;
}

async fn a_receiver_that_closes_has_said_what_it_is_done_with(at: Place) {
    let directory = TempDir::new().unwrap();
    let push = keyed(Push::builder()).spool(directory.path(), Durability::Os).bind(at.address()).await.unwrap();
    let unsettled = || push.spool_stats().unwrap().cursors["push"].unsettled;
    for round in 0..10 {
        let inbox = TempDir::new().unwrap();
        let pull = pull().inbox(inbox.path()).connect(address_of(&push)).await.unwrap();
        push.send("work").await.unwrap();
        if round % 2 == 0 {
            soon("it", pull.recv()).await.unwrap();
        } else {
            let delivery = soon("it", pull.recv_delivery()).await.unwrap();
            let _synced_at_once = futures::poll!(std::pin::pin!(delivery.ack()));
        }
        soon("the end", pull.close()).await;
        assert_eq!(unsettled(), 0, "another would do it once more");
    }
    push.close().await;
}

/// Damage in an inbox is named; who wants to go on without what is lost says so.
#[test]
fn a_damaged_inbox_can_be_opened_without_what_is_lost() {
    crate::common::run(async {
        let inbox = TempDir::new().unwrap();
        let push = Push::builder().guarantee(Guarantee::AtLeastOnce).bind("tcp://127.0.0.1:0").await.unwrap();
        let pull = Pull::builder().inbox(inbox.path()).connect(address_of(&push)).await.unwrap();
        for _ in 0..100 {
            let (delivered, received) = tokio::join!(push.deliver("work"), pull.recv());
            delivered.unwrap();
            received.unwrap();
        }
        pull.close().await;
        push.close().await;
        let files = std::fs::read_dir(inbox.path()).unwrap().map(|entry| entry.unwrap().path());
        let log = files.max_by_key(|path| path.metadata().unwrap().len()).unwrap();
        let mut bytes = std::fs::read(&log).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&log, bytes).unwrap();

        let refused = Pull::builder().inbox(inbox.path()).open().await;
        assert!(matches!(refused, Err(OpenError::Damaged { .. })), "{refused:?}");
        let skip = SpoolOptions::new(Durability::Always).on_damage(OnDamage::Skip);
        let pull = Pull::builder().inbox_with(inbox.path(), skip).open().await.unwrap();
        assert_eq!(pull.inbox_recovery().unwrap().damage.len(), 1);
        pull.close().await;
    });
}

/// Another cursor of the same log has as many gaps as all may have together.
#[test]
fn what_has_too_many_gaps_is_settled_when_they_close() {
    crate::common::run(async {
        const MOST: u64 = 1 << 16;
        let directory = TempDir::new().unwrap();
        let (spool, _) = Spool::open(directory.path(), SpoolOptions::new(Durability::Os)).await.unwrap();
        spool.cursor("scattered").await.unwrap();
        spool.append(std::iter::repeat_n(Message::from("x"), 2 * MOST as usize)).await.unwrap();
        spool.settle_many("scattered", (0..MOST).map(|range| 2 * range..2 * range + 1)).unwrap();
        spool.close().await.unwrap();
        drop(spool);

        let push = Push::builder().linger(Duration::ZERO).spool(directory.path(), Durability::Os);
        let push = push.bind("tcp://127.0.0.1:0").await.unwrap();
        let pull = Pull::connect(address_of(&push)).await.unwrap();
        let mut open = Vec::new();
        for _ in 0..400 {
            open.push(soon("a delivery", pull.recv_delivery()).await.unwrap());
        }
        let (mut closing, mut scattered) = (Vec::new(), Vec::new());
        for (number, delivery) in open.into_iter().enumerate() {
            if number % 2 == 0 { closing.push(delivery) } else { scattered.push(delivery) }
        }
        // Every other one, and as soon as the sender knows, those between.
        for delivery in scattered {
            delivery.ack().await.unwrap();
        }
        let settled = || push.spool_stats().unwrap().cursors["push"].clone();
        until("some to be settled", || settled().unsettled < 2 * MOST).await;
        for delivery in closing {
            delivery.ack().await.unwrap();
        }
        until("all of them", || settled().settled >= 400).await;
        pull.close().await;
        push.close().await;
    });
}

#[test]
fn what_was_accepted_right_before_the_end_is_delivered() {
    crate::common::run(async {
        let directory = TempDir::new().unwrap();
        let pull = Pull::bind("inproc://right-before-the-end").await.unwrap();
        for number in 0..100 {
            let push = Push::builder().spool(directory.path(), Durability::Os);
            let push = push.connect("inproc://right-before-the-end").await.unwrap();
            let (sent, taken) = tokio::join!(
                async {
                    push.deliver("first").await.unwrap();
                    push.send("last").await.unwrap();
                    push.close().await
                },
                async { [soon("the first", pull.recv()).await, soon("the last", pull.recv()).await] },
            );
            assert_eq!((sent.delivered, sent.spooled), (2, 0), "at {number}");
            assert_eq!(taken.map(Result::unwrap), ["first", "last"]);
        }
        pull.close().await;
    });
}

#[test]
fn a_cursor_of_the_application_does_not_count_as_messages_that_wait() {
    crate::common::run(async {
        let directory = TempDir::new().unwrap();
        let (spool, _) = Spool::open(directory.path(), Durability::Os).await.unwrap();
        spool.cursor("mine").await.unwrap();
        spool.close().await.unwrap();
        let pull = Pull::bind("inproc://a-cursor-of-the-application").await.unwrap();
        let push = Push::builder().spool(directory.path(), Durability::Os);
        let push = push.connect("inproc://a-cursor-of-the-application").await.unwrap();
        push.send("one").await.unwrap();
        soon("a message", pull.recv()).await.unwrap();
        let report = soon("the end", push.close()).await;
        assert!(report.all_delivered(), "{report:?}");
        pull.close().await;
    });
}

async fn every_delivery_hears_what_became_of_it(at: Place) {
    let directory = TempDir::new().unwrap();
    let push = keyed(Push::builder()).spool(directory.path(), Durability::Os).bind(at.address()).await.unwrap();
    let pull = pull().connect(address_of(&push)).await.unwrap();
    let takes = tokio::spawn({
        let pull = pull.clone();
        async move { while pull.recv().await.is_ok() {} }
    });
    let delivers = (0..8).map(|_| {
        let push = push.clone();
        tokio::spawn(async move {
            for number in 0..200 {
                soon(format!("delivery {number}"), push.deliver("one")).await.unwrap();
            }
        })
    });
    futures::future::join_all(delivers).await.into_iter().for_each(|ended| ended.unwrap());
    let report = push.close().await;
    assert_eq!((report.delivered, report.spooled), (1600, 0), "{report:?}");
    pull.close().await;
    takes.await.unwrap();
}

async fn who_has_no_room_rests(at: Place) {
    let directory = TempDir::new().unwrap();
    let push = keyed(Push::builder()).send_hwm(8).spool(directory.path(), Durability::Os);
    let push = push.bind(at.address()).await.unwrap();
    let pull = pull().connect(address_of(&push)).await.unwrap();
    for number in 0..20 {
        push.send(number.to_string()).await.unwrap();
    }
    let mut held = Vec::new();
    for _ in 0..20 {
        held.push(soon("a delivery", pull.recv_delivery()).await.unwrap());
    }
    // All of them wait again, which is more than there is room for; and then there is one more to be read.
    let mut events = push.events();
    pull.close().await;
    event(&mut events, "that the link has ended", |event| matches!(event, Event::PeerDown { .. }).then_some(())).await;
    push.send("one more").await.unwrap();
    let metrics = tokio::runtime::Handle::current().metrics();
    let busy = || (0..metrics.num_workers()).map(|worker| metrics.worker_total_busy_duration(worker)).sum::<Duration>();
    let (before, rests) = (busy(), Duration::from_millis(200));
    // To see that it does nothing takes time.
    tokio::time::sleep(rests).await;
    let worked = busy() - before;
    assert!(worked < rests / 2, "{worked:?} of {rests:?}");
    drop(held);
    push.close().await;
}

async fn where_dead_letters_find_no_room_the_others_go_on(at: Place) {
    let directory = TempDir::new().unwrap();
    let options = SpoolOptions::new(Durability::Os).segment(8 << 10).quota(400 << 10);
    let push = keyed(Push::builder()).linger(Duration::ZERO).spool(directory.path(), options);
    let push = push.bind(at.address()).await.unwrap();
    let mut events = push.events();
    let pull = keyed(Pull::builder()).connect(address_of(&push)).await.unwrap();
    let bad = "bad ".repeat(250);
    let rejects = tokio::spawn(async move {
        loop {
            let delivery = pull.recv_delivery().await.unwrap();
            if *delivery == "good" {
                delivery.ack().await.unwrap();
                return pull;
            }
            delivery.reject("no").unwrap();
        }
    });
    soon("all to be accepted", push.send_all((0..500).map(|_| bad.clone()))).await.unwrap();
    event(&mut events, "no room", |event| matches!(event, Event::DeadLetterNotKept { .. }).then_some(())).await;
    push.send("good").await.unwrap();
    let pull = soon("the good one", rejects).await.unwrap();
    let report = soon("the end", push.close()).await;
    assert!(report.spooled > 0, "{report:?}");
    pull.close().await;
}

async fn what_was_taken_back_is_not_written_into_the_inbox(at: Place) {
    let (directory, inbox) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let push = keyed(Push::builder()).spool(directory.path(), Durability::Os).bind(at.address()).await.unwrap();
    let pull = async || {
        let pull = keyed(Pull::builder()).lease(Duration::from_millis(20)).inbox(inbox.path());
        pull.connect(address_of(&push)).await.unwrap()
    };
    push.send("work").await.unwrap();
    let first = pull().await;
    let late = soon("the first attempt", first.recv_delivery()).await.unwrap();
    let again = soon("the second", first.recv_delivery()).await.unwrap();
    assert_eq!((late.attempt(), again.attempt()), (1, 2));
    assert_eq!(late.ack().await, Err(AckError::TakenBack));
    drop(again);
    first.close().await;
    let second = pull().await;
    assert_eq!(*soon("it again", second.recv_delivery()).await.unwrap(), "work");
    second.close().await;
    push.close().await;
}
