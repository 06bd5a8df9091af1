//! What each message of a claim came to, and the writes that say so.

use mongodb::{bson::Uuid, error::Error};
use tokio_util::sync::CancellationToken;

use crate::{
    deliver::{Answer, Outcome},
    dispatch::{
        claim::Claim,
        outcome::{Disposition, Dispositions, Processed},
        processor::Processor,
        unsettled::Permits,
    },
    mongo::{ClearOutcome, Delivered, clock::later},
    observe::event::Event,
    stored::{
        deliverable::Hold,
        entry::{DeadReason, Entry},
    },
};

/// What a pass over one claim came to.
pub(crate) struct Pass {
    /// Why it broke off; none when every entry was seen through.
    pub(crate) stopped: Option<Processed>,
    /// The lease was too short for all of it; the rest was given back, due at once.
    pub(crate) cut_short: bool,
    pub(crate) dispositions: Dispositions,
    /// The first failed write. The others are tried all the same: one trouble must not leave the rest unsettled.
    pub(crate) trouble: Option<Error>,
}

/// What each message of a window came to, and the writes that say so.
pub(crate) struct Settling<'a> {
    processor: &'a Processor,
    claim: &'a Claim,
    may_linger: bool,
    delivered: Vec<Uuid>,
    /// What the delivered ones count among the messages that would be repeated.
    unsettled: Permits,
    given_back: Vec<&'a Entry>,
    pass: Pass,
    /// Whether it was told that the claim is lost.
    lost: bool,
}

impl<'a> Settling<'a> {
    /// With `may_linger`, delivered ones may be cleared after the end.
    pub(crate) fn of(processor: &'a Processor, claim: &'a Claim, may_linger: bool) -> Self {
        Self {
            processor,
            claim,
            may_linger,
            delivered: Vec::new(),
            unsettled: Permits::none(),
            given_back: Vec::new(),
            pass: Pass::new(),
            lost: false,
        }
    }

    /// Waits until this many messages more may be published; none when it was stopped meanwhile. Where it has to wait, it first
    /// clears what it has delivered: it must hold none of what others wait for.
    pub(crate) async fn permits(&mut self, count: usize, stop: &CancellationToken) -> Option<Permits> {
        let unsettled = &self.processor.unsettled;
        if let Some(permits) = unsettled.try_take(count) {
            return Some(permits);
        }
        self.clear().await;
        stop.run_until_cancelled(unsettled.take(count)).await
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.pass.stopped.is_some()
    }

    pub(crate) fn stop(&mut self, why: Processed) {
        self.pass.stop(why);
    }

    /// The lease was too short for all of it.
    pub(crate) fn cut_short(&mut self) {
        self.pass.cut_short = true;
    }

    pub(crate) fn give_back(&mut self, window: &'a [Entry], why: &str) {
        tracing::debug!(document = %self.claim.document, count = window.len(), why, "messages are given back");
        self.given_back.extend(window);
    }

    /// Settles a window that has its answers.
    pub(crate) async fn settle_all(&mut self, window: &'a [Entry], answers: Vec<Answer>, permits: Permits) {
        let delivered = answers.iter().filter(|answer| answer.outcome == Outcome::Delivered).count();
        self.unsettled.keep(permits, delivered);
        for (entry, answer) in window.iter().zip(answers) {
            self.settle(entry, answer).await;
        }
    }

    async fn settle(&mut self, entry: &'a Entry, answer: Answer) {
        match answer.outcome {
            Outcome::Delivered => {
                self.processor.delivered(&self.claim.document, entry);
                self.delivered.push(entry.id);
                self.pass.dispositions.push((entry.id, Disposition::Delivered));
            }
            Outcome::Unavailable(why) => {
                self.processor.report.unavailable(&self.claim.document, &why);
                self.pass.stop(Processed::Unavailable);
                match answer.delivered_to.is_empty() {
                    true => self.given_back.push(entry),
                    false => self.release(&[entry], &answer.delivered_to).await,
                }
            }
            Outcome::Transient(error) if self.attempts_left(entry) => {
                self.fail(entry, &error, &answer.delivered_to).await;
            }
            Outcome::Transient(error) => {
                self.die(entry, DeadReason::AttemptsExhausted, &error, &answer.delivered_to).await;
            }
            Outcome::Permanent(error) => {
                self.die(entry, DeadReason::Permanent, &error, &answer.delivered_to).await;
            }
        }
    }

    /// Whether the message that was settled last is dead.
    pub(crate) fn died(&self) -> bool {
        matches!(self.pass.dispositions.last(), Some((_, Disposition::Dead { .. })))
    }

    fn attempts_left(&self, entry: &Entry) -> bool {
        entry.attempts + 1 < i64::from(self.processor.retry.max_attempts)
    }

    async fn fail(&mut self, entry: &Entry, error: &str, delivered_to: &[String]) {
        let attempts = u32::try_from(entry.attempts + 1).unwrap_or(1);
        let written = match self.processor.mongo.clock().now().await {
            Ok(now) => {
                let retry_at = later(now, self.processor.retry.backoff(attempts));
                self.pass.stop(Processed::Held(Hold::Retrying(retry_at)));
                self.processor.claimer.fail(self.claim, entry, retry_at, error, delivered_to).await
            }
            Err(error) => Err(error),
        };
        if self.note(written) {
            self.processor.report.failed(&self.claim.document, entry, error);
            self.pass.dispositions.push((entry.id, Disposition::Retrying { error: error.into() }));
        }
    }

    async fn die(&mut self, entry: &Entry, reason: DeadReason, error: &str, delivered_to: &[String]) {
        let written = match self.processor.mongo.clock().now().await {
            Ok(now) => self.processor.claimer.die(self.claim, entry, now, reason, error, delivered_to).await,
            Err(error) => Err(error),
        };
        if self.note(written) {
            self.processor.report.died(&self.claim.document, entry, reason, error);
            self.pass.dispositions.push((entry.id, Disposition::Dead { error: error.into() }));
        }
    }

    async fn release(&mut self, entries: &[&Entry], delivered_to: &[String]) {
        let written = match self.processor.mongo.clock().now().await {
            Ok(now) => self.processor.claimer.release(self.claim, entries, now, delivered_to).await,
            Err(error) => Err(error),
        };
        if self.note(written) {
            let (document, count) = (self.claim.document.clone(), entries.len());
            self.processor.emit(Event::Released { document, count, reason: "not delivered".into() });
        }
    }

    /// Whether a write found its claim; a lost claim ends the pass.
    fn note(&mut self, written: Result<bool, Error>) -> bool {
        match written {
            Ok(true) => true,
            Ok(false) => {
                if !std::mem::replace(&mut self.lost, true) {
                    self.processor.report.claim_lost(&self.claim.document);
                }
                self.pass.stop(Processed::Held(Hold::Claimed(self.claim.until)));
                false
            }
            Err(error) => {
                self.pass.trouble.get_or_insert(error);
                self.pass.stop(Processed::Interrupted);
                false
            }
        }
    }

    /// What was delivered, but for what may wait for the next save.
    fn left_to_clear(&mut self) -> Option<Delivered> {
        if self.delivered.is_empty() {
            return None;
        }
        let all = self.delivered.len() == self.claim.entries.len();
        let delivered = Delivered {
            document: self.claim.document.clone(),
            token: self.claim.token.clone(),
            ids: std::mem::take(&mut self.delivered),
        };
        match &self.processor.linger {
            Some(linger) if self.may_linger && all && self.processor.half_left(self.claim) => {
                let left = self.processor.claim_left(self.claim);
                linger.defer(delivered, tokio::time::Instant::now() + left).err()
            }
            _ => Some(delivered),
        }
    }

    /// Gives back at once what is to be given back.
    pub(crate) async fn release_given_back(&mut self) {
        let given_back = std::mem::take(&mut self.given_back);
        if !given_back.is_empty() {
            self.release(&given_back, &[]).await;
        }
    }

    /// Clears what was delivered by now, but for what may wait for the next save.
    async fn clear(&mut self) {
        let unsettled = std::mem::replace(&mut self.unsettled, Permits::none());
        if let Some(delivered) = self.left_to_clear() {
            match self.processor.mongo.clear(&delivered).await {
                ClearOutcome::Done => {}
                ClearOutcome::ClaimLost => _ = self.note(Ok(false)),
                ClearOutcome::Failed(error) => {
                    self.processor.report.not_cleared(&delivered.document, &error);
                    self.pass.stop(Processed::Held(Hold::Claimed(self.claim.until)));
                }
            }
        }
        drop(unsettled);
    }

    pub(crate) async fn finish(mut self) -> Pass {
        self.clear().await;
        self.release_given_back().await;
        self.pass
    }
}

impl Pass {
    fn new() -> Self {
        Self { stopped: None, cut_short: false, dispositions: Vec::new(), trouble: None }
    }

    /// Notes why a pass breaks off. In an unordered document several messages may say so: the earliest retry counts, and
    /// more than that, whatever leaves messages behind that are due already.
    fn stop(&mut self, why: Processed) {
        let rank = |why: &Processed| match why {
            Processed::Held(Hold::Retrying(_)) => 0,
            Processed::Held(_) => 1,
            Processed::Unavailable => 2,
            _ => 3,
        };
        let replace = match (&self.stopped, &why) {
            (None, _) => true,
            (Some(Processed::Held(Hold::Retrying(known))), Processed::Held(Hold::Retrying(at))) => at < known,
            (Some(known), why) => rank(why) > rank(known),
        };
        if replace {
            self.stopped = Some(why);
        }
    }
}
