//! `Durability::Os`: what a send costs when the system has it.

use std::time::{Duration, Instant};

use ropewalk::spool::{Durability, Reader};

use crate::{Goal, Place, SENDERS, Then, median, message, raw::Growing, say, send};

const ROUNDS: usize = 5;
/// Bytes of messages in a round.
const ROUND: usize = 96 << 20;
const CHUNK: usize = 256 << 10;

/// Ways to give as much: tasks, and messages in each append.
const WAYS: [(usize, usize); 2] = [(SENDERS, 1), (SENDERS, 64)];

pub(crate) async fn write(place: &Place) {
    for len in [1024, 100] {
        for (tasks, group) in WAYS {
            for then in [Then::Stay, Then::Settle] {
                write_so(place, len, tasks, group, then).await;
            }
        }
    }
}

async fn write_so(place: &Place, len: usize, tasks: usize, group: usize, then: Then) {
    let message = message(len);
    let appends = ROUND / if group == 1 { 4 } else { 1 } / len / tasks / group;
    let (mut ratios, mut rates, mut syncs) = (Vec::new(), Vec::new(), 0);
    for _ in 0..ROUNDS {
        let (spool, counts) = place.spool("os", Durability::Os).await;
        then.begin(&spool).await;
        let (before, began) = (counts.syncs(), Instant::now());
        send(&spool, tasks, appends, group, &message, then).await;
        let took = began.elapsed();
        syncs += counts.syncs() - before;
        place.done("os", spool).await;
        let bytes = tasks * appends * group * len;
        ratios.push(raw(place, bytes).as_secs_f64() / took.as_secs_f64());
        rates.push((bytes / len) as f64 / took.as_secs_f64());
    }
    let rate = median(rates);
    let what = format!("os, {tasks} senders, {len} B, {group} an append{}: {rate:.0} messages/s", then.says());
    let what = format!("{what}, {:.0} MB/s", rate * len as f64 / 1e6);
    if len == 100 {
        say(rate / 1e6, Goal::Least(1.0), &format!("{what}, millions a second"));
    } else {
        let syncs = syncs as f64 / ROUNDS as f64;
        say(median(ratios), Goal::Least(0.7), &format!("{what}, {syncs:.1} syncs a round, beside raw writing"));
    }
}

/// So many bytes in chunks, to a file that is new, as those of the spool are.
fn raw(place: &Place, bytes: usize) -> Duration {
    let (chunk, mut file) = (vec![7; CHUNK], Growing::new(place.path("raw")));
    let began = Instant::now();
    (0..bytes.div_ceil(CHUNK)).for_each(|_| file.write(&chunk));
    let took = began.elapsed();
    file.settle();
    took
}

/// A reader that reads what senders write, beside the senders without one.
pub(crate) async fn tail(place: &Place) {
    for (tasks, group) in WAYS {
        let message = message(100);
        let appends = ROUND / 8 / 100 / tasks / group;
        let count = (tasks * appends * group) as u64;
        let (mut ratios, mut rates) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let (spool, _) = place.spool("alone", Durability::Os).await;
            let began = Instant::now();
            send(&spool, tasks, appends, group, &message, Then::Stay).await;
            let alone = began.elapsed();
            place.done("alone", spool).await;

            let (spool, _) = place.spool("tail", Durability::Os).await;
            let began = Instant::now();
            let reader = tokio::spawn(read(spool.read_from(0), count));
            send(&spool, tasks, appends, group, &message, Then::Stay).await;
            reader.await.expect("it reads all");
            let took = began.elapsed();
            place.done("tail", spool).await;
            ratios.push(alone.as_secs_f64() / took.as_secs_f64());
            rates.push(count as f64 / took.as_secs_f64());
        }
        let what =
            format!("os, {tasks} senders, 100 B, {group} an append, and a reader: {:.0} messages/s", median(rates));
        say(median(ratios), Goal::None, &format!("{what}, beside the senders alone"));
    }
}

async fn read(mut reader: Reader, count: u64) {
    for seq in 0..count {
        let record = reader.next().await.expect("a record");
        assert_eq!(record.seq, seq, "in order");
    }
}
