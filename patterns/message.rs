//! What users send: a [`Message`] of one or more parts, and the borrowed forms it may be sent from.

use alloc::{string::String, sync::Arc, vec::Vec};
use core::fmt;

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

use crate::{delivery::TAGGED, extension::delivery::Header};

/// What a message costs in every byte limit beyond the bytes of its parts.
///
/// A flood of tiny messages takes memory for its bookkeeping; the bound must see it.
pub const MESSAGE_OVERHEAD: u64 = 64;

/// One or more parts of bytes that travel together: a peer gets all of them or none.
///
/// Cheap to clone: the bytes are shared, not copied.
///
/// ```
/// use ropewalk_patterns::Message;
///
/// let message = Message::from(["resize", "cat.png"]);
/// assert_eq!(message.len(), 2);
/// assert_eq!(message.part(1), Some(&b"cat.png"[..]));
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Message {
    parts: Parts,
}

/// `Many` never holds fewer than two parts, so equal messages have equal forms.
#[derive(Clone, PartialEq, Eq)]
enum Parts {
    One(Bytes),
    Many(Arc<[Bytes]>),
}

impl Message {
    /// A message of these parts. No parts at all make one empty part: a message is never without.
    pub fn from_parts(parts: impl IntoIterator<Item: Into<Bytes>>) -> Self {
        let mut parts = parts.into_iter().map(Into::into);
        let first = parts.next().unwrap_or_default();
        let Some(second) = parts.next() else { return Self::from(first) };
        let all: Arc<[Bytes]> = match parts.next() {
            // Most have two: a topic and a payload.
            None => Arc::new([first, second]),
            Some(third) => [first, second, third].into_iter().chain(parts).collect(),
        };
        Self { parts: Parts::Many(all) }
    }

    /// The value in postcard's format as a message of one part.
    ///
    /// # Errors
    /// When the value cannot be serialized (a sequence of unknown length, for example).
    pub fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Self, EncodeError> {
        match postcard::to_allocvec(value) {
            Ok(bytes) => Ok(Self::from(bytes)),
            Err(error) => Err(EncodeError(error)),
        }
    }

    /// Reads the last part as a value in postcard's format. The last part is the payload also of a published message,
    /// whose first part is its topic.
    ///
    /// # Errors
    /// When the bytes are not such a value, or bytes are left over behind it.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, DecodeError> {
        match postcard::take_from_bytes(self.payload()) {
            Ok((value, [])) => Ok(value),
            Ok((_, rest)) => Err(DecodeError::LeftOver(rest.len())),
            Err(error) => Err(DecodeError::Invalid(error)),
        }
    }

    /// The parts, in order; at least one.
    #[inline]
    pub fn parts(&self) -> &[Bytes] {
        match &self.parts {
            Parts::One(part) => core::slice::from_ref(part),
            Parts::Many(parts) => parts,
        }
    }

    /// How many parts there are; at least one.
    #[allow(clippy::len_without_is_empty, reason = "a message is never empty")]
    #[inline]
    pub fn len(&self) -> usize {
        self.parts().len()
    }

    /// The bytes of the part at this place, counted from 0.
    pub fn part(&self, index: usize) -> Option<&[u8]> {
        self.parts().get(index).map(|part| &part[..])
    }

    /// The first part: the whole of a message of one part, the topic of a published one.
    #[inline]
    pub fn topic(&self) -> &[u8] {
        self.parts().first().map_or(&[], |part| &part[..])
    }

    /// The last part: the whole of a message of one part, the payload of a published one.
    #[inline]
    pub fn payload(&self) -> &[u8] {
        self.parts().last().map_or(&[], |part| &part[..])
    }

    /// The last part as text.
    ///
    /// # Errors
    /// When it is not UTF-8.
    pub fn text(&self) -> Result<&str, core::str::Utf8Error> {
        core::str::from_utf8(self.payload())
    }

    /// The parts, taken apart.
    pub fn into_parts(self) -> Vec<Bytes> {
        match self.parts {
            Parts::One(part) => Vec::from([part]),
            Parts::Many(parts) => parts.to_vec(),
        }
    }

    /// The first part, and the message without it; `None` if it has no other.
    pub fn split_first(self) -> Option<(Bytes, Self)> {
        let Parts::Many(parts) = self.parts else { return None };
        match &parts[..] {
            [first, rest] => Some((first.clone(), Self::from(rest.clone()))),
            [first, rest @ ..] => Some((first.clone(), Self { parts: Parts::Many(rest.into()) })),
            [] => None,
        }
    }

    /// The last part; the others are let go.
    pub fn into_payload(self) -> Bytes {
        match self.parts {
            Parts::One(part) => part,
            Parts::Many(parts) => parts.last().cloned().unwrap_or_default(),
        }
    }

    /// The bytes of all parts together.
    #[inline]
    pub fn bytes(&self) -> u64 {
        match &self.parts {
            Parts::One(part) => part.len() as u64,
            Parts::Many(parts) => parts.iter().map(|part| part.len() as u64).sum(),
        }
    }

    /// What the message takes of a byte limit: its bytes and [`MESSAGE_OVERHEAD`].
    #[inline]
    pub fn cost(&self) -> u64 {
        self.bytes().saturating_add(MESSAGE_OVERHEAD)
    }
}

impl Default for Message {
    fn default() -> Self {
        Self::from(Bytes::new())
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Message")?;
        f.debug_list().entries(self.parts()).finish()
    }
}

impl From<Bytes> for Message {
    #[inline]
    fn from(part: Bytes) -> Self {
        Self { parts: Parts::One(part) }
    }
}

impl From<Vec<u8>> for Message {
    fn from(part: Vec<u8>) -> Self {
        Self::from(Bytes::from(part))
    }
}

impl From<String> for Message {
    fn from(part: String) -> Self {
        Self::from(Bytes::from(part))
    }
}

impl From<&[u8]> for Message {
    fn from(part: &[u8]) -> Self {
        Self::from(Bytes::copy_from_slice(part))
    }
}

impl From<&str> for Message {
    fn from(part: &str) -> Self {
        Self::from(part.as_bytes())
    }
}

impl<const N: usize> From<&[u8; N]> for Message {
    fn from(part: &[u8; N]) -> Self {
        Self::from(&part[..])
    }
}

/// What can be one part of a message.
pub trait IntoPart {
    /// The part; slices are copied, everything else is moved.
    fn into_part(self) -> Bytes;
}

impl IntoPart for Bytes {
    fn into_part(self) -> Bytes {
        self
    }
}

impl IntoPart for Vec<u8> {
    fn into_part(self) -> Bytes {
        Bytes::from(self)
    }
}

impl IntoPart for String {
    fn into_part(self) -> Bytes {
        Bytes::from(self)
    }
}

impl IntoPart for &[u8] {
    fn into_part(self) -> Bytes {
        Bytes::copy_from_slice(self)
    }
}

impl IntoPart for &str {
    fn into_part(self) -> Bytes {
        Bytes::copy_from_slice(self.as_bytes())
    }
}

impl<const N: usize> IntoPart for &[u8; N] {
    fn into_part(self) -> Bytes {
        Bytes::copy_from_slice(self)
    }
}

impl<P: IntoPart, const N: usize> From<[P; N]> for Message {
    fn from(parts: [P; N]) -> Self {
        Self::from_parts(parts.into_iter().map(IntoPart::into_part))
    }
}

impl<P: IntoPart> FromIterator<P> for Message {
    fn from_iter<I: IntoIterator<Item = P>>(parts: I) -> Self {
        Self::from_parts(parts.into_iter().map(IntoPart::into_part))
    }
}

impl PartialEq<&str> for Message {
    fn eq(&self, other: &&str) -> bool {
        self.parts().len() == 1 && self.payload() == other.as_bytes()
    }
}

impl PartialEq<&[u8]> for Message {
    fn eq(&self, other: &&[u8]) -> bool {
        self.parts().len() == 1 && self.payload() == *other
    }
}

/// What the verbs that send take: a slice, which is copied straight to where it waits to be written, or a message.
///
/// There is a `From` for everything a [`Message`] can be made of, so callers hardly ever name this type.
#[derive(Debug)]
pub enum Body<'a> {
    /// One part, borrowed.
    Slice(&'a [u8]),
    /// A message of any number of parts.
    Message(Message),
}

impl Body<'_> {
    /// The bytes, if they are one part.
    #[inline]
    pub fn single(&self) -> Option<&[u8]> {
        match self {
            Self::Slice(slice) => Some(slice),
            Self::Message(Message { parts: Parts::One(part) }) => Some(part),
            Self::Message(_) => None,
        }
    }

    /// The message that owns its bytes.
    pub fn into_message(self) -> Message {
        match self {
            Self::Slice(slice) => Message::from(slice),
            Self::Message(message) => message,
        }
    }
}

impl From<Body<'_>> for Message {
    fn from(body: Body<'_>) -> Self {
        body.into_message()
    }
}

impl<'a> From<&'a [u8]> for Body<'a> {
    fn from(slice: &'a [u8]) -> Self {
        Self::Slice(slice)
    }
}

impl<'a> From<&'a str> for Body<'a> {
    fn from(text: &'a str) -> Self {
        Self::Slice(text.as_bytes())
    }
}

impl<'a, const N: usize> From<&'a [u8; N]> for Body<'a> {
    fn from(slice: &'a [u8; N]) -> Self {
        Self::Slice(slice)
    }
}

impl<'a> From<&'a Vec<u8>> for Body<'a> {
    fn from(bytes: &'a Vec<u8>) -> Self {
        Self::Slice(bytes)
    }
}

impl<'a> From<&'a String> for Body<'a> {
    fn from(text: &'a String) -> Self {
        Self::Slice(text.as_bytes())
    }
}

impl From<Message> for Body<'_> {
    fn from(message: Message) -> Self {
        Self::Message(message)
    }
}

impl From<&Message> for Body<'_> {
    fn from(message: &Message) -> Self {
        Self::Message(message.clone())
    }
}

impl From<Bytes> for Body<'_> {
    fn from(part: Bytes) -> Self {
        Self::Message(part.into())
    }
}

impl From<Vec<u8>> for Body<'_> {
    fn from(part: Vec<u8>) -> Self {
        Self::Message(part.into())
    }
}

impl From<String> for Body<'_> {
    fn from(part: String) -> Self {
        Self::Message(part.into())
    }
}

impl<P: IntoPart, const N: usize> From<[P; N]> for Body<'_> {
    fn from(parts: [P; N]) -> Self {
        Self::Message(parts.into())
    }
}

/// What a pattern puts before the parts of the application's message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head<'a> {
    /// Nothing.
    None,
    /// The topic of a published message: one part.
    Topic(&'a [u8]),
    /// A requester's envelope: the request's id, then the empty delimiter.
    Id([u8; 4]),
    /// The same of a request that is kept until it is answered: what [`RequestTag::part`](crate::delivery::RequestTag::part)
    /// says, then the empty delimiter.
    Tagged(&'a [u8; TAGGED]),
    /// A plain requester's envelope: the empty delimiter alone.
    Delimiter,
    /// The envelope a request came in, sent back with its reply.
    Envelope(&'a [Bytes]),
    /// Which message of a stream this is that is kept until it is confirmed.
    Delivery(Header),
}

/// A message on its way to a peer: what the pattern puts before it, and what the application sends.
#[derive(Debug)]
pub struct Outgoing<'a> {
    /// The parts that come first.
    pub head: Head<'a>,
    /// The parts the application gave.
    pub body: Body<'a>,
}

/// One part of an [`Outgoing`]: bytes to copy, or bytes that may be shared.
#[derive(Debug, Clone, Copy)]
pub enum Part<'a> {
    /// Borrowed from the caller: must be copied.
    Slice(&'a [u8]),
    /// Counted: a large one is better shared than copied.
    Shared(&'a Bytes),
}

impl<'a> Part<'a> {
    /// The bytes.
    #[inline]
    pub fn bytes(self) -> &'a [u8] {
        match self {
            Self::Slice(slice) => slice,
            Self::Shared(bytes) => bytes,
        }
    }

    /// The bytes as a part that owns them.
    pub fn to_bytes(self) -> Bytes {
        match self {
            Self::Slice(slice) => Bytes::copy_from_slice(slice),
            Self::Shared(bytes) => bytes.clone(),
        }
    }
}

impl<'a> From<Body<'a>> for Outgoing<'a> {
    fn from(body: Body<'a>) -> Self {
        Self { head: Head::None, body }
    }
}

impl From<Message> for Outgoing<'_> {
    fn from(message: Message) -> Self {
        Self { head: Head::None, body: Body::Message(message) }
    }
}

impl Outgoing<'_> {
    /// Calls `each` with every part in order and whether more follow.
    #[inline]
    pub fn for_each_part(&self, mut each: impl FnMut(Part<'_>, bool)) {
        match self.head {
            Head::None => {}
            Head::Topic(topic) => each(Part::Slice(topic), true),
            Head::Id(id) => {
                each(Part::Slice(&id), true);
                each(Part::Slice(&[]), true);
            }
            Head::Tagged(id) => {
                each(Part::Slice(id), true);
                each(Part::Slice(&[]), true);
            }
            Head::Delimiter => each(Part::Slice(&[]), true),
            Head::Envelope(parts) => parts.iter().for_each(|part| each(Part::Shared(part), true)),
            Head::Delivery(header) => each(Part::Slice(&header.to_bytes()), true),
        }
        match &self.body {
            Body::Slice(slice) => each(Part::Slice(slice), false),
            Body::Message(message) => {
                let mut parts = message.parts().iter().peekable();
                while let Some(part) = parts.next() {
                    each(Part::Shared(part), parts.peek().is_some());
                }
            }
        }
    }

    /// How many parts a peer gets.
    pub fn parts(&self) -> usize {
        let mut parts = 0;
        self.for_each_part(|_, _| parts += 1);
        parts
    }

    /// The bytes of all parts together.
    #[inline]
    pub fn bytes(&self) -> u64 {
        if let (Head::None, Body::Slice(slice)) = (self.head, &self.body) {
            return slice.len() as u64;
        }
        let mut bytes = 0;
        self.for_each_part(|part, _| bytes += part.bytes().len() as u64);
        bytes
    }

    /// What the message takes of a byte limit: its bytes and [`MESSAGE_OVERHEAD`].
    #[inline]
    pub fn cost(&self) -> u64 {
        self.bytes().saturating_add(MESSAGE_OVERHEAD)
    }

    /// The whole message, head and body.
    pub fn to_message(&self) -> Message {
        if let (Head::None, Body::Message(message)) = (self.head, &self.body) {
            return message.clone();
        }
        let mut parts = Vec::with_capacity(3);
        self.for_each_part(|part, _| parts.push(part.to_bytes()));
        Message::from_parts(parts)
    }
}

/// A value could not be made into a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodeError(postcard::Error);

impl fmt::Display for EncodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the value cannot be encoded: {}", self.0)
    }
}

impl core::error::Error for EncodeError {}

/// A message is not the value that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum DecodeError {
    /// The bytes are not a value of that type.
    Invalid(postcard::Error),
    /// The value ends before the bytes do; so many are left over.
    LeftOver(usize),
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid(error) => write!(f, "the message is not such a value: {error}"),
            Self::LeftOver(bytes) => write!(f, "the message is not such a value: {bytes} bytes are left over"),
        }
    }
}

impl core::error::Error for DecodeError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_parts_make_equal_messages_however_they_were_given() {
        assert_eq!(Message::from("a"), Message::from(["a"]));
        assert_eq!(Message::from_parts(Vec::<Bytes>::new()), Message::from(""));
        assert_eq!(Message::from(["a", "b"]), ["a", "b"].into_iter().collect::<Message>());
        assert_ne!(Message::from(["a", "b"]), Message::from("ab"));
    }

    #[test]
    fn a_typed_value_comes_back_from_the_payload() {
        let value = (7u32, String::from("seven"));
        let message = Message::encode(&value).unwrap();
        assert_eq!(message.decode::<(u32, String)>().unwrap(), value);
        let published = Message::from_parts([Bytes::from("topic"), message.into_payload()]);
        assert_eq!(published.decode::<(u32, String)>().unwrap(), value);
        assert_eq!(Message::from(&[1, 2, 3]).decode::<u8>(), Err(DecodeError::LeftOver(2)));
        assert!(matches!(Message::from("").decode::<u8>(), Err(DecodeError::Invalid(_))));
    }

    #[test]
    fn the_first_part_comes_off() {
        assert_eq!(Message::from("a").split_first(), None);
        assert_eq!(Message::from(["a", "b"]).split_first(), Some((Bytes::from("a"), Message::from("b"))));
        assert_eq!(Message::from(["a", "b", "c"]).split_first(), Some((Bytes::from("a"), Message::from(["b", "c"]))));
    }

    #[test]
    fn an_outgoing_message_costs_what_it_brings() {
        let envelope = [Bytes::from("id"), Bytes::new()];
        for (head, parts, bytes) in [
            (Head::None, 1, 4),
            (Head::Topic(b"top"), 2, 7),
            (Head::Id([0; 4]), 3, 8),
            (Head::Tagged(&[0; 44]), 3, 48),
            (Head::Delimiter, 2, 4),
            (Head::Envelope(&envelope), 3, 6),
            (Head::Delivery(Header { seq: 1, incarnation: 2, attempt: 3 }), 2, 24),
        ] {
            let outgoing = Outgoing { head, body: Body::from("body") };
            let message = outgoing.to_message();
            assert_eq!((outgoing.parts(), outgoing.bytes()), (parts, bytes));
            assert_eq!((message.len(), message.bytes()), (parts, bytes));
            assert_eq!(outgoing.cost(), message.cost());
            assert_eq!(message.payload(), b"body");
        }
    }

    #[test]
    fn a_message_is_as_small_as_one_part() {
        assert_eq!(size_of::<Message>(), size_of::<Bytes>());
    }
}
