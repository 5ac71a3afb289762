//! The tool measures.

use std::{process::Command, time::Instant};

use super::tool::{ANY, PATIENCE, Tool, run};

#[test]
fn every_measurement_checks_and_tells() {
    let transports: &[&str] =
        if cfg!(unix) { &["tcp", "tls", "quic", "ipc", "inproc"] } else { &["tcp", "tls", "quic", "inproc"] };
    for transport in transports {
        let kinds: [(&[&str], usize); 8] = [
            (&["thr"], 3),
            (&["thr", "--peers", "3"], 3),
            (&["thr", "--senders", "3"], 3),
            (&["thr", "--senders", "2", "--peers", "2", "--one-process"], 3),
            (&["lat"], 2),
            (&["lat", "--peers", "2"], 2),
            (&["lat", "--busy"], 2),
            (&["fan", "--peers", "3"], 3),
        ];
        for (kind, rows) in kinds {
            let args = [&["bench"], kind, &["--transport", transport, "-n", "300", "--size", "9"]].concat();
            let table = run(&args, "").went_well();
            assert_eq!(table.stdout.len(), 2 + rows, "{:?}", table.stdout);
            assert!(table.stdout[0].contains(transport), "{:?}", table.stdout);
            assert!(table.stdout.last().unwrap().contains("raw "), "{:?}", table.stdout);
        }
    }
}

#[test]
fn measurements_come_as_json() {
    for what in ["thr", "lat", "fan"] {
        // Larger than a block, than a read and than the default limit of a message.
        for size in ["0", "1", "200000", "5000000"] {
            let ended = run(&["bench", what, "-n", "20", "--size", size, "--json"], "").went_well();
            let [line] = ended.stdout.as_slice() else { panic!("{:?}", ended.stdout) };
            assert!(
                line.starts_with(&format!("{{\"bench\":\"{what}\",\"transport\":\"tcp\",\"size\":{size},")),
                "{line}"
            );
            assert!(line.contains("\"name\":\"raw tcp\"") && line.ends_with("}]}"), "{line}");
            assert_eq!(line.matches('{').count(), line.matches('}').count(), "{line}");
        }
    }
}

#[test]
fn two_machines_measure_together() {
    for kind in [&["thr", "--senders", "2"][..], &["lat", "--busy"], &["fan", "--transport", "quic"]] {
        let args = [&["bench"], kind, &["--listen", ANY, "-n", "300", "--json"]].concat();
        let mut near = Tool::start(&args);
        let far = Tool::start(&["bench", "thr", "--connect", &near.listening()]);
        let near = near.ended().went_well();
        assert_eq!(near.stdout.len(), 1, "{:?}", near.stdout);
        assert!(far.ended().went_well().stdout.is_empty());
    }
}

#[test]
fn neither_end_of_a_measurement_outlives_the_other() {
    let endless = ["bench", "lat", "-n", "1000000000", "--listen", ANY];
    for near_goes in [true, false] {
        let mut near = Tool::start(&endless);
        let far = Tool::start(&["bench", "lat", "--connect", &near.listening()]);
        near.hear("the far end is there");
        let (mut goes, stays) = if near_goes { (near, far) } else { (far, near) };
        goes.child.kill().unwrap();
        let stays = stays.ended().failed(1);
        assert!(
            stays.why().contains(if near_goes { "the near end is gone" } else { "the far end" }),
            "{:?}",
            stays.why()
        );
    }
}

#[cfg(unix)]
#[test]
fn a_measurement_that_is_stopped_leaves_nothing_behind() {
    let bench = Tool::start(&["bench", "lat", "-n", "1000000000"]);
    // Its far end is a child that lives as long as it does.
    let said = |program: &str, args: &[&str]| {
        let output = Command::new(program).args(args).output().unwrap().stdout;
        String::from_utf8_lossy(&output).trim().to_owned()
    };
    let parent = bench.child.id().to_string();
    let deadline = Instant::now() + PATIENCE;
    let far = loop {
        let found = said("pgrep", &["-P", &parent]);
        if !found.is_empty() {
            break found;
        }
        assert!(Instant::now() < deadline, "there is no far end");
    };
    bench.signal("-INT");
    assert_eq!(bench.ended().failed(1).why(), "stopped before all was measured");
    // Gone, or dead and waiting for whoever buries the orphans here.
    while !matches!(said("ps", &["-o", "stat=", "-p", &far]).chars().next(), None | Some('Z')) {
        assert!(Instant::now() < deadline, "the far end lives");
    }
}
