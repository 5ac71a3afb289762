//! Messages that belong to no peer: accepted while none was linked, or given back by a link that died.

use alloc::{collections::VecDeque, vec::Vec};

use crate::{credit::Tally, message::Message, pattern::Why, turn::Turn};

/// Messages in the order they must go, before anything newer.
///
/// What the application sends is accepted only while no peer is linked and a dialled endpoint will have one, up to
/// [`Turn::unlinked_limit`]. What a dead link gives back was within its bounds and comes on top.
#[derive(Debug, Default)]
pub struct Backlog {
    messages: VecDeque<Message>,
    held: Tally,
}

impl Backlog {
    /// Nothing.
    pub const fn new() -> Self {
        Self { messages: VecDeque::new(), held: Tally::ZERO }
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// How much waits.
    pub fn held(&self) -> Tally {
        self.held
    }

    /// Whether a message of this cost may be added.
    ///
    /// # Errors
    /// [`Why::Full`].
    pub fn admit<T: Turn>(&self, cost: u64, turn: &T) -> Result<(), Why> {
        if self.held.admits(cost, turn.unlinked_limit()) { Ok(()) } else { Err(Why::Full) }
    }

    /// Adds the newest message.
    pub fn push(&mut self, message: Message) {
        self.held.add(message.cost());
        self.messages.push_back(message);
    }

    /// Adds messages that go before all others, in their order.
    pub fn give_back(&mut self, messages: Vec<Message>) {
        for message in messages.into_iter().rev() {
            self.held.add(message.cost());
            self.messages.push_front(message);
        }
    }

    /// The oldest message.
    pub fn pop(&mut self) -> Option<Message> {
        let message = self.messages.pop_front()?;
        self.held.remove(message.cost());
        Some(message)
    }

    /// Puts the message back that was popped last.
    pub fn unpop(&mut self, message: Message) {
        self.held.add(message.cost());
        self.messages.push_front(message);
    }

    /// Takes away the messages that `is_wanted` does not want.
    pub fn retain(&mut self, mut is_wanted: impl FnMut(&Message) -> bool) {
        let held = &mut self.held;
        self.messages.retain(|message| {
            let wanted = is_wanted(message);
            if !wanted {
                held.remove(message.cost());
            }
            wanted
        });
    }
}
