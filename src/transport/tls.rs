//! `tls://PEERID@host:port`: ZMTP within TLS 1.3 over TCP. A peer is its key; see [`secure`](super::secure).

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use super::{
    Address, Bound, Boxed, Connected, Connection, Listener, Transport,
    secure::{client, id_of, no_name, server},
    tcp,
};
use crate::{
    error::{AddressError, BindError},
    events::DownReason,
    identity::PeerId,
    options::Options,
};

pub(crate) struct Tls;

/// One who was refused is given so long, and so many bytes, to hear of it before the connection is closed under it.
const HEARS: Duration = Duration::from_secs(1);
const HEARS_BYTES: u64 = 64 << 10;

impl Transport for Tls {
    fn check(&self, address: &Address, listen: bool, options: &Options) -> Result<(), AddressError> {
        let (id, rest) = parse(address)?;
        tcp::check(address, rest, listen)?;
        let Some(key) = &options.key else { return Err(AddressError::NoKey { address: address.to_string() }) };
        match id {
            None if !listen => Err(address.malformed("it needs the id of the peer, as in tls://PEERID@host:7000")),
            Some(id) if listen && id != key.id() => Err(address.malformed("the id is not that of the socket's key")),
            _ if listen && !options.allowed.is_said() => {
                Err(AddressError::NobodyAllowed { address: address.to_string() })
            }
            _ => Ok(()),
        }
    }

    fn bind<'a>(&'a self, address: &'a Address, options: &'a Options) -> Boxed<'a, Result<Bound, BindError>> {
        Box::pin(async move {
            let failed = |error| address.bind_error(error);
            let (_, rest) = parse(address)?;
            let key = options.key.as_ref().ok_or_else(|| AddressError::NoKey { address: address.to_string() })?;
            let config = server(key, options.allowed.clone()).map_err(io::Error::other).map_err(failed)?;
            let (listener, local) = tcp::bind(address, rest, options).await.map_err(failed)?;
            // With the id, for that is what others dial.
            let address = Address { rest: format!("{}@{local}", key.id()), ..address.clone() };
            Ok(Bound { address, listener: Box::new(Accepting { listener, tls: Arc::new(config).into() }) })
        })
    }

    fn dial<'a>(&'a self, address: &'a Address, options: &'a Options) -> Boxed<'a, io::Result<Connected>> {
        Box::pin(async move {
            let invalid = |error| io::Error::new(io::ErrorKind::InvalidInput, error);
            let (id, rest) = parse(address).map_err(invalid)?;
            let (Some(id), Some(key)) = (id, &options.key) else { return Err(io::ErrorKind::InvalidInput.into()) };
            let tls = TlsConnector::from(Arc::new(client(key, id).map_err(io::Error::other)?));
            let (stream, peer) = tcp::dial(address, rest, options).await?;
            let opening = async move { secured(tls.connect(no_name(), stream).await?.into()) };
            Ok(tcp::connected("tls", peer, Box::pin(opening)))
        })
    }
}

/// The peer's id, if there is one, and host and port.
fn parse(address: &Address) -> Result<(Option<PeerId>, &str), AddressError> {
    match address.rest().split_once('@') {
        None => Ok((None, address.rest())),
        Some((id, rest)) => match id.parse() {
            Ok(id) => Ok((Some(id), rest)),
            Err(_) => {
                Err(address.malformed("what stands before the @ is not a peer id, which is 52 characters of base32"))
            }
        },
    }
}

fn secured(stream: TlsStream<TcpStream>) -> Result<(Connection, Option<PeerId>), DownReason> {
    let id = id_of(stream.get_ref().1)?;
    let (read, write) = tokio::io::split(stream);
    Ok((Connection::stream(read, write), Some(id)))
}

struct Accepting {
    listener: TcpListener,
    tls: TlsAcceptor,
}

impl Listener for Accepting {
    fn accept<'a>(&'a mut self, options: &'a Options) -> Boxed<'a, io::Result<Connected>> {
        Box::pin(async move {
            let (stream, peer): (_, SocketAddr) = tcp::accept(&self.listener, options).await?;
            let accepting = self.tls.accept(stream).into_fallible();
            let opening = async move {
                match accepting.await {
                    Ok(stream) => secured(stream.into()),
                    Err((error, stream)) => {
                        let _late = tokio::time::timeout(HEARS, let_go(stream)).await;
                        Err(error.into())
                    }
                }
            };
            Ok(tcp::connected("tls", peer, Box::pin(opening)))
        })
    }
}

/// Closes a connection so that the peer hears why: were it dropped with bytes unread, it would be reset.
async fn let_go(mut stream: TcpStream) -> io::Result<()> {
    stream.shutdown().await?;
    tokio::io::copy(&mut (&mut stream).take(HEARS_BYTES), &mut tokio::io::sink()).await?;
    Ok(())
}
