//! What a spool must be, and a run of it over one disk.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
};

use futures::executor::block_on;
use ropewalk::{
    Message,
    spool::{Durability, OpenError, ReadError, Reader, Record, RecoveryReport, Spool, SpoolOptions, Storage},
};

use crate::chance::{Chance, Choose};

/// What was asked of the spool and what it has said, over all openings.
#[derive(Debug, Default, Clone)]
pub(crate) struct Model {
    submitted: u64,
    /// What was confirmed, or read after an opening.
    pub(crate) confirmed: BTreeMap<u64, u64>,
    /// Everything ever seen: a seq is never another message.
    seen: BTreeMap<u64, u64>,
    pub(crate) settled: BTreeSet<u64>,
    cursor: bool,
    /// What was noted of each since the last opening; the first is what that found.
    notes: BTreeMap<u64, Vec<u32>>,
    /// All names the log has had, the newest last, and whether it perhaps has another by now.
    streams: Vec<[u8; 16]>,
    forking: bool,
    /// What was said to be dropped.
    pub(crate) dropped: u64,
    /// Files that were used for another segment.
    pub(crate) reused: u64,
}

/// Small segments and frames, so that much happens with few records.
pub(crate) fn small(durability: Durability) -> SpoolOptions {
    SpoolOptions::new(durability).segment(8 << 10).frame(600).quota(1 << 20).lock_timeout(Default::default())
}

pub(crate) fn message(id: u64) -> Message {
    let filler = Chance(id).choose(500);
    let text = format!("{id:08}{}", "x".repeat(filler));
    // Now and then one of several parts.
    if id % 7 == 3 { Message::from([&text[..8], &text[8..]]) } else { Message::from(text) }
}

fn id(record: &Record) -> u64 {
    let parts: Vec<u8> = record.message.parts().concat();
    let id = std::str::from_utf8(&parts[..8]).unwrap().parse().unwrap();
    assert_eq!(record.message, message(id), "a record is what was submitted");
    id
}

/// Everything that is there, and the seqs that are said to be lost.
pub(crate) fn read_all(spool: &Spool) -> Result<(Vec<Record>, Vec<Range<u64>>), ReadError> {
    let (records, lost, missed) = read_all_from(&mut spool.read_from(0))?;
    assert!(missed.is_empty(), "{missed:?}");
    Ok((records, lost))
}

/// Records, what is lost, what was dropped.
type All = (Vec<Record>, Vec<Range<u64>>, Vec<(Range<u64>, u64)>);

pub(crate) fn read_all_from(reader: &mut Reader) -> Result<All, ReadError> {
    let (mut records, mut lost, mut missed) = (Vec::new(), Vec::new(), Vec::new());
    loop {
        match block_on(reader.try_next()) {
            Ok(Some(record)) => records.push(record),
            Ok(None) => return Ok((records, lost, missed)),
            Err(ReadError::Damaged(damage)) => lost.push(damage.seqs),
            Err(ReadError::Missed { seqs, records }) => missed.push((seqs, records)),
            Err(error) => return Err(error),
        }
    }
}

impl Model {
    fn confirm(&mut self, seq: u64, id: u64) {
        let before = self.seen.insert(seq, id);
        assert!(before.is_none_or(|before| before == id), "seq {seq} was {before:?} and is {id}");
        self.confirmed.insert(seq, id);
    }

    /// What must be there.
    pub(crate) fn unsettled(&self) -> BTreeMap<u64, u64> {
        self.confirmed.clone().into_iter().filter(|(seq, _)| !self.settled.contains(seq)).collect()
    }

    /// This one is on its way.
    pub(crate) fn submit(&mut self, id: u64) {
        self.submitted = self.submitted.max(id + 1);
    }

    pub(crate) fn given(&mut self, id: u64, seqs: Range<u64>) {
        assert_eq!(seqs.end - seqs.start, 1);
        self.confirm(seqs.start, id);
    }

    /// What is there after an opening. What a policy lets a power cut lose, it may lose from the end only.
    pub(crate) fn check(&mut self, records: &[Record], may_lose: bool) {
        let found: BTreeMap<u64, u64> = records.iter().map(|record| (record.seq, id(record))).collect();
        assert_eq!(found.len(), records.len(), "no seq twice");
        let ids: Vec<u64> = records.iter().map(id).collect();
        assert!(ids.is_sorted_by(|a, b| a < b), "in order, and none twice: {ids:?}");
        assert!(records.is_sorted_by_key(|record| record.seq));
        assert!(ids.iter().all(|id| *id < self.submitted), "nothing that was not submitted");
        let missing: Vec<u64> = self
            .confirmed
            .keys()
            .copied()
            .filter(|seq| !found.contains_key(seq) && !self.settled.contains(seq))
            .collect();
        if may_lose {
            if let Some(first) = missing.first() {
                let behind = found.keys().filter(|seq| *seq > first).count();
                assert_eq!(behind, 0, "{first} is lost, but not what came behind it");
            }
        } else {
            assert!(missing.is_empty(), "confirmed and lost: {missing:?}");
        }
        self.confirmed.retain(|seq, _| found.contains_key(seq));
        for (seq, id) in found {
            self.confirm(seq, id);
        }
    }

    /// What was dropped went from the front, and it is said how many records that were.
    fn check_missed(&mut self, records: &[Record], missed: &[(Range<u64>, u64)]) {
        for (seqs, count) in missed {
            let wanted = |(seq, _): &(&u64, &u64)| !self.settled.contains(seq);
            let known = self.confirmed.range(seqs.clone()).filter(wanted).count() as u64;
            assert!((known..=seqs.end - seqs.start).contains(count), "{known} of {seqs:?}, not {count}");
            assert!(records.first().is_none_or(|first| first.seq >= seqs.end));
            self.settled.extend(self.confirmed.range(seqs.clone()).map(|(seq, _)| *seq));
            self.dropped += count;
        }
    }

    /// Of what was noted a crash may take the last, but never brings what was not noted.
    fn check_notes(&mut self, spool: &Spool, clean: bool) {
        for (seq, noted) in &mut self.notes {
            let found = spool.noted("reader", *seq);
            let last = noted.last().copied().unwrap_or(0);
            if clean {
                assert!(found == last || (found == 0 && self.settled.contains(seq)), "{seq}: {found}, not {noted:?}");
            } else {
                assert!(found == 0 || noted.contains(&found), "{seq}: {found}, not {noted:?}");
            }
            *noted = vec![found];
        }
    }

    fn check_stream(&mut self, spool: &Spool) {
        let stream = spool.stream();
        if self.streams.last() != Some(&stream) {
            assert!(self.streams.is_empty() || self.forking, "the log has lost its name");
            assert!(!self.streams.contains(&stream), "a name that it had before");
            self.streams.push(stream);
        }
        self.forking = false;
    }

    /// Opens, checks, and works for some steps. Whether it came through, or the disk stopped it.
    pub(crate) fn round(
        &mut self,
        storage: impl Storage + 'static,
        options: &SpoolOptions,
        steps: usize,
        may_lose: bool,
        choose: &mut dyn Choose,
    ) -> Result<RecoveryReport, ()> {
        let opened = block_on(Spool::open_on(storage, options.clone()));
        let (spool, report) = match opened {
            Ok(opened) => opened,
            Err(OpenError::Io { .. }) => return Err(()),
            Err(error) => panic!("{error}"),
        };
        assert!(report.damage.is_empty(), "a crash is no damage: {report:?}");
        let (records, lost, missed) = read_all_from(&mut spool.read_from(0)).map_err(drop)?;
        assert!(lost.is_empty(), "a crash is no damage: {lost:?}");
        self.check_missed(&records, &missed);
        self.check(&records, may_lose);
        self.check_notes(&spool, report.clean);
        self.check_stream(&spool);
        for _ in 0..steps {
            self.step(&spool, choose)?;
        }
        if choose.choose(4) == 0 {
            block_on(spool.close()).map_err(drop)?;
        }
        Ok(report)
    }

    fn step(&mut self, spool: &Spool, choose: &mut dyn Choose) -> Result<(), ()> {
        match choose.choose(11) {
            8 if self.cursor => {
                for (number, seq) in self.confirmed.keys().filter(|seq| !self.settled.contains(seq)).enumerate() {
                    let attempts = choose.choose(4) as u32;
                    if number % 3 == 0 {
                        self.notes.entry(*seq).or_insert_with(|| vec![0]).push(attempts);
                        spool.note("reader", *seq, attempts).map_err(drop)?;
                    }
                }
                Ok(())
            }
            9 if choose.choose(4) == 0 => {
                self.forking = true;
                block_on(spool.fork()).map_err(drop)?;
                assert!(!self.streams.contains(&spool.stream()));
                self.check_stream(spool);
                Ok(())
            }
            0 if self.cursor => {
                // Often from the front, now and then anywhere.
                let seqs: Vec<u64> = self.confirmed.keys().copied().collect();
                let to = choose.choose(seqs.len() + 1);
                let from = match choose.choose(4) {
                    0 => choose.choose(to + 1),
                    // All but one.
                    1 => to.min(1),
                    _ => 0,
                };
                for seq in &seqs[from..to] {
                    self.settled.insert(*seq);
                    spool.settle("reader", *seq..*seq + 1).map_err(drop)?;
                }
                Ok(())
            }
            1 => {
                block_on(spool.cursor("reader")).map_err(drop)?;
                self.cursor = true;
                Ok(())
            }
            2 => block_on(spool.sync()).map_err(drop),
            _ => {
                let count = 1 + choose.choose(4) as u64;
                let ids = self.submitted..self.submitted + count;
                self.submitted += count;
                let seqs = block_on(spool.append(ids.clone().map(message))).map_err(drop)?;
                assert_eq!(seqs.end - seqs.start, count);
                seqs.zip(ids).for_each(|(seq, id)| self.confirm(seq, id));
                Ok(())
            }
        }
    }
}

/// Whether any of the seeds shows that something is wrong. Its panics are expected, and not printed.
pub(crate) fn is_caught<R>(mut seeds: Range<u64>, mut run: impl FnMut(u64) -> R) -> bool {
    seeds.any(|seed| catch_unwind(AssertUnwindSafe(|| run(seed))).is_err())
}
