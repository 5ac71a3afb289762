//! The far end as the near one sees it: a process, a task, or somebody on another machine.

use std::{
    path::PathBuf,
    pin::pin,
    process::Stdio,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use ropewalk::{Builder, Req, SecretKey, Socket, patterns::Pattern};
use tokio::{
    process::{Child, Command},
    sync::Mutex,
    task::JoinHandle,
};

use super::{
    BenchArgs, far,
    job::{Job, Transport},
    meter::Figures,
};
use crate::{failure::Failure, output::note};

/// How long the far end may take to end.
const ENDS: Duration = Duration::from_secs(5);

/// How long after its links have died the far end may take to say why.
const TELLS: Duration = Duration::from_secs(1);

/// Both ends, once they have met. Dropped, a far process is killed.
pub(super) struct Ends {
    control: Req,
    far: Mutex<Far>,
    /// Where sockets listen between two machines: host and first port.
    listens: Option<(String, u16)>,
    plaintext: bool,
    /// For tls and quic; both ends make one for each measurement.
    key: SecretKey,
}

enum Far {
    Process(Box<Child>),
    Task(JoinHandle<Result<(), Failure>>),
    Elsewhere,
}

impl Ends {
    /// Starts the far end, or waits for it.
    pub(super) async fn meet(job: &Job, args: &BenchArgs) -> Result<Self, Failure> {
        let control = with_plaintext(Req::builder(), args.plaintext).build();
        let here = if job.one_process { format!("inproc://{}", name()) } else { "tcp://127.0.0.1:0".to_owned() };
        let address = control.bind_to(args.listen.as_deref().unwrap_or(&here)).await?;
        let (mut listens, mut far) = (None, Far::Elsewhere);
        if let Some(asked) = &args.listen {
            let (host, port) = host_and_port(&address.to_string())?;
            note(format_args!("listening on {address}"));
            note(format_args!("on the other machine: ropewalk bench thr --connect tcp://HOST:{port}"));
            // Where any port will do, any will do for the others, too.
            listens = Some((host, host_and_port(asked)?.1));
        } else if job.one_process {
            far = Far::Task(tokio::spawn(async move { far::serve(&address.to_string(), false).await }));
        } else {
            let mut command = Command::new(std::env::current_exe().map_err(failed)?);
            command.args(["bench", "thr", "--connect"]).arg(address.to_string());
            command.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
            // An interrupt of the terminal is for this process, which ends that one.
            #[cfg(unix)]
            command.process_group(0);
            far = Far::Process(Box::new(command.spawn().map_err(failed)?));
        }
        let ends =
            Self { control, far: Mutex::new(far), listens, plaintext: args.plaintext, key: SecretKey::generate() };
        tokio::select! {
            ready = ends.control.ready() => ready.map_err(|error| Failure::failed(error.to_string()))?,
            ended = ends.ended() => return Err(ended),
        }
        if ends.listens.is_some() {
            note(format_args!("the far end is there"));
        }
        Ok(ends)
    }

    /// A builder for sockets of the near end.
    pub(super) fn builder<P: Pattern>(&self, builder: Builder<P>, job: &Job) -> Builder<P> {
        // Whoever takes part in a measurement may: what is sent is of no worth.
        let builder = builder.key(self.key.clone()).allow_any_peer();
        with_plaintext(builder, self.plaintext).max_message(job.max_message())
    }

    /// Where one of the sockets of a run listens.
    pub(super) fn place(&self, job: &Job, index: u16) -> Result<Place, Failure> {
        let name = name();
        let path = std::env::temp_dir().join(&name);
        let (host, port) = match &self.listens {
            Some((host, 0)) => (host.as_str(), 0),
            Some((host, first)) => (host.as_str(), first.checked_add(1 + index).ok_or_else(no_port)?),
            None => ("127.0.0.1", 0),
        };
        let tcp = format!("tcp://{host}:{port}");
        let (address, raw) = match job.transport {
            Transport::Tcp => (tcp.clone(), tcp),
            Transport::Tls => (format!("tls://{host}:{port}"), tcp),
            Transport::Quic => (format!("quic://{host}:{port}"), tcp),
            Transport::Ipc => (format!("ipc://{}", path.display()), format!("ipc://{}", path.display())),
            Transport::Inproc => (format!("inproc://{name}"), tcp),
        };
        Ok(Place { address, raw, path })
    }

    /// Lets the far end run a job with sockets that connect to these addresses, and waits for what it measured.
    pub(super) async fn run(&self, job: &Job, addresses: &[String]) -> Result<Figures, Failure> {
        self.ask(&format!("run {job}\n{}", addresses.join("\n"))).await?.parse().map_err(Failure::Failed)
    }

    /// Ends the job.
    pub(super) async fn end(&self) -> Result<(), Failure> {
        self.ask("end").await.map(drop)
    }

    /// Ends the far end.
    pub(super) async fn part(self) -> Result<(), Failure> {
        let Self { control, far, .. } = self;
        // It may be gone before its answer is here; how it ended is what counts.
        let _well = control.request("bye").timeout(ENDS).retries(0).await;
        control.close().await;
        let ended = async {
            match far.into_inner() {
                Far::Process(mut child) => match child.wait().await.map_err(failed)? {
                    status if status.success() => Ok(()),
                    status => Err(Failure::Failed(format!("the far end: {status}"))),
                },
                Far::Task(task) => task.await.unwrap_or_else(|error| Err(Failure::failed(error.to_string()))),
                Far::Elsewhere => Ok(()),
            }
        };
        // A process that takes longer is killed as it is dropped.
        tokio::time::timeout(ENDS, ended).await.unwrap_or(Ok(()))
    }

    async fn ask(&self, what: &str) -> Result<String, Failure> {
        let asked = self.control.request(what).timeout(Duration::MAX).retries(0);
        let answer = tokio::select! {
            answer = asked => answer.map_err(|error| Failure::Failed(format!("the far end: {error}")))?,
            ended = self.ended() => return Err(ended),
        };
        let text = answer.text().map_err(|_| Failure::failed("the far end says what is no text"))?;
        match text.split_once(' ') {
            Some(("failed", why)) => Err(Failure::Failed(format!("the far end: {why}"))),
            _ => Ok(text.to_owned()),
        }
    }

    /// Waits until the far end is gone before it was told to go.
    async fn ended(&self) -> Failure {
        let why = match &mut *self.far.lock().await {
            Far::Process(child) => match child.wait().await {
                Ok(status) => format!("the far end ended before it was done: {status}"),
                Err(error) => format!("the far end: {error}"),
            },
            Far::Task(task) => match task.await {
                Ok(Err(failure)) => return failure,
                Ok(Ok(())) => "the far end ended before it was done".into(),
                Err(error) => format!("the far end: {error}"),
            },
            Far::Elsewhere => std::future::pending().await,
        };
        Failure::Failed(why)
    }
}

/// Does the near end's part beside the far end's.
pub(super) async fn beside<T>(
    near: impl Future<Output = Result<T, Failure>>,
    far: impl Future<Output = Result<Figures, Failure>>,
) -> Result<(T, Figures), Failure> {
    let (mut near, mut far) = (pin!(near), pin!(far));
    tokio::select! {
        done = &mut near => match done {
            Ok(done) => Ok((done, far.await?)),
            Err(failure) => Err(why(failure, far).await),
        },
        figures = &mut far => {
            let figures = figures?;
            Ok((near.await?, figures))
        }
    }
}

/// Why the near end has failed: when the far end is gone its links die, which say less.
pub(super) async fn why(failure: Failure, far: impl Future<Output = Result<Figures, Failure>>) -> Failure {
    match tokio::time::timeout(TELLS, far).await {
        Ok(Err(why)) => why,
        _ => failure,
    }
}

fn with_plaintext<P: Pattern>(builder: Builder<P>, plaintext: bool) -> Builder<P> {
    if plaintext { builder.danger_plaintext() } else { builder }
}

/// A name that nobody else uses.
fn name() -> String {
    static NAMES: AtomicU64 = AtomicU64::new(0);
    format!("ropewalk-{}-{}", std::process::id(), NAMES.fetch_add(1, Relaxed))
}

fn host_and_port(address: &str) -> Result<(String, u16), Failure> {
    let parts = address.strip_prefix("tcp://").and_then(|rest| rest.rsplit_once(':'));
    let parsed = parts.and_then(|(host, port)| Some((host.to_owned(), port.parse().ok()?)));
    parsed.ok_or_else(|| Failure::Usage(format!("--listen {address}: only tcp:// connects two machines")))
}

fn no_port() -> Failure {
    Failure::Usage("--listen: there are not enough ports behind this one".into())
}

fn failed(error: std::io::Error) -> Failure {
    Failure::Failed(format!("the far end: {error}"))
}

/// An address nobody else listens on, and the file to be removed at the end if it has one.
pub(super) struct Place {
    pub(super) address: String,
    /// Where a bare socket listens: as above, but over tcp if that is within this process.
    pub(super) raw: String,
    path: PathBuf,
}

impl Place {
    /// Listens here. The address that can be dialled.
    pub(super) async fn bind<P: Pattern>(&self, socket: &Socket<P>) -> Result<String, Failure> {
        Ok(socket.bind_to(&self.address).await?.to_string())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Most places have no file.
        let _none = std::fs::remove_file(&self.path);
    }
}
