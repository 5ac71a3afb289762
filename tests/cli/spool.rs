//! Messages that the tool keeps on disk, and what it says of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Read,
    path::Path,
    time::Duration,
};

use ropewalk::{
    Pull, Push,
    spool::{Durability, SpoolOptions},
};

use super::tool::{ANY, Summary, Tool, lines, run};

/// Files of one test.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn at(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    /// An address that stays the same after a kill.
    #[cfg(unix)]
    fn address(&self) -> String {
        format!("ipc://{}", self.at("socket"))
    }
}

fn numbers(of: std::ops::Range<u64>) -> String {
    of.map(|number| format!("{number:06}\n")).collect()
}

/// The messages of the spool that are not settled.
#[track_caller]
fn cat(directory: &str) -> Vec<String> {
    run(&["spool", "cat", directory], "").went_well().stdout
}

#[test]
fn what_nobody_took_is_kept_for_the_next_time() {
    let place = Place::new();
    let queue = place.at("queue");
    let unheard = ["push", "-c", "tcp://127.0.0.1:1", "--spool", &queue, "--linger", "0.05"];
    let push = run(&unheard, "one\ntwo\n").went_well();
    assert!(push.summary().is("sent", 2, 6, 0) && push.summary().spooled == Some(2), "{:?}", push.stderr);
    for durability in ["os", "20"] {
        run(&[&unheard[..], &["--durability", durability]].concat(), "more\n").went_well();
    }
    assert_eq!(cat(&queue), ["one", "two", "more", "more"]);
    assert_eq!(run(&["spool", "cat", &queue, "--from", "1", "-n", "2"], "").went_well().stdout, ["two", "more"]);

    let mut pull = Tool::start(&["pull", "-b", ANY, "-n", "5"]);
    let address = pull.listening();
    let push = run(&["push", "-c", &address, "--spool", &queue, "--linger", "30"], "last\n").went_well();
    assert!(push.summary().is("sent", 1, 4, 0) && push.summary().spooled == Some(0), "{:?}", push.stderr);
    assert_eq!(pull.ended().went_well().stdout, ["one", "two", "more", "more", "last"]);
    assert_eq!(cat(&queue), [""; 0]);
}

#[test]
fn a_spool_says_how_it_is() {
    let place = Place::new();
    let queue = place.at("queue");
    run(&["push", "-b", ANY, "--spool", &queue, "--linger", "0.05"], &numbers(0..100)).went_well();
    let stat = run(&["spool", "stat", &queue], "").went_well();
    assert_eq!(stat.stdout[0], "seqs     0 to 100");
    assert_eq!(stat.stdout[2], "cursor   push is at 0, 100 messages are not settled");
    assert_eq!(stat.stdout[3..], ["closed   in order", "dead     0"]);
    let verified = run(&["spool", "verify", &queue], "").went_well();
    assert_eq!(verified.stdout, ["100 messages, 600 bytes, 0 bytes unfinished, damaged at 0 places"]);

    // One that runs keeps it for itself.
    let mut push = Tool::start(&["push", "-b", ANY, "--spool", &queue]);
    push.listening();
    for words in [&["stat"][..], &["verify"], &["cat"]] {
        let busy = run(&[&["spool"], words, &[&queue]].concat(), "").failed(1);
        assert_eq!(busy.why(), format!("{queue} is in use: a running process has it open"));
        assert!(busy.stdout.is_empty());
    }
    drop(push);
    let killed = run(&["spool", "stat", &queue], "").went_well();
    assert!(killed.stdout[3].starts_with("closed   by a crash: "), "{:?}", killed.stdout);

    let none = place.at("none");
    for words in [&["stat"][..], &["verify"], &["cat"], &["dead"]] {
        let missing = run(&[&["spool"], words, &[&none]].concat(), "").failed(1);
        assert_eq!(missing.why(), format!("{none} is no directory of a spool"));
    }
    assert!(!Path::new(&none).exists());
}

#[test]
fn damage_is_named() {
    let place = Place::new();
    let queue = place.at("queue");
    run(&["push", "-b", ANY, "--spool", &queue, "--linger", "0.05"], &numbers(0..100)).went_well();
    for entry in fs::read_dir(&queue).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = fs::read(&path).unwrap();
        if let Some(at) = bytes.windows(6).position(|window| window == b"000050") {
            bytes[at] ^= 1;
            fs::write(&path, bytes).unwrap();
        }
    }
    for words in ["stat", "verify", "cat"] {
        let damaged = run(&["spool", words, &queue], "").failed(1);
        assert!(damaged.why().contains("is damaged"), "{words}: {}", damaged.why());
    }
}

#[cfg(unix)]
#[tokio::test]
async fn what_the_disk_has_lost_is_told_by_who_sends_the_rest() {
    let place = Place::new();
    let queue = place.at("queue");
    // Small segments, of which the first are not looked through when they are opened.
    let options = SpoolOptions::new(Durability::Os).segment(8 << 10).frame(1 << 10);
    let push = Push::builder().spool(&queue, options).linger(Duration::ZERO).open().await.unwrap();
    for number in 0..60 {
        push.send(format!("{number:0>600}")).await.unwrap();
    }
    push.close().await;
    let damaged = fs::read_dir(&queue).unwrap().map(|entry| entry.unwrap().path()).find(|path| {
        let mut bytes = fs::read(path).unwrap_or_default();
        let at = bytes.windows(4).position(|window| window == b"0020");
        at.is_some_and(|at| {
            bytes[at] = b'x';
            fs::write(path, bytes).is_ok()
        })
    });
    assert!(damaged.is_some());

    let mut pull = Tool::start(&["pull", "-b", ANY]);
    let address = pull.listening();
    let push = run(&["push", "-c", &address, "--spool", &queue, "--linger", "30"], "").failed(1);
    let told = push.stderr.iter().filter(|line| line.starts_with("the spool has lost something: segment ")).count();
    let lost = push.stderr.iter().find_map(|line| Summary::read(line)).unwrap().lost;
    assert!(told == 1 && (1..10).contains(&lost), "{:?}", push.stderr);
    assert_eq!(push.why(), format!("{lost} messages of the spool are lost"));
    pull.signal("-TERM");
    assert_eq!(pull.ended().went_well().stdout.len() as u64, 60 - lost);
}

#[tokio::test]
async fn dead_letters_are_listed_sent_again_and_forgotten() {
    let place = Place::new();
    let queue = place.at("queue");
    let dead = |words: &[&str]| run(&[&["spool", "dead", &queue], words].concat(), "");
    let pull = Pull::bind(ANY).await.unwrap();
    let address = pull.address().unwrap().to_string();
    let mut push = Tool::start(&["push", "-c", &address, "--spool", &queue, "-v"]);
    push.write(b"a\nb\nc\n");
    for _ in 0..3 {
        pull.recv_delivery().await.unwrap().reject("not\ttoday").unwrap();
    }
    (0..3).for_each(|_| assert!(push.hear("message ").contains("is a dead letter after 1 attempts")));
    push.end_input();
    assert_eq!(push.ended().went_well().summary().spooled, Some(0));

    let listed = dead(&[]).went_well();
    let line = |number, message| format!("{number}\t1\tit was rejected: not today\t{message}");
    assert_eq!(listed.stdout, [line(0, "a"), line(1, "b"), line(2, "c")]);
    assert_eq!(dead(&["list"]).went_well().stdout, listed.stdout);
    assert!(run(&["spool", "stat", &queue], "").went_well().stdout.contains(&"dead     3".to_owned()));

    assert_eq!(dead(&["requeue", "1"]).went_well().stderr, ["1 dead letters sent again"]);
    assert_eq!(dead(&["requeue", "1"]).failed(1).why(), "there is no dead letter 1");
    assert_eq!(cat(&queue), ["b"]);
    dead(&["purge", "0"]).went_well();
    assert_eq!(dead(&["purge", "0"]).failed(1).why(), "there is no dead letter 0");
    assert_eq!(dead(&["list"]).went_well().stdout, [line(2, "c")]);
    assert_eq!(dead(&["requeue", "all"]).went_well().stderr, ["1 dead letters sent again"]);
    assert_eq!(dead(&["purge", "all"]).went_well().stderr, ["0 dead letters forgotten"]);
    assert_eq!(cat(&queue), ["b", "c"]);
    pull.close().await;
}

/// The tool, given this signal when the first byte of what it prints has come, while nobody reads more than the pipe
/// holds. The whole lines of these bytes that it wrote.
#[cfg(unix)]
fn ended_while_it_prints(args: &[&str], bytes: usize, signal: &str) -> Vec<String> {
    let (mut blocked, mut stdout) = Tool::start_unread(args);
    let mut first = [0; 1];
    stdout.read_exact(&mut first).unwrap();
    blocked.signal(signal);
    blocked.child.wait().unwrap();
    let mut written: Vec<String> = lines(stdout).iter().collect();
    written[0].insert(0, first[0].into());
    written.retain(|line| line.len() == bytes);
    written
}

#[cfg(unix)]
#[test]
fn a_line_is_confirmed_when_it_was_written_and_not_before() {
    let place = Place::new();
    let (queue, address) = (place.at("queue"), place.address());
    let push = ["push", "-c", &address, "--spool", &queue, "-n", "500", "--size", "4000", "--linger", "60"];
    let push = Tool::start(&push);
    // More than a pipe holds that nobody reads.
    let written = ended_while_it_prints(&["pull", "-b", &address], 4000, "-KILL");
    assert!(written.len() < 500, "all of them fitted");

    let rest = Tool::start(&["pull", "-b", &address]);
    assert_eq!(push.ended().went_well().summary().spooled, Some(0));
    rest.signal("-TERM");
    // What was written may come again, if the kill came before it was confirmed.
    let rest = rest.ended().went_well().stdout;
    let all: BTreeSet<&String> = written.iter().chain(&rest).collect();
    assert!(all.into_iter().eq(&(0..500).map(|number| format!("{number:04000}")).collect::<Vec<_>>()));
}

/// What came of one run of `pull`, until it was killed or had enough.
fn printed(tool: &mut Tool, enough: usize) -> Vec<String> {
    let mut lines: Vec<String> = (0..enough).map(|_| tool.line()).collect();
    tool.child.kill().unwrap();
    tool.child.wait().unwrap();
    // What it had written before.
    lines.extend(tool.stdout.iter());
    lines
}

#[cfg(unix)]
#[test]
fn killed_at_both_ends_every_line_arrives() {
    let place = Place::new();
    let (queue, inbox, address) = (place.at("queue"), place.at("inbox"), place.address());
    let all = 6000;
    let (mut runs, mut next): (Vec<Vec<String>>, u64) = (Vec::new(), 0);
    for kills in 0..3 {
        let rest = place.at("rest");
        fs::write(&rest, numbers(next..all)).unwrap();
        let mut push = Tool::start(&["push", "-b", &address, "--spool", &queue, "--rate", "4000", &rest]);
        // The receiver first, then the sender.
        for _ in 0..2 {
            let mut pull = Tool::start(&["pull", "-c", &address, "--inbox", &inbox]);
            runs.push(printed(&mut pull, 300 + 100 * kills));
        }
        push.child.kill().unwrap();
        push.child.wait().unwrap();
        // What was confirmed was printed; what was not is still there. So the last that was accepted is in one of both.
        let accepted = runs.iter().flatten().chain(&cat(&queue)).map(|line| line.parse().unwrap()).max();
        next = accepted.map_or(0, |last: u64| last + 1);
    }
    let pull = Tool::start(&["pull", "-c", &address, "--inbox", &inbox]);
    let push = ["push", "-b", &address, "--spool", &queue, "--linger", "60"];
    let push = run(&push, &numbers(next..all)).went_well();
    assert_eq!(push.summary().spooled, Some(0), "{:?}", push.stderr);
    pull.signal("-TERM");
    runs.push(pull.ended().went_well().stdout);

    let mut times: BTreeMap<&str, usize> = BTreeMap::new();
    for run in &runs {
        let once: BTreeSet<&str> = run.iter().map(String::as_str).collect();
        assert_eq!(once.len(), run.len(), "one process printed a line twice");
        once.into_iter().for_each(|line| *times.entry(line).or_default() += 1);
    }
    let expected = numbers(0..all);
    assert!(times.keys().copied().eq(expected.lines()), "{} of {all} lines came", times.len());
    // Only what was printed and not yet confirmed when a process was killed is printed again: one batch at most.
    let again = times.values().filter(|times| **times > 1).count();
    assert!(again <= 6 * 1024, "{again} lines came more than once");
}

#[cfg(unix)]
#[test]
fn a_named_subscriber_goes_on_where_it_was() {
    let place = Place::new();
    let (news, seen, address) = (place.at("news"), place.at("seen"), place.address());
    let publishes = ["pub", "-b", &address, "--topic", "t", "--spool", &news];
    let subscribes = ["sub", "-c", &address, "--name", "billing", "--inbox", &seen, "-n", "2"];
    let sub = Tool::start(&subscribes);
    let waits = [&publishes[..], &["--wait-subscribers", "1", "--linger", "30"]].concat();
    let published = run(&waits, "one\ntwo\n").went_well();
    assert_eq!(published.summary().spooled, Some(0), "{:?}", published.stderr);
    assert_eq!(sub.ended().went_well().stdout, ["t one", "t two"]);

    let alone = run(&[&publishes[..], &["--linger", "0.05"]].concat(), "three\n").went_well();
    assert_eq!(alone.summary().spooled, Some(1), "{:?}", alone.stderr);

    let sub = Tool::start(&subscribes);
    run(&waits, "four\n").went_well();
    assert_eq!(sub.ended().went_well().stdout, ["t three", "t four"]);
}

#[cfg(unix)]
#[test]
fn a_subscriber_begins_with_what_was_kept() {
    let place = Place::new();
    let (news, address) = (place.at("news"), place.address());
    let publishes = ["pub", "-b", &address, "--topic", "t", "--spool", &news];
    run(&[&publishes[..], &["--linger", "0.05"]].concat(), "one\ntwo\n").went_well();
    for (from, all, more) in [
        ("earliest", &["t one", "t two", "t three"][..], "three\n"),
        ("1", &["t two", "t three", "t four"], "four\n"),
        ("3600s", &["t one", "t two", "t three", "t four", "t five"], "five\n"),
    ] {
        let count = all.len().to_string();
        let sub = Tool::start(&["sub", "-c", &address, "--replay", from, "-n", &count]);
        run(&[&publishes[..], &["--wait-subscribers", "1"]].concat(), more).went_well();
        assert_eq!(sub.ended().went_well().stdout, all, "from {from}");
    }
    let wrong = run(&["sub", "-c", &address, "--replay", "soon"], "").failed(2);
    assert!(wrong.stderr.iter().any(|line| line.contains("earliest")), "{:?}", wrong.stderr);
}

#[test]
fn a_request_without_a_reply_is_asked_the_next_time() {
    let place = Place::new();
    let kept = place.at("kept");
    let unheard = run(&["req", "-c", "tcp://127.0.0.1:1", "--spool", &kept, "--timeout", "0.05", "one"], "").failed(1);
    assert!(unheard.why().starts_with("request 1: "), "{:?}", unheard.stderr);
    assert_eq!(unheard.stderr.iter().find_map(|line| Summary::read(line)).unwrap().spooled, Some(1));
    assert_eq!(cat(&kept), ["one"]);
    let again = run(&["req", "-c", "tcp://127.0.0.1:1", "--spool", &kept, "--timeout", "0.5", "two"], "").failed(1);
    assert_eq!(again.why(), "no reply to any of 1 requests that an earlier run has left in the spool");

    assert_eq!(cat(&kept), ["one", "two"], "that one is kept, too");

    let mut rep = Tool::start(&["rep", "-b", ANY, "--echo", "-n", "3", "--quiet"]);
    let address = rep.listening();
    let req = run(&["req", "-c", &address, "--spool", &kept, "--durability", "os", "six"], "").went_well();
    let (earlier, last) = req.stdout.split_at(2);
    assert_eq!(
        (BTreeSet::from_iter(earlier), last),
        (["one", "two"].map(str::to_owned).iter().collect(), &["six".to_owned()][..])
    );
    assert!(req.summary().is("received", 3, 9, 0) && req.summary().spooled == Some(0), "{:?}", req.stderr);
    rep.ended().went_well();
    assert_eq!(cat(&kept), [""; 0]);
}

#[cfg(unix)]
#[test]
fn a_request_is_forgotten_when_its_reply_was_written_and_not_before() {
    let place = Place::new();
    let (kept, address) = (place.at("kept"), place.address());
    let rep = Tool::start(&["rep", "-b", &address, "--echo", "--quiet"]);
    let asks = ["req", "-c", &address, "--spool", &kept];
    // It closes in order, with all that it was told to forget.
    let asks_many = [&asks[..], &["-n", "500", "--size", "4000", "--linger", "0.1"]].concat();
    let written = ended_while_it_prints(&asks_many, 4000, "-TERM");
    let left = cat(&kept);
    // What was written is there still, if not all that was to be written with it was.
    let accepted: BTreeSet<&String> = written.iter().chain(&left).collect();
    assert!(!left.is_empty() && accepted.len() < 500, "{} of {}", left.len(), accepted.len());
    assert!(accepted.iter().enumerate().all(|(number, line)| **line == format!("{number:04000}")));

    let rest = run(&asks, "").went_well();
    assert_eq!(rest.stdout.iter().collect::<BTreeSet<_>>(), left.iter().collect());
    assert_eq!(rest.summary().spooled, Some(0));
    rep.signal("-TERM");
    rep.ended().went_well();
}

#[cfg(unix)]
#[test]
fn what_is_asked_again_is_given_the_reply_it_was_given() {
    let place = Place::new();
    let (kept, given, done, address) = (place.at("kept"), place.at("given"), place.at("done"), place.address());
    let command = format!("echo done >> {done}; cat");
    let answers = ["rep", "-b", &address, "--spool", &given, "--exec", &command, "--quiet"];
    let asks = ["req", "-c", &address, "--spool", &kept];
    let rep = Tool::start(&answers);
    let written = ended_while_it_prints(&[&asks[..], &["-n", "1", "--size", "200000"]].concat(), 200_000, "-KILL");
    assert_eq!(written.len(), 0);
    rep.signal("-TERM");
    rep.ended().went_well();

    let rep = Tool::start(&answers);
    let again = run(&asks, "").went_well();
    assert_eq!((again.stdout.len(), again.summary().spooled), (1, Some(0)));
    assert!(again.stdout[0].len() == 200_000, "{} bytes", again.stdout[0].len());
    assert_eq!(fs::read_to_string(&done).unwrap(), "done\n");
    rep.signal("-TERM");
    rep.ended().went_well();
}
