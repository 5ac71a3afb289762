//! Whether the peer is still there.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use ropewalk_patterns::{Peer, zmtp::Command};

use super::wire::Wire;
use crate::{events::DownReason, hub::Port};

/// What reader and writer know of the peer's life. They run in one task; nothing else depends on the order of these.
#[derive(Debug)]
pub(super) struct Vitals {
    /// Something was read since the last look.
    pub(super) heard: AtomicBool,
    /// The reader has stopped for want of room: the peer's silence says nothing.
    pub(super) deaf: AtomicBool,
    /// Messages that were begun to be written.
    begun: AtomicU64,
    /// How many of them the peer had behind it when it last answered a PING. A plain peer stops reading when its
    /// application does, so as long as these differ its silence says nothing, whatever else came from it meanwhile.
    answered: AtomicU64,
    /// The peer speaks the extension, so its reader never stops.
    pub(super) always_reads: AtomicBool,
    /// It knows PING and PONG; nothing before ZMTP 3.1 does.
    pub(super) answers: bool,
    dead_after: AtomicU64,
}

impl Vitals {
    pub(super) fn new(dead_after: Duration, answers: bool) -> Self {
        Self {
            heard: AtomicBool::new(false),
            deaf: AtomicBool::new(false),
            begun: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            always_reads: AtomicBool::new(false),
            answers,
            dead_after: AtomicU64::new(millis(dead_after)),
        }
    }

    pub(super) fn hear(&self) {
        self.heard.store(true, Relaxed);
    }

    pub(super) fn begin(&self, messages: u64) {
        self.begun.fetch_add(messages, Relaxed);
    }

    /// What a command says of the peer's life.
    pub(super) fn learn(&self, command: &Command) {
        match command {
            Command::Ping { ttl, .. } => self.time_to_live(*ttl),
            Command::Pong { context } => self.answer(context),
            _ => {}
        }
    }

    /// The peer answers a PING; ours say how many messages went before them.
    fn answer(&self, context: &[u8]) {
        let count = context.try_into().map_or_else(
            // Some answer without the context. They are taken to answer the last one.
            |_| self.begun.load(Relaxed),
            u64::from_be_bytes,
        );
        self.answered.store(count, Relaxed);
    }

    /// The peer's silence says nothing.
    fn excused(&self) -> bool {
        let busy = self.begun.load(Relaxed) != self.answered.load(Relaxed);
        self.deaf.load(Relaxed) || (busy && !self.always_reads.load(Relaxed))
    }

    /// The peer asks to be taken for dead earlier than we would; in tenths of a second, 0 asks for nothing.
    fn time_to_live(&self, ttl: u16) {
        if ttl > 0 {
            self.dead_after.fetch_min(u64::from(ttl) * 100, Relaxed);
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// So long the task has to find what came and nobody has read.
const LOOK: Duration = Duration::from_millis(100);

/// Asks a silent peer whether it is there. Ends when it was silent for too long.
pub(super) async fn watch(port: &dyn Port, peer: Peer, wire: &Wire) -> DownReason {
    let (options, vitals) = (port.options(), &wire.vitals);
    let Some(every) = options.heartbeat.filter(|_| vitals.answers) else { return std::future::pending().await };
    let cap = Duration::from_secs(86_400 * 365);
    let ours = u16::try_from(options.dead_after.as_millis() / 100).unwrap_or(u16::MAX).max(1);
    let (mut last_heard, mut looked) = (tokio::time::Instant::now(), false);
    loop {
        let dead_after = Duration::from_millis(vitals.dead_after.load(Relaxed)).min(cap);
        // Nobody is taken for dead who was not asked before, whatever the two ends have agreed on.
        let every = every.min(dead_after / 3);
        let deadline = last_heard + dead_after;
        tokio::time::sleep_until(deadline.min(tokio::time::Instant::now() + every)).await;
        let now = tokio::time::Instant::now();
        let excused = vitals.excused();
        if vitals.heard.swap(false, Relaxed) || excused {
            last_heard = now;
            looked = false;
            if !excused {
                continue;
            }
        }
        wire.rest();
        port.rest(peer);
        let silent = now - last_heard;
        if silent >= dead_after {
            // What came may lie there unread: the task looks for it before it says so.
            if wire.is_leased() && !std::mem::replace(&mut looked, true) {
                port.give_back(peer);
                tokio::time::sleep(LOOK).await;
                continue;
            }
            return DownReason::Dead { silent };
        }
        // A plain peer would close the link when nothing of ours comes within that time, but we are silent for as long
        // as it is not. A Ropewalk peer asks before.
        let ttl = if vitals.always_reads.load(Relaxed) { ours } else { 0 };
        port.ping(peer, ttl);
    }
}
