//! Whoever does not fit is refused with an event that says why, at both ends where libzmq can say it; and honest peers
//! are served as before.

use std::time::Duration;

use ropewalk::{
    Action, Builder, DownReason, Event, Events, Misbehaved, Pub, Pull, Push, Rep, Req, Role, Sub, patterns::Pattern,
};
use ropewalk_interop::{Case, Peer, SocketEvent, SocketType, everywhere, parts, wait_for, within};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

everywhere!(
    sockets_that_do_not_fit,
    another_mechanism,
    who_is_not_authorized,
    a_message_too_large_for_us,
    a_message_too_large_for_libzmq,
    a_message_of_too_many_parts,
);

/// Why the next connection did not come to be a link.
async fn refusal(events: &mut Events) -> Misbehaved {
    wait_for("the refusal", events, |event| match event {
        Event::HandshakeFailed { reason: DownReason::Misbehaved(misbehaved), .. } => Some(misbehaved.clone()),
        Event::PeerUp { .. } => panic!("{event:?}"),
        _ => None,
    })
    .await
}

/// Why the next link ended.
async fn end(events: &mut Events) -> DownReason {
    wait_for("the end of the link", events, |event| match event {
        Event::PeerDown { reason, .. } => Some(reason.clone()),
        _ => None,
    })
    .await
}

async fn sockets_that_do_not_fit(case: Case) {
    use SocketType::{DEALER, PAIR, PUB, PULL, PUSH, REP, REQ, ROUTER, SUB, XPUB, XSUB};
    does_not_fit(&case, Push::builder, &[PUSH, PUB, SUB, REQ, REP, DEALER, ROUTER, PAIR]).await;
    does_not_fit(&case, Pull::builder, &[PULL, PUB, DEALER]).await;
    does_not_fit(&case, Pub::builder, &[PUB, XPUB, PULL]).await;
    does_not_fit(&case, Sub::builder, &[SUB, XSUB, PUSH]).await;
    does_not_fit(&case, Req::builder, &[REQ, DEALER, PAIR]).await;
    does_not_fit(&case, Rep::builder, &[REP, ROUTER, PAIR]).await;
}

async fn does_not_fit<P: Pattern>(case: &Case, builder: impl Fn() -> Builder<P>, kinds: &[SocketType]) {
    for &kind in kinds {
        let socket = builder().build();
        let mut events = socket.events();
        let peer = Peer::new(kind);
        case.attach(&socket, &peer).await;
        match refusal(&mut events).await {
            Misbehaved::WrongRole { ours, theirs } => {
                assert_eq!((ours, theirs.to_string()), (P::ROLE, format!("{kind:?}")));
            }
            other => panic!("{other:?}"),
        }
        // libzmq reads our READY and comes to the same conclusion, of which it says only this.
        peer.wait_for(SocketEvent::DISCONNECTED);
    }
}

/// libzmq compares the mechanisms as soon as it has our greeting, and closes without having told us its own.
async fn another_mechanism(case: Case) {
    let pull = Pull::builder().build();
    let mut events = pull.events();
    let peer = Peer::with(SocketType::PUSH, |socket| {
        socket.set_plain_username(Some("user")).unwrap();
        socket.set_plain_password(Some("secret")).unwrap();
    });
    case.attach(&pull, &peer).await;
    let reason = wait_for("the refusal", &mut events, |event| match event {
        Event::HandshakeFailed { reason, .. } => Some(reason.clone()),
        Event::PeerUp { .. } => panic!("{event:?}"),
        _ => None,
    })
    .await;
    assert!(matches!(reason, DownReason::HungUp), "{reason:?}");
    peer.wait_for(SocketEvent::HANDSHAKE_FAILED_PROTOCOL);
}

/// What it may not do ends its link, and one whose READY we hear before we say ours is linked like any other.
async fn who_is_not_authorized(case: Case) {
    let rep = Rep::builder().authorize(|peer, action| match action {
        Action::Connect => peer.role != Role::DEALER,
        Action::Request(question) => *question != "the secret",
        _ => true,
    });
    let rep = rep.build();
    let mut events = rep.events();
    let uninvited = Peer::new(SocketType::DEALER);
    case.attach(&rep, &uninvited).await;
    let reason = wait_for("the refusal", &mut events, |event| match event {
        Event::HandshakeFailed { reason, .. } => Some(reason.clone()),
        Event::PeerUp { .. } => panic!("{event:?}"),
        _ => None,
    });
    assert!(matches!(reason.await, DownReason::NotAuthorized));
    drop(uninvited);
    let peer = Peer::new(SocketType::REQ);
    case.attach(&rep, &peer).await;
    peer.send(["the weather"]);
    let request = within("a request", rep.recv()).await.unwrap();
    request.reply("fine").await.unwrap();
    assert_eq!(peer.recv_text(), "fine");
    peer.send(["the secret"]);
    let asks = tokio::spawn(async move { rep.recv().await.map(|request| request.message().clone()) });
    let reason = end(&mut events).await;
    assert!(matches!(reason, DownReason::NotAuthorized), "{reason}");
    asks.abort();
}

async fn a_message_too_large_for_us(case: Case) {
    let limit = 1000;
    let pull = Pull::builder().max_message(limit).build();
    let mut events = pull.events();
    let peer = Peer::new(SocketType::PUSH);
    case.attach(&pull, &peer).await;
    peer.send([vec![1; 600], vec![2; 400]]);
    assert_eq!(within("what just fits", pull.recv()).await.unwrap().bytes(), limit);
    peer.send([vec![1; 600], vec![2; 401]]);
    match end(&mut events).await {
        DownReason::Misbehaved(misbehaved) => assert_eq!(misbehaved, Misbehaved::MessageTooLarge { limit }),
        other => panic!("{other:?}"),
    }
    peer.wait_for(SocketEvent::DISCONNECTED);
    // It comes back, and what it sends then is welcome.
    peer.wait_for(SocketEvent::HANDSHAKE_SUCCEEDED);
    peer.lives();
    peer.send(["small"]);
    assert_eq!(within("the next", pull.recv()).await.unwrap(), "small");
}

async fn a_message_too_large_for_libzmq(case: Case) {
    let push = Push::builder().reconnect(Duration::from_millis(5), Duration::from_millis(50)).build();
    let mut events = push.events();
    let peer = Peer::with(SocketType::PULL, |socket| socket.set_maxmsgsize(1000).unwrap());
    case.attach(&push, &peer).await;
    push.send(vec![1; 1000]).await.unwrap();
    assert_eq!(peer.recv(), [vec![1; 1000]]);
    push.send(vec![1; 1001]).await.unwrap();
    peer.wait_for(SocketEvent::DISCONNECTED);
    let reason = end(&mut events).await;
    assert!(matches!(reason, DownReason::Ended | DownReason::Io(_)), "{reason:?}");
    assert_eq!(push.stats().in_doubt, 2, "libzmq does not say which it did not like");
    if case.ropewalk_binds {
        // After a message that it does not like libzmq does not dial again by itself.
        assert_eq!(push.stats().peers, []);
        peer.connect(&push.address().unwrap().to_string());
    }
    within("the next", push.send("small")).await.unwrap();
    assert_eq!(peer.recv_text(), "small");
}

async fn a_message_of_too_many_parts(case: Case) {
    let pull = Pull::builder().max_parts(3).build();
    let mut events = pull.events();
    let peer = Peer::new(SocketType::PUSH);
    case.attach(&pull, &peer).await;
    peer.send(["a", "b", "c"]);
    assert_eq!(parts(&within("three", pull.recv()).await.unwrap()), [b"a", b"b", b"c"]);
    peer.send(["a", "b", "c", "d"]);
    match end(&mut events).await {
        DownReason::Misbehaved(misbehaved) => assert_eq!(misbehaved, Misbehaved::TooManyParts { limit: 3 }),
        other => panic!("{other:?}"),
    }
}

// ---- bytes --------------------------------------------------------------------------------------------------------

/// What speaks first in so many words that it is not for us, and how that is called.
fn greetings() -> Vec<(&'static str, Vec<u8>, Misbehaved)> {
    let signature = b"\xFF\0\0\0\0\0\0\0\x01\x7F";
    let with = |rest: &[u8]| [&signature[..], rest].concat();
    let mut plain = with(b"\x03\x01PLAIN");
    plain.resize(64, 0);
    vec![
        ("ZMTP 2.0", with(b"\x01\x08\0\0"), Misbehaved::OldVersion { major: 1 }),
        ("ZMTP 2.1", with(b"\x02\x08\0\0"), Misbehaved::OldVersion { major: 2 }),
        ("ZMTP 1.0 in the new signature", with(b"\0\x08\0\0"), Misbehaved::OldVersion { major: 0 }),
        ("ZMTP 1.0 without identity", b"\x01\0".to_vec(), Misbehaved::NotZmtp),
        ("ZMTP 1.0 with a long identity", b"\xFF\0\0\0\0\0\0\0\x02\0x".to_vec(), Misbehaved::NotZmtp),
        ("PLAIN", plain, Misbehaved::WrongMechanism { mechanism: "PLAIN".into() }),
        ("HTTP", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(), Misbehaved::NotZmtp),
        ("TLS", b"\x16\x03\x01\x02\0\x01\0\x01\xFC\x03\x03".to_vec(), Misbehaved::NotZmtp),
    ]
}

/// Reads until the other side closes.
async fn closes(mut stream: TcpStream) {
    // A reset is an end too.
    let _reset = within("the end", stream.read_to_end(&mut Vec::new())).await;
}

#[tokio::test]
async fn a_listener_refuses_old_greetings() {
    let pull = Pull::bind("tcp://127.0.0.1:0").await.unwrap();
    let mut events = pull.events();
    for (what, bytes, wanted) in greetings() {
        let mut stream = TcpStream::connect(pull.address().unwrap().rest()).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        assert_eq!(refusal(&mut events).await, wanted, "{what}");
        closes(stream).await;
    }
    let push = Push::connect(pull.address().unwrap().to_string()).await.unwrap();
    push.send("honest").await.unwrap();
    assert_eq!(within("recv", pull.recv()).await.unwrap(), "honest");
}

#[tokio::test]
async fn a_dialler_refuses_old_greetings_and_dials_again() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let quick = Duration::from_millis(5);
    let address = format!("tcp://{}", listener.local_addr().unwrap());
    let push = Push::builder().reconnect(quick, quick).connect(address).await.unwrap();
    let mut events = push.events();
    for (what, bytes, wanted) in greetings() {
        let (mut stream, _) = within("the dial", listener.accept()).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        assert_eq!(refusal(&mut events).await, wanted, "{what}");
        closes(stream).await;
    }
}

/// A peer that has greeted is told by ERROR what is wrong with its READY.
#[tokio::test]
async fn a_wrong_role_is_told_by_error() {
    let pull = Pull::bind("tcp://127.0.0.1:0").await.unwrap();
    let mut events = pull.events();
    let mut stream = TcpStream::connect(pull.address().unwrap().rest()).await.unwrap();
    let mut greeting = [0; 64];
    (greeting[0], greeting[9], greeting[10], greeting[11]) = (0xFF, 0x7F, 3, 1);
    greeting[12..16].copy_from_slice(b"NULL");
    stream.write_all(&greeting).await.unwrap();
    stream.write_all(b"\x04\x19\x05READY\x0BSocket-Type\0\0\0\x03SUB").await.unwrap();
    let wrong = Misbehaved::WrongRole { ours: Role::PULL, theirs: Role::SUB };
    assert_eq!(refusal(&mut events).await, wrong);
    let mut heard = Vec::new();
    within("the end", stream.read_to_end(&mut heard)).await.unwrap();
    let reason = wrong.to_string();
    let length = u8::try_from(reason.len()).unwrap();
    let error = [&[4, length + 7, 5][..], b"ERROR", &[length], reason.as_bytes()].concat();
    assert!(heard.ends_with(&error), "{}", String::from_utf8_lossy(&heard));
}
