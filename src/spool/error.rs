//! What can go wrong with a spool, and what state it leaves.

use std::{error::Error, fmt, io, ops::Range, path::PathBuf, sync::Arc};

/// A place in the log where something synced is not there any more.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Damage {
    /// The number of the segment; its file has it as its name.
    pub segment: u64,
    /// Where in the file it begins.
    pub at: u64,
    /// The records that are lost. None, when only bookkeeping was: then some may come again that were settled.
    pub seqs: Range<u64>,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { segment, at, seqs } = self;
        write!(f, "segment {segment} is damaged at byte {at}: ")?;
        match seqs.is_empty() {
            true => f.write_str("no record is lost"),
            false => write!(f, "records {} to {} are lost", seqs.start, seqs.end - 1),
        }
    }
}

/// A spool was not opened. Unless it says otherwise, the directory is as it was.
#[derive(Debug)]
#[non_exhaustive]
pub enum OpenError {
    /// Somebody else has the directory open, in this process or another.
    InUse {
        /// The directory.
        directory: PathBuf,
    },
    /// It is the directory of a socket of another role, whose messages this one would take for its own.
    OtherRole {
        /// The directory.
        directory: PathBuf,
        /// Of what kind of socket it is.
        has: String,
        /// And of what it was to be.
        wants: String,
    },
    /// Something that had been synced is not there any more;
    /// [`OnDamage::Skip`](super::OnDamage::Skip) opens the log without it.
    Damaged {
        /// The directory.
        directory: PathBuf,
        /// Where.
        damage: Vec<Damage>,
    },
    /// The log was written by a version of this library that is not known here.
    Version {
        /// The directory.
        directory: PathBuf,
        /// The version of the format.
        version: u32,
    },
    /// The system refused. Opening it again goes on where this stopped.
    Io {
        /// The directory.
        directory: PathBuf,
        /// Why.
        error: io::Error,
    },
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InUse { directory } => {
                write!(f, "the spool {} is open elsewhere: each socket has a directory of its own", directory.display())
            }
            Self::OtherRole { directory, has, wants } => {
                let directory = directory.display();
                write!(
                    f,
                    "{directory} is the directory of a {has} socket, and not of a {wants}: give each one of its own"
                )
            }
            Self::Damaged { directory, damage } => {
                write!(f, "the spool {} is damaged:", directory.display())?;
                damage.iter().try_for_each(|damage| write!(f, " {damage};"))?;
                f.write_str(" to go on without that, open it with `OnDamage::Skip`")
            }
            Self::Version { directory, version } => {
                write!(f, "the spool {} has format {version}, which is not known here", directory.display())
            }
            Self::Io { directory, error } => write!(f, "the spool {} cannot be opened: {error}", directory.display()),
        }
    }
}

impl Error for OpenError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Io { error, .. } => Some(error),
            Self::InUse { .. } | Self::OtherRole { .. } | Self::Damaged { .. } | Self::Version { .. } => None,
        }
    }
}

/// A spool does not do what it was asked for.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum SpoolError {
    /// A write or sync failed. What was not confirmed before is in doubt, and nothing is accepted any more until the
    /// spool is opened again: after a failed sync nobody can know what the disk has.
    Failed(Arc<io::Error>),
    /// A record is larger than a segment or the quota can hold. None of the records was accepted.
    TooLarge {
        /// The most bytes it could have.
        largest: u64,
    },
    /// The spool is closed. What was asked for was not accepted.
    Closed,
}

impl fmt::Display for SpoolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(error) => write!(f, "the spool has failed and must be opened again: {error}"),
            Self::TooLarge { largest } => write!(f, "a record is larger than the spool takes: {largest} bytes"),
            Self::Closed => f.write_str("the spool is closed"),
        }
    }
}

impl Error for SpoolError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Failed(error) => Some(error),
            Self::TooLarge { .. } | Self::Closed => None,
        }
    }
}

/// A record is not read.
#[derive(Debug)]
#[non_exhaustive]
pub enum ReadError {
    /// These records are lost. Reading again goes on behind them.
    Damaged(Damage),
    /// These records were dropped for want of room before this reader got them
    /// ([`WhenFull::DropOldest`](super::WhenFull::DropOldest)). Reading again goes on behind them.
    Missed {
        /// From the first to the last of them.
        seqs: Range<u64>,
        /// How many records that were: not every seq has one, and those that all cursors had settled do not count.
        records: u64,
    },
    /// The system refused. Reading again tries the same.
    Io(io::Error),
    /// The spool is closed or has failed.
    Closed,
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Damaged(damage) => damage.fmt(f),
            Self::Missed { seqs, records } => {
                write!(f, "{records} records were dropped, {} to {}", seqs.start, seqs.end.saturating_sub(1))
            }
            Self::Io(error) => write!(f, "the spool cannot be read: {error}"),
            Self::Closed => f.write_str("the spool is closed"),
        }
    }
}

impl Error for ReadError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Io(error) => Some(error),
            Self::Damaged(_) | Self::Missed { .. } | Self::Closed => None,
        }
    }
}

/// A cursor was not made or moved. All are as they were.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum CursorError {
    /// There is none of this name.
    Unknown,
    /// A name has 1 to 255 bytes.
    Name,
    /// There are 1,024.
    TooMany,
    /// What is settled has too many gaps, 65,536 in all cursors together, and more than 64 in this one: settle what lies
    /// between first.
    TooScattered,
    /// The spool is closed or has failed.
    Closed,
}

impl fmt::Display for CursorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "there is no cursor of this name",
            Self::Name => "the name of a cursor has 1 to 255 bytes",
            Self::TooMany => "there are 1,024 cursors already",
            Self::TooScattered => "what is settled has too many gaps",
            Self::Closed => "the spool is closed",
        })
    }
}

impl Error for CursorError {}
