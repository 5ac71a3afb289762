//! What peers may do, as the application decides.

use std::{
    cell::RefCell,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use ropewalk_patterns::Action;

use crate::events::PeerInfo;

type Decides = dyn Fn(&PeerInfo, Action<'_>) -> bool + Send + Sync;

/// The application's word on what a peer wants to do.
#[derive(Clone)]
pub(crate) struct Authorize(Arc<Decides>);

thread_local! {
    /// Whose word is being asked for on this thread, perhaps under its socket's lock.
    static ASKED: RefCell<Vec<*const ()>> = const { RefCell::new(Vec::new()) };
}

impl Authorize {
    pub(crate) fn new(decides: impl Fn(&PeerInfo, Action<'_>) -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(decides))
    }

    fn asked(&self) -> *const () {
        Arc::as_ptr(&self.0).cast()
    }

    /// A panic is a no: whoever asks here has more to do than to end.
    pub(crate) fn permits(&self, peer: &PeerInfo, action: Action<'_>) -> bool {
        ASKED.with_borrow_mut(|asked| asked.push(self.asked()));
        // What it left half done in there is its own.
        let permits = catch_unwind(AssertUnwindSafe(|| (self.0)(peer, action)));
        ASKED.with_borrow_mut(Vec::pop);
        permits.unwrap_or_else(|_| {
            tracing::error!(%peer, ?action, "what `authorize` was given panicked; that is a no");
            false
        })
    }

    /// Whether it is this one's word that is being asked for on this thread.
    pub(crate) fn is_asked(&self) -> bool {
        ASKED.with_borrow(|asked| asked.contains(&self.asked()))
    }
}

impl fmt::Debug for Authorize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Authorize")
    }
}
