//! What a spool may be told.

use std::time::Duration;

use super::segment::{BODY, LARGEST};

/// When a record counts as accepted, and so what loses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// When it has been synced to the disk: neither a killed process nor a power cut loses it. Records that come while
    /// a sync runs share the next one.
    #[default]
    Always,
    /// When the system has it; it is synced within this time. A killed process loses nothing, a power cut at most what
    /// came in that time.
    Every(Duration),
    /// When the system has it. A killed process loses nothing; what a power cut loses, the system decides.
    Os,
}

/// What to do with a log that is damaged where it had been synced: bit rot, a lying disk, a file that is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnDamage {
    /// Do not open it, and change nothing. What opening does not look at, the midst of all segments but the last, is met by
    /// who reads it: [`ReadError::Damaged`](super::ReadError::Damaged). [`verify`](super::Spool::verify) reads all.
    #[default]
    Refuse,
    /// Open it without what is lost, which the [`RecoveryReport`](super::RecoveryReport) names. The files stay as they
    /// are.
    Skip,
}

/// What to do when an append finds the quota used up, or the disk full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WhenFull {
    /// It waits until enough is settled.
    #[default]
    Wait,
    /// The oldest segment is removed, though its records are not settled: every cursor counts them as
    /// [missed](super::CursorStats::missed) and settled, and a reader that has not got them hears
    /// [`ReadError::Missed`](super::ReadError::Missed).
    DropOldest,
}

/// How much of what all cursors have settled stays to be read again; by itself, nothing. Segments are kept whole.
///
/// With both limits a segment goes when it is beyond one of them. When the quota is used up, what is settled goes before
/// an append has to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Retain {
    pub(super) bytes: Option<u64>,
    pub(super) age: Option<Duration>,
}

impl Retain {
    /// So many bytes of the log stay.
    #[must_use]
    pub fn bytes(mut self, bytes: u64) -> Self {
        self.bytes = Some(bytes);
        self
    }

    /// So long a record stays.
    #[must_use]
    pub fn age(mut self, age: Duration) -> Self {
        self.age = Some(age);
        self
    }
}

/// How a spool is kept. A bare [`Durability`] is one, too.
#[derive(Debug, Clone)]
pub struct SpoolOptions {
    pub(super) durability: Durability,
    pub(super) on_damage: OnDamage,
    pub(super) quota: u64,
    pub(super) when_full: WhenFull,
    pub(super) retain: Retain,
    pub(super) segment: u64,
    pub(super) frame: usize,
    pub(super) queue: u64,
    pub(super) tail: usize,
    pub(super) lock_timeout: Duration,
}

impl SpoolOptions {
    /// Everything else as the methods below say.
    pub fn new(durability: Durability) -> Self {
        Self {
            durability,
            on_damage: OnDamage::default(),
            quota: 1 << 30,
            when_full: WhenFull::default(),
            retain: Retain::default(),
            segment: 64 << 20,
            frame: 1 << 20,
            queue: 8 << 20,
            tail: 4 << 20,
            lock_timeout: Duration::from_secs(5),
        }
    }

    /// What to do with a damaged log: refuse it.
    #[must_use]
    pub fn on_damage(mut self, on_damage: OnDamage) -> Self {
        self.on_damage = on_damage;
        self
    }

    /// How many bytes the log may have: 1 GiB. Then appending waits until enough is settled,
    /// or does what [`when_full`](Self::when_full) says. At least four segments.
    /// What cursors have settled between records is kept besides.
    #[must_use]
    pub fn quota(mut self, bytes: u64) -> Self {
        self.quota = bytes;
        self
    }

    /// What to do when the quota is used up: wait.
    #[must_use]
    pub fn when_full(mut self, when_full: WhenFull) -> Self {
        self.when_full = when_full;
        self
    }

    /// How much of what is settled stays to be read again: nothing.
    #[must_use]
    pub fn retain(mut self, retain: Retain) -> Self {
        self.retain = retain;
        self
    }

    /// How many bytes one file of the log has: 64 MiB. When all in it is settled it is removed, or used again. 8 KiB to 256 MiB; no
    /// record may be larger, but for some KiB.
    #[must_use]
    pub fn segment(mut self, bytes: u64) -> Self {
        self.segment = bytes.clamp(2 * BODY, LARGEST);
        self
    }

    /// How many bytes of records share a frame, that is, a checksum: 1 MiB. A larger record has one for itself.
    #[must_use]
    pub fn frame(mut self, bytes: usize) -> Self {
        // A frame that is larger than recovery believes would be lost.
        self.frame = bytes.min(LARGEST as usize / 2);
        self
    }

    /// How many bytes may wait in memory to be written: 8 MiB. Then appending waits. A record that is alone may be
    /// larger.
    #[must_use]
    pub fn queue(mut self, bytes: u64) -> Self {
        self.queue = bytes;
        self
    }

    /// How many bytes of the newest records stay in memory, for all readers together: 4 MiB. A reader that is not further
    /// behind reads no disk. Should be some frames, or a reader that is behind by one is behind by too many.
    #[must_use]
    pub fn tail(mut self, bytes: usize) -> Self {
        self.tail = bytes;
        self
    }

    /// How long to wait for another owner of the directory to go away (one that was just killed, say): 5 s.
    #[must_use]
    pub fn lock_timeout(mut self, timeout: Duration) -> Self {
        self.lock_timeout = timeout;
        self
    }

    pub(crate) fn durability(&self) -> Durability {
        self.durability
    }

    /// As durable and as large, for records that are so much longer.
    pub(crate) fn with_room_for(&self, more: u64) -> Self {
        Self::new(self.durability).quota(self.quota).segment(self.segment.saturating_add(more))
    }

    /// The longest record.
    pub(super) fn largest(&self) -> u64 {
        self.segment - BODY - 1024
    }

    /// With the heads of the segments that so many bytes may begin.
    pub(super) fn with_heads(&self, bytes: u64) -> u64 {
        bytes + (bytes / (self.segment / 2) + 1) * BODY
    }

    pub(super) fn log_quota(&self) -> u64 {
        self.quota.max(4 * self.segment)
    }
}

impl Default for SpoolOptions {
    fn default() -> Self {
        Self::new(Durability::default())
    }
}

impl From<Durability> for SpoolOptions {
    fn from(durability: Durability) -> Self {
        Self::new(durability)
    }
}
