//! `inproc://name`: within this process. Messages are handed over as they are. Who binds and who connects may come in
//! either order: a dialler waits for the name.

use std::{
    collections::HashMap,
    io,
    sync::{LazyLock, Mutex, PoisonError},
};

use tokio::sync::{mpsc, watch};

use super::{Address, Bound, Boxed, Connected, Connection, Listener, Transport};
use crate::{
    error::{AddressError, BindError},
    link::Pipe,
    options::Options,
};

pub(crate) struct Inproc;

/// Where the names of this process are. The watch tells diallers that one has come.
struct Names {
    bound: Mutex<HashMap<String, mpsc::Sender<Pipe>>>,
    come: watch::Sender<()>,
}

static NAMES: LazyLock<Names> = LazyLock::new(|| Names { bound: Mutex::default(), come: watch::Sender::new(()) });

impl Names {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, mpsc::Sender<Pipe>>> {
        self.bound.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Transport for Inproc {
    fn check(&self, address: &Address, _: bool, _: &Options) -> Result<(), AddressError> {
        if address.rest().is_empty() { Err(address.malformed("the name is missing")) } else { Ok(()) }
    }

    fn bind<'a>(&'a self, address: &'a Address, options: &'a Options) -> Boxed<'a, Result<Bound, BindError>> {
        Box::pin(async move {
            let name = address.rest().to_owned();
            let (sender, waiting) = mpsc::channel(usize::try_from(options.listen_backlog).unwrap_or(1024).max(1));
            {
                let mut bound = NAMES.lock();
                if bound.contains_key(&name) {
                    return Err(BindError::InUse { address: address.to_string() });
                }
                bound.insert(name.clone(), sender);
            }
            NAMES.come.send_replace(());
            Ok(Bound { address: address.clone(), listener: Box::new(Accepting { name, waiting }) })
        })
    }

    fn dial<'a>(&'a self, address: &'a Address, _: &'a Options, _: usize) -> Boxed<'a, io::Result<Connected>> {
        Box::pin(async move {
            let mut come = NAMES.come.subscribe();
            loop {
                come.mark_unchanged();
                let listener = NAMES.lock().get(address.rest()).cloned();
                if let Some(listener) = listener {
                    let (ours, theirs) = Pipe::pair();
                    if listener.send(theirs).await.is_ok() {
                        return Ok(connected(ours, address.rest()));
                    }
                }
                come.changed().await.map_err(io::Error::other)?;
            }
        })
    }
}

fn connected(pipe: Pipe, name: &str) -> Connected {
    Connected { opening: Connection::Memory(pipe).open(), address: format!("inproc://{name}"), from: None }
}

struct Accepting {
    name: String,
    waiting: mpsc::Receiver<Pipe>,
}

impl Listener for Accepting {
    fn accept<'a>(&'a mut self, _: &'a Options) -> Boxed<'a, io::Result<Connected>> {
        Box::pin(async move {
            // The sender stands in the table as long as we do.
            let pipe = self.waiting.recv().await.ok_or(io::ErrorKind::NotConnected)?;
            Ok(connected(pipe, &self.name))
        })
    }
}

impl Drop for Accepting {
    fn drop(&mut self) {
        NAMES.lock().remove(&self.name);
    }
}
