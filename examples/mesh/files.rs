//! The directory: what is in it, what a job's content is, and whether its digest is right.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use crate::Result;

/// The most a job may hold.
const JOB: u64 = 1 << 20;

/// A regular file, and how much of it is to be hashed.
#[derive(Debug)]
pub(crate) struct Regular {
    pub(crate) path: PathBuf,
    pub(crate) bytes: u64,
}

/// A file or directory that could not be read.
#[derive(Debug)]
pub(crate) struct Unreadable {
    pub(crate) path: PathBuf,
    pub(crate) error: io::Error,
}

/// What is below a directory.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    directory: PathBuf,
    pub(crate) files: Vec<Regular>,
    pub(crate) bytes: u64,
    pub(crate) unreadable: Vec<Unreadable>,
    /// The limit was reached, and there was more.
    pub(crate) cut: bool,
}

impl Listing {
    /// A file's path below the directory, as text.
    pub(crate) fn name(&self, file: usize) -> String {
        let path = &self.files[file].path;
        path.strip_prefix(&self.directory).unwrap_or(path).to_string_lossy().into_owned()
    }
}

/// Lists the regular files below `directory` in the order of their names, as far as `limit` reaches. Symbolic links are
/// not followed; `directory` itself may be one.
pub(crate) fn list(directory: &Path, limit: u64) -> Result<Listing> {
    let mut listing = Listing { directory: directory.into(), ..Listing::default() };
    let first = entries(directory).map_err(|error| format!("{}: {error}", directory.display()))?;
    let mut stack = vec![first.into_iter()];
    while let Some(top) = stack.last_mut() {
        let Some((path, kind)) = top.next() else {
            stack.pop();
            continue;
        };
        let error = match kind {
            Ok(kind) if kind.is_dir() => match entries(&path) {
                Ok(entries) => {
                    stack.push(entries.into_iter());
                    continue;
                }
                Err(error) => error,
            },
            Ok(kind) if kind.is_file() => match fs::symlink_metadata(&path) {
                Ok(metadata) => {
                    let bytes = metadata.len().min(limit - listing.bytes);
                    listing.cut |= bytes < metadata.len();
                    if listing.cut && bytes == 0 {
                        break;
                    }
                    listing.bytes += bytes;
                    listing.files.push(Regular { path, bytes });
                    continue;
                }
                Err(error) => error,
            },
            Ok(_) => continue,
            Err(error) => error,
        };
        listing.unreadable.push(Unreadable { path, error });
    }
    Ok(listing)
}

fn entries(directory: &Path) -> io::Result<Vec<(PathBuf, io::Result<fs::FileType>)>> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        entries.push((entry.path(), entry.file_type()));
    }
    entries.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(entries)
}

/// One piece of a file, or that it has none.
#[derive(Debug)]
pub(crate) enum Piece {
    Content { file: usize, offset: u64, content: Bytes },
    Unreadable(Unreadable),
}

/// Reads all files piece by piece, no faster than the pieces are taken. An empty file is one empty piece.
pub(crate) fn read_all(files: &[Regular], pieces: &mpsc::Sender<Piece>) {
    for (file, regular) in files.iter().enumerate() {
        if let Err(error) = read_file(file, regular, pieces) {
            let unreadable = Unreadable { path: regular.path.clone(), error };
            if pieces.blocking_send(Piece::Unreadable(unreadable)).is_err() {
                return;
            }
        }
    }
}

fn read_file(file: usize, regular: &Regular, pieces: &mpsc::Sender<Piece>) -> io::Result<()> {
    let mut opened = File::open(&regular.path)?;
    let mut offset = 0;
    loop {
        let content = read_up_to(&mut opened, JOB.min(regular.bytes - offset))?;
        let bytes = content.len() as u64;
        // It may have become shorter since it was listed.
        if bytes == 0 && offset > 0 {
            return Ok(());
        }
        // Nobody takes pieces any more when the coordinator gave up.
        let _gave_up = pieces.blocking_send(Piece::Content { file, offset, content });
        offset += bytes;
        if bytes == 0 || offset == regular.bytes {
            return Ok(());
        }
    }
}

fn read_up_to(file: &mut File, bytes: u64) -> io::Result<Bytes> {
    let mut content = Vec::with_capacity(bytes as usize);
    file.take(bytes).read_to_end(&mut content)?;
    Ok(content.into())
}

/// The digest of one piece, computed here.
pub(crate) fn digest(path: &Path, offset: u64, bytes: u32) -> io::Result<[u8; 32]> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(offset))?;
    let content = read_up_to(&mut file, bytes.into())?;
    if content.len() != bytes as usize {
        return Err(io::Error::other("it has become shorter"));
    }
    Ok(Sha256::digest(&content).into())
}
