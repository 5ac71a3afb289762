//! Reading the log from the disk, in pieces, on the writer's thread; what is read is checked.

use std::{collections::VecDeque, io, ops::Range};

use bytes::Bytes;
use ropewalk_patterns::Message;

use super::{
    error::Damage,
    record::{Kind, Records, Take},
    segment::{BODY, Frame, Segment, Step, Walk},
    storage::File,
};

/// After so many bytes a piece ends, that the writer may go on writing.
const PIECE: u64 = 256 << 10;

/// A message of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Record {
    /// Its number. Numbers grow, but not always by one: what an unfinished opening may have used is not used again.
    pub seq: u64,
    /// The opening of the spool that accepted it.
    pub incarnation: u64,
    /// When it was written, by the wall clock of that moment, in milliseconds since 1970; never less than of a record
    /// before it, also when the clock was set back. Records that were written together have the same.
    pub appended_ms: u64,
    /// The message.
    pub message: Message,
}

/// What stands in the log, piece by piece.
#[derive(Debug)]
pub(super) enum Item {
    Records(Unread),
    Damaged(Damage),
    /// These were dropped, and had so many records.
    Missed(Range<u64>, u64),
}

/// The records of a frame that were not handed out yet.
#[derive(Debug, Clone)]
pub(super) struct Unread {
    pub(super) seq: u64,
    pub(super) end_seq: u64,
    incarnation: u64,
    appended_ms: u64,
    records: Records,
    /// Behind the frame.
    pub(super) after: Place,
    /// Where the frame stands.
    at: u64,
}

impl Unread {
    /// What a frame at `at` in this segment holds, that will be, or is, `len` bytes long.
    pub(super) fn new(
        segment: &Segment,
        (at, len): (u64, u64),
        seqs: Range<u64>,
        (incarnation, appended_ms, body): (u64, u64, Bytes),
    ) -> Self {
        let after = Place { segment: segment.number, kept_len: segment.kept_len, at: at + len, seq: seqs.end };
        Self { seq: seqs.start, end_seq: seqs.end, incarnation, appended_ms, records: Records::new(body), after, at }
    }

    fn of(segment: &Segment, frame: &Frame) -> Option<Self> {
        let head = &frame.head;
        let (incarnation, body) = origin(frame)?;
        let what = (incarnation, head.appended_ms, body);
        Some(Self::new(segment, (frame.at, head.frame_len()), head.first_seq..head.end_seq(), what))
    }

    /// The next record that is not below this seq, or what is damaged in its place.
    #[inline]
    pub(super) fn next(&mut self, from: u64) -> Option<Result<Record, Damage>> {
        while self.seq < self.end_seq {
            let seq = self.seq;
            let Some(message) = self.records.next() else {
                self.seq = self.end_seq;
                return Some(Err(Damage { segment: self.after.segment, at: self.at, seqs: seq..self.end_seq }));
            };
            self.seq += 1;
            if seq >= from {
                let &mut Self { incarnation, appended_ms, .. } = self;
                return Some(Ok(Record { seq, incarnation, appended_ms, message }));
            }
        }
        None
    }

    #[cfg(test)]
    pub(super) fn for_tests(seqs: Range<u64>, body: Bytes) -> Self {
        let after = Place { segment: 1, kept_len: 0, at: 0, seq: seqs.end };
        let (seq, end_seq, records) = (seqs.start, seqs.end, Records::new(body));
        Self { seq, end_seq, incarnation: 1, appended_ms: 1, records, after, at: 0 }
    }
}

/// How far a reader has come.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    segment: u64,
    /// A segment that was rewritten is another file.
    kept_len: u64,
    at: u64,
    /// The seq that is expected next.
    seq: u64,
}

/// A piece of the log.
#[derive(Debug, Default)]
pub(super) struct Chunk {
    pub(super) items: Vec<Item>,
    pub(super) next: Option<Place>,
    /// There is no more at the moment.
    pub(super) end: bool,
}

/// Reads the next piece of these segments from `place` on, leaving out what is below `from`. `had_records` knows the
/// seqs that were never given.
pub(super) fn read(
    segments: &VecDeque<Segment>,
    from: u64,
    place: Option<Place>,
    had_records: impl Fn(Range<u64>) -> bool,
    mut open: impl FnMut(&Segment) -> io::Result<Box<dyn File>>,
) -> io::Result<Chunk> {
    let known = place.and_then(|place| segments.iter().position(|segment| segment.number == place.segment));
    let wanted = || segments.iter().position(|segment| segment.end_seq > from);
    let Some(mut index) = known.or_else(wanted).or(segments.len().checked_sub(1)) else {
        return Ok(Chunk { end: true, ..Chunk::default() });
    };
    let mut chunk = Chunk { next: place.filter(|_| known.is_some()), ..Chunk::default() };
    let mut left = PIECE;
    while let Some(segment) = segments.get(index) {
        let &Segment { number, kept_len, base_seq, .. } = segment;
        let begin = Place { segment: number, kept_len, at: BODY, seq: base_seq };
        let same = |place: &Place| (place.segment, place.kept_len) == (number, kept_len);
        let place = chunk.next.filter(same).unwrap_or(begin);
        let (mut place, ended) = read_segment(&*open(segment)?, segment, place, from, &mut left, &mut chunk.items)?;
        // Of one that was rewritten the last records may be gone.
        let rest = place.seq.max(from)..segment.end_seq;
        if ended && kept_len == 0 && !rest.is_empty() {
            place.seq = segment.end_seq;
            if had_records(rest.clone()) {
                chunk.items.push(damage(segment, segment.len, rest));
            }
        }
        chunk.next = Some(place);
        if left == 0 {
            return Ok(chunk);
        }
        index += 1;
    }
    chunk.end = true;
    Ok(chunk)
}

/// How far it came, and whether that is the end of the segment.
fn read_segment(
    file: &dyn File,
    segment: &Segment,
    mut place: Place,
    from: u64,
    left: &mut u64,
    items: &mut Vec<Item>,
) -> io::Result<(Place, bool)> {
    let mut walk = Walk::new(file, segment, place.at, segment.len);
    // Of frames that nobody wants only the heads are read.
    walk.skip(|head| {
        let unwanted = from > 0 && head.end_seq() <= from;
        if unwanted && head.kind.has_records() {
            place.seq = head.end_seq();
        }
        unwanted
    })?;
    *left = left.saturating_sub((walk.at - place.at) / 8);
    let (mut damaged, mut ended): (Option<u64>, bool) = (None, false);
    while *left > 0 || damaged.is_some() {
        match walk.next()? {
            Step::Frame(frame) => {
                let records = frame.head.kind.has_records();
                if let Some(at) = damaged.take() {
                    items.push(damage(segment, at, place.seq..frame.head.first_seq));
                }
                *left = left.saturating_sub(frame.head.frame_len());
                if records && frame.head.end_seq() > from {
                    items.push(match Unread::of(segment, &frame) {
                        Some(unread) => Item::Records(unread),
                        None => damage(segment, frame.at, place.seq..frame.head.end_seq()),
                    });
                }
                if records {
                    place.seq = frame.head.end_seq();
                }
            }
            Step::Bad => {
                damaged.get_or_insert(walk.at);
                if !walk.resync()? {
                    walk.at = segment.len;
                }
            }
            Step::End => {
                ended = true;
                break;
            }
        }
    }
    if let Some(at) = damaged {
        items.push(damage(segment, at, place.seq..segment.end_seq));
        place.seq = place.seq.max(segment.end_seq);
    }
    place.at = walk.at;
    Ok((place, ended))
}

fn damage(segment: &Segment, at: u64, seqs: Range<u64>) -> Item {
    Item::Damaged(Damage { segment: segment.number, at, seqs: seqs.start..seqs.end.max(seqs.start) })
}

/// Which incarnation the records of a frame are of, and the bytes of them.
pub(super) fn origin(frame: &Frame) -> Option<(u64, Bytes)> {
    match frame.head.kind {
        Kind::Copied => Some((Take(&frame.body).u64()?, frame.body.slice(8..))),
        _ => Some((frame.head.incarnation, frame.body.clone())),
    }
}
