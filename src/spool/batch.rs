//! Frames on their way to the disk.

use std::collections::VecDeque;

use ropewalk_patterns::Message;

use super::record::{HEAD, Head, Kind, padded, put_record};

/// A frame whose place is not known yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Planned {
    start: usize,
    /// Where its body ends, before the zeros.
    end: usize,
    pub(super) kind: Kind,
    pub(super) first_seq: u64,
    pub(super) count: u32,
}

impl Planned {
    pub(super) fn len(&self) -> u64 {
        padded((self.end - self.start) as u64)
    }

    pub(super) fn end_seq(&self) -> u64 {
        self.first_seq + u64::from(self.count)
    }
}

/// Frames one behind the other as they will stand in the log, with room for their heads.
#[derive(Debug, Default)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    frames: VecDeque<Planned>,
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Bytes not yet written.
    pub(super) fn len(&self) -> u64 {
        self.frames.front().map_or(0, |first| (self.bytes.len() - first.start) as u64)
    }

    pub(super) fn front(&self) -> Option<&Planned> {
        self.frames.front()
    }

    pub(super) fn back(&self) -> Option<&Planned> {
        self.frames.back()
    }

    /// Adds a record to the last frame, or begins one when that has `limit` bytes.
    pub(super) fn push_record(&mut self, seq: u64, message: &Message, limit: usize) {
        let joins = |last: &Planned| {
            let len = last.end - last.start + message.bytes() as usize;
            last.kind == Kind::Data && last.end_seq() == seq && len <= limit
        };
        if !self.frames.back().is_some_and(joins) {
            self.begin(Kind::Data, seq, 0);
        }
        put_record(&mut self.bytes, message);
        let end = self.bytes.len();
        if let Some(last) = self.frames.back_mut() {
            last.count += 1;
            last.end = end;
        }
    }

    pub(super) fn push_frame(&mut self, kind: Kind, first_seq: u64, count: u32, body: &[u8]) {
        self.begin(kind, first_seq, count);
        self.bytes.extend_from_slice(body);
        let end = self.bytes.len();
        if let Some(last) = self.frames.back_mut() {
            last.end = end;
        }
    }

    fn begin(&mut self, kind: Kind, first_seq: u64, count: u32) {
        let start = padded(self.bytes.len() as u64) as usize;
        self.bytes.resize(start + HEAD, 0);
        self.frames.push_back(Planned { start, end: start + HEAD, kind, first_seq, count });
    }

    /// Gives the first frames their heads, as many as `fits` lets go to this place. The bytes of them, and how many.
    pub(super) fn stamp(
        &mut self,
        lsn: u64,
        synced_lsn: u64,
        incarnation: u64,
        mut fits: impl FnMut(u64, &Planned) -> bool,
    ) -> (&[u8], usize) {
        let Some(from) = self.frames.front().map(|first| first.start) else { return (&[], 0) };
        let (mut to, mut count) = (from, 0);
        for frame in &self.frames {
            let ahead = (frame.start - from) as u64;
            if !fits(ahead, frame) {
                break;
            }
            count += 1;
            to = frame.start + frame.len() as usize;
            self.bytes.resize(self.bytes.len().max(to), 0);
            let body = self.bytes.get(frame.start + HEAD..frame.end).unwrap_or_default();
            let head = Head {
                body_len: body.len() as u32,
                body_crc: crc32c::crc32c(body),
                lsn: lsn + ahead,
                synced_lsn,
                first_seq: frame.first_seq,
                incarnation,
                count: frame.count,
                kind: frame.kind,
            };
            if let Some(room) = self.bytes.get_mut(frame.start..frame.start + HEAD) {
                room.copy_from_slice(&head.to_bytes().0);
            }
        }
        (self.bytes.get(from..to).unwrap_or_default(), count)
    }

    /// The first of these have been written. The last of them.
    pub(super) fn written(&mut self, count: usize) -> Option<Planned> {
        let last = self.frames.drain(..count).next_back();
        if self.frames.is_empty() {
            self.bytes.clear();
        }
        last
    }
}
