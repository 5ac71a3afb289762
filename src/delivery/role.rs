//! Whose a directory is: what one kind of socket has written there another would take for its own.

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use ropewalk_patterns::Role;

use crate::spool::OpenError;

/// The file that says it: the role of the socket, in a line.
const FILE: &str = "ROLE";
/// No role is longer.
const LONGEST: u64 = 64;

/// Whether a socket of this role may have this directory. Nothing is changed.
///
/// # Errors
/// When it is that of another, or the system refuses.
pub(crate) async fn may_have(directory: PathBuf, role: Role) -> Result<(), OpenError> {
    apart(directory, move |directory| check(directory, &role).map(drop)).await
}

/// Writes down whose it is, once it is open.
///
/// # Errors
/// As of [`may_have`].
pub(crate) async fn take(directory: PathBuf, role: Role) -> Result<(), OpenError> {
    apart(directory, move |directory| {
        if check(directory, &role)? {
            return Ok(());
        }
        // At every moment there is a whole one or none. What a power cut takes of it is written again.
        let new = directory.join("ROLE.new");
        let written = fs::write(&new, format!("{role}\n")).and_then(|()| fs::rename(&new, directory.join(FILE)));
        written.map_err(|error| refused(directory, error))
    })
    .await
}

/// Whether it says so already.
fn check(directory: &Path, role: &Role) -> Result<bool, OpenError> {
    let mut said = Vec::new();
    match fs::File::open(directory.join(FILE)).and_then(|file| file.take(LONGEST).read_to_end(&mut said)) {
        Ok(_) => {}
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(false);
        }
        Err(error) => return Err(refused(directory, error)),
    }
    let said = String::from_utf8_lossy(&said).trim().to_owned();
    match said.is_empty() || said == role.to_string() {
        true => Ok(!said.is_empty()),
        false => Err(OpenError::OtherRole { directory: directory.into(), has: said, wants: role.to_string() }),
    }
}

fn refused(directory: &Path, error: io::Error) -> OpenError {
    OpenError::Io { directory: directory.into(), error }
}

/// Does what may wait for the disk where that is in nobody's way.
async fn apart(
    directory: PathBuf,
    does: impl FnOnce(&Path) -> Result<(), OpenError> + Send + 'static,
) -> Result<(), OpenError> {
    let place = directory.clone();
    let done = tokio::task::spawn_blocking(move || does(&directory)).await;
    done.unwrap_or_else(|error| Err(refused(&place, io::Error::other(error))))
}
