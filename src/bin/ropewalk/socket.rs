//! What the commands do alike with their sockets: options, endpoints, events.

use std::{path::PathBuf, time::Duration};

use ropewalk::{Builder, CloseReport, Event, Events, SecretKey, Socket, patterns::Pattern, spool::OpenError};
use tokio::task::JoinHandle;

use crate::{
    args::{Policy, Shared},
    failure::Failure,
    output::note,
};

/// How long the end may take unless `--linger` says otherwise.
pub(crate) const LINGER: Duration = Duration::from_secs(5);

/// The shared options, given to a socket that is being made.
pub(crate) fn configure<P: Pattern>(builder: Builder<P>, shared: &Shared) -> Result<Builder<P>, Failure> {
    let mut builder = builder.linger(shared.linger.unwrap_or(LINGER));
    if let Some(messages) = shared.hwm {
        builder = builder.send_hwm(messages).recv_hwm(messages);
    }
    if let Some(bytes) = shared.hwm_bytes {
        builder = builder.send_hwm_bytes(bytes).recv_hwm_bytes(bytes);
    }
    if shared.plaintext {
        builder = builder.danger_plaintext();
    }
    if let Some(path) = &shared.key {
        builder = builder.key(SecretKey::load(path)?);
    }
    if shared.allow_any {
        builder = builder.allow_any_peer();
    }
    if !shared.allow.is_empty() {
        builder = builder.allow(shared.allow.iter().copied());
    }
    Ok(builder)
}

/// Only a publisher can do anything else than wait.
pub(crate) fn only_blocks(shared: &Shared) -> Result<(), Failure> {
    match shared.overflow {
        None | Some(Policy::Block) => Ok(()),
        Some(_) => {
            Err(Failure::Usage("only `pub` can drop messages: every other socket waits (--overflow block)".into()))
        }
    }
}

/// A socket that has no endpoints yet; if it has a directory, opened so.
pub(crate) async fn made<P: Pattern, F: Future<Output = Result<Socket<P>, OpenError>>>(
    builder: Builder<P>,
    directory: Option<&PathBuf>,
    opens: impl FnOnce(Builder<P>, &PathBuf) -> F,
) -> Result<Socket<P>, Failure> {
    match directory {
        None => Ok(builder.build()),
        Some(directory) => Ok(opens(builder, directory).await?),
    }
}

/// A socket with its endpoints, and with who tells its events.
pub(crate) struct Opened<P: Pattern> {
    pub(crate) socket: Socket<P>,
    events: JoinHandle<()>,
}

impl<P: Pattern> Opened<P> {
    /// Listens with this socket, says where, and dials.
    pub(crate) async fn meet(socket: Socket<P>, shared: &Shared) -> Result<Self, Failure> {
        let events = tokio::spawn(tell(socket.events(), shared.verbose));
        let opened = Self { socket, events };
        if let Err(failure) = opened.meet_all(shared).await {
            opened.close().await;
            return Err(failure);
        }
        Ok(opened)
    }

    async fn meet_all(&self, shared: &Shared) -> Result<(), Failure> {
        for address in &shared.endpoints.bind {
            let address = self.socket.bind_to(address).await?;
            note(format_args!("listening on {address}"));
        }
        for address in &shared.endpoints.connect {
            self.socket.connect_to(address).await?;
        }
        Ok(())
    }

    /// Closes the socket and waits until its last event is told.
    pub(crate) async fn close(self) -> CloseReport {
        let report = self.socket.close().await;
        // It cannot have panicked, and nothing is lost but lines if it had.
        let _ended = self.events.await;
        report
    }
}

/// All of them, or only what nobody may miss.
async fn tell(mut events: Events, all: bool) {
    while let Some(event) = events.next().await {
        if let Some(line) = describe(&event).filter(|_| all || event.is_loss()) {
            note(format_args!("{line}"));
        }
    }
}

/// An event as a line; none for what is told without asking.
fn describe(event: &Event) -> Option<String> {
    Some(match event {
        Event::Listening { .. } => return None,
        Event::StoppedListening { address } => format!("no longer listening on {address}"),
        Event::DialFailed { address, error, retry_in } => {
            format!("cannot reach {address}: {error}; again in {} ms", retry_in.as_millis())
        }
        Event::AcceptFailed { address, error } => format!("cannot accept on {address}: {error}"),
        Event::HandshakeFailed { address, reason } => format!("no link with {address}: {reason}"),
        Event::PeerUp { peer } => format!("peer up: {peer} on {}", peer.endpoint),
        Event::PeerDown { peer, reason, in_doubt } => {
            format!("peer down: {peer} on {}: {reason}, {in_doubt} in doubt", peer.endpoint)
        }
        Event::Dropped { peer, messages } => format!("dropped {messages} for {peer}, which does not keep up"),
        Event::Lost { messages } => {
            format!("lost {messages}: their peer is gone or does not accept them, or the spool dropped them")
        }
        Event::DeadLetter { number, seq, attempts, reason } => {
            let number = number.map_or(String::new(), |number| format!(" (dead letter {number})"));
            format!("message {seq} is a dead letter after {attempts} attempts: {reason}{number}")
        }
        Event::DeadLetterNotKept { seq, error } => format!("message {seq} cannot be put to the dead letters: {error}"),
        Event::SpoolDamaged { damage } => format!("the spool has lost something: {damage}"),
        Event::SpoolUnreadable { error } => format!("the spool cannot be read: {error}"),
        Event::SpoolFailed { error } => format!("the spool has failed: {error}"),
        Event::SubscriberNotKept { name, error } => format!("nothing is kept for the subscriber {name}: {error}"),
        Event::KeepsNothing { peer } => {
            format!("{peer} keeps nothing for a subscriber that is away: it publishes without --spool")
        }
        Event::SpoolForked => "the spool is a copy of another, and has another name from now on".to_owned(),
        Event::InboxFailed { error } => format!("the inbox has failed: {error}"),
        Event::Missed { events } => format!("missed {events} events"),
        other => format!("{other:?}"),
    })
}

/// A sender is content only when all it accepted arrived.
pub(crate) fn judge(report: &CloseReport) -> Result<(), Failure> {
    if report.all_delivered() {
        return Ok(());
    }
    let counts = [(report.in_doubt, "in doubt"), (report.unsent, "unsent"), (report.dropped, "dropped")];
    let told: Vec<String> =
        counts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
    Err(Failure::Failed(format!("not all messages were delivered: {}", told.join(", "))))
}
