//! The state of a receiver, for health probes and operators.

use std::{fmt, sync::Arc};

use serde::Serialize;

use crate::{amqp::State, observe::LastError, receive::worker::Worker};

/// Reports the state of a receiver. Clones report on the same receiver, even before it starts and after it ends.
#[derive(Clone)]
pub struct ReceiverStatus {
    worker: Arc<Worker>,
}

impl fmt::Debug for ReceiverStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ReceiverStatus").field(&self.snapshot()).finish()
    }
}

/// The state of a receiver at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ReceiverSnapshot {
    /// The name of the queue.
    pub queue: String,
    /// The state of the consumer, as a sentence; `None` before the start.
    pub consumer: Option<String>,
    /// The state of the publisher of dead and delayed messages, as a sentence; `None` before the start.
    pub publisher: Option<String>,
    /// The number of messages that are taken and not settled yet.
    pub held: usize,
    /// The total size, in bytes, of the bodies of messages taken and not settled.
    pub held_bytes: usize,
    /// The number of messages held because of failures: the failed messages that are tried again, and later messages of
    /// their keys.
    pub retried: usize,
    /// The number of messages being handled.
    pub in_flight: usize,
    /// The maximum number of messages that are handled at the same time.
    pub concurrency: usize,
    /// The reason why no messages are taken, if something that a message needs is unavailable.
    pub unavailable: Option<String>,
    /// The last failure, however long ago.
    pub last_error: Option<LastError>,
    /// Whether the receiver is stopping.
    pub stopping: bool,
    /// The reasons why the receiver is not ready, as sentences. The receiver is ready if the list is empty.
    pub not_ready: Vec<String>,
}

impl ReceiverStatus {
    pub(super) fn new(worker: Arc<Worker>) -> Self {
        Self { worker }
    }

    /// Returns the current state, without a request to MongoDB or the broker.
    #[must_use]
    pub fn snapshot(&self) -> ReceiverSnapshot {
        let worker = &self.worker;
        let (held, held_bytes) = worker.intake().held();
        let links = worker.links();
        let unavailable = worker.unavailable();
        let stopping = worker.stop().is_cancelled();

        let mut not_ready = Vec::new();
        match &links {
            None => not_ready.push("it has not been started".to_owned()),
            Some((consumer, publisher)) => {
                if !matches!(consumer, State::Ready | State::Paused) {
                    not_ready.push(format!("no messages are received: {consumer}"));
                }
                if *publisher != State::Ready {
                    not_ready.push(format!("dead and delayed messages cannot be published: {publisher}"));
                }
            }
        }
        if let Some(reason) = &unavailable {
            not_ready.push(format!("no messages are taken: {reason}"));
        }
        if stopping {
            not_ready.push("the receiver is stopping".to_owned());
        }

        ReceiverSnapshot {
            queue: worker.settings().queue.clone(),
            consumer: links.as_ref().map(|(consumer, _)| consumer.to_string()),
            publisher: links.as_ref().map(|(_, publisher)| publisher.to_string()),
            held,
            held_bytes,
            retried: worker.retried(),
            in_flight: worker.in_flight(),
            concurrency: worker.settings().concurrency,
            unavailable,
            last_error: worker.last_error(),
            stopping,
            not_ready,
        }
    }
}
