//! A long log: opening it again, and reading it.

use std::{fs, path::Path, time::Instant};

use ropewalk::spool::{Durability, ReadError, Spool};

use crate::{Goal, Place, SENDERS, Then, median, message, raw, say, send};

const MESSAGES: usize = 1 << 20;
const LEN: usize = 100;
const ROUNDS: usize = 5;

pub(crate) async fn reopen_and_read(place: &Place) {
    let (spool, _) = place.spool("backlog", Durability::Os).await;
    send(&spool, SENDERS, MESSAGES / SENDERS / 64, 64, &message(LEN), Then::Stay).await;
    // What a killed process leaves: the files as they are while it still runs.
    copy(&place.path("backlog"), &place.path("killed"));
    spool.close().await.expect("it closes");
    reopen(place, "backlog", "closed in order").await;
    reopen(place, "killed", "killed").await;
    read(place).await;
    for name in ["backlog", "killed"] {
        fs::remove_dir_all(place.path(name)).expect("it goes");
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).expect("a directory");
    for path in raw::segments(from).expect("a directory") {
        fs::copy(&path, to.join(path.file_name().expect("a name"))).expect("a copy");
    }
}

/// Each opening changes the files, so each has its own.
async fn reopen(place: &Place, name: &str, how: &str) {
    let (mut ratios, mut times, mut rates) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let again = place.path("again");
        copy(&place.path(name), &again);
        let segments = raw::segments(&again).expect("its files");
        let last = segments.iter().rfind(|path| path.metadata().is_ok_and(|file| file.len() > 0));
        let (bytes, raw) = raw::read(&last.cloned().into_iter().collect::<Vec<_>>()).expect("it is read");
        let began = Instant::now();
        let (spool, report) = Spool::open(&again, Durability::Os).await.expect("it opens");
        let took = began.elapsed().as_secs_f64();
        assert_eq!((report.clean, report.damage.len()), (how != "killed", 0));
        ratios.push(raw.as_secs_f64() / took);
        times.push(took);
        rates.push(bytes as f64 / took / 1e6);
        place.done("again", spool).await;
    }
    let what = format!("opening a backlog of {MESSAGES} messages, {how}");
    say(median(times), Goal::Most(1.0), &format!("seconds: {what}"));
    let rate = median(rates);
    say(median(ratios), Goal::Least(0.7), &format!("{what}: {rate:.0} MB/s of the last file, beside reading it"));
}

async fn read(place: &Place) {
    let (spool, _) = place.spool("backlog", Durability::Os).await;
    let files = raw::segments(&place.path("backlog")).expect("its files");
    let (mut ratios, mut rates) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let began = Instant::now();
        let mut count = 0;
        let mut reader = spool.read_from(0);
        while next(&mut reader).await.expect("it is read") {
            count += 1;
        }
        let took = began.elapsed().as_secs_f64();
        assert_eq!(count, MESSAGES);
        let (_, raw) = raw::read(&files).expect("it is read");
        ratios.push(raw.as_secs_f64() / took);
        rates.push(count as f64 / took);
    }
    spool.close().await.expect("it closes");
    let what = format!("reading a backlog: {:.0} messages/s, {:.0} MB/s", median(rates.clone()), median(rates) * 1e-4);
    say(median(ratios), Goal::None, &format!("{what}, beside reading its files"));
}

async fn next(reader: &mut ropewalk::spool::Reader) -> Result<bool, ReadError> {
    Ok(reader.try_next().await?.is_some())
}
