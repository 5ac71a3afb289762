//! Counts of one socket, as they are at one moment.

use ropewalk_patterns::Tally;

use crate::events::PeerInfo;

/// What a socket has done since it was made, and what it holds now.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Stats {
    /// The linked peers.
    pub peers: Vec<PeerStats>,
    /// Messages wholly written to peers, also to those that are gone.
    pub sent: u64,
    /// Messages that came from peers, also from those that are gone.
    pub received: u64,
    /// Messages that were dropped for peers that did not keep up or did not accept their size, one count for each peer.
    pub dropped: u64,
    /// Accepted messages that went nowhere because their peer is gone or no peer accepts them.
    pub lost: u64,
    /// What peers wanted to do and [`authorize`](crate::Builder::authorize) said no to: messages and requests that the
    /// application did not get, subscriptions.
    pub denied: u64,
    /// What we wanted of peers and they said no to. Such messages count as sent and delivered.
    pub denied_by: u64,
    /// Messages written to peers that are gone, of which nothing says that they arrived.
    pub in_doubt: u64,
    /// What waits for a peer to link.
    pub unlinked: Tally,
    /// What all peers together have in flight to us or in our inbox, in bytes: never more than `recv_budget`,
    /// but for one message larger than what is left of it, and for answers, of which there are no more than
    /// requests under way.
    pub recv_reserved: u64,
    /// What waits for all peers together, in bytes: never more than `send_budget`.
    pub send_queued: u64,
}

/// One linked peer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PeerStats {
    /// Who it is.
    pub peer: PeerInfo,
    /// What was accepted for it and is not wholly written.
    pub queued: Tally,
    /// What of it waits for credit.
    pub without_credit: Tally,
    /// What came from it and was not taken.
    pub inbox: Tally,
    /// Messages wholly written to it.
    pub sent: u64,
    /// Messages that came from it.
    pub received: u64,
    /// Messages it missed.
    pub dropped: u64,
    /// What it wanted and was denied.
    pub denied: u64,
    /// What we wanted of it and it has denied.
    pub denied_by: u64,
    /// Messages written to it of which nothing says yet that they arrived.
    pub in_doubt: u64,
    /// What it lets us send now; `None` for a peer that does not speak the extension.
    pub credit: Option<Tally>,
}

/// What became of all a socket ever accepted, told when it has closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct CloseReport {
    /// Messages that arrived at a peer (that were confirmed, where they are kept until then), also those that its application
    /// does not want of us ([`Stats::denied_by`]).
    pub delivered: u64,
    /// Messages written to a peer of which nothing says that they arrived.
    pub in_doubt: u64,
    /// Messages that were not wholly written to any peer within the linger, or went nowhere earlier.
    pub unsent: u64,
    /// Messages dropped for peers that did not keep up.
    pub dropped: u64,
    /// Messages that are in the socket's directory and not confirmed: they go on when it is opened again.
    pub spooled: u64,
    /// Messages that were given up and put to the dead letters of the socket's directory since it was opened. (Without a
    /// directory those that were given up are among the unsent.)
    pub dead: u64,
}

impl CloseReport {
    /// Whether everything that was accepted arrived.
    pub fn all_delivered(&self) -> bool {
        self.in_doubt == 0 && self.unsent == 0 && self.dropped == 0 && self.spooled == 0 && self.dead == 0
    }
}
