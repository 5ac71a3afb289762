//! The next segment, and its file: a new one, whose name is durable before it is needed, or that of a segment that goes.
//!
//! A sync of bytes that take the place of others has less to do than one of bytes that make the file longer, and the
//! system has their pages in memory: on ext4 a third to a half of the time, and writing without a sync two to three
//! times as fast as to a file that is new. So a log whose readers keep up goes round in a few files.
//!
//! What the earlier segment has left behind the last frame is not part of the log: its frames have another salt, and
//! say another place. When a crash ends a segment, it is where the last of its own frames ends. And until the file has
//! its new head, for good, it has a name that says so: nobody ever looks in it for a segment whose head is lost, and
//! finds one that a message has forged.
//!
//! ```text
//! 3.seg  | head | frame | frame | frame |     all settled, and the log says so, synced
//! 5.next | head | frame | frame | frame |     renamed, which is synced, before anything is written to it
//! 5.next | HEAD | FRAME | ame | frame |       synced, before
//! 5.seg  | HEAD | FRAME | ame | frame |       it is the segment 5
//! ```

use std::io;

use super::{
    batch::{Planned, Stamp},
    record::Kind,
    segment::{self, BODY, Segment, SegmentHead},
    storage::{File, write_all},
    tidy,
    writer::{Active, Writer, for_good, if_it_is_gone},
};
use crate::random;

/// Of a log that is longer than this many segments what goes was written so long ago that its pages have perhaps left
/// memory, and writing a part of one would read it first.
const NEAR: usize = 4;

/// The file of the next segment. The name of a new one is durable already.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) file: Box<dyn File>,
    /// How long it is, of an earlier segment; 0 of a new one.
    pub(super) reused_len: u64,
}

impl Writer {
    /// Prepares the next segment when this one is half full.
    pub(super) fn prepare(&mut self) -> io::Result<()> {
        if (self.prepared.is_some() || self.half_made) && self.is_near_quota() {
            self.give_back_prepared()?;
        }
        if self.prepared.is_none()
            && let Some(&last) = self.segments.back()
            && last.len > self.shared.options.segment / 2 + last.book
        {
            match self.make(last.number + 1) {
                Ok(prepared) => self.prepared = Some(prepared),
                // It is in nobody's way yet. Should it not pass, the end of this segment will say so.
                Err(error) => tracing::debug!(%error, "the next segment cannot be prepared"),
            }
        }
        Ok(())
    }

    /// A new file whose name is durable.
    pub(super) fn make(&mut self, number: u64) -> io::Result<Prepared> {
        // Made anew, because a sync that has failed says nothing when it succeeds later.
        self.remove_half_made(number)?;
        let file = self.storage.create(&segment::name(number))?;
        self.half_made = true;
        self.storage.sync_directory()?;
        self.half_made = false;
        Ok(Prepared { file, reused_len: 0 })
    }

    /// Removes what an attempt at the file of this segment has left behind, under either of its names.
    fn remove_half_made(&mut self, number: u64) -> io::Result<()> {
        if self.half_made {
            self.storage.remove(&segment::name(number)).or_else(if_it_is_gone)?;
            self.storage.remove(&next_name(number)).or_else(if_it_is_gone)?;
            self.half_made = false;
        }
        Ok(())
    }

    /// Whether the file of this segment, which goes, is to be that of the next.
    pub(super) fn is_worth_reusing(&self, front: &Segment) -> bool {
        let size = self.shared.options.segment;
        // Neither one that ended early, nor one of an opening that had larger ones.
        let fits = (size / 2..=size + BODY).contains(&front.on_disk());
        let is_free = self.prepared.as_ref().is_none_or(|prepared| prepared.reused_len == 0) && !self.half_made;
        fits && is_free && front.kept_len == 0 && self.segments.len() <= NEAR && !self.is_near_quota()
    }

    /// A file that is used again has its length from the beginning. Where that could count, none is.
    fn is_near_quota(&self) -> bool {
        let options = &self.shared.options;
        self.full || self.held() + 2 * options.segment > options.log_quota()
    }

    /// Makes the file of this segment that of the next, in place of an empty one that is prepared.
    pub(super) fn reuse(&mut self, front: &Segment) -> io::Result<()> {
        let Some(number) = self.segments.back().map(|last| last.number + 1) else { return Ok(()) };
        self.half_made = true;
        if self.prepared.take().is_some() {
            self.storage.remove(&segment::name(number)).or_else(if_it_is_gone)?;
        }
        if let Err(error) = self.storage.rename(&front.name(), &next_name(number)) {
            // It is gone when this was tried before, and the directory could not be synced.
            if_it_is_gone(error)?;
            return self.storage.sync_directory();
        }
        // Should the new name not be durable, a power cut would bring back the old one with what is written now.
        self.storage.sync_directory()?;
        let file = self.storage.reopen(&next_name(number))?;
        self.half_made = false;
        self.prepared = Some(Prepared { file, reused_len: front.on_disk() });
        Ok(())
    }

    /// Ends the segment and begins the next. What was written is synced before a head says that it is there.
    pub(super) fn rotate(&mut self, next_seq: u64) -> io::Result<()> {
        self.sync()?;
        let Some(&ended) = self.segments.back() else { return Ok(()) };
        let number = ended.number + 1;
        let Prepared { file, reused_len } = match self.prepared.take() {
            Some(prepared) => prepared,
            None => self.make(number)?,
        };
        // One without a record has nothing that the new checkpoint does not say: the new one takes its place.
        let needless = ended.end_seq == ended.base_seq;
        let before = self.segments.len().checked_sub(if needless { 2 } else { 1 });
        let last = before.and_then(|index| self.segments.get(index)).copied();
        let base_lsn = last.map_or(ended.base_lsn, |last| last.base_lsn + last.len);
        let head = SegmentHead {
            salt: random::number() as u32,
            stream: self.stream,
            incarnation: self.shared.incarnation,
            number,
            base_seq: next_seq,
            seq_limit: next_seq + self.shared.options.segment,
            base_lsn,
            prev_number: last.map_or(0, |last| last.number),
            prev_len: last.map_or(0, |last| last.len),
            prev_end_seq: last.map_or(0, |last| last.end_seq),
            since_ms: self.now_ms,
            prev_stream: last.and_then(|last| last.stream).unwrap_or(self.stream),
            kept_len: 0,
            reused_len,
        };
        let (table, marks) = self.table();
        let mut checkpoint = Planned::new(Kind::Checkpoint, next_seq, 0, &table);
        let SegmentHead { incarnation, salt, .. } = head;
        let (lsn, synced_lsn, appended_ms) = (base_lsn + BODY, base_lsn, self.now_ms);
        let checkpoint = checkpoint.stamp(&Stamp { lsn, synced_lsn, incarnation, salt, appended_ms });
        self.ended = true;
        if let Err(error) = self.begin_next(&*file, &head, checkpoint) {
            // When it was for want of room, or of files, it is written anew; a name of which a sync has said nothing is
            // not believed.
            self.prepared = (reused_len == 0).then_some(Prepared { file, reused_len });
            self.half_made |= reused_len > 0;
            return Err(error);
        }
        self.ended = false;
        let len = BODY + checkpoint.len() as u64;
        let active = Active { file, seq_limit: head.seq_limit, fresh: true, ready: len.max(reused_len), begun: len };
        let before = std::mem::replace(&mut self.active, active);
        if needless {
            self.segments.pop_back();
            // The next opening would do it as well.
            let _gone = self.storage.remove(&ended.name());
        } else if let Some(ended) = self.segments.back_mut() {
            ended.slack = before.ready.saturating_sub(ended.len);
        }
        self.segments.push_back(Segment { len, book: len - BODY, ..Segment::of(&head) });
        self.synced_lsn = self.end_lsn();
        (self.logged, self.checkpointed) = (marks.changes, marks.changes);
        if let Some(number) = self.gone_to.take() {
            let _gone = self.storage.remove(&tidy::gone_name(number));
        }
        Ok(())
    }

    /// Writes the beginning of a segment, and syncs it. It counts as soon as its head is whole, under its name.
    fn begin_next(&mut self, file: &dyn File, head: &SegmentHead, checkpoint: &[u8]) -> io::Result<()> {
        write_all(file, checkpoint, BODY)?;
        if head.reused_len == 0 {
            file.sync_data().map_err(for_good)?;
        }
        write_all(file, &head.to_bytes(), 0)?;
        file.sync_data().map_err(for_good)?;
        if head.reused_len > 0 {
            self.storage.rename(&next_name(head.number), &segment::name(head.number))?;
            self.storage.sync_directory()?;
        }
        Ok(())
    }

    /// Removes the file of the next segment, if it takes room, or may. Whether there was one.
    pub(super) fn give_back_prepared(&mut self) -> io::Result<bool> {
        self.half_made |= self.prepared.take_if(|prepared| prepared.reused_len > 0).is_some();
        let (gives, last) = (self.half_made, self.segments.back());
        if let Some(number) = last.map(|last| last.number + 1) {
            self.remove_half_made(number)?;
        }
        Ok(gives)
    }
}

fn next_name(number: u64) -> String {
    format!("{number:020}.next")
}

/// Whether this file was to be used again, and is not the segment's yet.
pub(super) fn is_prepared(name: &str) -> bool {
    name.strip_suffix(".next").is_some_and(|number| segment::number(&format!("{number}.seg")).is_some())
}
