//! Why the tool ends with something else than 0.

use std::fmt;

use ropewalk::{BindError, ConnectError, KeyError, spool::OpenError};

/// Told in one line on standard error.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The command line cannot be meant so: exit status 2.
    Usage(String),
    /// It was not done: exit status 1.
    Failed(String),
}

impl Failure {
    pub(crate) fn failed(why: impl Into<String>) -> Self {
        Self::Failed(why.into())
    }

    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::Failed(_) => 1,
            Self::Usage(_) => 2,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Usage(why) | Self::Failed(why)) = self;
        // One line, whatever the system's message is.
        f.write_str(&why.replace('\n', " "))
    }
}

impl From<BindError> for Failure {
    fn from(error: BindError) -> Self {
        match error {
            BindError::Address(error) => Self::Usage(with_our_words(&error)),
            error => Self::Failed(error.to_string()),
        }
    }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::Address(error) => Self::Usage(with_our_words(&error)),
            error => Self::Failed(error.to_string()),
        }
    }
}

impl From<KeyError> for Failure {
    fn from(error: KeyError) -> Self {
        Self::Failed(error.to_string())
    }
}

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::InUse { directory } => {
                Self::Failed(format!("{} is in use: a running process has it open", directory.display()))
            }
            OpenError::Damaged { .. } => {
                let skip = "to go on without that, open it with `OnDamage::Skip`";
                Self::Failed(error.to_string().replace(skip, "a program can go on without that, by `OnDamage::Skip`"))
            }
            error => Self::Failed(error.to_string()),
        }
    }
}

/// What a program says by a method, the command line says by an option.
fn with_our_words(error: &ropewalk::AddressError) -> String {
    let words = [
        ("`danger_plaintext()`", "--plaintext"),
        ("give the socket one with `key(SecretKey::load(path)?)`", "--key FILE; `ropewalk key new FILE` makes one"),
        ("`allow([peer ids])` or `allow_any_peer()`", "--allow PEERID or --allow-any"),
    ];
    words.iter().fold(error.to_string(), |text, (method, option)| text.replace(method, option))
}
