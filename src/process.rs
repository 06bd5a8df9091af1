//! Processing one document's messages: look, claim, deliver, settle.
//!
//! # Flow
//! ```text
//! read outbox ─▶ deliverable? ─▶ claim (majority) ─▶ deliver ─┬─ Delivered ───▶ clear
//!      ▲              │ no                                    ├─ Transient ───▶ fail, or die after the last attempt
//!      └── more ──────┼───────────────────────────────────────├─ Permanent ───▶ die
//!                     ▼                                       └─ Unavailable ─▶ release
//!              why it waits
//! ```
//! The inline dispatcher and the dispatcher worker are two callers of this; what they add is when to call it.
//!
//! # Caveats
//! A holder whose claim runs out while a delivery is under way cannot take it back: the next holder repeats it. The check of
//! what is left of the lease before each delivery makes this rare, the `inbox` of the receiver makes it harmless.

use std::{
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use backon::BackoffBuilder;
use futures::FutureExt;
use mongodb::{
    Client,
    bson::{DateTime, Uuid},
    error::Error,
};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{Instrument, Span};

use crate::{
    DocumentRef, RetryPolicy,
    claim::{Claim, Claimed, Claimer},
    clears::{Clears, Delivered},
    clock::{ServerClock, later, until},
    codes,
    deliver::{Answer, Deliver, Envelope, Outcome, in_spans, within},
    deliverable::{Deliverable, Hold, Ordering, Rules, deliverable},
    entry::{DeadReason, Entry, Slot},
    event::{Event, Events},
    group::Writes,
    health::{Health, Vitals},
    linger::Linger,
    metrics::{Metrics, Path},
    oversized::{Lease, Oversized},
    reads::{Read, Reads},
    trace,
};

/// How often a lost race for a claim is run again at once before the document is left to who won.
const RACES: usize = 5;

/// A shorter lease would run out while its own claim is written.
const SHORTEST_LEASE: Duration = Duration::from_millis(500);
/// A plan that waited for its pace for longer is made anew: the document may have changed, and a claim holds from when it was planned.
const STALE: Duration = Duration::from_millis(100);
/// A window of clears names every entry of its claims; it must fit into one command.
const MOST_IN_A_CLAIM: usize = 500;

/// How a [`Processor`] works.
#[derive(Debug, Clone, PartialEq)]
pub struct ProcessorSettings {
    /// Begins every claim's value; shown to operators. Default: the process id.
    pub name: String,
    /// How long a claim holds. Default 60 s, at least 500 ms. A delivery is begun while half of it is left, and cut off when nine
    /// tenths have passed.
    pub lease: Duration,
    /// At most this many entries in one claim. Default 100, at most 500.
    pub claim_limit: usize,
    /// What is done about failures.
    pub retry: RetryPolicy,
    /// Count claims, to notice messages that kill their process: on in workers, off inline. Default on.
    pub counts_claims: bool,
    /// The library's own database, for documents too large to be claimed in. Default `document_outbox`.
    pub state_database: String,
    /// Whether concurrent saves and claims go to MongoDB together, as one command with a statement each. Default on.
    pub group_commit: bool,
}

/// The library's own database, unless set otherwise.
pub const STATE_DATABASE: &str = "document_outbox";

impl Default for ProcessorSettings {
    fn default() -> Self {
        Self {
            name: format!("pid-{}", std::process::id()),
            lease: Duration::from_secs(60),
            claim_limit: 100,
            retry: RetryPolicy::default(),
            counts_claims: true,
            state_database: STATE_DATABASE.into(),
            group_commit: true,
        }
    }
}

/// Why processing a document came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Processed {
    /// Nothing is left that could be delivered.
    Done,
    /// What is left waits.
    Held(Hold),
    /// The document is not there.
    Gone,
    /// There is no way to deliver now.
    Unavailable,
    /// Shutdown broke it off; what was held is released.
    Interrupted,
}

/// What became of one message in the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Disposition {
    /// It was delivered and confirmed.
    Delivered,
    /// A delivery failed; it is tried again.
    Retrying {
        /// What went wrong.
        error: String,
    },
    /// It was given up, and waits for an operator.
    Dead {
        /// What went wrong.
        error: String,
    },
    /// It is not due yet; the rescuer finds it when it is.
    Scheduled,
    /// It was not tried yet, or not to the end; the rescuer sees to it.
    Waiting,
    /// It has left the outbox without this process: another delivered it, or its document was deleted or overwritten by a
    /// writer that doesn't keep to the library.
    Cleared,
}

/// How fast messages may be delivered. Asked before a claim and not under it, so that no claim runs out while it waits.
#[async_trait]
pub trait Pace: Send + Sync + 'static {
    /// Waits until messages may be claimed and delivered, and says how many: at least one and at most `wanted`. Zero ends the
    /// pass as [`Processed::Interrupted`], with nothing claimed. Cancel safe.
    async fn permits(&self, wanted: usize) -> usize;
}

/// Processes documents: clones share one queue of clears.
#[derive(Clone)]
pub struct Processor {
    reads: Reads,
    claimer: Claimer,
    clears: Clears,
    /// Where delivered messages wait for the next save of their document.
    linger: Option<Linger>,
    clock: ServerClock,
    deliver: Arc<dyn Deliver>,
    retry: RetryPolicy,
    claim_limit: usize,
    oversized: Oversized,
    pace: Option<Arc<dyn Pace>>,
    teller: Teller,
    path: Path,
    vitals: Arc<Vitals>,
    /// Cancelled once the last clone is gone.
    gone: CancellationToken,
    _last: Arc<DropGuard>,
}

/// What a pass over one claim came to.
pub(crate) struct Pass {
    /// Why it broke off; none when every entry was seen through.
    stopped: Option<Processed>,
    /// The lease was too short for all of it; the rest was given back, due at once.
    cut_short: bool,
    pub(crate) dispositions: Vec<(Uuid, Disposition)>,
}

impl Processor {
    /// A processor for the documents that this client reaches.
    pub fn new(
        client: Client,
        clock: ServerClock,
        deliver: Arc<dyn Deliver>,
        settings: ProcessorSettings,
    ) -> Self {
        Self::on(Path::Dispatcher, client, clock, deliver, settings, None)
    }

    /// That of an inline dispatcher, whose delivered messages may stay in their documents for `clear_within`.
    pub(crate) fn inline(
        client: Client,
        clock: ServerClock,
        deliver: Arc<dyn Deliver>,
        settings: ProcessorSettings,
        capacity: usize,
        clear_within: Duration,
    ) -> Self {
        let mut processor = Self::on(Path::Inline, client, clock, deliver, settings, Some(capacity));
        // Longer than that, and a clear might come after its claim has ended.
        let clear_within = clear_within.min(processor.claimer.lease / 4);
        if !clear_within.is_zero() {
            let (clears, teller) = (processor.clears.clone(), processor.teller.clone());
            processor.linger = Some(Linger::start(clear_within, move |delivered| {
                let (clears, teller) = (clears.clone(), teller.clone());
                async move {
                    let answers = clears.clear_all(&delivered).await;
                    for (Delivered { document, .. }, answer) in delivered.iter().zip(answers) {
                        match answer {
                            Ok(true) => {}
                            Ok(false) => teller.claim_lost(document),
                            Err(error) => teller.not_cleared(document, &error),
                        }
                    }
                }
                .boxed()
            }));
        }
        processor
    }

    fn on(
        path: Path,
        client: Client,
        clock: ServerClock,
        deliver: Arc<dyn Deliver>,
        settings: ProcessorSettings,
        capacity: Option<usize>,
    ) -> Self {
        let metrics = Arc::new(Metrics::register(path));
        let gone = CancellationToken::new();
        let ProcessorSettings {
            name,
            lease,
            claim_limit,
            retry,
            counts_claims,
            state_database,
            group_commit,
        } = settings;
        Self {
            oversized: Oversized::new(&client, &state_database, lease),
            reads: Reads::start(client.clone()),
            clears: Clears::start(client.clone(), metrics.claims_lost.clone()),
            linger: None,
            claimer: Claimer {
                writes: match group_commit {
                    true => Writes::grouped(client.clone()),
                    false => Writes::single(client.clone()),
                },
                client,
                name,
                lease: lease.max(SHORTEST_LEASE),
                counts_claims,
            },
            clock,
            deliver,
            retry,
            claim_limit: claim_limit.clamp(1, MOST_IN_A_CLAIM),
            pace: None,
            path,
            vitals: Vitals::new(metrics.clone(), capacity),
            teller: Teller { metrics, events: Events::default() },
            _last: Arc::new(gone.clone().drop_guard()),
            gone,
        }
    }

    /// Delivers at this pace from now on, and not as fast as it can.
    #[must_use]
    pub fn paced(mut self, pace: Arc<dyn Pace>) -> Self {
        self.pace = Some(pace);
        self
    }

    /// What happens, from now on.
    pub fn events(&self) -> &Events<Event> {
        &self.teller.events
    }

    /// Where messages go.
    pub fn deliverer(&self) -> &Arc<dyn Deliver> {
        &self.deliver
    }

    /// The server's time, by which everything in an outbox is dated.
    pub fn clock(&self) -> &ServerClock {
        &self.clock
    }

    /// How it stands, for as long as the process runs: for a health endpoint of your own.
    pub fn health(&self) -> Health {
        Health::of(&self.vitals)
    }

    pub(crate) fn vitals(&self) -> &Arc<Vitals> {
        &self.vitals
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.teller.metrics
    }

    /// Announces and counts an event.
    pub(crate) fn emit(&self, event: Event) {
        self.teller.emit(event);
    }

    /// Where delivered messages wait for the next save of their document; none where they are cleared at once.
    pub(crate) fn linger(&self) -> Option<&Linger> {
        self.linger.as_ref()
    }

    /// Whether there is a way to deliver now.
    pub(crate) fn is_available(&self) -> bool {
        let available = self.deliver.is_available();
        if !available {
            self.vitals.circuit_opened(&self.deliver, self.gone.clone());
        }
        available
    }

    /// Reads a document's outbox.
    pub(crate) async fn read(&self, document: &DocumentRef) -> Result<Read, Error> {
        self.reads.read(document).await
    }

    pub(crate) fn claimer(&self) -> &Claimer {
        &self.claimer
    }

    /// Delivers what is deliverable in a document's outbox, until nothing is.
    ///
    /// # Errors
    /// When MongoDB can't be asked. What was held is released as far as possible, the rest by its lease.
    pub async fn process(
        &self,
        document: &DocumentRef,
        ordering: Ordering,
        stop: &CancellationToken,
    ) -> Result<Processed, Error> {
        let _in_flight = self.vitals.enter();
        let span = trace::dispatch(document, self.path);
        let process = async {
            let processed = self.process_into(document, ordering, stop, &mut Vec::new()).await;
            if let Err(error) = &processed {
                self.vitals.failed(&codes::describe(error));
                trace::failed(&Span::current(), "interrupted");
            }
            processed
        };
        process.instrument(span).await
    }

    /// Like [`process`](Self::process), and notes what became of each message that was tried.
    pub(crate) async fn process_into(
        &self,
        document: &DocumentRef,
        ordering: Ordering,
        stop: &CancellationToken,
        dispositions: &mut Vec<(Uuid, Disposition)>,
    ) -> Result<Processed, Error> {
        let mut races = 0;
        let mut told = false;
        let mut permits = 0;
        loop {
            if stop.is_cancelled() {
                return Ok(Processed::Interrupted);
            }
            if !self.is_available() {
                return Ok(Processed::Unavailable);
            }
            let now = self.clock.now().await?;
            let Some(outbox) = self.read(document).await? else {
                return Ok(Processed::Gone);
            };
            let slots = match outbox {
                Ok(slots) => slots,
                Err(reason) => {
                    self.tell_unreadable(document, 1, reason.to_string());
                    return Ok(Processed::Done);
                }
            };
            let plan = self.plan(&slots, ordering, now);
            if !std::mem::replace(&mut told, true) {
                self.tell(document, &slots, &plan);
            }
            if let Some(entry) = plan.crashed.filter(|_| plan.entries.is_empty()) {
                if !self.die_crashed(document, entry, now).await? {
                    races += 1;
                }
                match races > RACES {
                    true => return Ok(Processed::Held(Hold::Claimed(now))),
                    false => continue,
                }
            }
            if plan.entries.is_empty() {
                return Ok(plan.held.map_or(Processed::Done, Processed::Held));
            }
            let entries = match &self.pace {
                None => &plan.entries[..],
                Some(pace) => {
                    let asked = Instant::now();
                    if permits == 0 {
                        permits = tokio::select! {
                            permits = pace.permits(plan.entries.len()) => permits,
                            () = stop.cancelled() => 0,
                        };
                    }
                    match permits {
                        0 => return Ok(Processed::Interrupted),
                        _ if asked.elapsed() > STALE => continue,
                        _ => &plan.entries[..permits.min(plan.entries.len())],
                    }
                }
            };
            let more = plan.more || entries.len() < plan.entries.len();
            let claim = match self.claimer.claim(document, entries, now).await? {
                Claimed::Held(claim) if !claim.entries.is_empty() => claim,
                Claimed::Held(_) | Claimed::Lost if races < RACES => {
                    races += 1;
                    continue;
                }
                Claimed::Held(_) | Claimed::Lost => return Ok(Processed::Held(Hold::Claimed(now))),
                Claimed::NoRoom => match self.process_oversized(document, ordering, stop).await? {
                    None => {
                        permits = 0;
                        continue;
                    }
                    Some(processed) => return Ok(processed),
                },
            };
            permits = 0;
            let complete = !more && plan.held.is_none() && claim.entries.len() == entries.len();
            let pass = self.deliver_claim(&claim, ordering, stop, false).await?;
            dispositions.extend(pass.dispositions);
            match pass.stopped {
                // In an unordered document, one that waits for its retry holds back none of those not yet claimed.
                Some(Processed::Held(Hold::Retrying(_))) if more && ordering == Ordering::Unordered => {}
                Some(processed) => return Ok(processed),
                None if complete && !pass.cut_short => return Ok(Processed::Done),
                None => {}
            }
        }
    }

    fn plan<'a>(&self, slots: &'a [Slot], ordering: Ordering, now: DateTime) -> Deliverable<'a> {
        let serves = |via: Option<&str>| self.deliver.serves(via);
        deliverable(slots, Rules { now, ordering, limit: self.claim_limit, serves: &serves })
    }

    /// Delivers what a claim holds, and settles every entry of it. With `may_linger`, delivered ones may be cleared after this
    /// has returned: when the claim held all that stands in the document, and nobody is about to look at it.
    pub(crate) async fn deliver_claim(
        &self,
        claim: &Claim,
        ordering: Ordering,
        stop: &CancellationToken,
        may_linger: bool,
    ) -> Result<Pass, Error> {
        let mut pass = Settling {
            processor: self,
            claim,
            may_linger,
            delivered: vec![],
            given_back: vec![],
            pass: Pass::new(),
            lost: false,
            trouble: None,
        };
        // An ordered document's window holds one message: pipelined, the second would overtake a failed first.
        let width = if ordering == Ordering::Unordered { self.claim_limit } else { 1 };
        let mut windows = claim.entries.chunks(width);
        for window in windows.by_ref() {
            if stop.is_cancelled() {
                pass.give_back(window, "shutdown");
                pass.pass.stop(Processed::Interrupted);
            } else if !self.may_begin(claim, Duration::ZERO).await {
                pass.give_back(window, "not enough of the lease is left");
                pass.pass.cut_short = true;
                break;
            } else {
                let answers = self.deliver_window(claim, window).await;
                for (entry, answer) in window.iter().zip(answers) {
                    pass.settle(entry, answer).await;
                }
                if ordering == Ordering::DeadBlocks && pass.died() {
                    pass.pass.stop(Processed::Held(Hold::Dead));
                }
            }
            if pass.pass.stopped.is_some() && ordering != Ordering::Unordered {
                break;
            }
        }
        windows.for_each(|window| pass.give_back(window, "held back"));
        pass.finish().await
    }

    /// Delivers a window, with the quick tries in place for what fails in passing.
    async fn deliver_window(&self, claim: &Claim, window: &[Entry]) -> Vec<Answer> {
        let mut envelopes: Vec<_> = window.iter().map(|entry| Envelope::of(&claim.document, entry)).collect();
        let spans = envelopes.iter_mut().map(|envelope| (envelope.id, trace::deliver(envelope, self.path)));
        let spans: Arc<[_]> = spans.collect();
        let answers = in_spans(spans.clone(), self.deliver_envelopes(claim, envelopes)).await;
        for ((_, span), answer) in spans.iter().zip(&answers) {
            trace::delivered(span, &answer.outcome);
            self.metrics().delivery(&answer.outcome);
        }
        answers
    }

    async fn deliver_envelopes(&self, claim: &Claim, mut envelopes: Vec<Envelope>) -> Vec<Answer> {
        let mut answers = self.attempt(claim, &envelopes).await;
        for wait in self.retry.quick().build() {
            let failed: Vec<usize> = (0..answers.len()).filter(|i| is_transient(&answers[*i])).collect();
            if failed.is_empty() || !self.may_begin(claim, wait).await {
                break;
            }
            tokio::time::sleep(wait).await;
            for index in &failed {
                remember(&mut envelopes[*index].delivered_to, &answers[*index].delivered_to);
            }
            let again: Vec<_> = failed.iter().map(|index| envelopes[*index].clone()).collect();
            for (index, answer) in failed.into_iter().zip(self.attempt(claim, &again).await) {
                answers[index] = answer;
            }
        }
        // What a try served stays served, also when the next one came to no answer.
        for (answer, envelope) in answers.iter_mut().zip(envelopes) {
            if answer.delivered_to.is_empty() && answer.outcome != Outcome::Delivered {
                answer.delivered_to = envelope.delivered_to;
            }
        }
        answers
    }

    /// One try, guarded: a deliverer that hangs, panics or miscounts becomes failed attempts.
    async fn attempt(&self, claim: &Claim, window: &[Envelope]) -> Vec<Answer> {
        let left = self.lease_left(claim).await.unwrap_or_default().saturating_sub(self.margin());
        // A deliverer that keeps an eye on the time answers just before it is dropped, for those that have answered.
        let deadline = tokio::time::Instant::now() + left.mul_f64(0.95);
        let delivery = within(Some(deadline), self.deliver.deliver(window));
        let delivery = AssertUnwindSafe(delivery).catch_unwind();
        let mut answers = match tokio::time::timeout(left, delivery).await {
            Ok(Ok(answers)) => answers,
            Ok(Err(_panic)) => fail_all(window, "the deliverer panicked"),
            // Not the message's fault: the way was lost while it was on it, as when an alarm blocks a broker's connection.
            Err(_elapsed) if !self.deliver.is_available() => {
                let why = Outcome::Unavailable(
                    "the way was lost, and no answer came before the claim ran out".into(),
                );
                window.iter().map(|_| why.clone().into()).collect()
            }
            Err(_elapsed) => fail_all(window, "no answer before the claim ran out"),
        };
        if answers.len() != window.len() {
            let text = format!("the deliverer answered {} of {} messages", answers.len(), window.len());
            answers = fail_all(window, &text);
        }
        answers
    }

    async fn lease_left(&self, claim: &Claim) -> Result<Duration, Error> {
        Ok(until(self.clock.now().await?, claim.until))
    }

    /// Whether enough is left of a lease to begin another delivery after this wait: half of it. With less, a message that needs
    /// its time would be cut off by the others before it.
    async fn may_begin(&self, claim: &Claim, wait: Duration) -> bool {
        matches!(self.lease_left(claim).await, Ok(left) if left > self.claimer.lease / 2 + wait)
    }

    /// Whether half of a lease is left, as far as that is known without asking.
    fn half_left(&self, claim: &Claim) -> bool {
        self.clock.carried_on().is_some_and(|now| until(now, claim.until) > self.claimer.lease / 2)
    }

    /// What is kept of a lease to record a delivery's outcome.
    fn margin(&self) -> Duration {
        self.claimer.lease / 10
    }

    /// False when somebody else changed the entry meanwhile.
    async fn die_crashed(&self, document: &DocumentRef, entry: &Entry, now: DateTime) -> Result<bool, Error> {
        let died = self.claimer.die_crashed(document, entry, now).await?;
        if died {
            self.tell_died(document, entry, DeadReason::Crashed, "its claimers ended without an answer");
        }
        Ok(died)
    }

    /// Delivers the head of a document that has no room for a claim. None: look at the document again.
    async fn process_oversized(
        &self,
        document: &DocumentRef,
        ordering: Ordering,
        stop: &CancellationToken,
    ) -> Result<Option<Processed>, Error> {
        let now = self.clock.now().await?;
        let mut lease = match self.oversized.lease(document, &self.claimer.token(), now).await? {
            Ok(lease) => lease,
            Err(until) => return Ok(Some(Processed::Held(Hold::Claimed(until)))),
        };
        self.emit(Event::Oversized { document: document.clone() });
        tracing::warn!(%document, "the document has no room for a claim; its outbox is delivered under a lease");
        // Read after the lease, from the majority: without a claim in the document, nothing else keeps a phantom out.
        let mut slots = match self.oversized.read(&self.claimer.client, document).await? {
            None => {
                lease.complete(&mut []);
                self.oversized.give_back(document, lease).await?;
                return Ok(Some(Processed::Gone));
            }
            Some(outbox) => outbox.unwrap_or_default(),
        };
        lease.complete(&mut slots);
        let plan = self.plan(&slots, ordering, now);
        let entry = match plan.entries.first() {
            Some(entry) if !stop.is_cancelled() => *entry,
            Some(_) => {
                self.oversized.give_back(document, lease).await?;
                return Ok(Some(Processed::Interrupted));
            }
            None => {
                self.oversized.give_back(document, lease).await?;
                return Ok(Some(plan.held.map_or(Processed::Done, Processed::Held)));
            }
        };
        let claim = lease.as_claim(document, entry.clone());
        let Answer { outcome, delivered_to } =
            self.deliver_window(&claim, &claim.entries).await.swap_remove(0);
        let attempts = entry.attempts + 1;
        match outcome {
            Outcome::Delivered => {
                self.oversized.clear(&self.claimer.client, document, entry.id).await?;
                lease.forget(entry.id);
                self.oversized.give_back(document, lease).await?;
                self.tell_delivered(document, entry);
                Ok(None)
            }
            Outcome::Unavailable(why) => {
                self.vitals.failed(&why);
                if !delivered_to.is_empty() {
                    lease.put_off(entry, entry.attempts, now, &why, &delivered_to);
                }
                self.oversized.give_back(document, lease).await?;
                Ok(Some(Processed::Unavailable))
            }
            Outcome::Transient(error) if attempts < i64::from(self.retry.max_attempts) => {
                let backoff = self.retry.backoff(u32::try_from(attempts).unwrap_or(1));
                let retry_at = later(self.clock.now().await?, backoff);
                lease.put_off(entry, attempts, retry_at, &error, &delivered_to);
                self.oversized.give_back(document, lease).await?;
                self.tell_failed(document, entry, &error);
                // In an unordered document it holds back none of the others.
                let held = Processed::Held(Hold::Retrying(retry_at));
                Ok((ordering != Ordering::Unordered).then_some(held))
            }
            Outcome::Transient(error) => {
                self.die_oversized(document, lease, entry, DeadReason::AttemptsExhausted, &error).await
            }
            Outcome::Permanent(error) => {
                self.die_oversized(document, lease, entry, DeadReason::Permanent, &error).await
            }
        }
    }

    async fn die_oversized(
        &self,
        document: &DocumentRef,
        mut lease: Lease,
        entry: &Entry,
        reason: DeadReason,
        error: &str,
    ) -> Result<Option<Processed>, Error> {
        lease.die(entry.id, self.clock.now().await?, reason, error);
        self.oversized.give_back(document, lease).await?;
        self.tell_died(document, entry, reason, error);
        Ok(None)
    }
}

/// What each message of a window came to, and the writes that say so.
struct Settling<'a> {
    processor: &'a Processor,
    claim: &'a Claim,
    may_linger: bool,
    delivered: Vec<Uuid>,
    given_back: Vec<&'a Entry>,
    pass: Pass,
    /// Whether it was told that the claim is lost.
    lost: bool,
    /// The first failed write. The others are tried all the same: one trouble must not leave the rest unsettled.
    trouble: Option<Error>,
}

impl<'a> Settling<'a> {
    fn give_back(&mut self, window: &'a [Entry], why: &str) {
        tracing::debug!(document = %self.claim.document, count = window.len(), why, "messages are given back");
        self.given_back.extend(window);
    }

    async fn settle(&mut self, entry: &'a Entry, answer: Answer) {
        match answer.outcome {
            Outcome::Delivered => {
                self.processor.tell_delivered(&self.claim.document, entry);
                self.delivered.push(entry.id);
                self.pass.dispositions.push((entry.id, Disposition::Delivered));
            }
            Outcome::Unavailable(why) => {
                self.processor.vitals.failed(&why);
                tracing::debug!(document = %self.claim.document, why, "no way to deliver now");
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
    fn died(&self) -> bool {
        matches!(self.pass.dispositions.last(), Some((_, Disposition::Dead { .. })))
    }

    fn attempts_left(&self, entry: &Entry) -> bool {
        entry.attempts + 1 < i64::from(self.processor.retry.max_attempts)
    }

    async fn fail(&mut self, entry: &Entry, error: &str, delivered_to: &[String]) {
        let attempts = u32::try_from(entry.attempts + 1).unwrap_or(1);
        let written = match self.processor.clock.now().await {
            Ok(now) => {
                let retry_at = later(now, self.processor.retry.backoff(attempts));
                self.pass.stop(Processed::Held(Hold::Retrying(retry_at)));
                self.processor.claimer.fail(self.claim, entry, retry_at, error, delivered_to).await
            }
            Err(error) => Err(error),
        };
        if self.note(written) {
            self.processor.tell_failed(&self.claim.document, entry, error);
            self.pass.dispositions.push((entry.id, Disposition::Retrying { error: error.into() }));
        }
    }

    async fn die(&mut self, entry: &Entry, reason: DeadReason, error: &str, delivered_to: &[String]) {
        let written = match self.processor.clock.now().await {
            Ok(now) => self.processor.claimer.die(self.claim, entry, now, reason, error, delivered_to).await,
            Err(error) => Err(error),
        };
        if self.note(written) {
            self.processor.tell_died(&self.claim.document, entry, reason, error);
            self.pass.dispositions.push((entry.id, Disposition::Dead { error: error.into() }));
        }
    }

    async fn release(&mut self, entries: &[&Entry], delivered_to: &[String]) {
        let written = match self.processor.clock.now().await {
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
                    self.processor.teller.claim_lost(&self.claim.document);
                }
                self.pass.stop(Processed::Held(Hold::Claimed(self.claim.until)));
                false
            }
            Err(error) => {
                self.trouble.get_or_insert(error);
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
                linger.defer(delivered).err()
            }
            _ => Some(delivered),
        }
    }

    async fn finish(mut self) -> Result<Pass, Error> {
        if let Some(delivered) = self.left_to_clear() {
            match self.processor.clears.clear(&delivered).await {
                Ok(cleared) => _ = self.note(Ok(cleared)),
                Err(error) => {
                    self.processor.teller.not_cleared(&delivered.document, &error);
                    self.pass.stop(Processed::Held(Hold::Claimed(self.claim.until)));
                }
            }
        }
        let given_back = std::mem::take(&mut self.given_back);
        if !given_back.is_empty() {
            self.release(&given_back, &[]).await;
        }
        match self.trouble {
            Some(error) => Err(error),
            None => Ok(self.pass),
        }
    }
}

impl Pass {
    fn new() -> Self {
        Self { stopped: None, cut_short: false, dispositions: Vec::new() }
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

/// Where it is told what happens.
#[derive(Clone)]
struct Teller {
    metrics: Arc<Metrics>,
    events: Events<Event>,
}

impl Teller {
    fn emit(&self, event: Event) {
        self.metrics.record(&event);
        self.events.emit(event);
    }

    fn claim_lost(&self, document: &DocumentRef) {
        tracing::warn!(%document, "a claim ran out while its holder worked; messages may be delivered again");
        self.emit(Event::ClaimLost { document: document.clone() });
    }

    fn not_cleared(&self, document: &DocumentRef, error: &str) {
        tracing::warn!(%document, error, "delivered messages were not cleared; they will be delivered again");
    }
}

/// Telling the world.
impl Processor {
    fn tell(&self, document: &DocumentRef, slots: &[Slot], plan: &Deliverable<'_>) {
        let first = slots.iter().find_map(|slot| match slot {
            Slot::Unreadable(unreadable) => {
                Some(format!("element {}: {}", unreadable.index, unreadable.reason))
            }
            Slot::Entry(_) => None,
        });
        if let Some(reason) = first {
            self.tell_unreadable(document, plan.unreadable, reason);
        }
        if plan.not_mine > 0 {
            tracing::debug!(%document, count = plan.not_mine, "messages are not for this deliverer");
            self.emit(Event::NotMine { document: document.clone(), count: plan.not_mine });
        }
    }

    fn tell_unreadable(&self, document: &DocumentRef, count: usize, reason: String) {
        tracing::warn!(%document, count, reason, "elements of the outbox cannot be read; they are left alone");
        self.emit(Event::Unreadable { document: document.clone(), count, reason });
    }

    fn tell_delivered(&self, document: &DocumentRef, entry: &Entry) {
        tracing::debug!(%document, id = %entry.id, message_type = entry.message_type, "delivered");
        if let (Some(now), Some(since)) = (self.clock.carried_on(), due_since(entry)) {
            self.metrics().lag(until(since, now));
        }
        let (document, id, message_type) = (document.clone(), entry.id, entry.message_type.clone());
        self.emit(Event::Delivered { document, id, message_type });
    }

    fn tell_failed(&self, document: &DocumentRef, entry: &Entry, error: &str) {
        let attempts = entry.attempts + 1;
        self.vitals.failed(error);
        tracing::info!(%document, id = %entry.id, message_type = entry.message_type, attempts, error, "a delivery failed and is tried again");
        let (document, id, message_type) = (document.clone(), entry.id, entry.message_type.clone());
        self.emit(Event::Failed { document, id, message_type, attempts, error: error.into() });
    }

    fn tell_died(&self, document: &DocumentRef, entry: &Entry, reason: DeadReason, error: &str) {
        self.vitals.failed(error);
        tracing::error!(%document, id = %entry.id, message_type = entry.message_type, reason = reason.as_str(), error, "a message was given up; it stays in the document");
        let (document, id, message_type) = (document.clone(), entry.id, entry.message_type.clone());
        self.emit(Event::Died { document, id, message_type, reason, error: error.into() });
    }
}

/// Since when a message, as it was claimed, has been there to be delivered. A schedule is known until the first failure.
fn due_since(entry: &Entry) -> Option<DateTime> {
    let scheduled = entry.available_at.filter(|_| entry.claimed_by.is_none() && entry.attempts == 0);
    entry.created_at.map(|created_at| scheduled.map_or(created_at, |at| at.max(created_at)))
}

fn is_transient(answer: &Answer) -> bool {
    matches!(answer.outcome, Outcome::Transient(_))
}

fn remember(known: &mut Vec<String>, delivered_to: &[String]) {
    if !delivered_to.is_empty() {
        *known = delivered_to.to_vec();
    }
}

fn fail_all(window: &[Envelope], error: &str) -> Vec<Answer> {
    window.iter().map(|_| Outcome::Transient(error.into()).into()).collect()
}

#[cfg(test)]
mod tests {
    use mongodb::bson::{Bson, Document, doc};

    use super::*;
    use crate::entry::read_outbox;

    #[test]
    fn a_message_is_late_from_when_it_was_sent_or_was_due_and_not_from_a_retry_or_a_claim() {
        let at = DateTime::from_millis;
        let since = |extra: Document| {
            let mut entry = doc! { "id": Uuid::new(), "type": "t" };
            entry.extend(extra);
            let slots = read_outbox(Some(&Bson::from(vec![entry]))).unwrap_or_default();
            slots[0].entry().and_then(due_since)
        };
        let sent = |available_at| doc! { "created_at": at(10), "available_at": at(available_at) };
        assert_eq!(since(sent(10)), Some(at(10)));
        assert_eq!(since(sent(50)), Some(at(50)), "scheduled");
        assert_eq!(since(sent(5)), Some(at(10)), "due before it was sent, by another clock");
        let with = |name: &str, value: Bson| {
            let mut entry = sent(50);
            entry.insert(name, value);
            since(entry)
        };
        assert_eq!(with("attempts", 1.into()), Some(at(10)));
        assert_eq!(with("claimed_by", "p/1".into()), Some(at(10)));
        assert_eq!(since(doc! { "available_at": at(50) }), None, "nobody knows");
    }
}
