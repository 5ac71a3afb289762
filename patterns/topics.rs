//! Subscriptions: which peers want this topic.
//!
//! A subscription is a prefix of the topic, byte by byte. All prefixes lie in one ordered map. To find those of a topic
//! look for the greatest key not above it: if it is a prefix, it is one of them; if not, no prefix longer than what
//! the two have in common can exist, because it would lie between them. So each look-up, of O(log n), either finds a
//! subscription or shortens the topic, and it is cut at once to a length that some prefix has. No recursion: a peer
//! cannot make it deep.

use alloc::{
    collections::{BTreeMap, btree_map::Entry},
    vec::Vec,
};
use core::ops::Bound;

use bytes::Bytes;

use crate::{misbehaved::Misbehaved, pattern::Peer, zmtp::Limits};

/// The subscriptions of all peers. Counted: what was subscribed twice must be cancelled twice.
#[derive(Debug, Default)]
pub struct Topics {
    /// Who subscribed to everything, that is to the empty prefix. The commonest case needs no look-up; and comparing
    /// with an empty slice, which points nowhere, costs some processors hundreds of cycles.
    everything: Vec<Counted>,
    prefixes: BTreeMap<Bytes, Vec<Counted>>,
    /// How many prefixes there are of each length. Without it a topic among many alike would be shortened byte by byte,
    /// each time by a look-up in another corner of the map.
    lengths: BTreeMap<usize, usize>,
    peers: BTreeMap<Peer, Held>,
}

/// A peer, and how often it subscribed.
type Counted = (Peer, u32);

/// What one peer takes of its limits.
#[derive(Debug, Default)]
struct Held {
    topics: usize,
    bytes: usize,
}

impl Topics {
    /// No subscriptions.
    pub const fn new() -> Self {
        Self { everything: Vec::new(), prefixes: BTreeMap::new(), lengths: BTreeMap::new(), peers: BTreeMap::new() }
    }

    /// A peer subscribes. True if it had not subscribed to this prefix before.
    ///
    /// # Errors
    /// When it subscribes to more than the limits allow.
    pub fn subscribe(&mut self, peer: Peer, prefix: Bytes, limits: &Limits) -> Result<bool, Misbehaved> {
        if let Some((_, count)) = self.subscribers(&prefix).into_iter().flatten().find(|(other, _)| *other == peer) {
            *count = count.saturating_add(1);
            return Ok(false);
        }
        self.peers.entry(peer).or_default().take(prefix.len(), limits)?;
        if prefix.is_empty() {
            self.everything.push((peer, 1));
            return Ok(true);
        }
        let length = prefix.len();
        let subscribers = self.prefixes.entry(prefix).or_default();
        if subscribers.is_empty() {
            *self.lengths.entry(length).or_default() += 1;
        }
        subscribers.push((peer, 1));
        Ok(true)
    }

    fn subscribers(&mut self, prefix: &[u8]) -> Option<&mut Vec<Counted>> {
        if prefix.is_empty() { Some(&mut self.everything) } else { self.prefixes.get_mut(prefix) }
    }

    /// A peer cancels a subscription; one it does not have is passed over. True if it no longer has this one.
    pub fn cancel(&mut self, peer: Peer, prefix: &[u8]) -> bool {
        let Some(peers) = self.subscribers(prefix) else { return false };
        let Some(index) = peers.iter().position(|(other, _)| *other == peer) else { return false };
        if let Some((_, count)) = peers.get_mut(index)
            && *count > 1
        {
            *count -= 1;
            return false;
        }
        peers.swap_remove(index);
        if peers.is_empty() && !prefix.is_empty() {
            self.prefixes.remove(prefix);
            fewer(&mut self.lengths, prefix.len());
        }
        if let Some(held) = self.peers.get_mut(&peer) {
            held.topics = held.topics.saturating_sub(1);
            held.bytes = held.bytes.saturating_sub(prefix.len());
        }
        true
    }

    /// A peer is gone with all its subscriptions.
    pub fn leave(&mut self, peer: Peer) {
        if self.peers.remove(&peer).is_some_and(|held| held.topics > 0) {
            self.everything.retain(|(other, _)| *other != peer);
            self.prefixes.retain(|prefix, peers| {
                peers.retain(|(other, _)| *other != peer);
                if peers.is_empty() {
                    fewer(&mut self.lengths, prefix.len());
                }
                !peers.is_empty()
            });
        }
    }

    /// Puts the peers that want this topic into `into`, each once, in no particular order.
    pub fn matching(&self, topic: &[u8], into: &mut Vec<Peer>) {
        into.clear();
        into.extend(self.everything.iter().map(|(peer, _)| *peer));
        let mut prefixes = usize::from(!self.everything.is_empty());
        for peers in self.prefixes_of(topic) {
            prefixes += 1;
            into.extend(peers.iter().map(|(peer, _)| *peer));
        }
        if prefixes > 1 {
            into.sort_unstable();
            into.dedup();
        }
    }

    /// Whether anybody wants this topic.
    #[inline]
    pub fn is_wanted(&self, topic: &[u8]) -> bool {
        !self.everything.is_empty() || self.prefixes_of(topic).next().is_some()
    }

    /// The subscribers of each prefix of the topic but the empty one, the longest first.
    fn prefixes_of(&self, topic: &[u8]) -> impl Iterator<Item = &[Counted]> {
        let mut at_most = topic.len();
        core::iter::from_fn(move || {
            // The longest that may still be a prefix; none is empty.
            while let Some((&length, _)) = self.lengths.range(..=at_most).next_back()
                && let Some(topic) = topic.get(..length)
                && let Some((prefix, peers)) = self.prefixes.range::<[u8], _>(upto(topic)).next_back()
            {
                let common = prefix.iter().zip(topic).take_while(|(a, b)| a == b).count();
                if common == prefix.len() {
                    at_most = common - 1;
                    return Some(&peers[..]);
                }
                at_most = common;
            }
            None
        })
    }

    /// All prefixes somebody subscribed to, in order.
    pub fn prefixes(&self) -> impl Iterator<Item = Bytes> {
        let everything = (!self.everything.is_empty()).then(Bytes::new);
        everything.into_iter().chain(self.prefixes.keys().cloned())
    }

    /// How many different prefixes are subscribed to.
    pub fn len(&self) -> usize {
        self.prefixes.len() + usize::from(!self.everything.is_empty())
    }

    /// Whether nobody subscribed to anything.
    pub fn is_empty(&self) -> bool {
        self.prefixes.is_empty() && self.everything.is_empty()
    }
}

/// One prefix of this length is gone.
fn fewer(lengths: &mut BTreeMap<usize, usize>, length: usize) {
    if let Entry::Occupied(mut count) = lengths.entry(length) {
        *count.get_mut() -= 1;
        if *count.get() == 0 {
            count.remove();
        }
    }
}

fn upto(key: &[u8]) -> (Bound<&[u8]>, Bound<&[u8]>) {
    (Bound::Unbounded, Bound::Included(key))
}

impl Held {
    fn take(&mut self, length: usize, limits: &Limits) -> Result<(), Misbehaved> {
        if self.topics >= limits.subscriptions {
            return Err(Misbehaved::TooManySubscriptions { limit: limits.subscriptions });
        }
        if self.bytes.saturating_add(length) > limits.subscribed_bytes {
            return Err(Misbehaved::TooManySubscribedBytes { limit: limits.subscribed_bytes });
        }
        self.topics += 1;
        self.bytes += length;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeSet;
    use proptest::prelude::*;

    fn peer(slot: u32) -> Peer {
        Peer { slot, generation: 0 }
    }

    #[test]
    fn a_subscription_made_twice_must_be_cancelled_twice() {
        let (mut topics, mut found, limits) = (Topics::new(), Vec::new(), Limits::default());
        assert_eq!(topics.subscribe(peer(1), "a".into(), &limits), Ok(true));
        assert_eq!(topics.subscribe(peer(1), "a".into(), &limits), Ok(false));
        assert!(!topics.cancel(peer(1), b"a"));
        topics.matching(b"abc", &mut found);
        assert_eq!(found, [peer(1)]);
        assert!(topics.cancel(peer(1), b"a") && !topics.cancel(peer(1), b"a"));
        assert!(topics.is_empty() && topics.lengths.is_empty());
    }

    #[test]
    fn one_peer_cannot_subscribe_without_end() {
        let limits = Limits { subscriptions: 3, subscribed_bytes: 10, ..Limits::default() };
        let mut topics = Topics::new();
        for topic in ["a", "b", "c", "c", "c"] {
            topics.subscribe(peer(1), topic.into(), &limits).unwrap();
        }
        let refused = topics.subscribe(peer(1), "d".into(), &limits);
        assert_eq!(refused, Err(Misbehaved::TooManySubscriptions { limit: 3 }));
        topics.subscribe(peer(2), "123456789".into(), &limits).unwrap();
        let refused = topics.subscribe(peer(2), "12".into(), &limits);
        assert_eq!(refused, Err(Misbehaved::TooManySubscribedBytes { limit: 10 }));
        topics.leave(peer(1));
        topics.subscribe(peer(1), "again".into(), &limits).unwrap();
    }

    proptest! {
        /// Against the plainest model: a list of (peer, prefix) pairs.
        #[test]
        fn matches_are_those_of_the_model(
            steps in prop::collection::vec((0u32..4, 0u8..8, "[ab]{0,4}"), 0..120),
            queries in prop::collection::vec("[abc]{0,6}", 1..10),
        ) {
            let (mut topics, mut model, limits) = (Topics::new(), Vec::new(), Limits::default());
            for (slot, what, prefix) in steps {
                let peer = peer(slot);
                match what {
                    0..=4 => {
                        topics.subscribe(peer, prefix.clone().into(), &limits).unwrap();
                        model.push((peer, prefix));
                    }
                    5 | 6 => {
                        topics.cancel(peer, prefix.as_bytes());
                        if let Some(at) = model.iter().position(|entry| *entry == (peer, prefix.clone())) {
                            model.swap_remove(at);
                        }
                    }
                    _ => {
                        topics.leave(peer);
                        model.retain(|entry| entry.0 != peer);
                    }
                }
            }
            let lengths: BTreeSet<usize> = topics.prefixes.keys().map(Bytes::len).collect();
            prop_assert!(topics.lengths.keys().eq(&lengths));
            let mut found = Vec::new();
            for query in queries {
                topics.matching(query.as_bytes(), &mut found);
                let expected: BTreeSet<Peer> =
                    model.iter().filter(|entry| query.starts_with(&entry.1)).map(|entry| entry.0).collect();
                prop_assert_eq!(topics.is_wanted(query.as_bytes()), !expected.is_empty());
                found.sort_unstable();
                prop_assert_eq!(&found, &expected.into_iter().collect::<Vec<_>>());
            }
            let distinct: BTreeSet<_> = model.iter().map(|entry| &entry.1).collect();
            prop_assert_eq!(topics.len(), distinct.len());
        }
    }
}
