//! Whose a directory is: what one kind of socket has written there another would take for its own.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use ropewalk_patterns::Role;

use crate::spool::OpenError;

/// The file that says it: the role of the socket, in a line.
const FILE: &str = "ROLE";

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
    let said = match fs::read(directory.join(FILE)) {
        Ok(said) => said,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(false);
        }
        Err(error) => return Err(refused(directory, error)),
    };
    let said = String::from_utf8_lossy(said.get(..64).unwrap_or(&said)).trim().to_owned();
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
