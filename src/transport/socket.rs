//! Both halves of a stream socket of the kernel, which tell the runtime's driver only while somebody sleeps.
//!
//! Whoever looks at the socket itself needs no driver. Were the socket known to it meanwhile, then on a runtime of several
//! threads each byte would wake the one that waits for events, for nothing, and often on the processor of who looks.

use std::{
    io::{self, IoSlice, Read as _, Write as _},
    net::Shutdown,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError},
    task::{Context, Poll, ready},
};

use socket2::{SockRef, Socket};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    runtime::Handle,
    task::coop::poll_proceed,
};

use super::ReadHalf;

/// A sort of socket, as the runtime knows it.
pub(super) trait Kind: Send + Sync + 'static {
    type Read: AsyncRead + AsSocket + Send + Sync + Unpin;
    type Write: AsyncWrite + Send + Sync + Unpin;

    /// Tells the driver.
    fn driven(socket: Socket) -> io::Result<(Self::Read, Self::Write)>;

    /// Tells it that it is over.
    fn bare(read: Self::Read, write: Self::Write) -> io::Result<Socket>;
}

pub(super) trait AsSocket {
    fn socket(&self) -> SockRef<'_>;
}

/// The half that is read.
pub(super) struct Reads<K: Kind> {
    /// Unless the socket is bare, or its half is still to be fetched.
    driven: Option<K::Read>,
    shared: Arc<Shared<K>>,
}

/// The half that is written.
pub(super) struct Writes<K: Kind>(Arc<Shared<K>>);

struct Shared<K: Kind> {
    /// The runtime that the socket belongs to, whoever reads it.
    runtime: Handle,
    /// Held while the writer writes, and by who reads only if it is free.
    held: Mutex<Held<K>>,
}

enum Held<K: Kind> {
    /// The driver does not know of it, and nobody sleeps.
    Bare(Socket),
    Driven {
        /// None once there is nobody who writes.
        write: Option<K::Write>,
        /// It waits until the socket takes more.
        waits: bool,
        /// For who reads.
        read: Option<K::Read>,
    },
    /// It could not be told.
    Failed,
}

/// Both halves of a connected socket.
pub(super) fn halves<K: Kind>(read: K::Read, write: K::Write) -> (Reads<K>, Writes<K>) {
    let held = Held::Driven { write: Some(write), waits: false, read: None };
    let shared = Arc::new(Shared { runtime: Handle::current(), held: Mutex::new(held) });
    (Reads { driven: Some(read), shared: Arc::clone(&shared) }, Writes(shared))
}

impl<K: Kind> Shared<K> {
    fn lock(&self) -> MutexGuard<'_, Held<K>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nobody waits here: the writer may be in the midst of a call.
    fn try_lock(&self) -> Option<MutexGuard<'_, Held<K>>> {
        match self.held.try_lock() {
            Ok(held) => Some(held),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

impl<K: Kind> Held<K> {
    /// Tells the driver of a bare socket.
    fn drive(&mut self, runtime: &Handle) -> io::Result<()> {
        match std::mem::replace(self, Self::Failed) {
            Self::Bare(socket) => {
                let _of_the_runtime = runtime.enter();
                let (read, write) = K::driven(socket)?;
                *self = Self::Driven { write: Some(write), waits: false, read: Some(read) };
            }
            other => *self = other,
        }
        Ok(())
    }

    /// Unless somebody waits to write, the driver hears no more of the socket. The half that is read comes and goes.
    fn strip(&mut self, driven: &mut Option<K::Read>) -> io::Result<()> {
        match (&mut *self, driven.take()) {
            (Self::Driven { write: Some(_), waits: false, .. }, Some(read)) => {
                if let Self::Driven { write: Some(write), .. } = std::mem::replace(self, Self::Failed) {
                    *self = Self::Bare(K::bare(read, write)?);
                }
            }
            (Self::Driven { read, .. }, None) => *driven = read.take(),
            (_, read) => *driven = read,
        }
        Ok(())
    }
}

impl<K: Kind> Reads<K> {
    /// The half that the driver wakes. None if the writer is in the midst of a call.
    fn drive(&mut self) -> Option<io::Result<&mut K::Read>> {
        if self.driven.is_none() {
            let mut held = self.shared.try_lock()?;
            if let Err(error) = held.drive(&self.shared.runtime) {
                return Some(Err(error));
            }
            if let Held::Driven { read, .. } = &mut *held {
                self.driven = read.take();
            }
        }
        Some(self.driven.as_mut().ok_or_else(|| io::ErrorKind::NotConnected.into()))
    }
}

impl<K: Kind> ReadHalf for Reads<K> {
    fn is_plain(&self) -> bool {
        true
    }

    fn look(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut held = self.shared.try_lock();
        if let Some(held) = &mut held {
            held.strip(&mut self.driven)?;
        }
        match (held.as_deref(), &self.driven) {
            (Some(Held::Bare(socket)), _) => (&*socket).read(buffer),
            (_, Some(driven)) => (&*driven.socket()).read(buffer),
            (Some(_), None) => Err(io::ErrorKind::NotConnected.into()),
            (None, None) => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

impl<K: Kind> AsyncRead for Reads<K> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.drive() {
            Some(driven) => Pin::new(driven?).poll_read(cx, buf),
            None => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
        }
    }
}

impl<K: Kind> Writes<K> {
    /// Calls the first where the socket is bare, and the other where the driver wakes who waits.
    fn poll<T>(
        &self,
        cx: &mut Context<'_>,
        bare: impl FnOnce(&Socket) -> io::Result<T>,
        driven: impl FnOnce(Pin<&mut K::Write>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let mut held = self.0.lock();
        if let Held::Bare(socket) = &*held {
            let turn = ready!(poll_proceed(cx));
            match bare(socket) {
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                done => {
                    turn.made_progress();
                    return Poll::Ready(done);
                }
            }
            drop(turn);
            held.drive(&self.0.runtime)?;
        }
        let Held::Driven { write: Some(write), waits, .. } = &mut *held else {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        };
        let polled = driven(Pin::new(write), cx);
        *waits = polled.is_pending();
        polled
    }
}

impl<K: Kind> AsyncWrite for Writes<K> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll(cx, |mut socket| socket.write(bytes), |write, cx| write.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll(cx, |mut socket| socket.write_vectored(slices), |write, cx| write.poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The kernel has what was written.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let bare = |socket: &Socket| match socket.shutdown(Shutdown::Write) {
            // The peer was faster; what it sent is still to be read.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
            done => done,
        };
        self.poll(cx, bare, K::Write::poll_shutdown)
    }
}

impl<K: Kind> Drop for Writes<K> {
    /// The peer hears the end, also while somebody reads.
    fn drop(&mut self) {
        match &mut *self.0.lock() {
            // What fails here is gone already.
            Held::Bare(socket) => drop(socket.shutdown(Shutdown::Write)),
            Held::Driven { write, .. } => *write = None,
            Held::Failed => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        time::timeout,
    };

    use super::*;
    use crate::transport::{Read, Write};

    type Ends = ((Read, Write), (Read, Write));

    fn boxed<K: Kind>(read: K::Read, write: K::Write) -> (Read, Write) {
        let (read, write) = halves::<K>(read, write);
        (Box::new(read), Box::new(write))
    }

    /// Two connected sockets of each sort.
    async fn pairs() -> Vec<Ends> {
        let mut pairs: Vec<Ends> = Vec::new();
        #[cfg(feature = "tcp")]
        {
            use crate::transport::tcp::Tcp;
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let dialled = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let (here, there) = (dialled.into_split(), listener.accept().await.unwrap().0.into_split());
            pairs.push((boxed::<Tcp>(here.0, here.1), boxed::<Tcp>(there.0, there.1)));
        }
        #[cfg(all(feature = "ipc", unix))]
        {
            use crate::transport::ipc::Ipc;
            let (here, there) = tokio::net::UnixStream::pair().unwrap();
            let (here, there) = (here.into_split(), there.into_split());
            pairs.push((boxed::<Ipc>(here.0, here.1), boxed::<Ipc>(there.0, there.1)));
        }
        pairs
    }

    async fn soon<T>(done: impl Future<Output = T>) -> T {
        timeout(Duration::from_secs(20), done).await.expect("it hangs")
    }

    fn looks_in_vain(read: &mut Read) {
        let found = read.look(&mut [0; 8]).map_err(|error| error.kind());
        assert_eq!(found, Err(io::ErrorKind::WouldBlock));
    }

    #[tokio::test]
    async fn who_has_looked_and_sleeps_is_woken() {
        for ((mut read, _write), (_read, mut write)) in pairs().await {
            for round in 0..100 {
                looks_in_vain(&mut read);
                // Before it sleeps, and while it does.
                if round % 2 == 0 {
                    write.write_all(b"come").await.unwrap();
                }
                let mut bytes = [0; 4];
                let (came, ()) = soon(async {
                    tokio::join!(biased; read.read_exact(&mut bytes), async {
                        if round % 2 == 1 {
                            write.write_all(b"come").await.unwrap();
                        }
                    })
                })
                .await;
                assert_eq!(came.unwrap(), 4);
                assert_eq!(&bytes, b"come");
            }
        }
    }

    #[tokio::test]
    async fn what_came_is_found_by_who_looks() {
        for ((mut read, _write), (_read, mut write)) in pairs().await {
            for _ in 0..100 {
                looks_in_vain(&mut read);
                write.write_all(b"come").await.unwrap();
                let mut bytes = [0; 8];
                // The kernel has it at once, or nearly so.
                let came = loop {
                    match read.look(&mut bytes) {
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => tokio::task::yield_now().await,
                        came => break came.unwrap(),
                    }
                };
                assert_eq!(bytes.get(..came), Some(&b"come"[..]));
            }
        }
    }

    #[tokio::test]
    async fn a_writer_that_waits_is_woken_whoever_looks() {
        for ((mut read, mut write), (mut other, _write)) in pairs().await {
            const BYTES: usize = 32 << 20;
            looks_in_vain(&mut read);
            let writes = async {
                let bytes = vec![7; BYTES];
                write.write_all(&bytes).await.unwrap();
            };
            let reads = async {
                let mut bytes = vec![0; 1 << 20];
                let mut left = BYTES;
                while left > 0 {
                    looks_in_vain(&mut read);
                    left -= other.read(&mut bytes).await.unwrap();
                }
            };
            // The writer goes first, as far as it can.
            soon(async { tokio::join!(biased; writes, reads) }).await;
        }
    }

    #[tokio::test]
    async fn the_peer_hears_the_end_while_we_still_read() {
        for bare in [false, true] {
            for ((mut read, write), (mut other, mut answer)) in pairs().await {
                if bare {
                    looks_in_vain(&mut read);
                }
                drop(write);
                assert_eq!(soon(other.read(&mut [0; 1])).await.unwrap(), 0);
                answer.write_all(b"!").await.unwrap();
                assert_eq!(soon(read.read(&mut [0; 1])).await.unwrap(), 1);
            }
            for ((mut read, mut write), (mut other, _)) in pairs().await {
                if bare {
                    looks_in_vain(&mut read);
                }
                write.shutdown().await.unwrap();
                assert_eq!(soon(other.read(&mut [0; 1])).await.unwrap(), 0);
            }
        }
    }

    #[tokio::test]
    async fn somebody_outside_the_runtime_may_sleep() {
        for ((mut read, _write), (_read, mut write)) in pairs().await {
            looks_in_vain(&mut read);
            let reader = tokio::task::spawn_blocking(|| {
                std::thread::spawn(move || futures::executor::block_on(read.read_u8())).join().unwrap()
            });
            write.write_u8(7).await.unwrap();
            assert_eq!(soon(reader).await.unwrap().unwrap(), 7);
        }
    }
}
