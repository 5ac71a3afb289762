//! Backpressure, order, turns.

use std::{collections::BTreeSet, time::Duration};

use ropewalk::{Message, Pull, Push, Role, TrySendError, patterns::zmtp::Command};

use crate::{
    common::{
        LONG, Place, address_of, fill, keyed, numbers,
        raw::{Came, Raw, hello},
        rest, soon, standing, stays, until,
    },
    over_every_transport,
};

over_every_transport! {
    exactly_both_high_water_marks_fit,
    exactly_both_high_water_marks_fit_in_bytes,
    exactly_both_high_water_marks_fit_from_before_the_link,
    a_message_larger_than_every_bound_goes_alone,
    credit_reaches_a_sender_whose_receiver_only_tries,
    waiting_sends_are_served_in_order,
    try_send_does_not_overtake_those_who_wait,
    waiting_receivers_are_served_in_order,
    order_is_kept,
    each_peer_in_turn,
    a_full_peer_is_passed_over,
    unsent_messages_go_to_the_next_peer_in_order_and_once,
    messages_wait_for_a_dialled_peer_and_a_listener_waits,
}

async fn exactly_both_high_water_marks_fit(at: Place) {
    let (push, pull) = at.link(keyed(Push::builder()).send_hwm(10), keyed(Pull::builder()).recv_hwm(10)).await;
    assert_eq!(fill(&push, 1), 20);
    stays("a full queue", || fill(&push, 1) == 0).await;
    for _ in 0..30 {
        pull.recv().await.unwrap();
        until("room for one more", || fill(&push, 1) == 1).await;
        stays("full after one more", || fill(&push, 1) == 0).await;
    }
    // Several at once make room for just as many.
    for taken in [2, 7, 20] {
        for _ in 0..taken {
            soon("a message", pull.recv()).await.unwrap();
        }
        let mut more = 0;
        until("as much room as was taken", || {
            more += fill(&push, 1);
            more >= taken
        })
        .await;
        stays("full again", || fill(&push, 1) == 0).await;
        assert_eq!(more, taken);
    }
}

async fn exactly_both_high_water_marks_fit_in_bytes(at: Place) {
    // A message costs its bytes and 64.
    let (push, pull) =
        at.link(keyed(Push::builder()).send_hwm_bytes(1000), keyed(Pull::builder()).recv_hwm_bytes(1000)).await;
    assert_eq!(fill(&push, 36), 20);
    let stats = push.stats();
    assert_eq!(stats.peers[0].without_credit.bytes, 1000);
    for _ in 0..30 {
        soon("a message", pull.recv()).await.unwrap();
        until("room for one more", || fill(&push, 36) == 1).await;
        stays("full after one more", || fill(&push, 36) == 0).await;
        assert!(pull.stats().recv_reserved <= 1000);
    }
}

async fn exactly_both_high_water_marks_fit_from_before_the_link(at: Place) {
    let pull = keyed(Pull::builder()).recv_hwm(10).bind(at.address()).await.unwrap();
    let push = keyed(Push::builder()).send_hwm(10).connect(address_of(&pull)).await.unwrap();
    let mut sent = 0;
    until("both marks to be reached", || {
        sent += fill(&push, 1);
        sent >= 20
    })
    .await;
    stays("full", || fill(&push, 1) == 0).await;
    assert_eq!(sent, 20);
    for _ in 0..20 {
        soon("a message", pull.recv()).await.unwrap();
    }
}

async fn a_message_larger_than_every_bound_goes_alone(at: Place) {
    let (push, pull) =
        at.link(keyed(Push::builder()).send_hwm_bytes(100), keyed(Pull::builder()).recv_hwm_bytes(100)).await;
    // One at the receiver, one at the sender.
    assert_eq!(fill(&push, 5000), 2);
    for _ in 0..10 {
        assert_eq!(soon("a large message", pull.recv()).await.unwrap().bytes(), 5000);
        until("room for another", || fill(&push, 5000) == 1).await;
    }
}

/// Whoever only ever asks whether something is there gives back credit like one who waits.
async fn credit_reaches_a_sender_whose_receiver_only_tries(at: Place) {
    let (push, pull) = at.link(keyed(Push::builder()), keyed(Pull::builder()).recv_hwm_bytes(1000)).await;
    let sizes = [36, 886, 1, 700, 236, 2, 900, 3000, 0, 930];
    let sending = tokio::spawn(async move {
        for round in 0..50 {
            push.send(vec![b'x'; sizes[round % sizes.len()]]).await.unwrap();
        }
        push
    });
    for round in 0..50 {
        let mut came = None;
        until(format!("message {round}"), || {
            came = pull.try_recv().ok();
            came.is_some()
        })
        .await;
        assert_eq!(came.unwrap().bytes() as usize, sizes[round % sizes.len()]);
    }
    soon("the sender", sending).await.unwrap();
}

async fn waiting_sends_are_served_in_order(at: Place) {
    let (push, pull) = at.link(keyed(Push::builder()).send_hwm(1), keyed(Pull::builder()).recv_hwm(1)).await;
    assert_eq!(fill(&push, 1), 2);
    let mut waiting = Vec::new();
    for number in 0..50u64 {
        let push = push.clone();
        let send = standing(async move { push.send(number.to_string()).await }).await;
        waiting.push(tokio::spawn(send));
    }
    for _ in 0..2 {
        soon("the first two", pull.recv()).await.unwrap();
    }
    assert_eq!(numbers(&pull, 50).await, (0..50).collect::<Vec<_>>());
    for send in waiting {
        soon("a send", send).await.unwrap().unwrap();
    }
}

async fn try_send_does_not_overtake_those_who_wait(at: Place) {
    let (push, pull) = at.link(keyed(Push::builder()).send_hwm(1), keyed(Pull::builder()).recv_hwm(1)).await;
    assert_eq!(fill(&push, 1), 2);
    let first = standing(push.send("0")).await;
    soon("a message", pull.recv()).await.unwrap();
    // There is room by now or soon, and the one who waits has not taken it: it is not polled.
    stays("full for newcomers", || matches!(push.try_send("1"), Err(TrySendError::Full(_)))).await;
    let second = standing(push.send("1")).await;
    soon("the one who waits", first).await.unwrap();
    soon("a message", pull.recv()).await.unwrap();
    soon("the newcomer", second).await.unwrap();
    assert_eq!(numbers(&pull, 2).await, [0, 1]);
}

/// The application took what it wants for now while half the window was still on its way.
#[test]
fn credit_is_told_also_when_the_window_fills_after_the_last_take() {
    crate::common::run(async {
        let pull = keyed(Pull::builder()).recv_hwm(10).bind("tcp://127.0.0.1:0").await.unwrap();
        let (mut raw, _) = Raw::link(&address_of(&pull), Role::PUSH, hello(10, 10_000)).await;
        for _ in 0..5 {
            raw.send(&[b"x"]).await;
        }
        until("half a window", || pull.stats().received == 5).await;
        soon("a message", pull.recv()).await.unwrap();
        for _ in 0..5 {
            raw.send(&[b"x"]).await;
        }
        loop {
            match raw.next().await {
                Came::Command(Command::Credit(credit)) if credit.taken == 1 => {
                    assert_eq!(credit.messages, 11);
                    break;
                }
                Came::Command(_) => {}
                came => panic!("{came:?}"),
            }
        }
    });
}

async fn waiting_receivers_are_served_in_order(at: Place) {
    let (push, pull) = at.link(keyed(Push::builder()), keyed(Pull::builder())).await;
    let mut waiting = Vec::new();
    for _ in 0..50 {
        let pull = pull.clone();
        let recv = standing(async move { pull.recv().await }).await;
        waiting.push(tokio::spawn(recv));
    }
    for number in 0..50u64 {
        push.send(number.to_string()).await.unwrap();
    }
    for (number, recv) in waiting.into_iter().enumerate() {
        assert_eq!(soon("a receiver", recv).await.unwrap().unwrap(), number.to_string().as_str());
    }
}

async fn order_is_kept(at: Place) {
    let (push, pull) = at.link(keyed(Push::builder()).send_hwm(7), keyed(Pull::builder()).recv_hwm(5)).await;
    let sending = tokio::spawn(async move {
        for number in 0..5000u64 {
            push.send(number.to_string()).await.unwrap();
        }
        push.close().await
    });
    assert_eq!(numbers(&pull, 5000).await, (0..5000).collect::<Vec<_>>());
    let report = soon("the sender", sending).await.unwrap();
    assert!(report.all_delivered() && report.delivered == 5000, "{report:?}");
}

async fn each_peer_in_turn(at: Place) {
    let push = keyed(Push::builder()).build();
    let mut pulls = Vec::new();
    for _ in 0..4 {
        let pull = keyed(Pull::builder()).bind(at.address()).await.unwrap();
        push.connect_to(address_of(&pull)).await.unwrap();
        pulls.push(pull);
    }
    soon("all four", push.ready_with(4)).await.unwrap();
    for number in 0..40u64 {
        push.send(number.to_string()).await.unwrap();
    }
    let mut firsts = BTreeSet::new();
    for pull in &pulls {
        let got = numbers(pull, 10).await;
        assert!(got[0] < 4 && got.windows(2).all(|pair| pair[1] == pair[0] + 4), "{got:?}");
        firsts.insert(got[0]);
    }
    assert_eq!(firsts.len(), 4);
}

async fn a_full_peer_is_passed_over(at: Place) {
    let push = keyed(Push::builder()).send_hwm(5).build();
    let small = keyed(Pull::builder()).recv_hwm(5).bind(at.address()).await.unwrap();
    let large = keyed(Pull::builder()).recv_hwm(500).bind(at.address()).await.unwrap();
    push.connect_to(address_of(&small)).await.unwrap();
    push.connect_to(address_of(&large)).await.unwrap();
    soon("both", push.ready_with(2)).await.unwrap();
    // The larger window opens in two steps: the hello's, and what comes right behind it.
    let (mut sent, all) = (0, 5 + 5 + 5 + 500);
    until("both to be full", || {
        sent += fill(&push, 1);
        sent >= all
    })
    .await;
    assert_eq!(sent, all);
    for _ in 0..10 {
        soon("a message", small.recv()).await.unwrap();
    }
    for _ in 0..505 {
        soon("a message", large.recv()).await.unwrap();
    }
}

/// Of two receivers one takes nothing and goes: what it was not sent is the other's, once and in order.
async fn unsent_messages_go_to_the_next_peer_in_order_and_once(at: Place) {
    let push = keyed(Push::builder()).send_hwm(50).build();
    let goes = keyed(Pull::builder()).recv_hwm(1).bind(at.address()).await.unwrap();
    push.connect_to(address_of(&goes)).await.unwrap();
    soon("the first", push.ready()).await.unwrap();
    for number in 0..51u64 {
        push.try_send(number.to_string()).unwrap();
    }
    // What has credit is on its way; it will be in doubt, and nothing else.
    until("the first to be written", || push.stats().peers[0].sent == 1).await;
    let stays_on = keyed(Pull::builder()).bind(at.address()).await.unwrap();
    push.connect_to(address_of(&stays_on)).await.unwrap();
    soon("both", push.ready_with(2)).await.unwrap();
    goes.close().await;
    assert_eq!(numbers(&stays_on, 50).await, (1..51).collect::<Vec<_>>());
    assert_eq!(rest(&stays_on).await, []);
    let report = soon("the end", push.close()).await;
    assert_eq!((report.delivered, report.in_doubt, report.unsent), (50, 1, 0));
}

async fn messages_wait_for_a_dialled_peer_and_a_listener_waits(at: Place) {
    // Nobody is there yet: as many as one queue holds are accepted.
    let reserved = keyed(Pull::builder()).bind(at.address()).await.unwrap();
    let address = address_of(&reserved);
    reserved.close().await;
    let quickly = (Duration::from_millis(1), Duration::from_millis(20));
    let push = keyed(Push::builder()).send_hwm(10).reconnect(quickly.0, quickly.1).connect(&address).await.unwrap();
    for number in 0..10u64 {
        push.try_send(number.to_string()).unwrap();
    }
    assert_eq!(push.try_send("10"), Err(TrySendError::Full(Message::from("10"))));
    assert_eq!(push.stats().unlinked.messages, 10);
    let pull = keyed(Pull::builder()).bind(&address).await.unwrap();
    assert_eq!(numbers(&pull, 10).await, (0..10).collect::<Vec<_>>());

    // Who only listens has nobody to keep anything for.
    let push = keyed(Push::builder()).bind(at.address()).await.unwrap();
    assert!(matches!(push.try_send("0"), Err(TrySendError::Full(_))));
    let send = standing(push.send("0")).await;
    let pull = keyed(Pull::builder()).connect(address_of(&push)).await.unwrap();
    tokio::time::timeout(LONG, send).await.expect("a peer came").unwrap();
    assert_eq!(numbers(&pull, 1).await, [0]);
}
