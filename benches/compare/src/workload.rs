//! What is measured, and the running of one measurement in two processes.

use std::{process::Stdio, time::Duration};

use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    task::JoinSet,
};

use crate::child::{Outcome, Report, Role};

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
    pub kind: Kind,
    pub size: usize,
    pub peers: usize,
    /// Messages for the fastest; the slower are given fewer so that a run takes about a second.
    pub count: u64,
}

pub const WORKLOADS: &[Workload] = &[
    Workload { name: "one-way 16 B", kind: Kind::OneWay, size: 16, peers: 1, count: 4_000_000 },
    Workload { name: "one-way 64 B", kind: Kind::OneWay, size: 64, peers: 1, count: 4_000_000 },
    Workload { name: "one-way 1 KiB", kind: Kind::OneWay, size: 1 << 10, peers: 1, count: 1_000_000 },
    Workload { name: "one-way 64 KiB", kind: Kind::OneWay, size: 64 << 10, peers: 1, count: 30_000 },
    Workload { name: "round trip 64 B", kind: Kind::RoundTrip, size: 64, peers: 1, count: 20_000 },
    Workload { name: "round trip 1 KiB", kind: Kind::RoundTrip, size: 1 << 10, peers: 1, count: 20_000 },
    Workload { name: "PUB to 1 SUB 64 B", kind: Kind::Fan, size: 64, peers: 1, count: 2_000_000 },
    Workload { name: "PUB to 8 SUB 64 B", kind: Kind::Fan, size: 64, peers: 8, count: 500_000 },
    Workload { name: "PUB to 64 SUB 64 B", kind: Kind::Fan, size: 64, peers: 64, count: 60_000 },
    Workload { name: "8 PUSH to 1 PULL 64 B", kind: Kind::In, size: 64, peers: 8, count: 300_000 },
    Workload { name: "1 PUSH to 8 PULL 64 B", kind: Kind::Out, size: 64, peers: 8, count: 2_000_000 },
    Workload { name: "round trip 64 B beside a busy link", kind: Kind::Beside, size: 64, peers: 1, count: 3_000 },
];

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

/// Runs a workload once. `flavor`: contestant, runtime, batches.
pub async fn once(workload: &Workload, contestant: &str, runtime: &str, many: bool, scale: f64) -> Outcome<Figure> {
    let run = async {
        let (listens, dials, listener_goes) = workload.kind.roles();
        let count = ((workload.count as f64 * scale) as u64).max(1000);
        let args = |role: Role, address: &str| {
            let mut args: Vec<String> = ["child", contestant, runtime].map(String::from).into();
            args.extend([role.to_string(), workload.size.to_string(), count.to_string(), workload.peers.to_string()]);
            args.extend([many.to_string(), address.to_owned()]);
            args
        };
        let mut listener = Side::start(args(listens, "-"))?;
        let address = listener.line("at ").await?;
        let mut dialler = Side::start(args(dials, &address))?;
        dialler.line("linked").await?;
        let (sender, receiver) =
            if listener_goes { (&mut listener, &mut dialler) } else { (&mut dialler, &mut listener) };
        sender.go().await?;
        let (sent, received) = if workload.kind.is_round_trip() {
            let sent = sender.report().await?;
            (sent, receiver.report().await?)
        } else {
            let received = receiver.report().await?;
            (sender.report().await?, received)
        };
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
}

impl Side {
    fn start(args: Vec<String>) -> Outcome<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn()?;
        let input = child.stdin.take().ok_or("no stdin")?;
        let output = BufReader::new(child.stdout.take().ok_or("no stdout")?).lines();
        Ok(Self { child, input, output })
    }

    async fn line(&mut self, prefix: &str) -> Outcome<String> {
        let line = self.output.next_line().await?.ok_or("a process ended too early")?;
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
