//! What only QUIC has: a second stream for commands, streams that stall one by one, and one UDP socket for many links.

#![cfg(feature = "quic")]

mod common;

use std::time::Duration;

use common::{
    KEY, address_of, fill, keyed, misbehaved,
    raw::{Came, Raw, frame, hello, quic, stream},
    run, soon, tls, until,
};
use quinn::{Connection, Endpoint};
use ropewalk::{
    Misbehaved, Pull, Push, Role, Socket,
    patterns::{Pattern, extension::Credit, zmtp::Command},
};

const HERE: &str = "quic://127.0.0.1:0";

/// A peer that does QUIC and ZMTP by hand, with both streams.
struct Both {
    data: Raw,
    control: Raw,
    _connection: Connection,
}

/// Links with a socket, granting it this window. Its first command has gone the second way.
async fn both<P: Pattern>(socket: &Socket<P>, role: Role, window: (u64, u64)) -> Both {
    let at = address_of(socket);
    let connection = quic(at.split_once('@').unwrap().1).await;
    let mut data = Raw::over(stream(&connection).await);
    data.shake(role, hello(window.0, window.1)).await;
    let mut control = Raw::over(stream(&connection).await);
    control.tell(Command::Ping { ttl: 0, context: "first".into() }).await;
    assert_eq!(control.next().await, pong("first"));
    Both { data, control, _connection: connection }
}

fn pong(context: &'static str) -> Came {
    Came::Command(Command::Pong { context: context.into() })
}

#[test]
fn commands_pass_messages_that_are_not_read() {
    run(async {
        let push = keyed(Push::builder()).send_hwm(10).bind(HERE).await.unwrap();
        let mut peer = both(&push, Role::PULL, (100, 1 << 30)).await;
        // Far more than QUIC lets be under way in a stream that nobody reads.
        assert_eq!(fill(&push, 64 << 10), 110);
        until("the stream to be full", || push.stats().peers[0].sent > 0).await;
        peer.control.tell(Command::Ping { ttl: 0, context: "there?".into() }).await;
        assert_eq!(peer.control.next().await, pong("there?"));
        // Credit comes through, too, and is worth what it says.
        peer.control.tell(Command::Credit(Credit { taken: 0, messages: 105, bytes: 1 << 30 })).await;
        for _ in 0..105 {
            assert_eq!(peer.data.message().await.bytes(), 64 << 10);
        }
    });
}

#[test]
fn credit_comes_the_second_way() {
    run(async {
        let pull = keyed(Pull::builder()).recv_hwm(10).bind(HERE).await.unwrap();
        let mut peer = both(&pull, Role::PUSH, (10, 10_000)).await;
        let taking = tokio::spawn(async move {
            while let Ok(message) = pull.recv().await {
                assert_eq!(message, "message");
            }
        });
        for round in 1..=3 {
            for _ in 0..10 {
                peer.data.send(&[b"message"]).await;
            }
            let mut told = 10 * (round - 1);
            while told < 10 * round {
                let came = peer.control.next().await;
                let Came::Command(Command::Credit(credit)) = came else { panic!("{came:?}") };
                assert!(credit.taken > told, "credit comes in order");
                assert_eq!(credit.messages, credit.taken + 10);
                told = credit.taken;
            }
        }
        taking.abort();
    });
}

#[test]
fn only_commands_in_a_hurry_come_the_second_way() {
    run(async {
        let pull = keyed(Pull::builder()).bind(HERE).await.unwrap();
        let mut events = pull.events();
        let message = common::raw::frames(&[b"a message"]);
        let too_long = b"\x06\0\0\0\0\0\x01\0\x01";
        let limit = 64 << 10;
        let cases = [
            (&message[..], Misbehaved::OutOfPlace),
            (&frame(&Command::Subscribe("topic".into())), Misbehaved::OutOfPlace),
            (&too_long[..], Misbehaved::CommandTooLarge { limit }),
            (b"\x08\0", Misbehaved::BadFlags { flags: 8 }),
            (&frame(&Command::Credit(Credit { taken: 9, messages: 9, bytes: 9 })), Misbehaved::ImpossibleCount),
        ];
        for (bytes, expected) in cases {
            let mut peer = both(&pull, Role::PUSH, (10, 10_000)).await;
            peer.control.write(b"\x04\x08\x07UNKNOWN").await;
            peer.control.write(bytes).await;
            assert_eq!(misbehaved(&mut events).await, expected);
            peer.data.end().await;
        }
    });
}

/// Both sockets dial from one UDP socket; a link is a connection of its own all the same.
#[test]
fn a_peer_that_reads_nothing_holds_up_only_its_own_link() {
    run(async {
        let listener = Endpoint::server(tls::quic_server(&KEY), "127.0.0.1:0".parse().unwrap()).unwrap();
        let pull = keyed(Pull::builder()).bind(HERE).await.unwrap();
        let (large, small) = (keyed(Push::builder()).build(), keyed(Push::builder()).build());
        large.connect_to(format!("quic://{}@{}", KEY.id(), listener.local_addr().unwrap())).await.unwrap();
        small.connect_to(address_of(&pull)).await.unwrap();
        let connection = soon("a connection", listener.accept()).await.unwrap().await.unwrap();
        let (send, recv) = soon("a stream", connection.accept_bi()).await.unwrap();
        let mut deaf = Raw::over(Box::new(tokio::io::join(recv, send)));
        deaf.shake(Role::PULL, hello(100, 1 << 30)).await;
        fill(&large, 1 << 20);
        for number in 0..1_000_u32 {
            small.send(number.to_be_bytes().to_vec()).await.unwrap();
            assert_eq!(soon("a message", pull.recv()).await.unwrap().payload(), number.to_be_bytes());
        }
        assert_eq!(connection.remote_address(), {
            let from = pull.stats().peers[0].peer.address.clone();
            from.split_once("://").unwrap().1.parse().unwrap()
        });
        assert_eq!(deaf.message().await.bytes(), 1 << 20);
    });
}

/// A name may have addresses that nobody listens on: who comes later finds the one that answers as the first did.
#[test]
fn a_name_is_dialled_where_it_answers() {
    run(async {
        let pull = keyed(Pull::builder()).bind("quic://localhost:0").await.unwrap();
        let address = address_of(&pull).replace("127.0.0.1", "localhost");
        let mut others = Vec::new();
        for _ in 0..4 {
            let patient =
                keyed(Push::builder()).handshake_timeout(Duration::MAX).heartbeat(Duration::MAX, Duration::MAX);
            let push = patient.connect(&address).await.unwrap();
            push.send("here").await.unwrap();
            assert_eq!(soon("a message", pull.recv()).await.unwrap(), "here");
            others.push(push);
        }
    });
}
