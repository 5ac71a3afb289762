//! zenoh between two peers that know each other: reliable, blocking where it would drop, received in callbacks as its own
//! measurements do, on its own threads. `many` is pings and pongs on two topics instead of queries.

use std::{
    net::{Ipv4Addr, TcpListener, UdpSocket},
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use zenoh::{
    Config, Session, Wait,
    pubsub::Publisher,
    qos::CongestionControl,
    query::{ConsolidationMode, Querier},
    sample::Sample,
};

use crate::{
    child::{Check, Job, Outcome, Payload, Report, Role, Start, histogram, wait_for_go},
    transport::Transport,
};

const THERE: &str = "compare/there";
const BACK: &str = "compare/back";

pub fn run(job: &Job) -> Outcome<Report> {
    let (session, address) = match job.role {
        Role::Pull | Role::Rep => listen(job)?,
        _ => dial(job)?,
    };
    let report = match (job.role, job.many) {
        (Role::Pull, _) => pull(&session, job, &address),
        (Role::Push, _) => push(&session, job),
        (Role::Rep, false) => rep(&session, job, &address),
        (Role::Req, false) => req(&session, job),
        (Role::Rep, true) => pong(&session, job, &address),
        (Role::Req, true) => ping(&session, job),
        _ => Err("zenoh is measured with one sender and one receiver".into()),
    }?;
    session.close().wait()?;
    Ok(report)
}

/// Also gives what the other side has to know: the endpoint and the certificate.
fn listen(job: &Job) -> Outcome<(Session, String)> {
    let made = rcgen::generate_simple_self_signed(["localhost".into(), Ipv4Addr::LOCALHOST.to_string()])?;
    let (certificate, key) = (STANDARD.encode(made.cert.pem()), STANDARD.encode(made.signing_key.serialize_pem()));
    let endpoint = format!("{}/{}:{}", job.transport, Ipv4Addr::LOCALHOST, free_port(job.transport)?);
    let tls = format!(r#"listen_certificate_base64: "{certificate}", listen_private_key_base64: "{key}""#);
    let session = zenoh::open(config("listen", &endpoint, &tls)?).wait()?;
    Ok((session, format!("{endpoint} {certificate}")))
}

fn dial(job: &Job) -> Outcome<(Session, String)> {
    let (endpoint, certificate) = job.address.split_once(' ').ok_or("an address without a certificate")?;
    let tls = format!(r#"root_ca_certificate_base64: "{certificate}""#);
    Ok((zenoh::open(config("connect", endpoint, &tls)?).wait()?, String::new()))
}

/// It does not say which port it was given, so it is told one that was free a moment ago.
fn free_port(transport: Transport) -> Outcome<u16> {
    let any = (Ipv4Addr::LOCALHOST, 0);
    Ok(match transport {
        Transport::Quic => UdpSocket::bind(any)?.local_addr()?.port(),
        _ => TcpListener::bind(any)?.local_addr()?.port(),
    })
}

fn config(way: &str, endpoint: &str, tls: &str) -> Outcome<Config> {
    let other = if way == "listen" { "connect" } else { "listen" };
    Config::from_json5(&format!(
        r#"{{
            mode: "peer",
            {way}: {{ endpoints: ["{endpoint}"] }},
            {other}: {{ endpoints: [] }},
            scouting: {{ multicast: {{ enabled: false }} }},
            transport: {{ link: {{ tls: {{ {tls} }} }} }},
        }}"#
    ))
}

/// What a callback takes.
struct Taken {
    job: Job,
    check: Check,
    started: Option<Start>,
    got: u64,
    done: SyncSender<Outcome<Report>>,
}

impl Taken {
    fn new(job: &Job) -> (Self, Receiver<Outcome<Report>>) {
        let (done, ended) = sync_channel(2);
        (Self { job: job.clone(), check: job.check(), started: None, got: 0, done }, ended)
    }

    fn message(&mut self, message: &[u8]) {
        let start = self.started.get_or_insert_with(|| self.job.start());
        self.got += 1;
        // Who waits hears of the first; there is no place for more.
        if let Err(error) = self.check.message(message) {
            let _heard = self.done.try_send(Err(error));
        } else if self.got == self.job.count {
            let _heard = self.done.try_send(Ok(start.report(self.got)));
        }
    }
}

/// The session stays until the other side is done and the parent says so.
fn settle(report: Report) -> Outcome<Report> {
    report.say();
    wait_for_go()?;
    Ok(report)
}

fn publisher(session: &Session, key: &'static str, express: bool) -> Outcome<Publisher<'static>> {
    session.declare_publisher(key).congestion_control(CongestionControl::Block).express(express).wait()
}

fn wait_until(is_there: impl Fn() -> Outcome<bool>) -> Outcome {
    while !is_there()? {
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

fn pull(session: &Session, job: &Job, address: &str) -> Outcome<Report> {
    let (mut taken, ended) = Taken::new(job);
    let take = move |sample: Sample| taken.message(&sample.payload().to_bytes());
    let _subscriber = session.declare_subscriber(THERE).callback_mut(take).wait()?;
    job.listening(address);
    settle(ended.recv()??)
}

fn push(session: &Session, job: &Job) -> Outcome<Report> {
    let publisher = publisher(session, THERE, false)?;
    wait_until(|| Ok(publisher.matching_status().wait()?.matching()))?;
    job.linked();
    job.wait_for_go()?;
    let start = job.start();
    let mut payload = Payload::new(job.size);
    for number in 0..job.count {
        publisher.put(payload.number(number)).wait()?;
    }
    settle(start.report(job.count))
}

fn rep(session: &Session, job: &Job, address: &str) -> Outcome<Report> {
    let (mut taken, ended) = Taken::new(job);
    let answer = move |query: zenoh::query::Query| {
        let payload = query.payload().cloned().unwrap_or_default();
        // One that is not answered is missed by who asked.
        let _answered = query.reply(THERE, payload.clone()).express(true).wait();
        taken.message(&payload.to_bytes());
    };
    let _queryable = session.declare_queryable(THERE).callback_mut(answer).wait()?;
    job.listening(address);
    settle(ended.recv()??)
}

fn req(session: &Session, job: &Job) -> Outcome<Report> {
    let querier: Querier<'_> = session
        .declare_querier(THERE)
        .congestion_control(CongestionControl::Block)
        .express(true)
        .consolidation(ConsolidationMode::None)
        .wait()?;
    wait_until(|| Ok(querier.matching_status().wait()?.matching()))?;
    let ask = |question: &[u8]| {
        let reply = querier.get().payload(question).wait()?.recv()?;
        let sample = reply.into_result().map_err(|error| error.to_string())?;
        Ok(sample.payload().to_bytes().into_owned())
    };
    ask_each(job, ask)
}

/// Asks one after the other.
fn ask_each(job: &Job, ask: impl Fn(&[u8]) -> Outcome<Vec<u8>>) -> Outcome<Report> {
    job.linked();
    job.wait_for_go()?;
    let (mut payload, mut latency) = (Payload::new(job.size), histogram());
    let start = job.start();
    for number in 0..job.count {
        let asked = Instant::now();
        let answer = ask(payload.number(number))?;
        latency.saturating_record(asked.elapsed().as_nanos() as u64);
        if answer != payload.number(number) {
            return Err("a wrong answer".into());
        }
    }
    settle(start.report(job.count).with_latency(&latency))
}

fn pong(session: &Session, job: &Job, address: &str) -> Outcome<Report> {
    let (mut taken, ended) = Taken::new(job);
    let back = publisher(session, BACK, true)?;
    let answer = move |sample: Sample| {
        let _answered = back.put(sample.payload().clone()).wait();
        taken.message(&sample.payload().to_bytes());
    };
    let _subscriber = session.declare_subscriber(THERE).callback_mut(answer).wait()?;
    job.listening(address);
    settle(ended.recv()??)
}

fn ping(session: &Session, job: &Job) -> Outcome<Report> {
    let (answered, answer) = sync_channel(1);
    let take = move |sample: Sample| {
        // One that nobody waits for any more.
        let _late = answered.try_send(sample.payload().to_bytes().into_owned());
    };
    let _subscriber = session.declare_subscriber(BACK).callback(take).wait()?;
    let there = publisher(session, THERE, true)?;
    wait_until(|| Ok(there.matching_status().wait()?.matching()))?;
    // Whether the other side knows of our subscriber cannot be asked.
    std::thread::sleep(Duration::from_millis(200));
    ask_each(job, |question| {
        there.put(question).wait()?;
        Ok(answer.recv()?)
    })
}
