//! The file of the next segment: a new one, whose name is durable before it is needed, or that of a segment that goes.
//!
//! A sync of bytes that take the place of others has less to do than one of bytes that make the file longer, and the
//! system has their pages in memory: on ext4 a third to a half of the time, and writing without a sync two to three
//! times as fast as to a file that is new. So a log whose readers keep up goes round in a few files.
//!
//! What the earlier segment has left behind the last frame is not part of the log: its frames have another salt, and
//! say another place. When a crash ends a segment, it is where the last of its own frames ends.
//!
//! ```text
//! 3.seg  | head | frame | frame | frame |     all settled, and the log says so, synced
//! 5.seg  | head | frame | frame | frame |     renamed, which is synced, before anything is written to it
//! 5.seg  | HEAD | FRAME | ame | frame |       the segment 5
//! ```

use std::io;

use super::{
    segment::{self, Segment},
    storage::File,
    writer::{Writer, if_it_is_gone},
};

/// Of a log that is longer than this many segments what goes was written so long ago that its pages have perhaps left
/// memory, and writing a part of one would read it first.
const NEAR: usize = 4;

/// The file of the next segment, whose name is durable already.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) file: Box<dyn File>,
    /// How long it is, of an earlier segment.
    pub(super) reused_len: u64,
}

impl Writer {
    /// Prepares the next segment when this one is half full.
    pub(super) fn prepare(&mut self) -> io::Result<()> {
        if self.prepared.is_some() && self.is_near_quota() {
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
        let name = segment::name(number);
        if self.half_made {
            // Made anew, because a sync that has failed says nothing when it succeeds later.
            self.storage.remove(&name).or_else(if_it_is_gone)?;
            self.half_made = false;
        }
        let file = self.storage.create(&name)?;
        self.half_made = true;
        self.storage.sync_directory()?;
        self.half_made = false;
        Ok(Prepared { file, reused_len: 0 })
    }

    /// Whether the file of this segment, which goes, is to be that of the next.
    pub(super) fn is_worth_reusing(&self, front: &Segment) -> bool {
        let size = self.shared.options.segment;
        // Neither one that ended early, nor one of an opening that had larger ones.
        let fits = (size / 2..=size + size / 4).contains(&front.on_disk());
        let is_free = self.prepared.as_ref().is_none_or(|prepared| prepared.reused_len == 0) && !self.half_made;
        fits && is_free && front.kept_len == 0 && self.segments.len() <= NEAR && !self.is_near_quota()
    }

    /// A file that is used again has its length from the beginning. Where that could count, none is.
    pub(super) fn is_near_quota(&self) -> bool {
        let options = &self.shared.options;
        self.full || self.held() + 2 * options.segment > options.log_quota()
    }

    /// Makes the file of this segment that of the next, in place of an empty one that is prepared. When the directory
    /// cannot be synced, it is removed like any file that is half made, and the segment is gone.
    pub(super) fn reuse(&mut self, front: &Segment) -> io::Result<()> {
        let Some(last) = self.segments.back() else { return Ok(()) };
        let name = segment::name(last.number + 1);
        (self.prepared, self.half_made) = (None, true);
        self.storage.rename(&front.name(), &name)?;
        // Should the new name not be durable, a power cut would bring back the old one with what is written now.
        self.storage.sync_directory()?;
        let file = self.storage.reopen(&name)?;
        self.half_made = false;
        self.prepared = Some(Prepared { file, reused_len: front.on_disk() });
        Ok(())
    }

    /// Removes the file of the next segment, if it takes room.
    pub(super) fn give_back_prepared(&mut self) -> io::Result<()> {
        let Some(&last) = self.segments.back() else { return Ok(()) };
        match self.prepared.take_if(|prepared| prepared.reused_len > 0) {
            Some(_) => self.storage.remove(&segment::name(last.number + 1)).or_else(if_it_is_gone),
            None => Ok(()),
        }
    }
}
