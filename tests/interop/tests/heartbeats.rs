//! Heartbeats at both ends, and an application that reads nothing for longer than every timeout: nobody is declared
//! dead, nothing is lost, order is kept.

use std::{collections::BTreeSet, time::Duration};

use ropewalk::{
    Builder, DownReason, Event, Events, Pull, Push, Rep, Socket, TrySendError,
    patterns::{Pattern, push_pull::Pull as Puller},
};
use ropewalk_interop::{Case, Peer, SocketEvent, SocketType, alive, everywhere, nobody_dies, parts, wait_for, within};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

everywhere!(
    our_application_stalls,
    our_application_stalls_and_we_ask_seldom,
    our_replier_stalls,
    libzmqs_application_stalls,
    libzmqs_application_stalls_with_room,
    libzmqs_requester_stalls,
    a_stalled_libzmq_that_judges_ends_the_link_itself,
    a_peer_that_streams_hears_from_us,
    both_are_idle,
);

const EVERY: Duration = Duration::from_millis(100);
const DEAD: Duration = Duration::from_millis(900);
/// Longer than every timeout.
const STALL: Duration = Duration::from_millis(2500);

fn beating<P: Pattern>(builder: Builder<P>) -> Builder<P> {
    builder.heartbeat(EVERY, DEAD)
}

fn zmq_beating(socket: &zmq::Socket) {
    socket.set_heartbeat_ivl(100).unwrap();
    socket.set_heartbeat_timeout(900).unwrap();
    socket.set_heartbeat_ttl(900).unwrap();
}

/// Large enough that the kernel's buffers do not hold thousands.
fn numbered(number: u32) -> Vec<u8> {
    let mut message = vec![b'.'; 8 << 10];
    message[..4].copy_from_slice(&number.to_be_bytes());
    message
}

fn number(message: &[u8]) -> u32 {
    assert_eq!(message.len(), 8 << 10);
    u32::from_be_bytes(message[..4].try_into().unwrap())
}

/// Sends until nothing has fitted for a while. How many.
async fn fill(mut send: impl FnMut(u32) -> bool) -> u32 {
    let mut sent = 0;
    let mut refused = 0;
    while refused < 50 {
        if send(sent) {
            sent += 1;
            refused = 0;
        } else {
            refused += 1;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        assert!(sent < 1_000_000, "nothing bounds it");
    }
    sent
}

async fn our_application_stalls(case: Case) {
    we_stall(case, beating(Pull::builder())).await;
}

/// libzmq asks, and its questions lie unread behind messages that have no room.
async fn our_application_stalls_and_we_ask_seldom(case: Case) {
    let builder = if case.ropewalk_binds { Pull::builder() } else { Pull::builder().no_heartbeat() };
    we_stall(case, builder).await;
}

async fn we_stall(case: Case, builder: Builder<Puller>) {
    let peer = Peer::with(SocketType::PUSH, zmq_beating);
    let pull = case.link(builder, &peer).await;
    let mut events = pull.events();
    let sent = fill(|next| peer.try_send(&numbered(next))).await;
    nobody_dies(&mut events, &peer, STALL).await;
    for wanted in 0..sent {
        let got = alive(&mut events, &peer, "a message", pull.recv()).await.unwrap();
        assert_eq!(number(got.part(0).unwrap()), wanted);
    }
    nobody_dies(&mut events, &peer, Duration::ZERO).await;
}

async fn our_replier_stalls(case: Case) {
    let peer = Peer::with(SocketType::DEALER, zmq_beating);
    let rep = case.link(beating(Rep::builder()), &peer).await;
    let mut events = rep.events();
    let sent = fill(|next| {
        let sent = peer.raw().send_multipart([&b""[..], &numbered(next)], zmq::DONTWAIT);
        sent.is_ok()
    })
    .await;
    nobody_dies(&mut events, &peer, STALL).await;
    for wanted in 0..sent {
        let request = alive(&mut events, &peer, "a request", rep.recv()).await.unwrap();
        assert_eq!(number(request.message().part(0).unwrap()), wanted);
        request.reply(wanted.to_be_bytes().to_vec()).await.unwrap();
        let answer = alive(&mut events, &peer, "the answer", peer.received()).await;
        assert_eq!(answer, [Vec::new(), wanted.to_be_bytes().to_vec()]);
    }
    nobody_dies(&mut events, &peer, Duration::ZERO).await;
}

/// libzmq asks us whether we are there but does not judge by the answer: see
/// [`a_stalled_libzmq_that_judges_ends_the_link_itself`].
async fn libzmqs_application_stalls(case: Case) {
    let peer = Peer::with(SocketType::PULL, |socket| {
        zmq_beating(socket);
        socket.set_heartbeat_timeout(0).unwrap();
    });
    let push = case.link(beating(Push::builder()), &peer).await;
    let mut events = push.events();
    let sent = fill(|next| try_push(&push, next)).await;
    nobody_dies(&mut events, &peer, STALL).await;
    for wanted in 0..sent {
        let got = alive(&mut events, &peer, "a message", peer.received()).await;
        assert_eq!(number(&got[0]), wanted);
    }
    nobody_dies(&mut events, &peer, Duration::ZERO).await;
}

/// With a queue that holds all, libzmq goes on reading and can judge.
async fn libzmqs_application_stalls_with_room(case: Case) {
    let peer = Peer::with(SocketType::PULL, |socket| {
        zmq_beating(socket);
        socket.set_rcvhwm(0).unwrap();
    });
    let push = case.link(beating(Push::builder()), &peer).await;
    let mut events = push.events();
    for next in 0..10_000 {
        within("send", push.send(numbered(next))).await.unwrap();
    }
    nobody_dies(&mut events, &peer, STALL).await;
    for wanted in 0..10_000 {
        let got = alive(&mut events, &peer, "a message", peer.received()).await;
        assert_eq!(number(&got[0]), wanted);
    }
    nobody_dies(&mut events, &peer, Duration::ZERO).await;
}

/// libzmq stops reading when its queue is full, then misses the PONGs that lie unread before it, takes us for dead and
/// closes. Nothing at our end can help that; what was lost by it is counted, and the link comes back.
async fn a_stalled_libzmq_that_judges_ends_the_link_itself(case: Case) {
    let peer = Peer::with(SocketType::PULL, zmq_beating);
    let push = case.link(beating(Push::builder()), &peer).await;
    let mut events = push.events();
    let mut sent = fill(|next| try_push(&push, next)).await;
    peer.wait_for(SocketEvent::DISCONNECTED);
    let in_doubt = wait_for("the end of the link", &mut events, |event| match event {
        Event::PeerDown { reason: DownReason::Ended | DownReason::Io(_), in_doubt, .. } => Some(*in_doubt),
        Event::PeerDown { reason, .. } => panic!("{reason:?}"),
        _ => None,
    })
    .await;
    assert!(in_doubt > 0);
    // Now its application reads, the last message of all too.
    let last = sent;
    let mut got = Vec::new();
    while got.last() != Some(&last) {
        if sent == last && try_push(&push, sent) {
            sent += 1;
        }
        if let Some(message) = peer.recv_within(Duration::from_millis(5)) {
            got.push(number(&message[0]));
        }
        assert!(got.len() <= sent as usize);
    }
    // What libzmq still has of the first link it gives in turns with what the next one brings.
    let (mut ahead, mut behind) = (None, None);
    for &number in &got {
        let place = if ahead < Some(number) { &mut ahead } else { &mut behind };
        assert!(place.replace(number) < Some(number), "in the order of its link: {number} in {got:?}");
    }
    let once = BTreeSet::from_iter(got.iter().copied());
    assert_eq!(once.len(), got.len(), "none twice");
    let lost = u64::from(sent) - got.len() as u64;
    let stats = push.stats();
    let in_doubt = stats.in_doubt + stats.peers.iter().map(|peer| peer.in_doubt).sum::<u64>();
    assert!(lost <= in_doubt, "{lost} lost, {in_doubt} in doubt");
}

fn try_push(push: &Push, next: u32) -> bool {
    match push.try_send(numbered(next)) {
        Ok(()) => true,
        Err(TrySendError::Full(_)) => false,
        Err(error) => panic!("{error}"),
    }
}

/// The answers of our Rep fill everything on the way to a DEALER that does not take them.
async fn libzmqs_requester_stalls(case: Case) {
    let peer = Peer::with(SocketType::DEALER, |socket| {
        zmq_beating(socket);
        socket.set_heartbeat_timeout(0).unwrap();
    });
    let rep = case.link(beating(Rep::builder()).send_hwm(20), &peer).await;
    let mut events = rep.events();
    let answering = tokio::spawn(async move {
        while let Ok(request) = rep.recv().await {
            let body = request.message().clone();
            request.reply(body).await.unwrap();
        }
    });
    let sent = fill(|next| peer.raw().send_multipart([&b""[..], &numbered(next)], zmq::DONTWAIT).is_ok()).await;
    nobody_dies(&mut events, &peer, STALL).await;
    for wanted in 0..sent {
        let got = alive(&mut events, &peer, "an answer", peer.received()).await;
        assert_eq!(number(&got[1]), wanted);
    }
    nobody_dies(&mut events, &peer, Duration::ZERO).await;
    answering.abort();
}

async fn a_peer_that_streams_hears_from_us(case: Case) {
    let peer = Peer::new(SocketType::PUSH);
    let pull = case.link(beating(Pull::builder()), &peer).await;
    let mut events = pull.events();
    // Idle for long enough that we asked whether it is there, then never silent for so long again.
    nobody_dies(&mut events, &peer, EVERY * 3).await;
    let sending = tokio::task::spawn_blocking(move || {
        for number in 0..60_u32 {
            peer.raw().send(&number.to_be_bytes()[..], 0).unwrap();
            std::thread::sleep(Duration::from_millis(20));
        }
        peer
    });
    for wanted in 0..60_u32 {
        let got = within("recv", pull.recv()).await.unwrap();
        assert_eq!(parts(&got), [wanted.to_be_bytes()]);
    }
    let peer = within("the sender", sending).await.unwrap();
    nobody_dies(&mut events, &peer, Duration::ZERO).await;
}

async fn both_are_idle(case: Case) {
    let peer = Peer::with(SocketType::PULL, zmq_beating);
    let push = case.link(beating(Push::builder()), &peer).await;
    let mut events = push.events();
    nobody_dies(&mut events, &peer, STALL).await;
    push.send("still there").await.unwrap();
    assert_eq!(peer.recv_text(), "still there");
}

// ---- peers made of bytes, for what libzmq cannot be made to do at will --------------------------------------------

/// Our socket, and a peer of this minor version of ZMTP 3 and this role that does what the test says.
async fn by_hand<P: Pattern>(builder: Builder<P>, minor: u8, role: &[u8; 4]) -> (Socket<P>, Events, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("tcp://{}", listener.local_addr().unwrap());
    let socket = beating(builder).connect(address).await.unwrap();
    let events = socket.events();
    let (mut stream, _) = within("the dial", listener.accept()).await.unwrap();
    let mut hello = [0; 64];
    (hello[0], hello[9], hello[10], hello[11]) = (0xFF, 0x7F, 3, minor);
    hello[12..16].copy_from_slice(b"NULL");
    stream.write_all(&hello).await.unwrap();
    stream.write_all(b"\x04\x1A\x05READY\x0BSocket-Type\0\0\0\x04").await.unwrap();
    stream.write_all(role).await.unwrap();
    within("the link", socket.ready()).await.unwrap();
    let mut greeting = [0; 64];
    stream.read_exact(&mut greeting).await.unwrap();
    assert_eq!(&frame(&mut stream).await[..6], b"\x05READY");
    (socket, events, stream)
}

/// The next short frame's body.
async fn frame(stream: &mut TcpStream) -> Vec<u8> {
    within("a frame", async {
        let [_, length] = [stream.read_u8().await.unwrap(), stream.read_u8().await.unwrap()];
        let mut body = vec![0; usize::from(length)];
        stream.read_exact(&mut body).await.unwrap();
        body
    })
    .await
}

/// How long until the peer is taken for dead. None: it is not.
async fn dead_within(events: &mut Events, time: Duration) -> Option<Duration> {
    let dies = async {
        loop {
            match events.next().await.unwrap() {
                Event::PeerDown { reason: DownReason::Dead { silent }, .. } => return silent,
                Event::PeerDown { reason, .. } => panic!("{reason:?}"),
                _ => {}
            }
        }
    };
    tokio::time::timeout(time, dies).await.ok()
}

#[tokio::test]
async fn who_does_not_answer_is_dead() {
    let (_push, mut events, mut stream) = by_hand(Push::builder(), 1, b"PULL").await;
    let ping = frame(&mut stream).await;
    assert_eq!(&ping[..5], b"\x04PING");
    assert_eq!(ping[5..7], [0, 0], "a plain peer is not told to judge us by our silence");
    let silent = dead_within(&mut events, STALL).await.expect("dead");
    assert!(silent >= DEAD && silent < DEAD * 3, "{silent:?}");
}

#[tokio::test]
async fn who_answers_late_what_went_before_the_messages_may_be_busy_with_them() {
    let (push, mut events, mut stream) = by_hand(Push::builder(), 1, b"PULL").await;
    let ping = frame(&mut stream).await;
    push.send("takes long").await.unwrap();
    assert_eq!(frame(&mut stream).await, b"takes long");
    // The answer to the PING before the message says nothing about the message.
    stream.write_all(&[&[4, 13][..], b"\x04PONG", &ping[7..]].concat()).await.unwrap();
    assert_eq!(dead_within(&mut events, STALL).await, None);
    // Once it has answered what came behind the message, there is no excuse any more.
    let ping = loop {
        let ping = frame(&mut stream).await;
        if ping[7..] == 1_u64.to_be_bytes() {
            break ping;
        }
    };
    stream.write_all(&[&[4, 13][..], b"\x04PONG", &ping[7..]].concat()).await.unwrap();
    assert!(dead_within(&mut events, STALL).await.is_some());
}

#[tokio::test]
async fn who_answers_without_context_is_asked_all_the_same() {
    let (push, mut events, mut stream) = by_hand(Push::builder(), 1, b"PULL").await;
    push.send("message").await.unwrap();
    for _ in 0..6 {
        while frame(&mut stream).await[..1] != [4] {}
        stream.write_all(b"\x04\x05\x04PONG").await.unwrap();
    }
    assert_eq!(dead_within(&mut events, DEAD / 2).await, None);
    assert!(dead_within(&mut events, STALL).await.is_some());
}

/// ZMTP 3.0 has no PING, so silence says nothing.
#[tokio::test]
async fn who_cannot_be_asked_is_not_judged() {
    let (push, mut events, mut stream) = by_hand(Push::builder(), 0, b"PULL").await;
    assert_eq!(dead_within(&mut events, STALL).await, None);
    push.send("still there").await.unwrap();
    assert_eq!(frame(&mut stream).await, b"still there", "and nothing else came, no PING above all");
}

/// Nor is it told unasked that we are there while we do not read: a strict 3.0 peer ends the link over a PONG.
#[tokio::test]
async fn who_does_not_know_of_pongs_gets_none() {
    let (pull, mut events, mut stream) = by_hand(Pull::builder().recv_hwm(1), 0, b"PUSH").await;
    stream.write_all(b"\0\x01a\0\x01b\0\x01c").await.unwrap();
    assert_eq!(dead_within(&mut events, DEAD * 2).await, None);
    for wanted in ["a", "b", "c"] {
        assert_eq!(within("recv", pull.recv()).await.unwrap(), wanted);
    }
    let mut heard = [0; 1];
    assert!(tokio::time::timeout(DEAD, stream.read(&mut heard)).await.is_err(), "{heard:?}");
}
