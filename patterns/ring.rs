//! Peers that have room, taken in turn.

use alloc::{collections::VecDeque, vec::Vec};

use crate::{
    message::Outgoing,
    pattern::{Peer, Why},
    turn::{Room, Turn},
};

/// Linked peers in the order of their turns. Those that are full are set aside until they have room, so that finding
/// the next one does not get slower with many full peers.
#[derive(Debug, Default)]
pub struct Ring {
    open: VecDeque<Peer>,
    full: Vec<Peer>,
}

impl Ring {
    /// No peers.
    pub const fn new() -> Self {
        Self { open: VecDeque::new(), full: Vec::new() }
    }

    /// A peer joins; its turn is the last.
    pub fn join(&mut self, peer: Peer) {
        self.open.push_back(peer);
    }

    /// A peer leaves.
    pub fn leave(&mut self, peer: Peer) {
        self.open.retain(|&other| other != peer);
        self.full.retain(|&other| other != peer);
    }

    /// A full peer has room again; its turn is the last.
    pub fn reopen(&mut self, peer: Peer) {
        if let Some(index) = self.full.iter().position(|&other| other == peer) {
            self.full.swap_remove(index);
            self.open.push_back(peer);
        }
    }

    /// How many peers are linked.
    pub fn len(&self) -> usize {
        self.open.len() + self.full.len()
    }

    /// Whether no peer is linked.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty() && self.full.is_empty()
    }

    /// Whether there is one peer, and it has room.
    #[inline]
    pub fn is_one(&self) -> bool {
        self.open.len() == 1 && self.full.is_empty()
    }

    /// The next peer that has room for this message; it then goes to the end of the line. `allowed` may pass a peer
    /// over.
    ///
    /// # Errors
    /// [`Why::TooLarge`] if every linked peer refuses messages of that size, else [`Why::Full`].
    #[inline]
    pub fn next<T: Turn>(
        &mut self,
        message: &Outgoing<'_>,
        turn: &mut T,
        allowed: impl Fn(Peer) -> bool,
    ) -> Result<Peer, Why> {
        let mut too_large = self.full.is_empty();
        for _ in 0..self.open.len() {
            let Some(peer) = self.open.pop_front() else { break };
            if !allowed(peer) {
                self.open.push_back(peer);
                too_large = false;
                continue;
            }
            match turn.room(peer, message) {
                Room::Fits => {
                    self.open.push_back(peer);
                    return Ok(peer);
                }
                Room::Full => self.full.push(peer),
                // Nobody is passed over: it is still this one's turn when there is room.
                Room::Spent => {
                    self.open.push_front(peer);
                    return Err(Why::Full);
                }
                Room::TooLittle | Room::Gone => self.open.push_back(peer),
                Room::Never => {
                    self.open.push_back(peer);
                    continue;
                }
            }
            too_large = false;
        }
        Err(if too_large && !self.is_empty() { Why::TooLarge } else { Why::Full })
    }
}
