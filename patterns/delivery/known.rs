//! Which requests one who answers has in hand, and which it has answered.
//!
//! ```text
//!   a request comes --> new: somebody is to do it --> answered, with a seq under which the answer is kept
//!                   --> in hand: its answer goes to who asked last, too
//!                   --> answered: the same answer
//!                   --> below the floor: an old copy of one that has its answer
//! ```
//! The twin of [`Inbox`](super::Inbox): that one need not know what became of a message, only that it is done with.

use alloc::{
    collections::{BTreeMap, btree_map::Entry},
    vec::Vec,
};

use super::{MessageId, RequestTag, StreamId};

/// The floors of so many streams are remembered; the one that was told longest ago goes first.
const STREAMS: usize = 1024;

/// Whose request it is: nobody else is given its answer. All zeros where that is not proven.
pub type Whose = [u8; 32];

/// Whose it is, the stream, the seq, the incarnation: in the order in which floors take them away.
type Key = (Whose, StreamId, u64, u64);

fn key(whose: &Whose, id: &MessageId) -> Key {
    (*whose, id.stream, id.seq, id.incarnation)
}

/// The requests that are known. `Q` is who asks.
#[derive(Debug)]
pub struct KnownRequests<Q> {
    /// So many answers at most.
    most: usize,
    known: BTreeMap<Key, Known<Q>>,
    /// Which request the answer of this seq is for.
    by_seq: BTreeMap<u64, Key>,
    /// Below which seq of each stream nothing comes, and when that was told last.
    floors: BTreeMap<(Whose, StreamId), (u64, u64)>,
    told: u64,
}

#[derive(Debug)]
enum Known<Q> {
    /// Somebody does it; who asked it again since.
    InHand(Option<Q>),
    /// The answer has this seq.
    Answered(u64),
}

impl<Q> Known<Q> {
    fn answered(&self) -> Option<u64> {
        match self {
            Self::InHand(_) => None,
            Self::Answered(seq) => Some(*seq),
        }
    }
}

/// What is to be done about a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Come<Q> {
    /// It is new, and in hand from now on.
    New(Q),
    /// It is in hand: who asks is remembered instead of whoever asked it again before.
    InHand,
    /// The answer that has this seq is to be given.
    Answered(Q, u64),
    /// It is an old copy, and not to be done.
    Below(Q),
}

impl<Q> KnownRequests<Q> {
    /// None is known yet, and so many answers at most will be.
    pub fn new(most: usize) -> Self {
        Self { most, known: BTreeMap::new(), by_seq: BTreeMap::new(), floors: BTreeMap::new(), told: 0 }
    }

    /// A request has come. What is to be done, and the seqs of answers that need not be kept any longer.
    pub fn come(&mut self, whose: &Whose, tag: &RequestTag, asks: Q) -> (Come<Q>, Vec<u64>) {
        let (floor, gone) = self.raise_floor(whose, tag);
        let come = match self.known.entry(key(whose, &tag.id)) {
            _ if tag.id.seq < floor => Come::Below(asks),
            Entry::Vacant(entry) => {
                entry.insert(Known::InHand(None));
                Come::New(asks)
            }
            Entry::Occupied(mut entry) => match entry.get_mut() {
                Known::InHand(asked_again) => {
                    *asked_again = Some(asks);
                    Come::InHand
                }
                Known::Answered(seq) => Come::Answered(asks, *seq),
            },
        };
        (come, gone)
    }

    /// Below this seq nothing comes. That, and the seqs of answers that need not be kept any longer.
    fn raise_floor(&mut self, whose: &Whose, tag: &RequestTag) -> (u64, Vec<u64>) {
        self.told += 1;
        let (told, stream) = (self.told, tag.id.stream);
        let entry = self.floors.entry((*whose, stream)).or_default();
        *entry = (entry.0.max(tag.floor), told);
        let floor = entry.0;
        if self.floors.len() > STREAMS
            && let Some(oldest) = self.floors.iter().min_by_key(|(_, (_, told))| *told).map(|(of, _)| *of)
        {
            self.floors.remove(&oldest);
        }
        let below = self.known.range((*whose, stream, 0, 0)..(*whose, stream, floor, 0));
        let gone: Vec<(Key, u64)> = below.filter_map(|(key, known)| Some((*key, known.answered()?))).collect();
        gone.iter().for_each(|(key, seq)| self.remove(key, *seq));
        (floor, gone.into_iter().map(|(_, seq)| seq).collect())
    }

    /// The answer to this request has this seq, larger than those before. Who asked it meanwhile, and the seqs of answers
    /// that need not be kept any longer. Given all answers that were kept, in their order, it is known what was known of
    /// them, and below which floors nothing is to be done.
    pub fn answered(&mut self, whose: &Whose, tag: &RequestTag, seq: u64) -> (Option<Q>, Vec<u64>) {
        let (mut asked_again, mut gone) = (None, Vec::new());
        let key = key(whose, &tag.id);
        match self.known.insert(key, Known::Answered(seq)) {
            Some(Known::InHand(asks)) => asked_again = asks,
            Some(Known::Answered(before)) => {
                self.by_seq.remove(&before);
                gone.push(before);
            }
            None => {}
        }
        self.by_seq.insert(seq, key);
        // It may be below by now itself.
        gone.extend(self.raise_floor(whose, tag).1);
        if self.by_seq.len() > self.most
            && let Some((&oldest, &of)) = self.by_seq.first_key_value()
        {
            self.remove(&of, oldest);
            gone.push(oldest);
        }
        (asked_again, gone)
    }

    /// Whoever had it in hand does not answer it: it is new when it comes again. Who asked it meanwhile.
    pub fn dropped(&mut self, whose: &Whose, id: &MessageId) -> Option<Q> {
        let asked_again = self.asked_again(whose, id);
        let key = key(whose, id);
        if let Some(Known::InHand(_)) = self.known.get(&key) {
            self.known.remove(&key);
        }
        asked_again
    }

    /// Who asked meanwhile for one that is in hand, and stays so.
    pub fn asked_again(&mut self, whose: &Whose, id: &MessageId) -> Option<Q> {
        match self.known.get_mut(&key(whose, id))? {
            Known::InHand(asks) => asks.take(),
            Known::Answered(_) => None,
        }
    }

    /// The answer of this seq is not there any more: its request is new when it comes again.
    pub fn forget(&mut self, whose: &Whose, id: &MessageId, seq: u64) {
        self.remove(&key(whose, id), seq);
    }

    fn remove(&mut self, key: &Key, seq: u64) {
        self.by_seq.remove(&seq);
        if self.known.get(key).and_then(Known::answered) == Some(seq) {
            self.known.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone, Copy)]
    enum Step {
        Come { whose: u8, stream: u8, seq: u64, incarnation: u64, floor: u64 },
        Answer(usize),
        Drop(usize),
        Forget(usize),
        Reopen,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let come =
            (0..2_u8, 0..2_u8, 0..12_u64, 0..2_u64, 0..12_u64).prop_map(|(whose, stream, seq, incarnation, below)| {
                Step::Come { whose, stream, seq, incarnation, floor: seq.saturating_sub(below) }
            });
        let which = || 0..8_usize;
        let step = prop_oneof![
            6 => come,
            3 => which().prop_map(Step::Answer),
            1 => which().prop_map(Step::Drop),
            1 => which().prop_map(Step::Forget),
            1 => Just(Step::Reopen),
        ];
        proptest::collection::vec(step, 1..120)
    }

    type Id = (Whose, MessageId);

    /// The same in plain lists. With what is in hand or answered stands the floor that was told with it.
    #[derive(Default)]
    struct Model {
        in_hand: Vec<(Id, u64, Option<u32>)>,
        answered: Vec<(Id, u64, u64)>,
        floors: Vec<((Whose, StreamId), u64)>,
        gone: BTreeSet<u64>,
    }

    impl Model {
        fn floor(&mut self, of: (Whose, StreamId), told: u64) -> u64 {
            let known = self.floors.iter().filter(|(known, _)| *known == of).map(|(_, floor)| *floor).max();
            let floor = known.unwrap_or(0).max(told);
            self.floors.push((of, floor));
            floor
        }

        /// It is answered; what is below the floor that was told with it goes, it too.
        fn answer(&mut self, (whose, id): Id, floor: u64, seq: u64) {
            let told = self.floor((whose, id.stream), floor);
            self.answered.push(((whose, id), floor, seq));
            self.let_go(|(of, other), _| *of == whose && other.stream == id.stream && other.seq < told);
        }

        fn let_go(&mut self, goes: impl Fn(&Id, u64) -> bool) {
            let (gone, left) = self.answered.drain(..).partition(|(id, _, seq)| goes(id, *seq));
            self.answered = left;
            let gone: Vec<(Id, u64, u64)> = gone;
            self.gone.extend(gone.iter().map(|(.., seq)| *seq));
        }
    }

    const MOST: usize = 5;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_request_is_new_once_and_has_its_own_answer(steps in steps()) {
            let (mut known, mut model) = (KnownRequests::new(MOST), Model::default());
            let (mut asks, mut next, mut gone) = (0_u32, 0_u64, BTreeSet::new());
            for step in steps {
                match step {
                    Step::Come { whose, stream, seq, incarnation, floor } => {
                        asks += 1;
                        let (whose, stream) = ([whose; 32], [stream; 16]);
                        let id = MessageId { stream, incarnation, seq };
                        let (come, went) = known.come(&whose, &RequestTag { id, floor }, asks);
                        gone.extend(went);
                        let (told, floor) = (floor, model.floor((whose, stream), floor));
                        model.let_go(|(of, id), _| *of == whose && id.stream == stream && id.seq < floor);
                        let of = (whose, id);
                        let answer = model.answered.iter().find(|(known, ..)| *known == of).map(|(.., seq)| *seq);
                        let in_hand = model.in_hand.iter_mut().find(|(known, ..)| *known == of);
                        let expected = match (answer, in_hand) {
                            _ if seq < floor => Come::Below(asks),
                            (Some(answer), _) => Come::Answered(asks, answer),
                            (None, Some((.., asked_again))) => {
                                *asked_again = Some(asks);
                                Come::InHand
                            }
                            (None, None) => {
                                model.in_hand.push((of, told, None));
                                Come::New(asks)
                            }
                        };
                        prop_assert_eq!(come, expected);
                    }
                    Step::Answer(which) if which < model.in_hand.len() => {
                        let ((whose, id), floor, asked_again) = model.in_hand.remove(which);
                        let (got, went) = known.answered(&whose, &RequestTag { id, floor }, next);
                        prop_assert_eq!(got, asked_again);
                        gone.extend(went);
                        model.answer((whose, id), floor, next);
                        while model.answered.len() > MOST {
                            let first = model.answered.iter().map(|(.., seq)| *seq).min().unwrap();
                            model.let_go(|_, seq| seq == first);
                        }
                        next += 1;
                    }
                    Step::Drop(which) if which < model.in_hand.len() => {
                        let ((whose, id), _, asked_again) = model.in_hand.remove(which);
                        prop_assert_eq!(known.dropped(&whose, &id), asked_again);
                    }
                    Step::Forget(which) if which < model.answered.len() => {
                        let ((whose, id), _, seq) = model.answered.remove(which);
                        known.forget(&whose, &id, seq);
                    }
                    Step::Reopen => {
                        known = KnownRequests::new(MOST);
                        model.in_hand.clear();
                        model.floors.clear();
                        for ((whose, id), floor, seq) in core::mem::take(&mut model.answered) {
                            let (asks, went) = known.answered(&whose, &RequestTag { id, floor }, seq);
                            prop_assert_eq!(asks, None);
                            gone.extend(went);
                            model.answer((whose, id), floor, seq);
                        }
                    }
                    Step::Answer(_) | Step::Drop(_) | Step::Forget(_) => {}
                }
                prop_assert_eq!(&gone, &model.gone, "what need not be kept is said, and nothing else");
                prop_assert_eq!(known.by_seq.len(), model.answered.len());
                prop_assert_eq!(known.known.len(), model.answered.len() + model.in_hand.len());
            }
        }
    }

    #[test]
    fn streams_without_end_are_not_remembered_without_end() {
        let mut known = KnownRequests::new(MOST);
        for number in 0..4 * STREAMS as u64 {
            let mut stream = [0; 16];
            stream.iter_mut().zip(number.to_le_bytes()).for_each(|(to, from)| *to = from);
            let tag = RequestTag { id: MessageId { stream, incarnation: 1, seq: 7 }, floor: 7 };
            assert!(matches!(known.come(&[0; 32], &tag, ()), (Come::New(()), gone) if gone.is_empty()));
            assert_eq!(known.dropped(&[0; 32], &tag.id), None);
        }
        assert!(known.floors.len() <= STREAMS && known.known.is_empty());
    }
}
