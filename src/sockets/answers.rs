//! Answers that are kept in a directory until their requests come no more.

use ropewalk_patterns::{
    Body, Message, Why,
    extension::RefusalReason,
    req_rep::{Question, Reply},
};

use super::{Rep, Request, owned};
use crate::{
    delivery::{Todo, refuse},
    error::ReplyError,
    events::PeerInfo,
    hub::Undone,
    spool::SpoolError,
};

impl Rep {
    /// What is for the application: not what it has, or has answered, already.
    pub(super) fn come(&self, question: Question, peer: &PeerInfo) -> Option<Question> {
        let Some(answers) = &self.inner.kept.answers else { return Some(question) };
        match answers.come(question, peer) {
            Todo::New(question) => Some(question),
            Todo::Nothing => None,
            Todo::Refused(question) => {
                refuse(self.hub(), &question, RefusalReason::Dropped);
                None
            }
        }
    }
}

impl Request {
    /// Whether its answer is to be kept.
    pub(super) fn is_kept(&self) -> bool {
        self.socket.inner.kept.answers.is_some() && self.question.tag.is_some()
    }

    /// Keeps the answer, and gives it to whoever asked.
    pub(super) async fn reply_kept(mut self, body: Body<'_>) -> Result<(), ReplyError> {
        let answer = owned(body);
        let kept = match (&self.socket.inner.kept.answers, &self.question.tag) {
            (Some(answers), Some(tag)) => answers.keep(tag, self.peer(), &answer).await,
            _ => Ok(None),
        };
        match kept {
            Ok(asked_again) => {
                self.answered = true;
                let asked_again = async {
                    match &asked_again {
                        Some(question) => self.give(question, &answer).await,
                        None => true,
                    }
                };
                // None waits for the other's room.
                let (given, _) = tokio::join!(self.give(&self.question, &answer), asked_again);
                if given { Ok(()) } else { Err(ReplyError::TooLarge(answer)) }
            }
            Err(SpoolError::Closed) => Err(ReplyError::Closed(answer)),
            Err(SpoolError::TooLarge { .. }) => {
                self.refuse(RefusalReason::TooLarge);
                Err(ReplyError::TooLarge(answer))
            }
            Err(error) => {
                // It was done: it is not to be done again in this life.
                self.answered = true;
                let answers = self.socket.inner.kept.answers.as_ref().zip(self.id());
                let asked_again = answers.and_then(|(answers, id)| answers.asked_again(&id, self.peer()));
                for question in [Some(&self.question), asked_again.as_ref()].into_iter().flatten() {
                    refuse(self.socket.hub(), question, RefusalReason::Dropped);
                }
                Err(ReplyError::SpoolFailed(answer, error.to_string()))
            }
        }
    }

    /// False if it is too large for who asked. One that is gone is given it when it asks again.
    async fn give(&self, question: &Question, answer: &Message) -> bool {
        let hub = self.socket.hub();
        match hub.verb(Reply::Answer { question, body: Body::from(answer) }).await {
            Err((_, Undone::Why(Why::TooLarge))) => {
                refuse(hub, question, RefusalReason::TooLarge);
                false
            }
            _ => true,
        }
    }

    /// It has no answer: whoever asked it again meanwhile hears that, too.
    pub(super) fn let_go(&self, reason: RefusalReason) {
        if let (Some(answers), Some(id)) = (&self.socket.inner.kept.answers, self.id())
            && let Some(question) = answers.dropped(&id, self.peer())
        {
            refuse(self.socket.hub(), &question, reason);
        }
    }
}
