//! `ipc://path`: a Unix domain socket that only its user may connect to.

use std::{
    fs, io,
    os::{
        fd::OwnedFd,
        unix::{
            fs::{FileTypeExt, MetadataExt, PermissionsExt},
            net::{UnixListener as StdListener, UnixStream as StdStream},
        },
    },
    path::{Path, PathBuf},
};

use socket2::{Domain, SockAddr, SockRef, Socket, Type};
use tokio::net::{
    UnixListener, UnixStream,
    unix::{OwnedReadHalf, OwnedWriteHalf},
};

use super::{
    Address, Bound, Boxed, Connected, Connection, Listener, Transport,
    socket::{AsSocket, Kind, halves},
};
use crate::{
    error::{AddressError, BindError},
    options::Options,
};

pub(crate) struct Ipc;

impl Transport for Ipc {
    fn check(&self, address: &Address, _: bool, _: &Options) -> Result<(), AddressError> {
        match address.rest() {
            "" => Err(address.malformed("the path is missing")),
            "*" => Err(address.malformed("there is no wildcard; name a path")),
            rest if rest.starts_with('@') => {
                Err(address.malformed("abstract sockets are open to every user of the machine; name a path"))
            }
            rest if SockAddr::unix(rest).is_err() => Err(address.malformed("the path is too long for a socket")),
            _ => Ok(()),
        }
    }

    fn bind<'a>(&'a self, address: &'a Address, options: &'a Options) -> Boxed<'a, Result<Bound, BindError>> {
        Box::pin(async move {
            let listener = listen(Path::new(address.rest()), options).map_err(|error| address.bind_error(error))?;
            Ok(Bound { address: address.clone(), listener: Box::new(listener) })
        })
    }

    fn dial<'a>(&'a self, address: &'a Address, _: &'a Options, _: usize) -> Boxed<'a, io::Result<Connected>> {
        Box::pin(async move { Ok(connected(UnixStream::connect(address.rest()).await?, address.rest())) })
    }
}

fn listen(path: &Path, options: &Options) -> io::Result<Accepting> {
    clear(path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SockAddr::unix(path)?)?;
    let metadata = fs::symlink_metadata(path)?;
    let accepting = |listener| Accepting { listener, path: path.into(), file: (metadata.dev(), metadata.ino()) };
    // Until it listens nobody can connect, so the mode is right before anyone can.
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    socket.listen(i32::try_from(options.listen_backlog).unwrap_or(i32::MAX))?;
    UnixListener::from_std(StdListener::from(OwnedFd::from(socket))).map(accepting)
}

/// Removes a socket file that nobody listens on any more.
fn clear(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            Err(io::Error::new(io::ErrorKind::AlreadyExists, "the file is there and is not a socket"))
        }
        Ok(_) => match is_refused(path) {
            Ok(true) => fs::remove_file(path),
            // Also where it cannot be told: somebody may listen who has no time just now.
            Ok(false) | Err(_) => Err(io::ErrorKind::AddrInUse.into()),
        },
    }
}

/// Whether nobody listens there. It does not wait.
fn is_refused(path: &Path) -> io::Result<bool> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    Ok(matches!(socket.connect(&SockAddr::unix(path)?), Err(error) if error.kind() == io::ErrorKind::ConnectionRefused))
}

impl Kind for Ipc {
    type Read = OwnedReadHalf;
    type Write = OwnedWriteHalf;

    fn driven(socket: Socket) -> io::Result<(OwnedReadHalf, OwnedWriteHalf)> {
        UnixStream::from_std(StdStream::from(OwnedFd::from(socket))).map(UnixStream::into_split)
    }

    fn bare(read: OwnedReadHalf, write: OwnedWriteHalf) -> io::Result<Socket> {
        let whole = read.reunite(write).map_err(io::Error::other)?;
        whole.into_std().map(|stream| Socket::from(OwnedFd::from(stream)))
    }
}

impl AsSocket for OwnedReadHalf {
    fn socket(&self) -> SockRef<'_> {
        SockRef::from(self.as_ref())
    }
}

fn connected(stream: UnixStream, path: &str) -> Connected {
    let (read, write) = stream.into_split();
    let (read, write) = halves::<Ipc>(read, write);
    Connected { opening: Connection::stream(read, write).open(), address: format!("ipc://{path}"), from: None }
}

struct Accepting {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode: the path may be somebody else's by the time we leave.
    file: (u64, u64),
}

impl Listener for Accepting {
    fn accept<'a>(&'a mut self, _: &'a Options) -> Boxed<'a, io::Result<Connected>> {
        Box::pin(async move {
            let (stream, _) = self.listener.accept().await?;
            Ok(connected(stream, &self.path.to_string_lossy()))
        })
    }
}

impl Drop for Accepting {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|now| (now.dev(), now.ino()) == self.file)
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the socket file");
        }
    }
}
