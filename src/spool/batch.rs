//! Frames on their way to the disk.

use std::collections::VecDeque;

use bytes::Bytes;
use ropewalk_patterns::Message;

use super::record::{HEAD, Head, Kind, padded, put_record};

/// A frame whose place is not known yet: room for its head, and its body.
#[derive(Debug)]
pub(super) struct Planned {
    bytes: Vec<u8>,
    /// Where its body ends, before the zeros.
    end: usize,
    pub(super) kind: Kind,
    pub(super) first_seq: u64,
    pub(super) count: u32,
}

/// Where a frame goes, and what its head says besides.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stamp {
    pub(super) lsn: u64,
    pub(super) synced_lsn: u64,
    pub(super) incarnation: u64,
    pub(super) salt: u32,
    pub(super) appended_ms: u64,
}

impl Planned {
    pub(super) fn new(kind: Kind, first_seq: u64, count: u32, body: &[u8]) -> Self {
        let mut frame = Self::with_room(kind, first_seq, HEAD + body.len() + 8);
        frame.bytes.extend_from_slice(body);
        (frame.end, frame.count) = (frame.bytes.len(), count);
        frame
    }

    fn with_room(kind: Kind, first_seq: u64, room: usize) -> Self {
        let mut bytes = Vec::with_capacity(room);
        bytes.resize(HEAD, 0);
        Self { bytes, end: HEAD, kind, first_seq, count: 0 }
    }

    pub(super) fn len(&self) -> u64 {
        padded(self.end as u64)
    }

    /// What it takes of memory.
    pub(super) fn room(&self) -> usize {
        self.bytes.capacity() + size_of::<Self>()
    }

    pub(super) fn end_seq(&self) -> u64 {
        self.first_seq + u64::from(self.count)
    }

    /// Gives it its head. Its bytes as they stand in the log.
    pub(super) fn stamp(&mut self, stamp: &Stamp) -> &[u8] {
        let body = self.bytes.get(HEAD..self.end).unwrap_or_default();
        let head = Head {
            body_len: body.len() as u32,
            body_crc: crc32c::crc32c(body),
            lsn: stamp.lsn,
            synced_lsn: stamp.synced_lsn,
            first_seq: self.first_seq,
            incarnation: stamp.incarnation,
            count: self.count,
            kind: self.kind,
            appended_ms: stamp.appended_ms,
        };
        if let Some(room) = self.bytes.get_mut(..HEAD) {
            room.copy_from_slice(&head.to_bytes(stamp.salt));
        }
        self.bytes.resize(self.len() as usize, 0);
        &self.bytes
    }

    /// The bytes of its records, which are not copied for it.
    pub(super) fn into_body(self) -> Bytes {
        let end = self.end;
        Bytes::from(self.bytes).slice(HEAD..end)
    }
}

/// Frames one behind the other as they will stand in the log. Each has its own memory: what is kept of one for
/// [readers](super::tail::Tail) keeps no other.
#[derive(Debug, Default)]
pub(super) struct Batch {
    frames: VecDeque<Planned>,
    len: u64,
    /// How much memory a frame of records is given when it is begun: about what the last ones took.
    usual: usize,
}

impl Batch {
    /// All of it; what remains expects frames as large as these, or nearly as large as those before them: how much comes
    /// while the writer writes goes up and down.
    pub(super) fn take(&mut self) -> Self {
        let records = self.frames.iter().filter(|frame| frame.kind == Kind::Data);
        let largest = records.map(|frame| frame.end + 8).max().unwrap_or(0);
        std::mem::replace(self, Self { usual: largest.max(self.usual / 2), ..Self::default() })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Bytes not yet written.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn front(&mut self) -> Option<&mut Planned> {
        self.frames.front_mut()
    }

    pub(super) fn back(&self) -> Option<&Planned> {
        self.frames.back()
    }

    /// Adds a record to the last frame, or begins one when that has `limit` bytes.
    #[inline]
    pub(super) fn push_record(&mut self, seq: u64, message: &Message, limit: usize) {
        let joins = |last: &Planned| {
            last.kind == Kind::Data && last.end_seq() == seq && last.end + message.bytes() as usize <= limit
        };
        if !self.frames.back().is_some_and(joins) {
            let room = self.usual.min(limit + HEAD).max(HEAD + 16 + message.bytes() as usize);
            self.frames.push_back(Planned::with_room(Kind::Data, seq, room));
            self.len += HEAD as u64;
        }
        if let Some(last) = self.frames.back_mut() {
            let before = last.len();
            put_record(&mut last.bytes, message);
            last.count += 1;
            last.end = last.bytes.len();
            self.len += last.len() - before;
        }
    }

    pub(super) fn push(&mut self, frame: Planned) {
        self.len += frame.len();
        self.frames.push_back(frame);
    }

    pub(super) fn extend(&mut self, frames: impl IntoIterator<Item = Planned>) {
        frames.into_iter().for_each(|frame| self.push(frame));
    }

    /// The first of them has been written.
    pub(super) fn pop(&mut self) -> Option<Planned> {
        let frame = self.frames.pop_front()?;
        self.len -= frame.len();
        Some(frame)
    }
}
