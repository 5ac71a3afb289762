//! More of everything than there may be.

use std::time::Duration;

use bytes::Bytes;
use ropewalk::{
    DownReason, Event, Misbehaved, Pub, Pull, Role, Sub,
    patterns::{
        extension::Gap,
        zmtp::{Command, greeting},
    },
};
use tokio::{io::AsyncWriteExt, net::TcpStream};

use super::{ANYWHERE, Honest, listener, only_the_honest};
use crate::common::{
    address_of, event, memory, misbehaved,
    raw::{Raw, frame, frames, hello},
    run, soon, until,
};

#[test]
fn a_greeting_byte_by_byte_ends_with_the_handshake_timeout() {
    run(async {
        let pull = Pull::builder().handshake_timeout(Duration::from_millis(100)).bind(ANYWHERE).await.unwrap();
        let honest = Honest::beside(&pull).await;
        let mut events = pull.events();
        let mut raw = Raw::dial(&address_of(&pull)).await;
        let dripping = tokio::spawn(async move {
            for byte in greeting() {
                if !raw.try_write(&[byte]).await {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            raw.end().await;
        });
        event(&mut events, "that the handshake took too long", |event| match event {
            Event::HandshakeFailed { reason: DownReason::HandshakeTimeout, .. } => Some(()),
            _ => None,
        })
        .await;
        soon("the stream to end", dripping).await.unwrap();
        honest.lost_nothing().await;
    });
}

/// Ten thousand connections that say nothing, in waves: each new one beyond the cap ends the oldest.
#[test]
fn half_open_connections_make_room_for_new_ones() {
    run(async {
        let _alone = super::MEASURING.lock().await;
        let (wave, cap) = (500, 100);
        let pull = Pull::builder()
            .max_handshakes(cap, cap)
            .handshake_timeout(Duration::from_secs(60))
            .event_capacity(20_000)
            .bind(ANYWHERE)
            .await
            .unwrap();
        let honest = Honest::beside(&pull).await;
        let mut events = pull.events();
        let address = address_of(&pull);
        let at = address.strip_prefix("tcp://").unwrap();
        let (mut evicted, before) = (0, memory());
        for number in 0..20 {
            let mut held = Vec::new();
            for _ in 0..wave {
                let mut stream = soon("a connection", TcpStream::connect(at)).await.unwrap();
                let _ended = stream.write_all(&greeting()[..10]).await;
                held.push(stream);
            }
            let least = if number == 0 { wave - cap } else { wave };
            for _ in 0..least {
                event(&mut events, "that one made room", |event| match event {
                    Event::HandshakeFailed { reason: DownReason::TooManyHandshakes, .. } => Some(()),
                    Event::HandshakeFailed { .. } => Some(()),
                    _ => None,
                })
                .await;
                evicted += 1;
            }
        }
        assert!(evicted >= 20 * wave - cap);
        assert!(memory() < before + (64 << 20), "{} of {before}", memory());
        // Somebody new still gets in.
        let push = ropewalk::Push::connect(&address).await.unwrap();
        soon("a newcomer", push.ready()).await.unwrap();
        push.close().await;
        honest.lost_nothing().await;
    });
}

#[test]
fn more_peers_than_may_be_are_refused() {
    run(async {
        let pull = Pull::builder().max_peers(3).bind(ANYWHERE).await.unwrap();
        let mut events = pull.events();
        let mut raws = Vec::new();
        for _ in 0..3 {
            raws.push(Raw::link(&address_of(&pull), Role::PUSH, None).await);
        }
        soon("three", pull.ready_with(3)).await.unwrap();
        let mut fourth = Raw::dial(&address_of(&pull)).await;
        fourth.try_write(&greeting()).await;
        fourth.try_write(b"\x04\x1a\x05READY\x0bSocket-Type\0\0\0\x04PUSH").await;
        event(&mut events, "that there are too many", |event| match event {
            Event::HandshakeFailed { reason: DownReason::TooManyPeers, .. } => Some(()),
            _ => None,
        })
        .await;
        raws.pop();
        until("room", || pull.stats().peers.len() == 2).await;
        let (_raw, _) = Raw::link(&address_of(&pull), Role::PUSH, None).await;
        soon("three again", pull.ready_with(3)).await.unwrap();
    });
}

#[test]
fn a_million_subscriptions_are_too_many() {
    run(async {
        let _alone = super::MEASURING.lock().await;
        let publisher = Pub::bind(ANYWHERE).await.unwrap();
        let mut events = publisher.events();
        let honest = Sub::connect(address_of(&publisher)).await.unwrap();
        honest.subscribe("honest").await.unwrap();
        soon("the honest subscriber", publisher.subscribers("honest", 1)).await.unwrap();
        let before = memory();
        // One by one, the same again and again, and in the manner of ZMTP 3.0.
        for manner in 0..3 {
            let (mut raw, _) = Raw::link(&address_of(&publisher), Role::SUB, None).await;
            let (mut told, batch) = (0u32, 1000);
            while told < 1_000_000 {
                let mut bytes = Vec::new();
                for number in told..told + batch {
                    let topic = if manner == 1 { "same".to_owned() } else { number.to_string() };
                    if manner == 2 {
                        bytes.extend_from_slice(&frames(&[&[b"\x01", topic.as_bytes()].concat()]));
                    } else {
                        bytes.extend_from_slice(&frame(&Command::Subscribe(topic.into())));
                    }
                }
                if !raw.try_write(&bytes).await {
                    break;
                }
                told += batch;
            }
            if manner == 1 {
                assert_eq!(told, 1_000_000);
                soon("the one subscription", publisher.subscribers("same", 1)).await.unwrap();
                drop(raw);
            } else {
                assert_eq!(misbehaved(&mut events).await, Misbehaved::TooManySubscriptions { limit: 4096 });
            }
            until("only the honest one", || publisher.stats().peers.len() == 1).await;
            assert_eq!(publisher.subscriber_count("1"), 0);
        }
        assert!(memory() < before + (32 << 20), "{} of {before}", memory());
        publisher.publish("honest", "x").await.unwrap();
        assert_eq!(soon("the message", honest.recv()).await.unwrap().text(), Ok("x"));
    });
}

#[test]
fn pings_whose_answers_nobody_reads_cost_nothing() {
    run(async {
        let _alone = super::MEASURING.lock().await;
        let (pull, _, honest) = listener().await;
        let before = memory();
        let mut stream = TcpStream::connect(address_of(&pull).strip_prefix("tcp://").unwrap()).await.unwrap();
        let ready = b"\x04\x1a\x05READY\x0bSocket-Type\0\0\0\x04PUSH";
        let ping = frame(&Command::Ping { ttl: 0, context: Bytes::from_static(&[7; 16]) });
        stream.write_all(&greeting()).await.unwrap();
        stream.write_all(ready).await.unwrap();
        let flood = ping.repeat(1000);
        for _ in 0..1000 {
            soon("the listener to read", stream.write_all(&flood)).await.unwrap();
        }
        assert!(memory() < before + (32 << 20), "{} of {before}", memory());
        drop(stream);
        only_the_honest(&pull).await;
        honest.lost_nothing().await;
    });
}

/// Gaps take no credit; a million of them must not take memory either.
#[test]
fn gaps_without_end_are_added_up() {
    run(async {
        let _alone = super::MEASURING.lock().await;
        let publisher = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let sub = Sub::connect(format!("tcp://{}", publisher.local_addr().unwrap())).await.unwrap();
        sub.subscribe("").await.unwrap();
        let mut raw = Raw::accept(&publisher).await;
        raw.shake(Role::PUB, hello(10, 10_000)).await;
        let before = memory();
        let flood = frame(&Command::Gap(Gap { missed: 3 })).repeat(1000);
        for _ in 0..1000 {
            raw.write(&flood).await;
        }
        raw.send(&[b"t", b"behind"]).await;
        until("the message behind", || sub.stats().received == 1).await;
        assert!(memory() < before + (16 << 20), "{} of {before}", memory());
        assert_eq!(soon("the gap", sub.recv()).await, Err(ropewalk::SubRecvError::Lagged(3_000_000)));
        assert_eq!(soon("the message", sub.recv()).await.unwrap().text(), Ok("behind"));
    });
}

/// Many who send as much as they may and whose messages nobody takes: no more is held than the budget.
#[test]
fn plain_peers_that_send_without_end_fill_the_budget_and_no_more() {
    run(async {
        let _alone = super::MEASURING.lock().await;
        let budget = 4 << 20;
        let pull = Pull::builder().recv_budget(budget).recv_hwm_bytes(1 << 20).bind(ANYWHERE).await.unwrap();
        let address = address_of(&pull);
        let before = memory();
        let mut flooding = tokio::task::JoinSet::new();
        for peer in 0..20 {
            let (mut raw, _) = Raw::link(&address, Role::PUSH, None).await;
            flooding.spawn(async move {
                // Large and small ones, and one that never becomes whole.
                let bytes = frames(&[&vec![b'x'; if peer % 2 == 0 { 100 } else { 300_000 }]]);
                for _ in 0..(2 << 20) / bytes.len() {
                    if tokio::time::timeout(Duration::from_millis(200), raw.try_write(&bytes)).await.is_err() {
                        break;
                    }
                }
                raw
            });
        }
        let mut raws = Vec::new();
        while let Some(raw) = soon("a flood to stop", flooding.join_next()).await {
            raws.push(raw.unwrap());
            let stats = pull.stats();
            assert!(stats.recv_reserved <= budget, "{} reserved", stats.recv_reserved);
        }
        assert!(memory() < before + (64 << 20), "{} of {before}", memory());
        // The rest comes as it is taken.
        let mut taken = 0;
        while let Ok(message) = tokio::time::timeout(Duration::from_millis(300), pull.recv()).await {
            message.unwrap();
            taken += 1;
            assert!(pull.stats().recv_reserved <= budget);
        }
        assert!(taken > 1000, "{taken} taken");
    });
}

/// Each begins a large message of several parts while the budget has no room for all of them: those that were let begin
/// are let end, and then the others.
#[test]
fn halves_of_large_messages_do_not_wait_for_each_other() {
    run(async {
        const HALF: usize = 100 << 10;
        let pull = Pull::builder().recv_budget(512 << 10).max_message(250 << 10).bind(ANYWHERE).await.unwrap();
        let both = frames(&[&[1; HALF], &[2; HALF]]);
        let mut raws = Vec::new();
        for _ in 0..8 {
            let (mut raw, _) = Raw::link(&address_of(&pull), Role::PUSH, None).await;
            raw.write(&both[..both.len() / 2]).await;
            raws.push(raw);
        }
        until("the budget to be taken", || pull.stats().recv_reserved > 480 << 10).await;
        for raw in &mut raws {
            raw.write(&both[both.len() / 2..]).await;
        }
        for _ in 0..raws.len() {
            let message = soon("a message", pull.recv()).await.unwrap();
            assert_eq!((message.len(), message.bytes()), (2, 2 * HALF as u64));
            assert!(pull.stats().recv_reserved <= 512 << 10);
        }
    });
}

/// What came in a large buffer and is small does not keep the buffer, nor do those who come, send a little and go.
#[test]
fn small_messages_among_noise_take_no_more_than_they_cost() {
    run(async {
        let _alone = super::MEASURING.lock().await;
        let pull = Pull::builder().recv_budget(8 << 20).bind(ANYWHERE).await.unwrap();
        let address = address_of(&pull);
        let mut noise = b"\x06\0\0\0\0\0\0\xea\x66\x05NOISE".to_vec();
        noise.resize(9 + 0xea66, b'x');
        let before = memory();
        let (mut raw, _) = Raw::link(&address, Role::PUSH, hello(0, 0)).await;
        for _ in 0..500 {
            for _ in 0..4 {
                raw.write(&noise).await;
            }
            raw.send(&[b"x"]).await;
        }
        until("all to be there", || pull.stats().received == 500).await;
        assert!(memory() < before + (32 << 20), "{} of {before}", memory());
        for _ in 0..500 {
            soon("a message", pull.recv()).await.unwrap();
        }
        drop(raw);
    });
}

/// Peers that come, leave word of a gap or a message, and go, are not remembered without end.
#[test]
fn those_who_come_and_go_leave_no_more_than_the_budget() {
    run(async {
        let push = ropewalk::Push::bind(ANYWHERE).await.unwrap();
        let budget = 64 << 10;
        let pull = Pull::builder().recv_budget(budget).bind(ANYWHERE).await.unwrap();
        for _ in 0..300 {
            for (socket, role) in [(address_of(&push), Role::PULL), (address_of(&pull), Role::PUSH)] {
                let (mut raw, _) = Raw::link(&socket, role.clone(), hello(10, 1000)).await;
                raw.tell(Command::Gap(Gap { missed: 1 })).await;
                if role == Role::PUSH {
                    raw.try_write(&frames(&[b"x"])).await;
                }
            }
        }
        until("all to be gone", || push.stats().peers.is_empty() && pull.stats().peers.is_empty()).await;
        assert_eq!(push.stats().recv_reserved, 0);
        let stats = pull.stats();
        assert!(stats.recv_reserved <= budget && stats.received <= budget / 1024 + 1, "{stats:?}");
        let mut taken = 0;
        while pull.try_recv().is_ok() {
            taken += 1;
        }
        assert_eq!((taken, pull.stats().recv_reserved), (stats.received, 0));
    });
}
