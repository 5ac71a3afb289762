//! The newest records, in memory: who keeps up reads them here, and asks neither the disk nor the writer.
//!
//! ```text
//!   disk:  | frame | frame | frame | frame | frame |
//!   tail:                  | frame | frame | frame |     whole frames, as they were written; the oldest go
//!                          ^start                  ^end  first when there are too many bytes of them
//! ```
//! A reader that wants a seq below `start` reads the disk; as soon as it wants one that is here, it has joined the tail.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::read::Unread;

#[derive(Debug)]
pub(super) struct Tail {
    kept: Mutex<Kept>,
    limit: usize,
}

#[derive(Debug)]
struct Kept {
    frames: VecDeque<(Unread, usize)>,
    /// All records from here on are in the frames.
    start: u64,
    /// One past the last seq that was accepted.
    end: u64,
    bytes: usize,
}

/// What is at a seq.
#[derive(Debug)]
pub(super) enum Found {
    /// The frame that it is in, or the next one, if there is none of that seq.
    Here(Unread),
    /// It is not kept any more: it is on the disk, as is all up to this seq.
    OnDisk(u64),
    /// It was not accepted yet.
    NotYet,
}

impl Tail {
    pub(super) fn new(limit: usize, end: u64) -> Self {
        Self { kept: Mutex::new(Kept { frames: VecDeque::new(), start: end, end, bytes: 0 }), limit }
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds what was accepted, and what it takes of memory.
    pub(super) fn push(&self, frames: impl IntoIterator<Item = (Unread, usize)>) {
        let mut kept = self.lock();
        for (frame, bytes) in frames {
            kept.end = kept.end.max(frame.end_seq);
            kept.bytes += bytes;
            kept.frames.push_back((frame, bytes));
        }
        while kept.bytes > self.limit
            && let Some((frame, bytes)) = kept.frames.pop_front()
        {
            kept.bytes -= bytes;
            kept.start = frame.end_seq;
        }
    }

    pub(super) fn find(&self, seq: u64) -> Found {
        let kept = self.lock();
        if seq >= kept.end {
            return Found::NotYet;
        }
        if seq < kept.start {
            return Found::OnDisk(kept.end);
        }
        let index = kept.frames.partition_point(|(frame, _)| frame.end_seq <= seq);
        // Seqs behind the last frame were never given.
        kept.frames.get(index).map_or(Found::NotYet, |(frame, _)| Found::Here(frame.clone()))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn frame(seqs: std::ops::Range<u64>) -> (Unread, usize) {
        let body = seqs.clone().flat_map(|_| [0, 0]).collect::<Bytes>();
        (Unread::for_tests(seqs, body), 10)
    }

    #[test]
    fn the_oldest_go_first_and_gaps_are_passed_over() {
        let tail = Tail::new(20, 5);
        assert!(matches!(tail.find(5), Found::NotYet));
        assert!(matches!(tail.find(4), Found::OnDisk(5)));
        tail.push([frame(5..7), frame(10..12)]);
        assert!(matches!(tail.find(5), Found::Here(unread) if unread.seq == 5));
        assert!(matches!(tail.find(8), Found::Here(unread) if unread.seq == 10));
        assert!(matches!(tail.find(12), Found::NotYet));
        tail.push([frame(12..13)]);
        assert!(matches!(tail.find(6), Found::OnDisk(13)));
        assert!(matches!(tail.find(7), Found::Here(unread) if unread.seq == 10));
        tail.push([(frame(13..14).0, 100)]);
        assert!(matches!(tail.find(13), Found::OnDisk(14)), "one that is too large is not kept");
        assert!(matches!(tail.find(14), Found::NotYet));
    }
}
