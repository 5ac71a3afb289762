//! ZeroMQ's socket patterns between processes, without a broker: bounded everywhere, and nothing lost in silence.
//!
//! Each process of a distributed program owns sockets, and sockets talk to each other directly over `tcp://`, `tls://`,
//! `quic://`, `ipc://` (Unix) and `inproc://`. There is nothing in the middle to install, run, scale or lose. On the wire it is ZMTP 3.1
//! (and 3.0), so any ZeroMQ process is a peer for these patterns; what goes beyond it is said only to peers that are
//! Ropewalk too.
//!
//! # The smallest programs
//! Here both ends are in one process, to be short. `bind` and `connect` may be on either side, in either order.
//!
//! Each message to one worker:
//!
//! ```
//! use ropewalk::{Pull, Push};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let pull = Pull::bind("tcp://127.0.0.1:0").await?; // port 0: any free one
//! let address = pull.address().unwrap().to_string();
//!
//! let push = Push::connect(&address).await?;
//! push.send("resize cat.png").await?;
//!
//! let job = pull.recv().await?;
//! assert_eq!(job, "resize cat.png");
//! assert!(push.close().await.all_delivered());
//! # pull.close().await; Ok(()) }
//! ```
//!
//! Each message to all who subscribed to a prefix of its topic:
//!
//! ```
//! use ropewalk::{Pub, Sub};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let publisher = Pub::bind("tcp://127.0.0.1:0").await?;
//! # let address = publisher.address().unwrap().to_string();
//!
//! let subscriber = Sub::connect(&address).await?;
//! subscriber.subscribe("weather.").await?;
//!
//! publisher.subscribers("weather.oslo", 1).await?; // wait for one; no sleeping and hoping
//! publisher.publish("weather.oslo", "rain").await?;
//!
//! let message = subscriber.recv().await?;
//! assert_eq!((message.topic(), message.text()?), (&b"weather.oslo"[..], "rain"));
//! # publisher.close().await; subscriber.close().await; Ok(()) }
//! ```
//!
//! A question to one, and its answer; any number at once:
//!
//! ```
//! use ropewalk::{Rep, Req};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let rep = Rep::bind("tcp://127.0.0.1:0").await?;
//! # let address = rep.address().unwrap().to_string();
//! tokio::spawn(async move {
//!     while let Ok(request) = rep.recv().await {
//!         let _gone = request.reply("42").await;
//!     }
//! });
//!
//! let req = Req::connect(&address).await?;
//! let (one, two) = tokio::try_join!(
//!     req.request("how many?").into_future(),
//!     req.request("and how many of those?").into_future(),
//! )?;
//! assert_eq!((one.text()?, two.text()?), ("42", "42"));
//! # req.close().await; Ok(()) }
//! ```
//!
//! Values instead of bytes, by serde and postcard:
//!
//! ```
//! use ropewalk::Message;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let message = Message::encode(&("cat.png", 640, 480))?;
//! let (picture, width, height): (String, i32, i32) = message.decode()?;
//! # assert_eq!((&picture[..], width, height), ("cat.png", 640, 480)); Ok(()) }
//! ```
//!
//! The directory `examples` of the repository has longer ones, and the tool `ropewalk` (feature `cli`) talks to all of
//! them from a shell.
//!
//! # Which pattern
//! | sockets | who gets a message | when it is full | when nobody is there |
//! |---|---|---|---|
//! | [`Push`] to [`Pull`] | one peer, in turn among those with room | `send` waits | waits for a dialled endpoint up to `send_hwm`; a socket that only listens lets its senders wait |
//! | [`Pub`] to [`Sub`] | every peer that subscribed to a prefix of the topic | as [`Overflow`] says: drop the newest (default), drop the oldest, wait, or close the link | nobody gets it, and that is no error |
//! | [`Req`] to [`Rep`] | one peer, in turn; the answer comes back to who asked | `request` waits, up to its timeout | as with `Push`, up to its timeout |
//! | [`Socket::with_pattern`] | as your own [`patterns::Pattern`] decides | | |
//!
//! # What is promised
//! - **Bounded.** No queue grows with what a peer does beyond a limit that the options of the [`Builder`] name. Limits
//!   are checked before memory is taken.
//! - **Nothing is lost in silence.** A message is delivered; or its loss is an error to the caller; or it is a counted
//!   drop, of which the subscriber hears at its place ([`SubRecvError::Lagged`]); or it is counted as in doubt or lost
//!   by [`Event::PeerDown`], [`Event::Lost`], [`Stats`] and [`CloseReport`].
//! - **Backpressure is exact.** Between Ropewalk peers at most `send_hwm + recv_hwm` messages are accepted and not yet
//!   taken by the application.
//! - **Order** is kept from one sender to one receiver over one link. When a link dies, what was not wholly written goes
//!   first, in its order, to the next peer of a `Push`.
//! - **No panic** and no memory without bound from any bytes a peer can send.
//!
//! A message survives the process that holds it if it is kept: give the sender a directory, and it is there until the far
//! application has confirmed it, whoever crashes ([`delivery`]). Without that, what a dead peer had not taken, or had taken
//! and not worked on, is gone with it: [`Event::PeerDown`] says that it happened and how many are in doubt.
//!
//! # What survives
//! ```
//! use ropewalk::{Pull, Push, spool::Durability};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let directory = tempfile::tempdir()?; let directory = directory.path();
//! let push = Push::builder().spool(directory, Durability::Always).bind("tcp://127.0.0.1:0").await?;
//! push.send("one coat").await?; // on the disk, with no receiver yet
//!
//! let pull = Pull::connect(push.address().unwrap().to_string()).await?;
//! let order = pull.recv_delivery().await?;
//! assert_eq!(order.text()?, "one coat");
//! order.ack().await?; // done; before that it would go to another if this process died
//! # push.close().await; pull.close().await; Ok(()) }
//! ```
//!
//! And to each of several subscribers that come and go, by name:
//!
//! ```
//! use ropewalk::{Pub, Replay, Sub, spool::Durability};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let directory = tempfile::tempdir()?; let directory = directory.path();
//! let news = Pub::builder().spool(directory, Durability::Always).bind("tcp://127.0.0.1:0").await?;
//! news.publish("order", "one coat").await?;
//!
//! let billing = Sub::builder().name("billing").subscribe("order").replay(Replay::Earliest);
//! let billing = billing.connect(news.address().unwrap().to_string()).await?;
//! assert_eq!(billing.recv().await?.payload(), b"one coat");
//! # news.close().await; billing.close().await; Ok(()) }
//! ```
//!
//! # Who the others are
//! On `quic://` and `tls://` a peer is its key, and both ends prove theirs: [`SecretKey`], [`Builder::key`],
//! [`Builder::allow`], [`PeerInfo::id`]. What each may do, [`Builder::authorize`] says. Plain `tcp://` that leaves the
//! machine is an error unless the code says [`danger_plaintext`](Builder::danger_plaintext). `SECURITY.md` says what that
//! protects and what not.
//!
//! # How a message travels
//! ```text
//!   Push::send                                                                   Pull::recv
//!       |  the pattern picks a peer, under the socket's lock                         ^
//!       v                                                                            |  in turn of each peer
//!   the peer's queue                                                           the peer's inbox
//!    up to send_hwm without credit                                              up to recv_hwm
//!       |  all that is there in one write                                            ^
//!       v                                                                            |  as it was read, undivided
//!     link  =============================== bytes ============================>    link
//!       ^                                                                            |
//!       +------------- credit: what was taken, and how much more may come -----------+
//! ```
//! With `inproc://` buffers go from queue to inbox as they are.
//!
//! # Flow control
//! A receiver lets each peer have `recv_hwm` messages and bytes in flight to it, and gives credit back as its application
//! takes messages. A sender holds up to `send_hwm` more of them that have no credit yet; then it is full. So the kernel's
//! buffers add nothing, and a receiver that does not receive stops its senders, not their memory. `send_budget` and
//! `recv_budget` bound all peers of a socket together. Peers that do not know credit (any other ZeroMQ) are held back by
//! the transport: when the inbox is full, nothing more is read.
//!
//! A byte bound never keeps a message out for ever: one that is alone may be larger, up to
//! [`max_message`](Builder::max_message).
//!
//! # Cancel safety
//! Dropping any future of this crate at any await loses nothing and doubles nothing by itself; the section *Cancel safety*
//! of each says what it left. (A message that goes into a directory is accepted before the disk has it: one that was dropped
//! meanwhile goes its way, and to send it again would double it.) So `select!` and timeouts may be used freely:
//!
//! ```
//! # use ropewalk::{Pull, Push};
//! # use std::time::Duration;
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let pull = Pull::bind("inproc://front page").await?; let push = Push::connect("inproc://front page").await?;
//! # push.send("job").await?;
//! let mut second = tokio::time::interval(Duration::from_secs(1));
//! loop {
//!     tokio::select! {
//!         job = pull.recv() => {
//!             println!("{:?}", job?.text()?);
//! #           break;
//!         }
//!         _ = second.tick() => println!("{:?}", pull.stats()),
//!     }
//! }
//! # push.close().await; pull.close().await; Ok(()) }
//! ```
//!
//! A request that is dropped after it was sent may still be done by the peer.
//!
//! # Handles
//! A [`Socket`] is a handle: clone it, share it, send it to other threads; all methods take `&self`, and those who wait
//! are served in the order they came. A socket's own work runs on the tokio runtime it was made on.
//!
//! # Errors
//! Each operation has its own small enum, and each variant says what state it left. What was not sent is given back:
//! [`SendError`], [`TrySendError`] and [`ReplyError`] carry the message.
//!
//! # Events and statistics
//! [`Socket::events`] is a stream of what happens: peers come and go, with address and reason, dials fail, handshakes
//! are refused, messages are dropped. [`Socket::stats`] counts for each peer what is queued, sent, received, dropped and
//! in doubt. What happens to messages and links is never only a line in a log; what is logged by `tracing` besides is at
//! `debug`, and at `warn` or `error` where something could not be written down or has panicked.
//!
//! # Closing
//! [`Socket::close`] accepts nothing more, lets what was accepted go out for at most the
//! [`linger`](Builder::linger), says goodbye, and reports what was delivered, is in doubt, or was not sent.
//!
//! # Features
//! | feature | default | what |
//! |---|---|---|
//! | `tcp` | yes | `tcp://` |
//! | `ipc` | yes | `ipc://`, on Unix |
//! | `tls` | yes | `tls://` |
//! | `quic` | yes | `quic://` |
//! | `spool` | yes | sockets that keep messages in a directory; and the [log](spool) by itself |
//! | `cli` | no | the tool `ropewalk` |
//!
//! `inproc://` is always there.

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

#[cfg(feature = "secure")]
mod allowed;
mod authorize;
pub mod delivery;
mod endpoint;
mod error;
mod events;
mod hub;
mod identity;
mod link;
mod options;
mod random;
#[cfg(feature = "secure")]
mod secret_key;
mod sockets;
#[cfg(feature = "spool")]
pub mod spool;
mod stats;
mod transport;

pub use ropewalk_patterns as patterns;
pub use ropewalk_patterns::{
    Action, Body, DecodeError, EncodeError, IntoPart, Message, Misbehaved, Role, Tally,
    extension::RefusalReason,
    pub_sub::{Heard, Overflow},
};

#[cfg(feature = "secure")]
pub use crate::secret_key::SecretKey;
#[cfg(feature = "spool")]
pub use crate::{delivery::Answered, sockets::Directory};
pub use crate::{
    delivery::{Delivery, Guarantee},
    error::{
        AckError, AddressError, BindError, Closed, ConnectError, DeliverError, NoSuchEndpoint, ReplyError,
        RequestError, SendError, SubRecvError, SubTryRecvError, SubscribeError, TryRecvError, TrySendError,
    },
    events::{DeadReason, Denial, DownReason, Event, Events, PeerInfo},
    identity::{KeyError, PeerId},
    options::Builder,
    sockets::{
        Asker, Pub, Pull, Push, Received, Rep, Replay, Req, Request, RequestBuilder, Sending, Socket, Sub, VerbError,
    },
    stats::{CloseReport, PeerStats, Stats},
    transport::Address,
};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeDoctests;
