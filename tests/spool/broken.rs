//! Storages that break one rule of the spool each. The tests must see it, or they prove nothing.

use std::{
    io,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

use ropewalk::spool::{File, Storage};

use crate::{
    crashes::{life, stops_while_it_recovers},
    disk::Sim,
    faults,
    model::is_caught,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    /// A confirmed record was synced.
    SyncBeforeConfirming,
    /// What recovery copies is synced before the head that makes it count.
    SyncWhatIsCopied,
    /// A new name is synced before what it names counts.
    SyncTheDirectory,
    /// A sync that failed is not tried again.
    BelieveAFailedSync,
    /// Frames say how far the log was synced.
    MoveTheWatermark,
    /// A seq that a lost record had is not given again.
    KeepSeqsApart,
    /// A rewritten segment is synced before it takes the place of the old one.
    SyncBeforeRenaming,
    /// A file that is used again has left the log for good before it is written to.
    SyncThatItIsGone,
    /// It has the name of a segment for good before anything in it is confirmed.
    SyncTheNewName,
}

#[derive(Debug)]
struct Broken {
    disk: Sim,
    rule: Rule,
    /// The file that was the last to get another name.
    renamed: String,
}

#[derive(Debug)]
struct BrokenFile {
    file: Box<dyn File>,
    rule: Rule,
    has_head: AtomicBool,
    rewritten: bool,
}

fn breaks(rule: Rule) -> impl Fn(Sim) -> Broken {
    move |disk| Broken { disk, rule, renamed: String::new() }
}

impl Storage for Broken {
    fn lock(&mut self) -> io::Result<Option<Box<dyn Send>>> {
        self.disk.lock()
    }

    fn list(&mut self) -> io::Result<Vec<String>> {
        self.disk.list()
    }

    fn create(&mut self, name: &str) -> io::Result<Box<dyn File>> {
        let file = self.disk.create(name)?;
        Ok(Box::new(BrokenFile {
            file,
            rule: self.rule,
            has_head: AtomicBool::new(false),
            rewritten: name.ends_with(".new"),
        }))
    }

    fn open(&mut self, name: &str) -> io::Result<Box<dyn File>> {
        self.disk.open(name)
    }

    fn reopen(&mut self, name: &str) -> io::Result<Box<dyn File>> {
        let file = self.disk.reopen(name)?;
        Ok(Box::new(BrokenFile { file, rule: self.rule, has_head: AtomicBool::new(false), rewritten: false }))
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.disk.remove(name)
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        self.renamed = from.into();
        self.disk.rename(from, to)
    }

    fn sync_directory(&mut self) -> io::Result<()> {
        let renamed = std::mem::take(&mut self.renamed);
        match self.rule {
            Rule::SyncTheDirectory => Ok(()),
            Rule::SyncThatItIsGone if renamed.ends_with(".seg") => Ok(()),
            Rule::SyncTheNewName if renamed.ends_with(".next") => Ok(()),
            _ => self.disk.sync_directory(),
        }
    }

    fn place(&self) -> PathBuf {
        self.disk.place()
    }
}

impl File for BrokenFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        self.file.read_at(buffer, at)
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<usize> {
        self.has_head.fetch_or(at == 0, Relaxed);
        let mut bytes = bytes.to_vec();
        match self.rule {
            Rule::MoveTheWatermark => freeze_watermarks(&mut bytes),
            Rule::KeepSeqsApart if at == 0 => forget_seq_limit(&mut bytes),
            _ => {}
        }
        self.file.write_at(&bytes, at)
    }

    fn sync_data(&self) -> io::Result<()> {
        match self.rule {
            Rule::SyncBeforeConfirming => Ok(()),
            Rule::SyncBeforeRenaming if self.rewritten => Ok(()),
            Rule::SyncWhatIsCopied if !self.has_head.load(Relaxed) => Ok(()),
            Rule::BelieveAFailedSync => self.file.sync_data().or_else(|_| self.file.sync_data()),
            _ => self.file.sync_data(),
        }
    }
}

/// Every frame in these bytes says that nothing was synced.
fn freeze_watermarks(bytes: &mut [u8]) {
    for at in (0..bytes.len().saturating_sub(63)).step_by(8) {
        let frame = &mut bytes[at..at + 64];
        // Messages here have no such bytes. What the salt of the segment is, the old checksum says.
        if frame[..4] == *b"RwFr" {
            let salt = u32::from_le_bytes(frame[4..8].try_into().unwrap()) ^ crc32c::crc32c(&frame[8..]);
            frame[24..32].fill(0);
            let crc = crc32c::crc32c(&frame[8..]) ^ salt;
            frame[4..8].copy_from_slice(&crc.to_le_bytes());
        }
    }
}

/// The head of the segment sets no limit to its seqs.
fn forget_seq_limit(bytes: &mut [u8]) {
    assert!(bytes.len() >= 4096 && bytes.starts_with(b"Ropewalk"));
    bytes[56..64].fill(0);
    let crc = crc32c::crc32c(&bytes[..4092]);
    bytes[4092..4096].copy_from_slice(&crc.to_le_bytes());
}

#[test]
fn confirming_before_the_sync_is_caught() {
    assert!(is_caught(0..200, |seed| life(2 * seed, breaks(Rule::SyncBeforeConfirming))));
}

#[test]
fn not_syncing_what_was_copied_is_caught() {
    assert!(is_caught(0..40, |seed| stops_while_it_recovers(seed, breaks(Rule::SyncWhatIsCopied))));
}

#[test]
fn not_syncing_the_directory_is_caught() {
    assert!(is_caught(0..200, |seed| life(2 * seed, breaks(Rule::SyncTheDirectory))));
}

#[test]
fn trying_a_failed_sync_again_is_caught() {
    assert!(is_caught(1..400, |at| faults::one_fails(at, breaks(Rule::BelieveAFailedSync))));
}

#[test]
fn a_watermark_that_stands_still_is_caught() {
    assert!(is_caught(0..200, |seed| faults::a_bit_flips(seed, breaks(Rule::MoveTheWatermark))));
}

#[test]
fn giving_a_seq_again_is_caught() {
    assert!(is_caught(0..2000, |seed| life(seed, breaks(Rule::KeepSeqsApart))));
}

#[test]
fn renaming_before_the_sync_is_caught() {
    assert!(is_caught(0..400, |seed| life(2 * seed, breaks(Rule::SyncBeforeRenaming))));
}

#[test]
fn writing_before_a_file_is_gone_for_good_is_caught() {
    assert!(is_caught(0..1000, |seed| life(2 * seed, breaks(Rule::SyncThatItIsGone))));
}

#[test]
fn confirming_before_a_new_name_is_for_good_is_caught() {
    assert!(is_caught(0..1000, |seed| life(2 * seed, breaks(Rule::SyncTheNewName))));
}
