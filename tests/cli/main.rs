//! The tool `ropewalk`, as a shell sees it: what it prints, what it says, how it ends.
//!
//! Each test starts the tool itself, on a free port or a socket file of its own, and waits for what it prints: never
//! for a time.

#![cfg(feature = "cli")]

mod bench;
mod spool;
mod tool;

use std::{
    process::Command,
    time::{Duration, Instant},
};

use self::tool::{ANY, Summary, Tool, lines, run};

// ---- push and pull ------------------------------------------------------------------------------------------------

#[test]
fn lines_go_from_push_to_pull_in_order() {
    let mut pull = Tool::start(&["pull", "-b", ANY, "-n", "4"]);
    let address = pull.listening();
    let push = run(&["push", "-c", &address], "first\n\nthird with spaces\r\nlast without newline").went_well();
    assert!(push.summary().is("sent", 4, 5 + 18 + 20, 0), "{:?}", push.stderr);
    assert!(push.stdout.is_empty());
    let pull = pull.ended().went_well();
    assert_eq!(pull.stdout, ["first", "", "third with spaces\r", "last without newline"]);
    assert!(pull.summary().is("received", 4, 5 + 18 + 20, 0), "{:?}", pull.stderr);
}

#[test]
fn numbers_are_made_and_padded() {
    let mut pull = Tool::start(&["pull", "-b", ANY, "-n", "1000"]);
    let address = pull.listening();
    let push = run(&["push", "-c", &address, "-n", "1000", "--size", "64"], "").went_well();
    assert!(push.summary().is("sent", 1000, 64_000, 0), "{:?}", push.stderr);
    let pull = pull.ended().went_well();
    assert!(pull.summary().is("received", 1000, 64_000, 0), "{:?}", pull.stderr);
    let expected: Vec<String> = (0..1000).map(|number| format!("{number:064}")).collect();
    assert_eq!(pull.stdout, expected);
}

#[test]
fn many_messages_keep_their_order_through_small_queues() {
    let mut pull = Tool::start(&["pull", "-b", ANY, "-n", "20000", "--hwm", "3", "--hwm-bytes", "1000"]);
    let address = pull.listening();
    let push = ["push", "-c", &address, "-n", "20000", "--size", "8", "--hwm", "3"];
    run(&push, "").went_well();
    let pull = pull.ended().went_well();
    assert!(pull.stdout.iter().enumerate().all(|(number, line)| *line == format!("{number:08}")));
    assert_eq!(pull.stdout.len(), 20_000);
}

#[test]
fn count_cuts_the_input() {
    let mut pull = Tool::start(&["pull", "-b", ANY, "-n", "2"]);
    let address = pull.listening();
    assert!(run(&["push", "-c", &address, "-n", "2"], "a\nb\nc\n").went_well().summary().is("sent", 2, 2, 0));
    assert_eq!(pull.ended().went_well().stdout, ["a", "b"]);
    // No message at all is soon done.
    assert!(run(&["push", "-b", ANY, "-n", "0"], "a\n").went_well().summary().is("sent", 0, 0, 0));
    assert!(run(&["pull", "-b", ANY, "-n", "0"], "").went_well().summary().is("received", 0, 0, 0));
}

#[test]
fn input_comes_from_a_file() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("input");
    std::fs::write(&file, "one\ntwo\n").unwrap();
    let mut pull = Tool::start(&["pull", "-b", ANY, "-n", "3"]);
    let address = pull.listening();
    run(&["push", "-c", &address, file.to_str().unwrap()], "not this\n").went_well();
    run(&["push", "-c", &address, "-"], "three\n").went_well();
    assert_eq!(pull.ended().went_well().stdout, ["one", "two", "three"]);
    let missing = run(&["push", "-b", ANY, directory.path().join("none").to_str().unwrap()], "").failed(1);
    assert!(missing.why().starts_with("cannot open "), "{:?}", missing.stderr);
    assert_eq!(missing.stderr.len(), 1);
}

#[test]
fn a_sender_without_a_peer_says_that_it_waits() {
    let mut push = Tool::start(&["push", "-b", ANY]);
    let address = push.listening();
    push.write(b"one\n");
    push.hear("waiting for a peer");
    let pull = Tool::start(&["pull", "-c", &address, "-n", "1"]);
    assert_eq!(pull.ended().went_well().stdout, ["one"]);
    push.end_input();
    push.ended().went_well();
}

#[test]
fn every_bound_address_is_told_and_every_endpoint_used() {
    let directory = tempfile::tempdir().unwrap();
    let ipc = format!("ipc://{}", directory.path().join("socket").display());
    let addresses: Vec<&str> = if cfg!(unix) { vec![ANY, ANY, &ipc] } else { vec![ANY, ANY] };
    let mut args = vec!["push", "-n", "6"];
    addresses.iter().for_each(|address| args.extend(["-b", address]));
    let mut push = Tool::start(&args);
    let told: Vec<String> = addresses.iter().map(|_| push.listening()).collect();
    assert_ne!(told[0], told[1]);
    assert!(told[..2].iter().all(|address| address.starts_with("tcp://127.0.0.1:") && !address.ends_with(":0")));
    let mut pulls: Vec<Tool> =
        told.iter().map(|address| Tool::start(&["pull", "--bind", ANY, "--connect", address])).collect();
    // One that is dialled as well as bound takes from both.
    let other = pulls[0].listening();
    run(&["push", "-c", &other], "direct\n").went_well();
    assert_eq!(pulls[0].line(), "direct");
    for (number, pull) in pulls.iter_mut().enumerate() {
        push.write(format!("{number}\n").as_bytes());
        let _bound = if number > 0 { pull.listening() } else { String::new() };
    }
    drop(pulls);
}

#[test]
fn a_pull_without_messages_ends_after_the_timeout() {
    let content = run(&["pull", "-b", ANY, "--timeout", "0.1"], "").went_well();
    assert!(content.summary().is("received", 0, 0, 0));
    let short = run(&["pull", "-b", ANY, "--timeout", "0.1", "-n", "1"], "").failed(1);
    assert_eq!(short.why(), "0 of 1 messages came");
    assert!(short.summary().is("received", 0, 0, 0));
}

#[test]
fn quiet_prints_nothing_but_counts() {
    let mut pull = Tool::start(&["pull", "-b", ANY, "-n", "3", "--quiet"]);
    let address = pull.listening();
    run(&["push", "-c", &address], "a\nb\nc\n").went_well();
    let pull = pull.ended().went_well();
    assert!(pull.stdout.is_empty());
    assert!(pull.summary().is("received", 3, 3, 0));
}

#[test]
fn a_sender_whose_messages_went_nowhere_says_so() {
    let mut push = Tool::start(&["push", "-c", "tcp://127.0.0.1:1", "--linger", "0.1"]);
    push.write(b"a\nb\nc\n");
    push.end_input();
    let push = push.ended().failed(1);
    assert_eq!(push.why(), "not all messages were delivered: 3 unsent");
    assert!(push.summary().is("sent", 3, 3, 3), "{:?}", push.stderr);
}

#[test]
fn a_line_beyond_the_limit_is_refused() {
    let mut pull = Tool::start(&["pull", "-b", ANY, "-n", "2", "--quiet"]);
    let address = pull.listening();
    let longest = "x".repeat(4 << 20);
    run(&["push", "-c", &address], &longest).went_well();
    let push = run(&["push", "-c", &address], &format!("fine\n{longest}x\n")).failed(1);
    assert!(push.why().contains("line 2 is longer"), "{:?}", push.stderr);
    assert!(pull.ended().went_well().summary().is("received", 2, 4 + (4 << 20), 0));
}

#[test]
fn a_rate_is_kept() {
    let mut pull = Tool::start(&["pull", "-b", ANY, "-n", "41"]);
    let address = pull.listening();
    let start = Instant::now();
    let push = run(&["push", "-c", &address, "-n", "41", "--size", "2", "--rate", "100"], "").went_well();
    assert!(start.elapsed() >= Duration::from_millis(400), "{:?}", start.elapsed());
    assert!((0.4..10.0).contains(&push.summary().seconds), "{:?}", push.stderr);
    let pull = pull.ended().went_well();
    assert!((0.2..10.0).contains(&pull.summary().seconds), "{:?}", pull.stderr);
}

#[test]
fn events_are_told_when_asked_for() {
    let mut pull = Tool::start(&["pull", "-b", ANY, "-v", "-n", "1"]);
    let address = pull.listening();
    let push = run(&["push", "-c", &address, "--verbose"], "a\n").went_well();
    assert!(push.stderr.iter().any(|line| line.starts_with("peer up: PULL ")), "{:?}", push.stderr);
    let pull = pull.ended().went_well();
    assert!(pull.stderr.iter().any(|line| line.starts_with("peer up: PUSH ")), "{:?}", pull.stderr);
    assert!(pull.stderr.iter().any(|line| line.starts_with("peer down: PUSH ")), "{:?}", pull.stderr);
    assert!(Summary::read(pull.stderr.last().unwrap()).is_some(), "{:?}", pull.stderr);
}

#[test]
fn a_reader_that_closes_ends_it_quietly() {
    let (mut pull, stdout) = Tool::start_unread(&["pull", "-b", ANY, "-n", "10"]);
    let address = pull.listening();
    drop(stdout);
    let mut push = Tool::start(&["push", "-c", &address]);
    push.write(b"a\n");
    let pull = pull.ended().went_well();
    assert!(pull.summary().is("received", 1, 1, 0), "{:?}", pull.stderr);
}

// ---- pub and sub --------------------------------------------------------------------------------------------------

#[test]
fn topics_are_filtered_and_parts_joined() {
    let mut publisher = Tool::start(&["pub", "-b", ANY, "--topic", "news.local", "--wait-subscribers", "2", "-n", "2"]);
    let address = publisher.listening();
    let args = ["sub", "-c", &address, "--topic", "x", "--topic", "news.", "-n", "2", "--separator", ": "];
    let wanted = Tool::start(&args);
    let all = Tool::start(&["sub", "-c", &address, "-n", "2"]);
    let mut other = Tool::start(&["sub", "-c", &address, "--topic", "weather", "-v"]);
    other.hear("peer up: PUB ");
    publisher.write(b"rain\nsun\n");
    let publisher = publisher.ended().went_well();
    assert!(publisher.summary().is("sent", 2, 7 + 2 * 10, 0), "{:?}", publisher.stderr);
    let wanted = wanted.ended().went_well();
    assert_eq!(wanted.stdout, ["news.local: rain", "news.local: sun"]);
    assert!(wanted.summary().is("received", 2, 27, 0));
    assert_eq!(all.ended().went_well().stdout, ["news.local rain", "news.local sun"]);
    assert!(other.stdout.try_recv().is_err());
}

#[test]
fn a_publisher_that_blocks_loses_nothing() {
    let mut publisher = Tool::start(&[
        "pub",
        "-b",
        ANY,
        "--topic",
        "t",
        "--wait-subscribers",
        "2",
        "-n",
        "5000",
        "--size",
        "6",
        "--overflow",
        "block",
        "--hwm",
        "7",
    ]);
    let address = publisher.listening();
    let subs = [1, 2].map(|_| Tool::start(&["sub", "-c", &address, "-n", "5000", "--hwm", "5"]));
    for sub in subs {
        let sub = sub.ended().went_well();
        assert!(sub.summary().is("received", 5000, 5000 * 7, 0), "{:?}", sub.stderr);
        assert!(sub.stdout.iter().enumerate().all(|(number, line)| *line == format!("t {number:06}")));
    }
    publisher.ended().went_well();
}

#[test]
fn what_a_subscriber_missed_is_counted_on_both_sides() {
    let publisher = ["pub", "-b", ANY, "--topic", "t", "--wait-subscribers", "1", "-n", "10000", "--size", "999"];
    let mut publisher = Tool::start(&[&publisher[..], &["--hwm", "10", "--linger", "50", "-v"]].concat());
    let address = publisher.listening();
    // Nobody reads what it prints, so it soon takes nothing more.
    let (mut sub, stdout) = Tool::start_unread(&["sub", "-c", &address, "--hwm", "10", "--timeout", "1"]);
    publisher.hear("dropped 1 for SUB ");
    sub.stdout = lines(stdout);
    let publisher = publisher.ended().failed(1);
    let dropped = publisher.summary().lost;
    assert_eq!(publisher.why(), format!("not all messages were delivered: {dropped} dropped"));
    let sub = sub.ended().went_well();
    let summary = sub.summary();
    assert_eq!((summary.messages + summary.lost, summary.lost), (10_000, dropped), "{:?}", sub.stderr);
    assert_eq!(sub.stdout.len() as u64, summary.messages);
}

// ---- req and rep --------------------------------------------------------------------------------------------------

#[test]
fn a_request_is_echoed() {
    let mut rep = Tool::start(&["rep", "-b", ANY, "--echo", "-n", "2"]);
    let address = rep.listening();
    let req = run(&["req", "-c", &address, "hello there"], "").went_well();
    assert_eq!(req.stdout, ["hello there"]);
    assert!(req.summary().is("received", 1, 11, 0), "{:?}", req.stderr);
    run(&["req", "-c", &address, "--quiet", "again"], "").went_well();
    let rep = rep.ended().went_well();
    assert_eq!(rep.stdout, ["hello there", "again"]);
    assert!(rep.summary().is("received", 2, 16, 0), "{:?}", rep.stderr);
}

#[test]
fn requests_come_from_lines_or_numbers_and_replies_in_their_order() {
    let mut rep = Tool::start(&["rep", "-b", ANY, "--echo", "--quiet"]);
    let address = rep.listening();
    let input: Vec<String> = (0..2000).map(|number| format!("request {number}")).collect();
    let req = run(&["req", "-c", &address], &input.join("\n")).went_well();
    assert_eq!(req.stdout, input);
    let req = run(&["req", "-c", &address, "-n", "500", "--size", "5"], "").went_well();
    let expected: Vec<String> = (0..500).map(|number| format!("{number:05}")).collect();
    assert_eq!(req.stdout, expected);
    assert!(req.summary().is("received", 500, 2500, 0), "{:?}", req.stderr);
    assert_eq!(run(&["req", "-c", &address, "-n", "1"], "a\nb\n").went_well().stdout, ["a"]);
}

#[test]
fn a_line_is_answered_before_the_next_is_written() {
    let mut rep = Tool::start(&["rep", "-b", ANY, "--echo"]);
    let address = rep.listening();
    let mut req = Tool::start(&["req", "-c", &address]);
    for line in ["one", "two"] {
        req.write(format!("{line}\n").as_bytes());
        assert_eq!(req.line(), line);
        assert_eq!(rep.line(), line);
    }
    req.end_input();
    req.ended().went_well();
}

#[test]
fn a_request_nobody_answers_fails_in_time() {
    let start = Instant::now();
    let req = run(&["req", "-c", "tcp://127.0.0.1:1", "--timeout", "0.2", "--linger", "0.1", "a"], "").failed(1);
    assert_eq!(req.why(), "request 1: no peer could be asked in time");
    assert!(req.summary().is("received", 0, 0, 1), "{:?}", req.stderr);
    assert!(start.elapsed() < Duration::from_secs(20));
}

#[cfg(unix)]
#[test]
fn a_command_answers_with_its_output() {
    let mut rep = Tool::start(&["rep", "-b", ANY, "--exec", "tr a-z A-Z", "--quiet"]);
    let address = rep.listening();
    let req = run(&["req", "-c", &address], "one\ntwo\n\nfour\n").went_well();
    assert_eq!(req.stdout, ["ONE", "TWO", "", "FOUR"]);
    rep.signal("-TERM");
    assert!(rep.ended().went_well().summary().is("received", 4, 10, 0));
}

#[cfg(unix)]
#[test]
fn commands_run_at_once_and_replies_keep_their_order() {
    // The first request is answered only when the second has been.
    let directory = tempfile::tempdir().unwrap();
    let fifo = directory.path().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let command = format!(
        "read what; if [ $what = first ]; then cat '{fifo}'; else echo go > '{fifo}'; printf done; fi",
        fifo = fifo.display()
    );
    let mut rep = Tool::start(&["rep", "-b", ANY, "--exec", &command, "-n", "2"]);
    let address = rep.listening();
    let req = run(&["req", "-c", &address], "first\nsecond\n").went_well();
    assert_eq!(req.stdout, ["go", "", "done"]);
    rep.ended().went_well();
}

#[cfg(unix)]
#[test]
fn what_a_command_leaves_unread_or_says_by_its_status_does_not_matter_but_its_death_does() {
    let big = "x".repeat(1 << 20);
    let mut rep = Tool::start(&["rep", "-b", ANY, "--exec", "printf ok; exit 3", "-n", "1", "--quiet"]);
    let address = rep.listening();
    assert_eq!(run(&["req", "-c", &address], &big).went_well().stdout, ["ok"]);
    rep.ended().went_well();
    let mut rep = Tool::start(&["rep", "-b", ANY, "--exec", "printf half; kill -9 $$", "-n", "1", "--quiet"]);
    let address = rep.listening();
    let req = run(&["req", "-c", &address, "a"], "").failed(1);
    assert_eq!(req.why(), "request 1: the peer dropped the request without an answer");
    let rep = rep.ended().went_well();
    assert!(rep.stderr.iter().any(|line| line.starts_with("a request is refused: ")), "{:?}", rep.stderr);
    assert!(rep.summary().is("received", 1, 1, 1), "{:?}", rep.stderr);
}

#[cfg(unix)]
#[test]
fn a_command_that_prints_without_end_is_stopped() {
    let mut rep = Tool::start(&["rep", "-b", ANY, "--exec", "yes", "-n", "1", "--quiet"]);
    let address = rep.listening();
    run(&["req", "-c", &address, "a"], "").failed(1);
    let rep = rep.ended().went_well();
    assert!(rep.stderr.iter().any(|line| line.contains("more than a message may have")), "{:?}", rep.stderr);
}

// ---- signals ------------------------------------------------------------------------------------------------------

#[cfg(unix)]
#[test]
fn signals_close_in_order() {
    for signal in ["-INT", "-TERM"] {
        let mut pull = Tool::start(&["pull", "-b", ANY]);
        let address = pull.listening();
        // Its input never ends.
        let mut push = Tool::start(&["push", "-c", &address]);
        push.write(b"a\nb\n");
        assert_eq!([pull.line(), pull.line()], ["a", "b"]);
        push.signal(signal);
        assert!(push.ended().went_well().summary().is("sent", 2, 2, 0));
        pull.signal(signal);
        assert!(pull.ended().went_well().summary().is("received", 2, 2, 0));
    }
}

#[cfg(unix)]
#[test]
fn a_signal_before_the_count_is_a_failure() {
    let mut pull = Tool::start(&["pull", "-b", ANY, "-n", "3"]);
    let address = pull.listening();
    run(&["push", "-c", &address], "a\n").went_well();
    assert_eq!(pull.line(), "a");
    pull.signal("-INT");
    assert_eq!(pull.ended().failed(1).why(), "1 of 3 messages came");

    let mut publisher = Tool::start(&["pub", "-b", ANY, "--topic", "t", "--wait-subscribers", "1", "-n", "3"]);
    publisher.listening();
    publisher.signal("-TERM");
    assert_eq!(publisher.ended().failed(1).why(), "stopped after 0 of 3 messages");

    let mut rep = Tool::start(&["rep", "-b", ANY, "--echo", "-n", "3"]);
    let address = rep.listening();
    run(&["req", "-c", &address, "a"], "").went_well();
    rep.signal("-INT");
    assert_eq!(rep.ended().failed(1).why(), "stopped after 1 of 3 requests");
}

#[cfg(unix)]
#[test]
fn the_second_signal_ends_it_at_once() {
    let mut rep = Tool::start(&["rep", "-b", ANY, "--exec", "exec sleep 1000", "--linger", "1000"]);
    let address = rep.listening();
    let _req = Tool::start(&["req", "-c", &address, "a"]);
    // The command does not end, and the linger is long.
    assert_eq!(rep.line(), "a");
    rep.signal("-INT");
    rep.signal("-TERM");
    // The end of its standard error says that the command, which has it too, was killed.
    assert_eq!(rep.ended().failed(1).why(), "interrupted before all was done");
}

/// What a terminal tells the tool, it tells all of its group: commands are in another, so that they may end.
#[cfg(target_os = "linux")]
#[test]
fn a_terminal_tells_commands_nothing() {
    let group = "read -r pid _ _ _ group _ < /proc/$$/stat; [ $group = $pid ] && printf alone || printf together";
    let mut rep = Tool::start(&["rep", "-b", ANY, "--exec", group, "-n", "1", "--quiet"]);
    let address = rep.listening();
    assert_eq!(run(&["req", "-c", &address, "?"], "").went_well().stdout, ["alone"]);
    rep.ended().went_well();
}

// ---- usage and failures -------------------------------------------------------------------------------------------

#[test]
fn wrong_usage_is_status_2() {
    let wrong: &[&[&str]] = &[
        &[],
        &["shout"],
        &["push"],
        &["pull", "-n", "1"],
        &["push", "-b"],
        &["push", "-b", ANY, "--size", "8"],
        &["push", "-b", ANY, "-n", "11", "--size", "1"],
        &["push", "-b", ANY, "-n", "1", "--size", "8", "file"],
        &["push", "-b", ANY, "--rate", "0"],
        &["push", "-b", ANY, "-n", "-1"],
        &["push", "-b", ANY, "--overflow", "drop-oldest"],
        &["push", "-b", ANY, "--linger", "-1"],
        &["pull", "-b", ANY, "--hwm", "0"],
        &["pull", "-b", ANY, "--timeout", "soon"],
        &["pull", "-b", ANY, "file"],
        &["pub", "-b", ANY],
        &["pub", "-b", ANY, "--topic", "t", "--overflow", "panic"],
        &["req", "-b", ANY, "-n", "1", "message"],
        &["req", "-b", ANY, "--size", "1", "message"],
        &["rep", "-b", ANY],
        &["rep", "-b", ANY, "--echo", "--exec", "cat"],
        &["bench"],
        &["bench", "thr", "--transport", "pigeon"],
        &["bench", "thr", "-n", "0"],
        &["bench", "thr", "--peers", "2", "--size", "1"],
        &["bench", "thr", "--senders", "2", "--size", "1"],
        &["bench", "lat", "--senders", "2"],
        &["bench", "thr", "--busy"],
        &["bench", "thr", "--listen", ANY, "--connect", ANY],
        &["bench", "thr", "--listen", ANY, "--one-process"],
        &["bench", "thr", "--listen", ANY, "--transport", "ipc"],
        &["bench", "thr", "--listen", "inproc://here"],
        &["bench", "thr", "--listen", "tcp://0.0.0.0:0"],
        &["bench", "thr", "--connect", ANY, "--size", "1"],
        &["bench", "thr", "--connect", "tcp://example.com:7000"],
        &["push", "-b", ANY, "--durability", "os"],
        &["push", "-b", ANY, "--spool", "here", "--durability", "sometimes"],
        &["push", "-b", ANY, "--inbox", "here"],
        &["pull", "-b", ANY, "--spool", "here"],
        &["pull", "-b", ANY, "--durability", "os"],
        &["spool"],
        &["spool", "stat"],
        &["spool", "cat", "here", "--from", "the start"],
        &["spool", "dead", "here", "requeue"],
        &["spool", "dead", "here", "purge", "some"],
        &["pull", "-b", "127.0.0.1:0"],
        &["pull", "-c", "pigeon://127.0.0.1:0"],
        &["pull", "-c", "tcp://127.0.0.1"],
        &["pull", "-b", "tcp://*:0"],
        &["pull", "-c", "tcp://example.com:7000"],
    ];
    for args in wrong {
        let ended = run(args, "").failed(2);
        assert!(ended.stdout.is_empty() && !ended.stderr.is_empty(), "{args:?}");
    }
    let plain = run(&["pull", "-b", "tcp://0.0.0.0:0"], "").failed(2);
    assert!(plain.why().contains("--plaintext"), "{:?}", plain.stderr);
}

#[test]
fn plain_text_leaves_the_machine_when_told_so() {
    let mut pull = Tool::start(&["pull", "-b", "tcp://0.0.0.0:0", "--plaintext", "-n", "1"]);
    let address = pull.listening().replace("0.0.0.0", "127.0.0.1");
    run(&["push", "-c", &address], "a\n").went_well();
    assert_eq!(pull.ended().went_well().stdout, ["a"]);
}

#[test]
fn an_address_in_use_is_a_failure_in_one_line() {
    let mut pull = Tool::start(&["pull", "-b", ANY]);
    let address = pull.listening();
    let second = run(&["pull", "-b", &address], "").failed(1);
    assert_eq!(second.why(), format!("cannot listen on {address}: somebody else does"));
    assert_eq!(second.stderr.len(), 1);
}

#[test]
fn help_and_version_are_no_failures() {
    let help = run(&["--help"], "").went_well().stdout.join("\n");
    for command in ["push", "pull", "pub", "sub", "req", "rep", "bench", "spool"] {
        assert!(help.contains(&format!("  {command} ")), "{help}");
        assert!(!run(&[command, "--help"], "").went_well().stdout.is_empty());
    }
    assert!(!help.contains("bench-far"), "{help}");
    assert_eq!(run(&["--version"], "").went_well().stdout, [concat!("ropewalk ", env!("CARGO_PKG_VERSION"))]);
}

// ---- keys ---------------------------------------------------------------------------------------------------------

#[test]
fn peers_with_keys_let_in_whom_they_know() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let [ours, theirs, strange] = ["ours", "theirs", "strange"].map(|name| {
        let made = run(&["key", "new", &file(name)], "").went_well();
        let shown = run(&["key", "show", &file(name)], "").went_well();
        assert_eq!((made.stdout.len(), &made.stdout), (1, &shown.stdout));
        made.stdout[0].clone()
    });
    assert!(run(&["key", "new", &file("ours")], "").failed(1).why().contains("already"));
    assert_eq!(run(&["key", "show", &file("ours")], "").went_well().stdout, [ours.as_str()]);
    assert_ne!(theirs, strange);
    let listens = ["pull", "-b", "tls://127.0.0.1:0", "--key", &file("theirs"), "--allow", &ours, "-n", "2"];
    let mut pull = Tool::start(&listens);
    let address = pull.listening();
    assert!(address.starts_with(&format!("tls://{theirs}@127.0.0.1:")), "{address}");
    let push = |key: &str| run(&["push", "-c", &address, "--key", &file(key), "--linger", "5", "-v"], "one\ntwo\n");
    let refused = run(&["push", "-c", &address, "--key", &file("strange"), "--linger", "0.3", "-v"], "no\n").failed(1);
    assert!(refused.stderr.iter().any(|line| line.contains("does not take our key")), "{:?}", refused.stderr);
    push("ours").went_well();
    assert_eq!(pull.ended().went_well().stdout, ["one", "two"]);
    // Nothing is listened on or dialled that could not be safe; the tool says what to do, in its own words.
    let no_key = run(&["pull", "-b", "tls://127.0.0.1:0", "--allow-any"], "").failed(2);
    assert!(no_key.why().contains("ropewalk key new"), "{}", no_key.why());
    let nobody = run(&["pull", "-b", "tls://127.0.0.1:0", "--key", &file("ours")], "").failed(2);
    assert!(nobody.why().contains("--allow PEERID"), "{}", nobody.why());
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(file("ours"), std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(run(&["key", "show", &file("ours")], "").failed(1).why().contains("mode 644"));
    }
}
