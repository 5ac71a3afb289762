//! What peers may do, as the application decides.

use std::{cell::Cell, fmt, ptr, sync::Arc};

use ropewalk_patterns::Action;

use crate::events::PeerInfo;

type Decides = dyn Fn(&PeerInfo, Action<'_>) -> bool + Send + Sync;

/// The application's word on what a peer wants to do.
#[derive(Clone)]
pub(crate) struct Authorize(Arc<Decides>);

thread_local! {
    /// Whose word is being asked for on this thread, under its socket's lock.
    static ASKED: Cell<*const ()> = const { Cell::new(ptr::null()) };
}

impl Authorize {
    pub(crate) fn new(decides: impl Fn(&PeerInfo, Action<'_>) -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(decides))
    }

    fn asked(&self) -> *const () {
        Arc::as_ptr(&self.0).cast()
    }

    pub(crate) fn permits(&self, peer: &PeerInfo, action: Action<'_>) -> bool {
        /// Also when the application panics.
        struct Before(*const ());

        impl Drop for Before {
            fn drop(&mut self) {
                ASKED.set(self.0);
            }
        }

        let _before = Before(ASKED.replace(self.asked()));
        (self.0)(peer, action)
    }

    /// Whether it is this one's word that is being asked for on this thread.
    pub(crate) fn is_asked(&self) -> bool {
        ASKED.get() == self.asked()
    }
}

impl fmt::Debug for Authorize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Authorize")
    }
}
