//! The raw loop: a file, one thread, and the system calls.

use std::{
    fs, io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// A file to write to in a loop.
pub(crate) struct Raw {
    file: fs::File,
    path: PathBuf,
    /// All of it has been written before: writing it again changes nothing but the bytes.
    len: u64,
    at: u64,
}

impl Raw {
    pub(crate) fn new(path: PathBuf) -> Self {
        let len = 64 << 20;
        let file = fs::File::options().read(true).write(true).create_new(true).open(&path).expect("a file");
        let zeros = vec![0; 1 << 20];
        for at in (0..len).step_by(zeros.len()) {
            file.write_all_at(&zeros, at).expect("room");
        }
        file.sync_all().expect("synced");
        Self { file, path, len, at: 0 }
    }

    /// Writes and syncs once. How long it took.
    pub(crate) fn sync(&mut self, bytes: &[u8]) -> Duration {
        if self.at + bytes.len() as u64 > self.len {
            self.at = 0;
        }
        let began = Instant::now();
        self.file.write_all_at(bytes, self.at).and_then(|()| self.file.sync_data()).expect("synced");
        self.at += bytes.len() as u64;
        began.elapsed()
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _gone = fs::remove_file(&self.path);
    }
}

/// A file that grows with each write, as a log does.
pub(crate) struct Growing {
    file: fs::File,
    path: PathBuf,
    at: u64,
}

impl Growing {
    pub(crate) fn new(path: PathBuf) -> Self {
        let file = fs::File::options().write(true).create_new(true).open(&path).expect("a file");
        Self { file, path, at: 0 }
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) {
        self.file.write_all_at(bytes, self.at).expect("room");
        self.at += bytes.len() as u64;
    }

    pub(crate) fn sync(&mut self, bytes: &[u8]) -> Duration {
        let began = Instant::now();
        self.write(bytes);
        self.file.sync_data().expect("synced");
        began.elapsed()
    }

    /// Has the disk take it, so that what comes next is not slowed down by it.
    pub(crate) fn settle(&self) {
        self.file.sync_data().expect("synced");
    }
}

impl Drop for Growing {
    fn drop(&mut self) {
        let _gone = fs::remove_file(&self.path);
    }
}

/// The files of a spool, in their order.
pub(crate) fn segments(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "seg") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// Reads these from their beginning to their end. How many bytes, and how long it took.
pub(crate) fn read(paths: &[PathBuf]) -> io::Result<(u64, Duration)> {
    let (mut buffer, mut total, began) = (vec![0; 256 << 10], 0, Instant::now());
    for path in paths {
        let (file, mut at) = (fs::File::open(path)?, 0);
        loop {
            let read = file.read_at(&mut buffer, at)?;
            if read == 0 {
                break;
            }
            at += read as u64;
        }
        total += at;
    }
    Ok((total, began.elapsed()))
}
