//! What goes from the log, and when: what is settled, what has been kept long enough, and what there is no room for.
//!
//! Segments go from the front only, and each is gone for good before the next goes. So what is missing at the front was
//! settled, whether or not it says so anywhere else: freeing room needs no room. Where it was not settled but dropped,
//! the log says so, synced, before the file goes; a crash in between is finished by the next opening.

use std::{
    io,
    time::{Duration, Instant},
};

use super::{
    options::{Retain, WhenFull},
    segment::Segment,
    storage::is_full,
    writer::{Writer, now_ms},
};

impl Writer {
    /// Removes what is to go, and prepares the next segment when this one is half full.
    pub(super) fn tidy_up(&mut self) -> io::Result<()> {
        self.tidy_at = None;
        self.remove_settled()?;
        if self.is_short() && self.begin_anew()? {
            self.remove_settled()?;
        }
        if !self.full {
            self.rescue()?;
        }
        while self.must_drop() && (self.segments.len() > 1 || self.begin_anew()?) {
            self.drop_front()?;
        }
        if self.prepared.is_none()
            && let Some(&last) = self.segments.back()
            && last.len > self.shared.options.segment / 2
        {
            self.prepared = Some(self.make(last.number + 1)?);
        }
        Ok(())
    }

    pub(super) fn is_short(&self) -> bool {
        self.shared.lock().is_short(&self.shared.options)
    }

    fn must_drop(&self) -> bool {
        let drops = self.shared.options.when_full == WhenFull::DropOldest;
        // Better to free room of what nobody wants, when that is possible.
        drops && (self.full || (self.is_short() && self.rescue.is_none()))
    }

    fn remove_settled(&mut self) -> io::Result<()> {
        while let [front, next, ..] = *self.segments.make_contiguous()
            && self.shared.lock().cursors.all_settled(&(front.base_seq..front.end_seq))
            && (self.is_short() || !self.is_retained(0))
        {
            self.remove_front(&front, &next)?;
        }
        Ok(())
    }

    /// Ends the only segment, if it may go then. Whether it did.
    fn begin_anew(&mut self) -> io::Result<bool> {
        let [only] = *self.segments.make_contiguous() else { return Ok(false) };
        let goes = self.shared.options.when_full == WhenFull::DropOldest
            || self.shared.lock().cursors.all_settled(&(only.base_seq..only.end_seq));
        if !goes || self.active.fresh || !self.outbox.is_empty() {
            return Ok(false);
        }
        self.rotate(self.coming())?;
        Ok(true)
    }

    fn remove_front(&mut self, front: &Segment, next: &Segment) -> io::Result<()> {
        self.storage.remove(&front.name())?;
        self.storage.sync_directory()?;
        self.segments.pop_front();
        self.shared.lock().cursors.absent(0..next.base_seq);
        self.publish();
        Ok(())
    }

    /// Whether this segment would be kept to be read again if all had settled it. One that is kept for a time is looked
    /// at again then.
    pub(super) fn is_retained(&mut self, index: usize) -> bool {
        let Retain { bytes, age } = self.shared.options.retain;
        let behind = || self.segments.iter().skip(index + 1).map(|segment| segment.len).sum::<u64>();
        if (bytes, age) == (None, None) || bytes.is_some_and(|bytes| behind() >= bytes) {
            return false;
        }
        let (Some(age), Some(next)) = (age, self.segments.get(index + 1)) else { return true };
        // Nothing in it was appended later than that.
        let passed = Duration::from_millis(self.now_ms.max(now_ms()).saturating_sub(next.since_ms));
        let left = age.saturating_sub(passed);
        if left.is_zero() {
            return false;
        }
        // Not for ever: an `Instant` must hold it.
        let until = Instant::now() + left.clamp(Duration::from_millis(1), Duration::from_secs(3600));
        self.wake_at(until);
        true
    }

    /// There will be something to tidy up.
    pub(super) fn wake_at(&mut self, at: Instant) {
        self.tidy_at = Some(self.tidy_at.map_or(at, |other| other.min(at)));
    }

    /// Removes the oldest segment though it is not settled, once the log says so.
    fn drop_front(&mut self) -> io::Result<()> {
        let [front, next, ..] = *self.segments.make_contiguous() else { return Ok(()) };
        self.shared.lock().cursors.drop_records(front.base_seq..front.end_seq);
        self.plan_checkpoint();
        let told = self.write_out().and_then(|()| self.sync());
        // Without room to say it, it is done without a word in the log: a crash then forgets how many they were.
        if let Err(error) = told
            && !is_full(&error)
        {
            return Err(error);
        }
        self.full = false;
        self.remove_front(&front, &next)
    }
}
