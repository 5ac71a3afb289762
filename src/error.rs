//! What can go wrong, one small enum per operation. Every variant says what state it leaves.

mod requests;

use std::{error::Error, fmt, io};

use ropewalk_patterns::Message;

pub use self::requests::{ReplyError, RequestError};

/// An address is not one, or must not be used so.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum AddressError {
    /// There is no `scheme://` in it.
    NoScheme {
        /// The address.
        address: String,
    },
    /// The scheme is unknown, or its feature is off.
    UnknownScheme {
        /// The scheme.
        scheme: String,
        /// The schemes this build knows.
        known: String,
    },
    /// What follows the scheme is not right.
    Malformed {
        /// The address.
        address: String,
        /// What is wrong.
        what: &'static str,
    },
    /// Plain text would leave the machine.
    Plaintext {
        /// The address.
        address: String,
    },
    /// The socket has no key to prove who it is.
    NoKey {
        /// The address.
        address: String,
    },
    /// It was not said whom the socket lets in.
    NobodyAllowed {
        /// The address.
        address: String,
    },
}

impl fmt::Display for AddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoScheme { address } => {
                write!(f, "{address:?} is not an address: it needs a scheme, as in tcp://127.0.0.1:7000")
            }
            Self::UnknownScheme { scheme, known } => {
                write!(f, "the scheme {scheme:?} is not known here; there are {known}")
            }
            Self::Malformed { address, what } => write!(f, "{address:?} is not an address: {what}"),
            Self::Plaintext { address } => write!(
                f,
                "{address} is not loopback, and tcp:// is plain text: allow it with `danger_plaintext()` if anyone on \
                 the way may read and change it"
            ),
            Self::NoKey { address } => write!(
                f,
                "{address} needs a key that proves who we are: give the socket one with `key(SecretKey::load(path)?)`"
            ),
            Self::NobodyAllowed { address } => write!(
                f,
                "nobody could link at {address}: say whom to let in with `allow([peer ids])` or `allow_any_peer()`"
            ),
        }
    }
}

impl Error for AddressError {}

/// A socket does not listen where it should. It is as it was before.
#[derive(Debug)]
#[non_exhaustive]
pub enum BindError {
    /// The address is not one, or must not be listened on.
    Address(AddressError),
    /// The socket's directory cannot be opened.
    #[cfg(feature = "spool")]
    Spool(std::sync::Arc<crate::spool::OpenError>),
    /// Somebody else listens there.
    InUse {
        /// The address.
        address: String,
    },
    /// The system refused.
    Io {
        /// The address.
        address: String,
        /// Why.
        error: io::Error,
    },
    /// Publishers would not take what the builder was told to [`subscribe`](crate::Builder::subscribe) to.
    Subscribe(SubscribeError),
    /// The socket is closed.
    Closed,
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(error) => error.fmt(f),
            #[cfg(feature = "spool")]
            Self::Spool(error) => error.fmt(f),
            Self::InUse { address } => write!(f, "cannot listen on {address}: somebody else does"),
            Self::Io { address, error } => write!(f, "cannot listen on {address}: {error}"),
            Self::Subscribe(error) => error.fmt(f),
            Self::Closed => f.write_str("the socket is closed"),
        }
    }
}

impl Error for BindError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Address(error) => Some(error),
            Self::Io { error, .. } => Some(error),
            #[cfg(feature = "spool")]
            Self::Spool(error) => Some(error),
            Self::Subscribe(error) => Some(error),
            Self::InUse { .. } | Self::Closed => None,
        }
    }
}

impl From<SubscribeError> for BindError {
    fn from(error: SubscribeError) -> Self {
        Self::Subscribe(error)
    }
}

impl From<AddressError> for BindError {
    fn from(error: AddressError) -> Self {
        Self::Address(error)
    }
}

/// A socket does not dial where it should. It is as it was before.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum ConnectError {
    /// The address is not one, or must not be dialled.
    Address(AddressError),
    /// The socket's directory cannot be opened.
    #[cfg(feature = "spool")]
    Spool(std::sync::Arc<crate::spool::OpenError>),
    /// Publishers would not take what the builder was told to [`subscribe`](crate::Builder::subscribe) to.
    Subscribe(SubscribeError),
    /// The socket is closed.
    Closed,
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(error) => error.fmt(f),
            #[cfg(feature = "spool")]
            Self::Spool(error) => error.fmt(f),
            Self::Subscribe(error) => error.fmt(f),
            Self::Closed => f.write_str("the socket is closed"),
        }
    }
}

/// Two of a directory that cannot be opened are equal if they say the same.
impl PartialEq for ConnectError {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Address(one), Self::Address(other)) => one == other,
            #[cfg(feature = "spool")]
            (Self::Spool(one), Self::Spool(other)) => one.to_string() == other.to_string(),
            (Self::Subscribe(one), Self::Subscribe(other)) => one == other,
            (Self::Closed, Self::Closed) => true,
            _ => false,
        }
    }
}

impl Eq for ConnectError {}

impl Error for ConnectError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Address(error) => Some(error),
            #[cfg(feature = "spool")]
            Self::Spool(error) => Some(error),
            Self::Subscribe(error) => Some(error),
            Self::Closed => None,
        }
    }
}

impl From<SubscribeError> for ConnectError {
    fn from(error: SubscribeError) -> Self {
        Self::Subscribe(error)
    }
}

impl From<AddressError> for ConnectError {
    fn from(error: AddressError) -> Self {
        Self::Address(error)
    }
}

/// No endpoint of this address is there to be given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoSuchEndpoint {
    /// The address.
    pub address: String,
}

impl fmt::Display for NoSuchEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the socket has no endpoint {}", self.address)
    }
}

impl Error for NoSuchEndpoint {}

/// A message was not accepted. It is given back, and nobody got it, unless the variant says otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SendError {
    /// The socket is closed.
    Closed(Message),
    /// It is larger, or has more parts, than the socket or all linked peers accept.
    TooLarge(Message),
    /// The socket's directory has failed: close the socket, and make it anew on the same directory. Whether the message is in
    /// it then, nobody knows.
    SpoolFailed(Message, String),
}

impl SendError {
    /// The message.
    pub fn into_message(self) -> Message {
        match self {
            Self::Closed(message) | Self::TooLarge(message) | Self::SpoolFailed(message, _) => message,
        }
    }
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed(_) => f.write_str("the socket is closed"),
            Self::TooLarge(message) => too_large(f, message),
            Self::SpoolFailed(_, why) => write!(f, "{why}; close the socket and open the directory again"),
        }
    }
}

impl Error for SendError {}

/// A message was not delivered, or it is not known that it was.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeliverError {
    /// It was not accepted, and nobody got it.
    NotAccepted(SendError),
    /// Nobody could confirm it: this socket keeps nothing. Give it a directory, or ask for
    /// [`Guarantee::AtLeastOnce`](crate::delivery::Guarantee::AtLeastOnce). It was not accepted, and nobody got it.
    NotConfirming(Message),
    /// A receiver rejected it, for this reason. It is with the dead letters, if the socket has a directory.
    Rejected(String),
    /// It was delivered as often as it may be, and never confirmed. It is with the dead letters, if the socket has a
    /// directory.
    Exhausted,
    /// No receiver accepts a message of this size. It is with the dead letters, if the socket has a directory.
    Refused,
    /// It was dropped from the socket's directory, which had no room for newer ones
    /// ([`WhenFull::DropOldest`](crate::spool::WhenFull::DropOldest)), before any receiver got it.
    #[cfg(feature = "spool")]
    Dropped,
    /// The socket was closed before it was confirmed. If it has a directory, the message is there, and goes on when that is
    /// opened again; else it is lost or in doubt.
    Closed,
}

impl fmt::Display for DeliverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAccepted(error) => error.fmt(f),
            Self::NotConfirming(_) => f.write_str(
                "nobody could confirm it: give the socket a directory with `spool`, or `Guarantee::AtLeastOnce`",
            ),
            Self::Rejected(reason) => write!(f, "a receiver rejected it: {reason}"),
            Self::Exhausted => f.write_str("it was delivered as often as it may be, and never confirmed"),
            Self::Refused => f.write_str("no receiver accepts a message of this size"),
            #[cfg(feature = "spool")]
            Self::Dropped => f.write_str("it was dropped: the spool's quota had no room for newer messages"),
            Self::Closed => f.write_str("the socket was closed before it was confirmed"),
        }
    }
}

impl Error for DeliverError {}

/// A delivery was not settled as asked.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum AckError {
    /// Its lease was over, and it was taken back: another has it, or will. What was done may be done again.
    TakenBack,
    /// It could not be written into the inbox, for this reason. It is given back, and comes again.
    Inbox(String),
    /// The directory could not be told, for this reason: the request is asked again after the next opening.
    Spool(String),
}

impl fmt::Display for AckError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TakenBack => f.write_str("the message was taken back: its lease was over"),
            Self::Inbox(why) => write!(f, "the inbox cannot be written: {why}"),
            Self::Spool(why) => write!(f, "the request is still in its directory: {why}"),
        }
    }
}

impl Error for AckError {}

fn too_large(f: &mut fmt::Formatter<'_>, message: &Message) -> fmt::Result {
    let (bytes, parts) = (message.bytes(), message.len());
    write!(
        f,
        "a message of {bytes} bytes in {parts} parts is larger, or has more parts or a longer topic, than is accepted: \
         raise `max_message`, `max_parts` or `max_topic` on both sides, or the segments of the directory's spool"
    )
}

/// A message was not accepted now. It is given back, and nobody got it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum TrySendError {
    /// Nobody has room for it, or others wait to send.
    Full(Message),
    /// The socket is closed.
    Closed(Message),
    /// It is larger, or has more parts, than the socket or all linked peers accept.
    TooLarge(Message),
    /// The socket has a directory, and would have to wait for the disk: use `send`.
    Spooled(Message),
}

impl TrySendError {
    /// The message.
    pub fn into_message(self) -> Message {
        match self {
            Self::Full(message) | Self::Closed(message) | Self::TooLarge(message) | Self::Spooled(message) => message,
        }
    }
}

impl fmt::Display for TrySendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full(_) => f.write_str("nobody has room for the message"),
            Self::Closed(_) => f.write_str("the socket is closed"),
            Self::TooLarge(message) => too_large(f, message),
            Self::Spooled(_) => f.write_str("the message would have to wait for the disk: use `send`"),
        }
    }
}

impl Error for TrySendError {}

/// Nothing will come any more: the socket is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed;

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the socket is closed")
    }
}

impl Error for Closed {}

/// Nothing was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TryRecvError {
    /// Nothing is there now, or with [`rate`](crate::Builder::rate) it is not time yet.
    Empty,
    /// The socket is closed.
    Closed,
}

impl fmt::Display for TryRecvError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "no message is there",
            Self::Closed => "the socket is closed",
        })
    }
}

impl Error for TryRecvError {}

/// What a subscriber hears instead of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SubRecvError {
    /// So many messages were left out here because this subscriber did not keep up. The next call goes on behind them.
    Lagged(u64),
    /// The socket is closed.
    Closed,
}

impl fmt::Display for SubRecvError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lagged(missed) => write!(f, "{missed} messages were missed"),
            Self::Closed => f.write_str("the socket is closed"),
        }
    }
}

impl Error for SubRecvError {}

/// Nothing was heard now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SubTryRecvError {
    /// Nothing is there now, or with [`rate`](crate::Builder::rate) it is not time yet.
    Empty,
    /// So many messages were left out here because this subscriber did not keep up. The next call goes on behind them.
    Lagged(u64),
    /// The socket is closed.
    Closed,
}

impl fmt::Display for SubTryRecvError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("no message is there"),
            Self::Lagged(missed) => write!(f, "{missed} messages were missed"),
            Self::Closed => f.write_str("the socket is closed"),
        }
    }
}

impl Error for SubTryRecvError {}

/// A subscription was not made. Those before it stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SubscribeError {
    /// The topic is too long, or there are too many subscriptions: publishers would close the link.
    TooLarge,
    /// The socket is closed.
    Closed,
}

impl fmt::Display for SubscribeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooLarge => {
                "the topic is too long or there are too many; raise `max_topic` or `max_subscriptions` on both sides"
            }
            Self::Closed => "the socket is closed",
        })
    }
}

impl Error for SubscribeError {}
