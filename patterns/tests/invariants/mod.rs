//! What holds of the wire's readers whatever bytes come, in whatever pieces. The fuzz targets and the tests with fixed
//! seeds both call these.

use bytes::{Bytes, BytesMut};
use ropewalk_patterns::{
    Message, Misbehaved, Role, Tally,
    zmtp::{
        Command, Decoder, GREETING_LEN, Handshake, Header, Limits, Ready, Room, Span, Step, Version, encode_error,
        encode_part, read_greeting, read_handshake, take_message, whole_messages,
    },
};

/// Parts an input into the choices (sizes of pieces, room, limits) and the bytes of the peer.
pub(crate) fn parted(input: &[u8]) -> (&[u8], &[u8]) {
    let Some((&choices, rest)) = input.split_first() else { return (&[], &[]) };
    rest.split_at(usize::from(choices % 32).min(rest.len()))
}

/// The choices, over and over.
fn choices(choices: &[u8]) -> impl FnMut() -> usize {
    let choices = if choices.is_empty() { vec![255] } else { choices.to_vec() };
    let mut at = 0;
    move || {
        at = (at + 1) % choices.len();
        usize::from(choices[at])
    }
}

#[derive(Debug, PartialEq)]
enum Found {
    Message(Message),
    Command(Command),
}

/// What a stream holds, why it cannot be followed further, and how many bytes of it are left.
#[derive(Debug, PartialEq)]
struct All {
    found: Vec<Found>,
    fault: Option<Misbehaved>,
    left: usize,
}

/// The decoder finds the same however the bytes come and whatever room there is, and never keeps more than it may.
pub(crate) fn decoder(control: &[u8], stream: &[u8]) {
    let tight = Limits { message: 300, parts: 3, command: 100, topic: 20, ..Limits::default() };
    let limits = if control.first().is_some_and(|first| first % 4 == 0) { Limits::default() } else { tight };
    let at_once = at_once(stream, limits);
    assert_eq!(at_once, plainly(stream, limits));
    assert_eq!(in_pieces(control, stream, limits), at_once);
    assert!(at_once.found.iter().all(|found| match found {
        Found::Message(message) => message.bytes() <= limits.message && message.len() <= limits.parts,
        Found::Command(Command::Subscribe(topic) | Command::Cancel(topic)) => topic.len() <= limits.topic,
        Found::Command(_) => true,
    }));
    // No bytes at all may make these panic or find more than there is.
    assert!(whole_messages(stream, |_| true) <= stream.len());
    let mut rest = Bytes::copy_from_slice(stream);
    while take_message(&mut rest).is_some() {}
    for place in (0..=stream.len() + 1).rev().take(100).chain([usize::MAX]) {
        assert!(Span::at(stream, place).is_none_or(|span| span.end() <= stream.len()));
    }
}

/// The grammar once more, read off the whole stream with nothing clever.
fn plainly(stream: &[u8], limits: Limits) -> All {
    let mut all = All { found: Vec::new(), fault: None, left: stream.len() };
    let (mut rest, mut parts) = (stream, Vec::new());
    while let [flags, after @ ..] = rest {
        let (more, long, command) = (flags & 1 != 0, flags & 2 != 0, flags & 4 != 0);
        let length = if long { after.get(..8) } else { after.get(..1) };
        let gathered: u64 = parts.iter().map(|part: &Bytes| part.len() as u64).sum();
        let length_fault = || {
            let body = length?.iter().fold(0, |number: u64, byte| number << 8 | u64::from(*byte));
            match () {
                () if body > i64::MAX as u64 => Some(Misbehaved::BadLength),
                () if command && body > limits.command => Some(Misbehaved::CommandTooLarge { limit: limits.command }),
                () if command => None,
                () if gathered + body > limits.message => Some(Misbehaved::MessageTooLarge { limit: limits.message }),
                () if parts.len() >= limits.parts => Some(Misbehaved::TooManyParts { limit: limits.parts }),
                () => None,
            }
        };
        all.fault =
            if *flags > 6 || *flags == 5 { Some(Misbehaved::BadFlags { flags: *flags }) } else { length_fault() };
        let (None, Some(length)) = (&all.fault, length) else { break };
        let body = length.iter().fold(0, |number: usize, byte| number << 8 | usize::from(*byte));
        let Some((body, next)) = after[length.len()..].split_at_checked(body) else { break };
        rest = next;
        let body = Bytes::copy_from_slice(body);
        if command {
            // The parts before it stay until their message is whole.
            all.left -= 1 + length.len() + body.len();
            match Command::decode(body, &limits) {
                Ok(command) => all.found.push(Found::Command(command)),
                Err(fault) => {
                    all.fault = Some(fault);
                    break;
                }
            }
            continue;
        }
        parts.push(body);
        if !more {
            all.left = rest.len();
            all.found.push(Found::Message(Message::from_parts(parts.drain(..))));
        }
    }
    all
}

fn at_once(stream: &[u8], limits: Limits) -> All {
    let (mut decoder, mut buffer) = (Decoder::new(limits), BytesMut::from(stream));
    let mut all = All { found: Vec::new(), fault: None, left: 0 };
    let mut aside = Vec::new();
    loop {
        let before = stream.len() - buffer.len();
        let step = decoder.next(&mut buffer, Room::UNBOUNDED);
        let raw = &stream[before..stream.len() - buffer.len()];
        let (parts, raw) = raw.split_at(decoder.aside().saturating_sub(aside.len()));
        aside.extend_from_slice(parts);
        match step {
            Ok(Step::Messages { bytes, tally }) => {
                assert_eq!(bytes, [&std::mem::take(&mut aside), raw].concat());
                all.found.extend(messages(bytes, tally, &limits).into_iter().map(Found::Message));
            }
            Ok(Step::Command(command)) => {
                writes_back(&command, raw, &limits);
                all.found.push(Found::Command(command));
            }
            Ok(Step::NeedBytes(_)) => break,
            Ok(Step::NoRoom) => panic!("no room in a room without bound"),
            Err(fault) => {
                assert!(!fault.to_string().is_empty());
                all.fault = Some(fault);
                break;
            }
        }
    }
    all.left = buffer.len() + decoder.aside();
    all
}

/// As a link reads: it stops when there is no room and goes on when there is.
fn in_pieces(control: &[u8], mut stream: &[u8], limits: Limits) -> All {
    let mut choose = choices(control);
    let (mut decoder, mut buffer) = (Decoder::new(limits), BytesMut::new());
    let mut all = All { found: Vec::new(), fault: None, left: 0 };
    // All the parts a message may have, and behind them a command.
    let most = limits.message + 9 * (limits.parts as u64 + 1) + limits.command;
    let mut needed = 0;
    'reading: loop {
        let mut refusals = 0;
        loop {
            let room = match refusals {
                0..3 => {
                    let tally = Tally::new(choose() as u64 % 4, choose() as u64 * 4);
                    Room { tally, any_first: choose().is_multiple_of(2) }
                }
                // One message fits here whatever it costs.
                _ => Room { tally: Tally::new(1, 0), any_first: true },
            };
            let step = decoder.next(&mut buffer, room);
            let moved = !matches!(step, Ok(Step::NeedBytes(_) | Step::NoRoom));
            assert!(needed == 0 || !moved, "{step:?} though {needed} bytes are wanting");
            match step {
                Ok(Step::Messages { bytes, tally }) => {
                    assert!(!room.is_none() && tally.messages <= room.tally.messages);
                    let alone = room.any_first && tally.messages == 1;
                    assert!(tally.bytes <= room.tally.bytes || alone, "{tally:?} in {room:?}");
                    all.found.extend(messages(bytes, tally, &limits).into_iter().map(Found::Message));
                    refusals = 0;
                }
                Ok(Step::Command(command)) => all.found.push(Found::Command(command)),
                Ok(Step::NoRoom) => {
                    assert!(refusals < 3, "no room for one");
                    refusals += 1;
                }
                Ok(Step::NeedBytes(wanting)) => {
                    assert!(
                        wanting > 0 && (decoder.aside() + buffer.len() + wanting) as u64 <= most,
                        "keeps more than it may"
                    );
                    needed = wanting;
                    break;
                }
                Err(fault) => {
                    all.fault = Some(fault);
                    break 'reading;
                }
            }
        }
        if stream.is_empty() {
            break;
        }
        let (piece, rest) = stream.split_at((1 + choose() % 64).min(stream.len()));
        buffer.extend_from_slice(piece);
        needed = needed.saturating_sub(piece.len());
        stream = rest;
    }
    all.left = decoder.aside() + buffer.len() + stream.len();
    all
}

/// Takes whole messages apart, and holds what was said of them against it.
fn messages(frames: Bytes, tally: Tally, limits: &Limits) -> Vec<Message> {
    let mut walked = Tally::ZERO;
    let length = whole_messages(&frames, |cost| {
        walked.add(cost.expect("no command among messages"));
        true
    });
    assert_eq!((length, walked), (frames.len(), tally));

    let (mut rest, mut messages, mut out) = (frames.clone(), Vec::new(), BytesMut::new());
    let mut place = 0;
    while let Some(message) = take_message(&mut rest) {
        let span = Span::at(&frames, place).expect("the same message");
        place = span.end();
        assert_eq!((place, span.cost()), (frames.len() - rest.len(), message.cost()));
        assert_eq!((span.first(&frames), span.message(&frames)), (message.topic(), message.clone()));
        write(&message, &mut out);
        if let (1, Ok(Some(command))) = (message.len(), Command::from_legacy(message.payload(), limits)) {
            let (mut as_command, mut as_message) = (BytesMut::new(), BytesMut::new());
            command.encode(true, &mut as_command);
            write(&message, &mut as_message);
            assert_eq!(as_command, as_message);
        }
        messages.push(message);
    }
    assert!(rest.is_empty());
    assert_eq!(messages.len() as u64, tally.messages);
    assert_eq!(messages.iter().map(Message::cost).sum::<u64>(), tally.bytes);

    // Written again they are the same bytes, but for lengths of eight bytes where one is enough.
    assert_eq!(out.len(), frames.len() - 7 * needlessly_long(&frames));
    if out.len() == frames.len() {
        assert_eq!(out, frames);
    }
    messages
}

fn write(message: &Message, out: &mut BytesMut) {
    for (index, part) in message.parts().iter().enumerate() {
        encode_part(out, index + 1 < message.len(), part.len());
        out.extend_from_slice(part);
    }
}

fn needlessly_long(mut frames: &[u8]) -> usize {
    let mut count = 0;
    while let Ok(Some(header)) = Header::read(frames) {
        count += usize::from(header.len() == 9 && header.body < 256);
        frames = &frames[usize::try_from(header.total()).unwrap()..];
    }
    count
}

/// A command written again is read as the same, and has the same bytes unless it came longer than it had to be, or with
/// something in it that means nothing there.
fn writes_back(command: &Command, raw: &[u8], limits: &Limits) {
    let mut out = BytesMut::new();
    command.encode(false, &mut out);
    if *command == Command::Unknown {
        assert!(out.is_empty());
        return;
    }
    assert!(out.len() <= raw.len());
    if out.len() == raw.len() && !matches!(command, Command::Resume(_) | Command::Verdict(_)) {
        assert_eq!(out, raw);
    }
    let again = Decoder::new(*limits).next(&mut out, Room::UNBOUNDED);
    assert_eq!(again, Ok(Step::Command(command.clone())));
    assert!(out.is_empty());
}

/// How a handshake ended.
#[derive(Debug, PartialEq)]
enum Verdict {
    /// So many bytes behind the greeting came, if it came.
    Unfinished(Option<usize>),
    /// So many bytes came behind READY.
    Done(Version, Ready, usize),
    Refused(Misbehaved),
}

/// The handshake ends alike however the bytes come.
pub(crate) fn handshake(control: &[u8], stream: &[u8]) {
    let limits = Limits { handshake: if control.len().is_multiple_of(2) { 4096 } else { 200 }, ..Limits::default() };
    let at_once = verdict(|| usize::MAX, stream, limits);
    let mut choose = choices(control);
    assert_eq!(verdict(|| 1 + choose() % 40, stream, limits), at_once);
    match at_once {
        Verdict::Unfinished(_) => {}
        Verdict::Done(_, _, left) if stream.len() - left > limits.handshake => panic!("longer than it may be"),
        Verdict::Done(_, ready, _) => reads_back(ready),
        Verdict::Refused(misbehaved) => {
            assert!(!misbehaved.to_string().is_empty());
            if let Misbehaved::Refused { reason } = misbehaved {
                let again = read_handshake(&mut BytesMut::from(&encode_error(&reason)[..]), &limits);
                let ascii: String = reason.chars().filter(char::is_ascii).collect();
                assert_eq!(again, Err(Misbehaved::Refused { reason: ascii }));
            }
        }
    }
}

fn verdict(mut piece: impl FnMut() -> usize, mut stream: &[u8], limits: Limits) -> Verdict {
    let (mut buffer, mut version) = (BytesMut::new(), None);
    loop {
        if version.is_none() {
            version = match read_greeting(&buffer) {
                Ok(version) => version,
                Err(misbehaved) => return Verdict::Refused(misbehaved),
            };
            assert_eq!(version.is_some(), buffer.len() >= GREETING_LEN);
            if version.is_some() {
                buffer = buffer.split_off(GREETING_LEN);
            }
        }
        if let Some(version) = version {
            let before = buffer.len();
            match read_handshake(&mut buffer, &limits) {
                Ok(Handshake::Ready(ready)) => return Verdict::Done(version, ready, buffer.len() + stream.len()),
                Ok(Handshake::Unfinished) => {
                    assert_eq!(buffer.len(), before);
                    assert!(before < limits.handshake - GREETING_LEN, "keeps more than it may");
                }
                Err(misbehaved) => return Verdict::Refused(misbehaved),
            }
        }
        if stream.is_empty() {
            return Verdict::Unfinished(version.map(|_| buffer.len()));
        }
        let (now, rest) = stream.split_at(piece().min(stream.len()));
        buffer.extend_from_slice(now);
        stream = rest;
    }
}

fn reads_back(ready: Ready) {
    // A label is written only where the role may have one.
    let labelled = [Role::REQ, Role::DEALER, Role::ROUTER].contains(&ready.role);
    let ready = if labelled { ready } else { Ready { identity: Bytes::new(), ..ready } };
    let mut bytes = BytesMut::from(&ready.encode()[..]);
    let limits = Limits { handshake: 1 << 16, ..Limits::default() };
    assert_eq!(read_handshake(&mut bytes, &limits), Ok(Handshake::Ready(ready)));
    assert!(bytes.is_empty());
}
