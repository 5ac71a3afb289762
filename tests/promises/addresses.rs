//! Where sockets listen and dial.

use std::{
    io::ErrorKind,
    net::{SocketAddr, TcpListener},
    os::unix::{fs::PermissionsExt, net::UnixListener},
    time::Duration,
};

use ropewalk::{AddressError, BindError, ConnectError, Event, Pull, Push};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::{
    common::{Place, address_of, event, keyed, numbers, run, soon, until},
    over_every_transport,
};

over_every_transport! {
    an_address_in_use_is_refused_and_free_afterwards,
    one_socket_on_many_addresses,
    the_dialler_comes_back_when_the_listener_does,
    either_side_may_bind_and_either_may_come_first,
}

async fn an_address_in_use_is_refused_and_free_afterwards(at: Place) {
    let first = keyed(Pull::builder()).bind(at.address()).await.unwrap();
    let address = address_of(&first);
    for _ in 0..3 {
        let refused = keyed(Pull::builder()).bind(&address).await;
        assert!(matches!(&refused, Err(BindError::InUse { address: named }) if *named == address), "{refused:?}");
    }
    // The one that listens was not disturbed.
    let push = keyed(Push::builder()).connect(&address).await.unwrap();
    push.send("1").await.unwrap();
    assert_eq!(numbers(&first, 1).await, [1]);
    first.close().await;
    let second = keyed(Pull::builder()).bind(&address).await.unwrap();
    assert_eq!(address_of(&second), address);
}

async fn one_socket_on_many_addresses(at: Place) {
    let pull = keyed(Pull::builder()).bind(at.address()).await.unwrap();
    let second = pull.bind_to("inproc://one-more-of-many".to_owned() + &at.address()).await.unwrap();
    let third = pull.bind_to("tcp://127.0.0.1:0").await.unwrap();
    let push = keyed(Push::builder()).bind("tcp://127.0.0.1:0").await.unwrap();
    pull.connect_to(address_of(&push)).await.unwrap();
    push.send("0").await.unwrap();
    for (number, address) in [address_of(&pull), second.to_string(), third.to_string()].iter().enumerate() {
        let push = keyed(Push::builder()).connect(address).await.unwrap();
        push.send((number + 1).to_string()).await.unwrap();
        push.close().await;
    }
    let mut got = numbers(&pull, 4).await;
    got.sort_unstable();
    assert_eq!(got, [0, 1, 2, 3]);
    assert_eq!(pull.endpoints().len(), 4);
}

async fn the_dialler_comes_back_when_the_listener_does(at: Place) {
    let mut pull = keyed(Pull::builder()).bind(at.address()).await.unwrap();
    let address = address_of(&pull);
    let push =
        keyed(Push::builder()).reconnect(Duration::ZERO, Duration::from_millis(20)).connect(&address).await.unwrap();
    for round in 0..20u64 {
        push.send(round.to_string()).await.unwrap();
        assert_eq!(numbers(&pull, 1).await, [round]);
        pull.close().await;
        pull = keyed(Pull::builder()).bind(&address).await.unwrap();
    }
}

async fn either_side_may_bind_and_either_may_come_first(at: Place) {
    for push_binds in [true, false] {
        for binds_first in [true, false] {
            let free = keyed(Pull::builder()).bind(at.address()).await.unwrap();
            let address = address_of(&free);
            free.close().await;
            let push = keyed(Push::builder()).reconnect(Duration::ZERO, Duration::from_millis(20)).build();
            let pull = keyed(Pull::builder()).reconnect(Duration::ZERO, Duration::from_millis(20)).build();
            for step in [binds_first, !binds_first] {
                match (push_binds, step) {
                    (true, true) => drop(push.bind_to(&address).await.unwrap()),
                    (true, false) => pull.connect_to(&address).await.unwrap(),
                    (false, true) => drop(pull.bind_to(&address).await.unwrap()),
                    (false, false) => push.connect_to(&address).await.unwrap(),
                }
            }
            soon("a send", push.send("1")).await.unwrap();
            assert_eq!(numbers(&pull, 1).await, [1]);
            push.close().await;
            pull.close().await;
        }
    }
}

async fn talk(bind: &str, dial: impl Fn(u16) -> String) {
    let pull = keyed(Pull::builder()).danger_plaintext().bind(bind).await.unwrap();
    let port: u16 = address_of(&pull).rsplit_once(':').unwrap().1.parse().unwrap();
    assert_ne!(port, 0, "the real port is told");
    let push = keyed(Push::builder()).connect(dial(port)).await.unwrap();
    push.send("1").await.unwrap();
    assert_eq!(numbers(&pull, 1).await, [1]);
}

#[test]
fn port_0_and_localhost_and_all_interfaces() {
    run(async {
        talk("tcp://127.0.0.1:0", |port| format!("tcp://127.0.0.1:{port}")).await;
        talk("tcp://localhost:0", |port| format!("tcp://localhost:{port}")).await;
        talk("tcp://*:0", |port| format!("tcp://127.0.0.1:{port}")).await;
        talk("tcp://0.0.0.0:0", |port| format!("tcp://localhost:{port}")).await;
    });
}

#[test]
fn ipv6() {
    if TcpListener::bind("[::1]:0").is_err() {
        println!("skipped: this machine has no ::1");
        return;
    }
    run(async {
        talk("tcp://[::1]:0", |port| format!("tcp://[::1]:{port}")).await;
        talk("tcp://[::1]:0", |port| format!("tcp://localhost:{port}")).await;
        talk("tcp://*:0", |port| format!("tcp://[::1]:{port}")).await;
    });
}

#[test]
fn plain_text_stays_on_the_machine() {
    run(async {
        for away in ["tcp://*:0", "tcp://0.0.0.0:0", "tcp://[::]:0", "tcp://192.0.2.1:0", "tcp://host.example:0"] {
            let refused = keyed(Pull::builder()).bind(away).await;
            assert!(matches!(refused, Err(BindError::Address(AddressError::Plaintext { .. }))), "{away}: {refused:?}");
        }
        for away in ["tcp://192.0.2.1:7000", "tcp://host.example:7000", "tcp://[2001:db8::1]:7000"] {
            let refused = keyed(Push::builder()).connect(away).await;
            let address = AddressError::Plaintext { address: away.into() };
            assert_eq!(refused.map(drop), Err(ConnectError::Address(address)));
        }
        keyed(Push::builder()).danger_plaintext().linger(Duration::ZERO).connect("tcp://192.0.2.1:7000").await.unwrap();
    });
}

#[test]
fn what_is_no_address_is_refused() {
    run(async {
        let push = keyed(Push::builder()).build();
        for wrong in
            ["", "127.0.0.1:1", "udp://127.0.0.1:1", "tcp://127.0.0.1", "tcp://127.0.0.1:0", "inproc://", "ipc://"]
        {
            assert!(matches!(push.connect_to(wrong).await, Err(ConnectError::Address(_))), "{wrong}");
        }
        assert!(push.endpoints().is_empty());
    });
}

#[test]
fn an_ipc_file_is_its_users_alone_and_goes_with_the_socket() {
    run(async {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let address = format!("ipc://{}", path.display());
        let pull = keyed(Pull::builder()).bind(&address).await.unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(
            matches!(keyed(Pull::builder()).bind(&address).await, Err(BindError::InUse { .. })),
            "a live one is not replaced"
        );
        pull.close().await;
        assert!(!path.exists());

        // One that a crash left behind is replaced.
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let pull = keyed(Pull::builder()).bind(&address).await.unwrap();
        let push = keyed(Push::builder()).connect(&address).await.unwrap();
        push.send("1").await.unwrap();
        assert_eq!(numbers(&pull, 1).await, [1]);
        pull.close().await;

        // What is no socket is left alone.
        std::fs::write(&path, "precious").unwrap();
        assert!(keyed(Pull::builder()).bind(&address).await.is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
        let long = format!("ipc://{}", "x".repeat(200));
        assert!(matches!(
            keyed(Pull::builder()).bind(long).await,
            Err(BindError::Address(AddressError::Malformed { .. }))
        ));
    });
}

#[test]
fn a_dial_that_fails_is_told_and_tried_again() {
    run(async {
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("tcp://{}", free.local_addr().unwrap());
        drop(free);
        let pull = keyed(Pull::builder()).reconnect(Duration::from_millis(1), Duration::from_millis(10)).build();
        let mut events = pull.events();
        pull.connect_to(&address).await.unwrap();
        for _ in 0..5 {
            let (named, retry_in) = event(&mut events, "that a dial failed", |event| match event {
                Event::DialFailed { address, retry_in, .. } => Some((address, retry_in)),
                _ => None,
            })
            .await;
            assert_eq!(named, address);
            assert!(retry_in <= Duration::from_millis(10));
        }
        let push = keyed(Push::builder()).bind(&address).await.unwrap();
        until("the link", || push.stats().peers.len() == 1).await;
    });
}

/// A listener whose line is full answers nobody, as one does that packets do not reach.
#[test]
fn a_dial_that_nothing_answers_ends() {
    run(async {
        let full = full(Domain::IPV4, SocketAddr::from(([127, 0, 0, 1], 0)).into());
        let address = full.local_addr().unwrap().as_socket().unwrap();
        let push = keyed(Push::builder()).handshake_timeout(Duration::from_millis(50)).build();
        let mut events = push.events();
        push.connect_to(format!("tcp://{address}")).await.unwrap();
        let failed = event(&mut events, "a failed dial", |event| match event {
            Event::DialFailed { error, .. } => Some(error),
            _ => None,
        });
        assert_eq!(failed.await.kind(), ErrorKind::TimedOut);
    });
}

#[test]
fn a_socket_file_whose_owner_has_no_time_is_in_use() {
    run(async {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("busy");
        let _full = full(Domain::UNIX, SockAddr::unix(&path).unwrap());
        let refused = soon("an answer", Pull::bind(format!("ipc://{}", path.display()))).await;
        assert!(matches!(refused, Err(BindError::InUse { .. })), "{refused:?}");
    });
}

/// A socket that listens and whose line is full.
fn full(domain: Domain, at: SockAddr) -> Socket {
    let socket = || {
        let socket = Socket::new(domain, Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket
    };
    let listener = socket();
    listener.bind(&at).unwrap();
    listener.listen(0).unwrap();
    let at = listener.local_addr().unwrap();
    // Those in the line stay there when they have gone.
    for _ in 0..8 {
        let _in_line_or_not = socket().connect(&at);
    }
    listener
}
