//! The tasks of a socket, owned and joined.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::{Mutex, MutexGuard, PoisonError},
    task::{Poll, ready},
};

use tokio::task::JoinHandle;

/// Tasks that end when what they work for does, or before.
#[derive(Debug, Default)]
pub(crate) struct Tasks(Mutex<Vec<JoinHandle<()>>>);

impl Tasks {
    fn lock(&self) -> MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn own(&self, task: JoinHandle<()>) {
        let mut tasks = self.lock();
        if tasks.len() == tasks.capacity() {
            tasks.retain(|task| !task.is_finished());
        }
        tasks.push(task);
    }

    /// Waits for all of them, and for those that they begin. Dropped before it is done, those that are left are still there.
    pub(crate) async fn join(&self) {
        poll_fn(|cx| {
            let mut tasks = self.lock();
            while let Some(task) = tasks.last_mut() {
                if let Err(error) = ready!(Pin::new(task).poll(cx))
                    && error.is_panic()
                {
                    tracing::error!("a task that keeps messages panicked");
                }
                tasks.pop();
            }
            Poll::Ready(())
        })
        .await;
    }
}
