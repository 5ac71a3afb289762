//! What a spool says of itself.

use std::{collections::BTreeMap, ops::Range};

use super::{cursors::CursorStats, error::Damage};

/// A spool as it is at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SpoolStats {
    /// From the first record that is there, or was there and is settled, to the next to be accepted.
    pub seqs: Range<u64>,
    /// All below are as durable as the policy says.
    pub accepted: u64,
    /// All below were synced.
    pub durable: u64,
    /// Bytes in the log and on the way to it.
    pub bytes: u64,
    /// Files of the log.
    pub segments: usize,
    /// The disk has no room: appending waits for it.
    pub full: bool,
    /// How far each cursor is.
    pub cursors: BTreeMap<String, CursorStats>,
}

/// What [`Spool::verify`](super::Spool::verify) found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Verified {
    /// Records that are whole.
    pub records: u64,
    /// Bytes in their messages.
    pub bytes: u64,
    /// What had been accepted and is lost.
    pub damage: Vec<Damage>,
}
