//! Bare sockets: what a program would write that has only tokio. Frames are a length of 4 bytes and a body.

use std::io;

#[cfg(unix)]
use tokio::net::{UnixListener, UnixStream};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::{
    Job, Transport,
    meter::{Meter, Sequence},
};
use crate::failure::Failure;

/// How much is written and read at once.
const BLOCK: usize = 64 << 10;

/// A connection.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}
type Boxed = Box<dyn Stream>;

/// Where the far end connects.
pub(super) enum Listener {
    Tcp(TcpListener),
    #[cfg(unix)]
    Unix(UnixListener),
}

impl Listener {
    /// Listens; also says where.
    pub(super) async fn bind(job: &Job, path: &str) -> io::Result<(Self, String)> {
        #[cfg(unix)]
        if job.transport == Transport::Ipc {
            return Ok((Self::Unix(UnixListener::bind(path)?), path.to_owned()));
        }
        let _only_unix_has_paths = (job, path, Transport::Ipc);
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string();
        Ok((Self::Tcp(listener), address))
    }

    pub(super) async fn accept(&self) -> io::Result<Frames> {
        let stream: Boxed = match self {
            Self::Tcp(listener) => {
                let stream = listener.accept().await?.0;
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
            #[cfg(unix)]
            Self::Unix(listener) => Box::new(listener.accept().await?.0),
        };
        Ok(Frames::new(stream))
    }
}

/// Connects to where the near end listens.
pub(super) async fn connect(job: &Job, address: &str) -> io::Result<Frames> {
    #[cfg(unix)]
    if job.transport == Transport::Ipc {
        return Ok(Frames::new(Box::new(UnixStream::connect(address).await?)));
    }
    let _only_unix_has_paths = job;
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(Frames::new(Box::new(stream)))
}

/// A connection that carries frames.
pub(super) struct Frames {
    stream: Boxed,
    out: Vec<u8>,
    block: Vec<u8>,
    start: usize,
    end: usize,
}

impl Frames {
    fn new(stream: Boxed) -> Self {
        Self { stream, out: Vec::with_capacity(2 * BLOCK), block: vec![0; 4 * BLOCK], start: 0, end: 0 }
    }

    /// Adds a frame, and writes when a block is full.
    pub(super) async fn put(&mut self, body: &[u8]) -> io::Result<()> {
        self.out.extend_from_slice(&(body.len() as u32).to_le_bytes());
        if body.len() >= BLOCK / 2 {
            self.flush().await?;
            return self.stream.write_all(body).await;
        }
        self.out.extend_from_slice(body);
        if self.out.len() >= BLOCK { self.flush().await } else { Ok(()) }
    }

    /// Writes what is left.
    pub(super) async fn flush(&mut self) -> io::Result<()> {
        self.stream.write_all(&self.out).await?;
        self.out.clear();
        Ok(())
    }

    /// The next frame that was read.
    #[inline]
    pub(super) fn next(&mut self) -> Option<&[u8]> {
        let read = &self.block[self.start..self.end];
        let (head, rest) = read.split_first_chunk::<4>()?;
        let length = u32::from_le_bytes(*head) as usize;
        let body = rest.get(..length)?;
        self.start += 4 + length;
        Some(body)
    }

    /// Reads more.
    pub(super) async fn fill(&mut self) -> io::Result<()> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.block.len() - self.end < BLOCK / 2 {
            self.block.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
            if self.block.len() - self.end < BLOCK / 2 {
                self.block.resize(self.block.len() * 2, 0);
            }
        }
        match self.stream.read(&mut self.block[self.end..]).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            read => {
                self.end += read;
                Ok(())
            }
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Failed(format!("a bare socket failed: {error}"))
    }
}

/// Takes and checks what comes, for ever.
pub(super) async fn take(mut frames: Frames, job: &Job, meter: &Meter) -> Result<(), Failure> {
    let mut sequence = Sequence::new(job, meter);
    loop {
        frames.fill().await?;
        let mut taken = 0;
        while let Some(body) = frames.next() {
            sequence.check(body)?;
            taken += 1;
        }
        meter.taken(taken);
    }
}

/// Sends back what comes, for ever.
pub(super) async fn echo(mut frames: Frames) -> Result<(), Failure> {
    let mut reply = Vec::new();
    loop {
        while let Some(body) = frames.next() {
            reply.clear();
            reply.extend_from_slice(body);
            frames.put(&reply).await?;
        }
        frames.flush().await?;
        frames.fill().await?;
    }
}
