//! Ways to reach a peer. A new one is one file and one line of [`SCHEMES`].

pub(crate) mod inproc;
#[cfg(all(feature = "ipc", unix))]
mod ipc;
#[cfg(feature = "quic")]
pub(crate) mod quic;
#[cfg(feature = "secure")]
pub(crate) mod secure;
#[cfg(any(feature = "tcp", all(feature = "ipc", unix)))]
mod socket;
#[cfg(feature = "tcp")]
mod tcp;
#[cfg(feature = "tls")]
mod tls;

use std::{fmt, io, net::IpAddr, pin::Pin};

use tokio::io::{AsyncRead, AsyncWrite};

use crate::{
    error::{AddressError, BindError},
    events::DownReason,
    identity::PeerId,
    link::Pipe,
    options::Options,
};

/// The schemes of this build.
const SCHEMES: &[(&str, &dyn Transport)] = &[
    #[cfg(feature = "tcp")]
    ("tcp", &tcp::Tcp),
    #[cfg(feature = "tls")]
    ("tls", &tls::Tls),
    #[cfg(feature = "quic")]
    ("quic", &quic::Quic),
    #[cfg(all(feature = "ipc", unix))]
    ("ipc", &ipc::Ipc),
    ("inproc", &inproc::Inproc),
];

pub(crate) type Read = Box<dyn ReadHalf>;
pub(crate) type Write = Box<dyn AsyncWrite + Send + Unpin>;
pub(crate) type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The half of a stream that is read.
pub(crate) trait ReadHalf: AsyncRead + Send + Unpin {
    /// Whether it is a socket that gives what the peer wrote, as it is: one that may be looked at.
    fn is_plain(&self) -> bool {
        false
    }

    /// Reads what is there without asking the runtime's driver, which may not have heard of it yet. If nothing is, an
    /// error of kind `WouldBlock`; then nobody is woken when something comes, until it is read as a stream again.
    fn look(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }
}

/// One way to reach a peer.
pub(crate) trait Transport: Sync {
    /// Whether what follows the scheme may be listened on, or dialled.
    fn check(&self, address: &Address, listen: bool, options: &Options) -> Result<(), AddressError>;

    /// Listens.
    fn bind<'a>(&'a self, address: &'a Address, options: &'a Options) -> Boxed<'a, Result<Bound, BindError>>;

    /// Dials once. `turn` says which address of a name, where only the handshake shows whether it answers.
    fn dial<'a>(&'a self, address: &'a Address, options: &'a Options, turn: usize) -> Boxed<'a, io::Result<Connected>>;
}

/// An address that is listened on.
pub(crate) struct Bound {
    /// With the real port.
    pub(crate) address: Address,
    pub(crate) listener: Box<dyn Listener>,
}

/// Accepts connections.
pub(crate) trait Listener: Send {
    /// The next connection. Dropped before it is ready, it took none.
    fn accept<'a>(&'a mut self, options: &'a Options) -> Boxed<'a, io::Result<Connected>>;

    /// Accepts no more. What it gives is done when the address is free, once all that was accepted has ended.
    fn stop(self: Box<Self>) -> Boxed<'static, ()> {
        Box::pin(std::future::ready(()))
    }
}

/// A connection whose handshake is to come.
pub(crate) struct Connected {
    pub(crate) opening: Opening,
    /// The other end, for people.
    pub(crate) address: String,
    /// Where it comes from, if that counts against the handshakes of one address.
    pub(crate) from: Option<IpAddr>,
}

/// What the transport itself has to do first, and who is at the other end if that proves it.
pub(crate) type Opening = Boxed<'static, Result<(Connection, Option<PeerId>), Failed>>;

/// Why there is no connection.
pub(crate) struct Failed {
    pub(crate) reason: DownReason,
    /// What is done then, so that the peer hears why.
    pub(crate) parting: Option<Boxed<'static, ()>>,
}

impl<R: Into<DownReason>> From<R> for Failed {
    fn from(reason: R) -> Self {
        Self { reason: reason.into(), parting: None }
    }
}

/// A second stream, for commands that must not wait behind messages: there as soon as the peer has it, too.
pub(crate) type Control = Boxed<'static, io::Result<(Read, Write)>>;

/// Streams carry bytes; memory carries messages.
pub(crate) enum Connection {
    #[allow(dead_code, reason = "no scheme makes streams when all features are off")]
    Stream {
        read: Read,
        write: Write,
        control: Option<Control>,
    },
    Memory(Pipe),
}

impl Connection {
    #[allow(dead_code, reason = "no scheme makes streams when all features are off")]
    fn stream(read: impl ReadHalf + 'static, write: impl AsyncWrite + Send + Unpin + 'static) -> Self {
        Self::Stream { read: Box::new(read), write: Box::new(write), control: None }
    }

    /// Nothing more is to be done, and nobody has proven who it is.
    fn open(self) -> Opening {
        Box::pin(std::future::ready(Ok((self, None))))
    }
}

/// Where to listen or dial: a scheme and what that takes.
///
/// ```text
///   tcp://127.0.0.1:7000   tcp://[::1]:0   tcp://localhost:7000   tcp://*:7000   tcp://host.example:7000
///   quic://PEERID@host.example:7000 (to dial)   quic://127.0.0.1:0 (to listen)
///   tls://PEERID@host.example:7000 (to dial)   tls://127.0.0.1:0 (to listen)
///   ipc:///run/my.sock     ipc://relative.sock
///   inproc://any name
/// ```
#[derive(Clone)]
pub struct Address {
    transport: &'static dyn Transport,
    scheme: &'static str,
    rest: String,
}

impl Address {
    /// Reads an address and asks its transport whether it may be used so.
    pub(crate) fn parse(text: &str, listen: bool, options: &Options) -> Result<Self, AddressError> {
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err(AddressError::NoScheme { address: text.into() });
        };
        let Some(&(scheme, transport)) = SCHEMES.iter().find(|(known, _)| *known == scheme) else {
            let known: Vec<String> = SCHEMES.iter().map(|(known, _)| format!("{known}://")).collect();
            return Err(AddressError::UnknownScheme { scheme: scheme.into(), known: known.join(", ") });
        };
        let address = Self { transport, scheme, rest: rest.into() };
        transport.check(&address, listen, options)?;
        Ok(address)
    }

    /// The scheme, without `://`.
    pub fn scheme(&self) -> &'static str {
        self.scheme
    }

    /// What follows `scheme://`.
    pub fn rest(&self) -> &str {
        &self.rest
    }

    pub(crate) async fn bind(&self, options: &Options) -> Result<Bound, BindError> {
        self.transport.bind(self, options).await
    }

    pub(crate) async fn dial(&self, options: &Options, turn: usize) -> io::Result<Connected> {
        self.transport.dial(self, options, turn).await
    }

    #[cfg(any(feature = "tcp", all(feature = "ipc", unix)))]
    fn bind_error(&self, error: io::Error) -> BindError {
        match error.kind() {
            io::ErrorKind::AddrInUse => BindError::InUse { address: self.to_string() },
            _ => BindError::Io { address: self.to_string(), error },
        }
    }

    fn malformed(&self, what: &'static str) -> AddressError {
        AddressError::Malformed { address: self.to_string(), what }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme, self.rest)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl PartialEq for Address {
    fn eq(&self, other: &Self) -> bool {
        (self.scheme, &self.rest) == (other.scheme, &other.rest)
    }
}

impl Eq for Address {}
