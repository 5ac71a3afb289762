//! Whether the peer is still there.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use ropewalk_patterns::Peer;

use crate::{events::DownReason, hub::Port};

/// What reader and writer know of the peer's life. They run in one task; nothing else depends on the order of these.
#[derive(Debug)]
pub(super) struct Vitals {
    /// Something was read since the last look.
    pub(super) heard: AtomicBool,
    /// The reader has stopped for want of room: the peer's silence says nothing.
    pub(super) deaf: AtomicBool,
    /// Messages were written since something was last read: a plain peer may be too busy with them to answer.
    pub(super) busied: AtomicBool,
    /// The peer speaks the extension, so its reader never stops.
    pub(super) always_reads: AtomicBool,
    dead_after: AtomicU64,
}

impl Vitals {
    pub(super) fn new(dead_after: Duration) -> Self {
        Self {
            heard: AtomicBool::new(false),
            deaf: AtomicBool::new(false),
            busied: AtomicBool::new(false),
            always_reads: AtomicBool::new(false),
            dead_after: AtomicU64::new(millis(dead_after)),
        }
    }

    pub(super) fn hear(&self) {
        self.heard.store(true, Relaxed);
        self.busied.store(false, Relaxed);
    }

    /// The peer asks to be taken for dead earlier than we would; in tenths of a second, 0 asks for nothing.
    pub(super) fn time_to_live(&self, ttl: u16) {
        if ttl > 0 {
            self.dead_after.fetch_min(u64::from(ttl) * 100, Relaxed);
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Asks a silent peer whether it is there. Ends when it was silent for too long.
pub(super) async fn watch(port: &dyn Port, peer: Peer, vitals: &Vitals) -> DownReason {
    let options = port.options();
    let Some(every) = options.heartbeat else { return std::future::pending().await };
    let ttl = u16::try_from(options.dead_after.as_millis() / 100).unwrap_or(u16::MAX).max(1);
    let mut last_heard = tokio::time::Instant::now();
    loop {
        let dead_after = Duration::from_millis(vitals.dead_after.load(Relaxed)).max(every);
        let deadline = last_heard + dead_after;
        tokio::time::sleep_until(deadline.min(tokio::time::Instant::now() + every)).await;
        let now = tokio::time::Instant::now();
        let excused = vitals.deaf.load(Relaxed) || (vitals.busied.load(Relaxed) && !vitals.always_reads.load(Relaxed));
        if vitals.heard.swap(false, Relaxed) || excused {
            last_heard = now;
            if !excused {
                continue;
            }
        }
        let silent = now - last_heard;
        if silent >= dead_after {
            return DownReason::Dead { silent };
        }
        port.ping(peer, ttl);
    }
}
