//! Either side goes away and comes back: traffic goes on.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use ropewalk::{Builder, Event, Pub, Pull, Push, Rep, Req, RequestError, Sub, patterns::Pattern};
use ropewalk_interop::{Case, Peer, SocketEvent, SocketType, everywhere, filled, parts, until, wait_for, within};

everywhere!(
    a_libzmq_puller_comes_back,
    a_libzmq_pusher_comes_back,
    a_libzmq_subscriber_comes_back,
    a_libzmq_publisher_comes_back,
    a_libzmq_replier_comes_back,
    a_libzmq_requester_comes_back,
    a_libzmq_replier_goes_without_an_answer,
    our_puller_comes_back,
    our_pusher_comes_back,
    our_subscriber_comes_back,
    our_publisher_comes_back,
    our_replier_comes_back,
    our_requester_comes_back,
    what_comes_over_many_links_is_whole,
);

/// How often.
const ROUNDS: usize = 3;

fn eager<P: Pattern>(builder: Builder<P>) -> Builder<P> {
    builder.reconnect(Duration::from_millis(5), Duration::from_millis(50))
}

fn zmq_eager(socket: &zmq::Socket) {
    socket.set_reconnect_ivl(5).unwrap();
}

// ---- libzmq goes ------------------------------------------------------------------------------------------------

/// A libzmq socket that may take the address its forerunner had.
fn again(case: &Case, address: &mut Option<String>, kind: SocketType, set: impl Fn(&zmq::Socket)) -> Peer {
    let peer = Peer::with(kind, |socket| {
        zmq_eager(socket);
        set(socket);
    });
    match address {
        Some(address) if case.ropewalk_binds => peer.connect(address),
        Some(address) => {
            peer.bind(address);
        }
        None => *address = Some(peer.bind(&case.for_zmq())),
    }
    peer
}

/// Our socket lives on while libzmq's is opened, used and closed again and again at one address.
async fn peer_comes_back<P: Pattern>(
    case: Case,
    builder: Builder<P>,
    kind: SocketType,
    set: impl Fn(&zmq::Socket),
    use_it: impl AsyncFn(&ropewalk::Socket<P>, &Peer, usize),
) {
    let socket = eager(builder).build();
    let mut events = socket.events();
    let mut address = None;
    if case.ropewalk_binds {
        address = Some(socket.bind_to(case.for_ropewalk()).await.unwrap().to_string());
    }
    for round in 0..ROUNDS {
        let peer = again(&case, &mut address, kind, &set);
        if round == 0 && !case.ropewalk_binds {
            socket.connect_to(address.clone().unwrap()).await.unwrap();
        }
        let up = |event: &Event| matches!(event, Event::PeerUp { .. }).then_some(());
        wait_for("the link", &mut events, up).await;
        use_it(&socket, &peer, round).await;
        drop(peer);
        let down = |event: &Event| matches!(event, Event::PeerDown { .. }).then_some(());
        wait_for("the end of the link", &mut events, down).await;
    }
}

async fn a_libzmq_puller_comes_back(case: Case) {
    peer_comes_back(
        case,
        Push::builder(),
        SocketType::PULL,
        |_| {},
        async |push, peer, round| {
            push.send(format!("message {round}")).await.unwrap();
            assert_eq!(peer.recv_text(), format!("message {round}"));
        },
    )
    .await;
}

async fn a_libzmq_pusher_comes_back(case: Case) {
    peer_comes_back(
        case,
        Pull::builder(),
        SocketType::PUSH,
        |_| {},
        async |pull, peer, round| {
            peer.send([format!("message {round}")]);
            assert_eq!(within("recv", pull.recv()).await.unwrap(), &*format!("message {round}"));
        },
    )
    .await;
}

async fn a_libzmq_subscriber_comes_back(case: Case) {
    let subscribe = |socket: &zmq::Socket| socket.set_subscribe(b"to").unwrap();
    peer_comes_back(case, Pub::builder(), SocketType::SUB, subscribe, async |publisher, peer, round| {
        until("its subscription", || peer.lives() && publisher.subscriber_count("topic") == 1).await;
        publisher.publish("topic", format!("message {round}")).await.unwrap();
        assert_eq!(peer.recv(), [b"topic".to_vec(), format!("message {round}").into_bytes()]);
    })
    .await;
}

async fn a_libzmq_publisher_comes_back(case: Case) {
    peer_comes_back(
        case,
        Sub::builder(),
        SocketType::XPUB,
        |_| {},
        async |subscriber, peer, round| {
            if round == 0 {
                subscriber.subscribe("a").await.unwrap();
                subscriber.subscribe("b").await.unwrap();
            }
            // Every new publisher is told all subscriptions.
            let mut told = [peer.recv(), peer.recv()];
            told.sort();
            assert_eq!(told, [[b"\x01a"], [b"\x01b"]]);
            peer.send(["b".to_owned(), format!("message {round}")]);
            let got = within("recv", subscriber.recv()).await.unwrap();
            assert_eq!(parts(&got), [b"b".to_vec(), format!("message {round}").into_bytes()]);
        },
    )
    .await;
}

async fn a_libzmq_replier_comes_back(case: Case) {
    peer_comes_back(
        case,
        Req::builder(),
        SocketType::REP,
        |_| {},
        async |req, peer, round| {
            let asking = {
                let req = req.clone();
                tokio::spawn(async move { req.request(format!("question {round}")).await })
            };
            assert_eq!(peer.recv_text(), format!("question {round}"));
            peer.send(["answer"]);
            assert_eq!(within("the answer", asking).await.unwrap().unwrap(), "answer");
        },
    )
    .await;
}

async fn a_libzmq_requester_comes_back(case: Case) {
    peer_comes_back(
        case,
        Rep::builder(),
        SocketType::REQ,
        |_| {},
        async |rep, peer, round| {
            peer.send([format!("question {round}")]);
            let request = within("the request", rep.recv()).await.unwrap();
            assert_eq!(*request.message(), &*format!("question {round}"));
            request.reply("answer").await.unwrap();
            assert_eq!(peer.recv_text(), "answer");
        },
    )
    .await;
}

async fn a_libzmq_replier_goes_without_an_answer(case: Case) {
    let req = eager(Req::builder()).build();
    let ask = |question: &'static str| {
        let req = req.clone();
        tokio::spawn(async move { req.request(question).await })
    };
    let mut address = None;
    if case.ropewalk_binds {
        address = Some(req.bind_to(case.for_ropewalk()).await.unwrap().to_string());
    }
    let peer = again(&case, &mut address, SocketType::REP, |_| {});
    if !case.ropewalk_binds {
        req.connect_to(address.clone().unwrap()).await.unwrap();
    }
    let lost = ask("lost");
    assert_eq!(peer.recv_text(), "lost");
    drop(peer);
    assert_eq!(within("the loss", lost).await.unwrap(), Err(RequestError::PeerLost));
    // Nothing is wedged.
    let next = ask("next");
    let peer = again(&case, &mut address, SocketType::REP, |_| {});
    assert_eq!(peer.recv_text(), "next");
    peer.send(["answer"]);
    assert_eq!(within("the answer", next).await.unwrap().unwrap(), "answer");
}

// ---- Ropewalk goes ----------------------------------------------------------------------------------------------

/// libzmq's socket lives on while ours is opened, used and closed again and again at one address.
async fn we_come_back<P: Pattern>(
    case: Case,
    builder: impl Fn() -> Builder<P>,
    peer: Peer,
    use_it: impl AsyncFn(&ropewalk::Socket<P>, &Peer, usize),
) {
    let mut address = if case.ropewalk_binds { None } else { Some(peer.bind(&case.for_zmq())) };
    for round in 0..ROUNDS {
        let socket = eager(builder()).build();
        if case.ropewalk_binds {
            let asked = address.clone().unwrap_or_else(|| case.for_ropewalk());
            let bound = socket.bind_to(&asked).await.unwrap().to_string();
            if address.replace(bound).is_none() {
                peer.connect(address.as_deref().unwrap());
            }
        } else {
            socket.connect_to(address.as_deref().unwrap()).await.unwrap();
        }
        within("the link", socket.ready()).await.unwrap();
        peer.wait_for(SocketEvent::HANDSHAKE_SUCCEEDED);
        // Otherwise libzmq may give a message to the peer that went: it hears of that inside its functions only, and
        // what waits for an accepted peer goes with it.
        peer.lives();
        use_it(&socket, &peer, round).await;
        let report = within("the end", socket.close()).await;
        assert!(report.all_delivered(), "{report:?}");
        peer.wait_for(SocketEvent::DISCONNECTED);
    }
}

async fn our_puller_comes_back(case: Case) {
    let peer = Peer::with(SocketType::PUSH, zmq_eager);
    we_come_back(case, Pull::builder, peer, async |pull, peer, round| {
        peer.send([format!("message {round}")]);
        assert_eq!(within("recv", pull.recv()).await.unwrap(), &*format!("message {round}"));
    })
    .await;
}

async fn our_pusher_comes_back(case: Case) {
    let peer = Peer::with(SocketType::PULL, zmq_eager);
    we_come_back(case, Push::builder, peer, async |push, peer, round| {
        push.send(format!("message {round}")).await.unwrap();
        assert_eq!(peer.recv_text(), format!("message {round}"));
    })
    .await;
}

async fn our_subscriber_comes_back(case: Case) {
    let peer = Peer::with(SocketType::XPUB, zmq_eager);
    we_come_back(case, Sub::builder, peer, async |subscriber, peer, round| {
        let (old, new) = (format!("a{}", round.wrapping_sub(1)), format!("a{round}"));
        subscriber.subscribe(&new).await.unwrap();
        // An XPUB that has bound tells that the subscriber that went has unsubscribed.
        while peer.recv() != [[&[1], new.as_bytes()].concat()] {}
        // One that has connected takes the next subscriber for the same, with its subscriptions.
        peer.send([&old, "no"]);
        peer.send([&new, "yes"]);
        let got = within("recv", subscriber.recv()).await.unwrap();
        assert_eq!(parts(&got), [new.into_bytes(), b"yes".to_vec()]);
    })
    .await;
}

async fn our_publisher_comes_back(case: Case) {
    let peer = Peer::with(SocketType::SUB, |socket| {
        zmq_eager(socket);
        socket.set_subscribe(b"to").unwrap();
    });
    we_come_back(case, Pub::builder, peer, async |publisher, peer, round| {
        until("its subscription", || peer.lives() && publisher.subscriber_count("topic") == 1).await;
        publisher.publish("topic", format!("message {round}")).await.unwrap();
        assert_eq!(peer.recv(), [b"topic".to_vec(), format!("message {round}").into_bytes()]);
    })
    .await;
}

async fn our_replier_comes_back(case: Case) {
    let peer = Peer::with(SocketType::REQ, zmq_eager);
    we_come_back(case, Rep::builder, peer, async |rep, peer, round| {
        peer.send([format!("question {round}")]);
        let request = within("the request", rep.recv()).await.unwrap();
        assert_eq!(*request.message(), &*format!("question {round}"));
        request.reply("answer").await.unwrap();
        assert_eq!(peer.recv_text(), "answer");
    })
    .await;
}

async fn our_requester_comes_back(case: Case) {
    let peer = Peer::with(SocketType::REP, zmq_eager);
    we_come_back(case, Req::builder, peer, async |req, peer, round| {
        let asking = {
            let req = req.clone();
            tokio::spawn(async move { req.request(format!("question {round}")).await })
        };
        assert_eq!(peer.recv_text(), format!("question {round}"));
        peer.send(["answer"]);
        assert_eq!(within("the answer", asking).await.unwrap().unwrap(), "answer");
    })
    .await;
}

/// Our end goes in the middle of what libzmq sends; libzmq loses what was on its way, and nothing comes in pieces.
async fn what_comes_over_many_links_is_whole(case: Case) {
    let numbered = |number: u32| [number.to_be_bytes().to_vec(), filled(2 << 20), number.to_be_bytes().to_vec()];
    let open = || eager(Pull::builder()).recv_hwm(1).linger(Duration::ZERO).build();
    let peer = Peer::with(SocketType::PUSH, |socket| {
        zmq_eager(socket);
        socket.set_sndhwm(2).unwrap();
    });
    let mut pull = open();
    let address = case.attach(&pull, &peer).await;
    let stop = Arc::new(AtomicBool::new(false));
    let sending = {
        let stop = Arc::clone(&stop);
        tokio::task::spawn_blocking(move || {
            peer.raw().set_sndtimeo(10).unwrap();
            for number in 0.. {
                while let Err(error) = peer.raw().send_multipart(numbered(number), 0) {
                    assert_eq!(error, zmq::Error::EAGAIN);
                    if stop.load(Relaxed) {
                        return;
                    }
                }
            }
        })
    };
    let mut last = None;
    for _ in 0..8 {
        let got = parts(&within("a message", pull.recv()).await.unwrap());
        let number = u32::from_be_bytes(got[0][..].try_into().unwrap());
        assert!(got == numbered(number), "a message in pieces");
        assert!(last < Some(number), "twice, or out of order");
        last = Some(number);
        pull.close().await;
        pull = open();
        if case.ropewalk_binds {
            pull.bind_to(&address).await.unwrap();
        } else {
            pull.connect_to(&address).await.unwrap();
        }
    }
    pull.close().await;
    stop.store(true, Relaxed);
    within("the sender", sending).await.unwrap();
}
