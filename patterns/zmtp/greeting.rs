//! The first 64 bytes each way.
//!
//! ```text
//!    0     FF                      signature
//!    1-8   padding                 not looked at; libzmq puts a length there for ZMTP 1.0
//!    9     7F                      signature; an even byte here is ZMTP 1.0
//!   10     03                      major version
//!   11     01                      minor version
//!   12-31  "NULL" and zeros        security mechanism
//!   32     00                      as-server, means nothing with NULL
//!   33-63  zeros
//! ```

use alloc::string::String;

use crate::misbehaved::Misbehaved;

/// The length of a greeting.
pub const GREETING_LEN: usize = 64;

const MECHANISM: core::ops::Range<usize> = 12..32;

/// The minor version a peer of major version 3 speaks; later majors count as 3.1, as the RFC asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// 3.0: subscriptions are messages, PING is not known.
    V3_0,
    /// 3.1 or later.
    V3_1,
}

/// Our greeting.
pub fn greeting() -> [u8; GREETING_LEN] {
    let mut bytes = [0; GREETING_LEN];
    let fields: [(usize, &[u8]); 3] = [(0, &[0xFF]), (9, &[0x7F, 3, 1]), (MECHANISM.start, b"NULL")];
    for (at, field) in fields {
        if let Some(place) = bytes.get_mut(at..at + field.len()) {
            place.copy_from_slice(field);
        }
    }
    bytes
}

/// Reads a peer's greeting, of which `bytes` has come so far. `None`: all is well as far as it goes, more is needed.
///
/// # Errors
/// As soon as a byte tells that this is no peer for us, without waiting for the rest.
pub fn read_greeting(bytes: &[u8]) -> Result<Option<Version>, Misbehaved> {
    let at = |index: usize| bytes.get(index).copied();
    if at(0).is_some_and(|first| first != 0xFF) || at(9).is_some_and(|tenth| tenth & 1 == 0) {
        return Err(Misbehaved::NotZmtp);
    }
    if let Some(major) = at(10).filter(|&major| major < 3) {
        return Err(Misbehaved::OldVersion { major });
    }
    let Some(mechanism) = bytes.get(MECHANISM) else { return Ok(None) };
    if mechanism.strip_prefix(b"NULL").is_none_or(|padding| padding.iter().any(|&byte| byte != 0)) {
        let name: &[u8] = mechanism.split(|&byte| byte == 0).next().unwrap_or_default();
        return Err(Misbehaved::WrongMechanism { mechanism: String::from_utf8_lossy(name).into_owned() });
    }
    if bytes.len() < GREETING_LEN {
        return Ok(None);
    }
    let old = at(10) == Some(3) && at(11) == Some(0);
    Ok(Some(if old { Version::V3_0 } else { Version::V3_1 }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_greeting_is_read_by_ourselves_and_only_when_whole() {
        let bytes = greeting();
        for len in 0..GREETING_LEN {
            assert_eq!(read_greeting(&bytes[..len]), Ok(None));
        }
        assert_eq!(read_greeting(&bytes), Ok(Some(Version::V3_1)));
    }

    #[test]
    fn what_is_no_zmtp_3_is_refused_at_its_first_wrong_byte() {
        assert_eq!(read_greeting(b"GET / HTTP/1.1\r\n"), Err(Misbehaved::NotZmtp));
        assert_eq!(read_greeting(&[0x16, 3, 1]), Err(Misbehaved::NotZmtp));
        assert_eq!(read_greeting(&[0xFF, 0, 0, 0, 0, 0, 0, 0, 1, 0]), Err(Misbehaved::NotZmtp));
        let mut bytes = greeting();
        bytes[10] = 1;
        assert_eq!(read_greeting(&bytes[..11]), Err(Misbehaved::OldVersion { major: 1 }));
        bytes[10..12].copy_from_slice(&[3, 0]);
        assert_eq!(read_greeting(&bytes), Ok(Some(Version::V3_0)));
        bytes[10..12].copy_from_slice(&[4, 0]);
        assert_eq!(read_greeting(&bytes), Ok(Some(Version::V3_1)));
        bytes[12..17].copy_from_slice(b"CURVE");
        assert_eq!(read_greeting(&bytes), Err(Misbehaved::WrongMechanism { mechanism: "CURVE".into() }));
    }
}
