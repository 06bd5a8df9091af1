//! The state of a receiver, for probes and people.

use std::{fmt, sync::Arc};

use serde::Serialize;

use crate::{amqp::State, observe::LastError, receive::worker::Worker};

/// Reports the state of a receiver. Clones report on the same receiver, even before its start and after its end.
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
    /// The queue.
    pub queue: String,
    /// The consumer, in a sentence; `None` before the start.
    pub consumer: Option<String>,
    /// The publisher of dead and delayed messages, in a sentence; `None` before the start.
    pub publisher: Option<String>,
    /// Messages taken and not settled.
    pub held: usize,
    /// The bytes of their bodies.
    pub held_bytes: usize,
    /// Those that are tried again in place, with those that wait behind them.
    pub retried: usize,
    /// Messages being handled.
    pub in_flight: usize,
    /// The most at a time.
    pub concurrency: usize,
    /// Why no messages are taken: something that a message needs is unavailable.
    pub unavailable: Option<String>,
    /// The last failure, however long ago.
    pub last_error: Option<LastError>,
    /// Whether it stops.
    pub stopping: bool,
    /// Why it is not ready, in sentences; ready when empty.
    pub not_ready: Vec<String>,
}

impl ReceiverStatus {
    pub(super) fn new(worker: Arc<Worker>) -> Self {
        Self { worker }
    }

    /// The current state. Asks neither MongoDB nor the broker.
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
