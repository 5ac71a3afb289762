//! The new segment of an opening: what is copied into it, and the moment from which on it counts.

use std::io;

use super::{
    batch::{Planned, Stamp},
    cursors::Cursors,
    options::SpoolOptions,
    read::origin,
    record::Kind,
    recover::{Past, Recovered, RecoveryReport, Tail},
    segment::{self, BODY, LARGEST, Segment, SegmentHead, Step, Walk},
    storage::{File, Storage, write_all},
    writer::{Active, Log, now_ms},
};
use crate::random;

/// Begins the new segment.
pub(super) fn begin(mut storage: Box<dyn Storage>, options: &SpoolOptions, past: Box<Past>) -> io::Result<Recovered> {
    let Past { mut segments, seq_limit, mut cursors, damage, mut void, unborn, newest, tail, .. } = *past;
    let tail_of = segments.back().copied();
    let clean = tail_of.is_none() || tail.sealed;
    // After damage an earlier segment may have gone further than the last.
    let end_seq = segments.iter().map(|segment| segment.end_seq).fold(tail.end_seq, u64::max);
    let next_seq = match (clean, seq_limit) {
        (true, _) => end_seq,
        // The limit is lost with the head that said it. No segment is larger.
        (false, u64::MAX) => end_seq.max(tail.seen_seq) + LARGEST,
        (false, limit) => limit.max(tail.seen_seq).max(end_seq),
    };
    let end_lsn = segments.iter().map(|segment| segment.base_lsn + segment.len).max().unwrap_or(0);
    if newest.max(next_seq).max(end_lsn) >= 1 << 61 {
        // Nothing true comes near the end of 64 bits, and what would be written next could not be read again.
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the numbers of the log have come to their end"));
    }
    cursors.absent(end_seq..next_seq);
    // What was said to be dropped goes, also when the crash came between.
    while let [front, _, ..] = *segments.make_contiguous()
        && cursors.were_dropped(front.base_seq..front.end_seq)
    {
        void.push(front.name());
        segments.pop_front();
    }
    cursors.absent(0..segments.front().map_or(0, |front| front.base_seq));
    // When the newest head is lost, so is the name of the stream that it may have begun: better a new stream than one
    // that lives elsewhere.
    let stream = tail_of.and_then(|last| last.stream).unwrap_or_else(random::stream);
    let opening = segments.iter().map(|segment| segment.incarnation >> 32).max().unwrap_or(0);
    if tail.needless {
        // All of it is copied, and then it is as if it had never been: a power cut may still take its head. And openings
        // in which nothing is appended leave no file each.
        void.extend(segments.pop_back().map(|segment| segment.name()));
    }
    let last = segments.back().copied();
    let now_ms = now_ms().max(tail.seen_ms);
    let head = SegmentHead {
        salt: random::number() as u32,
        stream,
        incarnation: ((opening + 1) << 32) | (random::number() >> 32),
        number: newest + 1,
        base_seq: tail.frames.front().map_or(next_seq, |first| first.first_seq),
        seq_limit: next_seq + options.segment,
        base_lsn: last.map_or(tail_of.map_or(0, |old| old.base_lsn), |last| last.base_lsn + last.len),
        prev_number: last.map_or(0, |last| last.number),
        prev_len: last.map_or(0, |last| last.len),
        prev_end_seq: last.map_or(0, |last| last.end_seq),
        since_ms: tail.frames.front().map_or(now_ms, |first| first.appended_ms),
        prev_stream: last.and_then(|last| last.stream).unwrap_or(stream),
        kept_len: 0,
        reused_len: 0,
    };
    // Where the disk is full, so that it does not become fuller with each attempt. Should they come back, they count for
    // as little.
    unborn.iter().try_for_each(|name| storage.remove(name))?;
    let old = tail_of.map(|old| (old, &tail));
    let (file, book, len) = match write_segment(&mut *storage, &head, &cursors, old) {
        Ok(written) => written,
        Err(error) => {
            // The error is what counts.
            let _left_for_the_next = storage.remove(&segment::name(head.number));
            return Err(error);
        }
    };
    for name in &void {
        storage.remove(name)?;
    }
    if !(void.is_empty() && unborn.is_empty()) {
        storage.sync_directory()?;
    }

    let copied = tail.frames.iter().map(|whole| whole.end_seq - whole.first_seq).fold(0, u64::saturating_add);
    let SegmentHead { incarnation, seq_limit, stream, .. } = head;
    segments.push_back(Segment { end_seq: next_seq, len, book, ..Segment::of(&head) });
    let active = Active { file, seq_limit, fresh: tail.frames.is_empty(), ready: len, begun: len };
    let report = RecoveryReport { clean, torn_bytes: tail.torn_bytes, copied, damage, next_seq };
    Ok(Recovered { log: Log { storage, segments, active, now_ms }, stream, incarnation, cursors, report })
}

/// Writes the new segment and syncs it. Its file, what its checkpoint takes, and where it ends.
fn write_segment(
    storage: &mut dyn Storage,
    head: &SegmentHead,
    cursors: &Cursors,
    old: Option<(Segment, &Tail)>,
) -> io::Result<(Box<dyn File>, u64, u64)> {
    let file = storage.create(&segment::name(head.number))?;
    storage.sync_directory()?;
    let checkpoint = Planned::new(Kind::Checkpoint, head.base_seq, 0, &cursors.put());
    let begun = write_frame(&*file, head, BODY, checkpoint, head.since_ms)?;
    let end = match old {
        Some((old, tail)) => write_tail(&*file, head, begun, &*storage.open(&old.name())?, &old, tail)?,
        None => begun,
    };
    file.sync_data()?;
    // Only now may it count.
    write_all(&*file, &head.to_bytes(), 0)?;
    file.sync_data()?;
    Ok((file, begun - BODY, end))
}

/// Where the next frame goes.
fn write_frame(file: &dyn File, head: &SegmentHead, at: u64, mut frame: Planned, appended_ms: u64) -> io::Result<u64> {
    let &SegmentHead { base_lsn, incarnation, salt, .. } = head;
    let bytes = frame.stamp(&Stamp { lsn: base_lsn + at, synced_lsn: base_lsn, incarnation, salt, appended_ms });
    write_all(file, bytes, at)?;
    Ok(at + bytes.len() as u64)
}

/// Copies the frames of the tail, one at a time. Where the new segment ends then.
fn write_tail(
    file: &dyn File,
    head: &SegmentHead,
    mut at: u64,
    old_file: &dyn File,
    old: &Segment,
    tail: &Tail,
) -> io::Result<u64> {
    for whole in &tail.frames {
        let mut walk = Walk::new(old_file, old, whole.at, whole.at + whole.len);
        let Step::Frame(frame) = walk.next()? else {
            // It was whole a moment ago.
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a record changed while it was copied"));
        };
        let Some((incarnation, records)) = origin(&frame) else { continue };
        let mut body = incarnation.to_le_bytes().to_vec();
        body.extend_from_slice(&records);
        let copy = Planned::new(Kind::Copied, frame.head.first_seq, frame.head.count, &body);
        at = write_frame(file, head, at, copy, frame.head.appended_ms)?;
    }
    Ok(at)
}
