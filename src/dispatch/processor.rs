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
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use futures::FutureExt;
use mongodb::{
    Client, Database,
    bson::{DateTime, Uuid},
    error::Error,
};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{Instrument, Span};

use crate::{
    deliver::Deliver,
    dispatch::{
        claim::{Claimed, Claimer},
        deferred_clears::Linger,
        oversized::Oversized,
        report::Reporter,
        retry::RetryPolicy,
        unsettled::Unsettled,
    },
    mongo::{ClearOutcome, Delivered, Mongo, MongoSettings, StoredOutbox, clock::ServerClock, error_codes},
    observe::{
        event::{Event, Events},
        health::{Health, Vitals},
        metrics::{Metrics, Path},
        trace,
    },
    stored::{
        deliverable::{Deliverable, DeliveryOrder, Hold, Rules, deliverable},
        document_ref::DocumentRef,
        entry::{DeadReason, Entry, Slot},
        memory::weight_of_claim,
    },
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
    /// At most this many messages are published and not yet cleared. So many at most a process repeats that is killed. Default
    /// 256, at least 1.
    pub max_repeats: usize,
    /// At most this many bytes of outboxes are in memory, estimated with what they take beside their stored bytes. One document
    /// that needs more is processed alone. Default 64 MiB.
    pub memory_bytes: usize,
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
            max_repeats: 256,
            memory_bytes: 64 << 20,
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
    pub(crate) mongo: Mongo,
    pub(crate) claimer: Claimer,
    /// Where delivered messages wait for the next save of their document.
    pub(crate) linger: Option<Linger>,
    pub(crate) deliver: Arc<dyn Deliver>,
    pub(crate) retry: RetryPolicy,
    pub(crate) claim_limit: usize,
    pub(crate) unsettled: Unsettled,
    pub(crate) oversized: Oversized,
    pace: Option<Arc<dyn Pace>>,
    pub(crate) report: Reporter,
    pub(crate) path: Path,
    /// Cancelled once the last clone is gone.
    gone: CancellationToken,
    _last: Arc<DropGuard>,
}

impl fmt::Debug for Processor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Processor")
            .field("retry", &self.retry)
            .field("claim_limit", &self.claim_limit)
            .finish_non_exhaustive()
    }
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
            let (mongo, report) = (processor.mongo.clone(), processor.report.clone());
            processor.linger = Some(Linger::start(clear_within, move |delivered| {
                let (mongo, report) = (mongo.clone(), report.clone());
                async move {
                    let outcomes = mongo.clear_all(&delivered).await;
                    for (Delivered { document, .. }, outcome) in delivered.iter().zip(outcomes) {
                        match outcome {
                            ClearOutcome::Done => {}
                            ClearOutcome::ClaimLost => report.claim_lost(document),
                            ClearOutcome::Failed(error) => report.not_cleared(document, &error),
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
            max_repeats,
            memory_bytes,
        } = settings;
        let lease = lease.max(SHORTEST_LEASE);
        let asked = MongoSettings { group_commit, memory_bytes, lease };
        let mongo = Mongo::start(client, clock, &asked, metrics.claims_lost.clone());
        Self {
            oversized: Oversized::new(mongo.clone(), &state_database, lease),
            unsettled: Unsettled::most(max_repeats),
            linger: None,
            claimer: Claimer { mongo: mongo.clone(), name, lease, counts_claims },
            mongo,
            deliver,
            retry,
            claim_limit: claim_limit.clamp(1, MOST_IN_A_CLAIM),
            pace: None,
            path,
            report: Reporter::new(metrics.clone(), Vitals::new(metrics, capacity)),
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
        self.report.events()
    }

    /// Where messages go.
    pub fn deliverer(&self) -> &Arc<dyn Deliver> {
        &self.deliver
    }

    /// The client of the database that it works on.
    pub fn client(&self) -> &Client {
        self.mongo.client()
    }

    /// The database of leases and positions.
    pub fn state_database(&self) -> Database {
        self.mongo.database(self.oversized.database())
    }

    /// The server's time, by which everything in an outbox is dated.
    pub fn clock(&self) -> &ServerClock {
        self.mongo.clock()
    }

    /// How it stands, for as long as the process runs: for a health endpoint of your own.
    pub fn health(&self) -> Health {
        Health::of(self.vitals())
    }

    pub(crate) fn vitals(&self) -> &Arc<Vitals> {
        self.report.vitals()
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        self.report.metrics()
    }

    /// Announces and counts an event.
    pub(crate) fn emit(&self, event: Event) {
        self.report.emit(event);
    }

    /// Where delivered messages wait for the next save of their document; none where they are cleared at once.
    pub(crate) fn linger(&self) -> Option<&Linger> {
        self.linger.as_ref()
    }

    /// Whether there is a way to deliver now.
    pub(crate) fn is_available(&self) -> bool {
        let available = self.deliver.is_available();
        if !available {
            self.vitals().circuit_opened(&self.deliver, self.gone.clone());
        }
        available
    }

    /// Reads a document's outbox.
    pub(crate) async fn read(&self, document: &DocumentRef) -> Result<StoredOutbox, Error> {
        self.mongo.read_outbox(document).await
    }

    pub(crate) fn delivered(&self, document: &DocumentRef, entry: &Entry) {
        self.report.delivered(document, entry, self.mongo.clock().carried_on());
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
        ordering: DeliveryOrder,
        stop: &CancellationToken,
    ) -> Result<Processed, Error> {
        let _in_flight = self.vitals().enter();
        let span = trace::dispatch(document, self.path);
        let process = async {
            let processed = self.process_into(document, ordering, stop, &mut Vec::new()).await;
            if let Err(error) = &processed {
                self.vitals().failed(&error_codes::describe(error));
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
        ordering: DeliveryOrder,
        stop: &CancellationToken,
        dispositions: &mut Vec<(Uuid, Disposition)>,
    ) -> Result<Processed, Error> {
        let mut looks = Looks::default();
        loop {
            let step = self.look_and_deliver(document, ordering, stop, &mut looks, dispositions).await?;
            match step {
                Step::Ended(processed) => return Ok(processed),
                Step::LookAgain => {}
            }
        }
    }

    /// Reads a document's outbox and delivers one claim of it.
    async fn look_and_deliver(
        &self,
        document: &DocumentRef,
        ordering: DeliveryOrder,
        stop: &CancellationToken,
        looks: &mut Looks,
        dispositions: &mut Vec<(Uuid, Disposition)>,
    ) -> Result<Step, Error> {
        if stop.is_cancelled() {
            return Ok(Step::Ended(Processed::Interrupted));
        }
        if !self.is_available() {
            return Ok(Step::Ended(Processed::Unavailable));
        }

        // It may wait for room; a stop does not.
        let Some(read) = stop.run_until_cancelled(self.read(document)).await else {
            return Ok(Step::Ended(Processed::Interrupted));
        };
        // Read after that wait: a claim holds from this time on.
        let now = self.mongo.clock().now().await?;
        let (slots, mut room) = match read? {
            StoredOutbox::Entries { slots, room } => (slots, room),
            StoredOutbox::Gone => return Ok(Step::Ended(Processed::Gone)),
            StoredOutbox::Malformed(reason) => {
                self.report.unreadable(document, 1, reason.to_string());
                return Ok(Step::Ended(Processed::Done));
            }
        };

        let chosen = match self.choose(document, &slots, ordering, now, stop, looks).await? {
            Choice::Claim(chosen) => chosen,
            Choice::Step(step) => return Ok(step),
        };
        // Nothing else of the outbox stays in memory.
        let entries = entries_of(slots, &chosen.ids);
        room.shrink_to(weight_of_claim(&entries, self.window_bytes(ordering)));
        let wanted = entries.len();

        let claim = match self.claimer.claim(document, entries, now).await? {
            Claimed::Held(claim) if !claim.entries.is_empty() => claim,
            Claimed::Held(_) | Claimed::Lost if looks.races < RACES => {
                looks.races += 1;
                return Ok(Step::LookAgain);
            }
            Claimed::Held(_) | Claimed::Lost => {
                return Ok(Step::Ended(Processed::Held(Hold::Claimed(now))));
            }
            Claimed::NoRoom => {
                drop(room);
                let processed = self.process_oversized(document, ordering, stop).await?;
                if processed.is_none() {
                    looks.permits = 0;
                }
                return Ok(processed.map_or(Step::LookAgain, Step::Ended));
            }
        };
        looks.permits = 0;

        let complete = !chosen.more && !chosen.held && claim.entries.len() == wanted;
        let pass = self.deliver_claim(&claim, ordering, stop, false).await;
        dispositions.extend(pass.dispositions);
        if let Some(error) = pass.trouble {
            return Err(error);
        }
        Ok(match pass.stopped {
            // In an unordered document, one that waits for its retry holds back none of those not yet claimed.
            Some(Processed::Held(Hold::Retrying(_)))
                if chosen.more && ordering == DeliveryOrder::Unordered =>
            {
                Step::LookAgain
            }
            Some(processed) => Step::Ended(processed),
            None if complete && !pass.cut_short => Step::Ended(Processed::Done),
            None => Step::LookAgain,
        })
    }

    /// Decides what of an outbox is claimed now, as far as the pace allows.
    async fn choose(
        &self,
        document: &DocumentRef,
        slots: &[Slot],
        ordering: DeliveryOrder,
        now: DateTime,
        stop: &CancellationToken,
        looks: &mut Looks,
    ) -> Result<Choice, Error> {
        let plan = self.plan(slots, ordering, now);
        if !std::mem::replace(&mut looks.told, true) {
            self.report.left_alone(document, slots, &plan);
        }

        if let Some(entry) = plan.crashed.filter(|_| plan.entries.is_empty()) {
            if !self.die_crashed(document, entry, now).await? {
                looks.races += 1;
            }
            return Ok(Choice::Step(if looks.races > RACES {
                Step::Ended(Processed::Held(Hold::Claimed(now)))
            } else {
                Step::LookAgain
            }));
        }
        if plan.entries.is_empty() {
            let processed = plan.held.map_or(Processed::Done, Processed::Held);
            return Ok(Choice::Step(Step::Ended(processed)));
        }

        let mut count = plan.entries.len();
        if let Some(pace) = &self.pace {
            let asked = Instant::now();
            if looks.permits == 0 {
                looks.permits = stop.run_until_cancelled(pace.permits(count)).await.unwrap_or(0);
            }
            if looks.permits == 0 {
                return Ok(Choice::Step(Step::Ended(Processed::Interrupted)));
            }
            if asked.elapsed() > STALE {
                return Ok(Choice::Step(Step::LookAgain));
            }
            count = count.min(looks.permits);
        }
        Ok(Choice::Claim(Chosen {
            ids: plan.entries[..count].iter().map(|entry| entry.id).collect(),
            more: plan.more || count < plan.entries.len(),
            held: plan.held.is_some(),
        }))
    }

    pub(crate) fn plan<'a>(
        &self,
        slots: &'a [Slot],
        ordering: DeliveryOrder,
        now: DateTime,
    ) -> Deliverable<'a> {
        let serves = |via: Option<&str>| self.deliver.serves(via);
        deliverable(slots, Rules { now, ordering, limit: self.claim_limit, serves: &serves })
    }

    /// False when somebody else changed the entry meanwhile.
    async fn die_crashed(&self, document: &DocumentRef, entry: &Entry, now: DateTime) -> Result<bool, Error> {
        let died = self.claimer.die_crashed(document, entry, now).await?;
        if died {
            self.report.died(document, entry, DeadReason::Crashed, "its claimers ended without an answer");
        }
        Ok(died)
    }
}

/// What is remembered from one look at a document to the next.
#[derive(Default)]
struct Looks {
    /// Claims that others were faster with.
    races: usize,
    /// Whether what is odd about the outbox has been reported.
    told: bool,
    /// What the pace has allowed and was not used.
    permits: usize,
}

/// What follows a look.
enum Step {
    Ended(Processed),
    LookAgain,
}

enum Choice {
    Claim(Chosen),
    Step(Step),
}

/// What is to be claimed.
struct Chosen {
    ids: Vec<Uuid>,
    /// More could be delivered, but not in this claim.
    more: bool,
    /// Something else is held back.
    held: bool,
}

/// The entries with these ids, in their order.
fn entries_of(slots: Vec<Slot>, ids: &[Uuid]) -> Vec<Entry> {
    let mut entries = Vec::with_capacity(ids.len());
    for slot in slots {
        if let Slot::Entry(entry) = slot
            && ids.contains(&entry.id)
        {
            entries.push(*entry);
        }
    }
    entries
}
