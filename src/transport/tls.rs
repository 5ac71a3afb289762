//! `tls://PEERID@host:port`: ZMTP within TLS 1.3 over TCP. A peer is its key; see [`secure`](super::secure).

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use super::{
    Address, Bound, Boxed, Connected, Connection, Failed, Listener, ReadHalf, Transport,
    secure::{self, Found},
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
        secure::check(address, listen, options)
    }

    fn bind<'a>(&'a self, address: &'a Address, options: &'a Options) -> Boxed<'a, Result<Bound, BindError>> {
        Box::pin(async move {
            let failed = |error| address.bind_error(error);
            let (key, rest) = secure::listening(address, options)?;
            let config = secure::server(key, options.allowed.clone()).map_err(io::Error::other).map_err(failed)?;
            let (listener, local) = tcp::bind(address, rest, options).await.map_err(failed)?;
            let address = secure::bound(address, key, local);
            Ok(Bound { address, listener: Box::new(Accepting { listener, tls: Arc::new(config).into() }) })
        })
    }

    fn dial<'a>(&'a self, address: &'a Address, options: &'a Options, _: usize) -> Boxed<'a, io::Result<Connected>> {
        Box::pin(async move {
            let (id, key, rest) = secure::dialling(address, options)?;
            let tls =
                TlsConnector::from(Arc::new(secure::client(key, id, Found::default()).map_err(io::Error::other)?));
            let (stream, peer) = tcp::dial(address, rest, options).await?;
            let opening = async move { Ok(secured(tls.connect(secure::no_name(), stream).await?.into())?) };
            Ok(tcp::connected("tls", peer, Box::pin(opening)))
        })
    }
}

impl ReadHalf for tokio::io::ReadHalf<TlsStream<TcpStream>> {}

fn secured(stream: TlsStream<TcpStream>) -> Result<(Connection, Option<PeerId>), DownReason> {
    let tls = stream.get_ref().1;
    let id = secure::id_shown(tls.alpn_protocol(), tls.peer_certificates())?;
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
                    Ok(stream) => Ok(secured(stream.into())?),
                    Err((error, stream)) => {
                        Err(Failed { reason: error.into(), parting: Some(Box::pin(let_go(stream))) })
                    }
                }
            };
            Ok(tcp::connected("tls", peer, Box::pin(opening)))
        })
    }
}

/// Closes a connection so that the peer hears why: were it dropped with bytes unread, it would be reset.
async fn let_go(mut stream: TcpStream) {
    let hears = async {
        stream.shutdown().await?;
        tokio::io::copy(&mut (&mut stream).take(HEARS_BYTES), &mut tokio::io::sink()).await
    };
    let _late = tokio::time::timeout(HEARS, hears).await;
}
