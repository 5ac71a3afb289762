//! Processes that append to a spool are killed at any moment: what they were promised is there.
#![cfg(unix)]

mod spool_child;

use std::{thread, time::Duration};

use spool_child::{Child, Dice, History, POLICIES};

/// What the others kill: see `spool_child`.
#[test]
#[ignore = "the other tests run it in a process of its own"]
fn child() {
    spool_child::work();
}

/// Each policy promises that a killed process loses nothing.
async fn kill(cycles: u64) {
    let directory = tempfile::tempdir().unwrap();
    let (mut history, mut dice) = (History::default(), Dice(7));
    for cycle in 0..cycles {
        let policy = dice.below(POLICIES.len() as u64) as usize;
        let mut child = Child::begin(directory.path(), policy, cycle);
        // One in four dies while it opens, soon after it says that it begins to.
        let lines = if dice.below(4) == 0 { 1 } else { 3 + dice.below(400) };
        assert!(child.hear(&mut history, lines), "it goes on until it is killed: {:?}", history.stopped);
        // Nothing is waited for here: this chooses the moment.
        thread::sleep(Duration::from_micros(dice.below(3000)));
        child.kill(&mut history);
        // Often the next child finds what this one left.
        if dice.below(3) > 0 {
            history.check(directory.path(), false).await;
        }
    }
    history.check(directory.path(), false).await;
    history.check(directory.path(), false).await;
    assert!(history.reused > 3, "some lives go round in their files: {}", history.reused);
    assert!(history.receipts > 40 * cycles, "much was promised: {}", history.receipts);
    assert_eq!(history.stopped, None);
}

#[tokio::test]
async fn a_killed_process_loses_nothing_it_was_promised() {
    kill(20).await;
}

#[tokio::test]
#[ignore = "takes a minute"]
async fn two_hundred_killed_processes_lose_nothing() {
    kill(200).await;
}
