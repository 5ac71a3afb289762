//! Any files at all in the directory of a spool: how to make them, and what must come of it. The fuzz target `recovery`
//! does the same as the tests with fixed seeds.

use std::io::ErrorKind;

use futures::executor::block_on;
use ropewalk::spool::{Durability, OnDamage, OpenError, Spool};

use crate::{
    chance::Choose,
    disk::{Fault, Sim},
    model::{message, read_all, small},
};

/// The head of a frame, under the first of its checksums.
const HEAD: usize = 64;

pub(crate) fn name(number: u64) -> String {
    format!("{number:020}.seg")
}

/// Choices from bytes, for a fuzzer to make. When they are used up, it is the first each time.
pub(crate) struct Input<'a>(pub(crate) &'a [u8]);

impl Choose for Input<'_> {
    fn choose(&mut self, of: usize) -> usize {
        let len = if of <= 1 << 8 { 1 } else { 3 };
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken.iter().rev().fold(0, |number, byte| number << 8 | usize::from(*byte)) % of.max(1)
    }
}

/// What stands in a directory.
pub(crate) struct Files {
    disk: Sim,
    /// Somebody has written what no disk makes of a log: numbers that are wrong under checksums that are right.
    lies: bool,
}

impl Files {
    /// Opens what is there in both ways. What opens can be read, written, closed and opened again; what does not is
    /// left as it is. All of it takes no more operations than files of this size give reason for.
    pub(crate) fn are_survived(&self) {
        let files = self.disk.files();
        let most = 400 + files.values().map(|bytes| 8 + bytes.len() as u64 / 50).sum::<u64>();
        for on_damage in [OnDamage::Refuse, OnDamage::Skip] {
            let disk = self.disk.kill();
            match block_on(Spool::open_on(disk.clone(), small(Durability::Always).on_damage(on_damage))) {
                Ok((spool, _)) => self.works(&disk, &spool),
                Err(OpenError::Damaged { .. }) if on_damage == OnDamage::Refuse => {
                    assert!(disk.files() == files, "what is refused is left as it is");
                }
                Err(OpenError::Version { .. }) => assert!(disk.files() == files, "what is not known is left as it is"),
                Err(error) => self.may_be(error),
            }
            assert!(disk.world().operations < most, "{} operations", disk.world().operations);
        }
    }

    fn works(&self, disk: &Sim, spool: &Spool) {
        let seqs = block_on(spool.append([message(3)])).unwrap();
        let (records, _) = read_all(spool).unwrap();
        let last = records.last().map(|last| (last.seq, &last.message));
        assert!(self.lies || last == Some((seqs.start, &message(3))), "{last:?} is not the last");
        block_on(spool.verify()).unwrap();
        block_on(spool.close()).unwrap();
        let skip = small(Durability::Always).on_damage(OnDamage::Skip);
        match block_on(Spool::open_on(disk.clone(), skip)) {
            Ok((spool, report)) => {
                let (again, _) = read_all(&spool).unwrap();
                assert!(self.lies || report.clean && again.last() == records.last(), "closed in order: {report:?}");
            }
            Err(error) => self.may_be(error),
        }
    }

    /// Only who lies brings a log to where its numbers end.
    fn may_be(&self, error: OpenError) {
        match error {
            OpenError::Io { error, .. } if self.lies && error.kind() == ErrorKind::InvalidData => {}
            error => panic!("{error}"),
        }
    }
}

/// These bytes as files: the first say how many there are, and where each ends.
pub(crate) fn raw(input: &[u8]) -> Files {
    let (disk, mut choose) = (Sim::default(), Input(input));
    let count = 1 + choose.choose(3);
    let mut rest = Input(input.get(1..).unwrap_or_default());
    for number in 1..=count as u64 {
        let len = if number == count as u64 { rest.0.len() } else { rest.choose(1 << 12).min(rest.0.len()) };
        let (bytes, left) = rest.0.split_at(len);
        disk.put(&name(number), bytes);
        rest.0 = left;
    }
    disk.put("note.txt", b"not ours");
    Files { disk, lies: false }
}

/// A log of several segments that holds what a log can hold.
pub(crate) fn log() -> Sim {
    let disk = Sim::default();
    for opening in 0..3 {
        let (spool, _) = block_on(Spool::open_on(disk.clone(), small(Durability::Os))).unwrap();
        block_on(spool.cursor(&format!("reader {opening}"))).unwrap();
        for id in 0..40 {
            block_on(spool.append([message(id)])).unwrap();
        }
        spool.settle("reader 0", opening * 9..opening * 9 + 5).unwrap();
        if opening == 0 {
            // Some segments are rewritten.
            spool.settle("reader 0", 9..30).unwrap();
            (0..20).for_each(|_| block_on(spool.sync()).unwrap());
            assert!(disk.world().rewritten > 0);
        }
        block_on(spool.sync()).unwrap();
        if opening != 1 {
            block_on(spool.close()).unwrap();
        } else {
            // This opening ends without a seal.
            disk.world().fault = Some(Fault::Off(0));
            assert!(block_on(spool.append(["lost"])).is_err());
            disk.world().fault = None;
        }
    }
    disk
}

/// A log in which a few things are not as they were: lost, cut, swapped, overwritten, and also lied about under
/// checksums that are right.
pub(crate) fn mutated(whole: &Sim, choose: &mut dyn Choose) -> Files {
    let (disk, mut lies) = (Sim::default(), false);
    let files: Vec<(String, Vec<u8>)> = whole.files().into_iter().collect();
    for (mut name, mut bytes) in files.clone() {
        let what = choose.choose(12);
        lies |= (6..10).contains(&what);
        match what {
            0 => bytes.truncate(choose.choose(bytes.len() + 1)),
            1 => bytes = files[choose.choose(files.len())].1.clone(),
            2 => continue,
            3 => {
                let from = choose.choose(bytes.len() + 1);
                let to = bytes.len().min(from + choose.choose(3000));
                bytes[from..to].fill(choose.choose(256) as u8);
            }
            4 | 5 => {
                for _ in 0..1 + choose.choose(5) {
                    let (at, new) = (choose.choose(bytes.len().max(1)), choose.choose(256) as u8);
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte = new;
                    }
                }
            }
            6 => name = self::name(number(choose)),
            7 => {
                let at = [8, 32, 40, 48, 56, 64, 72, 80, 88][choose.choose(9)];
                put_number(&mut bytes, at, choose);
                mend(&mut bytes);
            }
            8 => {
                let frames = frames(&bytes);
                let at = frames[choose.choose(frames.len())] + [8, 16, 24, 32, 40, 48, 52][choose.choose(7)];
                put_number(&mut bytes, at, choose);
                mend(&mut bytes);
            }
            9 => {
                // Bytes of a body, under a checksum that is right.
                for _ in 0..1 + choose.choose(4) {
                    let frames = frames(&bytes);
                    let at = frames[choose.choose(frames.len())] + HEAD + choose.choose(64);
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte = choose.choose(256) as u8;
                    }
                }
                mend(&mut bytes);
            }
            _ => {}
        }
        disk.put(&name, &bytes);
    }
    Files { disk, lies }
}

/// Small, large, and near the ends of what can be.
fn number(choose: &mut dyn Choose) -> u64 {
    let near = [0, 1 << 12, 1 << 32, 1 << 61, 1 << 62, 1 << 63, u64::MAX][choose.choose(7)];
    near.wrapping_add(choose.choose(256) as u64).wrapping_sub(choose.choose(256) as u64)
}

fn put_number(bytes: &mut [u8], at: usize, choose: &mut dyn Choose) {
    let number = number(choose).to_le_bytes();
    if let Some(room) = bytes.get_mut(at..at + 8) {
        room.copy_from_slice(&number);
    }
}

/// Where frames stand, or the end.
fn frames(bytes: &[u8]) -> Vec<usize> {
    let begins = |at: &usize| bytes[*at..].starts_with(b"RwFr");
    (4096..bytes.len()).step_by(8).filter(begins).chain([bytes.len()]).collect()
}

/// Makes all checksums right.
pub(crate) fn mend(bytes: &mut [u8]) {
    let salt = bytes.get(12..16).map_or(0, |salt| u32::from_le_bytes(salt.try_into().unwrap()));
    for at in frames(bytes) {
        let Some(head) = bytes.get(at..at + HEAD) else { continue };
        let len = u32::from_le_bytes(head[8..12].try_into().unwrap()) as usize;
        if let Some(body) = bytes.get(at + HEAD..(at + HEAD).saturating_add(len)) {
            let crc = crc32c::crc32c(body);
            bytes[at + 12..at + 16].copy_from_slice(&crc.to_le_bytes());
        }
        let crc = crc32c::crc32c(&bytes[at + 8..at + HEAD]) ^ salt;
        bytes[at + 4..at + 8].copy_from_slice(&crc.to_le_bytes());
    }
    if let Some(head) = bytes.get(..4092) {
        let crc = crc32c::crc32c(head);
        bytes[4092..4096].copy_from_slice(&crc.to_le_bytes());
    }
}
