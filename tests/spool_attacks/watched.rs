//! A real directory, watched and now and then refused.

use std::{
    fs, io,
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex},
};

use ropewalk::spool::{Disk, File, Storage};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Call {
    Create(String),
    Remove(String),
    Rename(String, String),
    SyncDirectory,
    Write(String),
    /// The system was told to begin to write these bytes.
    Begin(String, Range<u64>),
    Sync(String),
    /// No call: an append came back.
    Accepted,
}

#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) calls: Vec<Call>,
    /// The thread that makes them, as Linux knows it.
    pub(crate) thread: Option<PathBuf>,
    /// Files that are open, and the most that ever were.
    open: usize,
    pub(crate) most_open: usize,
    /// The next creation, or sync of the directory, fails with this.
    pub(crate) refuses_to_create: Option<i32>,
    pub(crate) refuses_to_sync_directory: Option<i32>,
    pub(crate) refuses_to_reopen: Option<i32>,
    pub(crate) reopened: u64,
    /// Bytes that may still be written.
    pub(crate) room: Option<usize>,
    /// Syncs wait.
    pub(crate) held: bool,
}

/// The directory. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Watched {
    disk: Disk,
    seen: Arc<(Mutex<Seen>, Condvar)>,
}

impl Watched {
    pub(crate) fn new(directory: &Path) -> Self {
        Self { disk: Disk::new(directory), seen: Arc::default() }
    }

    pub(crate) fn see<T>(&self, see: impl FnOnce(&mut Seen) -> T) -> T {
        let result = see(&mut self.seen.0.lock().unwrap());
        self.seen.1.notify_all();
        result
    }

    fn file(&self, name: &str, file: Box<dyn File>) -> Box<dyn File> {
        self.see(|seen| {
            seen.open += 1;
            seen.most_open = seen.most_open.max(seen.open);
        });
        Box::new(WatchedFile { file, name: name.into(), watched: self.clone() })
    }
}

fn refuse(error: &mut Option<i32>) -> io::Result<()> {
    error.take().map_or(Ok(()), |error| Err(io::Error::from_raw_os_error(error)))
}

impl Storage for Watched {
    fn lock(&mut self) -> io::Result<Option<Box<dyn Send>>> {
        self.disk.lock()
    }

    fn list(&mut self) -> io::Result<Vec<String>> {
        self.disk.list()
    }

    fn create(&mut self, name: &str) -> io::Result<Box<dyn File>> {
        self.see(|seen| refuse(&mut seen.refuses_to_create))?;
        let file = self.disk.create(name)?;
        let thread = fs::read_link("/proc/thread-self").map(|thread| Path::new("/proc").join(thread));
        self.see(|seen| {
            seen.calls.push(Call::Create(name.into()));
            seen.thread = thread.ok();
        });
        Ok(self.file(name, file))
    }

    fn open(&mut self, name: &str) -> io::Result<Box<dyn File>> {
        let file = self.disk.open(name)?;
        Ok(self.file(name, file))
    }

    fn reopen(&mut self, name: &str) -> io::Result<Box<dyn File>> {
        self.see(|seen| refuse(&mut seen.refuses_to_reopen))?;
        let file = self.disk.reopen(name)?;
        self.see(|seen| seen.reopened += 1);
        Ok(self.file(name, file))
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.see(|seen| seen.calls.push(Call::Remove(name.into())));
        self.disk.remove(name)
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        self.see(|seen| seen.calls.push(Call::Rename(from.into(), to.into())));
        self.disk.rename(from, to)
    }

    fn sync_directory(&mut self) -> io::Result<()> {
        self.see(|seen| refuse(&mut seen.refuses_to_sync_directory))?;
        self.disk.sync_directory()?;
        self.see(|seen| seen.calls.push(Call::SyncDirectory));
        Ok(())
    }

    fn place(&self) -> PathBuf {
        self.disk.place()
    }
}

#[derive(Debug)]
struct WatchedFile {
    file: Box<dyn File>,
    name: String,
    watched: Watched,
}

impl File for WatchedFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        self.file.read_at(buffer, at)
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<usize> {
        let len = self.watched.see(|seen| {
            seen.calls.push(Call::Write(self.name.clone()));
            let len = seen.room.map_or(bytes.len(), |room| room.min(bytes.len()));
            seen.room = seen.room.map(|room| room - len);
            len
        });
        if len == 0 { Err(io::ErrorKind::StorageFull.into()) } else { self.file.write_at(&bytes[..len], at) }
    }

    fn begin_writeback(&self, bytes: Range<u64>) {
        assert!(bytes.end <= self.file.len().unwrap(), "{bytes:?} is not written yet");
        self.file.begin_writeback(bytes.clone());
        self.watched.see(|seen| seen.calls.push(Call::Begin(self.name.clone(), bytes)));
    }

    fn sync_data(&self) -> io::Result<()> {
        let (seen, told) = &*self.watched.seen;
        drop(told.wait_while(seen.lock().unwrap(), |seen| seen.held).unwrap());
        self.file.sync_data()?;
        self.watched.see(|seen| seen.calls.push(Call::Sync(self.name.clone())));
        Ok(())
    }
}

impl Drop for WatchedFile {
    fn drop(&mut self) {
        self.watched.see(|seen| seen.open -= 1);
    }
}
