//! Who a peer is: the public half of a key that only it has. No names, no certificates, nobody who vouches.

use std::{fmt, str::FromStr};

use data_encoding::{BASE32_NOPAD, HEXLOWER_PERMISSIVE};

/// A peer's public key: 32 bytes of ed25519 (RFC 8032).
///
/// Shown as 52 lower-case characters of base32 (RFC 4648, without padding); 64 hexadecimal digits are understood, too.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId([u8; 32]);

impl PeerId {
    /// The id with these bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The public key.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE32_NOPAD.encode(&self.0).to_ascii_lowercase())
    }
}

impl fmt::Debug for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PeerId({self})")
    }
}

impl FromStr for PeerId {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        thirty_two_bytes(text).map(Self).ok_or(KeyError::NoPeerId)
    }
}

/// Base32 or hexadecimal digits, as their length says. They may be those of a secret: no copy is left on the heap.
pub(crate) fn thirty_two_bytes(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    let decoded = if let Ok(mut digits) = <[u8; 52]>::try_from(text.as_bytes()) {
        digits.make_ascii_uppercase();
        BASE32_NOPAD.decode_mut(&digits, &mut bytes)
    } else {
        let digits = <[u8; 64]>::try_from(text.as_bytes()).ok()?;
        HEXLOWER_PERMISSIVE.decode_mut(&digits, &mut bytes)
    };
    decoded.is_ok().then_some(bytes)
}

/// A key was not read, or not written.
#[derive(Debug)]
#[non_exhaustive]
pub enum KeyError {
    /// It is not a peer id.
    NoPeerId,
    /// It is not a secret key.
    NoSecretKey,
    /// Others than the owner of the file may read it.
    Exposed {
        /// The file.
        path: std::path::PathBuf,
        /// Who may do what, in octal digits.
        mode: u32,
    },
    /// The file was not read, or not written.
    File {
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The environment variable is not there, or is not text.
    Variable {
        /// Its name.
        name: String,
    },
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPeerId => f.write_str("not a peer id: 52 characters of base32, or 64 hexadecimal digits"),
            Self::NoSecretKey => f.write_str(
                "not a secret key: an ed25519 key in PEM (PKCS #8), 52 characters of base32 or 64 hexadecimal digits",
            ),
            Self::Exposed { path, mode } => write!(
                f,
                "{} may be read or written by others than its owner (mode {mode:03o}), so what is in it is no secret: set \
                 mode 600 if nobody has seen it, else make a new key",
                path.display()
            ),
            Self::File { path, error } => write!(f, "{}: {error}", path.display()),
            Self::Variable { name } => write!(f, "the environment variable {name} has no text"),
        }
    }
}

impl std::error::Error for KeyError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::File { error, .. } => Some(error),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_id_is_read_as_it_is_written() {
        let id = PeerId::from_bytes(std::array::from_fn(|index| index as u8 * 7));
        let text = id.to_string();
        assert_eq!((text.len(), text.parse::<PeerId>().unwrap()), (52, id));
        assert_eq!(text.to_uppercase().parse::<PeerId>().unwrap(), id);
        let hex: String = id.as_bytes().iter().map(|byte| format!("{byte:02X}")).collect();
        assert_eq!(hex.parse::<PeerId>().unwrap(), id);
        for wrong in ["", "a", &text[1..], &format!("{text}a"), &text.replace('a', "1"), &"é".repeat(26)] {
            assert!(matches!(wrong.parse::<PeerId>(), Err(KeyError::NoPeerId)), "{wrong}");
        }
    }
}
