//! Attacks on listeners where peers prove who they are: refused within the deadline, by name, in bounded memory, and an
//! honest peer beside them goes on.

#![cfg(all(feature = "tls", feature = "quic"))]

mod common;

use std::{
    collections::HashSet,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use common::{
    KEY, address_of, keyed, memory,
    raw::{Raw, hello, quic, stream, tcp},
    refused, run, soon, tls, until,
};
use quinn::Endpoint;
use ropewalk::{DownReason, Event, Pull, Push, Rep, Req, Role, Socket, patterns::Pattern};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, UdpSocket},
    task::JoinHandle,
};

const DEADLINE: Duration = Duration::from_millis(500);

/// Only one measures the memory of the process, or keeps it busy, at a time.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

fn host_and_port(address: &str) -> SocketAddr {
    address.rsplit_once(['@', '/']).unwrap().1.parse().unwrap()
}

async fn no_peer<P: Pattern>(socket: &Socket<P>) {
    until("all to be gone", || socket.stats().peers.is_empty()).await;
}

/// Asks one question after another, and is answered, until it is told to stop.
struct Honest {
    stop: Arc<AtomicBool>,
    asking: JoinHandle<Vec<Duration>>,
}

impl Honest {
    async fn asks(rep: &Rep) -> Self {
        let serving = rep.clone();
        tokio::spawn(async move { serving.serve(4, |question| async move { question }).await });
        let req = keyed(Req::builder()).connect(address_of(rep)).await.unwrap();
        soon("the honest peer", req.ready()).await.unwrap();
        let stop = Arc::<AtomicBool>::default();
        let asking = tokio::spawn({
            let stop = Arc::clone(&stop);
            async move {
                let mut took = Vec::new();
                while !stop.load(Relaxed) {
                    let asked = Instant::now();
                    let question = took.len().to_string();
                    let answer = soon("an answer", async { req.request(question.as_str()).await }).await;
                    assert_eq!(answer.unwrap(), question.as_str());
                    took.push(asked.elapsed());
                }
                took
            }
        });
        Self { stop, asking }
    }

    /// How long 99 of 100 questions took at most. Nothing depends on it: it is for those who look.
    async fn p99(self) -> Duration {
        self.stop.store(true, Relaxed);
        let mut took = soon("the honest peer", self.asking).await.unwrap();
        assert!(!took.is_empty());
        took.sort();
        took[took.len() * 99 / 100]
    }
}

/// Initials of so many handshakes that nobody will go on with.
async fn initials(count: usize) -> Vec<Vec<u8>> {
    let nowhere = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let to = nowhere.local_addr().unwrap();
    let endpoint = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let (config, mut buffer) = (tls::quic(&KEY), vec![0; 1500]);
    let (mut all, mut ids) = (Vec::new(), HashSet::new());
    while all.len() < count {
        let _given_up = endpoint.connect_with(config.clone(), to, "peer.invalid").unwrap();
        loop {
            let len = soon("an Initial", nowhere.recv(&mut buffer)).await.unwrap();
            // What closes an attempt goes to the same connection id, and is no beginning of another.
            let id = buffer[6..][..usize::from(buffer[5])].to_vec();
            if ids.insert(id) {
                all.push(buffer[..len].to_vec());
                break;
            }
        }
    }
    all
}

#[test]
fn five_thousand_handshakes_begin_and_none_goes_on() {
    run(async {
        let _alone = ALONE.lock().await;
        let initials = initials(5_000).await;
        let rep = keyed(Rep::builder()).handshake_timeout(DEADLINE).bind("quic://127.0.0.1:0").await.unwrap();
        let mut events = rep.events();
        let before = Honest::asks(&rep).await;
        tokio::time::sleep(DEADLINE).await;
        let usual = before.p99().await;
        let honest = Honest::asks(&rep).await;
        let memory_before = memory();
        let (mut senders, mut most) = (Vec::new(), memory_before);
        for (index, initial) in initials.iter().enumerate() {
            // A few from each port, as a botnet would.
            if index % 5 == 0 {
                let sender = UdpSocket::bind("127.0.0.1:0").await.unwrap();
                sender.connect(host_and_port(&address_of(&rep))).await.unwrap();
                senders = vec![sender];
            }
            let _lost = senders[0].send(initial).await;
            if index % 5 == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            if index % 100 == 0 {
                most = most.max(memory());
            }
        }
        let grown = most.max(memory()) - memory_before;
        // Those that got as far as a handshake are let go in time, and said why.
        for _ in 0..32 {
            let reason = refused(&mut events).await;
            assert!(matches!(reason, DownReason::HandshakeTimeout | DownReason::TooManyHandshakes), "{reason}");
        }
        // One who can be answered gets in all the same.
        let late = keyed(Req::builder()).connect(address_of(&rep)).await.unwrap();
        assert_eq!(soon("an answer", async { late.request("late").await }).await.unwrap(), "late");
        let under = honest.p99().await;
        println!("p99 {usual:?} alone, {under:?} beside 5,000 handshakes; memory grew by {} KiB", grown >> 10);
        assert!(grown < 64 << 20, "{} MiB for 5,000 handshakes", grown >> 20);
    });
}

#[test]
fn a_handshake_at_one_byte_after_another_ends_at_the_deadline() {
    run(async {
        let _alone = ALONE.lock().await;
        let rep = keyed(Rep::builder()).handshake_timeout(DEADLINE).bind("tls://127.0.0.1:0").await.unwrap();
        let mut events = rep.events();
        let honest = Honest::asks(&rep).await;
        // A whole ClientHello, recorded.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dials = keyed(Req::builder()).connect(format!("tls://{}@{}", KEY.id(), listener.local_addr().unwrap()));
        let _dials = dials.await.unwrap();
        let (mut dialled, _) = soon("a dialler", listener.accept()).await.unwrap();
        let mut client_hello = vec![0; 4096];
        let len = soon("a ClientHello", dialled.read(&mut client_hello)).await.unwrap();
        let mut slow = Vec::new();
        for _ in 0..50 {
            let (mut stream, bytes) =
                (tcp(&host_and_port(&address_of(&rep)).to_string()).await, client_hello[..len].to_vec());
            slow.push(tokio::spawn(async move {
                let mut written = 0;
                for byte in bytes {
                    if stream.write_all(&[byte]).await.is_err() {
                        break;
                    }
                    written += 1;
                    let ended = tokio::time::timeout(Duration::from_millis(20), stream.read(&mut [0])).await;
                    if matches!(ended, Ok(Ok(0) | Err(_))) {
                        break;
                    }
                }
                written
            }));
        }
        for _ in 0..50 {
            let reason = refused(&mut events).await;
            assert!(matches!(reason, DownReason::HandshakeTimeout), "{reason}");
        }
        for slow in slow {
            assert!(soon("the end of a slow one", slow).await.unwrap() < len, "it said all it had to say");
        }
        honest.p99().await;
    });
}

/// One who has listened to an honest handshake, and all that followed, says it again.
#[test]
fn what_was_recorded_is_worth_nothing() {
    run(async {
        let _alone = ALONE.lock().await;
        for scheme in ["tls", "quic"] {
            let pull = keyed(Pull::builder()).handshake_timeout(DEADLINE).bind(format!("{scheme}://127.0.0.1:0")).await;
            let pull = pull.unwrap();
            let mut events = pull.events();
            let at = host_and_port(&address_of(&pull));
            let recorder = if scheme == "tls" { record_stream(at).await } else { record_datagrams(at).await };
            let push = keyed(Push::builder());
            let push = push.connect(address_of(&pull).replace(&at.to_string(), &recorder.address.to_string())).await;
            let push = push.unwrap();
            for number in 0..10 {
                push.send(number.to_string()).await.unwrap();
                assert_eq!(soon("a message", pull.recv()).await.unwrap(), number.to_string().as_str());
            }
            let report = push.close().await;
            assert!(report.all_delivered(), "{report:?}");
            no_peer(&pull).await;
            let said = std::mem::take(&mut *recorder.said.lock().unwrap());
            assert!(said.iter().map(Vec::len).sum::<usize>() > 500);
            if scheme == "tls" {
                let mut stream = tcp(&at.to_string()).await;
                let _cut_off = stream.write_all(&said.concat()).await;
                let reason = refused(&mut events).await;
                assert!(matches!(reason, DownReason::Insecure(_)), "{reason}");
            } else {
                let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
                socket.connect(at).await.unwrap();
                let again = async {
                    // As long as the listener remembers the connection it takes them for late ones of that.
                    loop {
                        for datagram in &said {
                            let _lost = socket.send(datagram).await;
                        }
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                };
                let reason = tokio::select! {
                    reason = refused(&mut events) => reason,
                    () = again => unreachable!("it goes on and on"),
                };
                assert!(matches!(reason, DownReason::HandshakeTimeout | DownReason::Insecure(_)), "{reason}");
            }
            let stats = pull.stats();
            assert_eq!((stats.received, stats.peers.len()), (10, 0));
        }
    });
}

/// What a dialler says to the listener, in pieces as they came.
struct Recorder {
    address: SocketAddr,
    said: Arc<Mutex<Vec<Vec<u8>>>>,
}

async fn record_stream(listener: SocketAddr) -> Recorder {
    let front = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let recorder = Recorder { address: front.local_addr().unwrap(), said: Arc::default() };
    let said = Arc::clone(&recorder.said);
    tokio::spawn(async move {
        let (dialler, _) = front.accept().await.unwrap();
        let (mut up, mut down) = dialler.into_split();
        let (mut back, mut forth) = tcp(&listener.to_string()).await.into_split();
        let answers = tokio::spawn(async move { tokio::io::copy(&mut back, &mut down).await });
        let mut bytes = vec![0; 1 << 16];
        while let Ok(len @ 1..) = up.read(&mut bytes).await {
            said.lock().unwrap().push(bytes[..len].to_vec());
            forth.write_all(&bytes[..len]).await.unwrap();
        }
        drop(forth);
        let _ended = answers.await;
    });
    recorder
}

async fn record_datagrams(listener: SocketAddr) -> Recorder {
    let [front, back] = [UdpSocket::bind("127.0.0.1:0").await.unwrap(), UdpSocket::bind("127.0.0.1:0").await.unwrap()];
    back.connect(listener).await.unwrap();
    let recorder = Recorder { address: front.local_addr().unwrap(), said: Arc::default() };
    let said = Arc::clone(&recorder.said);
    tokio::spawn(async move {
        let (mut out, mut home) = (vec![0; 1 << 16], vec![0; 1 << 16]);
        let mut dialler = None;
        loop {
            tokio::select! {
                came = front.recv_from(&mut out) => if let Ok((len, from)) = came {
                    dialler = Some(from);
                    said.lock().unwrap().push(out[..len].to_vec());
                    let _lost = back.send(&out[..len]).await;
                },
                came = back.recv(&mut home) => if let (Ok(len), Some(dialler)) = (came, dialler) {
                    let _lost = front.send_to(&home[..len], dialler).await;
                },
            }
        }
    });
    recorder
}

/// Peers that are let in, open all the streams they may, and say half of what they would have to.
#[test]
fn who_opens_every_stream_and_stalls_is_let_go() {
    run(async {
        let _alone = ALONE.lock().await;
        let every = Duration::from_millis(200);
        // A datagram that is lost on the way is sent again after a second.
        let rep = keyed(Rep::builder()).handshake_timeout(4 * DEADLINE).heartbeat(every, 5 * every);
        let rep = rep.bind("quic://127.0.0.1:0").await.unwrap();
        let mut events = rep.events();
        let honest = Honest::asks(&rep).await;
        let memory_before = memory();
        let at = host_and_port(&address_of(&rep)).to_string();
        let mut stalled = Vec::new();
        for index in 0..40 {
            let connection = quic(&at).await;
            let mut streams = vec![stream(&connection).await, stream(&connection).await];
            let third = tokio::time::timeout(Duration::from_millis(5), connection.open_bi()).await;
            assert!(third.is_err(), "there is a third stream: {third:?}");
            let other = tokio::time::timeout(Duration::from_millis(5), connection.open_uni()).await;
            assert!(other.is_err(), "there is a stream of another kind: {other:?}");
            if index % 2 == 0 {
                // Half a greeting.
                for stream in &mut streams {
                    stream.write_all(&ropewalk::patterns::zmtp::greeting()[..32]).await.unwrap();
                }
            } else {
                // A link, then most of a large message, as far as the stream takes it, and half a command.
                let mut data = Raw::over(streams.remove(0));
                data.shake(Role::REQ, hello(10, 10_000)).await;
                let begun = [&b"\x02\0\0\0\0\0\x30\0\0"[..], &vec![7; 2 << 20]].concat();
                let _taken = tokio::time::timeout(Duration::from_millis(200), data.try_write(&begun)).await;
                streams[0].write_all(b"\x04\x07\x04PI").await.unwrap();
                stalled.push((connection.clone(), Some(data), Vec::new()));
            }
            stalled.push((connection, None, streams));
        }
        let grown = memory().saturating_sub(memory_before);
        let (mut late, mut dead) = (0, 0);
        while late < 20 || dead < 20 {
            match soon("an event", events.next()).await.unwrap() {
                Event::HandshakeFailed { reason: DownReason::HandshakeTimeout, .. } => late += 1,
                // QUIC itself may find it out first.
                Event::PeerDown { reason: DownReason::Dead { .. } | DownReason::Io(_), .. } => dead += 1,
                Event::PeerUp { .. } => {}
                other => panic!("{other:?}"),
            }
        }
        let p99 = honest.p99().await;
        println!("p99 {p99:?} beside 40 stalled peers; memory grew by {} KiB, ours and theirs", grown >> 10);
        // At both ends together: what a stream may hold, and what quinn keeps of it.
        assert!(grown < 200 << 20, "{} MiB", grown >> 20);
    });
}
