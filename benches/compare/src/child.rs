//! One side of one run, in a process of its own. It says where it listens, waits to be told to go, and reports in one
//! line what it measured.

use std::{
    collections::BTreeMap,
    error::Error,
    fmt,
    io::{BufRead, Write},
    str::FromStr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;

use crate::transport::Transport;

pub type Outcome<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

/// What a process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Takes `count` messages from all senders together; listens.
    Pull,
    /// Sends `count` messages from each of `peers` sockets; dials.
    Push,
    /// Sends `count` messages to whoever dials; listens.
    PushBound,
    /// Takes `count` messages with `peers` sockets together; dials.
    PullMany,
    /// Answers until it is told to stop; listens.
    Rep,
    /// Asks `count` times one after the other; dials.
    Req,
    /// Publishes `count` messages; listens.
    Pub,
    /// Takes `count` messages with each of `peers` subscribers; dials.
    Sub,
    /// Answers while another socket of this process takes all it can; both listen.
    RepBeside,
    /// Asks while another socket of this process sends all it can; both dial.
    ReqBeside,
}

const ROLES: [(Role, &str); 10] = [
    (Role::Pull, "pull"),
    (Role::Push, "push"),
    (Role::PushBound, "push-bound"),
    (Role::PullMany, "pull-many"),
    (Role::Rep, "rep"),
    (Role::Req, "req"),
    (Role::Pub, "pub"),
    (Role::Sub, "sub"),
    (Role::RepBeside, "rep-beside"),
    (Role::ReqBeside, "req-beside"),
];

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = ROLES.iter().find(|(role, _)| role == self).map_or("", |(_, name)| name);
        f.write_str(name)
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let role = ROLES.iter().find(|(_, known)| *known == name).map(|(role, _)| *role);
        role.ok_or_else(|| format!("no role {name}"))
    }
}

/// What is to be done.
#[derive(Debug, Clone)]
pub struct Job {
    pub role: Role,
    pub transport: Transport,
    pub size: usize,
    pub count: u64,
    pub peers: usize,
    /// Batches where the library has them.
    pub many: bool,
    /// Where to dial.
    pub address: String,
    /// The load beside what is measured, if there is one; what runs as the load says nothing to the parent.
    pub load: Option<Arc<Load>>,
    pub is_load: bool,
}

/// A link that is kept busy beside the one that is measured, in the same two processes.
#[derive(Debug, Default)]
pub struct Load {
    /// Where its receiver listens.
    address: Mutex<Option<String>>,
    /// How many messages it has received.
    received: AtomicU64,
}

/// The size of its messages.
const LOAD: usize = 1 << 10;

impl Load {
    fn address(&self) -> Option<String> {
        self.address.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Job {
    /// What runs as the load beside this, for ever.
    pub fn beside(&mut self) -> Outcome<Option<Self>> {
        let role = match self.role {
            Role::RepBeside => Role::Pull,
            Role::ReqBeside => Role::Push,
            _ => return Ok(None),
        };
        let load = Arc::new(Load::default());
        let mut job =
            Self { role, size: LOAD, count: u64::MAX, is_load: true, load: Some(load.clone()), ..self.clone() };
        if role == Role::Pull {
            self.role = Role::Rep;
        } else {
            self.role = Role::Req;
            let (own, of_load) = self.address.split_once(' ').ok_or("no address of the load")?;
            job.address = of_load.into();
            self.address = own.into();
        }
        self.load = Some(load);
        Ok(Some(job))
    }

    /// Waits until the load can be dialled, if we listen.
    pub fn wait_for_load(&self) -> Outcome {
        let since = Instant::now();
        while self.role == Role::Rep && self.load.as_ref().is_some_and(|load| load.address().is_none()) {
            if since.elapsed() > Duration::from_secs(5) {
                return Err("the load does not listen".into());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Measuring begins.
    pub fn start(&self) -> Start {
        let load = self.load.clone();
        let load_before = load.as_ref().map_or(0, |load| load.received.load(Relaxed));
        Start { since: Instant::now(), cpu: cpu_time(), load, load_before }
    }

    /// Tells the parent where we listen.
    pub fn listening(&self, address: &str) {
        match &self.load {
            Some(load) if self.is_load => {
                *load.address.lock().unwrap_or_else(PoisonError::into_inner) = Some(address.into());
            }
            Some(load) => say(&format!("at {address} {}", load.address().unwrap_or_default())),
            None => say(&format!("at {address}")),
        }
    }

    /// Tells the parent that we are linked as far as we can see.
    pub fn linked(&self) {
        if !self.is_load {
            say("linked");
        }
    }

    /// Waits for the parent's word.
    pub fn wait_for_go(&self) -> Outcome {
        if self.is_load { Ok(()) } else { wait_for_go() }
    }

    /// The same without holding up a runtime.
    pub async fn go(&self) -> Outcome {
        if self.is_load { Ok(()) } else { go().await }
    }

    /// Checks what is received.
    pub fn check(&self) -> Check {
        let load = self.load.clone().filter(|_| self.is_load);
        Check { size: self.size.max(8), last: 0, due: 0, others: BTreeMap::new(), load }
    }
}

/// Without the load there is nothing to measure.
pub fn load_ended(how: Outcome<Report>) -> ! {
    eprintln!("the load ended: {}", how.err().map_or_else(|| "it was done".into(), |error| error.to_string()));
    std::process::exit(1);
}

/// Waits for the parent's word, holding up this thread.
pub fn wait_for_go() -> Outcome {
    let mut line = String::new();
    match std::io::stdin().lock().read_line(&mut line)? {
        0 => Err("the parent is gone".into()),
        _ => Ok(()),
    }
}

/// Waits for the parent's word.
async fn go() -> Outcome {
    tokio::task::spawn_blocking(wait_for_go).await?
}

/// Tells the parent why there will be no report.
pub fn failed(why: &str) {
    say(&format!("failed: {}", why.replace('\n', " ")));
}

/// Where closing does not wait for what was accepted, the socket stays until the other side is done and the parent says
/// so.
pub async fn settle(report: &Report) {
    report.say();
    let _told = go().await;
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // A parent that is gone is seen when it should say go.
    let _gone = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// A message of this size that says its number.
pub struct Payload(Vec<u8>);

impl Payload {
    pub fn new(size: usize) -> Self {
        Self(vec![b'x'; size.max(8)])
    }

    pub fn number(&mut self, number: u64) -> &[u8] {
        self.0[..8].copy_from_slice(&number.to_le_bytes());
        &self.0
    }
}

/// Holds each message against what must come next.
pub struct Check {
    size: usize,
    last: u64,
    /// What is due next of the stream that the last message was of. Streams number their own, beginning with their place
    /// of the high bits.
    due: u64,
    /// What is due next of the other streams.
    others: BTreeMap<u64, u64>,
    load: Option<Arc<Load>>,
}

impl Check {
    #[inline]
    pub fn message(&mut self, message: &[u8]) -> Outcome {
        let number = u64::from_le_bytes(message.get(..8).ok_or("a short message")?.try_into()?);
        if message.len() != self.size || number != self.due {
            self.other_stream(message, number)?;
        }
        self.due += 1;
        if let Some(load) = &self.load {
            load.received.store(self.due, Relaxed);
        }
        Ok(())
    }

    /// Not the next of the stream that the last message was of.
    #[cold]
    fn other_stream(&mut self, message: &[u8], number: u64) -> Outcome {
        if message.len() != self.size {
            return Err(format!("a message of {} bytes", message.len()).into());
        }
        self.others.insert(self.due >> 48, self.due);
        let stream = number >> 48;
        self.due = self.others.get(&stream).copied().unwrap_or(stream << 48);
        if number != self.due {
            return Err(format!("stream {stream}: message {number} came, {} was due", self.due).into());
        }
        Ok(())
    }

    /// For streams that are divided among several receivers: only ever upward.
    #[inline]
    pub fn upward(&mut self, message: &[u8]) -> Outcome {
        let number = u64::from_le_bytes(message.get(..8).ok_or("a short message")?.try_into()?);
        if message.len() != self.size || number < self.last {
            return Err(format!("message {number} of {} bytes came after {}", message.len(), self.last).into());
        }
        self.last = number + 1;
        Ok(())
    }
}

/// When measuring began.
pub struct Start {
    pub since: Instant,
    cpu: Duration,
    load: Option<Arc<Load>>,
    load_before: u64,
}

impl Start {
    /// So many messages since then, and what that took of the processor.
    pub fn report(&self, messages: u64) -> Report {
        let elapsed = self.since.elapsed();
        let load = self.load.as_ref().map_or(0, |load| load.received.load(Relaxed) - self.load_before);
        Report {
            nanos: nanos(elapsed),
            messages,
            cpu_nanos: nanos(cpu_time().saturating_sub(self.cpu)),
            load: (load as f64 / elapsed.as_secs_f64()) as u64,
            ..Report::default()
        }
    }
}

/// What one process measured.
#[derive(Debug, Clone, Default)]
pub struct Report {
    pub nanos: u64,
    pub messages: u64,
    pub cpu_nanos: u64,
    pub peak_kib: u64,
    /// p50, p99, p99.9 in nanoseconds.
    pub latency: [u64; 3],
    /// Messages a second of the load beside it.
    pub load: u64,
}

impl Report {
    pub fn with_latency(mut self, histogram: &Histogram<u64>) -> Self {
        self.latency = [0.5, 0.99, 0.999].map(|quantile| histogram.value_at_quantile(quantile));
        self
    }

    pub fn say(&self) {
        let [p50, p99, p999] = self.latency;
        let Self { nanos, messages, cpu_nanos, load, .. } = self;
        say(&format!("report {nanos} {messages} {cpu_nanos} {} {p50} {p99} {p999} {load}", peak_kib()));
    }

    pub fn parse(line: &str) -> Option<Self> {
        let numbers: Vec<u64> = line.strip_prefix("report ")?.split(' ').map_while(|word| word.parse().ok()).collect();
        let &[nanos, messages, cpu_nanos, peak_kib, p50, p99, p999, load] = numbers.as_slice() else { return None };
        Some(Self { nanos, messages, cpu_nanos, peak_kib, latency: [p50, p99, p999], load })
    }
}

pub fn histogram() -> Histogram<u64> {
    // Three digits of nanoseconds up to a minute; the bounds are constants that fit.
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("bounds that fit")
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// User and system time of this process.
fn cpu_time() -> Duration {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the pointer is valid for one rusage, and zeroed is a value of it.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr());
        usage.assume_init()
    };
    let of = |time: libc::timeval| Duration::new(time.tv_sec as u64, time.tv_usec as u32 * 1000);
    of(usage.ru_utime) + of(usage.ru_stime)
}

/// Keeps this process on one processor, if there are several. Two processes of one thread each that talk in turn are
/// sometimes put on the same processor and sometimes not, which is twice as fast or half; it must not be luck.
pub fn stay_on(processor: usize) {
    if std::thread::available_parallelism().is_ok_and(|all| all.get() > processor) {
        // SAFETY: zeroed is an empty set, the processor is one of the set's, and the set lives through the call.
        unsafe {
            let mut set = std::mem::zeroed::<libc::cpu_set_t>();
            libc::CPU_SET(processor, &mut set);
            libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set);
        }
    }
}

fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}
