//! Delivers a window of messages in one attempt, with immediate quick retries for temporary failures.
//!
//! # Guarantees
//! Every message gets an answer before its claim ends, even if the deliverer hangs, panics or returns the wrong number
//! of answers.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use backon::BackoffBuilder;
use futures::FutureExt;
use mongodb::error::Error;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    deliver::{Answer, Envelope, Outcome, in_spans, within},
    dispatch::{claimed_entries::Claim, processor::Processor},
    mongo::clock::until,
    observe::trace,
    stored::entry::Entry,
};

/// During a stop, the deliverer is asked at this interval whether it is still available.
const ASK_EVERY: Duration = Duration::from_millis(50);
/// The deadline given to the deliverer, as a fraction of the remaining time, so that the deliverer can answer just
/// before its future is dropped.
const DEADLINE: f64 = 0.95;

impl Processor {
    /// Delivers a window of messages, with immediate quick retries for temporary failures.
    pub(crate) async fn deliver_window(
        &self,
        claim: &Claim,
        window: &[Entry],
        stop: &CancellationToken,
    ) -> Vec<Answer> {
        let mut envelopes: Vec<_> = window.iter().map(|entry| Envelope::of(&claim.document, entry)).collect();
        let spans = envelopes.iter_mut().map(|envelope| (envelope.id, trace::deliver(envelope, self.path)));
        let spans: Arc<[_]> = spans.collect();

        let answers = in_spans(spans.clone(), self.deliver_envelopes(claim, envelopes, stop)).await;
        for ((_, span), answer) in spans.iter().zip(&answers) {
            trace::delivered(span, &answer.outcome);
            self.metrics().delivery(&answer.outcome);
        }
        answers
    }

    async fn deliver_envelopes(
        &self,
        claim: &Claim,
        mut envelopes: Vec<Envelope>,
        stop: &CancellationToken,
    ) -> Vec<Answer> {
        let mut answers = self.attempt(claim, &envelopes, stop).await;
        for wait in self.retry.quick().build() {
            let failed: Vec<usize> = (0..answers.len()).filter(|i| is_transient(&answers[*i])).collect();
            if failed.is_empty() || stop.is_cancelled() || !self.may_begin(claim, wait).await {
                break;
            }
            self.mongo.pause(wait).await;

            for index in &failed {
                remember(&mut envelopes[*index].delivered_to, &answers[*index].delivered_to);
            }
            let again: Vec<_> = failed.iter().map(|index| envelopes[*index].clone()).collect();
            for (index, answer) in failed.into_iter().zip(self.attempt(claim, &again, stop).await) {
                answers[index] = answer;
            }
        }

        // A message that an earlier try delivered stays delivered, even if the next try gets no answer.
        for (answer, envelope) in answers.iter_mut().zip(envelopes) {
            if answer.delivered_to.is_empty() && answer.outcome != Outcome::Delivered {
                answer.delivered_to = envelope.delivered_to;
            }
        }
        answers
    }

    /// Makes one try. If the deliverer hangs, panics or returns the wrong number of answers, the messages get failures
    /// as answers.
    async fn attempt(&self, claim: &Claim, window: &[Envelope], stop: &CancellationToken) -> Vec<Answer> {
        let left = self.lease_left(claim).await.unwrap_or_default().saturating_sub(self.margin());
        let deadline = Instant::now() + left.mul_f64(DEADLINE);
        // Call `deliver` inside the guarded block, because it may panic before it returns a future.
        let delivery = async { self.deliver.deliver(window).await };
        let delivery = AssertUnwindSafe(within(Some(deadline), delivery)).catch_unwind();

        let ended = tokio::select! {
            ended = timeout(left, delivery) => ended.ok(),
            () = self.lost_while_stopping(stop) => None,
        };

        let answers = match ended {
            Some(Ok(answers)) => answers,
            Some(Err(_panic)) => fail_all(window, "the deliverer panicked"),
            // The failure is not the message's fault: the destination became unavailable during the delivery, for
            // example because an alarm blocks the broker's connection.
            None if !self.deliver.is_available() => {
                let why = Outcome::Unavailable(
                    "the destination became unavailable, and no answer arrived before the claim expired"
                        .into(),
                );
                window.iter().map(|_| why.clone().into()).collect()
            }
            None => fail_all(window, "no answer before the claim expired"),
        };

        if answers.len() == window.len() {
            return answers;
        }
        let text = format!("the deliverer answered {} of {} messages", answers.len(), window.len());
        fail_all(window, &text)
    }

    /// Completes when the destination becomes unavailable during a stop, so that the stop doesn't wait for an answer.
    async fn lost_while_stopping(&self, stop: &CancellationToken) {
        stop.cancelled().await;
        while self.deliver.is_available() {
            sleep(ASK_EVERY).await;
        }
    }

    async fn lease_left(&self, claim: &Claim) -> Result<Duration, Error> {
        Ok(until(self.mongo.clock().now().await?, claim.until))
    }

    /// Whether another delivery may begin under this claim once `wait` has passed.
    pub(crate) async fn may_begin(&self, claim: &Claim, wait: Duration) -> bool {
        matches!(self.lease_left(claim).await, Ok(left) if is_enough(left, self.claimer.lease, wait))
    }

    /// Whether at least half of the lease is left, as far as is known without asking the server.
    pub(crate) fn half_left(&self, claim: &Claim) -> bool {
        let now = self.mongo.clock().carried_on();
        now.is_some_and(|now| is_enough(until(now, claim.until), self.claimer.lease, Duration::ZERO))
    }

    /// The remaining time of this claim, as far as is known without asking the server.
    pub(crate) fn claim_left(&self, claim: &Claim) -> Duration {
        let left = self.mongo.clock().carried_on().map_or(Duration::ZERO, |now| until(now, claim.until));
        left.saturating_sub(self.margin())
    }

    /// The part of a lease that is reserved for recording a delivery's outcome.
    fn margin(&self) -> Duration {
        self.claimer.lease / 10
    }
}

/// Whether another delivery may begin once `wait` has passed. At that time, more than half of the lease must be left.
/// With less time, a slow message could be cut off because earlier messages have used up the time.
pub fn is_enough(left: Duration, lease: Duration, wait: Duration) -> bool {
    left > lease / 2 + wait
}

fn is_transient(answer: &Answer) -> bool {
    matches!(answer.outcome, Outcome::Transient(_) | Outcome::Unroutable(_))
}

fn remember(known: &mut Vec<String>, delivered_to: &[String]) {
    if !delivered_to.is_empty() {
        *known = delivered_to.to_vec();
    }
}

fn fail_all(window: &[Envelope], error: &str) -> Vec<Answer> {
    window.iter().map(|_| Outcome::Transient(error.into()).into()).collect()
}
