//! What can go wrong when somebody asks, and answers.

use std::{error::Error, fmt};

use ropewalk_patterns::{Message, extension::RefusalReason};

use super::too_large;

/// A request got no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum RequestError {
    /// No answer came in time. The peer may have done, or may yet do, what it was asked to.
    TimedOut,
    /// No peer was there, or had room, in time: none was asked, and none will be.
    NotAsked,
    /// No answer came in time. The request is in the directory and is asked on: [`recover`](crate::Req::recover) gives its
    /// answer.
    NotYet,
    /// The link to the peer died. It may have done what it was asked to.
    PeerLost,
    /// The peer said that it will not answer.
    Refused(RefusalReason),
    /// It is larger, or has more parts, than the socket or all linked peers accept. Nobody got it.
    TooLarge(Message),
    /// The directory has failed, as this text says: the request may be in it or not.
    SpoolFailed(Message, String),
    /// It was to be kept, and the socket has no directory to keep it in.
    NoDirectory(Message),
    /// The socket is closed. If the request was sent, the peer may have done what it was asked to.
    Closed,
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TimedOut => f.write_str("no answer came in time"),
            Self::NotAsked => f.write_str("no peer could be asked in time"),
            Self::NotYet => {
                f.write_str("no answer came in time; the request is kept and asked on: `recover` gives its answer")
            }
            Self::PeerLost => f.write_str("the link to the peer that was asked died"),
            Self::Refused(RefusalReason::Dropped) => f.write_str("the peer dropped the request without an answer"),
            Self::Refused(RefusalReason::TooLarge) => f.write_str("the peer's answer is larger than is accepted here"),
            Self::Refused(RefusalReason::Denied) => f.write_str("the peer does not let us ask that"),
            Self::Refused(_) => f.write_str("the peer refused the request"),
            Self::TooLarge(message) => too_large(f, message),
            Self::SpoolFailed(_, why) => write!(f, "{why}; close the socket and open the directory again"),
            Self::NoDirectory(_) => {
                f.write_str("the socket has no directory: give it one with `Req::builder().spool(..)`")
            }
            Self::Closed => f.write_str("the socket is closed"),
        }
    }
}

impl Error for RequestError {}

/// A reply was not accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReplyError {
    /// The requester is gone; the reply is given back.
    PeerLost(Message),
    /// It is larger, or has more parts, than the socket or the requester accepts. It is given back, and a Ropewalk
    /// requester is told that it gets none.
    TooLarge(Message),
    /// The directory has failed, as this text says: the reply may be in it or not. It is given back, and the requester got
    /// none.
    SpoolFailed(Message, String),
    /// The socket is closed; the reply is given back.
    Closed(Message),
}

impl fmt::Display for ReplyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PeerLost(_) => f.write_str("the requester is gone"),
            Self::TooLarge(message) => too_large(f, message),
            Self::SpoolFailed(_, why) => write!(f, "{why}; close the socket and open the directory again"),
            Self::Closed(_) => f.write_str("the socket is closed"),
        }
    }
}

impl Error for ReplyError {}
