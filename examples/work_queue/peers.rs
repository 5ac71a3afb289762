//! Who the processes are. A process that is killed and started again is still the same peer, so its key is in a file that
//! only it reads. What the others may know is the public half: the names of all are in one file.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use ropewalk::{PeerId, SecretKey};

use crate::Result;

/// A process that was killed is missed after a second: over quic nothing else tells.
pub(crate) const HEARTBEAT: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(1));

/// Makes a key for each of them, and says who they are.
pub(crate) fn make(directory: &Path, names: &[String]) -> Result<()> {
    let mut peers = String::new();
    for name in names {
        let key = SecretKey::generate();
        key.save(directory.join(format!("{name}.key")))?;
        peers += &format!("{name} {}\n", key.id());
    }
    Ok(fs::write(directory.join("peers"), peers)?)
}

/// The key of this process.
pub(crate) fn key(directory: &Path, name: &str) -> Result<SecretKey> {
    Ok(SecretKey::load(directory.join(format!("{name}.key")))?)
}

/// All of them.
pub(crate) fn ids(directory: &Path) -> Result<BTreeMap<String, PeerId>> {
    let peers = fs::read_to_string(directory.join("peers"))?;
    let line = |line: &str| {
        let (name, id) = line.split_once(' ').ok_or("a line of a name and a peer id")?;
        Ok((name.to_owned(), id.parse()?))
    };
    peers.lines().map(line).collect()
}
