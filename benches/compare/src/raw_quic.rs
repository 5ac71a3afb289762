//! The limit of quic: what [`raw`] does, over one stream of a quinn connection with Ropewalk's windows.

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use quinn::{
    ClientConfig, Connection, Endpoint, RecvStream, SendStream, ServerConfig, TransportConfig, VarInt,
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
};
use ropewalk::{PeerId, SecretKey};
use tokio::io::{Join, join};

use crate::{
    child::{Job, Outcome, Report, Role},
    keys, raw,
};

/// As in Ropewalk's `src/transport/quic.rs`, with the heartbeats of its defaults.
const STREAM_WINDOW: u32 = 2 << 20;
const WINDOW: u32 = 8 << 20;
const HEARTBEAT: Duration = Duration::from_secs(5);
const DEAD_AFTER: Duration = Duration::from_secs(15);

pub async fn run(job: Job) -> Outcome<Report> {
    match job.role {
        Role::Pull | Role::Rep => {
            let key = SecretKey::generate();
            let endpoint = listen(&key)?;
            job.listening(&format!("{} {}", endpoint.local_addr()?, key.id()));
            let link = Link::accept(&endpoint).await?;
            link.work(&endpoint, &job).await
        }
        Role::Push | Role::Req => {
            let (address, id) = job.address.split_once(' ').ok_or("an address without a key")?;
            let endpoint = client()?;
            let link = Link::dial(&endpoint, address, id.parse()?).await?;
            link.work(&endpoint, &job).await
        }
        _ => Err("over quic there is one sender and one receiver".into()),
    }
}

pub fn listen(key: &SecretKey) -> Outcome<Endpoint> {
    let tls = QuicServerConfig::try_from(keys::server(key)?)?;
    let mut config = ServerConfig::with_crypto(Arc::new(tls));
    config.transport_config(Arc::new(transport()?));
    Ok(Endpoint::server(config, (Ipv4Addr::LOCALHOST, 0).into())?)
}

pub fn client() -> Outcome<Endpoint> {
    Ok(Endpoint::client((Ipv4Addr::UNSPECIFIED, 0).into())?)
}

fn transport() -> Outcome<TransportConfig> {
    let mut config = TransportConfig::default();
    config.max_concurrent_bidi_streams(VarInt::from_u32(1)).max_concurrent_uni_streams(VarInt::from_u32(0));
    config.stream_receive_window(VarInt::from_u32(STREAM_WINDOW)).receive_window(VarInt::from_u32(WINDOW));
    config.send_window(u64::from(WINDOW)).datagram_receive_buffer_size(None);
    config.max_idle_timeout(Some(DEAD_AFTER.try_into()?)).keep_alive_interval(Some(HEARTBEAT));
    Ok(config)
}

/// A connection and its stream.
pub struct Link {
    connection: Connection,
    pub stream: Join<RecvStream, SendStream>,
}

impl Link {
    pub async fn dial(endpoint: &Endpoint, address: &str, id: PeerId) -> Outcome<Self> {
        let tls = QuicClientConfig::try_from(keys::client(id)?)?;
        let mut config = ClientConfig::new(Arc::new(tls));
        config.transport_config(Arc::new(transport()?));
        let connection = endpoint.connect_with(config, address.parse()?, "peer.invalid")?.await?;
        let (send, recv) = connection.open_bi().await?;
        Ok(Self { connection, stream: join(recv, send) })
    }

    /// Waits until the other side has sent something, too, for before that there is no stream.
    pub async fn accept(endpoint: &Endpoint) -> Outcome<Self> {
        let connection = endpoint.accept().await.ok_or("the endpoint is closed")?.await?;
        let (send, recv) = connection.accept_bi().await?;
        Ok(Self { connection, stream: join(recv, send) })
    }

    async fn work(self, endpoint: &Endpoint, job: &Job) -> Outcome<Report> {
        let Self { connection, mut stream } = self;
        let report = match job.role {
            Role::Pull => raw::read_all(&mut stream, job, job.count).await?,
            Role::Push => raw::push(&mut stream, job).await?,
            Role::Rep => raw::rep(&mut stream, job).await?,
            _ => raw::req(&mut stream, job).await?,
        };
        if matches!(job.role, Role::Push | Role::Rep) {
            let (_, mut send) = stream.into_inner();
            // Finished before, perhaps; and one who closes the connection has had all it wanted.
            let _finished = send.finish();
            let _had = send.stopped().await;
        }
        connection.close(VarInt::from_u32(0), b"");
        endpoint.wait_idle().await;
        Ok(report)
    }
}
