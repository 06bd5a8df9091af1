//! Settles messages. A *keeper* carries out the [`settlement`] of each message. The keeper is a claim in the document,
//! or a lease if the document has no room for a claim.

use mongodb::{bson::DateTime, error::Error};

use crate::{
    deliver::Answer,
    dispatch::{
        claim::Recorded,
        clears_under_way::ClearUnderWay,
        outcome::{Disposition, Dispositions, Processed},
        processor::Processor,
        settlement::{Settlement, settlement},
    },
    mongo::clock::later,
    stored::{
        deliverable::Hold,
        document_ref::DocumentRef,
        entry::{DeadReason, Entry},
    },
};

/// Holds messages while they are delivered, and records their outcome.
pub(crate) trait Keeper {
    /// The server time at which the claim or lease ends.
    fn until(&self) -> DateTime;

    /// Removes a delivered message from the outbox.
    async fn clear(&mut self, entry: &Entry) -> Result<Recorded, Error>;

    /// Counts a failed attempt and postpones the message.
    async fn fail(
        &mut self,
        entry: &Entry,
        retry_at: DateTime,
        error: &str,
        delivered_to: &[String],
    ) -> Result<Recorded, Error>;

    /// Marks the message dead.
    async fn die(
        &mut self,
        entry: &Entry,
        now: DateTime,
        reason: DeadReason,
        error: &str,
        delivered_to: &[String],
    ) -> Result<Recorded, Error>;

    /// Releases the message so that it is due at once, without counting an attempt.
    async fn release(&mut self, entry: &Entry, why: &str, delivered_to: &[String])
    -> Result<Recorded, Error>;
}

/// How the delivery under one claim or lease ended.
#[derive(Default)]
pub(crate) struct DeliveryEnd {
    /// Why the delivery stopped early. `None` if every entry was delivered or is dead.
    pub(crate) stopped: Option<Processed>,
    /// Whether the lease was too short for all entries. The remaining entries were released and are due at once.
    pub(crate) cut_short: bool,
    pub(crate) dispositions: Dispositions,
    /// The clear that is left to the caller.
    pub(crate) left_clear: Option<ClearUnderWay>,
    /// The error of the first write that failed. The remaining writes are still tried, because one failure must not
    /// leave other messages unsettled.
    pub(crate) trouble: Option<Error>,
}

/// Settles the messages of a keeper and records how the delivery ended.
pub(crate) struct Settling<'a, K> {
    pub(crate) processor: &'a Processor,
    pub(crate) document: &'a DocumentRef,
    pub(crate) keeper: K,
    pub(crate) end: DeliveryEnd,
    /// Whether the loss of the claim has been reported.
    is_lost: bool,
}

impl<'a, K: Keeper> Settling<'a, K> {
    pub(crate) fn new(processor: &'a Processor, document: &'a DocumentRef, keeper: K) -> Self {
        Self { processor, document, keeper, end: DeliveryEnd::default(), is_lost: false }
    }

    /// Carries out the settlement of a message and reports it once it is written.
    pub(crate) async fn settle(&mut self, entry: &Entry, answer: Answer) {
        let Answer { outcome, delivered_to } = answer;
        match settlement(outcome, entry, &self.processor.retry) {
            Settlement::Clear => {
                // Report the delivery now, because the message is delivered even if the clear fails.
                self.processor.delivered(self.document, entry);
                self.end.dispositions.push((entry.id, Disposition::Delivered));

                let cleared = self.keeper.clear(entry).await;
                self.note(cleared);
            }
            Settlement::Release { why } => {
                self.processor.report.unavailable(self.document, &why);
                self.end.stop(Processed::Unavailable);

                let released = self.keeper.release(entry, &why, &delivered_to).await;
                self.note(released);
            }
            Settlement::Fail { after, error } => {
                let Some(now) = self.now().await else { return };
                let retry_at = later(now, after);
                self.end.stop(Processed::Held(Hold::Retrying(retry_at)));

                let failed = self.keeper.fail(entry, retry_at, &error, &delivered_to).await;
                if self.note(failed) == Noted::Written {
                    self.processor.report.failed(self.document, entry, &error);
                    self.end.dispositions.push((entry.id, Disposition::Retrying { error }));
                }
            }
            Settlement::Die { reason, error } => {
                let Some(now) = self.now().await else { return };

                let died = self.keeper.die(entry, now, reason, &error, &delivered_to).await;
                if self.note(died) == Noted::Written {
                    self.processor.report.died(self.document, entry, reason, &error);
                    self.end.dispositions.push((entry.id, Disposition::Dead { error }));
                }
            }
        }
    }

    /// Whether the message that was settled last is dead.
    pub(crate) fn has_died(&self) -> bool {
        matches!(self.end.dispositions.last(), Some((_, Disposition::Dead { .. })))
    }

    /// Returns the server's time. If the server can't be reached, records the error and returns `None`.
    async fn now(&mut self) -> Option<DateTime> {
        match self.processor.mongo.clock().now().await {
            Ok(now) => Some(now),
            Err(error) => {
                self.note(Err(error));
                None
            }
        }
    }

    /// Records how a write ended. A lost claim or an error ends the delivery.
    pub(crate) fn note(&mut self, written: Result<Recorded, Error>) -> Noted {
        match written {
            Ok(Recorded::Done) => Noted::Written,
            Ok(Recorded::Missed) => {
                if !std::mem::replace(&mut self.is_lost, true) {
                    self.processor.report.claim_lost(self.document);
                }
                self.end.stop(Processed::Held(Hold::Claimed(self.keeper.until())));
                Noted::NotWritten
            }
            Err(error) => {
                self.end.trouble.get_or_insert(error);
                self.end.stop(Processed::Interrupted);
                Noted::NotWritten
            }
        }
    }
}

/// Whether a write should be reported on its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Noted {
    Written,
    NotWritten,
}

impl DeliveryEnd {
    /// Records why a delivery stops early. In an unordered document several messages may each give a
    /// reason. Among messages that wait for a retry, the earliest retry is kept. Any other reason takes
    /// precedence over a retry.
    pub(crate) fn stop(&mut self, why: Processed) {
        let replaces = match (&self.stopped, &why) {
            (None, _) => true,
            (Some(Processed::Held(Hold::Retrying(known))), Processed::Held(Hold::Retrying(at))) => at < known,
            (Some(known), why) => rank(why) > rank(known),
        };
        if replaces {
            self.stopped = Some(why);
        }
    }
}

fn rank(why: &Processed) -> u8 {
    match why {
        Processed::Held(Hold::Retrying(_)) => 0,
        Processed::Held(_) => 1,
        Processed::Unavailable => 2,
        Processed::Done | Processed::Gone | Processed::Interrupted => 3,
    }
}
