//! The far end: does what it is told over a control link, one run after the other, and lives no longer than that link.

use std::sync::Arc;

use ropewalk::{Builder, Event, Heard, Pull, Rep, Request, SecretKey, Sub, SubRecvError, patterns::Pattern};
use tokio::task::JoinSet;

use super::{
    job::{Job, Transport, Way, What},
    meter::{Figures, Meter, Sequence, Spent},
    raw,
};
use crate::failure::Failure;

/// The most messages that are taken at once.
const MANY: usize = 64;

/// Serves the near end that listens at this address.
pub(super) async fn serve(address: &str, plaintext: bool) -> Result<(), Failure> {
    let builder = if plaintext { Rep::builder().danger_plaintext() } else { Rep::builder() };
    let control = builder.build();
    let mut events = control.events();
    control.connect_to(address).await?;
    let mut run: Option<Run> = None;
    let served = loop {
        tokio::select! {
            request = control.recv() => {
                let request = request.map_err(|error| Failure::Failed(error.to_string()))?;
                let said = request.message().text().unwrap_or_default().to_owned();
                match said.split_once(' ') {
                    Some(("run", words)) => match Run::parse(words, address, plaintext) {
                        Ok(job) => run = Some(Run::start(job, request)),
                        Err(why) => answer(request, &format!("failed {why}")).await,
                    },
                    _ => {
                        run = None;
                        answer(request, "well").await;
                        if said == "bye" {
                            break Ok(());
                        }
                    }
                }
            }
            measured = measured(&mut run) => {
                if let Some((request, measured)) = measured {
                    let said = measured.map_or_else(|failure| format!("failed {failure}"), |figures| figures.to_string());
                    answer(request, &said).await;
                }
            }
            Some(event) = events.next() => {
                if matches!(event, Event::PeerDown { .. }) {
                    break Err(Failure::failed("the near end is gone"));
                }
            }
        }
    };
    control.close().await;
    served
}

/// One who does not hear it any more is gone, which is an event.
async fn answer(request: Request, said: &str) {
    let _gone = request.reply(said).await;
}

/// Waits for the run that is under way, if there is one that can end by itself.
async fn measured(run: &mut Option<Run>) -> Option<(Request, Result<Figures, Failure>)> {
    match run {
        Some(run) if run.request.is_some() => {
            let figures = run.figures().await;
            run.request.take().map(|request| (request, figures))
        }
        _ => std::future::pending().await,
    }
}

/// A run and where its sockets connect to.
struct Told {
    job: Job,
    addresses: Arc<[String]>,
    plaintext: bool,
}

/// A run. Its sockets live as long as it.
struct Run {
    told: Told,
    meter: Arc<Meter>,
    spent: Spent,
    sockets: JoinSet<Result<(), Failure>>,
    /// Until it is answered.
    request: Option<Request>,
}

impl Run {
    fn parse(words: &str, control: &str, plaintext: bool) -> Result<Told, String> {
        let mut lines = words.split('\n');
        let job: Job = lines.next().unwrap_or_default().parse()?;
        let addresses: Arc<[String]> = lines.map(|address| reachable(address, control)).collect();
        if addresses.len() <= usize::from(job.busy) {
            return Err("where to connect to is missing".into());
        }
        Ok(Told { job, addresses, plaintext })
    }

    fn start(told: Told, request: Request) -> Self {
        let job = told.job;
        let meter = Arc::new(Meter::new(&job));
        let (of_load, of_job) = told.addresses.split_at(usize::from(job.busy));
        let mut sockets = JoinSet::new();
        for _ in 0..job.peers {
            sockets.spawn(work(job, of_job.to_vec(), told.plaintext, Arc::clone(&meter)));
        }
        if !of_load.is_empty() {
            let load = job.load();
            sockets.spawn(work(load, of_load.to_vec(), told.plaintext, Arc::new(Meter::new(&load))));
        }
        Self { spent: Spent::new(&job), told, meter, sockets, request: Some(request) }
    }

    async fn figures(&mut self) -> Result<Figures, Failure> {
        let job = &self.told.job;
        let finished = async {
            match job.what {
                // The near end knows when it has had enough.
                What::Lat => std::future::pending().await,
                What::Thr | What::Fan => self.meter.finished(job).await,
            }
        };
        let (took, messages) = tokio::select! {
            finished = finished => finished?,
            Some(ended) = self.sockets.join_next() => {
                let why = ended.unwrap_or_else(|error| Err(Failure::Failed(error.to_string())));
                return Err(why.err().unwrap_or_else(|| Failure::failed("a socket was closed")));
            }
        };
        let (cpu, peak_kib) = self.spent.so_far(job);
        Ok(Figures { took, messages, cpu, peak_kib })
    }
}

/// The near end says where it listens as it sees itself; its host is the one that was dialled.
fn reachable(address: &str, control: &str) -> String {
    let dialled = control.strip_prefix("tcp://").and_then(|rest| rest.rsplit_once(':'));
    let (Some((host, _)), Some((scheme, rest))) = (dialled, address.split_once("://")) else {
        return address.to_owned();
    };
    let (id, rest) = rest.split_once('@').map_or(("", rest), |(id, rest)| (id, rest));
    match (scheme, rest.rsplit_once(':')) {
        ("tcp", Some((_, port))) => format!("tcp://{host}:{port}"),
        ("tls" | "quic", Some((_, port))) => format!("{scheme}://{id}@{host}:{port}"),
        _ => address.to_owned(),
    }
}

/// One socket of the far end.
async fn work(job: Job, addresses: Vec<String>, plaintext: bool, meter: Arc<Meter>) -> Result<(), Failure> {
    match (job.what, job.way) {
        (_, Way::Raw) => raw::far(&job, &addresses, &meter).await,
        (What::Lat, _) => reply(&job, &addresses, plaintext).await,
        (What::Thr, way) => pull(&job, way, &addresses, plaintext, &meter).await,
        (What::Fan, way) => subscribe(&job, way, &addresses, plaintext, &meter).await,
    }
}

fn builder<P: Pattern>(builder: Builder<P>, job: &Job, plaintext: bool) -> Builder<P> {
    let builder = builder.max_message(job.max_message()).key(SecretKey::generate());
    if plaintext && job.transport == Transport::Tcp { builder.danger_plaintext() } else { builder }
}

async fn pull(job: &Job, way: Way, to: &[String], plaintext: bool, meter: &Meter) -> Result<(), Failure> {
    let pull = builder(Pull::builder(), job, plaintext).build();
    for address in to {
        pull.connect_to(address).await?;
    }
    let mut sequence = Sequence::new(job, meter);
    if way == Way::Plain {
        while let Ok(message) = pull.recv().await {
            sequence.check(message.payload())?;
            meter.taken(1);
        }
        return Ok(());
    }
    let mut messages = Vec::with_capacity(MANY);
    while let Ok(taken) = pull.recv_many(&mut messages, MANY).await {
        for message in messages.drain(..) {
            sequence.check(message.payload())?;
        }
        meter.taken(taken as u64);
    }
    Ok(())
}

async fn subscribe(job: &Job, way: Way, to: &[String], plaintext: bool, meter: &Meter) -> Result<(), Failure> {
    let sub = builder(Sub::builder(), job, plaintext).build();
    sub.subscribe("").await.map_err(|error| Failure::Failed(error.to_string()))?;
    for address in to {
        sub.connect_to(address).await?;
    }
    let mut sequence = Sequence::new(job, meter);
    let lagged = |missed| Failure::Failed(format!("a subscriber missed {missed} messages"));
    if way == Way::Plain {
        loop {
            match sub.recv().await {
                Ok(message) => sequence.check(message.payload())?,
                Err(SubRecvError::Lagged(missed)) => return Err(lagged(missed)),
                Err(_) => return Ok(()),
            }
            meter.taken(1);
        }
    }
    let mut all = Vec::with_capacity(MANY);
    while let Ok(taken) = sub.recv_many(&mut all, MANY).await {
        for heard in all.drain(..) {
            match heard {
                Heard::Message(message) => sequence.check(message.payload())?,
                Heard::Lagged(missed) => return Err(lagged(missed)),
            }
        }
        meter.taken(taken as u64);
    }
    Ok(())
}

async fn reply(job: &Job, to: &[String], plaintext: bool) -> Result<(), Failure> {
    let rep = builder(Rep::builder(), job, plaintext).build();
    for address in to {
        rep.connect_to(address).await?;
    }
    while let Ok(request) = rep.recv().await {
        let message = request.message().clone();
        request.reply(message).await.map_err(|error| Failure::Failed(error.to_string()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::reachable;

    #[test]
    fn the_host_that_was_dialled_is_dialled_again() {
        let control = "tcp://10.0.0.7:7000";
        assert_eq!(reachable("tcp://0.0.0.0:7001", control), "tcp://10.0.0.7:7001");
        assert_eq!(reachable("tcp://[::]:7001", "tcp://[::1]:7000"), "tcp://[::1]:7001");
        assert_eq!(reachable("tls://id@0.0.0.0:7001", control), "tls://id@10.0.0.7:7001");
        for same in ["ipc:///tmp/a:b", "inproc://name"] {
            assert_eq!(reachable(same, control), same);
        }
        assert_eq!(reachable("tcp://127.0.0.1:7001", "inproc://name"), "tcp://127.0.0.1:7001");
    }
}
