//! Whom a socket lets in.

use std::{
    collections::BTreeSet,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use crate::identity::PeerId;

/// Whom a socket lets in, where peers prove who they are. All clones are one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Allowed(Arc<RwLock<Whom>>);

#[derive(Debug, Clone, Default, PartialEq, Eq)]
enum Whom {
    /// Nothing was said.
    #[default]
    Unsaid,
    These(BTreeSet<PeerId>),
    Anybody,
}

impl Allowed {
    /// Whether it was said who may come.
    pub(crate) fn is_said(&self) -> bool {
        *self.read() != Whom::Unsaid
    }

    pub(crate) fn admits(&self, peer: &PeerId) -> bool {
        match &*self.read() {
            Whom::Unsaid => false,
            Whom::These(peers) => peers.contains(peer),
            Whom::Anybody => true,
        }
    }

    pub(crate) fn anybody(&self) {
        *self.write() = Whom::Anybody;
    }

    /// These too. Who allows anybody allows them already.
    pub(crate) fn allow(&self, more: impl IntoIterator<Item = PeerId>) {
        let mut whom = self.write();
        match &mut *whom {
            Whom::Unsaid => *whom = Whom::These(more.into_iter().collect()),
            Whom::These(peers) => peers.extend(more),
            Whom::Anybody => {}
        }
    }

    /// These and no others.
    pub(crate) fn only(&self, peers: impl IntoIterator<Item = PeerId>) {
        *self.write() = Whom::These(peers.into_iter().collect());
    }

    fn read(&self) -> RwLockReadGuard<'_, Whom> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Whom> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_let_in_unless_it_was_said() {
        let [one, two] = [1, 2].map(|byte| PeerId::from_bytes([byte; 32]));
        let allowed = Allowed::default();
        assert!(!allowed.is_said() && !allowed.admits(&one));
        allowed.allow([one]);
        assert!(allowed.is_said() && allowed.admits(&one) && !allowed.admits(&two));
        allowed.only([two]);
        assert!(!allowed.admits(&one) && allowed.admits(&two));
        allowed.anybody();
        assert!(allowed.admits(&one));
        allowed.only([]);
        assert!(allowed.is_said() && !allowed.admits(&one));
    }
}
