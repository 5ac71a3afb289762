//! ZeroMQ's socket patterns between processes, without a broker: bounded everywhere, and nothing lost in silence.

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod endpoint;
mod error;
mod events;
mod hub;
mod link;
mod options;
mod sockets;
mod stats;
mod transport;

pub use ropewalk_patterns as patterns;
pub use ropewalk_patterns::{
    Body, DecodeError, EncodeError, IntoPart, Message, Misbehaved, Role, Tally,
    extension::RefusalReason,
    pub_sub::{Heard, Overflow},
};

pub use crate::{
    error::{
        AddressError, BindError, Closed, ConnectError, NoSuchEndpoint, ReplyError, RequestError, SendError,
        SubRecvError, SubTryRecvError, SubscribeError, TryRecvError, TrySendError,
    },
    events::{DownReason, Event, Events, PeerInfo},
    options::Builder,
    sockets::{Asker, Pub, Pull, Push, Received, Rep, Req, Request, RequestBuilder, Sending, Socket, Sub, VerbError},
    stats::{CloseReport, PeerStats, Stats},
    transport::Address,
};
