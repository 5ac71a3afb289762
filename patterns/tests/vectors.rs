//! The byte vectors of ZMTP, each read and, where we send such bytes, written. A vector that nobody names fails.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use ropewalk_patterns::{
    Message, Misbehaved, Role, Tally,
    zmtp::{
        Command, Decoder, GREETING_LEN, Handshake, Header, Limits, Ready, Room, Step, Version, encode_error,
        encode_part, greeting, read_greeting, read_handshake, take_message,
    },
};

/// What a vector is, and what we make of it.
enum Is {
    /// A greeting; `true`: ours, byte for byte.
    Greeting(Version, bool),
    /// A READY of this role, which we write alike.
    Ready(&'static str),
    /// A READY of this role and label, which we write otherwise, for this reason.
    ReadOnlyReady { role: &'static str, identity: &'static str, why: &'static str },
    /// An ERROR with this reason.
    Error(&'static str),
    /// A command; `legacy`: in the form of ZMTP 3.0, a message.
    Command { command: Command, legacy: bool },
    /// A command of a pattern we have not, passed over.
    PassedOver,
    /// A message of these parts.
    Message(&'static [&'static str]),
    /// A message of these parts, which we write shorter.
    ReadOnlyMessage(&'static [&'static str]),
    /// The header of a message of one part of this length.
    Head(usize),
    /// Refused as a greeting.
    RefusedGreeting(Misbehaved),
    /// Refused in place of READY: only the NULL mechanism is spoken.
    RefusedHandshake(Misbehaved),
}

/// Vectors that nothing here is held against, and why. All of today's apply.
const LEFT_OUT: [(&str, &str); 0] = [];

fn subscribe(topic: &str) -> Command {
    Command::Subscribe(Bytes::copy_from_slice(topic.as_bytes()))
}

fn cancel(topic: &str) -> Command {
    Command::Cancel(Bytes::copy_from_slice(topic.as_bytes()))
}

fn known() -> BTreeMap<&'static str, Is> {
    let sixteen: Vec<u8> = (0..16).collect();
    let command = |command| Is::Command { command, legacy: false };
    let legacy = |command| Is::Command { command, legacy: true };
    let wrong = |mechanism: &str| Is::RefusedGreeting(Misbehaved::WrongMechanism { mechanism: mechanism.into() });
    let labelled = "like libzmq we send Identity, be it empty, where the role may have one";
    let unlabelled = |role| Is::ReadOnlyReady { role, identity: "", why: labelled };
    BTreeMap::from([
        ("greeting_null_31", Is::Greeting(Version::V3_1, true)),
        ("greeting_null_30_libzmq_mock", Is::Greeting(Version::V3_0, false)),
        ("greeting_null_31_libzmq_live", Is::Greeting(Version::V3_1, false)),
        ("greeting_plain_server", wrong("PLAIN")),
        ("greeting_curve", wrong("CURVE")),
        ("ready_dealer_empty_identity", Is::Ready("DEALER")),
        ("ready_router", unlabelled("ROUTER")),
        ("ready_req", unlabelled("REQ")),
        ("ready_pub", Is::Ready("PUB")),
        ("ready_sub", Is::Ready("SUB")),
        ("ready_xpub", Is::Ready("XPUB")),
        ("ready_xsub", Is::Ready("XSUB")),
        ("ready_push", Is::Ready("PUSH")),
        ("ready_pull", Is::Ready("PULL")),
        ("ready_rep", Is::Ready("REP")),
        ("ready_pair", Is::Ready("PAIR")),
        ("ready_client", Is::Ready("CLIENT")),
        ("ready_server", Is::Ready("SERVER")),
        ("ready_radio", Is::Ready("RADIO")),
        ("ready_dish", Is::Ready("DISH")),
        ("ready_scatter", Is::Ready("SCATTER")),
        ("ready_gather", Is::Ready("GATHER")),
        ("ready_peer", Is::Ready("PEER")),
        ("ready_channel", Is::Ready("CHANNEL")),
        ("ready_empty", Is::ReadOnlyReady { role: "", identity: "", why: "we always name our role" }),
        (
            "ready_lowercase_name",
            Is::ReadOnlyReady { role: "PULL", identity: "abc", why: "we write names as libzmq compares them" },
        ),
        ("error_reason", Is::Error("bad socket type")),
        ("error_libzmq_zap_400", Is::Error("400")),
        ("subscribe_A", command(subscribe("A"))),
        ("cancel_A", command(cancel("A"))),
        ("subscribe_all", command(subscribe(""))),
        ("subscribe_245", command(subscribe(&"t".repeat(245)))),
        ("subscribe_246", command(subscribe(&"t".repeat(246)))),
        ("legacy_subscribe_A", legacy(subscribe("A"))),
        ("legacy_unsubscribe_A", legacy(cancel("A"))),
        ("legacy_subscribe_254", legacy(subscribe(&"t".repeat(254)))),
        ("legacy_subscribe_255_correct", legacy(subscribe(&"t".repeat(255)))),
        ("ping_ttl0_LOL", command(Command::Ping { ttl: 0, context: "LOL".into() })),
        ("pong_LOL", command(Command::Pong { context: "LOL".into() })),
        ("ping_ttl300_ctx16", command(Command::Ping { ttl: 300, context: sixteen.clone().into() })),
        ("pong_ctx16", command(Command::Pong { context: sixteen.into() })),
        ("ping_max_ttl", command(Command::Ping { ttl: u16::MAX, context: "".into() })),
        ("join_g", Is::PassedOver),
        ("leave_g", Is::PassedOver),
        ("radio_message_g_hi", Is::Message(&["g", "hi"])),
        ("plain_hello_admin_secret", Is::RefusedHandshake(Misbehaved::HandshakeExpected)),
        ("plain_hello_empty", Is::RefusedHandshake(Misbehaved::HandshakeExpected)),
        ("plain_welcome", Is::RefusedHandshake(Misbehaved::HandshakeExpected)),
        ("plain_initiate_dealer", Is::RefusedHandshake(Misbehaved::HandshakeExpected)),
        ("msg_empty", Is::Message(&[""])),
        ("msg_hello", Is::Message(&["hello"])),
        ("msg_multipart_A_B", Is::Message(&["A", "B"])),
        ("msg_255_head", Is::Head(255)),
        ("msg_256_head", Is::Head(256)),
        ("msg_long_noncanonical", Is::ReadOnlyMessage(&["hi"])),
        ("req_on_wire_hello", Is::Message(&["", "hello"])),
        ("zmtp20_greeting_dealer", Is::RefusedGreeting(Misbehaved::OldVersion { major: 1 })),
        ("zmtp10_identity_empty", Is::RefusedGreeting(Misbehaved::NotZmtp)),
        ("zmtp10_msg_hello", Is::RefusedGreeting(Misbehaved::NotZmtp)),
    ])
}

/// Name and bytes of each vector. The file is one flat list of objects whose values hold no quotes or escapes.
fn vectors() -> Vec<(String, Vec<u8>)> {
    let text = include_str!("zmtp_vectors.json");
    assert!(!text.contains('\\'), "an escape, which this reader does not know");
    let field = |object: &str, name: &str| {
        let (_, rest) = object.split_once(&format!("\"{name}\":"))?;
        rest.trim_start().trim_start_matches('"').split(['"', ',', '}', '\n']).next().map(str::to_owned)
    };
    let mut vectors = Vec::new();
    for object in text.split('{').skip(1) {
        let name = field(object, "name").expect("a name");
        let hex = field(object, "hex").expect("bytes");
        let digits = |at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex digits");
        let bytes: Vec<u8> = (0..hex.len()).step_by(2).map(digits).collect();
        let length: usize = field(object, "len").expect("a length").parse().expect("a number");
        assert_eq!(bytes.len(), length, "{name}");
        vectors.push((name, bytes));
    }
    assert_eq!(vectors.len(), text.matches("\"hex\"").count());
    vectors
}

fn handshake(bytes: &[u8]) -> Result<Handshake, Misbehaved> {
    let limits = Limits::default();
    for len in 0..bytes.len() {
        let mut part = BytesMut::from(&bytes[..len]);
        assert_eq!(read_handshake(&mut part, &limits), Ok(Handshake::Unfinished), "after {len} bytes");
        assert_eq!(part.len(), len);
    }
    let mut buffer = BytesMut::from(bytes);
    let read = read_handshake(&mut buffer, &limits);
    assert!(buffer.is_empty());
    read
}

fn traffic(bytes: &[u8]) -> Step {
    let mut decoder = Decoder::new(Limits::default());
    let mut buffer = BytesMut::new();
    for (index, byte) in bytes.iter().enumerate() {
        buffer.extend_from_slice(&[*byte]);
        let step = decoder.next(&mut buffer, Room::UNBOUNDED).unwrap();
        if index + 1 == bytes.len() {
            assert!(buffer.is_empty());
            return step;
        }
        assert!(matches!(step, Step::NeedBytes(_)), "{step:?} after {} bytes", index + 1);
    }
    unreachable!("no vector is empty")
}

fn message(bytes: &[u8]) -> Message {
    let Step::Messages { bytes: mut frames, tally } = traffic(bytes) else { panic!("no message") };
    let message = take_message(&mut frames).expect("a message");
    assert!(frames.is_empty());
    assert_eq!(tally, Tally::new(1, message.cost()));
    message
}

fn written(message: &Message) -> BytesMut {
    let mut out = BytesMut::new();
    for (index, part) in message.parts().iter().enumerate() {
        encode_part(&mut out, index + 1 < message.len(), part.len());
        out.extend_from_slice(part);
    }
    out
}

fn ready(role: &'static str, identity: &'static str) -> Ready {
    Ready { role: Role::new(role), identity: identity.into(), hello: None }
}

fn check(bytes: &[u8], is: Is) {
    match is {
        Is::Greeting(version, ours) => {
            for len in 0..GREETING_LEN {
                assert_eq!(read_greeting(&bytes[..len]), Ok(None));
            }
            assert_eq!(read_greeting(bytes), Ok(Some(version)));
            assert_eq!(greeting() == bytes, ours);
        }
        Is::Ready(role) => {
            assert_eq!(handshake(bytes), Ok(Handshake::Ready(ready(role, ""))));
            assert_eq!(ready(role, "").encode(), bytes);
        }
        Is::ReadOnlyReady { role, identity, why } => {
            let read = ready(role, identity);
            assert_eq!(handshake(bytes), Ok(Handshake::Ready(read.clone())));
            assert_ne!(read.encode(), bytes, "{why}: no longer");
            // A label is written only where the role may have one.
            if identity.is_empty() {
                assert_eq!(handshake(&read.encode()), Ok(Handshake::Ready(read)), "{why}");
            }
        }
        Is::Error(reason) => {
            assert_eq!(handshake(bytes), Err(Misbehaved::Refused { reason: reason.into() }));
            assert_eq!(encode_error(reason), bytes);
        }
        Is::Command { command, legacy } => {
            if legacy {
                let message = message(bytes);
                assert_eq!(message.len(), 1);
                let read = Command::from_legacy(message.payload(), &Limits::default());
                assert_eq!(read, Ok(Some(command.clone())));
            } else {
                assert_eq!(traffic(bytes), Step::Command(command.clone()));
            }
            let mut out = BytesMut::new();
            command.encode(legacy, &mut out);
            assert_eq!(out, bytes);
        }
        Is::PassedOver => assert_eq!(traffic(bytes), Step::Command(Command::Unknown)),
        Is::Message(parts) => {
            let expected: Message = parts.iter().copied().collect();
            assert_eq!(message(bytes), expected);
            assert_eq!(written(&expected), bytes);
        }
        Is::ReadOnlyMessage(parts) => {
            let expected: Message = parts.iter().copied().collect();
            assert_eq!(message(bytes), expected);
            assert!(written(&expected).len() < bytes.len());
            assert_eq!(message(&written(&expected)), expected);
        }
        Is::Head(body) => {
            let header = Header::read(bytes).unwrap().expect("a header");
            assert_eq!(
                (header.len(), header.body, header.more, header.command),
                (bytes.len(), body as u64, false, false)
            );
            let mut decoder = Decoder::new(Limits::default());
            let step = decoder.next(&mut BytesMut::from(bytes), Room::UNBOUNDED);
            assert_eq!(step, Ok(Step::NeedBytes(body)));
            let mut out = BytesMut::new();
            encode_part(&mut out, false, body);
            assert_eq!(out, bytes);
        }
        Is::RefusedGreeting(misbehaved) => assert_eq!(read_greeting(bytes), Err(misbehaved)),
        Is::RefusedHandshake(misbehaved) => assert_eq!(handshake(bytes), Err(misbehaved)),
    }
}

#[test]
fn every_vector_is_read_and_written_as_the_grammar_says() {
    let (mut known, mut left_out) = (known(), BTreeMap::from(LEFT_OUT));
    for (name, bytes) in vectors() {
        if left_out.remove(&name[..]).is_some() {
            continue;
        }
        let is = known.remove(&name[..]).unwrap_or_else(|| panic!("nobody says what {name} is"));
        println!("{name}");
        check(&bytes, is);
    }
    assert!(known.is_empty() && left_out.is_empty(), "not in the file: {:?} {left_out:?}", known.keys());
}
