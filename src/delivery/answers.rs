//! Answers that are kept until their requests come no more.
//!
//! Which requests are known, and what is to be done about one that comes, [`KnownRequests`] decides; here their answers are
//! written down, and given again. What requesters ask no more goes; so does what was answered longest ago when there is no
//! room.

use std::{
    ops::Range,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use ropewalk_patterns::{
    Body, Message, Why,
    delivery::{Come, KnownRequests, MessageId, RequestTag, Whose},
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
type AskedAgain = (Question, Of, u64);

/// Whose request an answer is for, and which.
type Of = (Whose, MessageId);

#[derive(Debug)]
struct State {
    known: KnownRequests<Question>,
    /// What could not be settled yet.
    unsettled: Ranges,
}

/// The requester's key, where its transport proves one.
fn whose(peer: &PeerInfo) -> Whose {
    peer.id.map_or([0; 32], |id| *id.as_bytes())
}

/// What is to be done about a request here.
pub(crate) enum Todo {
    /// It is for the application.
    New(Question),
    /// It is seen to.
    Nothing,
    /// It is not to be done here.
    Refused(Question),
}

impl Answers {
    /// The answers that are in this directory, and who will ask for them again, for the task that [runs](Self::run).
    pub(crate) async fn open(
        directory: &Path,
        options: SpoolOptions,
    ) -> Result<(Arc<Self>, mpsc::Receiver<AskedAgain>), OpenError> {
        let (spool, report) = disk::open(directory, options.when_full(WhenFull::DropOldest), Some(CURSOR)).await?;
        let (mut known, mut gone) = (KnownRequests::new(ANSWERS), Ranges::default());
        let mut reader = spool.read_from(spool.settled(CURSOR).unwrap_or(0));
        loop {
            match reader.try_next().await {
                Ok(Some(record)) if spool.is_settled(CURSOR, record.seq) == Some(true) => {}
                Ok(Some(record)) => match parse(&record.message) {
                    Some(((whose, tag), _)) => {
                        let (_, replaced) = known.answered(&whose, &tag, record.seq);
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
        let state = Mutex::new(State { known, unsettled: Ranges::default() });
        let answers = Self { spool, report, state, again };
        answers.settle(&gone);
        Ok((Arc::new(answers), asked_again))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request has come.
    pub(crate) fn come(&self, question: Question, peer: &PeerInfo) -> Todo {
        let Some(tag) = question.tag else { return Todo::New(question) };
        if self.spool.is_failed() {
            // Its answer could not be kept.
            return Todo::Refused(question);
        }
        let whose = whose(peer);
        let (come, gone) = self.state().known.come(&whose, &tag, question);
        self.settle_each(gone);
        match come {
            Come::New(question) => Todo::New(question),
            Come::InHand => Todo::Nothing,
            Come::Answered(question, seq) => match self.again.try_send((question, (whose, tag.id), seq)) {
                Ok(()) => Todo::Nothing,
                // It asks again.
                Err(no_room) => Todo::Refused(no_room.into_inner().0),
            },
            Come::Below(question) => Todo::Refused(question),
        }
    }

    /// The application does not answer it: it may come again. Who asked it meanwhile.
    pub(crate) fn dropped(&self, id: &MessageId, peer: &PeerInfo) -> Option<Question> {
        self.state().known.dropped(&whose(peer), id)
    }

    /// Who asked meanwhile for what the application has; it still has it.
    pub(crate) fn asked_again(&self, id: &MessageId, peer: &PeerInfo) -> Option<Question> {
        self.state().known.asked_again(&whose(peer), id)
    }

    /// Keeps an answer; returns when it is as durable as the policy says. Who asked it meanwhile.
    pub(crate) async fn keep(
        &self,
        tag: &RequestTag,
        peer: &PeerInfo,
        answer: &Message,
    ) -> Result<Option<Question>, SpoolError> {
        let whose = whose(peer);
        let record = Message::from_parts([head(&whose, tag)].into_iter().chain(answer.parts().iter().cloned()));
        // The log's lock is held: nothing is asked of the log while this one is.
        let numbered = |seqs: Range<u64>| self.state().known.answered(&whose, tag, seqs.start);
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
            let Some((question, of, seq)) = next else { return };
            let read = select! {
                _ = phase.changed() => continue,
                read = self.read(seq) => read,
            };
            let answer = match read {
                Ok(record) => record.filter(|((whose, tag), _)| (*whose, tag.id) == of).map(|(_, answer)| answer),
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
                self.state().known.forget(&of.0, &of.1, seq);
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
    async fn read(&self, seq: u64) -> Result<Option<((Whose, RequestTag), Message)>, ReadError> {
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

/// What stands before an answer in the log: the requester's key(32), and the id of its request without a number(44).
fn head(whose: &Whose, tag: &RequestTag) -> Bytes {
    [&whose[..], &tag.part(0)].concat().into()
}

fn parse(record: &Message) -> Option<((Whose, RequestTag), Message)> {
    let (head, answer) = record.parts().split_first()?;
    let (whose, part) = head.split_first_chunk::<32>()?;
    let tag = RequestTag::of_part(part)?;
    (!answer.is_empty()).then(|| ((*whose, tag), Message::from_parts(answer.iter().cloned())))
}
