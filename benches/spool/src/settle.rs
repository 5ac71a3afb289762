//! What settling costs.

use std::time::Duration;

use ropewalk::spool::Durability;

use crate::{Goal, Place, SENDERS, Then, message, say, send};

const MESSAGES: u64 = 1 << 16;
/// Longer than settling waits for a record to travel with.
const A_WHILE: Duration = Duration::from_millis(60);

pub(crate) async fn settle(place: &Place) {
    let (spool, counts) = place.spool("settle", Durability::Always).await;
    spool.cursor("reader").await.expect("a cursor");
    send(&spool, SENDERS, MESSAGES as usize / SENDERS / 64, 64, &message(100), Then::Stay).await;
    for (from, to, pause, what) in [
        (0, MESSAGES - 500, None, "one by one without a pause"),
        (MESSAGES - 500, MESSAGES, Some(Duration::from_millis(1)), "one each millisecond"),
    ] {
        let (syncs, bytes) = (counts.syncs(), counts.bytes());
        for seq in from..to {
            spool.settle("reader", seq..seq + 1).expect("it settles");
            if let Some(pause) = pause {
                tokio::time::sleep(pause).await;
            }
        }
        tokio::time::sleep(A_WHILE).await;
        let each = (counts.bytes() - bytes) as f64 / (to - from) as f64;
        say((counts.syncs() - syncs) as f64, Goal::Most(0.0), &format!("syncs for settling {}, {what}", to - from));
        let goal = if pause.is_none() { Goal::Most(1.0) } else { Goal::None };
        say(each, goal, &format!("bytes a message for settling, {what}"));
    }
    place.done("settle", spool).await;
}
