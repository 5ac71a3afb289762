//! What the spool asks of a disk: everything it reads and writes goes through here.

use std::{fmt, fs, io, ops::Range, path::PathBuf};

#[cfg(target_os = "linux")]
use std::num::NonZeroU64;

#[cfg(target_os = "linux")]
use rustix::fs::{Advice, fadvise};

/// A directory of files, as the spool needs it. [`Disk`] is the real one; tests bring one that tears, loses and fails.
///
/// All calls come from one thread, the spool's own.
pub trait Storage: Send + fmt::Debug {
    /// Takes the directory for its only owner, or gives `None` when another has it. It is free again when what was
    /// given is dropped, or the process ends.
    ///
    /// # Errors
    /// When the directory cannot be made or locked at all.
    fn lock(&mut self) -> io::Result<Option<Box<dyn Send>>>;

    /// The names of all files.
    ///
    /// # Errors
    /// As the system says.
    fn list(&mut self) -> io::Result<Vec<String>>;

    /// Makes a new, empty file to read and write.
    ///
    /// # Errors
    /// When it is there already, or as the system says.
    fn create(&mut self, name: &str) -> io::Result<Box<dyn File>>;

    /// Opens a file to read.
    ///
    /// # Errors
    /// As the system says.
    fn open(&mut self, name: &str) -> io::Result<Box<dyn File>>;

    /// Opens a file to read, and to write over what is in it.
    ///
    /// # Errors
    /// As the system says.
    fn reopen(&mut self, name: &str) -> io::Result<Box<dyn File>>;

    /// Removes a file.
    ///
    /// # Errors
    /// As the system says.
    fn remove(&mut self, name: &str) -> io::Result<()>;

    /// Gives a file another name, in place of the file that has it: at every moment the name is that of the one or the
    /// other.
    ///
    /// # Errors
    /// As the system says.
    fn rename(&mut self, from: &str, to: &str) -> io::Result<()>;

    /// Returns when what was created, renamed and removed until now will survive a power cut.
    ///
    /// # Errors
    /// As the system says. What was not synced is in doubt.
    fn sync_directory(&mut self) -> io::Result<()>;

    /// Where it is, for messages to people.
    fn place(&self) -> PathBuf;
}

/// One file of a [`Storage`].
pub trait File: Send + fmt::Debug {
    /// Its length in bytes.
    ///
    /// # Errors
    /// As the system says.
    fn len(&self) -> io::Result<u64>;

    /// Whether it has no bytes.
    ///
    /// # Errors
    /// As the system says.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Reads what stands at this place; fewer bytes than asked for are no error, none at all are the end.
    ///
    /// # Errors
    /// As the system says.
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize>;

    /// Writes to this place, perhaps fewer bytes than given.
    ///
    /// # Errors
    /// As the system says. What stands there then is in doubt.
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<usize>;

    /// The system may begin to bring what stands there to the disk, so that [`sync_data`](Self::sync_data) finds less to do. A
    /// hint: it promises nothing, and need do nothing.
    fn begin_writeback(&self, _bytes: Range<u64>) {}

    /// Returns when the bytes and the length will survive a power cut.
    ///
    /// # Errors
    /// As the system says. The bytes are in doubt then, for good: another call that succeeds proves nothing.
    fn sync_data(&self) -> io::Result<()>;
}

/// A directory of the file system.
#[derive(Debug, Clone)]
pub struct Disk {
    directory: PathBuf,
}

impl Disk {
    /// The directory at this path; it is made when it is not there.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into() }
    }
}

impl Storage for Disk {
    fn lock(&mut self) -> io::Result<Option<Box<dyn Send>>> {
        if !self.directory.is_dir() {
            if self.directory.exists() {
                return Err(io::Error::new(
                    io::ErrorKind::NotADirectory,
                    "there is a file of that name, and no directory",
                ));
            }
            let is_new = |path: &&std::path::Path| !path.as_os_str().is_empty() && !path.is_dir();
            let new: Vec<_> = self.directory.ancestors().take_while(is_new).collect();
            fs::create_dir_all(&self.directory)?;
            // The entry of the directory itself must survive, too, and of each above it that was made for it.
            for parent in new.iter().filter_map(|path| path.parent()) {
                sync_entries(if parent.as_os_str().is_empty() { ".".as_ref() } else { parent })?;
            }
        }
        let file = fs::File::options().create(true).truncate(false).write(true).open(self.directory.join("LOCK"))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Box::new(file))),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(error)) => Err(error),
        }
    }

    fn list(&mut self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            // A name that is no UTF-8 is none of ours.
            names.extend(entry?.file_name().into_string());
        }
        Ok(names)
    }

    fn create(&mut self, name: &str) -> io::Result<Box<dyn File>> {
        let path = self.directory.join(name);
        Ok(Box::new(fs::File::options().read(true).write(true).create_new(true).open(path)?))
    }

    fn open(&mut self, name: &str) -> io::Result<Box<dyn File>> {
        Ok(Box::new(fs::File::open(self.directory.join(name))?))
    }

    fn reopen(&mut self, name: &str) -> io::Result<Box<dyn File>> {
        Ok(Box::new(fs::File::options().read(true).write(true).open(self.directory.join(name))?))
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        fs::remove_file(self.directory.join(name))
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.directory.join(from), self.directory.join(to))
    }

    fn sync_directory(&mut self) -> io::Result<()> {
        sync_entries(&self.directory)
    }

    fn place(&self) -> PathBuf {
        self.directory.clone()
    }
}

#[cfg(unix)]
fn sync_entries(directory: &std::path::Path) -> io::Result<()> {
    fs::File::open(directory)?.sync_all()
}

/// Elsewhere a directory cannot be synced; its entries are kept by the file system's own journal.
#[cfg(not(unix))]
fn sync_entries(_directory: &std::path::Path) -> io::Result<()> {
    Ok(())
}

impl File for fs::File {
    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    #[cfg(unix)]
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        std::os::unix::fs::FileExt::read_at(self, buffer, at)
    }

    #[cfg(windows)]
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        std::os::windows::fs::FileExt::seek_read(self, buffer, at)
    }

    #[cfg(unix)]
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<usize> {
        std::os::unix::fs::FileExt::write_at(self, bytes, at)
    }

    #[cfg(windows)]
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<usize> {
        std::os::windows::fs::FileExt::seek_write(self, bytes, at)
    }

    /// "Not needed any more" begins to write what is not written, and returns; only what was written before is let go of.
    #[cfg(target_os = "linux")]
    fn begin_writeback(&self, bytes: Range<u64>) {
        if let Some(len) = NonZeroU64::new(bytes.end.saturating_sub(bytes.start)) {
            // If the system cannot, the sync does it all.
            let _not_begun = fadvise(self, bytes.start, Some(len), Advice::DontNeed);
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        fs::File::sync_data(self)
    }
}

/// Writes all of it. After an error what stands there is in doubt, but the same call may be made again.
pub(super) fn write_all(file: &dyn File, mut bytes: &[u8], mut at: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.write_at(bytes, at) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                at += written as u64;
                bytes = bytes.get(written..).unwrap_or_default();
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Reads up to `wanted` bytes, fewer only at the end of the file.
pub(super) fn read_up_to(file: &dyn File, wanted: usize, at: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; wanted];
    let mut filled = 0;
    while let Some(room) = bytes.get_mut(filled..).filter(|room| !room.is_empty()) {
        match file.read_at(room, at + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

/// Whether the same may succeed in a moment: the disk has no room, or the system has no more files or memory to give.
pub(super) fn passes(error: &io::Error) -> bool {
    // EMFILE, ENFILE, EAGAIN; elsewhere "too many open files".
    let codes: &[i32] = if cfg!(unix) { &[24, 23, 11] } else { &[4] };
    let of_files = error.raw_os_error().is_some_and(|code| codes.contains(&code));
    is_full(error) || of_files || error.kind() == io::ErrorKind::OutOfMemory
}

/// Whether the disk has no room.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
