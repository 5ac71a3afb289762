//! What is measured, and the running of one measurement in two processes.

use std::{process::Stdio, time::Duration};

use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command},
    task::JoinSet,
};

use crate::{
    child::{Outcome, Report, Role},
    contestants::Contestant,
    transport::Transport,
};

/// No run takes longer; one that does has failed.
const DEADLINE: Duration = Duration::from_secs(20);

/// What runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One PUSH to one PULL.
    OneWay,
    /// Requests one after the other.
    RoundTrip,
    /// One PUB to several SUBs, nothing dropped.
    Fan,
    /// Several PUSH to one PULL.
    In,
    /// One PUSH to several PULLs.
    Out,
    /// Requests one after the other, while the same processes send all they can over another link.
    Beside,
}

/// One line of the table.
#[derive(Debug, Clone, Copy)]
pub struct Workload {
    pub name: &'static str,
    pub transport: Transport,
    pub kind: Kind,
    pub size: usize,
    pub peers: usize,
    /// Messages for the fastest; the slower are given fewer so that a run takes about a second.
    pub count: u64,
}

pub const WORKLOADS: &[Workload] = &[
    tcp("one-way 16 B", Kind::OneWay, 16, 1, 4_000_000),
    tcp("one-way 64 B", Kind::OneWay, 64, 1, 4_000_000),
    tcp("one-way 1 KiB", Kind::OneWay, 1 << 10, 1, 1_000_000),
    tcp("one-way 64 KiB", Kind::OneWay, 64 << 10, 1, 30_000),
    tcp("round trip 64 B", Kind::RoundTrip, 64, 1, 20_000),
    tcp("round trip 1 KiB", Kind::RoundTrip, 1 << 10, 1, 20_000),
    tcp("PUB to 1 SUB 64 B", Kind::Fan, 64, 1, 2_000_000),
    tcp("PUB to 8 SUB 64 B", Kind::Fan, 64, 8, 500_000),
    tcp("PUB to 64 SUB 64 B", Kind::Fan, 64, 64, 60_000),
    tcp("8 PUSH to 1 PULL 64 B", Kind::In, 64, 8, 300_000),
    tcp("1 PUSH to 8 PULL 64 B", Kind::Out, 64, 8, 2_000_000),
    tcp("round trip 64 B beside a busy link", Kind::Beside, 64, 1, 3_000),
    pair("tls one-way 1 KiB", Transport::Tls, Kind::OneWay, 1 << 10, 1_500_000),
    pair("tls one-way 64 KiB", Transport::Tls, Kind::OneWay, 64 << 10, 40_000),
    pair("tls round trip 64 B", Transport::Tls, Kind::RoundTrip, 64, 15_000),
    pair("quic one-way 1 KiB", Transport::Quic, Kind::OneWay, 1 << 10, 500_000),
    pair("quic one-way 64 KiB", Transport::Quic, Kind::OneWay, 64 << 10, 10_000),
    pair("quic round trip 64 B", Transport::Quic, Kind::RoundTrip, 64, 10_000),
];

const fn tcp(name: &'static str, kind: Kind, size: usize, peers: usize, count: u64) -> Workload {
    Workload { name, transport: Transport::Tcp, kind, size, peers, count }
}

const fn pair(name: &'static str, transport: Transport, kind: Kind, size: usize, count: u64) -> Workload {
    Workload { name, transport, kind, size, peers: 1, count }
}

impl Kind {
    /// Who listens, who dials, and whether the one who listens is told to go.
    fn roles(self) -> (Role, Role, bool) {
        match self {
            Self::OneWay | Self::In => (Role::Pull, Role::Push, false),
            Self::RoundTrip => (Role::Rep, Role::Req, false),
            Self::Fan => (Role::Pub, Role::Sub, true),
            Self::Beside => (Role::RepBeside, Role::ReqBeside, false),
            Self::Out => (Role::PushBound, Role::PullMany, true),
        }
    }

    /// Whether it is round trips that are measured.
    pub fn is_round_trip(self) -> bool {
        matches!(self, Self::RoundTrip | Self::Beside)
    }
}

/// One figure of one contestant.
#[derive(Debug, Clone, Copy, Default)]
pub struct Figure {
    /// Messages (deliveries for PUB) a second.
    pub rate: f64,
    /// Both sides together.
    pub cpu_nanos_per_message: f64,
    /// The larger of both sides.
    pub peak_kib: u64,
    pub latency: [u64; 3],
    /// Messages a second of the load beside it.
    pub load: f64,
}

/// Runs a workload once.
pub async fn once(workload: &Workload, contestant: &Contestant, scale: f64) -> Outcome<Figure> {
    let run = async {
        let (listens, dials, listener_goes) = contestant.does(workload.kind).roles();
        let count = ((workload.count as f64 * contestant.slower * scale) as u64).max(1000);
        let args = |role: Role, address: &str| {
            let mut args: Vec<String> = ["child", contestant.library, contestant.runtime].map(String::from).into();
            args.extend([role.to_string(), workload.transport.to_string(), workload.size.to_string()]);
            args.extend([count.to_string(), workload.peers.to_string(), contestant.many.to_string()]);
            args.push(address.to_owned());
            args
        };
        let mut listener = Side::start(args(listens, "-"))?;
        let address = listener.line("at ").await?;
        let mut dialler = Side::start(args(dials, &address))?;
        dialler.line("linked").await?;
        let (sender, receiver) =
            if listener_goes { (&mut listener, &mut dialler) } else { (&mut dialler, &mut listener) };
        sender.go().await?;
        // Whichever fails first says why.
        let (sent, received) = tokio::try_join!(sender.report(), receiver.report())?;
        // Who closes without waiting for its messages is told that it may end.
        let _over = sender.go().await;
        let _over = receiver.go().await;
        sender.end().await?;
        receiver.end().await?;
        if workload.kind == Kind::Beside && received.load == 0 {
            return Err("the load stood still".into());
        }
        let clock = if workload.kind.is_round_trip() { &sent } else { &received };
        Ok(Figure {
            rate: clock.messages as f64 * 1e9 / clock.nanos.max(1) as f64,
            cpu_nanos_per_message: (sent.cpu_nanos + received.cpu_nanos) as f64 / clock.messages.max(1) as f64,
            peak_kib: sent.peak_kib.max(received.peak_kib),
            latency: clock.latency,
            load: received.load as f64,
        })
    };
    tokio::time::timeout(DEADLINE, run).await.unwrap_or_else(|_| Err("it took more than 20 s".into()))
}

/// One of the two processes. Killed when dropped.
struct Side {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    errors: Lines<BufReader<ChildStderr>>,
}

impl Side {
    fn start(args: Vec<String>) -> Outcome<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn()?;
        let input = child.stdin.take().ok_or("no stdin")?;
        let output = BufReader::new(child.stdout.take().ok_or("no stdout")?).lines();
        let errors = BufReader::new(child.stderr.take().ok_or("no stderr")?).lines();
        Ok(Self { child, input, output, errors })
    }

    async fn line(&mut self, prefix: &str) -> Outcome<String> {
        let Some(line) = self.output.next_line().await? else {
            let why = self.errors.next_line().await?.unwrap_or_default();
            return Err(format!("a process ended too early: {why}").into());
        };
        if let Some(why) = line.strip_prefix("failed: ") {
            return Err(why.into());
        }
        let rest = line.strip_prefix(prefix).ok_or_else(|| format!("not what was due: {line}"))?;
        Ok(rest.to_owned())
    }

    async fn go(&mut self) -> Outcome {
        self.input.write_all(b"go\n").await?;
        self.input.flush().await?;
        Ok(())
    }

    async fn report(&mut self) -> Outcome<Report> {
        let line = self.line("").await?;
        Report::parse(&line).ok_or_else(|| format!("not a report: {line}").into())
    }

    async fn end(&mut self) -> Outcome {
        match tokio::time::timeout(Duration::from_secs(10), self.child.wait()).await {
            Ok(status) => {
                if status?.success() {
                    Ok(())
                } else {
                    Err("a process failed".into())
                }
            }
            Err(_) => Err("a process did not end".into()),
        }
    }
}

/// The reports of several tasks as one: all their messages in the time of the slowest.
pub async fn together(mut tasks: JoinSet<Outcome<Report>>) -> Outcome<Report> {
    let mut all = Report::default();
    while let Some(done) = tasks.join_next().await {
        let report = done??;
        all.messages += report.messages;
        all.nanos = all.nanos.max(report.nanos);
        // Each saw the whole process.
        all.cpu_nanos = all.cpu_nanos.max(report.cpu_nanos);
    }
    Ok(all)
}
