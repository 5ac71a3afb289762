//! Answers that are kept until their requests come no more.
//!
//! ```text
//!   a request comes --> new: to the application --> reply --> spool --> to whoever asked last
//!                   --> in hand: its answer goes to whoever asked last
//!                   --> answered: the same answer, from the spool
//!                   --> below the floor: an old copy of one that has its answer, passed over
//! ```
//! Only requests that say which they are ([`RequestTag`]) are known again. What their requesters ask no more goes; so does
//! what was answered longest ago when there is no room.

use std::{
    collections::{BTreeMap, HashMap, btree_map::Entry},
    ops::Range,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use ropewalk_patterns::{
    Body, Message, Why,
    delivery::{MessageId, RequestTag, StreamId},
    extension::RefusalReason,
    ranges::Ranges,
    req_rep::{Question, Rep, Reply},
};
use tokio::{select, sync::mpsc};

use super::disk::{self, may_read_on, was_closed};
use crate::{
    events::{Event, PeerInfo},
    hub::{Hub, Phase, Undone},
    spool::{OpenError, ReadError, RecoveryReport, Spool, SpoolError, SpoolOptions, WhenFull},
};

/// Which answers are kept.
const CURSOR: &str = "rep";

/// So many answers are kept, if the directory has room for them.
const ANSWERS: usize = 1 << 18;

/// The floors of so many streams are remembered; the one that was told longest ago goes first.
const STREAMS: usize = 1024;

/// So many wait for an answer to be read from the directory. Who finds no room asks again.
const ASKED_AGAIN: usize = 256;

/// So many ranges that could not be settled are tried again at once.
const AT_ONCE: usize = 16;

/// The answers of one socket.
#[derive(Debug)]
pub(crate) struct Answers {
    pub(crate) spool: Spool,
    pub(crate) report: RecoveryReport,
    state: Mutex<State>,
    again: mpsc::Sender<AskedAgain>,
}

/// Who asks for an answer that is kept, whose it is, and its seq.
type AskedAgain = (Question, Key, u64);

#[derive(Debug, Default)]
struct State {
    known: BTreeMap<Key, Known>,
    /// Which request the answer of this seq is for.
    by_seq: BTreeMap<u64, Key>,
    /// Below which seq of each stream nothing comes, and when that was told last.
    floors: HashMap<(Whose, StreamId), (u64, u64)>,
    told: u64,
    /// What could not be settled yet.
    unsettled: Ranges,
}

/// The requester's key, where its transport proves one: nobody else is given its answers.
type Whose = [u8; 32];

/// Whose it is, the stream, the seq, the incarnation.
type Key = (Whose, StreamId, u64, u64);

fn whose(peer: &PeerInfo) -> Whose {
    peer.id.map_or([0; 32], |id| *id.as_bytes())
}

fn key(whose: Whose, id: &MessageId) -> Key {
    (whose, id.stream, id.seq, id.incarnation)
}

#[derive(Debug)]
enum Known {
    /// The application has it; who asked it again since.
    InHand(Option<Question>),
    /// The answer has this seq.
    Answered(u64),
}

/// What is to be done about a request.
pub(crate) enum Come {
    /// It is for the application.
    New(Question),
    /// It is seen to.
    Known,
    /// It is not to be done here.
    Refused(Question),
}

impl State {
    /// Below this seq nothing comes. That, and the seqs of answers that need not be kept.
    fn raise_floor(&mut self, whose: Whose, stream: StreamId, floor: u64) -> (u64, Vec<u64>) {
        self.told += 1;
        let told = self.told;
        let entry = self.floors.entry((whose, stream)).or_default();
        *entry = (entry.0.max(floor), told);
        let floor = entry.0;
        if self.floors.len() > STREAMS
            && let Some(oldest) = self.floors.iter().min_by_key(|(_, (_, told))| *told).map(|(of, _)| *of)
        {
            self.floors.remove(&oldest);
        }
        let below = self.known.range((whose, stream, 0, 0)..(whose, stream, floor, 0));
        let gone: Vec<(Key, u64)> = below.filter_map(|(key, known)| Some((*key, known.answered()?))).collect();
        gone.iter().for_each(|(key, seq)| self.forget(key, *seq));
        (floor, gone.into_iter().map(|(_, seq)| seq).collect())
    }

    /// The answer of this seq is not known any more.
    fn forget(&mut self, key: &Key, seq: u64) {
        self.by_seq.remove(&seq);
        if self.known.get(key).and_then(Known::answered) == Some(seq) {
            self.known.remove(key);
        }
    }

    /// The answer to this request has this seq. Who asked it meanwhile, and the seqs of answers that had to go.
    fn answered(&mut self, key: Key, seq: u64) -> (Option<Question>, Vec<u64>) {
        let (mut asked_again, mut gone) = (None, Vec::new());
        match self.known.insert(key, Known::Answered(seq)) {
            Some(Known::InHand(question)) => asked_again = question,
            Some(Known::Answered(before)) => {
                self.by_seq.remove(&before);
                gone.push(before);
            }
            None => {}
        }
        self.by_seq.insert(seq, key);
        if self.by_seq.len() > ANSWERS
            && let Some((&oldest, &of)) = self.by_seq.first_key_value()
        {
            self.forget(&of, oldest);
            gone.push(oldest);
        }
        (asked_again, gone)
    }
}

impl Known {
    fn answered(&self) -> Option<u64> {
        match self {
            Self::InHand(_) => None,
            Self::Answered(seq) => Some(*seq),
        }
    }
}

impl Answers {
    /// The answers that are in this directory, and who will ask for them again, for the task that [runs](Self::run).
    pub(crate) async fn open(
        directory: &Path,
        options: SpoolOptions,
    ) -> Result<(Arc<Self>, mpsc::Receiver<AskedAgain>), OpenError> {
        let (spool, report) = disk::open(directory, options.when_full(WhenFull::DropOldest), Some(CURSOR)).await?;
        let (mut state, mut gone) = (State::default(), Ranges::default());
        let mut reader = spool.read_from(spool.settled(CURSOR).unwrap_or(0));
        loop {
            match reader.try_next().await {
                Ok(Some(record)) if spool.is_settled(CURSOR, record.seq) == Some(true) => {}
                Ok(Some(record)) => match parse(&record.message) {
                    Some((key, _)) => {
                        let (_, replaced) = state.answered(key, record.seq);
                        replaced.into_iter().for_each(|seq| gone.insert(seq..seq + 1));
                    }
                    None => gone.insert(record.seq..record.seq + 1),
                },
                Ok(None) => break,
                // The report names it. What it was the answer to is done again.
                Err(ReadError::Damaged(damage)) => gone.insert(damage.seqs),
                Err(ReadError::Missed { .. }) => {}
                Err(error) => {
                    return Err(OpenError::Io { directory: directory.into(), error: std::io::Error::other(error) });
                }
            }
        }
        let (again, asked_again) = mpsc::channel(ASKED_AGAIN);
        let answers = Self { spool, report, state: Mutex::new(state), again };
        answers.settle(&gone);
        Ok((Arc::new(answers), asked_again))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request has come.
    pub(crate) fn come(&self, question: Question, peer: &PeerInfo) -> Come {
        let Some(RequestTag { id, floor }) = question.tag else { return Come::New(question) };
        if self.spool.is_failed() {
            // Its answer could not be kept.
            return Come::Refused(question);
        }
        let whose = whose(peer);
        let (come, gone) = {
            let mut state = self.state();
            let (floor, gone) = state.raise_floor(whose, id.stream, floor);
            let key = key(whose, &id);
            let come = match state.known.get_mut(&key) {
                _ if id.seq < floor => Come::Refused(question),
                Some(Known::InHand(asked_again)) => {
                    // Whoever asked last is answered.
                    *asked_again = Some(question);
                    Come::Known
                }
                Some(&mut Known::Answered(seq)) => match self.again.try_send((question, key, seq)) {
                    Ok(()) => Come::Known,
                    // It asks again.
                    Err(no_room) => Come::Refused(no_room.into_inner().0),
                },
                None => {
                    state.known.insert(key, Known::InHand(None));
                    Come::New(question)
                }
            };
            (come, gone)
        };
        self.settle_each(gone);
        come
    }

    /// The application does not answer it: it may come again. Who asked it meanwhile.
    pub(crate) fn dropped(&self, id: &MessageId, peer: &PeerInfo) -> Option<Question> {
        match self.state().known.entry(key(whose(peer), id)) {
            Entry::Occupied(mut entry) => match entry.get_mut() {
                Known::InHand(asked_again) => {
                    let asked_again = asked_again.take();
                    entry.remove();
                    asked_again
                }
                Known::Answered(_) => None,
            },
            Entry::Vacant(_) => None,
        }
    }

    /// Who asked meanwhile for what the application has; it still has it.
    pub(crate) fn asked_again(&self, id: &MessageId, peer: &PeerInfo) -> Option<Question> {
        match self.state().known.get_mut(&key(whose(peer), id))? {
            Known::InHand(question) => question.take(),
            Known::Answered(_) => None,
        }
    }

    /// Keeps an answer; returns when it is as durable as the policy says. Who asked it meanwhile.
    pub(crate) async fn keep(
        &self,
        id: &MessageId,
        peer: &PeerInfo,
        answer: &Message,
    ) -> Result<Option<Question>, SpoolError> {
        let key = key(whose(peer), id);
        let record = Message::from_parts([head(&key)].into_iter().chain(answer.parts().iter().cloned()));
        // The log's lock is held: nothing is asked of the log while this one is.
        let numbered = |seqs: Range<u64>| self.state().answered(key, seqs.start);
        let (seqs, (asked_again, gone)) = self.spool.accept(std::slice::from_ref(&record), numbered).await?;
        self.settle_each(gone);
        self.spool.reached(seqs.end).await?;
        Ok(asked_again)
    }

    fn settle_each(&self, seqs: Vec<u64>) {
        if !seqs.is_empty() {
            let mut ranges = Ranges::default();
            seqs.into_iter().for_each(|seq| ranges.insert(seq..seq + 1));
            self.settle(&ranges);
        }
    }

    /// These answers need not be kept. What cannot be settled yet, because it is just being accepted, or too many gaps are
    /// between what is, is tried again with the next, some at a time.
    fn settle(&self, seqs: &Ranges) {
        let before = self.state().unsettled.take_first(AT_ONCE);
        let mut refused = Ranges::default();
        for seqs in before.iter().chain(seqs.iter()) {
            if seqs.end > self.spool.accepted() || self.spool.settle(CURSOR, seqs.clone()).is_err() {
                refused.insert(seqs);
            }
        }
        if !refused.is_empty() {
            self.state().unsettled.extend(&refused);
        }
    }

    /// Gives answers again that are asked for again, until the socket closes.
    pub(crate) async fn run(self: Arc<Self>, hub: Arc<Hub<Rep>>, mut asked_again: mpsc::Receiver<AskedAgain>) {
        let mut phase = hub.watch_phase();
        while *phase.borrow_and_update() == Phase::Open {
            let next = select! {
                // An error is the end of the socket, too.
                _ = phase.changed() => continue,
                next = asked_again.recv() => next,
                error = self.spool.failed() => {
                    hub.log.tell(Event::SpoolFailed { error: error.to_string() });
                    return;
                }
            };
            let Some((question, key, seq)) = next else { return };
            let read = select! {
                _ = phase.changed() => continue,
                read = self.read(seq) => read,
            };
            let answer = match read {
                Ok(record) => record.filter(|(of, _)| *of == key).map(|(_, answer)| answer),
                Err(ReadError::Damaged(damage)) => {
                    self.settle(&Ranges::from(damage.seqs.clone()));
                    hub.log.tell(Event::SpoolDamaged { damage });
                    None
                }
                Err(ReadError::Missed { .. }) => None,
                // Why it has failed is told by the next turn.
                Err(ReadError::Closed) => continue,
                Err(error) => {
                    refuse(&hub, &question, RefusalReason::Dropped);
                    if may_read_on(error, &self.spool, &hub).await {
                        continue;
                    }
                    return;
                }
            };
            let Some(answer) = answer else {
                // It had to go, or is damaged: whoever asks again has it done again.
                self.state().forget(&key, seq);
                self.settle_each(vec![seq]);
                refuse(&hub, &question, RefusalReason::Dropped);
                continue;
            };
            let verb = Reply::Answer { question: &question, body: Body::from(&answer) };
            match hub.try_verb(verb) {
                Err((_, Undone::Why(Why::TooLarge))) => refuse(&hub, &question, RefusalReason::TooLarge),
                // It asks again.
                Err((_, Undone::Why(Why::Full))) => refuse(&hub, &question, RefusalReason::Dropped),
                // One that is gone does, too.
                Ok(()) | Err(_) => {}
            }
        }
    }

    /// What has this seq, if it is still there, once it is as durable as the policy says.
    async fn read(&self, seq: u64) -> Result<Option<(Key, Message)>, ReadError> {
        self.spool.reached(seq + 1).await.map_err(|_| ReadError::Closed)?;
        let record = self.spool.read_from(seq).try_next().await?;
        Ok(record.and_then(|record| parse(&record.message)))
    }

    pub(crate) async fn end(&self) {
        was_closed(self.spool.close().await);
    }
}

/// The requester is told that it gets no answer, if it is there.
pub(crate) fn refuse(hub: &Hub<Rep>, question: &Question, reason: RefusalReason) {
    let _gone = hub.try_verb(Reply::Refuse { question, reason });
}

/// What stands before an answer in the log: the requester's key(32) stream(16) seq(8) incarnation(8), the numbers in
/// little-endian.
fn head((whose, stream, seq, incarnation): &Key) -> Bytes {
    let mut head = whose.to_vec();
    head.extend(stream);
    head.extend(seq.to_le_bytes());
    head.extend(incarnation.to_le_bytes());
    head.into()
}

fn parse(record: &Message) -> Option<(Key, Message)> {
    let (head, answer) = record.parts().split_first()?;
    let (whose, rest) = head.split_first_chunk::<32>()?;
    let (stream, rest) = rest.split_first_chunk::<16>()?;
    let (seq, incarnation) = rest.split_first_chunk::<8>()?;
    let (seq, incarnation) = (u64::from_le_bytes(*seq), u64::from_le_bytes(incarnation.try_into().ok()?));
    (!answer.is_empty()).then(|| ((*whose, *stream, seq, incarnation), Message::from_parts(answer.iter().cloned())))
}
