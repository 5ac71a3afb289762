//! A directory that counts what is done with it.

use std::{
    io,
    ops::Range,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use ropewalk::spool::{Disk, File, Storage};

#[derive(Debug, Default)]
struct Numbers {
    syncs: AtomicU64,
    bytes: AtomicU64,
}

/// What was done until now.
#[derive(Debug, Clone, Default)]
pub(crate) struct Counts(Arc<Numbers>);

impl Counts {
    pub(crate) fn syncs(&self) -> u64 {
        self.0.syncs.load(Relaxed)
    }

    /// Bytes written to the log. Zeros that are written for others to take their place are not.
    pub(crate) fn bytes(&self) -> u64 {
        self.0.bytes.load(Relaxed)
    }
}

#[derive(Debug)]
pub(crate) struct Counted {
    disk: Disk,
    counts: Counts,
}

impl Counted {
    pub(crate) fn new(directory: PathBuf) -> (Self, Counts) {
        let counts = Counts::default();
        (Self { disk: Disk::new(directory), counts: counts.clone() }, counts)
    }

    fn counted(&self, file: Box<dyn File>) -> Box<dyn File> {
        Box::new(CountedFile { file, counts: self.counts.clone() })
    }
}

impl Storage for Counted {
    fn lock(&mut self) -> io::Result<Option<Box<dyn Send>>> {
        self.disk.lock()
    }

    fn list(&mut self) -> io::Result<Vec<String>> {
        self.disk.list()
    }

    fn create(&mut self, name: &str) -> io::Result<Box<dyn File>> {
        self.disk.create(name).map(|file| self.counted(file))
    }

    fn open(&mut self, name: &str) -> io::Result<Box<dyn File>> {
        self.disk.open(name).map(|file| self.counted(file))
    }

    fn reopen(&mut self, name: &str) -> io::Result<Box<dyn File>> {
        self.disk.reopen(name).map(|file| self.counted(file))
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.disk.remove(name)
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        self.disk.rename(from, to)
    }

    fn sync_directory(&mut self) -> io::Result<()> {
        self.disk.sync_directory()
    }

    fn place(&self) -> PathBuf {
        self.disk.place()
    }
}

#[derive(Debug)]
struct CountedFile {
    file: Box<dyn File>,
    counts: Counts,
}

impl File for CountedFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        self.file.read_at(buffer, at)
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<usize> {
        let written = self.file.write_at(bytes, at)?;
        if bytes.iter().any(|byte| *byte != 0) {
            self.counts.0.bytes.fetch_add(written as u64, Relaxed);
        }
        Ok(written)
    }

    fn begin_writeback(&self, bytes: Range<u64>) {
        self.file.begin_writeback(bytes);
    }

    fn sync_data(&self) -> io::Result<()> {
        self.counts.0.syncs.fetch_add(1, Relaxed);
        self.file.sync_data()
    }
}
