//! What coordinator and workers say to each other.

use bytes::Bytes;
use ropewalk::Message;
use serde::{Deserialize, Serialize};

use crate::Result;

/// What is to be hashed: at most 1 MiB of a file. The content is a part of its own, so that it is never copied.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Job {
    pub(crate) number: u32,
    pub(crate) path: String,
    pub(crate) offset: u64,
}

impl Job {
    pub(crate) fn into_message(self, content: Bytes) -> Result<Message> {
        Ok(Message::from([Message::encode(&self)?.into_payload(), content]))
    }

    pub(crate) fn read(message: &Message) -> Result<(Self, &[u8])> {
        let [job, content] = message.parts() else { return Err("a job has two parts".into()) };
        Ok((Message::from(job.clone()).decode()?, content))
    }
}

/// What workers push.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum FromWorker {
    /// It is there, and answers questions at this address.
    Here { worker: usize, status: String },
    /// The answer to a job.
    Done { worker: usize, number: u32, digest: [u8; 32] },
    /// The last word: all it was given is done.
    Finished { worker: usize },
}

/// The topic of [`Progress`].
pub(crate) const PROGRESS: &str = "progress";

/// What workers publish.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Progress {
    pub(crate) worker: usize,
    pub(crate) bytes: u64,
}

/// What a worker answers when it is asked how far it is.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Status {
    pub(crate) jobs: u64,
    pub(crate) bytes: u64,
    /// What it hashed last.
    pub(crate) path: String,
    pub(crate) offset: u64,
}
