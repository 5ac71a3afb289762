//! SIGINT and SIGTERM close in order; the second one ends at once.

use tokio::sync::watch;

use crate::failure::Failure;

/// Counts the signals to stop.
#[derive(Debug)]
pub(crate) struct Stop {
    signals: watch::Receiver<u32>,
}

impl Stop {
    /// From now on signals are counted and no longer end the process.
    pub(crate) fn listen() -> Result<Self, Failure> {
        let mut next = signals().map_err(|error| Failure::failed(format!("cannot listen for signals: {error}")))?;
        let (count, signals) = watch::channel(0);
        tokio::spawn(async move {
            while next.recv().await {
                count.send_modify(|count| *count += 1);
            }
        });
        Ok(Self { signals })
    }

    /// Waits for the first signal.
    pub(crate) async fn once(&self) {
        self.counted(1).await;
    }

    /// Waits for the second signal.
    pub(crate) async fn twice(&self) {
        self.counted(2).await;
    }

    async fn counted(&self, at_least: u32) {
        let mut signals = self.signals.clone();
        if signals.wait_for(|count| *count >= at_least).await.is_err() {
            // No signal will be heard any more.
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(unix)]
mod system {
    use tokio::signal::unix::{Signal, SignalKind, signal};

    pub(super) struct Signals {
        interrupt: Signal,
        terminate: Signal,
    }

    pub(super) fn signals() -> std::io::Result<Signals> {
        Ok(Signals { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    impl Signals {
        pub(super) async fn recv(&mut self) -> bool {
            tokio::select! {
                signal = self.interrupt.recv() => signal.is_some(),
                signal = self.terminate.recv() => signal.is_some(),
            }
        }
    }
}

#[cfg(windows)]
mod system {
    use tokio::signal::windows::{CtrlBreak, CtrlC, ctrl_break, ctrl_c};

    pub(super) struct Signals {
        interrupt: CtrlC,
        terminate: CtrlBreak,
    }

    pub(super) fn signals() -> std::io::Result<Signals> {
        Ok(Signals { interrupt: ctrl_c()?, terminate: ctrl_break()? })
    }

    impl Signals {
        pub(super) async fn recv(&mut self) -> bool {
            tokio::select! {
                signal = self.interrupt.recv() => signal.is_some(),
                signal = self.terminate.recv() => signal.is_some(),
            }
        }
    }
}

use system::signals;
