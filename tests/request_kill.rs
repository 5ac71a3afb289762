//! Processes that ask, or answer, are killed at any moment, and the sockets at the other end come and go: every request that
//! was kept is done, once in effect, and is known when it comes again.
//!
//! ```text
//!   the test --- starts, kills, starts again ---> a requester   "kept 17"      over a pipe, when it is in the directory
//!        |                                            |         "answered 17"  when its answer was handed out
//!        +-- has a REP, and keeps what was done <-----+
//! ```
#![cfg(unix)]

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    future::poll_fn,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{self, ChildStdin, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    task::Poll,
    thread,
    time::{Duration, Instant},
};

use ropewalk::{
    Message, Rep, Req, RequestError,
    delivery::MessageId,
    spool::{Durability, SpoolOptions},
};
use tokio::sync::watch;

/// The directory of the process that is killed, or nothing.
const DIRECTORY: &str = "ROPEWALK_KILLED";

/// How a process ends that has given itself up, with everything as it is.
const DIED: i32 = 42;

/// What takes longer has failed.
const LONG: Duration = Duration::from_secs(40);

/// What the others kill.
#[test]
#[ignore = "the other tests run it in a process of its own"]
fn child() {
    let Ok(directory) = env::var(DIRECTORY) else { return };
    let life = env::var("LIFE").unwrap().parse().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    match env::var("ROLE").as_deref() {
        Ok("answers") => runtime.block_on(answer_and_say(Path::new(&directory), life, false)),
        Ok("answers and dies") => runtime.block_on(answer_and_say(Path::new(&directory), life, true)),
        _ => runtime.block_on(ask(Path::new(&directory), life)),
    }
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

/// One request at a time: says that it was done, keeps the answer, says that it has. The answer says in which life that was.
/// It may die as soon as an answer is kept, before anybody hears it.
async fn answer_and_say(directory: &Path, life: u64, dies: bool) {
    let (_ends_with_the_test, mut dice) = (stopped(), life);
    let durability = if life.is_multiple_of(2) { Durability::Always } else { Durability::Os };
    let spool = SpoolOptions::new(durability).segment(64 << 10);
    let address = format!("ipc://{}/rep", directory.display());
    let rep = Rep::builder().spool(directory.join("answers"), spool).bind(address).await;
    let rep = rep.unwrap_or_else(|error| fail(error));
    say("open");
    loop {
        let request = rep.recv().await.unwrap_or_else(|error| fail(error));
        let number = request.message().text().unwrap().to_string();
        say(&format!("done {number}"));
        let accepted = || rep.spool_stats().unwrap().accepted;
        let (before, mut reply) = (accepted(), Box::pin(request.reply(format!("{life} {number}"))));
        if dies && below(&mut dice, 40) == 0 {
            // So far that it is on its way to the directory, and no further.
            let begun = poll_fn(|cx| Poll::Ready(reply.as_mut().poll(cx).is_pending())).await;
            while begun && accepted() == before {
                thread::sleep(Duration::from_micros(200));
            }
            say(&format!("replied {number}"));
            process::exit(DIED);
        }
        reply.await.unwrap_or_else(|error| fail(error));
        say(&format!("replied {number}"));
    }
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
    /// What one who answers has done, in which lives; and of what it had kept the answer.
    done: BTreeMap<u64, Vec<u64>>,
    replied: BTreeSet<u64>,
    opened: u64,
    drained: bool,
    failed: Option<String>,
}

impl Account {
    /// For the first time, or the process was killed before it had kept the answer.
    fn does(&mut self, number: u64) {
        assert!(!self.replied.contains(&number), "{number} was done again though its answer was kept");
        self.done.entry(number).or_default().push(self.opened);
    }
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
    fn begin(role: &str, directory: &Path, life: u64) -> Self {
        let mut process = Command::new(env::current_exe().unwrap())
            .args(["--exact", "child", "--ignored", "--nocapture"])
            .env(DIRECTORY, directory)
            .env("ROLE", role)
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
                Some(("done", text)) => account.does(number(text)),
                Some(("replied", text)) => assert!(account.replied.insert(number(text))),
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
        let mut child = Child::begin("asks", directory.path(), life);
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
    let mut last = Child::begin("asks", directory.path(), cycles + 1);
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

/// Asks one after the other, each until it is answered: what was asked, and in which life it was done.
async fn ask_on(req: Req, numbers: Arc<AtomicU64>, stop: watch::Receiver<bool>) -> Vec<(u64, u64)> {
    let mut answers = Vec::new();
    while !*stop.borrow() {
        let number = numbers.fetch_add(1, Relaxed);
        let answer = req.request(number.to_string()).timeout(LONG).await.unwrap();
        let (life, answer) = answer.text().unwrap().split_once(' ').unwrap();
        assert_eq!(answer, number.to_string());
        answers.push((number, life.parse().unwrap()));
    }
    answers
}

/// One who answers is killed: of what it has replied to nothing is done again, and all is answered.
fn kill_who_answers(cycles: u64) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let address = format!("ipc://{}/rep", directory.path().display());
    let builder = Req::builder().timeout(Duration::from_millis(500)).max_attempts(u32::MAX);
    let builder = builder.reconnect(Duration::from_millis(1), Duration::from_millis(10));
    let builder = builder.spool(directory.path().join("spool"), Durability::Os);
    let req = runtime.block_on(builder.connect(address)).unwrap();
    let (numbers, stop) = (Arc::new(AtomicU64::new(0)), watch::Sender::new(false));
    let asking: Vec<_> =
        (0..8).map(|_| runtime.spawn(ask_on(req.clone(), Arc::clone(&numbers), stop.subscribe()))).collect();
    let (mut account, mut dice, mut died) = (Account::default(), 11, 0);
    for life in 1..=cycles {
        let mut child = Child::begin("answers and dies", directory.path(), life);
        let (done, opened) = (account.done.len(), account.opened);
        match below(&mut dice, 4) {
            0 => child.hear(&mut account, |account| account.opened > opened),
            _ => child.hear(&mut account, |account| account.done.len() > done + 100),
        }
        // Nothing is waited for here: this chooses the moment.
        thread::sleep(Duration::from_micros(below(&mut dice, 5000)));
        // It may have died by itself.
        child.process.kill().unwrap();
        let status = child.process.wait().unwrap();
        died += usize::from(status.code() == Some(DIED));
        child.hear(&mut account, |_| false);
        assert_eq!(account.failed, None);
    }
    stop.send_replace(true);
    let mut last = Child::begin("answers", directory.path(), cycles + 1);
    let answers: Vec<_> = asking.into_iter().flat_map(|asks| runtime.block_on(asks).unwrap()).collect();
    runtime.block_on(req.close());
    last.process.kill().unwrap();
    last.hear(&mut account, |_| false);
    assert_eq!(account.failed, None);
    assert_eq!(answers.len() as u64, numbers.load(Relaxed));
    // Each was done, and only those twice that were in hand when a process was killed: one at a time.
    let Account { done, opened, .. } = account;
    assert_eq!((done.len(), opened), (answers.len(), cycles + 1));
    assert!(answers.iter().all(|(number, life)| done[number].contains(life)), "an answer that nobody gave");
    let again = done.values().map(|lives| lives.len() - 1).sum::<usize>();
    assert!(again as u64 <= cycles && died as u64 > cycles / 4 && answers.len() as u64 > 20 * cycles);
    println!("{} answered, {again} in hand and done again, {died} kept and not heard", answers.len());
}

#[test]
fn one_who_is_killed_does_nothing_again_that_it_has_replied_to() {
    kill_who_answers(20);
}

#[test]
#[ignore = "takes a minute"]
fn two_hundred_who_are_killed_do_nothing_again_that_they_have_replied_to() {
    kill_who_answers(200);
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
