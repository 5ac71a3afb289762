//! Who is measured.

use crate::{
    transport::Transport,
    workload::{Kind, Workload},
};

/// A library in one of its modes.
#[derive(Debug, Clone, Copy)]
pub struct Contestant {
    pub name: &'static str,
    pub library: &'static str,
    over: &'static [Transport],
    /// `ct` current-thread, `mt` multi-thread and spawned, `main` in `block_on` of a multi-thread runtime.
    pub runtime: &'static str,
    /// Batches where the library has them, or else another way of its own.
    pub many: bool,
    /// How much slower than the fastest it is taken to be, so that its run takes no longer.
    pub slower: f64,
}

const TCP: &[Transport] = &[Transport::Tcp];
const TLS: &[Transport] = &[Transport::Tls];
const QUIC: &[Transport] = &[Transport::Quic];
const EACH: &[Transport] = &[Transport::Tcp, Transport::Tls, Transport::Quic];

pub const CONTESTANTS: &[Contestant] = &[
    contestant("raw TCP", "raw", TCP, "ct", 1.0),
    contestant("raw tokio-rustls", "raw", TLS, "ct", 1.0),
    contestant("raw quinn", "raw", QUIC, "ct", 1.0),
    contestant("ropewalk ct", "ropewalk", EACH, "ct", 1.0),
    contestant("ropewalk ct, recv_many", "ropewalk", EACH, "ct", 1.0).many(),
    contestant("ropewalk mt", "ropewalk", EACH, "mt", 1.0),
    contestant("ropewalk main", "ropewalk", TCP, "main", 1.0),
    contestant("libzmq", "libzmq", TCP, "ct", 0.5),
    contestant("omq-tokio ct", "omq", TCP, "ct", 0.5),
    contestant("omq-tokio ct, recv_many", "omq", TCP, "ct", 0.5).many(),
    contestant("omq-tokio mt", "omq", TCP, "mt", 0.5),
    contestant("omq-tokio main", "omq", TCP, "main", 0.5),
    contestant("zeromq ct", "zeromq", TCP, "ct", 0.3),
    contestant("zeromq mt", "zeromq", TCP, "mt", 0.3),
];

/// Those that are only there if they were asked for.
#[cfg(feature = "encrypted-peers")]
pub const ENCRYPTED_PEERS: &[Contestant] = &[
    contestant("msg-socket ct", "msg-socket", QUIC, "ct", 0.5),
    contestant("msg-socket mt", "msg-socket", QUIC, "mt", 0.5),
    contestant("msg-socket, PUB and SUB", "msg-socket", QUIC, "mt", 0.3).many(),
    contestant("zenoh", "zenoh", &[Transport::Tls, Transport::Quic], "its own", 0.5),
    contestant("zenoh, pings and pongs", "zenoh", &[Transport::Tls, Transport::Quic], "its own", 0.5).many(),
];
#[cfg(not(feature = "encrypted-peers"))]
pub const ENCRYPTED_PEERS: &[Contestant] = &[];

const fn contestant(
    name: &'static str,
    library: &'static str,
    over: &'static [Transport],
    runtime: &'static str,
    slower: f64,
) -> Contestant {
    Contestant { name, library, over, runtime, many: false, slower }
}

impl Contestant {
    const fn many(self) -> Self {
        Self { many: true, ..self }
    }

    /// What it does where others do this.
    pub fn does(&self, kind: Kind) -> Kind {
        // It has no PUSH and PULL.
        let publishes = self.library == "msg-socket" && self.many;
        if publishes { Kind::Fan } else { kind }
    }

    pub fn takes_part(&self, workload: &Workload) -> bool {
        let raw_can = !matches!(workload.kind, Kind::In | Kind::Out | Kind::Beside);
        let batches = if self.library == "zenoh" { Kind::RoundTrip } else { Kind::OneWay };
        self.over.contains(&workload.transport)
            && (self.library != "raw" || raw_can)
            && (!self.many || workload.kind == batches)
    }
}
