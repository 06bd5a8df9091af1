//! A write that a caller waits for: its statement, its deadline, and whether it has left.

use std::sync::{
    Arc,
    atomic::{AtomicU8, Ordering},
};

use mongodb::{Namespace, bson::RawDocumentBuf};
use tokio::{
    sync::oneshot,
    time::{Instant, timeout_at},
};

use crate::mongo::{
    error_codes,
    write::{Kind, WriteOutcome, deadline, no_answer},
};

/// One statement, on its way.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) kind: Kind,
    pub(crate) namespace: Namespace,
    /// As it is in the command: encoded before it meets others, so that a flaw in it affects nobody else.
    pub(crate) statement: RawDocumentBuf,
    pub(crate) departure: Departure,
    pub(crate) deadline: Instant,
    pub(crate) answer: oneshot::Sender<WriteOutcome>,
}

/// The other end of a [`Request`].
#[derive(Debug)]
pub(crate) struct Waiter {
    departure: Departure,
    pub(crate) deadline: Instant,
    answer: oneshot::Receiver<WriteOutcome>,
}

impl Request {
    pub(crate) fn new(kind: Kind, namespace: Namespace, statement: RawDocumentBuf) -> (Self, Waiter) {
        let (answer, answered) = oneshot::channel();
        let (departure, deadline) = (Departure::default(), deadline());
        let waiter = Waiter { departure: departure.clone(), deadline, answer: answered };
        (Self { kind, namespace, statement, departure, deadline, answer }, waiter)
    }
}

impl Waiter {
    /// The answer; where none comes, what is certain without one.
    pub(crate) async fn answer(self) -> WriteOutcome {
        let why = match timeout_at(self.deadline, self.answer).await {
            Ok(Ok(answer)) => return answer,
            Ok(Err(_dropped)) if Instant::now() < self.deadline => {
                "the runtime that sends writes has ended".to_owned()
            }
            Ok(Err(_dropped)) => no_answer(),
            Err(_elapsed) => no_answer(),
        };
        if self.departure.cancel() {
            WriteOutcome::Failed(error_codes::not_sent(why))
        } else {
            WriteOutcome::Unknown(error_codes::lost(why))
        }
    }
}

const WAITING: u8 = 0;
const LEFT: u8 = 1;
const CANCELLED: u8 = 2;

/// Whether a write has left for a server, decided once: by whoever sends it, or by a caller who no longer waits.
#[derive(Debug, Clone, Default)]
pub(crate) struct Departure(Arc<AtomicU8>);

impl Departure {
    /// It leaves now, or has left before; false when it was cancelled.
    pub(crate) fn leave(&self) -> bool {
        let before = self.0.compare_exchange(WAITING, LEFT, Ordering::AcqRel, Ordering::Acquire);
        before.unwrap_or_else(|before| before) != CANCELLED
    }

    pub(crate) fn has_left(&self) -> bool {
        self.0.load(Ordering::Acquire) == LEFT
    }

    /// It will never leave; false when it has.
    fn cancel(&self) -> bool {
        let before = self.0.compare_exchange(WAITING, CANCELLED, Ordering::AcqRel, Ordering::Acquire);
        before.unwrap_or_else(|before| before) != LEFT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_leaves_or_is_cancelled_and_never_both() {
        let left = Departure::default();
        assert!(left.leave() && left.leave() && left.has_left());
        assert!(!left.cancel());
        let cancelled = Departure::default();
        assert!(cancelled.cancel() && cancelled.cancel());
        assert!(!cancelled.leave() && !cancelled.has_left());
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_that_never_left_is_known_as_not_sent() {
        let request = || Request::new(Kind::Update, Namespace::new("a", "b"), RawDocumentBuf::new());
        let (_request, waiter) = request();
        let waiting = waiter.answer().await;
        assert!(
            matches!(waiting, WriteOutcome::Failed(error) if error_codes::verdict(&error) == error_codes::Verdict::NotSent)
        );

        let (sent, waiter) = request();
        assert!(sent.departure.leave());
        drop(sent);
        let ended = waiter.answer().await;
        assert!(
            matches!(ended, WriteOutcome::Unknown(error) if error_codes::verdict(&error) == error_codes::Verdict::Unknown)
        );
    }
}
