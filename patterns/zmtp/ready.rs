//! The NULL handshake: READY each way, or ERROR.
//!
//! ```text
//!   READY    = 04 length 05 "READY" *property             06 and an eight-byte length beyond 255
//!   property = name-length(1) name value-length(4) value
//!   ERROR    = 04 length 05 "ERROR" reason-length(1) reason
//! ```
//!
//! Properties: `Socket-Type`; `Identity`, a routing label that proves nothing; `X-Ropewalk`, the
//! [`Hello`](crate::extension::Hello) by which Ropewalk peers know each other. Others are passed over. Names are
//! written exactly so, because libzmq compares them exactly, and read without regard to case, as the RFC says.

use alloc::{string::String, vec::Vec};

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::{
    Limits,
    frame::{Header, put_header},
};
use crate::{extension::Hello, misbehaved::Misbehaved, pattern::Role};

const READY: &[u8] = b"\x05READY";
const ERROR: &[u8] = b"\x05ERROR";
const SOCKET_TYPE: &str = "Socket-Type";
const IDENTITY: &str = "Identity";
const X_ROPEWALK: &str = "X-Ropewalk";

/// What a peer says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ready {
    /// Its socket type; [unsaid](Role::is_unsaid) if it left it out.
    pub role: Role,
    /// Its routing label, if it gave one. Not proven by anything.
    pub identity: Bytes,
    /// What a Ropewalk peer adds.
    pub hello: Option<Hello>,
}

impl Ready {
    /// The READY command as a frame.
    pub fn encode(&self) -> Bytes {
        let mut body = BytesMut::from(READY);
        put_property(&mut body, SOCKET_TYPE, self.role.name().as_bytes());
        if [Role::REQ, Role::DEALER, Role::ROUTER].contains(&self.role) {
            put_property(&mut body, IDENTITY, &self.identity);
        }
        if let Some(hello) = &self.hello {
            put_property(&mut body, X_ROPEWALK, &hello.encode());
        }
        framed(&body)
    }

    fn decode(mut properties: Bytes) -> Result<Self, Misbehaved> {
        let (mut role, mut identity, mut hello) = (None, None, None);
        while !properties.is_empty() {
            let (name, value) = take_property(&mut properties).ok_or(Misbehaved::BadMetadata)?;
            let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
            let repeated = if is(SOCKET_TYPE) {
                let text = core::str::from_utf8(&value).map_err(|_| Misbehaved::BadMetadata)?;
                role.replace(Role::of_peer(text)).is_some()
            } else if is(IDENTITY) {
                if value.len() > 255 {
                    return Err(Misbehaved::BadMetadata);
                }
                identity.replace(value).is_some()
            } else if is(X_ROPEWALK) {
                hello.replace(Hello::decode(&value)?).is_some()
            } else {
                false
            };
            if repeated {
                return Err(Misbehaved::RepeatedProperty);
            }
        }
        Ok(Self { role: role.unwrap_or_else(|| Role::of_peer("")), identity: identity.unwrap_or_default(), hello })
    }
}

/// ERROR as a frame; a reason longer than 255 bytes is cut.
pub fn encode_error(reason: &str) -> Bytes {
    let reason: Vec<u8> = reason.bytes().filter(u8::is_ascii).take(255).collect();
    let mut body = BytesMut::from(ERROR);
    body.put_u8(u8::try_from(reason.len()).unwrap_or(u8::MAX));
    body.put_slice(&reason);
    framed(&body)
}

/// How far the handshake has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Handshake {
    /// More bytes are needed.
    Unfinished,
    /// The peer's READY.
    Ready(Ready),
}

/// Reads READY from what has come behind the greeting and takes its bytes away.
///
/// # Errors
/// When something else comes, or it would be longer than the limits allow.
pub fn read_handshake(buffer: &mut BytesMut, limits: &Limits) -> Result<Handshake, Misbehaved> {
    let Some(header) = Header::read(buffer)? else { return Ok(Handshake::Unfinished) };
    if !header.command {
        return Err(Misbehaved::HandshakeExpected);
    }
    let limit = limits.handshake;
    let room = (limit as u64).saturating_sub(super::GREETING_LEN as u64);
    if header.total() > room {
        return Err(Misbehaved::HandshakeTooLong { limit });
    }
    let total = usize::try_from(header.total()).map_err(|_| Misbehaved::BadLength)?;
    if buffer.len() < total {
        return Ok(Handshake::Unfinished);
    }
    let mut frame = buffer.split_to(total).freeze();
    frame.advance(header.len());
    if frame.starts_with(READY) {
        frame.advance(READY.len());
        return Ready::decode(frame).map(Handshake::Ready);
    }
    if frame.starts_with(ERROR) {
        frame.advance(ERROR.len());
        return Err(refused(&frame));
    }
    Err(Misbehaved::HandshakeExpected)
}

/// What an ERROR says, from what stands behind its name.
pub(super) fn refused(body: &[u8]) -> Misbehaved {
    let reason = body.split_first().and_then(|(&length, reason)| reason.get(..usize::from(length)));
    reason.map_or(Misbehaved::BadMetadata, |reason| Misbehaved::Refused {
        reason: String::from_utf8_lossy(reason).into_owned(),
    })
}

fn framed(body: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(body.len() + 9);
    put_header(&mut frame, Header::COMMAND, body.len());
    frame.put_slice(body);
    frame.freeze()
}

fn put_property(body: &mut BytesMut, name: &str, value: &[u8]) {
    // All names are constants below 256 bytes; values are ours and short.
    body.put_u8(u8::try_from(name.len()).unwrap_or(u8::MAX));
    body.put_slice(name.as_bytes());
    body.put_u32(u32::try_from(value.len()).unwrap_or(u32::MAX));
    body.put_slice(value);
}

fn take_property(bytes: &mut Bytes) -> Option<(Bytes, Bytes)> {
    let name = usize::from(bytes.try_get_u8().ok()?);
    if name == 0 || bytes.len() < name {
        return None;
    }
    let name = bytes.split_to(name);
    let value = usize::try_from(bytes.try_get_u32().ok()?).ok()?;
    if bytes.len() < value {
        return None;
    }
    Some((name, bytes.split_to(value)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credit::Tally;

    fn read(bytes: &[u8]) -> Result<Handshake, Misbehaved> {
        read_handshake(&mut BytesMut::from(bytes), &Limits::default())
    }

    #[test]
    fn a_hello_comes_back_and_other_properties_are_passed_over() {
        let hello = Hello::new(Tally::new(1000, 8 << 20), 4 << 20);
        let ready = Ready { role: Role::REQ, identity: Bytes::from("me"), hello: Some(hello) };
        let bytes = ready.encode();
        for len in 0..bytes.len() {
            assert_eq!(read(&bytes[..len]), Ok(Handshake::Unfinished));
        }
        assert_eq!(read(&bytes), Ok(Handshake::Ready(ready)));

        let mut body = BytesMut::from(READY);
        put_property(&mut body, "Resource", b"/x");
        put_property(&mut body, "socket-TYPE", b"PULL");
        let Ok(Handshake::Ready(ready)) = read(&framed(&body)) else { panic!("refused") };
        assert_eq!(ready.role, Role::PULL);
        assert!(ready.hello.is_none());
    }

    #[test]
    fn malformed_metadata_is_refused() {
        for tail in [&b"\x00\0\0\0\0"[..], b"\x05ab", b"\x01a\0\0", b"\x01a\0\0\0\x05b", b"\x01a\xff\xff\xff\xff"] {
            let mut body = BytesMut::from(READY);
            body.put_slice(tail);
            assert_eq!(read(&framed(&body)), Err(Misbehaved::BadMetadata), "{tail:?}");
        }
        let mut body = BytesMut::from(READY);
        put_property(&mut body, SOCKET_TYPE, b"PULL");
        put_property(&mut body, SOCKET_TYPE, b"PULL");
        assert_eq!(read(&framed(&body)), Err(Misbehaved::RepeatedProperty));
    }

    #[test]
    fn anything_but_ready_is_named() {
        assert_eq!(read(b"\x00\x05hello"), Err(Misbehaved::HandshakeExpected));
        assert_eq!(read(b"\x04\x05\x04PING"), Err(Misbehaved::HandshakeExpected));
        let refused = Err(Misbehaved::Refused { reason: "bad socket type".into() });
        assert_eq!(read(&encode_error("bad socket type")), refused);
        assert_eq!(read(b"\x06\0\0\0\0\0\0\x20\0"), Err(Misbehaved::HandshakeTooLong { limit: 4096 }));
    }
}
