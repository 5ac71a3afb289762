//! The writer that has nothing to do.

use std::{fs, time::Duration};

use ropewalk::spool::Durability;
use tokio::time::{Instant, sleep, timeout};

use crate::{
    LONG, open, roomy,
    watched::{Call, Watched},
};

/// How often the thread that writes has gone to sleep.
fn slept(watched: &Watched) -> u64 {
    let thread = watched.see(|seen| seen.thread.clone()).unwrap();
    let status = fs::read_to_string(thread.join("status")).unwrap();
    let count = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
    count.trim().parse().unwrap()
}

/// Returns when it sleeps until it is woken.
async fn comes_to_rest(watched: &Watched) {
    let deadline = Instant::now() + LONG;
    loop {
        let before = slept(watched);
        sleep(Duration::from_millis(100)).await;
        let times = slept(watched) - before;
        if times == 0 {
            return;
        }
        assert!(Instant::now() < deadline, "it wakes by itself: {times} times in 100 ms");
    }
}

/// After work it looks once more whether something was settled, and then no more; and what is settled when it sleeps is
/// written all the same.
#[tokio::test]
async fn a_writer_without_work_sleeps_and_writes_what_is_settled_then() {
    let directory = tempfile::tempdir().unwrap();
    let watched = Watched::new(directory.path());
    let spool = open(watched.clone(), roomy(Durability::Os)).await;
    spool.cursor("reader").await.unwrap();
    for round in 0..3 {
        let seqs = spool.append([vec![7; 100]]).await.unwrap();
        if round > 0 {
            comes_to_rest(&watched).await;
        }
        watched.see(|seen| seen.calls.clear());
        spool.settle("reader", seqs).unwrap();
        let written = async {
            while !watched.see(|seen| seen.calls.iter().any(|call| matches!(call, Call::Write(_)))) {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(LONG, written).await.expect("what was settled is written");
    }
    comes_to_rest(&watched).await;
    spool.close().await.unwrap();
}
