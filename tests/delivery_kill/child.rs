//! A process that is killed: it sends, or receives, until then.

use std::{
    collections::BTreeMap,
    env,
    fmt::Display,
    fs::{File, OpenOptions},
    io::{BufRead, Read, Write},
    path::PathBuf,
    process,
    time::Duration,
};

use futures::{FutureExt, future::join_all};
use ropewalk::{
    Builder, DeliverError, Delivery, Overflow, Pub, Pull, Push, SecretKey, Socket, Sub,
    delivery::{Claim, Inbox, MessageId},
    patterns::Pattern,
    spool::{Durability, RecoveryReport, SpoolOptions, SpoolStats},
};
use tokio::sync::{mpsc, watch};

/// What the child is to be; without it the hidden test does nothing.
pub(crate) const JOB: &str = "ROPEWALK_DELIVERY_JOB";

/// So many deliveries are taken before their effects are synced, if they are there.
const AT_ONCE: usize = 16;

/// How long those that came last are kept before they are acknowledged, where that is done late.
const LATE: Duration = Duration::from_millis(30);

/// What the receiver does about each message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Mode {
    /// Effect and identity are kept in one write: once in effect.
    Once,
    /// It is acknowledged when its effect is there: at least once.
    Acked,
    /// The same, with an inbox in a directory.
    Inbox,
    /// One in three is rejected, and goes to the dead letters.
    Buried,
}

impl Mode {
    pub(crate) const ALL: [Self; 4] = [Self::Once, Self::Acked, Self::Inbox, Self::Buried];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Once => "once",
            Self::Acked => "acked",
            Self::Inbox => "inbox",
            Self::Buried => "buried",
        }
    }

    pub(crate) fn read(name: &str) -> Self {
        Self::ALL.into_iter().find(|mode| mode.name() == name).expect("a mode")
    }

    pub(crate) fn rejects(self, number: u64) -> bool {
        self == Self::Buried && number.is_multiple_of(3)
    }
}

/// The message of this number: its bytes say which, and that they are all there.
pub(crate) fn message(number: u64) -> Vec<u8> {
    let mut state = number | 1;
    let mut bytes = number.to_le_bytes().to_vec();
    bytes.extend((0..number.wrapping_mul(37) % 400).map(|_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    }));
    bytes
}

/// Which message this is; it is what was sent, bit by bit.
pub(crate) fn number(bytes: &[u8]) -> u64 {
    let head = bytes.first_chunk().unwrap_or_else(|| fail("a message without a number"));
    let number = u64::from_le_bytes(*head);
    if bytes != message(number) {
        fail(format!("message {number} is not what was sent"));
    }
    number
}

/// What a process is to do, in one line.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    pub(crate) role: String,
    pub(crate) transport: String,
    /// The first three bytes of the addresses of this run: for each socket that listens there is one, with ports of its
    /// own. Else one who still dials where a killed one was might find another there, who has been given its port.
    pub(crate) network: String,
    pub(crate) durability: String,
    /// The how-manieth of its role.
    pub(crate) life: u64,
    pub(crate) directory: PathBuf,
}

impl Job {
    pub(crate) fn to_line(&self) -> String {
        let Self { role, transport, network, durability, life, directory } = self;
        format!("{role} {transport} {network} {durability} {life} {}", directory.display())
    }

    fn read(line: &str) -> Option<Self> {
        let mut words = line.splitn(6, ' ').map(String::from);
        let mut word = || words.next();
        let (role, transport, network, durability) = (word()?, word()?, word()?, word()?);
        Some(Self { role, transport, network, durability, life: word()?.parse().ok()?, directory: word()?.into() })
    }

    fn durability(&self) -> Durability {
        if self.durability == "always" { Durability::Always } else { Durability::Os }
    }

    /// Small, so that it is full most of the time; but nobody takes dead letters away, which may be as much.
    fn spool(&self, mode: Mode) -> SpoolOptions {
        let quota = if mode == Mode::Buried { 16 << 20 } else { 192 << 10 };
        SpoolOptions::new(self.durability()).segment(16 << 10).frame(4 << 10).quota(quota)
    }

    fn builder<P: Pattern>(&self, builder: Builder<P>) -> Builder<P> {
        let key = SecretKey::load(self.directory.join("key")).unwrap_or_else(|error| fail(error));
        let id = key.id();
        // A killed peer leaves no word over QUIC: only its silence tells.
        let builder = builder.key(key).allow([id]).heartbeat(Duration::from_millis(300), Duration::from_secs(2));
        builder.linger(Duration::from_millis(50)).reconnect(Duration::from_millis(1), Duration::from_millis(20))
    }

    fn any_port(&self, mode: Mode) -> String {
        format!("{}://{}.{}:0", self.transport, self.network, 1 + mode as u8)
    }
}

/// What the hidden test does.
pub(crate) fn work() {
    let Ok(job) = env::var(JOB) else { return };
    let job = Job::read(&job).expect("a job");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(async {
        say("opening");
        match &*job.role {
            "push" => push(&job).await,
            "pull" => pull(&job).await,
            "pub" => publish(&job).await,
            _ => subscribe(&job).await,
        }
    });
    process::exit(0);
}

/// One line, whole or not at all. The test harness has put the name of the test on the line already.
fn say(line: impl Display) {
    let line = format!("\n= {line}\n");
    let mut out = std::io::stdout().lock();
    if out.write_all(line.as_bytes()).and_then(|()| out.flush()).is_err() {
        process::exit(0);
    }
}

fn fail(why: impl Display) -> ! {
    say(format!("failed {}", why.to_string().replace('\n', " ")));
    process::exit(1)
}

/// What the test says. When it is gone, so is this process.
fn orders() -> mpsc::UnboundedReceiver<String> {
    let (tell, orders) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let told = line.map(|line| tell.send(line));
            if !matches!(told, Ok(Ok(()))) {
                break;
            }
        }
        process::exit(0);
    });
    orders
}

fn is_well(report: Option<&RecoveryReport>) {
    let report = report.unwrap_or_else(|| fail("no report"));
    if !report.damage.is_empty() {
        fail(format!("a kill is no damage: {report:?}"));
    }
}

/// Asks again and again until it is so.
async fn until(mut so: impl FnMut() -> bool) {
    while !so() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn is_settled(stats: Option<SpoolStats>) -> bool {
    stats.is_some_and(|stats| stats.cursors.values().all(|cursor| cursor.unsettled == 0))
}

/// Dials where the other side is now. The link before is gone by then, so that one follows the other.
async fn redial<P: Pattern>(socket: &Socket<P>, before: Option<String>, address: &str) {
    if let Some(before) = before {
        socket.disconnect(&before).await.unwrap_or_else(|error| fail(error));
    }
    socket.connect_to(address).await.unwrap_or_else(|error| fail(error));
}

// ---- those that send ------------------------------------------------------------------------------------------------

async fn push(job: &Job) {
    let mut orders = orders();
    let opened = Mode::ALL.map(|mode| async move {
        let builder = job.builder(Push::builder()).max_attempts(u32::MAX);
        let push = builder.spool(job.directory.join(mode.name()).join("spool"), job.spool(mode)).open().await;
        let push = push.unwrap_or_else(|error| fail(format!("{mode:?}: {error}")));
        is_well(push.recovery());
        say(format!("open {}", mode.name()));
        (mode, push)
    });
    let sockets: BTreeMap<Mode, Push> = join_all(opened).await.into_iter().collect();
    let (stop, stopped) = watch::channel(false);
    let tasks = sockets.iter().flat_map(|(&mode, push)| {
        let stopped = &stopped;
        (0..4).map(move |task| tokio::spawn(send(mode, push.clone(), job.life << 32 | task << 24, stopped.clone())))
    });
    let tasks: Vec<_> = tasks.collect();
    let mut peers = BTreeMap::new();
    while let Some(order) = orders.recv().await {
        let words: Vec<&str> = order.split(' ').collect();
        match words[..] {
            ["peer", mode, address] => {
                let before = peers.insert(mode.to_string(), address.to_string());
                redial(&sockets[&Mode::read(mode)], before, address).await;
            }
            _ => break,
        }
    }
    stop.send_replace(true);
    join_all(tasks).await.into_iter().for_each(|ended| ended.unwrap_or_else(|error| fail(error)));
    for push in sockets.values() {
        until(|| is_settled(push.spool_stats())).await;
    }
    say("drained");
    join_all(sockets.values().map(Socket::close)).await;
}

/// The first two tasks of a socket send, the others deliver.
async fn send(mode: Mode, push: Push, mut next: u64, stopped: watch::Receiver<bool>) {
    let delivers = next >> 24 & 0xff > 1;
    while !*stopped.borrow() {
        let (number, name) = (next, mode.name());
        next += 1;
        if !delivers {
            push.send(message(number)).await.unwrap_or_else(|error| fail(error));
            say(format!("given {name} {number}"));
            continue;
        }
        match push.deliver(message(number)).await {
            Ok(()) if !mode.rejects(number) => say(format!("delivered {name} {number}")),
            Err(DeliverError::Rejected(_)) if mode.rejects(number) => say(format!("rejected {name} {number}")),
            other => fail(format!("{name} {number}: {other:?}")),
        }
    }
}

async fn publish(job: &Job) {
    let mut orders = orders();
    let builder = job.builder(Pub::builder()).max_attempts(u32::MAX).overflow(Overflow::Block);
    let publisher =
        builder.spool(job.directory.join("spool"), job.spool(Mode::Once)).bind(job.any_port(Mode::Once)).await;
    let publisher = publisher.unwrap_or_else(|error| fail(error));
    is_well(publisher.recovery());
    say(format!("at pub {}", publisher.address().unwrap_or_else(|| fail("no address"))));
    say("open pub");
    // What is published before a name is known is not for it.
    until(|| publisher.spool_stats().is_some_and(|stats| stats.cursors.len() == 2)).await;
    let (stop, stopped) = watch::channel(false);
    let tasks = [0, 1].map(|task| {
        let (publisher, stopped, mut next) = (publisher.clone(), stopped.clone(), job.life << 32 | task << 24);
        tokio::spawn(async move {
            while !*stopped.borrow() {
                publisher.publish("", message(next)).await.unwrap_or_else(|error| fail(error));
                say(format!("given pub {next}"));
                next += 1;
            }
        })
    });
    let _stop = orders.recv().await;
    stop.send_replace(true);
    join_all(tasks).await.into_iter().for_each(|ended| ended.unwrap_or_else(|error| fail(error)));
    until(|| is_settled(publisher.spool_stats())).await;
    say("drained");
    publisher.close().await;
}

// ---- those that receive ---------------------------------------------------------------------------------------------

/// Where deliveries come from.
enum Source {
    Pull(Pull),
    Sub(Sub),
}

impl Source {
    async fn next(&self) -> Delivery {
        match self {
            Self::Pull(pull) => pull.recv_delivery().await.unwrap_or_else(|error| fail(error)),
            Self::Sub(sub) => sub.recv_delivery().await.unwrap_or_else(|error| fail(error)),
        }
    }
}

async fn pull(job: &Job) {
    let mut orders = orders();
    let bound = Mode::ALL.map(|mode| async move {
        let (builder, directory) = (job.builder(Pull::builder()), job.directory.join(mode.name()));
        let pull = match mode {
            Mode::Inbox => builder.inbox_with(directory.join("inbox"), job.durability()).bind(job.any_port(mode)).await,
            _ => builder.bind(job.any_port(mode)).await,
        };
        let pull = pull.unwrap_or_else(|error| fail(format!("{mode:?}: {error}")));
        say(format!("at {} {}", mode.name(), pull.address().unwrap_or_else(|| fail("no address"))));
        say(format!("open {}", mode.name()));
        let work = tokio::spawn(Worker::begin(job, mode, mode.name()).work(Source::Pull(pull.clone())));
        (pull, work)
    });
    let sockets = join_all(bound).await;
    let _stop = orders.recv().await;
    sockets.iter().for_each(|(_, work)| work.abort());
    join_all(sockets.iter().map(|(pull, _)| pull.close())).await;
}

async fn subscribe(job: &Job) {
    let mut orders = orders();
    let mode = Mode::read(&job.role);
    let builder = job.builder(Sub::builder()).name(mode.name());
    let sub = match mode {
        Mode::Inbox => {
            let directory = job.directory.join(mode.name()).join("inbox");
            builder.inbox_with(directory, job.durability()).open().await
        }
        _ => Ok(builder.build()),
    };
    let sub = sub.unwrap_or_else(|error| fail(error));
    sub.subscribe("").await.unwrap_or_else(|error| fail(error));
    say(format!("open {}", mode.name()));
    let work = tokio::spawn(Worker::begin(job, mode, mode.name()).work(Source::Sub(sub.clone())));
    let mut before: Option<String> = None;
    while let Some(order) = orders.recv().await {
        let Some(("peer", address)) = order.split_once(" pub ") else { break };
        // The new one first: for a while there may be two links under one name.
        sub.connect_to(address).await.unwrap_or_else(|error| fail(error));
        if let Some(before) = before.replace(address.into()) {
            sub.disconnect(&before).await.unwrap_or_else(|error| fail(error));
        }
    }
    work.abort();
    sub.close().await;
}

/// Has effects, and writes down which.
struct Worker {
    mode: Mode,
    life: u64,
    effects: File,
    /// What was done before, and in this life.
    done: Inbox,
    syncs: bool,
    /// Who only acknowledges does so when the next have come, or none come: till then the application has them, whatever
    /// becomes of the sender.
    late: Vec<(u64, MessageId, Delivery)>,
}

impl Worker {
    /// Reads what was done before. A line that a kill has cut off was not done.
    fn begin(job: &Job, mode: Mode, name: &str) -> Self {
        let path = job.directory.join(name).join("effects");
        let file = OpenOptions::new().create(true).read(true).append(true).open(&path);
        let mut effects = file.unwrap_or_else(|error| fail(error));
        // The one before may still be dying.
        effects.lock().unwrap_or_else(|error| fail(error));
        let (mut text, mut done) = (String::new(), Inbox::default());
        effects.read_to_string(&mut text).unwrap_or_else(|error| fail(error));
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        effects.set_len(whole as u64).unwrap_or_else(|error| fail(error));
        for line in text[..whole].lines().filter(|_| mode == Mode::Once) {
            if done.claim(Effect::read(line).id) == Claim::Seen {
                fail(format!("it was done twice: {line}"));
            }
        }
        Self { mode, life: job.life, effects, done, syncs: job.durability == "always", late: Vec::new() }
    }

    async fn work(mut self, source: Source) {
        loop {
            let first = match self.late.is_empty() {
                true => Some(source.next().await),
                false => tokio::time::timeout(LATE, source.next()).await.ok(),
            };
            let mut batch = Vec::from_iter(first);
            while batch.len() < AT_ONCE {
                let Some(next) = source.next().now_or_never() else { break };
                batch.push(next);
            }
            self.handle(batch).await;
        }
    }

    async fn handle(&mut self, batch: Vec<Delivery>) {
        let mut lines = String::new();
        let mut settle = Vec::new();
        for delivery in batch {
            let number = number(delivery.message().payload());
            if self.mode.rejects(number) {
                delivery.reject("by three").unwrap_or_else(|error| fail(error));
                continue;
            }
            let id = delivery.id().unwrap_or_else(|| fail("nobody is to be told"));
            self.done.forget_below(&id.stream, delivery.floor());
            // In the one mode this is what makes it once; in the others it is what is looked at.
            if self.mode != Mode::Once || self.done.claim(id) == Claim::Fresh {
                let effect = Effect { acked: false, life: self.life, number, attempt: delivery.attempt(), id };
                lines.push_str(&effect.to_line());
            }
            settle.push((number, id, delivery));
        }
        if self.mode == Mode::Acked {
            std::mem::swap(&mut self.late, &mut settle);
        }
        self.write(&lines);
        if self.syncs {
            self.effects.sync_data().unwrap_or_else(|error| fail(error));
        }
        let (life, mode) = (self.life, self.mode);
        let acked = settle.into_iter().map(|(number, id, delivery)| async move {
            let attempt = delivery.attempt();
            delivery.ack().await.unwrap_or_else(|error| fail(error));
            Effect { acked: true, life, number, attempt, id }.to_line()
        });
        let acked: String = join_all(acked).await.concat();
        if mode != Mode::Once {
            self.write(&acked);
        }
        say("did");
    }

    fn write(&mut self, lines: &str) {
        self.effects.write_all(lines.as_bytes()).unwrap_or_else(|error| fail(error));
    }
}

/// A line of the file of effects.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Effect {
    /// Not that it was done, but that it was acknowledged, too.
    pub(crate) acked: bool,
    /// In which life of the receiver.
    pub(crate) life: u64,
    pub(crate) number: u64,
    pub(crate) attempt: u32,
    pub(crate) id: MessageId,
}

impl Effect {
    fn to_line(self) -> String {
        let Self { acked, life, number, attempt, id: MessageId { stream, incarnation, seq } } = self;
        let (word, stream) = (if acked { "acked" } else { "did" }, u128::from_le_bytes(stream));
        format!("{word} {life} {number} {attempt} {stream} {incarnation} {seq}\n")
    }

    pub(crate) fn read(line: &str) -> Self {
        let words: Vec<&str> = line.split(' ').collect();
        let [word, life, number, attempt, stream, incarnation, seq] = words[..] else { fail(format!("{line:?}")) };
        let read = |word: &str| word.parse::<u128>().unwrap_or_else(|_| fail(format!("{line:?}")));
        let small = |word: &str| read(word) as u64;
        let id = MessageId { stream: read(stream).to_le_bytes(), incarnation: small(incarnation), seq: small(seq) };
        Self { acked: word == "acked", life: small(life), number: small(number), attempt: small(attempt) as u32, id }
    }
}
