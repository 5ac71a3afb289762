//! The end: what becomes of what was accepted, who is told, and when.

use std::time::{Duration, Instant};

use futures::StreamExt;
use ropewalk::{
    Closed, DownReason, Event, NoSuchEndpoint, Pull, Push, Rep, Req, SendError, Sub, TryRecvError, TrySendError,
};

use crate::{
    common::{LONG, Place, address_of, down, fill, keyed, numbers, soon, standing, until},
    over_every_transport,
};

over_every_transport! {
    close_delivers_what_was_accepted_and_says_so,
    the_report_adds_up_when_the_receiver_takes_part_of_it,
    the_report_adds_up_over_many_links,
    close_waits_no_longer_than_the_linger,
    close_wakes_all_who_wait,
    clones_are_one_socket_and_close_may_be_called_twice,
    a_dropped_socket_delivers_in_the_background,
    a_dropped_close_still_closes,
    unbind_ends_the_links_of_that_endpoint_only,
    disconnect_gives_the_rest_to_others,
    events_end_with_the_socket,
}

async fn close_delivers_what_was_accepted_and_says_so(at: Place) {
    let (push, pull) =
        at.link(keyed(Push::builder()).send_hwm(1000).linger(LONG), keyed(Pull::builder()).recv_hwm(3)).await;
    for number in 0..500u64 {
        push.send(number.to_string()).await.unwrap();
    }
    let closing = tokio::spawn({
        let push = push.clone();
        async move { push.close().await }
    });
    assert_eq!(numbers(&pull, 500).await, (0..500).collect::<Vec<_>>());
    let report = soon("the report", closing).await.unwrap();
    assert_eq!((report.delivered, report.in_doubt, report.unsent, report.dropped), (500, 0, 0, 0));
    assert!(report.all_delivered());
    // What has arrived is there also when its sender is gone, and a receiver owes nobody anything.
    assert!(soon("the receiver", pull.close()).await.all_delivered());
}

async fn the_report_adds_up_when_the_receiver_takes_part_of_it(at: Place) {
    let linger = Duration::from_millis(50);
    let (push, pull) =
        at.link(keyed(Push::builder()).send_hwm(100).linger(linger), keyed(Pull::builder()).recv_hwm(10)).await;
    let accepted = fill(&push, 1);
    assert_eq!(accepted, 110);
    for _ in 0..3 {
        soon("a message", pull.recv()).await.unwrap();
    }
    let report = soon("the report", push.close()).await;
    assert_eq!(report.delivered + report.in_doubt + report.unsent, accepted, "{report:?}");
    assert!(report.delivered >= 3 && report.unsent >= 90 && !report.all_delivered(), "{report:?}");
    until("the link to be gone", || pull.stats().peers.is_empty()).await;
    assert_eq!(pull.stats().received, report.delivered + report.in_doubt);
}

/// Receivers come and go, taking a little each: every message was taken, is in doubt, or is unsent.
async fn the_report_adds_up_over_many_links(at: Place) {
    let push = keyed(Push::builder()).send_hwm(20).linger(Duration::from_millis(50)).bind(at.address()).await.unwrap();
    let mut events = push.events();
    let (address, mut accepted, mut taken) = (address_of(&push), 0, 0);
    for round in 0..20 {
        let pull = keyed(Pull::builder()).recv_hwm(5).connect(&address).await.unwrap();
        soon("a link", push.ready()).await.unwrap();
        accepted += fill(&push, 1);
        for _ in 0..round % 7 {
            soon("a message", pull.recv()).await.unwrap();
            taken += 1;
        }
        pull.close().await;
        until("the link to be gone", || push.stats().peers.is_empty()).await;
    }
    let report = soon("the report", push.close()).await;
    assert_eq!(report.delivered + report.in_doubt + report.unsent, accepted, "{report:?}");
    assert!(report.delivered >= taken, "{report:?} of {taken} taken");
    let mut in_doubt = 0;
    while let Some(event) = soon("the events", events.next()).await {
        if let Event::PeerDown { in_doubt: more, .. } = event {
            in_doubt += more;
        }
    }
    assert_eq!(in_doubt, report.in_doubt);
}

async fn close_waits_no_longer_than_the_linger(at: Place) {
    let linger = Duration::from_millis(100);
    let (push, _pull) = at.link(keyed(Push::builder()).linger(linger), keyed(Pull::builder()).recv_hwm(1)).await;
    for _ in 0..10 {
        push.send("x").await.unwrap();
    }
    let start = Instant::now();
    let report = soon("the end", push.close()).await;
    assert!(start.elapsed() >= linger && start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    assert_eq!(report.unsent, 9);
    // With nobody there it is just as short.
    let push = keyed(Push::builder()).linger(Duration::ZERO).connect(at.nowhere()).await.unwrap();
    push.send("x").await.unwrap();
    let report = soon("the end", push.close()).await;
    assert_eq!((report.unsent, report.delivered), (1, 0));
}

async fn close_wakes_all_who_wait(at: Place) {
    let (push, pull) =
        at.link(keyed(Push::builder()).send_hwm(1).linger(Duration::ZERO), keyed(Pull::builder()).recv_hwm(1)).await;
    fill(&push, 1);
    let sends = [standing(push.send("a")).await, standing(push.send("a")).await];
    let lonely = keyed(Pull::builder()).bind(at.address()).await.unwrap();
    let recvs = [standing(lonely.recv()).await, standing(lonely.recv()).await];
    let mut many = Vec::new();
    let many = standing(lonely.recv_many(&mut many, 5)).await;
    let ready = standing(lonely.ready()).await;
    let mut stream = lonely.stream();
    let streamed = standing(stream.next()).await;
    soon("both ends", async { tokio::join!(push.close(), lonely.close()) }).await;
    for send in sends {
        assert!(matches!(soon("a send", send).await, Err(SendError::Closed(message)) if message == "a"));
    }
    for recv in recvs {
        assert_eq!(soon("a recv", recv).await, Err(Closed));
    }
    assert_eq!(soon("recv_many", many).await, Err(Closed));
    assert_eq!(soon("ready", ready).await, Err(Closed));
    assert_eq!(soon("the stream", streamed).await, None);
    // And all that comes later.
    assert!(matches!(push.send("b").await, Err(SendError::Closed(_))));
    assert!(matches!(push.try_send("b"), Err(TrySendError::Closed(_))));
    assert_eq!(lonely.try_recv(), Err(TryRecvError::Closed));
    assert!(lonely.bind_to(at.address()).await.is_err());
    assert!(push.connect_to(at.address().replace(":0", ":1")).await.is_err());
    pull.close().await;
}

async fn clones_are_one_socket_and_close_may_be_called_twice(at: Place) {
    let (push, pull) = at.link(keyed(Push::builder()), keyed(Pull::builder())).await;
    let (other_push, other_pull) = (push.clone(), pull.clone());
    other_push.send("0").await.unwrap();
    drop(other_push);
    push.send("1").await.unwrap();
    assert_eq!(numbers(&other_pull, 1).await, [0]);
    assert_eq!(numbers(&pull, 1).await, [1]);
    let clone = push.clone();
    let (first, second) = soon("both", async { tokio::join!(push.close(), clone.close()) }).await;
    assert_eq!(first, second);
    assert_eq!(soon("a third", push.close()).await, first);
    assert_eq!(first.delivered, 2);
}

async fn a_dropped_socket_delivers_in_the_background(at: Place) {
    let (push, pull) = at.link(keyed(Push::builder()), keyed(Pull::builder()).recv_hwm(2)).await;
    for number in 0..100u64 {
        push.send(number.to_string()).await.unwrap();
    }
    drop(push);
    assert_eq!(numbers(&pull, 100).await, (0..100).collect::<Vec<_>>());
    until("the link to be gone", || pull.stats().peers.is_empty()).await;
}

async fn a_dropped_close_still_closes(at: Place) {
    let (push, pull) = at.link(keyed(Push::builder()), keyed(Pull::builder()).recv_hwm(1)).await;
    for number in 0..10u64 {
        push.send(number.to_string()).await.unwrap();
    }
    drop(standing(push.close()).await);
    assert!(matches!(push.try_send("x"), Err(TrySendError::Closed(_))));
    assert_eq!(numbers(&pull, 10).await, (0..10).collect::<Vec<_>>());
    assert_eq!(soon("the report", push.close()).await.delivered, 10);
}

async fn unbind_ends_the_links_of_that_endpoint_only(at: Place) {
    let pull = keyed(Pull::builder()).bind(at.address()).await.unwrap();
    let first = address_of(&pull);
    let second = pull.bind_to(at.address()).await.unwrap().to_string();
    assert_eq!(pull.endpoints().len(), 2);
    let goes = keyed(Push::builder()).reconnect(LONG, LONG).connect(&first).await.unwrap();
    let stays = keyed(Push::builder()).connect(&second).await.unwrap();
    soon("both", pull.ready_with(2)).await.unwrap();
    let mut events = goes.events();
    soon("unbind", pull.unbind(&first)).await.unwrap();
    let (reason, in_doubt) = down(&mut events).await;
    assert!(matches!(reason, DownReason::Goodbye), "{reason}");
    assert_eq!(in_doubt, 0);
    assert_eq!(pull.unbind(&first).await, Err(NoSuchEndpoint { address: first.clone() }));
    assert_eq!(address_of(&pull), second);
    stays.send("1").await.unwrap();
    assert_eq!(numbers(&pull, 1).await, [1]);
    // The address is free again.
    let again = keyed(Pull::builder()).bind(&first).await.unwrap();
    assert_eq!(address_of(&again), first);
}

async fn disconnect_gives_the_rest_to_others(at: Place) {
    let linger = Duration::from_millis(50);
    let push = keyed(Push::builder()).linger(linger).build();
    let full = keyed(Pull::builder()).recv_hwm(1).bind(at.address()).await.unwrap();
    push.connect_to(address_of(&full)).await.unwrap();
    soon("the first", push.ready()).await.unwrap();
    for number in 0..10u64 {
        push.send(number.to_string()).await.unwrap();
    }
    let other = keyed(Pull::builder()).bind(at.address()).await.unwrap();
    push.connect_to(address_of(&other)).await.unwrap();
    soon("both", push.ready_with(2)).await.unwrap();
    soon("disconnect", push.disconnect(address_of(&full))).await.unwrap();
    assert_eq!(numbers(&other, 9).await, (1..10).collect::<Vec<_>>());
    assert!(push.disconnect(address_of(&full)).await.is_err());
    push.send("10").await.unwrap();
    assert_eq!(numbers(&other, 1).await, [10]);
}

async fn events_end_with_the_socket(at: Place) {
    let pull = keyed(Pull::builder()).bind(at.address()).await.unwrap();
    let mut before = pull.events();
    pull.close().await;
    soon("the end of the events", async { while before.next().await.is_some() {} }).await;
    // Who asks later finds the end at once.
    assert!(soon("the end of no events", pull.events().next()).await.is_none());
}

/// Every kind of socket ends, linked or not.
#[test]
fn every_kind_of_socket_closes() {
    crate::common::run(async {
        let at = Place::new("tcp://127.0.0.1:0");
        let (req, rep) = at.link(keyed(Req::builder()), keyed(Rep::builder())).await;
        soon("both", async { tokio::join!(req.close(), rep.close()) }).await;
        let (publisher, sub) = (keyed(ropewalk::Pub::builder()).build(), keyed(Sub::builder()).build());
        soon("both", async { tokio::join!(publisher.close(), sub.close()) }).await;
        assert_eq!(soon("subscribers", publisher.subscribers("", 1)).await, Err(Closed));
    });
}
