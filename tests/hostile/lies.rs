//! Bytes that are wrong: each is named, and its sender let go.

use bytes::Bytes;
use ropewalk::{
    DownReason, Misbehaved, Pub, Push, Rep, Req, Role,
    patterns::{
        extension::{Credit, Gap, Goodbye},
        zmtp::{Command, Ready, greeting},
    },
};

use super::{ANYWHERE, Honest, listener, only_the_honest};
use crate::common::{
    Random, address_of, down, fill, misbehaved,
    raw::{Raw, frame, frames, hello},
    run, soon, stays, until,
};

fn ready(role: Role) -> Bytes {
    Ready { role, identity: Bytes::new(), hello: None }.encode()
}

fn joined(pieces: &[&[u8]]) -> Vec<u8> {
    pieces.concat()
}

#[test]
fn what_is_no_handshake_is_refused_by_name() {
    run(async {
        let (pull, mut events, honest) = listener().await;
        let greet = greeting();
        let mut curve = greet;
        curve[12..17].copy_from_slice(b"CURVE");
        let mut old = greet;
        old[10] = 2;
        let long_ready = joined(&[&greet, b"\x06\0\0\0\0\0\x01\0\0"]);
        let twice = b"\x05READY\x0bSocket-Type\0\0\0\x04PUSH\x0bSocket-Type\0\0\0\x04PUSH";
        let cases: Vec<(&str, Vec<u8>, Misbehaved)> = vec![
            ("HTTP", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(), Misbehaved::NotZmtp),
            ("TLS", b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03".to_vec(), Misbehaved::NotZmtp),
            ("SSH", b"SSH-2.0-OpenSSH_9.6\r\n".to_vec(), Misbehaved::NotZmtp),
            ("ZMTP 1.0", b"\xff\0\0\0\0\0\0\0\x01\0".to_vec(), Misbehaved::NotZmtp),
            ("ZMTP 2.0", old.to_vec(), Misbehaved::OldVersion { major: 2 }),
            ("CURVE", curve.to_vec(), Misbehaved::WrongMechanism { mechanism: "CURVE".into() }),
            ("a long READY", long_ready, Misbehaved::HandshakeTooLong { limit: 4096 }),
            ("a message", joined(&[&greet, b"\0\x05hello"]), Misbehaved::HandshakeExpected),
            ("a PING", joined(&[&greet, b"\x04\x07\x04PING\0\0"]), Misbehaved::HandshakeExpected),
            ("bad flags", joined(&[&greet, b"\x80\x05"]), Misbehaved::BadFlags { flags: 0x80 }),
            ("bad metadata", joined(&[&greet, b"\x04\x08\x05READY\x05a"]), Misbehaved::BadMetadata),
            ("a twin", joined(&[&greet, &[4, twice.len() as u8], twice]), Misbehaved::RepeatedProperty),
            ("an ERROR", joined(&[&greet, b"\x04\x0a\x05ERROR\x03no!"]), Misbehaved::Refused { reason: "no!".into() }),
            (
                "a wrong role",
                joined(&[&greet, &ready(Role::SUB)]),
                Misbehaved::WrongRole { ours: Role::PULL, theirs: Role::of_text("SUB") },
            ),
        ];
        for (name, bytes, expected) in cases {
            let mut raw = Raw::dial(&address_of(&pull)).await;
            raw.try_write(&bytes).await;
            assert_eq!(misbehaved(&mut events).await, expected, "{name}");
            raw.end().await;
        }
        honest.lost_nothing().await;
    });
}

trait OfText {
    fn of_text(text: &'static str) -> Role;
}

impl OfText for Role {
    fn of_text(text: &'static str) -> Role {
        Role::new(text)
    }
}

#[test]
fn what_is_wrong_in_traffic_is_refused_by_name() {
    run(async {
        let (pull, mut events, honest) = listener().await;
        let parts = [&b"x"[..]; 65];
        let goodbye = Goodbye { sent: 1 << 40, received: 1 << 40, taken: 1 << 40, answer: false };
        let cases: Vec<(&str, Vec<u8>, Misbehaved)> = vec![
            (
                "a giant length",
                b"\x02\x7f\xff\xff\xff\xff\xff\xff\xff".to_vec(),
                Misbehaved::MessageTooLarge { limit: 4 << 20 },
            ),
            ("a length of 5 GiB", b"\x02\0\0\0\x01\x40\0\0\0".to_vec(), Misbehaved::MessageTooLarge { limit: 4 << 20 }),
            ("a length beyond 2^63", b"\x02\xff\xff\xff\xff\xff\xff\xff\xff".to_vec(), Misbehaved::BadLength),
            ("endless parts", frames(&parts).to_vec(), Misbehaved::TooManyParts { limit: 64 }),
            ("flags that do not exist", b"\x08\0".to_vec(), Misbehaved::BadFlags { flags: 8 }),
            ("MORE on a command", b"\x05\x01\0".to_vec(), Misbehaved::BadFlags { flags: 5 }),
            (
                "an oversized command",
                b"\x06\0\0\0\0\0\x01\0\x01".to_vec(),
                Misbehaved::CommandTooLarge { limit: 64 << 10 },
            ),
            ("a command without a name", b"\x04\x01\0".to_vec(), Misbehaved::BadCommand),
            ("a PING without a ttl", b"\x04\x05\x04PING".to_vec(), Misbehaved::BadCommand),
            ("credit that does not parse", b"\x04\x0c\x0aROPECREDIT\xff".to_vec(), Misbehaved::BadCommand),
            (
                "credit for what was not sent",
                frame(&Command::Credit(Credit { taken: 5, messages: 10, bytes: 10_000 })).to_vec(),
                Misbehaved::ImpossibleCount,
            ),
            (
                "credit taken back",
                frame(&Command::Credit(Credit { taken: 0, messages: 9, bytes: 10_001 })).to_vec(),
                Misbehaved::CreditWentBack,
            ),
        ];
        for (name, bytes, expected) in cases {
            let (mut raw, _) = Raw::link(&address_of(&pull), Role::PUSH, hello(10, 10_000)).await;
            raw.try_write(&bytes).await;
            assert_eq!(misbehaved(&mut events).await, expected, "{name}");
            raw.end().await;
        }
        // A goodbye that counts wildly ends the link in order, and nothing else.
        let (mut raw, _) = Raw::link(&address_of(&pull), Role::PUSH, hello(10, 10_000)).await;
        raw.tell(Command::Goodbye(goodbye)).await;
        raw.end().await;
        only_the_honest(&pull).await;
        honest.lost_nothing().await;
    });
}

#[test]
fn more_than_there_is_credit_for_is_refused() {
    run(async {
        let pull = ropewalk::Pull::builder().recv_hwm(10).bind(ANYWHERE).await.unwrap();
        let mut events = pull.events();
        let (mut raw, theirs) = Raw::link(&address_of(&pull), Role::PUSH, hello(10, 10_000)).await;
        assert_eq!(theirs.hello.unwrap().window_messages, 10);
        for _ in 0..11 {
            raw.try_write(&frames(&[b"x"])).await;
        }
        assert_eq!(misbehaved(&mut events).await, Misbehaved::CreditExceeded);
        // In bytes too: one larger than the window only on an empty link.
        let pull = ropewalk::Pull::builder().recv_hwm_bytes(1000).bind(ANYWHERE).await.unwrap();
        let mut events = pull.events();
        let (mut raw, _) = Raw::link(&address_of(&pull), Role::PUSH, hello(10, 10_000)).await;
        raw.send(&[&[0; 5000]]).await;
        until("the large one", || pull.stats().received == 1).await;
        raw.send(&[b"x"]).await;
        assert_eq!(misbehaved(&mut events).await, Misbehaved::CreditExceeded);
    });
}

#[test]
fn a_receiver_that_lies_about_credit_is_refused() {
    run(async {
        let push = Push::builder().bind(ANYWHERE).await.unwrap();
        let mut events = push.events();
        for (credit, expected) in [
            (Credit { taken: 4, messages: 50, bytes: 50_000 }, Misbehaved::ImpossibleCount),
            (Credit { taken: u64::MAX, messages: u64::MAX, bytes: u64::MAX }, Misbehaved::ImpossibleCount),
            (Credit { taken: 1, messages: 9, bytes: 50_000 }, Misbehaved::CreditWentBack),
            (Credit { taken: 1, messages: 50, bytes: 9 }, Misbehaved::CreditWentBack),
        ] {
            let (mut raw, _) = Raw::link(&address_of(&push), Role::PULL, hello(10, 10_000)).await;
            soon("the peer", push.ready()).await.unwrap();
            for _ in 0..3 {
                push.send("x").await.unwrap();
                raw.message().await;
            }
            raw.tell(Command::Credit(credit)).await;
            assert_eq!(misbehaved(&mut events).await, expected);
            until("the peer to be gone", || push.stats().peers.is_empty()).await;
        }
        // A window without end is believed, and costs what the budget says.
        let push = Push::builder().send_budget(1 << 20).bind(ANYWHERE).await.unwrap();
        let (_raw, _) = Raw::link(&address_of(&push), Role::PULL, hello(u64::MAX, u64::MAX)).await;
        soon("the peer", push.ready()).await.unwrap();
        let mut sent = 0;
        until("the kernel and the budget to be full", || {
            let more = fill(&push, 10_000);
            sent += more;
            assert!(push.stats().send_queued <= 1 << 20);
            more == 0 && sent > 100
        })
        .await;
        stays("bounded", || push.stats().send_queued <= 1 << 20).await;
    });
}

#[test]
fn what_comes_from_the_wrong_side_is_refused() {
    run(async {
        let push = Push::bind(ANYWHERE).await.unwrap();
        let mut events = push.events();
        let (mut raw, _) = Raw::link(&address_of(&push), Role::PULL, None).await;
        raw.send(&[b"from a PULL"]).await;
        assert_eq!(misbehaved(&mut events).await, Misbehaved::UnexpectedMessage);
        // Answers nobody asked for, refusals of nothing, answers without an envelope: all go nowhere.
        let req = Req::bind(ANYWHERE).await.unwrap();
        let (mut raw, _) = Raw::link(&address_of(&req), Role::REP, hello(10, 10_000)).await;
        for parts in [&[&b"\0\0\0\x07"[..], b"", b"x"][..], &[b"x"], &[b"", b""], &[b"\0\0\0\x07"]] {
            raw.send(parts).await;
        }
        raw.write(b"\x04\x12\x0bROPEREFUSAL\0\x04\0\0\0\x07").await;
        let (answer, ()) = tokio::join!(async { req.request("ok?").await }, async {
            let asked = raw.message().await;
            let id = asked.part(0).unwrap().to_vec();
            raw.send(&[&id, b"", b"ok"]).await;
        });
        assert_eq!(answer.unwrap(), "ok");
    });
}

#[test]
fn random_and_truncated_bytes_do_no_harm() {
    run(async {
        let (pull, _, honest) = listener().await;
        let mut random = Random::new(99);
        let good = joined(&[
            &greeting(),
            &Ready { role: Role::PUSH, identity: Bytes::new(), hello: hello(10, 10_000) }.encode(),
            &frames(&[b"a", b"b"]),
            &frame(&Command::Ping { ttl: 0, context: Bytes::from_static(b"x") }),
            &frame(&Command::Gap(Gap { missed: u64::MAX })),
            &frame(&Command::Gap(Gap { missed: u64::MAX })),
            &frames(&[&[7; 3000]]),
        ]);
        for round in 0..400 {
            let mut bytes = match round % 3 {
                // Cut off anywhere.
                0 => good[..random.below(good.len() as u64) as usize].to_vec(),
                // A bit that fell over, behind the greeting.
                1 => {
                    let mut bytes = good.clone();
                    bytes[64 + random.below(good.len() as u64 - 64) as usize] ^= 1 << random.below(8);
                    bytes
                }
                _ => (0..random.below(300)).map(|_| random.next() as u8).collect(),
            };
            if round % 6 == 5 {
                bytes = joined(&[&good[..64 + 40], &bytes]);
            }
            let mut raw = Raw::dial(&address_of(&pull)).await;
            raw.try_write(&bytes).await;
        }
        only_the_honest(&pull).await;
        honest.lost_nothing().await;
    });
}

#[test]
fn unknown_commands_are_passed_over() {
    run(async {
        let (pull, mut events, honest) = listener().await;
        let (mut raw, _) = Raw::link(&address_of(&pull), Role::PUSH, hello(10, 10_000)).await;
        for _ in 0..1000 {
            raw.write(b"\x04\x0c\x0bROPEFUTUREs\x04\x05\x04JOIN").await;
        }
        raw.tell(Command::Ping { ttl: 0, context: Bytes::from_static(b"still here") }).await;
        loop {
            match raw.next().await {
                crate::common::raw::Came::Command(Command::Pong { context }) => {
                    assert_eq!(context, "still here");
                    break;
                }
                crate::common::raw::Came::End => panic!("let go"),
                _ => {}
            }
        }
        drop(raw);
        let (reason, _) = down(&mut events).await;
        assert!(matches!(reason, DownReason::Ended | DownReason::Io(_)), "{reason}");
        honest.lost_nothing().await;
    });
}

/// Beside the honest REQ another asks with envelopes that are as large as a message may be, and reads nothing. What it
/// would be told of its requests is bounded by its bytes, not only by its number.
#[test]
fn refusals_to_one_who_does_not_read_are_bounded() {
    run(async {
        let rep = Rep::bind(ANYWHERE).await.unwrap();
        let mut events = rep.events();
        let (mut raw, _) = Raw::link(&address_of(&rep), Role::REQ, None).await;
        let (mut bad, _) = Raw::link(&address_of(&rep), Role::REQ, hello(10, 10_000)).await;
        until("a window for several", || rep.stats().recv_reserved > 4 << 20).await;
        let question = frames(&[&vec![1; 1 << 20], b"", b"x"]);
        bad.try_write(&question).await;
        drop(soon("the question", rep.recv()).await.unwrap());
        let (reason, _) = down(&mut events).await;
        assert!(matches!(reason, DownReason::ControlOverflow), "{reason}");
        raw.send(&[b"", b"honest"]).await;
        let request = soon("the honest request", rep.recv()).await.unwrap();
        request.reply("answer").await.unwrap();
        assert_eq!(raw.message().await.payload(), b"answer");
    });
}

#[test]
fn a_publisher_refuses_topics_beyond_the_limits() {
    run(async {
        let publisher = Pub::bind(ANYWHERE).await.unwrap();
        let mut events = publisher.events();
        let (mut raw, _) = Raw::link(&address_of(&publisher), Role::SUB, None).await;
        raw.tell(Command::Subscribe(vec![b't'; 1025].into())).await;
        assert_eq!(misbehaved(&mut events).await, Misbehaved::TopicTooLong { limit: 1024 });
        let (mut raw, _) = Raw::link(&address_of(&publisher), Role::SUB, None).await;
        for number in 0..300u32 {
            let topic = format!("{number:01000}");
            if !raw.try_write(&frame(&Command::Subscribe(topic.into()))).await {
                break;
            }
        }
        assert_eq!(misbehaved(&mut events).await, Misbehaved::TooManySubscribedBytes { limit: 256 << 10 });
        until("the peers to be gone", || publisher.stats().peers.is_empty()).await;
        assert_eq!(publisher.subscriber_count("000"), 0);
    });
}

/// The honest peer that all this stands beside.
#[test]
fn the_honest_peer_alone_loses_nothing() {
    run(async {
        let pull = ropewalk::Pull::bind(ANYWHERE).await.unwrap();
        let honest = Honest::beside(&pull).await;
        until("some messages", || pull.stats().received > 50).await;
        honest.lost_nothing().await;
    });
}
