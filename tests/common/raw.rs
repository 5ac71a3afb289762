//! A peer that speaks ZMTP by hand, and may lie.

use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use ropewalk::{
    Message, Role,
    patterns::{
        Tally,
        extension::Hello,
        zmtp::{
            Command, Decoder, GREETING_LEN, Handshake, Limits, Ready, Room, Step, encode_part, greeting, read_greeting,
            read_handshake, take_message,
        },
    },
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_rustls::TlsConnector;

use super::{KEY, soon, tls};

pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// What comes from the other side.
#[derive(Debug, PartialEq)]
pub(crate) enum Came {
    Message(Message),
    Command(Command),
    End,
}

pub(crate) struct Raw {
    stream: Box<dyn Stream>,
    buffer: BytesMut,
    decoder: Decoder,
    messages: Bytes,
}

/// What a Ropewalk peer with this window would say of itself.
pub(crate) fn hello(messages: u64, bytes: u64) -> Option<Hello> {
    Some(Hello::new(Tally::new(messages, bytes), 4 << 20))
}

pub(crate) fn frame(command: &Command) -> Bytes {
    let mut bytes = BytesMut::new();
    command.encode(false, &mut bytes);
    bytes.freeze()
}

pub(crate) fn frames(parts: &[&[u8]]) -> Bytes {
    let mut bytes = BytesMut::new();
    for (index, part) in parts.iter().enumerate() {
        encode_part(&mut bytes, index + 1 < parts.len(), part.len());
        bytes.extend_from_slice(part);
    }
    bytes.freeze()
}

/// A stream to this address; over tls as one who has the key of the tests.
pub(crate) async fn connect(address: &str) -> Box<dyn Stream> {
    match address.split_once("://") {
        Some(("tcp", at)) => Box::new(tcp(at).await),
        Some(("tls", at)) => {
            let (_id, at) = at.split_once('@').expect("an id");
            let connector = TlsConnector::from(Arc::new(tls::client(&KEY)));
            Box::new(soon("TLS", connector.connect(tls::name(), tcp(at).await)).await.expect("TLS"))
        }
        Some(("quic", at)) => {
            let (_id, at) = at.split_once('@').expect("an id");
            stream(&quic(at).await).await
        }
        Some(("ipc", path)) => {
            Box::new(soon("a connection", tokio::net::UnixStream::connect(path)).await.expect("connect"))
        }
        _ => panic!("no stream leads to {address}"),
    }
}

/// A QUIC connection as one who has the key of the tests.
pub(crate) async fn quic(at: &str) -> quinn::Connection {
    let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().expect("an address")).expect("UDP");
    let to = at.parse().expect("host and port");
    let connecting = endpoint.connect_with(tls::quic(&KEY), to, "peer.invalid").expect("connect");
    soon("QUIC", connecting).await.expect("QUIC")
}

/// The next stream of a connection.
pub(crate) async fn stream(connection: &quinn::Connection) -> Box<dyn Stream> {
    let (send, recv) = soon("a stream", connection.open_bi()).await.expect("a stream");
    Box::new(tokio::io::join(recv, send))
}

pub(crate) async fn tcp(at: &str) -> tokio::net::TcpStream {
    let stream = soon("a connection", tokio::net::TcpStream::connect(at)).await.expect("connect");
    stream.set_nodelay(true).expect("nodelay");
    stream
}

impl Raw {
    /// A connection over which nothing has been said.
    pub(crate) async fn dial(address: &str) -> Self {
        Self::over(connect(address).await)
    }

    pub(crate) fn over(stream: Box<dyn Stream>) -> Self {
        let limits = Limits { message: 1 << 30, command: 1 << 30, ..Limits::default() };
        Self { stream, buffer: BytesMut::new(), decoder: Decoder::new(limits), messages: Bytes::new() }
    }

    /// A peer whose handshake is done; and what the other side said of itself.
    pub(crate) async fn link(address: &str, role: Role, hello: Option<Hello>) -> (Self, Ready) {
        let mut raw = Self::dial(address).await;
        let ready = raw.shake(role, hello).await;
        (raw, ready)
    }

    /// The other side of a connection that was accepted.
    pub(crate) async fn accept(listener: &tokio::net::TcpListener) -> Self {
        let (stream, _) = soon("somebody to dial", listener.accept()).await.expect("accept");
        Self::over(Box::new(stream))
    }

    pub(crate) async fn shake(&mut self, role: Role, hello: Option<Hello>) -> Ready {
        self.write(&greeting()).await;
        self.write(&Ready { role, identity: Bytes::new(), hello }.encode()).await;
        self.hear_ready().await
    }

    pub(crate) async fn hear_ready(&mut self) -> Ready {
        while self.buffer.len() < GREETING_LEN {
            assert!(self.read().await > 0, "the stream ended in the greeting");
        }
        read_greeting(&self.buffer[..GREETING_LEN]).expect("a greeting");
        self.buffer.advance(GREETING_LEN);
        loop {
            match read_handshake(&mut self.buffer, &Limits::default()).expect("READY") {
                Handshake::Ready(ready) => return ready,
                Handshake::Unfinished => assert!(self.read().await > 0, "the stream ended before READY"),
            }
        }
    }

    /// Writes all of it; whether the other side still took it.
    pub(crate) async fn try_write(&mut self, bytes: &[u8]) -> bool {
        let written = async {
            self.stream.write_all(bytes).await?;
            // TLS may keep what it has taken.
            self.stream.flush().await
        };
        soon("the other side to read", written).await.is_ok()
    }

    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        assert!(self.try_write(bytes).await, "the other side is gone");
    }

    pub(crate) async fn send(&mut self, parts: &[&[u8]]) {
        self.write(&frames(parts)).await;
    }

    pub(crate) async fn tell(&mut self, command: Command) {
        self.write(&frame(&command)).await;
    }

    async fn read(&mut self) -> usize {
        soon("bytes", self.stream.read_buf(&mut self.buffer)).await.unwrap_or(0)
    }

    /// The next message or command.
    pub(crate) async fn next(&mut self) -> Came {
        loop {
            if let Some(message) = take_message(&mut self.messages) {
                return Came::Message(message);
            }
            match self.decoder.next(&mut self.buffer, Room::UNBOUNDED).expect("what is right") {
                Step::Messages { bytes, .. } => self.messages = bytes,
                Step::Command(command) => return Came::Command(command),
                Step::NeedBytes(_) => {
                    if self.read().await == 0 {
                        return Came::End;
                    }
                }
                Step::NoRoom => unreachable!("there is always room"),
            }
        }
    }

    /// The next message; commands are passed over.
    pub(crate) async fn message(&mut self) -> Message {
        loop {
            match self.next().await {
                Came::Message(message) => return message,
                Came::Command(_) => {}
                Came::End => panic!("the stream ended before a message"),
            }
        }
    }

    /// Waits for the end of the stream, whatever comes before.
    pub(crate) async fn end(&mut self) {
        loop {
            self.buffer.clear();
            if self.read().await == 0 {
                return;
            }
        }
    }
}
