//! Files that are used again: want of files in the midst of it, and what a message in them can pretend to be.

use ropewalk::spool::{Durability, Spool};
use tokio::time::timeout;

use crate::{LONG, killed, open, roomy, watched::Watched};

/// Files are used again, and at any step of it the system has no more to give for a moment.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_file_that_cannot_be_used_again_for_a_moment_is_no_failed_disk() {
    const EMFILE: i32 = 24;
    let directory = tempfile::tempdir().unwrap();
    let watched = Watched::new(directory.path());
    let spool = open(watched.clone(), roomy(Durability::Always)).await;
    spool.cursor("reader").await.unwrap();
    for n in 0..400_u64 {
        watched.see(|seen| match n % 10 {
            3 => seen.refuses_to_reopen = Some(EMFILE),
            0 | 5 | 8 => seen.refuses_to_sync_directory = Some(EMFILE),
            7 => seen.refuses_to_create = Some(EMFILE),
            _ => {}
        });
        let appended = timeout(LONG, spool.append([[&n.to_le_bytes()[..], &[7; 900]].concat()])).await;
        assert!(matches!(appended, Ok(Ok(_))), "{n}: {appended:?}");
        spool.settle("reader", 0..n.saturating_sub(3)).unwrap();
    }
    let reopened = watched.see(|seen| seen.reopened);
    assert!(reopened > 5, "{reopened}");
    // The last of what was not settled is there, also for whom finds what is left.
    let left = killed(directory.path());
    drop(spool);
    let (spool, report) = Spool::open(left.path(), Durability::Always).await.unwrap();
    assert!(report.damage.is_empty(), "{report:?}");
    let (mut reader, mut found) = (spool.read_from(0), Vec::new());
    while let Some(record) = reader.try_next().await.unwrap() {
        found.push(u64::from_le_bytes(record.message.payload()[..8].try_into().unwrap()));
    }
    assert!(found.ends_with(&[396, 397, 398, 399]) && found.is_sorted_by(|a, b| a + 1 == *b), "{found:?}");
}

/// A message that has whole frames in it, as of a log far ahead, stands in a file that waits to be used again when the
/// process is killed.
#[tokio::test]
async fn frames_in_a_message_are_none_of_a_segment_to_come() {
    let mut frame = Vec::new();
    let (far, body) = (1_u64 << 60, b"forged!!");
    frame.extend_from_slice(&(body.len() as u32).to_le_bytes());
    frame.extend_from_slice(&crc32c::crc32c(body).to_le_bytes());
    [far, far, 1 << 40, 7].iter().for_each(|number: &u64| frame.extend_from_slice(&number.to_le_bytes()));
    frame.extend_from_slice(&[1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    frame.resize(56, 0);
    let frame = [&b"RwFr"[..], &crc32c::crc32c(&frame).to_le_bytes(), &frame, body].concat();
    let directory = tempfile::tempdir().unwrap();
    let watched = Watched::new(directory.path());
    let spool = open(watched.clone(), roomy(Durability::Always)).await;
    spool.cursor("reader").await.unwrap();
    // At every place where one can stand.
    let mut shift = 0;
    while watched.see(|seen| seen.reopened) < 20 {
        let payload = [vec![0; shift % 8], frame.repeat(900 / frame.len())].concat();
        let seqs = spool.append([payload]).await.unwrap();
        spool.settle("reader", seqs).unwrap();
        shift += 1;
        let left = killed(directory.path());
        let opened = Spool::open(left.path(), Durability::Os).await;
        assert!(opened.as_ref().is_ok_and(|(_, report)| report.damage.is_empty()), "a kill is no damage: {opened:?}");
    }
}
