//! Frames: reading them out of a stream, writing them into a buffer.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::{Command, Limits};
use crate::{credit::Tally, message::MESSAGE_OVERHEAD, misbehaved::Misbehaved};

/// What a frame begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Another part of the message follows.
    pub more: bool,
    /// A command, not a part.
    pub command: bool,
    /// The length of the body.
    pub body: u64,
    long: bool,
}

impl Header {
    /// Another part follows.
    pub(crate) const MORE: u8 = 1;
    /// Eight bytes of length.
    pub(crate) const LONG: u8 = 2;
    /// A command.
    pub(crate) const COMMAND: u8 = 4;

    /// The header at the beginning of `bytes`; `None` if it is not all there yet.
    ///
    /// # Errors
    /// When the flags or the length do not exist.
    #[inline]
    pub fn read(bytes: &[u8]) -> Result<Option<Self>, Misbehaved> {
        let Some(&flags) = bytes.first() else { return Ok(None) };
        let long = flags & Self::LONG != 0;
        let (more, command) = (flags & Self::MORE != 0, flags & Self::COMMAND != 0);
        if flags > 6 || (more && command) {
            return Err(Misbehaved::BadFlags { flags });
        }
        let body = if long {
            let Some(length) = bytes.get(1..9).and_then(|length| length.try_into().ok()) else { return Ok(None) };
            u64::from_be_bytes(length)
        } else {
            let Some(&length) = bytes.get(1) else { return Ok(None) };
            u64::from(length)
        };
        if body >> 63 != 0 {
            return Err(Misbehaved::BadLength);
        }
        Ok(Some(Self { more, command, body, long }))
    }

    /// The length of the header itself.
    #[allow(clippy::len_without_is_empty, reason = "a header is never empty")]
    #[inline]
    pub fn len(self) -> usize {
        if self.long { 9 } else { 2 }
    }

    /// The length of the whole frame.
    #[inline]
    pub fn total(self) -> u64 {
        // The body is below 2^63.
        self.body + self.len() as u64
    }
}

/// Writes a header, short where it can be.
#[inline]
pub(crate) fn put_header(out: &mut impl BufMut, flags: u8, body: usize) {
    match u8::try_from(body) {
        Ok(length) => out.put_slice(&[flags, length]),
        Err(_) => {
            let mut header = [0; 9];
            let [first, length @ ..] = &mut header;
            *first = flags | Header::LONG;
            *length = (body as u64).to_be_bytes();
            out.put_slice(&header);
        }
    }
}

/// Writes the header of a message part of this length. The body follows.
#[inline]
pub fn encode_part(out: &mut impl BufMut, more: bool, body: usize) {
    put_header(out, if more { Header::MORE } else { 0 }, body);
}

/// How much may be taken out of the stream now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Messages, and what they may cost.
    pub tally: Tally,
    /// The first may cost more: there is nothing before it.
    pub any_first: bool,
}

impl Room {
    /// No bound.
    pub const UNBOUNDED: Self = Self { tally: Tally::MAX, any_first: true };

    /// Whether no message fits.
    pub fn is_none(self) -> bool {
        self.tally.messages == 0 || (self.tally.bytes < MESSAGE_OVERHEAD && !self.any_first)
    }
}

/// What the decoder found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Whole messages, still encoded, one behind the other.
    Messages {
        /// Their frames.
        bytes: Bytes,
        /// How many there are and what they cost.
        tally: Tally,
    },
    /// A command.
    Command(Command),
    /// More bytes are needed: so many for the frame at hand, as far as can be told.
    NeedBytes(usize),
    /// The next message does not fit into the room given.
    NoRoom,
}

/// Finds messages and commands in a stream of bytes that comes in any pieces.
///
/// It keeps its place, so no byte is looked at twice; it holds every length against the limits as soon as the header
/// says it, and never makes room for what has not come.
#[derive(Debug)]
pub struct Decoder {
    limits: Limits,
    /// Bytes at the front of the buffer that were looked at and found good.
    scanned: usize,
    /// The parts of the message that is not whole yet, and their bytes.
    parts: usize,
    bytes: u64,
    /// The first of these parts, if a command stood behind them: libzmq sends its PING and PONG there, too, whatever the
    /// grammar says.
    aside: BytesMut,
}

impl Decoder {
    /// A decoder at the beginning of traffic.
    pub fn new(limits: Limits) -> Self {
        Self { limits, scanned: 0, parts: 0, bytes: 0, aside: BytesMut::new() }
    }

    /// The next messages or the next command. Takes what it gives away from the front of the buffer, which must
    /// otherwise only grow at its end between calls.
    ///
    /// # Errors
    /// The stream cannot be followed any further. What came before the fault was given out already.
    pub fn next(&mut self, buffer: &mut BytesMut, room: Room) -> Result<Step, Misbehaved> {
        let mut tally = Tally::ZERO;
        let mut whole = 0;
        let rest = loop {
            let ahead = buffer.get(self.scanned..).unwrap_or_default();
            let header = match Header::read(ahead) {
                Ok(Some(header)) => header,
                Ok(None) => break Ok(Step::NeedBytes(1)),
                Err(misbehaved) => break Err(misbehaved),
            };
            if let Err(misbehaved) = self.check(header) {
                break Err(misbehaved);
            }
            // A message of known size that will not fit is not even gathered; the first parts stay where they are.
            let cost = (self.bytes + header.body).saturating_add(MESSAGE_OVERHEAD);
            let fits = tally.messages < room.tally.messages
                && (tally.bytes.saturating_add(cost) <= room.tally.bytes || (room.any_first && tally.is_zero()));
            if !header.command && !fits {
                break Ok(Step::NoRoom);
            }
            // Within the limits, so within usize.
            let total = usize::try_from(header.total()).map_err(|_| Misbehaved::BadLength)?;
            if ahead.len() < total {
                break Ok(Step::NeedBytes(total - ahead.len()));
            }
            if header.command {
                if !tally.is_zero() {
                    break Ok(Step::NeedBytes(0));
                }
                // Each byte is set aside once, so however many commands come, the work grows with what comes. Where there
                // is nothing to set aside, not even a hold on the buffer is kept.
                if self.scanned > 0 {
                    self.aside.unsplit(buffer.split_to(core::mem::take(&mut self.scanned)));
                }
                let mut frame = buffer.split_to(total).freeze();
                frame.advance(header.len());
                return Command::decode(frame, &self.limits).map(Step::Command);
            }
            self.scanned += total;
            self.parts += 1;
            self.bytes += header.body;
            if !header.more {
                whole = self.scanned;
                tally.add(cost);
                (self.parts, self.bytes) = (0, 0);
                if !self.aside.is_empty() {
                    break Ok(Step::NeedBytes(0));
                }
            }
        };
        if tally.is_zero() {
            return rest;
        }
        self.scanned -= whole;
        let mut bytes = core::mem::take(&mut self.aside);
        bytes.unsplit(buffer.split_to(whole));
        Ok(Step::Messages { bytes: bytes.freeze(), tally })
    }

    /// Bytes of the message that is not whole yet which are no longer in the buffer.
    pub fn aside(&self) -> usize {
        self.aside.len()
    }

    /// Whether the message that is not whole yet has more parts than have come, so that nobody knows how large it will
    /// be. `buffer` is what [`next`](Self::next) left.
    pub fn is_open_ended(&self, buffer: &[u8]) -> bool {
        match Header::read(buffer.get(self.scanned..).unwrap_or_default()) {
            Ok(Some(header)) if !header.command => header.more,
            _ => self.parts > 0,
        }
    }

    fn check(&self, header: Header) -> Result<(), Misbehaved> {
        let limits = &self.limits;
        if header.command {
            if header.body > limits.command {
                return Err(Misbehaved::CommandTooLarge { limit: limits.command });
            }
        } else if self.bytes.saturating_add(header.body) > limits.message {
            return Err(Misbehaved::MessageTooLarge { limit: limits.message });
        } else if self.parts >= limits.parts {
            return Err(Misbehaved::TooManyParts { limit: limits.parts });
        }
        Ok(())
    }
}

/// Walks over whole messages and commands at the front of encoded frames, as long as `go_on` says so of each. Returns
/// how many bytes were walked over. `go_on` is given a message's cost, `None` for a command.
pub fn whole_messages(bytes: &[u8], mut go_on: impl FnMut(Option<u64>) -> bool) -> usize {
    let (mut walked, mut at, mut cost) = (0, 0, MESSAGE_OVERHEAD);
    while let Some(Ok(Some(header))) = bytes.get(at..).map(Header::read) {
        let Some(end) = usize::try_from(header.total()).ok().and_then(|total| at.checked_add(total)) else { break };
        if end > bytes.len() {
            break;
        }
        at = end;
        cost = cost.saturating_add(header.body);
        if header.more {
            continue;
        }
        if !go_on((!header.command).then_some(cost)) {
            break;
        }
        (walked, cost) = (at, MESSAGE_OVERHEAD);
    }
    walked
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::{super::take_message, *};
    use crate::message::Message;
    use proptest::prelude::*;

    fn decode_all(
        decoder: &mut Decoder,
        buffer: &mut BytesMut,
        into: &mut Vec<Message>,
        commands: &mut usize,
    ) -> Result<Step, Misbehaved> {
        loop {
            match decoder.next(buffer, Room::UNBOUNDED)? {
                Step::Messages { mut bytes, tally } => {
                    let before = into.len();
                    while let Some(message) = take_message(&mut bytes) {
                        into.push(message);
                    }
                    assert!(bytes.is_empty());
                    let cost: u64 = into[before..].iter().map(Message::cost).sum();
                    assert_eq!(tally, Tally::new((into.len() - before) as u64, cost));
                }
                Step::Command(_) => *commands += 1,
                step => return Ok(step),
            }
        }
    }

    proptest! {
        #[test]
        fn messages_come_out_as_they_went_in_however_the_stream_is_cut(
            messages in prop::collection::vec(prop::collection::vec(prop::collection::vec(any::<u8>(), 0..400), 1..4), 0..20),
            pings in prop::collection::vec(any::<bool>(), 1..80),
            cuts in prop::collection::vec(1usize..300, 1..50),
        ) {
            let messages: Vec<Message> =
                messages.into_iter().map(|parts| parts.into_iter().collect()).collect();
            let (mut stream, mut sent) = (BytesMut::new(), 0);
            let mut pings = pings.iter().cycle();
            for message in &messages {
                for (index, part) in message.parts().iter().enumerate() {
                    encode_part(&mut stream, index + 1 < message.len(), part.len());
                    stream.put_slice(part);
                    // Behind each frame, for libzmq does that.
                    if *pings.next().unwrap() {
                        Command::Ping { ttl: 0, context: Bytes::new() }.encode(false, &mut stream);
                        sent += 1;
                    }
                }
            }
            let (mut decoder, mut buffer, mut out) = (Decoder::new(Limits::default()), BytesMut::new(), Vec::new());
            let (mut cuts, mut pinged) = (cuts.iter().cycle(), 0);
            while !stream.is_empty() {
                let cut = stream.len().min(*cuts.next().unwrap());
                buffer.extend_from_slice(&stream.split_to(cut));
                decode_all(&mut decoder, &mut buffer, &mut out, &mut pinged).unwrap();
            }
            prop_assert!(buffer.is_empty());
            prop_assert_eq!((out, pinged), (messages, sent));
            prop_assert_eq!(decoder.aside(), 0);
        }

        #[test]
        fn no_bytes_make_it_panic_or_keep_what_it_may_not(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let limits = Limits { message: 300, parts: 3, command: 100, ..Limits::default() };
            let (mut decoder, mut buffer, mut out) = (Decoder::new(limits), BytesMut::from(&bytes[..]), Vec::new());
            if decode_all(&mut decoder, &mut buffer, &mut out, &mut 0).is_ok() {
                prop_assert!(buffer.len() + decoder.aside() < 300 + 3 * 9 + 100 + 9);
            }
            prop_assert!(out.iter().all(|message| message.bytes() <= 300 && message.len() <= 3));
        }
    }

    #[test]
    fn every_limit_is_held_before_the_bytes_come() {
        let limits = Limits { message: 1000, parts: 2, command: 100, ..Limits::default() };
        let fault = |bytes: &[u8]| Decoder::new(limits).next(&mut BytesMut::from(bytes), Room::UNBOUNDED);
        assert_eq!(fault(b"\x02\0\0\0\0\0\0\x03\xe9"), Err(Misbehaved::MessageTooLarge { limit: 1000 }));
        assert_eq!(fault(b"\x02\x80\0\0\0\0\0\0\0"), Err(Misbehaved::BadLength));
        assert_eq!(fault(b"\x02\x7f\xff\xff\xff\xff\xff\xff\xff"), Err(Misbehaved::MessageTooLarge { limit: 1000 }));
        assert_eq!(fault(b"\x01\0\x01\0\x00\0"), Err(Misbehaved::TooManyParts { limit: 2 }));
        assert_eq!(fault(b"\x04\x65"), Err(Misbehaved::CommandTooLarge { limit: 100 }));
        for flags in [5, 7, 8, 0x80] {
            assert_eq!(fault(&[flags, 0]), Err(Misbehaved::BadFlags { flags }));
        }
        assert_eq!(fault(b"\x02\0\0\0\0\0\0\x03\xe8"), Ok(Step::NeedBytes(1000)));
    }

    #[test]
    fn good_messages_before_a_fault_are_not_lost() {
        let mut buffer = BytesMut::from(&b"\x00\x01a\x00\x01b\xff"[..]);
        let mut decoder = Decoder::new(Limits::default());
        let Ok(Step::Messages { tally, .. }) = decoder.next(&mut buffer, Room::UNBOUNDED) else { panic!() };
        assert_eq!(tally.messages, 2);
        assert_eq!(decoder.next(&mut buffer, Room::UNBOUNDED), Err(Misbehaved::BadFlags { flags: 0xff }));
    }

    #[test]
    fn no_more_is_taken_than_there_is_room_for() {
        let mut buffer = BytesMut::from(&b"\x00\x01a\x00\x01b\x00\x01c"[..]);
        let mut decoder = Decoder::new(Limits::default());
        let room = |messages, bytes, any_first| Room { tally: Tally::new(messages, bytes), any_first };
        assert_eq!(decoder.next(&mut buffer, room(0, 1000, true)), Ok(Step::NoRoom));
        assert_eq!(decoder.next(&mut buffer, room(5, 10, false)), Ok(Step::NoRoom));
        let Ok(Step::Messages { tally, .. }) = decoder.next(&mut buffer, room(5, 10, true)) else { panic!() };
        assert_eq!(tally.messages, 1);
        let Ok(Step::Messages { tally, .. }) = decoder.next(&mut buffer, room(1, 1000, false)) else { panic!() };
        assert_eq!(tally.messages, 1);
        assert_eq!(buffer, &b"\x00\x01c"[..]);
    }

    #[test]
    fn a_message_is_open_ended_until_its_last_part_has_begun() {
        let mut decoder = Decoder::new(Limits::default());
        let mut buffer = BytesMut::new();
        let mut come = |bytes: &[u8]| {
            buffer.put_slice(bytes);
            let step = decoder.next(&mut buffer, Room::UNBOUNDED).unwrap();
            assert!(matches!(step, Step::NeedBytes(_) | Step::Command(_)), "{step:?}");
            decoder.is_open_ended(&buffer)
        };
        assert!(!come(b""));
        for bytes in [&b"\x01\x02"[..], b"ab", b"\x04\x07", b"\x04PING\0\0", b"\x00"] {
            assert!(come(bytes), "{bytes:?}");
        }
        assert!(!come(b"\x02"));
    }

    #[test]
    fn a_command_leaves_the_buffer_to_its_owner() {
        let mut buffer = BytesMut::with_capacity(1000);
        buffer.put_slice(b"\x04\x07\x04PING\0\0");
        let mut decoder = Decoder::new(Limits::default());
        assert!(matches!(decoder.next(&mut buffer, Room::UNBOUNDED), Ok(Step::Command(Command::Ping { .. }))));
        assert!(buffer.try_reclaim(1000));
    }

    #[test]
    fn walking_stops_at_a_message_that_is_not_whole() {
        let bytes = b"\x00\x01a\x04\x05\x04XXXX\x01\x01b\x00\x01c\x01\x01d\x00\x05e";
        let mut seen = Vec::new();
        let walked = whole_messages(bytes, |cost| {
            seen.push(cost);
            true
        });
        assert_eq!((walked, seen), (16, [Some(65), None, Some(66)].into()));
        assert_eq!(whole_messages(bytes, |cost| cost.is_some()), 3);
    }
}
