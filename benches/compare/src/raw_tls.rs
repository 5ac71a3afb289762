//! The limit of tls: what [`raw`] does, over a tokio-rustls stream.

use std::{net::Ipv4Addr, sync::Arc};

use ropewalk::SecretKey;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use crate::{
    child::{Job, Outcome, Report, Role},
    keys, raw,
};

pub async fn run(job: Job) -> Outcome<Report> {
    match job.role {
        Role::Pull => raw::read_all(&mut accept(&job).await?, &job, job.count).await,
        Role::Push => raw::push(&mut dial(&job).await?, &job).await,
        Role::Rep => raw::rep(&mut accept(&job).await?, &job).await,
        Role::Req => raw::req(&mut dial(&job).await?, &job).await,
        _ => Err("over tls there is one sender and one receiver".into()),
    }
}

async fn accept(job: &Job) -> Outcome<TlsStream<TcpStream>> {
    let key = SecretKey::generate();
    let tls = TlsAcceptor::from(Arc::new(keys::server(&key)?));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    job.listening(&format!("{} {}", listener.local_addr()?, key.id()));
    Ok(tls.accept(raw::accept(&listener).await?).await?.into())
}

async fn dial(job: &Job) -> Outcome<TlsStream<TcpStream>> {
    let (address, id) = job.address.split_once(' ').ok_or("an address without a key")?;
    let tls = TlsConnector::from(Arc::new(keys::client(id.parse()?)?));
    let no_name = ServerName::IpAddress(Ipv4Addr::UNSPECIFIED.into());
    Ok(tls.connect(no_name, raw::dial(address).await?).await?.into())
}
