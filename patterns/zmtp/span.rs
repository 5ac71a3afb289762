//! Whole messages in encoded frames: where they stand, and taking them out.

use bytes::{Buf, Bytes};

use super::Header;
use crate::message::{MESSAGE_OVERHEAD, Message};

/// Received parts up to this size are copied out of the read buffer: it costs no more than counting a reference, and
/// one small message in the application's hands does not keep a whole buffer alive.
const COPY_UP_TO: usize = 256;

/// Where a whole message stands in encoded frames.
#[derive(Debug, Clone, Copy)]
pub struct Span {
    /// Where its first part begins, behind the header of that.
    start: usize,
    /// The length of its first part.
    first: usize,
    /// It has other parts.
    more: bool,
    /// Behind its last part.
    end: usize,
    cost: u64,
}

impl Span {
    /// The message that begins at this place of `frames`. `None` if there is no whole one, or a command stands there.
    #[inline(always)]
    pub fn at(frames: &[u8], place: usize) -> Option<Self> {
        let (header, start, end) = Self::part(frames, place)?;
        let first = end - start;
        let (end, others) = if header.more { Self::others(frames, end)? } else { (end, 0) };
        let cost = header.body.saturating_add(others).saturating_add(MESSAGE_OVERHEAD);
        Some(Self { start, first, more: header.more, end, cost })
    }

    /// A part's header, where the part begins and where it ends.
    #[inline(always)]
    fn part(frames: &[u8], place: usize) -> Option<(Header, usize, usize)> {
        let header = Header::read(frames.get(place..)?).ok()??;
        if header.command || header.total() > (frames.len() - place) as u64 {
            return None;
        }
        let start = place + header.len();
        Some((header, start, start + header.body as usize))
    }

    /// Where the parts end that begin at this place, and their bytes.
    #[inline(never)]
    fn others(frames: &[u8], mut place: usize) -> Option<(usize, u64)> {
        let mut bytes = 0;
        loop {
            let (header, _, end) = Self::part(frames, place)?;
            (place, bytes) = (end, header.body.saturating_add(bytes));
            if !header.more {
                return Some((place, bytes));
            }
        }
    }

    /// What the message [costs](Message::cost).
    #[inline]
    pub fn cost(self) -> u64 {
        self.cost
    }

    /// Where the message ends and the next thing begins.
    #[inline]
    pub fn end(self) -> usize {
        self.end
    }

    /// The first part of the message. `frames` are those it was found in.
    #[inline]
    pub fn first(self, frames: &[u8]) -> &[u8] {
        frames.get(self.start..self.start + self.first).unwrap_or_default()
    }

    /// The only part of the message, if that is so small that it is copied.
    #[inline(always)]
    pub fn small(self, frames: &[u8]) -> Option<&[u8]> {
        (!self.more && self.first <= COPY_UP_TO).then(|| self.first(frames))
    }

    /// The message. `frames` are those it was found in.
    ///
    /// # Panics
    /// When they are others, and too few.
    #[inline]
    pub fn message(self, frames: &Bytes) -> Message {
        match self.small(frames) {
            Some(part) => Message::from(Bytes::copy_from_slice(part)),
            None if self.more => self.parts(frames),
            None => Message::from(frames.slice(self.start..self.start + self.first)),
        }
    }

    #[inline(never)]
    fn parts(self, frames: &Bytes) -> Message {
        let mut next = Some((self.more, self.start, self.start + self.first));
        Message::from_parts(core::iter::from_fn(|| {
            let (more, start, end) = next?;
            let following = || Self::part(frames, end).map(|(header, start, end)| (header.more, start, end));
            next = if more { following() } else { None };
            Some(match end - start <= COPY_UP_TO {
                true => Bytes::copy_from_slice(frames.get(start..end).unwrap_or_default()),
                false => frames.slice(start..end),
            })
        }))
    }
}

/// Takes the first message off encoded frames. `None` if there is no whole one, or a command stands there.
#[inline]
pub fn take_message(bytes: &mut Bytes) -> Option<Message> {
    let span = Span::at(bytes, 0)?;
    let message = span.message(bytes);
    bytes.advance(span.end);
    Some(message)
}
