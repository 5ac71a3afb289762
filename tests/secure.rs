//! Who gets in and who does not, where peers prove who they are.

#![cfg(feature = "tls")]

mod common;

use std::{sync::Arc, time::Duration};

use common::{
    KEY, address_of, event, keyed,
    raw::{Raw, tcp},
    refused, run, soon, tls, until,
};
use ropewalk::{
    AddressError, BindError, ConnectError, DownReason, Event, Events, PeerId, Pull, Push, Role, SecretKey, Socket,
    patterns::push_pull,
};
use rustls::{ClientConfig, HandshakeKind, client::Resumption, crypto::ring};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client::TlsStream};

const HERE: &str = "tls://127.0.0.1:0";

/// The schemes that prove who peers are.
const EACH: [&str; 2] = ["tls", "quic"];

/// Host and port of a listener, without its id.
fn host_and_port(address: &str) -> &str {
    address.split_once('@').unwrap().1
}

async fn hand_over(push: &Push, pull: &Pull) {
    push.send("honest").await.unwrap();
    assert_eq!(soon("a message", pull.recv()).await.unwrap().payload(), b"honest");
}

/// Whatever came before: one with the right key is let in.
async fn honest_peers_get_in(pull: &Pull) {
    let push = keyed(Push::builder()).connect(address_of(pull)).await.unwrap();
    hand_over(&push, pull).await;
    push.close().await;
}

#[test]
fn both_ends_know_who_the_other_is() {
    for scheme in EACH {
        run(async move {
            let here = &format!("{scheme}://127.0.0.1:0");
            let (ours, theirs) = (SecretKey::generate(), SecretKey::generate());
            let pull = Pull::builder().key(theirs.clone()).allow([ours.id()]).bind(here).await.unwrap();
            assert!(address_of(&pull).starts_with(&format!("{scheme}://{}@127.0.0.1:", theirs.id())));
            let push = Push::builder().key(ours.clone()).build();
            let (mut seen, mut met) = (pull.events(), push.events());
            push.connect_to(address_of(&pull)).await.unwrap();
            for (events, id) in [(&mut seen, ours.id()), (&mut met, theirs.id())] {
                let up = event(events, "of a peer", |event| match event {
                    Event::PeerUp { peer } => Some(peer),
                    _ => None,
                });
                assert_eq!(up.await.id, Some(id));
            }
            assert_eq!(pull.stats().peers[0].peer.id, Some(ours.id()));
            hand_over(&push, &pull).await;
        });
    }
}

#[test]
fn nothing_is_bound_or_dialled_that_could_not_be_safe() {
    for scheme in EACH {
        run(async move {
            let here = &format!("{scheme}://127.0.0.1:0");
            let refused = |bound: Result<Socket<push_pull::Pull>, BindError>| match bound {
                Err(BindError::Address(error)) => error,
                other => panic!("{other:?}"),
            };
            let no_key = Pull::builder().allow_any_peer().bind(here).await;
            assert!(matches!(refused(no_key), AddressError::NoKey { .. }));
            let nobody = Pull::builder().key(KEY.clone()).bind(here).await;
            assert!(matches!(refused(nobody), AddressError::NobodyAllowed { .. }));
            let other = format!("{scheme}://{}@127.0.0.1:0", SecretKey::generate().id());
            assert!(matches!(refused(keyed(Pull::builder()).bind(other).await), AddressError::Malformed { .. }));
            let own = keyed(Pull::builder()).bind(format!("{scheme}://{}@127.0.0.1:0", KEY.id())).await.unwrap();
            let nameless = address_of(&own).replace(&format!("{}@", KEY.id()), "");
            for wrong in
                [nameless.as_str(), &format!("{scheme}://x@127.0.0.1:7000"), &format!("{scheme}://{}@*:7000", KEY.id())]
            {
                let dialled = keyed(Push::builder()).connect(wrong).await;
                assert!(matches!(dialled, Err(ConnectError::Address(AddressError::Malformed { .. }))), "{wrong}");
            }
            let no_key = Push::builder().connect(address_of(&own)).await;
            assert!(matches!(no_key, Err(ConnectError::Address(AddressError::NoKey { .. }))));
        });
    }
}

#[test]
fn a_listener_with_another_key_than_was_dialled_is_left() {
    for scheme in EACH {
        run(async move {
            let here = &format!("{scheme}://127.0.0.1:0");
            let pull = Pull::builder().key(KEY.clone()).allow_any_peer().bind(here).await.unwrap();
            let dialled = SecretKey::generate().id();
            let push = keyed(Push::builder()).build();
            let (mut events, mut seen) = (push.events(), pull.events());
            push.connect_to(address_of(&pull).replace(&KEY.id().to_string(), &dialled.to_string())).await.unwrap();
            let reason = refused(&mut events).await;
            assert!(matches!(reason, DownReason::OtherKey { id } if id == KEY.id()), "{reason}");
            refused(&mut seen).await;
            assert!(pull.stats().peers.is_empty() && push.stats().peers.is_empty());
        });
    }
}

#[test]
fn a_key_gets_in_when_it_is_allowed_and_out_when_it_is_not() {
    for scheme in EACH {
        run(async move {
            let here = &format!("{scheme}://127.0.0.1:0");
            let stranger = SecretKey::generate();
            let pull = keyed(Pull::builder()).bind(here).await.unwrap();
            let mut seen = pull.events();
            let quick = Duration::from_millis(5);
            let push = Push::builder().key(stranger.clone()).reconnect(quick, quick).build();
            let mut events = push.events();
            push.connect_to(address_of(&pull)).await.unwrap();
            push.send("kept").await.unwrap();
            // Each hears its half of it.
            let reason = refused(&mut seen).await;
            assert!(matches!(reason, DownReason::NotAllowed { id } if id == stranger.id()), "{reason}");
            let reason = refused(&mut events).await;
            assert!(matches!(reason, DownReason::Denied), "{reason}");
            pull.allow([stranger.id()]);
            assert_eq!(soon("what was kept", pull.recv()).await.unwrap().payload(), b"kept");
            honest_peers_get_in(&pull).await;
            pull.allow_only([KEY.id()]);
            let reason = loop {
                let (peer, reason) = down_with_peer(&mut seen).await;
                if peer == Some(stranger.id()) {
                    break reason;
                }
            };
            assert!(matches!(reason, DownReason::NotAllowed { id } if id == stranger.id()), "{reason}");
            let reason = refused(&mut seen).await;
            assert!(matches!(reason, DownReason::NotAllowed { .. }), "{reason}");
            assert!(pull.stats().peers.is_empty());
            honest_peers_get_in(&pull).await;
        });
    }
}

async fn down_with_peer(events: &mut Events) -> (Option<PeerId>, DownReason) {
    event(events, "of a link that ended", |event| match event {
        Event::PeerDown { peer, reason, .. } => Some((peer.id, reason)),
        _ => None,
    })
    .await
}

async fn handshake(config: ClientConfig, at: &str) -> std::io::Result<TlsStream<TcpStream>> {
    let mut stream = TlsConnector::from(Arc::new(config)).connect(tls::name(), tcp(at).await).await?;
    // The listener's no comes behind the handshake of the client.
    stream.flush().await?;
    Ok(stream)
}

#[test]
fn whoever_shakes_hands_otherwise_is_refused() {
    run(async {
        let pull = Pull::builder().key(KEY.clone()).allow_any_peer().bind(HERE).await.unwrap();
        let mut seen = pull.events();
        let provider = || Arc::new(ring::default_provider());
        let no_key = tls::verified().with_no_client_auth();
        let mut other_protocol = tls::client(&KEY);
        other_protocol.alpn_protocols = vec![b"h2".to_vec()];
        let mut no_protocol = tls::client(&KEY);
        no_protocol.alpn_protocols.clear();
        let roots = rustls::RootCertStore::empty();
        let certificates = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots.clone())
            .with_no_client_auth();
        let tls12 = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS12])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let all = [
            ("no key", no_key),
            ("another protocol", other_protocol),
            ("no protocol", no_protocol),
            ("certificates", certificates),
            ("TLS 1.2", tls12),
        ];
        for (what, config) in all {
            // What the client thinks of it does not matter.
            let connection = handshake(config, host_and_port(&address_of(&pull))).await;
            let reason = refused(&mut seen).await;
            assert!(matches!(reason, DownReason::Insecure(_)), "{what}: {reason}");
            drop(connection);
        }
        assert!(pull.stats().peers.is_empty());
        honest_peers_get_in(&pull).await;
    });
}

#[test]
fn a_key_that_is_shown_must_also_sign() {
    run(async {
        let thief = SecretKey::generate();
        let pull = keyed(Pull::builder()).bind(HERE).await.unwrap();
        let mut seen = pull.events();
        let stolen = tls::client_that_signs_as(&KEY, &thief);
        let _connection = handshake(stolen, host_and_port(&address_of(&pull))).await;
        let reason = refused(&mut seen).await;
        assert!(matches!(reason, DownReason::Insecure(_)), "{reason}");
        assert!(pull.stats().peers.is_empty());

        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let push = keyed(Push::builder()).build();
        let mut events = push.events();
        push.connect_to(format!("tls://{}@{}", KEY.id(), listener.local_addr().unwrap())).await.unwrap();
        let stolen = TlsAcceptor::from(Arc::new(tls::server_that_signs_as(&KEY, &thief)));
        let (stream, _) = soon("somebody to dial", listener.accept()).await.unwrap();
        let _connection = stolen.accept(stream).await;
        let reason = refused(&mut events).await;
        assert!(matches!(reason, DownReason::Insecure(_)), "{reason}");
    });
}

#[test]
fn nobody_resumes_what_was_agreed_before() {
    run(async {
        let pull = keyed(Pull::builder()).bind(HERE).await.unwrap();
        let mut config = tls::client(&KEY);
        config.resumption = Resumption::in_memory_sessions(8);
        config.enable_early_data = true;
        for _ in 0..3 {
            let stream = handshake(config.clone(), host_and_port(&address_of(&pull))).await.unwrap();
            assert_eq!(stream.get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
            assert!(!stream.get_ref().1.is_early_data_accepted());
            let mut raw = Raw::over(Box::new(stream));
            raw.shake(Role::PUSH, None).await;
            raw.write(&common::raw::frames(&[b"in"])).await;
            assert_eq!(soon("a message", pull.recv()).await.unwrap().payload(), b"in");
        }
    });
}

#[test]
fn plain_text_and_tls_do_not_mix() {
    run(async {
        let secure = keyed(Pull::builder()).bind(HERE).await.unwrap();
        let mut seen = secure.events();
        let mut plain = tcp(host_and_port(&address_of(&secure))).await;
        plain.write_all(&ropewalk::patterns::zmtp::greeting()).await.unwrap();
        let reason = refused(&mut seen).await;
        assert!(matches!(reason, DownReason::Insecure(_)), "{reason}");
        let plain_port = keyed(Pull::builder()).bind("tcp://127.0.0.1:0").await.unwrap();
        let mut seen = plain_port.events();
        let at = address_of(&plain_port).replace("tcp://", &format!("tls://{}@", KEY.id()));
        let push = keyed(Push::builder()).build();
        let mut events = push.events();
        push.connect_to(at).await.unwrap();
        let reason = refused(&mut seen).await;
        assert!(matches!(reason, DownReason::Misbehaved(_)), "{reason}");
        let reason = refused(&mut events).await;
        assert!(matches!(reason, DownReason::Insecure(_) | DownReason::Io(_)), "{reason}");
        honest_peers_get_in(&secure).await;
    });
}

#[test]
fn who_is_slow_in_the_handshake_is_let_go_and_holds_up_nobody() {
    run(async {
        let deadline = Duration::from_millis(300);
        let pull = keyed(Pull::builder()).handshake_timeout(deadline).max_handshakes(32, 32).bind(HERE).await.unwrap();
        let mut seen = pull.events();
        let at = host_and_port(&address_of(&pull)).to_owned();
        let mut silent = Vec::new();
        for _ in 0..100 {
            let mut stream = tcp(&at).await;
            // The beginning of a record that would be as long as may be.
            stream.write_all(b"\x16\x03\x01\x40\x00").await.unwrap();
            silent.push(stream);
        }
        honest_peers_get_in(&pull).await;
        let (mut too_many, mut too_long) = (0, 0);
        while too_many + too_long < 100 {
            match refused(&mut seen).await {
                DownReason::TooManyHandshakes => too_many += 1,
                DownReason::HandshakeTimeout => too_long += 1,
                other => panic!("{other}"),
            }
        }
        assert!(too_many >= 60 && too_long > 0, "{too_many} {too_long}");
        for mut stream in silent {
            // The end, or a reset: nobody waits there any more.
            let ended = soon("the end", stream.read(&mut [0])).await;
            assert!(matches!(ended, Ok(0) | Err(_)));
        }
        honest_peers_get_in(&pull).await;
    });
}

#[test]
fn garbage_at_the_port_changes_nothing() {
    run(async {
        let pull = keyed(Pull::builder()).bind("quic://127.0.0.1:0").await.unwrap();
        let push = keyed(Push::builder()).connect(address_of(&pull)).await.unwrap();
        hand_over(&push, &pull).await;
        let udp = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        udp.connect(host_and_port(&address_of(&pull))).await.unwrap();
        let mut random = common::Random::new(7);
        for round in 0..2000 {
            let length = 1 + random.below(1400) as usize;
            let mut datagram: Vec<u8> = (0..length).map(|_| random.next() as u8).collect();
            if round % 2 == 0 {
                // The beginning of an Initial packet of version 1, with whatever follows.
                datagram[0] |= 0xC0;
                datagram.splice(1..1, [0, 0, 0, 1, 8]);
                datagram.resize(1200, 0);
            }
            // The other side may be behind; what is lost on the way is no loss.
            let _lost = udp.send(&datagram).await;
            if round % 100 == 0 {
                hand_over(&push, &pull).await;
            }
        }
        honest_peers_get_in(&pull).await;
        hand_over(&push, &pull).await;
        // The end of the other is seen here a moment later than there.
        until("only the first to be linked", || pull.stats().peers.len() == 1).await;
    });
}
