//! A write in flight, with its statement, its deadline, whether it was sent, and its waiting caller.

use mongodb::{Namespace, bson::RawDocumentBuf};
use tokio::{
    sync::oneshot,
    time::{Instant, timeout_at},
};

use crate::mongo::{
    batching::Asked,
    deadline::{deadline, no_answer},
    departure::Departure,
    error_codes,
    statement::WriteOutcome,
    write_command::WriteKind,
};

/// One statement to be sent.
#[derive(Debug)]
pub(crate) struct WriteRequest {
    pub(crate) kind: WriteKind,
    pub(crate) namespace: Namespace,
    /// The statement, which is encoded before it is batched, so that an encoding error affects only this request.
    pub(crate) statement: RawDocumentBuf,
    pub(crate) departure: Departure,
    pub(crate) deadline: Instant,
}

/// A write that a caller waits for.
pub(crate) type AskedWrite = Asked<WriteRequest, WriteOutcome>;

/// The waiting side of a write.
#[derive(Debug)]
pub(crate) struct WriteWaiter {
    departure: Departure,
    pub(crate) deadline: Instant,
    answered: oneshot::Receiver<WriteOutcome>,
}

/// Creates a write that must have its outcome by the deadline of the calling save.
pub(crate) fn ask(
    kind: WriteKind,
    namespace: Namespace,
    statement: RawDocumentBuf,
) -> (AskedWrite, WriteWaiter) {
    let (departure, deadline) = (Departure::default(), deadline());
    let request = WriteRequest { kind, namespace, statement, departure: departure.clone(), deadline };
    let (asked, answered) = Asked::new(request);
    (asked, WriteWaiter { departure, deadline, answered })
}

impl WriteWaiter {
    /// Waits for the reported outcome. If no outcome is reported, returns the outcome that follows from whether the
    /// write was sent.
    pub(crate) async fn outcome(self) -> WriteOutcome {
        let why = match timeout_at(self.deadline, self.answered).await {
            Ok(Ok(outcome)) => return outcome,
            Ok(Err(_dropped)) if Instant::now() < self.deadline => {
                "the runtime that sends writes has ended".to_owned()
            }
            Ok(Err(_dropped)) => no_answer(),
            Err(_elapsed) => no_answer(),
        };

        // If the write can be cancelled, the write was not sent and never will be.
        if self.departure.cancel() {
            WriteOutcome::Failed(error_codes::not_sent(why))
        } else {
            WriteOutcome::Unknown(error_codes::lost(why))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mongo::error_codes::Verdict;

    #[tokio::test(start_paused = true)]
    async fn an_unsent_write_is_reported_as_unsent() {
        let write = || ask(WriteKind::Update, Namespace::new("a", "b"), RawDocumentBuf::new());
        let (_asked, waiter) = write();
        let waiting = waiter.outcome().await;
        assert!(
            matches!(waiting, WriteOutcome::Failed(error) if error_codes::verdict(&error) == Verdict::NotSent)
        );

        let (sent, waiter) = write();
        assert!(sent.request.departure.leave());
        drop(sent);
        let ended = waiter.outcome().await;
        assert!(
            matches!(ended, WriteOutcome::Unknown(error) if error_codes::verdict(&error) == Verdict::Unknown)
        );
    }
}
