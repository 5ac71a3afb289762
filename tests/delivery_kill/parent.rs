//! The test: it starts processes, hears what they say, and kills them.

use std::{
    collections::BTreeMap,
    env, fs,
    io::{BufRead, BufReader, Write},
    process::{self, ChildStdin, Command, Stdio},
    sync::{
        atomic::{AtomicU32, Ordering::Relaxed},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use ropewalk::SecretKey;
use tempfile::TempDir;

use crate::{
    account::Account,
    child::{JOB, Job, Mode},
};

/// What takes longer has failed.
const LONG: Duration = Duration::from_secs(40);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Victim {
    Sender,
    Receiver,
    Both,
}

/// Small numbers at random, the same for the same seed (splitmix64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }
}

/// Who said it, in which of its lives, and what; `None` at the end.
type Said = (usize, u64, Option<String>);

/// A process, in the life it has now.
struct Process {
    job: Job,
    child: process::Child,
    orders: ChildStdin,
    hears: Option<JoinHandle<()>>,
    /// How much it has to open, and has opened.
    parts: usize,
    open: usize,
}

impl Process {
    fn begin(index: usize, job: Job, tell: mpsc::Sender<Said>) -> Self {
        let mut child = Command::new(env::current_exe().expect("this program"))
            .args(["--exact", "child", "--ignored", "--nocapture"])
            .env(JOB, job.to_line())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a child");
        let orders = child.stdin.take().expect("its input");
        let (mut out, life) = (BufReader::new(child.stdout.take().expect("its output")), job.life);
        let hears = thread::spawn(move || {
            let mut line = String::new();
            while out.read_line(&mut line).is_ok_and(|bytes| bytes > 0) {
                // What the kill cut off has no end, and was not said; what does not begin so, the harness said.
                if let Some(said) = line.strip_suffix('\n').and_then(|line| line.strip_prefix("= ")) {
                    let _over = tell.send((index, life, Some(said.into())));
                }
                line.clear();
            }
            let _over = tell.send((index, life, None));
        });
        let parts = if matches!(&*job.role, "push" | "pull") { Mode::ALL.len() } else { 1 };
        Self { job, child, orders, hears: Some(hears), parts, open: 0 }
    }

    fn order(&mut self, order: &str) {
        // It may have been killed just now.
        let _gone = self.orders.write_all(format!("{order}\n").as_bytes());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself; but nothing is left behind when a test fails.
        let _ended = self.child.kill();
        let _status = self.child.wait();
        if let Some(hears) = self.hears.take() {
            let _over = hears.join();
        }
    }
}

/// One sender, and its receivers, over all their lives.
pub(crate) struct Run {
    publishes: bool,
    /// The sender first.
    processes: Vec<Process>,
    said: mpsc::Receiver<Said>,
    tell: mpsc::Sender<Said>,
    /// Where those are that are dialled.
    addresses: BTreeMap<String, String>,
    dice: Dice,
    cycles: u64,
    account: Account,
    directory: TempDir,
}

impl Run {
    pub(crate) fn begin(publishes: bool, transport: &str, durability: &str) -> Self {
        let directory = TempDir::new().expect("a directory");
        SecretKey::generate().save(directory.path().join("key")).expect("a key");
        Mode::ALL.iter().for_each(|mode| fs::create_dir(directory.path().join(mode.name())).expect("a directory"));
        static RUNS: AtomicU32 = AtomicU32::new(0);
        let network = format!("127.{}.{}", 1 + process::id() % 250, RUNS.fetch_add(1, Relaxed));
        let roles = if publishes { vec!["pub", "once", "inbox"] } else { vec!["push", "pull"] };
        let job = |role: &&str| Job {
            role: (*role).into(),
            transport: transport.into(),
            network: network.clone(),
            durability: durability.into(),
            life: 1,
            directory: directory.path().into(),
        };
        let (tell, said) = mpsc::channel();
        let processes =
            roles.iter().enumerate().map(|(index, role)| Process::begin(index, job(role), tell.clone())).collect();
        let account = Account::new(directory.path(), publishes);
        let (addresses, dice) = (BTreeMap::new(), Dice(17));
        Self { publishes, processes, said, tell, addresses, dice, cycles: 0, account, directory }
    }

    /// Lets them work for a while, and kills; and those that were killed begin again.
    pub(crate) fn cycle(&mut self, victim: Victim) {
        self.cycles += 1;
        // One in four dies while it begins.
        if self.dice.below(4) > 0 {
            self.hear_until("all to be open", |run| run.processes.iter().all(|process| process.open == process.parts));
            let (did, given) = (1 + self.dice.below(6), 1 + self.dice.below(40));
            let (did, given) = (self.account.did + did, self.account.receipts + given);
            // Where the sender goes on, what it is told counts; it may wait for room.
            match victim {
                Victim::Sender => self.hear_until("receipts", |run| run.account.receipts >= given),
                _ => self.hear_until("effects", |run| run.account.did >= did),
            }
        } else {
            let all = |run: &Self, index: usize| run.account.opening[index] == run.processes[index].job.life;
            self.hear_until("all to begin", |run| (0..run.processes.len()).all(|index| all(run, index)));
        }
        // Nothing is waited for here: this chooses the moment.
        thread::sleep(Duration::from_micros(self.dice.below(12_000)));
        let receivers = 1..self.processes.len();
        let last = receivers.end;
        match victim {
            Victim::Sender => self.kill(0..1),
            Victim::Both => self.kill(0..last),
            // Of two subscribers the one, the other, or both.
            Victim::Receiver if self.publishes => match self.cycles % 3 {
                0 => self.kill(1..2),
                1 => self.kill(2..3),
                _ => self.kill(1..3),
            },
            Victim::Receiver => self.kill(receivers),
        }
        self.account.look();
    }

    /// SIGKILL, and the next life begins at once: it finds the directory held for a moment.
    fn kill(&mut self, victims: std::ops::Range<usize>) {
        for index in victims.clone() {
            self.processes[index].child.kill().expect("it can be killed");
        }
        for index in victims {
            self.account.kills[index] += 1;
            let listens = if self.publishes { index == 0 } else { index == 1 };
            if listens {
                self.addresses.clear();
            }
            let job = Job { life: self.processes[index].job.life + 1, ..self.processes[index].job.clone() };
            let mut process = Process::begin(index, job, self.tell.clone());
            for (name, address) in self.addresses.iter().filter(|_| !listens) {
                process.order(&format!("peer {name} {address}"));
            }
            // What the last one still said is heard after it has ended.
            drop(std::mem::replace(&mut self.processes[index], process));
        }
    }

    fn hear_until(&mut self, what: &str, mut so: impl FnMut(&Self) -> bool) {
        while !so(self) {
            let Ok((index, life, said)) = self.said.recv_timeout(LONG) else {
                let opened: Vec<_> = self.processes.iter().map(|process| process.open).collect();
                panic!("waited in vain for {what}: {opened:?}, {}", self.account);
            };
            let Some(said) = said else { continue };
            self.hear(index, life, &said);
        }
    }

    fn hear(&mut self, index: usize, life: u64, said: &str) {
        let is_alive = self.processes[index].job.life == life;
        let words: Vec<&str> = said.split(' ').collect();
        match words[..] {
            ["opening"] => self.account.opening[index] = life,
            ["open", _] if is_alive => self.processes[index].open += 1,
            ["at", name, address] if is_alive => {
                self.addresses.insert(name.into(), address.into());
                for (other, process) in self.processes.iter_mut().enumerate() {
                    if other != index {
                        process.order(&format!("peer {name} {address}"));
                    }
                }
            }
            ["open" | "at", ..] => {}
            _ => self.account.hear(index, life, &words),
        }
    }

    /// All that was accepted is done; and what was done is as it should be.
    pub(crate) fn end(mut self) -> String {
        self.hear_until("all to be open", |run| run.processes.iter().all(|process| process.open == process.parts));
        self.processes[0].order("stop");
        self.hear_until("all to be settled", |run| run.account.drained);
        for mut process in self.processes.drain(..) {
            process.order("stop");
            let status = process.child.wait().expect("its end");
            assert!(status.success(), "{status}");
        }
        while let Ok((index, life, said)) = self.said.try_recv() {
            said.into_iter().for_each(|said| self.account.hear(index, life, &said.split(' ').collect::<Vec<_>>()));
        }
        self.account.look();
        let told = self.account.check();
        self.directory.close().expect("nobody writes there any more");
        told
    }
}
