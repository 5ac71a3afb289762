//! What the writer reads for others, between its own work.

use std::io;

use super::{
    read::{self, Item},
    record::Head,
    segment::{BODY, Walk},
    writer::Writer,
};

impl Writer {
    pub(super) fn read(&mut self, from: u64, place: Option<read::Place>) -> io::Result<read::Chunk> {
        let storage = &mut self.storage;
        let had_records = |seqs| self.shared.lock().cursors.live(seqs).0 > 0;
        let mut chunk = read::read(&self.segments, from, place, had_records, |segment| storage.open(&segment.name()))?;
        let front = self.segments.front().map_or(0, |front| front.base_seq);
        if from < front {
            let missed = self.shared.lock().cursors.missed(from..front);
            chunk.items.splice(0..0, missed.map(|(seqs, records)| Item::Missed(seqs, records)));
        }
        Ok(chunk)
    }

    /// The segments' heads lead to the segment, and its frames' heads to the frame.
    pub(super) fn seq_at(&mut self, time_ms: u64) -> io::Result<u64> {
        let first = self.segments.partition_point(|segment| segment.since_ms < time_ms).saturating_sub(1);
        for segment in self.segments.iter().skip(first) {
            let file = self.storage.open(&segment.name())?;
            let mut walk = Walk::new(&*file, segment, BODY, segment.len);
            loop {
                let wanted = |head: &Head| head.kind.has_records() && head.appended_ms >= time_ms;
                match walk.skip(|head| !wanted(head))? {
                    Some(head) => return Ok(head.first_seq),
                    None if walk.at < segment.len && walk.resync()? => {}
                    None => break,
                }
            }
        }
        Ok(self.written())
    }
}
