//! `Durability::Always`: what a send costs when it is on the disk before it returns.

use std::time::{Duration, Instant};

use ropewalk::spool::Durability;

use crate::{
    Goal, Place, SENDERS, Then, median, message, percentile,
    raw::{Growing, Raw},
    say, send,
};

const ROUNDS: usize = 9;
/// How long a round of either takes, about.
const ROUND: Duration = Duration::from_millis(300);

/// Many senders at once: the raw loop writes and syncs what the spool wrote and synced, as often.
pub(crate) async fn many(place: &Place) {
    for then in [Then::Stay, Then::Settle] {
        for len in [100, 1024] {
            senders(place, len, then).await;
        }
    }
}

async fn senders(place: &Place, len: usize, then: Then) {
    let (message, mut raw) = (message(len), Raw::new(place.path("raw")));
    let mut growing = Growing::new(place.path("growing"));
    let (spool, counts) = place.spool("always", Durability::Always).await;
    then.begin(&spool).await;
    // A first round, to know how long one takes.
    let mut took = send(&spool, SENDERS, 10, 1, &message, then).await;
    let each = (ROUND.as_micros() as f64 / percentile(&mut took, 0.5)).clamp(10.0, 2000.0) as usize;
    let (mut ratios, mut rates) = (Vec::new(), Vec::new());
    let (mut ours, mut raws, mut grown) = (Vec::new(), Vec::new(), Vec::new());
    let (mut messages, mut syncs, mut bytes) = (0, 0, 0);
    for _ in 0..ROUNDS {
        let before = (counts.syncs(), counts.bytes());
        let began = Instant::now();
        ours.extend(send(&spool, SENDERS, each, 1, &message, then).await);
        let took = began.elapsed();
        let (synced, written) = (counts.syncs() - before.0, counts.bytes() - before.1);
        let batch = vec![7; (written / synced) as usize];
        let began = Instant::now();
        raws.extend((0..synced).map(|_| raw.sync(&batch)));
        ratios.push(began.elapsed().as_secs_f64() / took.as_secs_f64());
        grown.extend((0..synced).map(|_| growing.sync(&batch)));
        rates.push((SENDERS * each) as f64 / took.as_secs_f64());
        messages += SENDERS * each;
        (syncs, bytes) = (syncs + synced, bytes + written);
    }
    place.done("always", spool).await;
    let (per_sync, per_second) = (messages as f64 / syncs as f64, median(rates));
    let how = format!("always, 64 senders, {len} B{}", then.says());
    let what = format!("{how}: {per_second:.0} messages/s beside the raw loop");
    say(median(ratios), Goal::Least(0.85), &format!("{what}, {} bytes a sync", bytes / syncs));
    for (part, goal) in [(0.5, 2.1), (0.99, 2.5)] {
        let [our, raw, grown] = [&mut ours, &mut raws, &mut grown].map(|took| percentile(took, part));
        let what = format!("{how}: p{:.0} {our:.0} us, raw {raw:.0} us", part * 100.0);
        say(our / raw, Goal::Most(goal), &format!("{what}, raw on a growing file {grown:.0} us"));
    }
    say(1.0 / per_sync, Goal::Most(1.0 / 30.0), &format!("syncs a message ({per_sync:.1} messages a sync)"));
    let overhead = bytes as f64 / messages as f64 - len as f64;
    say(overhead, Goal::Most(6.0), &format!("bytes on the disk a message of {len} B, besides its own"));
}

/// One sender, alone, in turns with the raw loop.
pub(crate) async fn alone(place: &Place) {
    let (message, mut raw) = (message(100), Raw::new(place.path("raw")));
    let mut growing = Growing::new(place.path("growing"));
    let (spool, counts) = place.spool("alone", Durability::Always).await;
    send(&spool, 1, 20, 1, &message, Then::Stay).await;
    let before = counts.bytes();
    send(&spool, 1, 1, 1, &message, Then::Stay).await;
    let bytes = vec![7; (counts.bytes() - before) as usize];
    let (mut ours, mut raws, mut grown) = (Vec::new(), Vec::new(), Vec::new());
    let began = Instant::now();
    while ours.len() < 3000 && began.elapsed() < 15 * ROUND {
        ours.extend(send(&spool, 1, 1, 1, &message, Then::Stay).await);
        raws.push(raw.sync(&bytes));
        grown.push(growing.sync(&bytes));
    }
    place.done("alone", spool).await;
    let [ours, raws, grown] = [ours, raws, grown].map(|mut took| percentile(&mut took, 0.5));
    let what = format!("always, idle: p50 {ours:.0} us, raw {raws:.0} us, raw on a growing file {grown:.0} us");
    say((ours - 15.0) / raws, Goal::Most(1.25), &format!("{what} (the ratio leaves out 15 us)"));
}
