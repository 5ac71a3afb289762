//! The secret half of a peer's identity.

use std::{
    fmt, fs,
    io::{self, Read as _, Write as _},
    path::Path,
    str::FromStr,
};

use data_encoding::BASE64;
use ring::{
    rand::{SecureRandom, SystemRandom},
    signature::{Ed25519KeyPair, KeyPair},
};
use zeroize::Zeroizing;

use crate::identity::{KeyError, PeerId, thirty_two_bytes};

/// What stands before the 32 bytes of an ed25519 key in PKCS #8 (RFC 8410, section 7).
const PKCS8: [u8; 16] = *b"\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20";

const BEGIN: &str = "-----BEGIN PRIVATE KEY-----";
const END: &str = "-----END PRIVATE KEY-----";

/// No key file is longer.
const LONGEST: u64 = 4096;

/// A peer's secret key; whoever has it is that peer.
///
/// It is never shown. Its memory is cleared when it is dropped; what rustls keeps of it while sockets live is not.
#[derive(Clone)]
pub struct SecretKey {
    seed: Zeroizing<[u8; 32]>,
    id: PeerId,
}

impl SecretKey {
    /// A new key.
    ///
    /// # Panics
    /// When the system has no random numbers.
    #[allow(clippy::expect_used, reason = "a system without random numbers cannot have keys")]
    pub fn generate() -> Self {
        let mut seed = Zeroizing::new([0; 32]);
        SystemRandom::new().fill(&mut *seed).expect("the system has random numbers");
        Self::from_seed(seed)
    }

    /// The key with these 32 bytes, the seed of RFC 8032.
    pub fn from_bytes(seed: [u8; 32]) -> Self {
        Self::from_seed(Zeroizing::new(seed))
    }

    #[allow(clippy::expect_used, reason = "every 32 bytes are a seed")]
    fn from_seed(seed: Zeroizing<[u8; 32]>) -> Self {
        let pair = Ed25519KeyPair::from_seed_unchecked(&*seed).expect("32 bytes are a seed");
        let mut id = [0; 32];
        id.copy_from_slice(pair.public_key().as_ref());
        Self { seed, id: PeerId::from_bytes(id) }
    }

    /// The public half: who its owner is.
    pub fn id(&self) -> PeerId {
        self.id
    }

    /// Reads a key from a file that nobody but its owner may read or write (mode 600; on Unix this is checked).
    ///
    /// # Errors
    /// When the file cannot be read, is open to others, or holds no key.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, KeyError> {
        let path = path.as_ref();
        let failed = |error| KeyError::File { path: path.into(), error };
        let file = fs::File::open(path).map_err(failed)?;
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            // Of the file that is open, not of what has the name by now.
            let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o777;
            if mode & 0o077 != 0 {
                return Err(KeyError::Exposed { path: path.into(), mode });
            }
        }
        let mut text = Zeroizing::new(String::with_capacity(LONGEST as usize));
        file.take(LONGEST).read_to_string(&mut text).map_err(failed)?;
        text.parse()
    }

    /// Writes the key into a new file of mode 600, in PEM. A file that is there already is left as it is.
    ///
    /// # Errors
    /// When the file is there, or cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), KeyError> {
        let path = path.as_ref();
        let mut options = fs::OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        {
            use std::os::unix::fs::OpenOptionsExt;
            options.mode(0o600);
        }
        let written = options.open(path).and_then(|mut file| {
            let written = file.write_all(self.to_pem().as_bytes()).and_then(|()| file.sync_all());
            if written.is_err() {
                // Half a key would be in the way of the next attempt. The first error is what counts.
                let _still_there = fs::remove_file(path);
            }
            written
        });
        written.map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => {
                KeyError::File { path: path.into(), error: io::Error::new(error.kind(), "there is a file already") }
            }
            _ => KeyError::File { path: path.into(), error },
        })
    }

    /// Reads a key from an environment variable: what [`from_str`](Self::from_str) understands.
    ///
    /// # Errors
    /// When it is not there or holds no key.
    pub fn from_env(name: &str) -> Result<Self, KeyError> {
        let text = std::env::var(name).map_err(|_| KeyError::Variable { name: name.into() })?;
        Zeroizing::new(text).parse()
    }

    /// The key in PEM (PKCS #8), as other programs understand it, too.
    pub fn to_pem(&self) -> Zeroizing<String> {
        Zeroizing::new(format!("{BEGIN}\n{}\n{END}\n", *Zeroizing::new(BASE64.encode(&self.to_pkcs8()))))
    }

    pub(crate) fn to_pkcs8(&self) -> Zeroizing<Vec<u8>> {
        let mut der = Zeroizing::new(Vec::with_capacity(PKCS8.len() + self.seed.len()));
        der.extend_from_slice(&PKCS8);
        der.extend_from_slice(&*self.seed);
        der
    }
}

/// From PEM (PKCS #8), 52 characters of base32 or 64 hexadecimal digits.
impl FromStr for SecretKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let text = text.trim();
        let seed = match text.strip_prefix(BEGIN).and_then(|text| text.strip_suffix(END)) {
            Some(inner) => from_pem(inner),
            None => thirty_two_bytes(text),
        };
        seed.map(Self::from_bytes).ok_or(KeyError::NoSecretKey)
    }
}

/// Of both versions of PKCS #8 the seed stands at the same place; the second has the public key behind it.
fn from_pem(inner: &str) -> Option<[u8; 32]> {
    let letters: Zeroizing<String> = Zeroizing::new(inner.split_whitespace().collect());
    let der = Zeroizing::new(BASE64.decode(letters.as_bytes()).ok()?);
    let (head, rest) = der.split_first_chunk::<16>()?;
    let (seed, behind) = rest.split_first_chunk::<32>()?;
    let version = u8::from(!behind.is_empty());
    let mut expected = PKCS8;
    expected[1] = u8::try_from(der.len() - 2).ok()?;
    expected[4] = version;
    (*head == expected).then_some(*seed)
}

/// Nothing secret.
impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey of {}", self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 8032, section 7.1, test 1.
    #[test]
    fn the_public_key_is_that_of_the_rfc() {
        let key: SecretKey = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60".parse().unwrap();
        let id = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a".parse().unwrap();
        assert_eq!(key.id(), id);
    }

    #[test]
    fn a_key_is_read_as_it_is_written_and_never_shown() {
        let key = SecretKey::generate();
        assert_eq!(key.to_pem().parse::<SecretKey>().unwrap().id(), key.id());
        assert!(format!("{key:?}").contains(&key.id().to_string()));
        assert!(!format!("{key:?}").contains(&format!("{:?}", *key.seed)));
        assert_ne!(SecretKey::generate().id(), key.id());
        for wrong in ["", "x", BEGIN, &format!("{BEGIN}{END}"), &key.to_pem()[1..], &key.to_pem().replace('M', "N")] {
            assert!(matches!(wrong.parse::<SecretKey>(), Err(KeyError::NoSecretKey)), "{wrong}");
        }
    }

    #[test]
    fn a_key_file_is_new_and_private() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        let key = SecretKey::generate();
        key.save(&path).unwrap();
        assert_eq!(SecretKey::load(&path).unwrap().id(), key.id());
        assert!(matches!(SecretKey::generate().save(&path), Err(KeyError::File { .. })));
        assert_eq!(SecretKey::load(&path).unwrap().id(), key.id());
        assert!(matches!(SecretKey::load(directory.path().join("none")), Err(KeyError::File { .. })));
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
            for open in [0o640, 0o604, 0o620] {
                fs::set_permissions(&path, fs::Permissions::from_mode(open)).unwrap();
                assert!(matches!(SecretKey::load(&path), Err(KeyError::Exposed { mode, .. }) if mode == open));
            }
        }
        fs::write(directory.path().join("long"), "x".repeat(10_000)).unwrap();
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            fs::set_permissions(directory.path().join("long"), fs::Permissions::from_mode(0o600)).unwrap();
        }
        assert!(matches!(SecretKey::load(directory.path().join("long")), Err(KeyError::NoSecretKey)));
    }
}
