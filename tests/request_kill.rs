//! Processes that ask are killed at any moment, and the sockets that answer come and go: every request that was kept is
//! done, once in effect, and is known when it comes again.
//!
//! ```text
//!   the test --- starts, kills, starts again ---> a requester   "kept 17"      over a pipe, when it is in the directory
//!        |                                            |         "answered 17"  when its answer was handed out
//!        +-- has a REP, and keeps what was done <-----+
//! ```
#![cfg(unix)]

use std::{
    collections::BTreeSet,
    env,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{self, ChildStdin, Command, Stdio},
    sync::{Arc, Mutex, mpsc},
    thread,
    time::{Duration, Instant},
};

use ropewalk::{
    Message, Rep, Req, RequestError,
    delivery::MessageId,
    spool::{Durability, SpoolOptions},
};
use tokio::sync::watch;

/// The directory of the requester, or nothing.
const DIRECTORY: &str = "ROPEWALK_REQUESTER";

/// What takes longer has failed.
const LONG: Duration = Duration::from_secs(40);

/// What the others kill.
#[test]
#[ignore = "the other tests run it in a process of its own"]
fn child() {
    let Ok(directory) = env::var(DIRECTORY) else { return };
    let life = env::var("LIFE").unwrap().parse().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(ask(Path::new(&directory), life));
    process::exit(0);
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // The harness has put the name of the test on the line already.
    if out.write_all(format!("\n= {line}\n").as_bytes()).and_then(|()| out.flush()).is_err() {
        process::exit(0);
    }
}

fn fail(why: impl std::fmt::Display) -> ! {
    say(&format!("failed {why}"));
    process::exit(1)
}

fn answer_to(request: &Message) -> String {
    format!("re {}", request.text().unwrap())
}

async fn ask(directory: &Path, life: u64) {
    let durability = if life.is_multiple_of(2) { Durability::Always } else { Durability::Os };
    let spool = SpoolOptions::new(durability).segment(16 << 10).frame(4 << 10).quota(192 << 10);
    let builder = Req::builder().timeout(Duration::from_millis(100)).max_attempts(u32::MAX).outstanding(8);
    let builder = builder.reconnect(Duration::from_millis(1), Duration::from_millis(10)).linger(Duration::ZERO);
    let address = format!("ipc://{}/rep", directory.display());
    let req = builder.spool(directory.join("spool"), spool).connect(address).await.unwrap_or_else(|error| fail(error));
    if !req.recovery().unwrap().damage.is_empty() {
        fail("a kill is no damage");
    }
    say("open");
    let recovers = req.clone();
    tokio::spawn(async move {
        while let Ok(answered) = recovers.recover().await {
            if answered.answer() != Ok(&answer_to(answered.request()).into()) {
                fail(format!("{answered:?}"));
            }
            answered.ack().unwrap_or_else(|error| fail(error));
        }
    });
    let stopped = stopped();
    for number in (life << 32..).take_while(|_| !*stopped.borrow()) {
        let accepted = || req.spool_stats().unwrap().accepted;
        let (before, asks) = (accepted(), req.clone());
        tokio::spawn(async move {
            let request = Message::from(number.to_string());
            match asks.request(&request).timeout(LONG).await {
                Ok(answer) if answer == &*answer_to(&request) => say(&format!("answered {number}")),
                // It ends.
                Err(RequestError::Closed) => {}
                other => fail(format!("{number}: {other:?}")),
            }
        });
        // Nobody else adds any.
        while accepted() == before {
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
        say(&format!("kept {number}"));
    }
    while req.spool_stats().unwrap().cursors["req"].unsettled > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    say("drained");
}

/// Whether the test says that it is enough. When the test is gone, so is this process.
fn stopped() -> watch::Receiver<bool> {
    let (stop, stopped) = watch::channel(false);
    thread::spawn(move || {
        let mut line = String::new();
        match std::io::stdin().lock().read_line(&mut line) {
            Ok(1..) => stop.send_replace(true),
            _ => process::exit(0),
        };
        // Until there is no more.
        let _end = std::io::stdin().lock().read_line(&mut line);
        process::exit(0);
    });
    stopped
}

/// What was promised, and what was done about it.
#[derive(Debug, Default)]
struct Account {
    kept: BTreeSet<u64>,
    answered: BTreeSet<u64>,
    opened: u64,
    drained: bool,
    failed: Option<String>,
}

/// What one who answers keeps in one transaction: what was done, by which request, as long as that may come again.
#[derive(Debug, Default)]
struct Done {
    numbers: BTreeSet<u64>,
    known: BTreeSet<MessageId>,
    floor: u64,
    came_again: u64,
    handed_out: u64,
    /// Chance.
    came: u64,
}

impl Done {
    /// Whether it is to be answered.
    fn take(&mut self, number: u64, id: MessageId, floor: u64) -> bool {
        self.floor = self.floor.max(floor);
        self.known.retain(|known| known.seq >= self.floor);
        if id.seq < self.floor {
            // It was answered long ago; what was known of it is gone.
            return false;
        }
        if self.known.insert(id) {
            assert!(self.numbers.insert(number), "{number} was done twice");
        } else {
            self.came_again += 1;
        }
        true
    }
}

/// Answers until it is told to stop, but drops one in sixteen, and keeps one in sixteen without a word.
async fn answer(rep: Rep, done: Arc<Mutex<Done>>) {
    let mut kept = Vec::new();
    loop {
        let request = rep.recv().await.unwrap();
        let number: u64 = request.message().text().unwrap().parse().unwrap();
        let (answers, come) = {
            let mut done = done.lock().unwrap();
            let take = done.take(number, request.id().unwrap(), request.floor());
            (take, done.numbers.len() as u64 + done.came_again)
        };
        match come % 16 {
            0 => {}
            _ if !answers => {}
            8 => kept.push(request),
            _ => {
                let answer = answer_to(request.message());
                // A requester that was killed hears nothing.
                let _gone = request.reply(answer).await;
            }
        }
    }
}

/// The same with no account of its own: the socket keeps the answers. What is begun is ended, for nobody could tell
/// otherwise whether it was done.
async fn answer_once(rep: Rep, done: Arc<Mutex<Done>>, mut stop: watch::Receiver<bool>) {
    loop {
        let request = tokio::select! {
            request = rep.recv() => request.unwrap(),
            _ = stop.changed() => return,
        };
        let number: u64 = request.message().text().unwrap().parse().unwrap();
        {
            let mut done = done.lock().unwrap();
            done.handed_out += 1;
            if below(&mut done.came, 16) == 0 {
                continue;
            }
            assert!(done.numbers.insert(number), "{number} was done twice");
        }
        let answer = answer_to(request.message());
        request.reply(answer).await.unwrap();
    }
}

struct Child {
    process: process::Child,
    orders: ChildStdin,
    said: mpsc::Receiver<String>,
}

impl Child {
    fn begin(directory: &Path, life: u64) -> Self {
        let mut process = Command::new(env::current_exe().unwrap())
            .args(["--exact", "child", "--ignored", "--nocapture"])
            .env(DIRECTORY, directory)
            .env("LIFE", life.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let orders = process.stdin.take().unwrap();
        let (tell, said) = mpsc::channel();
        let mut out = BufReader::new(process.stdout.take().unwrap());
        thread::spawn(move || {
            let mut line = String::new();
            while out.read_line(&mut line).is_ok_and(|bytes| bytes > 0) {
                // What the kill cut off has no end, and was not said.
                if let Some(said) = line.strip_suffix('\n').and_then(|line| line.strip_prefix("= ")) {
                    let _over = tell.send(said.to_string());
                }
                line.clear();
            }
        });
        Self { process, orders, said }
    }

    /// Hears what it says until it is so; at the end of it if that is never so.
    fn hear(&mut self, account: &mut Account, mut so: impl FnMut(&Account) -> bool) {
        let deadline = Instant::now() + LONG;
        while !so(account) {
            let Ok(said) = self.said.recv_timeout(deadline.saturating_duration_since(Instant::now())) else {
                assert!(Instant::now() < deadline, "waited in vain: {account:?}");
                return;
            };
            let number = |text: &str| text.parse().unwrap();
            match said.split_once(' ') {
                Some(("kept", text)) => assert!(account.kept.insert(number(text))),
                Some(("answered", text)) => assert!(account.answered.insert(number(text))),
                _ if said == "open" => account.opened += 1,
                _ if said == "drained" => account.drained = true,
                _ => account.failed = Some(said),
            }
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ended = self.process.kill();
        let _status = self.process.wait();
    }
}

/// Small numbers, the same in every run (splitmix64).
fn below(state: &mut u64, end: u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)) % end
}

fn kill(cycles: u64, keeps: bool) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let address = format!("ipc://{}/rep", directory.path().display());
    let (mut account, done, mut dice) = (Account::default(), Arc::new(Mutex::new(Done::default())), 7);
    let bind = || {
        let (builder, answers) = (Rep::builder(), directory.path().join("answers"));
        let spool = SpoolOptions::new(Durability::Os).segment(64 << 10);
        match keeps {
            true => runtime.block_on(builder.spool(answers, spool).bind(&address)).unwrap(),
            false => runtime.block_on(builder.bind(&address)).unwrap(),
        }
    };
    let stop = watch::Sender::new(false);
    let begin = |rep: &Rep| match keeps {
        true => runtime.spawn(answer_once(rep.clone(), Arc::clone(&done), stop.subscribe())),
        false => runtime.spawn(answer(rep.clone(), Arc::clone(&done))),
    };
    let (mut rep, mut received) = (bind(), 0);
    let mut answers = begin(&rep);
    for life in 1..=cycles {
        let mut child = Child::begin(directory.path(), life);
        // One in four dies while it begins, others when some were kept or some were answered.
        let (kept, answered, opened) = (account.kept.len(), account.answered.len(), account.opened);
        match below(&mut dice, 4) {
            0 => child.hear(&mut account, |account| account.opened > opened),
            1 => child.hear(&mut account, |account| account.kept.len() > kept + 40),
            _ => child.hear(&mut account, |account| account.answered.len() > answered + 40),
        }
        // Nothing is waited for here: this chooses the moment.
        thread::sleep(Duration::from_micros(below(&mut dice, 5000)));
        if below(&mut dice, 2) == 0 {
            if !keeps {
                answers.abort();
            }
            stop.send_replace(true);
            let ended = runtime.block_on(&mut answers);
            assert!(ended.map_or_else(|error| error.is_cancelled(), |()| keeps), "one who answers has found a mistake");
            runtime.block_on(rep.close());
            received += rep.stats().received;
            rep = bind();
            answers = begin(&rep);
            thread::sleep(Duration::from_micros(below(&mut dice, 5000)));
        }
        child.process.kill().unwrap();
        child.process.wait().unwrap();
        child.hear(&mut account, |_| false);
        assert_eq!(account.failed, None);
    }
    let mut last = Child::begin(directory.path(), cycles + 1);
    last.orders.write_all(b"stop\n").unwrap();
    last.hear(&mut account, |account| account.drained || account.failed.is_some());
    assert_eq!(account.failed, None);
    assert!(!answers.is_finished(), "one who answers has found something wrong");
    let done = done.lock().unwrap();
    let lost: Vec<_> = account.kept.iter().filter(|number| !done.numbers.contains(number)).collect();
    assert!(lost.is_empty(), "kept and not done: {lost:?}");
    assert!(account.answered.iter().all(|number| done.numbers.contains(number)), "answered and not done");
    assert!(account.kept.len() as u64 > 20 * cycles, "much was kept");
    if keeps {
        let left = rep.spool_stats().unwrap().cursors["rep"].unsettled;
        assert!(left < done.numbers.len() as u64 / 2, "what comes no more is forgotten: {left}");
        received += rep.stats().received;
        assert!(received > done.handed_out + cycles, "much came again: {received}, {} new", done.handed_out);
    } else {
        assert!(done.came_again > cycles, "much came again");
        assert!(done.floor > 10 * cycles, "what is done need not be remembered: {}", done.floor);
    }
    let Account { kept, answered, .. } = &account;
    println!(
        "{} kept, {} answered, {} done, {} came again",
        kept.len(),
        answered.len(),
        done.numbers.len(),
        done.came_again
    );
}

#[test]
fn what_a_killed_requester_has_kept_is_done_once() {
    kill(20, false);
}

#[test]
fn one_who_keeps_its_answers_does_nothing_twice() {
    kill(20, true);
}

#[test]
#[ignore = "takes a minute"]
fn what_two_hundred_killed_requesters_have_kept_is_done_once() {
    kill(200, false);
}

#[test]
#[ignore = "takes a minute"]
fn one_who_keeps_its_answers_does_nothing_twice_for_two_hundred() {
    kill(200, true);
}
