//! One variant per way a peer can break the protocol, so that a test can say which lie was caught and a log can name it.

use alloc::string::String;
use core::fmt;

use crate::pattern::Role;

/// How a peer broke the protocol. The link to it is closed; nothing it sent before is taken back.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Misbehaved {
    /// The first bytes are not a ZMTP greeting: something else is talking (HTTP, TLS, ZMTP 1.0).
    NotZmtp,
    /// The peer speaks a ZMTP older than 3.0.
    OldVersion {
        /// The revision or major version it named.
        major: u8,
    },
    /// The peer wants a security mechanism other than NULL.
    WrongMechanism {
        /// The mechanism it named.
        mechanism: String,
    },
    /// The peer plays a role we cannot talk with.
    WrongRole {
        /// The role we play.
        ours: Role,
        /// The role the peer plays.
        theirs: Role,
    },
    /// Something other than READY or ERROR came in the handshake.
    HandshakeExpected,
    /// The handshake needs more bytes than it may.
    HandshakeTooLong {
        /// The most bytes it may have.
        limit: usize,
    },
    /// The metadata of READY or ERROR does not parse.
    BadMetadata,
    /// A known property of READY came twice.
    RepeatedProperty,
    /// The peer refused us with ERROR.
    Refused {
        /// The reason it gave.
        reason: String,
    },
    /// A frame has flags that do not exist, or MORE on a command.
    BadFlags {
        /// The flags.
        flags: u8,
    },
    /// A frame's length has its top bit set.
    BadLength,
    /// A message is larger than we accept.
    MessageTooLarge {
        /// The most bytes a message may have.
        limit: u64,
    },
    /// A message has more parts than we accept.
    TooManyParts {
        /// The most parts a message may have.
        limit: usize,
    },
    /// A command is larger than we accept.
    CommandTooLarge {
        /// The most bytes a command may have.
        limit: u64,
    },
    /// A command does not parse.
    BadCommand,
    /// Something else came in a stream that is for PING, PONG and credit only.
    OutOfPlace,
    /// A subscription's topic is longer than we accept.
    TopicTooLong {
        /// The most bytes a topic may have.
        limit: usize,
    },
    /// The peer subscribes to more than we accept.
    TooManySubscriptions {
        /// The most subscriptions one peer may have.
        limit: usize,
    },
    /// The topics of the peer's subscriptions are together longer than we accept.
    TooManySubscribedBytes {
        /// The most bytes they may have together.
        limit: usize,
    },
    /// A message came from a side that only receives.
    UnexpectedMessage,
    /// A command came that this pattern has no use for.
    UnexpectedCommand,
    /// More was sent than we gave credit for.
    CreditExceeded,
    /// A count that may only grow went back.
    CreditWentBack,
    /// More is said to be taken, received or confirmed than we sent.
    ImpossibleCount,
    /// A message of a stream that is confirmed does not begin with its header.
    BadHeader,
    /// The peer attaches a second stream to one link.
    AttachedTwice,
    /// What is done of the peer's stream has more gaps than we keep.
    TooScattered {
        /// The most ranges that are kept of a stream.
        limit: usize,
    },
}

impl fmt::Display for Misbehaved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotZmtp => f.write_str("the peer does not speak ZMTP 3; perhaps its address is a tls:// one"),
            Self::OldVersion { major } => write!(f, "the peer speaks ZMTP revision {major}, older than 3.0"),
            Self::WrongMechanism { mechanism } => {
                write!(f, "the peer wants the security mechanism {mechanism:?}, we speak NULL")
            }
            Self::WrongRole { ours, theirs } => write!(f, "a {theirs} socket cannot talk with our {ours} socket"),
            Self::HandshakeExpected => f.write_str("the peer sent something else before READY"),
            Self::HandshakeTooLong { limit } => write!(f, "the handshake is longer than {limit} bytes"),
            Self::BadMetadata => f.write_str("the metadata of the handshake does not parse"),
            Self::RepeatedProperty => f.write_str("a property of the handshake came twice"),
            Self::Refused { reason } => write!(f, "the peer refuses us: {reason}"),
            Self::BadFlags { flags } => write!(f, "a frame has the flags {flags:#04x}, which do not exist"),
            Self::BadLength => f.write_str("a frame's length is beyond 2^63"),
            Self::MessageTooLarge { limit } => write!(f, "a message is larger than the limit of {limit} bytes"),
            Self::TooManyParts { limit } => write!(f, "a message has more than {limit} parts"),
            Self::CommandTooLarge { limit } => write!(f, "a command is larger than {limit} bytes"),
            Self::BadCommand => f.write_str("a command does not parse"),
            Self::OutOfPlace => f.write_str("a stream for PING, PONG and credit brought something else"),
            Self::TopicTooLong { limit } => write!(f, "a topic is longer than {limit} bytes"),
            Self::TooManySubscriptions { limit } => write!(f, "more than {limit} subscriptions"),
            Self::TooManySubscribedBytes { limit } => write!(f, "subscriptions of more than {limit} bytes together"),
            Self::UnexpectedMessage => f.write_str("a message came from a side that only receives"),
            Self::UnexpectedCommand => f.write_str("a command came that has no meaning here"),
            Self::CreditExceeded => f.write_str("the peer sent more than it had credit for"),
            Self::CreditWentBack => f.write_str("the peer took credit back"),
            Self::ImpossibleCount => f.write_str("the peer counts messages that were never sent"),
            Self::BadHeader => f.write_str("a message that is to be confirmed does not say which it is"),
            Self::AttachedTwice => f.write_str("a second stream was attached to one link"),
            Self::TooScattered { limit } => write!(f, "more than {limit} gaps in what is confirmed of one stream"),
        }
    }
}

impl core::error::Error for Misbehaved {}
