//! The verbs, on a real directory.

use std::{
    fs,
    future::Future,
    sync::{Arc, Mutex},
    task::{Context, Wake, Waker},
    time::Duration,
};

use ropewalk::{
    Message,
    spool::{CursorError, Durability, OpenError, ReadError, Spool, SpoolError, SpoolOptions, WhenFull},
};
use tokio::time::timeout;

const SOON: Duration = Duration::from_millis(50);

async fn open(directory: &tempfile::TempDir, options: impl Into<SpoolOptions>) -> Spool {
    Spool::open(directory.path(), options).await.unwrap().0
}

#[tokio::test]
async fn records_come_back_in_order_over_openings() {
    let directory = tempfile::tempdir().unwrap();
    let spool = open(&directory, Durability::Always).await;
    let (stream, first) = (spool.stream(), spool.incarnation());
    assert_eq!(spool.append(["a", "b"]).await.unwrap(), 0..2);
    assert_eq!(spool.durable(), 2);
    assert_eq!(spool.append([["c", "d"]]).await.unwrap(), 2..3);
    assert_eq!(spool.append(Vec::<Message>::new()).await.unwrap(), 3..3);
    spool.close().await.unwrap();
    assert!(matches!(spool.append(["x"]).await, Err(SpoolError::Closed)));
    assert!(matches!(spool.close().await, Err(SpoolError::Closed)));

    let (spool, report) = Spool::open(directory.path(), Durability::Os).await.unwrap();
    assert!(report.clean && report.damage.is_empty() && report.torn_bytes == 0);
    assert_eq!((spool.stream(), spool.incarnation() >> 32), (stream, 2));
    assert_eq!(spool.append(["e"]).await.unwrap(), 3..4);
    let mut reader = spool.read_from(1);
    let mut read = Vec::new();
    while let Some(record) = reader.try_next().await.unwrap() {
        read.push((record.seq, record.incarnation == first, record.message));
    }
    let expected = [(1, true, "b".into()), (2, true, Message::from(["c", "d"])), (3, false, "e".into())];
    assert_eq!(read, expected);
    let verified = spool.verify().await.unwrap();
    assert_eq!((verified.records, verified.bytes, verified.damage.len()), (4, 5, 0));
}

/// Where each group is synced, the file is longer than the log. That is neither unfinished nor damaged, whether the spool
/// was closed or killed.
#[tokio::test]
async fn what_was_made_ready_is_nothing_unfinished() {
    let directory = tempfile::tempdir().unwrap();
    let spool = open(&directory, Durability::Always).await;
    for number in 0..3u8 {
        spool.append([vec![number + 1; 100]]).await.unwrap();
    }
    let killed = tempfile::tempdir().unwrap();
    for file in fs::read_dir(&directory).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), killed.path().join(file.file_name())).unwrap();
    }
    spool.close().await.unwrap();
    for (left, clean) in [(&directory, true), (&killed, false)] {
        let ready =
            fs::read_dir(left).unwrap().any(|file| fs::read(file.unwrap().path()).unwrap().ends_with(&[0; 3000]));
        assert!(ready, "there is room");
        let (spool, report) = Spool::open(left.path(), Durability::Os).await.unwrap();
        assert_eq!((report.clean, report.torn_bytes, report.damage.len()), (clean, 0, 0));
        let verified = spool.verify().await.unwrap();
        assert_eq!((verified.records, verified.damage.len()), (3, 0));
    }
}

/// Nor do its files become larger than they may for it.
#[tokio::test]
async fn what_is_made_ready_stays_within_the_quota() {
    let directory = tempfile::tempdir().unwrap();
    let quota = 64 << 10;
    let spool = open(&directory, SpoolOptions::new(Durability::Always).segment(8 << 10).quota(quota)).await;
    spool.cursor("reader").await.unwrap();
    let on_disk = || fs::read_dir(&directory).unwrap().map(|file| file.unwrap().metadata().unwrap().len()).sum::<u64>();
    // The file of the next segment is there, empty; heads and checkpoints are not counted.
    while timeout(20 * SOON, spool.append([vec![7; 100]])).await.is_ok() {
        assert!(on_disk() <= quota, "{} of {quota}", on_disk());
    }
    assert!(spool.stats().bytes > quota * 3 / 4, "{:?}", spool.stats());
}

#[tokio::test]
async fn a_reader_waits_for_what_comes_and_hears_of_the_end() {
    let directory = tempfile::tempdir().unwrap();
    let spool = open(&directory, Durability::Every(Duration::from_millis(5))).await;
    let mut reader = spool.read_from(0);
    assert!(timeout(SOON, reader.next()).await.is_err());
    let (record, _) = tokio::join!(reader.next(), spool.append(["late"]));
    assert_eq!(record.unwrap().message, "late");
    timeout(Duration::from_secs(10), async {
        while spool.durable() < 1 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await
    .expect("it is synced in its time");
    let (end, closed) = tokio::join!(reader.next(), spool.close());
    assert!(matches!(end, Err(ReadError::Closed)) && closed.is_ok());
}

#[tokio::test]
async fn one_owner_at_a_time() {
    let directory = tempfile::tempdir().unwrap();
    let spool = open(&directory, Durability::Os).await;
    let impatient = SpoolOptions::default().lock_timeout(SOON);
    let refused = Spool::open(directory.path(), impatient).await;
    assert!(matches!(refused, Err(OpenError::InUse { directory: place }) if place == directory.path()));
    // Who waits gets it when the last handle is dropped.
    let (next, ()) = tokio::join!(Spool::open(directory.path(), Durability::Os), async { drop(spool) });
    assert!(next.unwrap().1.clean);
}

#[tokio::test]
async fn a_full_quota_holds_senders_until_enough_is_settled() {
    let directory = tempfile::tempdir().unwrap();
    let options = SpoolOptions::new(Durability::Os).segment(8 << 10).quota(0);
    let spool = open(&directory, options).await;
    spool.cursor("reader").await.unwrap();
    let mut sent = 0;
    // Segments are synced as they end: that may take long, and is no want of room.
    while let Ok(seqs) = timeout(20 * SOON, spool.append([vec![7; 1000]])).await {
        sent = seqs.unwrap().end;
    }
    assert!((8..20).contains(&sent), "{sent}");
    assert!(spool.stats().bytes <= 32 << 10, "{:?}", spool.stats());
    let waiting: Vec<_> = (0..3)
        .map(|n| {
            let spool = spool.clone();
            tokio::spawn(async move { spool.append([vec![n; 1000]]).await.unwrap() })
        })
        .collect();
    tokio::task::yield_now().await;
    spool.settle("reader", 0..sent).unwrap();
    let mut last = sent;
    for append in waiting {
        let seqs = timeout(Duration::from_secs(10), append).await.unwrap().unwrap();
        assert_eq!(seqs.start, last, "in the order they came");
        last = seqs.end;
    }
    assert!(spool.stats().segments < 4);
}

#[tokio::test]
async fn a_dropped_append_is_there_once_or_not_at_all() {
    let directory = tempfile::tempdir().unwrap();
    let spool = open(&directory, Durability::Always).await;
    for _ in 0..50 {
        let _dropped = futures::poll!(Box::pin(spool.append(["dropped"])));
    }
    let seqs = spool.append(["last"]).await.unwrap();
    assert_eq!(seqs, 50..51, "each was accepted when it was first polled, once");
    assert_eq!(spool.verify().await.unwrap().records, 51);
}

#[tokio::test]
async fn cursors_last_and_say_what_is_wrong() {
    let directory = tempfile::tempdir().unwrap();
    let spool = open(&directory, Durability::Always).await;
    spool.append(["a", "b", "c"]).await.unwrap();
    assert_eq!(spool.settle("x", 0..1), Err(CursorError::Unknown));
    assert_eq!(spool.forget("x").await, Err(CursorError::Unknown));
    assert_eq!(spool.cursor("").await, Err(CursorError::Name));
    spool.cursor("x").await.unwrap();
    spool.cursor("y").await.unwrap();
    spool.settle("x", 1..100).unwrap();
    spool.settle("y", 0..1).unwrap();
    assert_eq!((spool.settled("x"), spool.is_settled("x", 2)), (Some(0), Some(true)));
    assert_eq!(spool.is_settled("x", 3), Some(false), "what is not there yet is not settled");
    spool.forget("y").await.unwrap();
    spool.close().await.unwrap();
    let spool = open(&directory, Durability::Always).await;
    spool.settle("x", 0..1).unwrap();
    let stats = spool.stats().cursors;
    assert_eq!((stats.len(), stats["x"].settled, stats["x"].unsettled), (1, 3, 0));
}

#[tokio::test]
async fn many_senders_share_frames_and_syncs() {
    let directory = tempfile::tempdir().unwrap();
    let spool = open(&directory, Durability::Always).await;
    let before = spool.stats().bytes;
    let message = Message::from(vec![1; 100]);
    for _ in 0..20 {
        let group = (0..64).map(|_| spool.append([message.clone()]));
        futures::future::try_join_all(group).await.unwrap();
    }
    let overhead = (spool.stats().bytes - before) as f64 / 1280.0 - 100.0;
    assert!(overhead < 6.0, "{overhead} bytes a message");
    let large = spool.append([vec![0; 65 << 20]]).await;
    assert!(matches!(large, Err(SpoolError::TooLarge { largest }) if largest < 64 << 20));
    spool.append([vec![0; 63 << 20]]).await.unwrap();
    assert_eq!(spool.verify().await.unwrap().records, 1281);
}

/// Senders of one group wake each other. One that is not polled, or gone, keeps nobody waiting.
#[test]
fn a_sender_that_is_woken_and_does_nothing_keeps_nobody_waiting() {
    let directory = tempfile::tempdir().unwrap();
    let spool = futures::executor::block_on(Spool::open(directory.path(), Durability::Always)).unwrap().0;
    for gone in [false, true] {
        for _ in 0..50 {
            // The first has a sync for itself, and the others have the next together.
            let mut appends: Vec<_> = (0..4).map(|_| Box::pin(spool.append(["x"]))).collect();
            let mut woken = Vec::new();
            for append in &mut appends {
                let (wake, is_woken) = std::sync::mpsc::channel::<()>();
                let waker = Waker::from(Arc::new(Tells(Mutex::new(wake))));
                let waits = append.as_mut().poll(&mut Context::from_waker(&waker)).is_pending();
                woken.push(waits.then_some(is_woken));
            }
            let stays = if gone { appends.len() - 1.. } else { 0.. };
            appends.drain(..stays.start);
            for is_woken in woken[stays].iter().flatten() {
                is_woken.recv_timeout(Duration::from_secs(20)).expect("all who are there are woken");
            }
        }
    }
}

struct Tells(Mutex<std::sync::mpsc::Sender<()>>);

impl Wake for Tells {
    fn wake(self: Arc<Self>) {
        let _the_test_has_failed = self.0.lock().unwrap().send(());
    }
}

#[tokio::test]
async fn a_straggler_keeps_little_and_the_oldest_are_dropped_at_the_quota() {
    let directory = tempfile::tempdir().unwrap();
    let options = SpoolOptions::new(Durability::Os).segment(64 << 10).quota(512 << 10).tail(0);
    let spool = open(&directory, options.clone()).await;
    spool.cursor("reader").await.unwrap();
    for seq in 0..2000 {
        spool.append([vec![7; 1000]]).await.unwrap();
        spool.settle("reader", seq..seq + u64::from(seq != 5)).unwrap();
    }
    assert!(spool.stats().bytes <= 512 << 10, "two megabytes came by");
    spool.close().await.unwrap();
    let spool = open(&directory, options.clone()).await;
    assert_eq!((spool.settled("reader"), spool.next_seq()), (Some(5), 2000));
    assert_eq!(spool.read_from(5).next().await.unwrap().seq, 5);
    spool.close().await.unwrap();

    let spool = open(&directory, options.when_full(WhenFull::DropOldest)).await;
    for _ in 0..2000 {
        spool.append([vec![8; 1000]]).await.unwrap();
    }
    let front = spool.stats().seqs.start;
    let missed = spool.read_from(5).next().await;
    let expected = |seqs: &std::ops::Range<u64>, records: u64| *seqs == (5..front) && records == 1 + front - 2000;
    assert!(matches!(&missed, Err(ReadError::Missed { seqs, records }) if expected(seqs, *records)), "{missed:?}");
    assert!(spool.verify().await.unwrap().damage.is_empty());
}
