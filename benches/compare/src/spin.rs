//! Lowest-priority processes that keep the processors awake, so that latency is not that of waking them.

use std::process::{Child, Command, Stdio};

use crate::child::Outcome;

/// One for each processor; ended when dropped.
pub struct Spinners(Vec<Child>);

impl Spinners {
    pub fn start() -> Outcome<Self> {
        let mut children = Self(Vec::new());
        for _ in 0..std::thread::available_parallelism()?.get() {
            let mut command = Command::new(std::env::current_exe()?);
            children.0.push(command.arg("spin").stdin(Stdio::piped()).spawn()?);
        }
        Ok(children)
    }
}

impl Drop for Spinners {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // One that ended already is just as well.
            let _ended = child.kill();
            let _reaped = child.wait();
        }
    }
}

/// Spins until the parent is gone.
pub fn run() -> Outcome {
    // SAFETY: plain calls with constant arguments; SCHED_IDLE needs no privilege.
    unsafe {
        let idle = libc::sched_param { sched_priority: 0 };
        if libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const idle) != 0 {
            libc::nice(19);
        }
    }
    let parent_is_gone = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let flag = parent_is_gone.clone();
    std::thread::spawn(move || {
        let mut line = String::new();
        let _ended = std::io::stdin().read_line(&mut line);
        flag.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    while !parent_is_gone.load(std::sync::atomic::Ordering::Relaxed) {
        std::hint::spin_loop();
    }
    Ok(())
}
