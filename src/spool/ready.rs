//! Room made ready before it is written.
//!
//! A sync of bytes that take the place of others has less to do than one of bytes that make the file longer, for which the
//! file system writes down the new length and place, too: 0.6 to 0.8 of the time on ext4. So where every group is synced,
//! zeros are written behind a small one, and the next groups take their place. Behind a large group that costs more than
//! it spares, and so it does where nothing is synced.
//!
//! ```text
//!   | frame | frame | 0000000000 |                    behind the last frame there are zeros, which are no frame
//!                   ^len         ^ready = length of the file
//! ```

use std::io;

use super::{
    options::Durability,
    storage::{passes, write_all},
    writer::Writer,
};

/// What is made ready at a time: as much as there is already, up to this part of a segment. A log of a few messages stays
/// small.
const PART: u64 = 64;
const BLOCK: u64 = 4096;
/// Behind a group that is larger than this part of it nothing is made ready.
const SMALL: u64 = 32;

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

impl Writer {
    /// Makes room ready behind what is to be synced, if that made the file longer.
    pub(super) fn make_ready(&mut self) -> io::Result<()> {
        let options = &self.shared.options;
        let Some(segment) = self.segments.back() else { return Ok(()) };
        let Some(grown) = segment.len.checked_sub(self.active.ready).filter(|grown| *grown > 0) else { return Ok(()) };
        self.active.ready = segment.len;
        let size = (options.segment / PART).max(BLOCK);
        let until = (segment.len + size.min(segment.len)).min(options.segment);
        let Some(more) = until.checked_sub(segment.len) else { return Ok(()) };
        let always = options.durability == Durability::Always;
        let small = (size / SMALL).max(BLOCK / 8);
        if !always || grown > small || self.full || self.held() + more > options.log_quota() {
            return Ok(());
        }
        while self.active.ready < until {
            let zeros = ZEROS.get(..(until - self.active.ready) as usize).unwrap_or(&ZEROS);
            match write_all(&*self.active.file, zeros, self.active.ready) {
                Ok(()) => self.active.ready += zeros.len() as u64,
                // The frames are there; without zeros behind them the next sync takes longer, that is all.
                Err(error) if passes(&error) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
