//! What goes from the log, and when: what is settled, what has been kept long enough, and what there is no room for.
//!
//! Segments go from the front only, and each is gone for good before the next goes. Before it goes, the log says,
//! synced, that all in it was settled or dropped: so a file that is missing at the front, and of which it does not say
//! so, is damage. A crash in between is finished by the next opening.
//!
//! On a full disk the log cannot say anything, and freeing room must not need room. Then an empty file says it by its
//! name (`7.gone`: all segments up to this one) until the next segment begins, with a checkpoint.

use std::{
    io,
    time::{Duration, Instant},
};

use super::{
    options::{Retain, WhenFull},
    segment::{self, Segment},
    storage::is_full,
    writer::{Writer, if_it_is_gone, now_ms},
};

/// How long what is settled may wait for a sync that comes anyway, before it is removed.
const DELAY: Duration = Duration::from_secs(1);

/// Segments at the front that all had settled.
#[derive(Debug, Clone, Copy)]
pub(super) struct Going {
    /// The last of them.
    upto: u64,
    /// When so much of what cursors did is in the log, it says so.
    changes: u64,
    /// As long as no cursor was added.
    added: u64,
    since: Instant,
}

impl Writer {
    /// Removes what is to go, and prepares what is to come.
    pub(super) fn tidy_up(&mut self) -> io::Result<()> {
        self.tidy_at = None;
        self.remove_settled()?;
        if self.is_short() && self.begin_anew()? {
            self.remove_settled()?;
        }
        if !self.full {
            self.rescue()?;
        }
        if self.full && self.give_back_prepared()? {
            // There is room now, and nothing need be dropped for it.
            self.full = false;
        }
        while self.must_drop() && (self.segments.len() > 1 || self.begin_anew()?) {
            self.drop_front()?;
        }
        self.prepare()
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
        let Some(going) = self.going() else { return Ok(()) };
        let mut says_it = self.logged >= going.changes;
        if !says_it {
            let wait = DELAY.saturating_sub(going.since.elapsed());
            if !wait.is_zero() && !self.full && !self.is_short() {
                self.wake_at(Instant::now() + wait);
                return Ok(());
            }
            match self.log_settled() {
                Ok(()) => says_it = true,
                Err(error) if is_full(&error) => self.full = true,
                Err(error) => return Err(error),
            }
        }
        while let [front, next, ..] = *self.segments.make_contiguous()
            && front.number <= going.upto
            && (self.is_short() || !self.is_retained(0))
        {
            if !says_it {
                self.say_gone(front.number)?;
            }
            self.remove_front(&front, &next)?;
        }
        self.going = None;
        Ok(())
    }

    /// The segments at the front that may go once the log says why.
    fn going(&mut self) -> Option<Going> {
        let added = self.shared.lock().cursors.added();
        if let Some(going) = self.going.filter(|going| going.added == added) {
            return Some(going);
        }
        let (short, mut upto) = (self.is_short(), None);
        for index in 0..self.segments.len().saturating_sub(1) {
            let Some(&Segment { number, base_seq, end_seq, .. }) = self.segments.get(index) else { break };
            let settled = self.shared.lock().cursors.all_settled(&(base_seq..end_seq));
            if !settled || (!short && self.is_retained(index)) {
                break;
            }
            upto = Some(number);
        }
        let changes = self.shared.lock().cursors.changes();
        self.going = upto.map(|upto| Going { upto, changes, added, since: Instant::now() });
        self.going
    }

    /// Whether this one only waits for the log to say that it may go.
    pub(super) fn goes(&self, number: u64) -> bool {
        self.going.is_some_and(|going| number <= going.upto)
    }

    /// Says by a name that the segments up to this one went for good reason: that takes no room.
    fn say_gone(&mut self, number: u64) -> io::Result<()> {
        let name = gone_name(number);
        match self.gone_to {
            Some(before) if before == number => {}
            Some(before) => self.storage.rename(&gone_name(before), &name)?,
            None => drop(self.storage.create(&name)?),
        }
        self.gone_to = Some(number);
        self.storage.sync_directory()
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
        // The log says so. A cursor that comes while the removal waits does not ask for them.
        self.shared.lock().cursors.absent(0..next.base_seq);
        if self.is_worth_reusing(front) {
            self.reuse(front)?;
        } else {
            // It may be gone when it was tried before, and the directory could not be synced.
            self.storage.remove(&front.name()).or_else(if_it_is_gone)?;
            self.storage.sync_directory()?;
        }
        self.segments.pop_front();
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
        // What waits already for a full disk says less, and that is all that there may ever be room for.
        if self.outbox.is_empty() {
            self.plan_checkpoint();
        }
        match self.write_out().and_then(|()| self.sync()) {
            Ok(()) => {}
            // A crash then forgets how many they were.
            Err(error) if is_full(&error) => self.say_gone(front.number)?,
            Err(error) => return Err(error),
        }
        self.remove_front(&front, &next)?;
        self.full = false;
        Ok(())
    }
}

pub(super) fn gone_name(number: u64) -> String {
    format!("{number:020}.gone")
}

/// Up to which number segments are gone, if this is a name that says so.
pub(super) fn gone_to(name: &str) -> Option<u64> {
    segment::number(&format!("{}.seg", name.strip_suffix(".gone")?))
}
