//! Sockets that have a directory: how they are asked for, and made of what is found there.

use std::{
    path::PathBuf,
    sync::{Arc, OnceLock, Weak},
};

use ropewalk_patterns::{
    Pattern,
    delivery::{Confirms, Deliveries},
    pub_sub,
    pub_sub::Overflow,
    push_pull, req_rep,
};

use super::{
    Socket,
    delivery::{Retains, receives, rules},
    pub_sub::following,
    push_pull::{keeping, pulling},
    req_rep::{Requester, requesting},
};
use crate::{
    delivery::{Answers, InboxLog, Keeper, Kept, Receives, Requests, disk, role},
    error::{BindError, ConnectError},
    hub::Hub,
    options::{Builder, Made, Make, Options},
    spool::{Durability, OpenError, SpoolOptions, WhenFull},
};

/// The directory of a socket that has one; such a socket is made by `open`, `bind` or `connect`.
#[derive(Debug)]
pub struct Directory {
    pub(crate) path: PathBuf,
    pub(crate) spool: SpoolOptions,
}

/// A pattern whose sockets can have a directory.
pub(crate) trait OnDisk: Pattern {
    /// What makes a socket of what is found in this directory.
    fn open(directory: Directory, options: &Options) -> impl Future<Output = Result<Make<Self>, OpenError>> + Send;
}

#[allow(private_bounds, reason = "which patterns these are, their builders say")]
impl<P: OnDisk> Builder<P, Directory> {
    /// The socket, with no endpoint yet, once its directory is open. It waits up to 5 s for another owner of the directory
    /// to go away.
    ///
    /// # Errors
    /// When another has the directory open, it is that of a socket of another role, it is damaged, or the system refuses.
    ///
    /// # Cancel safety
    /// Dropped before it is done, the directory is closed again.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub async fn open(self) -> Result<Socket<P>, OpenError> {
        let Self { options, directory, .. } = self;
        let path = directory.path.clone();
        role::may_have(path.clone(), P::ROLE).await?;
        let make = P::open(directory, &options).await?;
        role::take(path, P::ROLE).await?;
        Ok(Builder { options, make, directory: () }.build())
    }

    /// The socket, listening on this address, once its directory is open.
    ///
    /// # Errors
    /// When the directory cannot be opened, or it cannot listen there.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub async fn bind(self, address: impl AsRef<str>) -> Result<Socket<P>, BindError> {
        let socket = self.open().await.map_err(|error| BindError::Spool(Arc::new(error)))?;
        match socket.bind_to(address).await {
            Ok(_) => Ok(socket),
            Err(error) => {
                socket.close().await;
                Err(error)
            }
        }
    }

    /// The socket, dialling this address in the background for ever, once its directory is open.
    ///
    /// # Errors
    /// When the directory cannot be opened, the address is not one, or it must not be dialled.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub async fn connect(self, address: impl AsRef<str>) -> Result<Socket<P>, ConnectError> {
        let socket = self.open().await.map_err(|error| ConnectError::Spool(Arc::new(error)))?;
        match socket.connect_to(address).await {
            Ok(()) => Ok(socket),
            Err(error) => {
                socket.close().await;
                Err(error)
            }
        }
    }
}

#[allow(private_bounds, reason = "these are `Push`, `Pub`, `Req` and `Rep`")]
impl<P: OnDisk + Retains> Builder<P> {
    /// Keeps what is sent in this directory until it is confirmed: by a receiver, or by each subscriber that has a
    /// [name](Builder::name); what is asked, until it is answered; or what is answered, as long as that may be asked again.
    /// See [`delivery`](crate::delivery). A bare [`Durability`] will do for the options.
    ///
    /// Each socket has a directory of its own, for ever: one of another role is refused
    /// ([`OpenError::OtherRole`](crate::spool::OpenError::OtherRole)).
    ///
    /// When the quota is used up those who push wait; with [`WhenFull::DropOldest`] the oldest go instead, and
    /// [`Event::Lost`](crate::Event::Lost) says how many. A publisher goes by its [`Overflow`] and not by these options: with
    /// [`Overflow::Block`] it waits, else it removes the oldest, and who had not got it hears how many it missed. One who asks
    /// waits in any case; of one who answers the oldest answers go, and what they answered may be done again.
    ///
    /// Peers that are not Ropewalk cannot confirm, and are not linked
    /// ([`DownReason::NotConfirming`](crate::DownReason::NotConfirming)); but all can answer. Where `build` would make the
    /// socket, this needs the disk: [`open`](Builder::open), or `bind` and `connect` as before.
    pub fn spool(self, directory: impl Into<PathBuf>, options: impl Into<SpoolOptions>) -> Builder<P, Directory> {
        let directory = Directory { path: directory.into(), spool: options.into() };
        Builder { options: self.options, make: self.make, directory }
    }
}

#[allow(private_bounds, reason = "these are `Pull` and `Sub`")]
impl<P: OnDisk + Confirms> Builder<P> {
    /// Writes into this directory which messages the application is done with, and syncs it, before their senders hear of
    /// it: none of them is ever handed out again, whatever crashes. See [`delivery`](crate::delivery).
    pub fn inbox(self, directory: impl Into<PathBuf>) -> Builder<P, Directory> {
        self.inbox_with(directory, Durability::Always)
    }

    /// The same, with these options, or synced as a bare [`Durability`] says. What a crash takes of it may be handed out once
    /// more; so may be what damage took that was to be [skipped](crate::spool::OnDamage::Skip):
    /// [`inbox_recovery`](Socket::inbox_recovery) names it.
    pub fn inbox_with(self, directory: impl Into<PathBuf>, options: impl Into<SpoolOptions>) -> Builder<P, Directory> {
        let directory = Directory { path: directory.into(), spool: options.into() };
        Builder { options: self.options, make: self.make, directory }
    }
}

/// What a socket is done with is written down here.
fn writes_down(log: InboxLog, options: &Options) -> Option<Receives> {
    Some(Receives { inbox: Some(Arc::new(log)), ..receives(options).unwrap_or_default() })
}

impl OnDisk for push_pull::Push {
    async fn open(directory: Directory, _: &Options) -> Result<Make<Self>, OpenError> {
        let disk = disk::OnDisk::open(&directory.path, directory.spool, true).await?;
        Ok(Box::new(|options| {
            let deliveries =
                Deliveries::new(disk.spool.stream(), disk.spool.incarnation(), disk.floor(), rules(options));
            keeping(deliveries, Keeper::pushing(disk))
        }))
    }
}

impl OnDisk for push_pull::Pull {
    async fn open(directory: Directory, _: &Options) -> Result<Make<Self>, OpenError> {
        let (log, inbox) = InboxLog::open(&directory.path, directory.spool).await?;
        Ok(Box::new(|options| pulling(push_pull::Pull::with_inbox(inbox), writes_down(log, options))))
    }
}

impl OnDisk for pub_sub::Pub {
    async fn open(directory: Directory, options: &Options) -> Result<Make<Self>, OpenError> {
        let when_full = if options.overflow == Overflow::Block { WhenFull::Wait } else { WhenFull::DropOldest };
        let spool = directory.spool.when_full(when_full);
        let disk = disk::OnDisk::open(&directory.path, spool, false).await?;
        Ok(Box::new(|options| {
            let (stream, incarnation) = (disk.spool.stream(), disk.spool.incarnation());
            let pattern = pub_sub::Pub::keeping(stream, incarnation, rules(options), options.limits);
            let keeper = Arc::new(Keeper::publishing(disk));
            let (hub, hears) = (Arc::new(OnceLock::<Weak<Hub<_>>>::new()), keeper.followers.clone());
            let known = Arc::clone(&hub);
            Made {
                pattern,
                on_event: Some(Box::new(move |followed| {
                    if let (Some(followers), Some(hub)) = (&hears, known.get().and_then(Weak::upgrade)) {
                        followers.heard(&hub, followed);
                    }
                })),
                kept: Kept::sending(keeper),
                begin: Some(Box::new(move |begun, _| {
                    // It begins once.
                    let _first = hub.set(Arc::downgrade(begun));
                })),
                refused: None,
            }
        }))
    }
}

impl OnDisk for req_rep::Rep {
    async fn open(directory: Directory, _: &Options) -> Result<Make<Self>, OpenError> {
        let (answers, asked_again) = Answers::open(&directory.path, directory.spool).await?;
        Ok(Box::new(|_| Made {
            begin: Some(Box::new({
                let runs = Arc::clone(&answers);
                move |hub, kept| kept.tasks.own(tokio::spawn(runs.run(Arc::clone(hub), asked_again)))
            })),
            kept: Kept::answering(answers),
            ..Made::from(req_rep::Rep::default())
        }))
    }
}

impl OnDisk for Requester {
    async fn open(directory: Directory, options: &Options) -> Result<Make<Self>, OpenError> {
        let requests = Requests::open(&directory.path, directory.spool, options).await?;
        Ok(Box::new(|options| Made {
            begin: Some(Box::new({
                let runs = Arc::clone(&requests);
                |hub, kept| kept.tasks.own(tokio::spawn(runs.run(Arc::clone(hub))))
            })),
            ..requesting(options, Kept::asking(requests))
        }))
    }
}

impl OnDisk for pub_sub::Sub {
    async fn open(directory: Directory, _: &Options) -> Result<Make<Self>, OpenError> {
        let (log, inbox) = InboxLog::open(&directory.path, directory.spool).await?;
        Ok(Box::new(|options| following(options, inbox, writes_down(log, options))))
    }
}
