//! Bare sockets: what a program would write that has only tokio. Frames are a length of 4 bytes and a body.

use std::{
    future::poll_fn,
    io,
    sync::{Mutex, PoisonError},
    task::Poll,
};

#[cfg(unix)]
use tokio::net::{UnixListener, UnixStream};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::{
    job::{Job, What},
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
    /// Listens at this address; also says where that can be dialled.
    pub(super) async fn bind(address: &str) -> io::Result<(Self, String)> {
        #[cfg(unix)]
        if let Some(path) = address.strip_prefix("ipc://") {
            return Ok((Self::Unix(UnixListener::bind(path)?), address.to_owned()));
        }
        let listener = TcpListener::bind(host_and_port(address)).await?;
        let address = format!("tcp://{}", listener.local_addr()?);
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

fn host_and_port(address: &str) -> &str {
    address.strip_prefix("tcp://").unwrap_or(address)
}

/// Connects to where the near end listens.
async fn connect(address: &str) -> io::Result<Frames> {
    #[cfg(unix)]
    if let Some(path) = address.strip_prefix("ipc://") {
        return Ok(Frames::new(Box::new(UnixStream::connect(path).await?)));
    }
    let stream = TcpStream::connect(host_and_port(address)).await?;
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

/// One socket of the far end, for ever.
pub(super) async fn far(job: &Job, addresses: &[String], meter: &Meter) -> Result<(), Failure> {
    let mut all = Vec::new();
    for address in addresses {
        all.push(connect(address).await?);
    }
    if job.what == What::Lat {
        let Some(frames) = all.pop() else { return Ok(()) };
        return echo(frames).await;
    }
    let sequence = Mutex::new(Sequence::new(job, meter));
    let mut taking: Vec<_> = all.into_iter().map(|frames| Box::pin(take(frames, &sequence, meter))).collect();
    // They are polled all together: each alone would need a task, and those cannot borrow.
    poll_fn(|cx| {
        for one in &mut taking {
            if let Poll::Ready(failed) = one.as_mut().poll(cx) {
                return Poll::Ready(failed);
            }
        }
        Poll::Pending
    })
    .await
}

/// Takes and checks what comes.
async fn take(mut frames: Frames, sequence: &Mutex<Sequence<'_>>, meter: &Meter) -> Result<(), Failure> {
    loop {
        frames.fill().await?;
        let mut taken = 0;
        let mut sequence = sequence.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(body) = frames.next() {
            sequence.check(body)?;
            taken += 1;
        }
        drop(sequence);
        meter.taken(taken);
    }
}

/// Sends back what comes.
async fn echo(mut frames: Frames) -> Result<(), Failure> {
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
