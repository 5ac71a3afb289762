//! No queue grows with what a peer does, also not over many links.

use std::time::Duration;

use ropewalk::{Overflow, Pub, Pull, Push, Role, Stats, Sub};

use crate::{
    common::{LONG, Place, address_of, fill, keyed, rest, soon, stays, until},
    over_every_transport,
};

over_every_transport! {
    a_thousand_links_that_fill_their_window_stay_in_the_budget,
    a_thousand_peers_share_the_receive_budget,
    a_thousand_peers_share_the_send_budget,
    a_publisher_stays_in_its_send_budget,
    a_link_that_begins_without_credit_gets_some_later,
    large_lone_messages_stay_in_the_receive_budget,
    what_is_dropped_takes_no_room,
}

const KIB: u64 = 1 << 10;

async fn a_thousand_links_that_fill_their_window_stay_in_the_budget(at: Place) {
    let budget = 64 * KIB;
    let pull = keyed(Pull::builder()).recv_hwm(10).recv_budget(budget).bind(at.address()).await.unwrap();
    let (address, mut links, mut accepted) = (address_of(&pull), 0, 0);
    while links < 1000 {
        let push = keyed(Push::builder()).send_hwm(10).linger(Duration::ZERO).connect(&address).await.unwrap();
        soon("a link", push.ready()).await.unwrap();
        links += 1;
        fill(&push, 100);
        until("all that has credit to be written", || {
            push.stats().peers.first().is_some_and(|peer| peer.queued == peer.without_credit)
        })
        .await;
        let report = soon("the end of a link", push.close()).await;
        accepted += report.delivered + report.in_doubt;
        let stats = pull.stats();
        assert!(stats.recv_reserved <= budget, "{stats:?}");
        assert!(stats.received * 164 <= budget, "{stats:?}");
    }
    // The last may come to be linked here only when they are gone over there.
    let mut taken = 0;
    until("all to be gone, and taken", || {
        taken += std::iter::from_fn(|| pull.try_recv().ok()).count() as u64;
        let stats = pull.stats();
        stats.peers.is_empty() && stats.received == taken && stats.recv_reserved == 0
    })
    .await;
    assert!(taken >= 100 && taken <= accepted, "{accepted} accepted, {taken} taken");
}

/// About a thousand. Handshakes of QUIC take long where others use the processor, too.
fn so_many(at: &Place) -> usize {
    if at.is("inproc") {
        1000
    } else if at.is("quic") {
        200
    } else {
        500
    }
}

async fn a_thousand_peers_share_the_receive_budget(at: Place) {
    let (budget, peers, each) = (256 * KIB, so_many(&at), 20);
    // One that is evicted or late in its handshake may have sent already, and says so; here nobody is to be.
    let pull = keyed(Pull::builder()).recv_budget(budget).max_handshakes(peers, peers);
    let pull = pull.handshake_timeout(LONG).bind(at.address()).await.unwrap();
    let address = address_of(&pull);
    let within = |stats: &Stats| {
        assert!(stats.recv_reserved <= budget, "{} reserved of {budget}", stats.recv_reserved);
        let held: u64 = stats.peers.iter().map(|peer| peer.inbox.bytes).sum();
        assert!(held <= stats.recv_reserved);
    };
    let mut sending = tokio::task::JoinSet::new();
    for _ in 0..peers {
        let push = keyed(Push::builder()).linger(LONG).handshake_timeout(LONG).connect(&address).await.unwrap();
        sending.spawn(async move {
            for _ in 0..each {
                push.send(&[b'x'; 400]).await.unwrap();
            }
            soon("the end of a sender", push.close()).await
        });
    }
    for taken in 0..peers as u64 * each {
        let message = tokio::time::timeout(LONG, pull.recv()).await;
        assert!(message.is_ok(), "no message after {taken}: {:?}", pull.stats());
        if taken % 50 == 0 {
            within(&pull.stats());
        }
    }
    while let Some(report) = soon("a sender", sending.join_next()).await {
        assert_eq!(report.unwrap().delivered, each);
    }
    within(&pull.stats());
}

async fn a_thousand_peers_share_the_send_budget(at: Place) {
    let (budget, peers) = (256 * KIB, so_many(&at));
    let push = keyed(Push::builder()).send_budget(budget).bind(at.address()).await.unwrap();
    let address = address_of(&push);
    let mut pulls = Vec::new();
    for _ in 0..peers {
        pulls.push(keyed(Pull::builder()).recv_hwm(1).connect(&address).await.unwrap());
    }
    soon("all peers", push.ready_with(peers)).await.unwrap();
    let mut sent = 0;
    // Everybody has a first message, for which there is credit, before anybody has a second, which fills the budget.
    until("the budget to be full", || {
        sent += fill(&push, 1000);
        let queued = push.stats().send_queued;
        assert!(queued <= budget, "{queued} queued of {budget}");
        sent > peers as u64 && queued > budget - 1064
    })
    .await;
    for _ in 0..sent {
        let all = pulls.iter().map(|pull| Box::pin(pull.recv()));
        soon("a message", futures::future::select_all(all)).await.0.unwrap();
        if push.stats().send_queued == 0 {
            break;
        }
    }
}

/// What one subscriber was promised another is not: a message for all of them never goes over the budget.
async fn a_publisher_stays_in_its_send_budget(at: Place) {
    for overflow in [Overflow::Block, Overflow::DropNewest, Overflow::DropOldest] {
        let (budget, peers) = (10 * KIB, 16);
        let publisher = keyed(Pub::builder())
            .overflow(overflow)
            .send_budget(budget)
            .linger(Duration::ZERO)
            .bind(at.address())
            .await
            .unwrap();
        let address = address_of(&publisher);
        let mut subscribers = Vec::new();
        for _ in 0..peers {
            let subscriber = keyed(Sub::builder()).recv_hwm(1).connect(&address).await.unwrap();
            subscriber.subscribe("").await.unwrap();
            subscribers.push(subscriber);
        }
        soon("the subscribers", publisher.subscribers("", peers)).await.unwrap();
        let mut published = 0;
        until("subscribers to be full", || {
            published += u64::from(publisher.try_publish("", vec![b'x'; 36]).is_ok());
            let stats = publisher.stats();
            // An empty socket may give one message to all.
            assert!(stats.send_queued <= budget.max(peers as u64 * 100), "{overflow:?}: {stats:?}");
            published > 1 && (stats.dropped > 0 || (overflow == Overflow::Block && stats.send_queued > budget / 2))
        })
        .await;
        publisher.close().await;
    }
}

async fn a_link_that_begins_without_credit_gets_some_later(at: Place) {
    let pull = keyed(Pull::builder()).recv_budget(4 * KIB).recv_hwm_bytes(4 * KIB).bind(at.address()).await.unwrap();
    let address = address_of(&pull);
    let first = keyed(Push::builder()).connect(&address).await.unwrap();
    soon("the first", first.ready()).await.unwrap();
    first.send(&[0; 4000]).await.unwrap();
    until("the first message to arrive", || pull.stats().received == 1).await;
    let second = keyed(Push::builder()).connect(&address).await.unwrap();
    soon("the second", second.ready()).await.unwrap();
    second.send("second").await.unwrap();
    stays("no credit for the second", || pull.stats().received == 1 && pull.stats().recv_reserved <= 4 * KIB).await;
    assert_eq!(soon("the first message", pull.recv()).await.unwrap().bytes(), 4000);
    soon("the end of the first", first.close()).await;
    assert_eq!(soon("the second message", pull.recv()).await.unwrap(), "second");
}

/// Many peers with small windows, each with one message that is larger than all there is for them.
async fn large_lone_messages_stay_in_the_receive_budget(at: Place) {
    let (budget, peers) = (256 * KIB, 50);
    let pull = keyed(Pull::builder()).recv_budget(budget).bind(at.address()).await.unwrap();
    let address = address_of(&pull);
    let mut pushes = Vec::new();
    for _ in 0..peers {
        let push = keyed(Push::builder()).connect(&address).await.unwrap();
        push.send(vec![b'x'; 60_000]).await.unwrap();
        pushes.push(push);
    }
    soon("all peers", pull.ready_with(peers)).await.unwrap();
    until("as many as there is room for", || {
        let stats = pull.stats();
        assert!(stats.recv_reserved <= budget, "{} reserved of {budget}", stats.recv_reserved);
        stats.received > 0
    })
    .await;
    for taken in 0..peers {
        let message = soon(format!("message {taken}"), pull.recv()).await.unwrap();
        assert_eq!(message.bytes(), 60_000);
        let reserved = pull.stats().recv_reserved;
        assert!(reserved <= budget, "{reserved} reserved of {budget}");
    }
}

/// A subscriber that takes nothing while a hundred thousand messages are dropped for it costs what the bounds say.
async fn what_is_dropped_takes_no_room(at: Place) {
    for overflow in [Overflow::DropOldest, Overflow::DropNewest] {
        let publisher = keyed(Pub::builder()).overflow(overflow).send_hwm(10).bind(at.address()).await.unwrap();
        let sub = keyed(Sub::builder()).recv_hwm(10).connect(address_of(&publisher)).await.unwrap();
        sub.subscribe("").await.unwrap();
        soon("the subscriber", publisher.subscribers("", 1)).await.unwrap();
        let published = 100_000;
        for number in 0..published {
            publisher.try_publish("t", number.to_string()).unwrap();
        }
        let stats = publisher.stats();
        assert!(stats.peers[0].queued.messages <= 20, "{stats:?}");
        let (mut received, mut lagged, mut gaps) = (0, 0, 0);
        while received + lagged < published {
            match soon(format!("the rest behind {received} + {lagged}"), sub.recv()).await {
                Ok(_) => received += 1,
                Err(ropewalk::SubRecvError::Lagged(missed)) => {
                    lagged += missed;
                    gaps += 1;
                }
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(received + lagged, published);
        assert!(gaps <= 30, "{gaps} gaps for {received} messages");
        assert_eq!(publisher.stats().peers[0].peer.role, Role::SUB);
    }
}

/// A listener is not kept busy by those who are gone: their messages are still there, and taken in the end.
#[test]
fn messages_of_those_who_are_gone_are_taken() {
    crate::common::run(async {
        let at = Place::new("tcp://127.0.0.1:0");
        let pull = keyed(Pull::builder()).bind(at.address()).await.unwrap();
        for number in 0..50u64 {
            let push = keyed(Push::builder()).connect(address_of(&pull)).await.unwrap();
            push.send(number.to_string()).await.unwrap();
            assert!(soon("the end", push.close()).await.all_delivered());
        }
        until("all to be gone", || pull.stats().peers.is_empty()).await;
        let taken = rest(&pull).await;
        assert_eq!(taken.len(), 50);
        assert_eq!(pull.stats().recv_reserved, 0);
    });
}
