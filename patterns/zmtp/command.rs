//! Commands after the handshake.
//!
//! ```text
//!   command   = name-length(1) name data
//!   SUBSCRIBE = 09 "SUBSCRIBE" topic          3.0 peers: the message 01 topic
//!   CANCEL    = 06 "CANCEL" topic             3.0 peers: the message 00 topic
//!   PING      = 04 "PING" ttl(2) context      ttl in tenths of a second; context of at most 16 bytes
//!   PONG      = 04 "PONG" context
//! ```
//!
//! Those that only Ropewalk peers send are in [`extension`](crate::extension). Unknown ones are passed over.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::{
    Limits,
    frame::{Header, put_header},
    ready::refused,
};
use crate::{
    extension::{
        self, Credit, Gap, Goodbye, Refusal,
        delivery::{Ack, Attach, Fence, Floor, Resume, Verdict},
    },
    misbehaved::Misbehaved,
};

/// The most bytes a PING's context may have.
pub const MAX_PING_CONTEXT: usize = 16;

const SUBSCRIBE: &[u8] = b"SUBSCRIBE";
const CANCEL: &[u8] = b"CANCEL";
const PING: &[u8] = b"PING";
const PONG: &[u8] = b"PONG";
const ERROR: &[u8] = b"ERROR";

/// A command in traffic.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Command {
    /// The peer wants messages whose first part begins so.
    Subscribe(Bytes),
    /// The peer no longer wants them.
    Cancel(Bytes),
    /// Are you there?
    Ping {
        /// After how many tenths of a second without anything more the sender may be taken for dead; 0 for never.
        ttl: u16,
        /// To be sent back.
        context: Bytes,
    },
    /// I am.
    Pong {
        /// What the PING brought.
        context: Bytes,
    },
    /// The receiver's word on what it took and what it allows.
    Credit(Credit),
    /// A request will not be answered.
    Refusal(Refusal),
    /// At this place of the stream, messages were left out.
    Gap(Gap),
    /// Nothing follows.
    Goodbye(Goodbye),
    /// The messages that follow are kept until they are confirmed.
    Attach(Attach),
    /// They may come; this is done already.
    Resume(Resume),
    /// These are done with.
    Ack(Ack),
    /// This one is not.
    Verdict(Verdict),
    /// Nothing below comes again.
    Floor(Floor),
    /// The stream goes on elsewhere.
    Fence(Fence),
    /// A command this version does not know.
    Unknown,
}

impl Command {
    /// Writes the command as a frame; a subscription in the form of ZMTP 3.0 if `legacy`. What has no form there is
    /// left out.
    pub fn encode(&self, legacy: bool, out: &mut BytesMut) {
        match self {
            Self::Subscribe(topic) if legacy => put_legacy(1, topic, out),
            Self::Cancel(topic) if legacy => put_legacy(0, topic, out),
            Self::Subscribe(topic) => put(SUBSCRIBE, &[topic], out),
            Self::Cancel(topic) => put(CANCEL, &[topic], out),
            Self::Ping { .. } if legacy => {}
            Self::Ping { ttl, context } => put(PING, &[&ttl.to_be_bytes(), context], out),
            Self::Pong { context } => put(PONG, &[context], out),
            Self::Credit(credit) => put(extension::CREDIT, &[&credit.encode()], out),
            Self::Refusal(refusal) => put(extension::REFUSAL, &[&refusal.encode()], out),
            Self::Gap(gap) => put(extension::GAP, &[&gap.encode()], out),
            Self::Goodbye(goodbye) => put(extension::GOODBYE, &[&goodbye.encode()], out),
            Self::Attach(attach) => put(extension::ATTACH, &[&attach.encode()], out),
            Self::Resume(resume) => put(extension::RESUME, &[&resume.encode()], out),
            Self::Ack(ack) => put(extension::ACK, &[&ack.encode()], out),
            Self::Verdict(verdict) => put(extension::VERDICT, &[&verdict.encode()], out),
            Self::Floor(floor) => put(extension::FLOOR, &[&floor.encode()], out),
            Self::Fence(fence) => put(extension::FENCE, &[&fence.encode()], out),
            Self::Unknown => {}
        }
    }

    /// Reads the body of a command frame.
    ///
    /// # Errors
    /// When it has no name, or a known command's data is wrong.
    pub fn decode(mut body: Bytes, limits: &Limits) -> Result<Self, Misbehaved> {
        let length = body.try_get_u8().map(usize::from).map_err(|_| Misbehaved::BadCommand)?;
        if length == 0 || body.len() < length {
            return Err(Misbehaved::BadCommand);
        }
        let name = body.split_to(length);
        match &name[..] {
            SUBSCRIBE => topic(body, limits).map(Self::Subscribe),
            CANCEL => topic(body, limits).map(Self::Cancel),
            PING => {
                let ttl = body.try_get_u16().map_err(|_| Misbehaved::BadCommand)?;
                // libzmq cuts a longer context instead of refusing it, and its tests ask for that.
                body.truncate(MAX_PING_CONTEXT);
                Ok(Self::Ping { ttl, context: copied(&body) })
            }
            PONG => Ok(Self::Pong { context: copied(body.get(..MAX_PING_CONTEXT).unwrap_or(&body)) }),
            // A peer may find out only then that it does not want us.
            ERROR => Err(refused(&body)),
            extension::CREDIT => Credit::decode(&body).map(Self::Credit),
            extension::REFUSAL => Refusal::decode(&body).map(Self::Refusal),
            extension::GAP => Gap::decode(&body).map(Self::Gap),
            extension::GOODBYE => Goodbye::decode(&body).map(Self::Goodbye),
            extension::ATTACH => Attach::decode(&body).map(Self::Attach),
            extension::RESUME => Resume::decode(&body).map(Self::Resume),
            extension::ACK => Ack::decode(&body).map(Self::Ack),
            extension::VERDICT => Verdict::decode(&body).map(Self::Verdict),
            extension::FLOOR => Floor::decode(&body).map(Self::Floor),
            extension::FENCE => Fence::decode(&body).map(Self::Fence),
            _ => Ok(Self::Unknown),
        }
    }

    /// Reads a message of one part that a 3.0 subscriber (or any other) sends instead of a command. `None`: it is not
    /// a subscription.
    ///
    /// # Errors
    /// When the topic is too long.
    pub fn from_legacy(part: &[u8], limits: &Limits) -> Result<Option<Self>, Misbehaved> {
        match part.split_first() {
            Some((1, rest)) => topic(copied(rest), limits).map(|topic| Some(Self::Subscribe(topic))),
            Some((0, rest)) => topic(copied(rest), limits).map(|topic| Some(Self::Cancel(topic))),
            _ => Ok(None),
        }
    }
}

fn topic(topic: Bytes, limits: &Limits) -> Result<Bytes, Misbehaved> {
    if topic.len() > limits.topic {
        return Err(Misbehaved::TopicTooLong { limit: limits.topic });
    }
    // A short topic must not keep the whole read buffer alive.
    Ok(copied(&topic))
}

fn copied(bytes: &[u8]) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

fn put(name: &[u8], data: &[&[u8]], out: &mut BytesMut) {
    let length = 1 + name.len() + data.iter().map(|part| part.len()).sum::<usize>();
    put_header(out, Header::COMMAND, length);
    out.put_u8(u8::try_from(name.len()).unwrap_or(u8::MAX));
    out.put_slice(name);
    data.iter().for_each(|part| out.put_slice(part));
}

fn put_legacy(first: u8, topic: &[u8], out: &mut BytesMut) {
    put_header(out, 0, 1 + topic.len());
    out.put_u8(first);
    out.put_slice(topic);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(bytes: &'static [u8]) -> Result<Command, Misbehaved> {
        Command::decode(Bytes::from_static(bytes), &Limits::default())
    }

    #[test]
    fn malformed_commands_are_named_and_unknown_ones_passed_over() {
        for bad in [&b""[..], b"\0", b"\x09SUBSCR", b"\x04PING", b"\x04PING\0"] {
            assert_eq!(body(bad), Err(Misbehaved::BadCommand), "{bad:?}");
        }
        assert_eq!(body(b"\x04JOINgroup"), Ok(Command::Unknown));
        let long = [b"\x09SUBSCRIBE".to_vec(), alloc::vec![b't'; 1025]].concat();
        let refused = Command::decode(long.into(), &Limits::default());
        assert_eq!(refused, Err(Misbehaved::TopicTooLong { limit: 1024 }));
    }

    #[test]
    fn a_long_ping_context_is_cut_to_sixteen_bytes() {
        let ping = body(b"\x04PING\0\x01ABCDEFGHIJKLMNOPQRSTUVWXYZ").unwrap();
        assert_eq!(ping, Command::Ping { ttl: 1, context: Bytes::from("ABCDEFGHIJKLMNOP") });
    }
}
