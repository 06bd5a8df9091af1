//! The processor combines what is needed to deliver a document's messages: access to MongoDB, the deliverer, and the
//! limits. A [`pass`](crate::dispatch::pass) is one run over a document.

use std::{fmt, sync::Arc, time::Duration};

use futures::FutureExt;
use mongodb::{Client, Database, bson::DateTime, error::Error};
use tokio::sync::broadcast;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    deliver::Deliver,
    dispatch::{
        claim::Claimer,
        clears_under_way::{ClearUnderWay, ClearsUnderWay},
        deferred_clears::DeferredClears,
        oversized::Oversized,
        report::Reporter,
        retry::RetryPolicy,
        settings::{Pace, ProcessorSettings},
        unsettled::Unsettled,
    },
    mongo::{Backend, Delivered, Mongo, MongoSettings, StoredOutbox, clock::ServerClock},
    observe::{
        event::Event,
        health::{Health, HealthRecord},
        metrics::{DispatchPath, Metrics},
    },
    stored::{
        deliverable::{Deliverable, DeliveryOrder, Rules, deliverable},
        document_ref::DocumentRef,
        entry::{Entry, Slot},
    },
};

/// Minimum lease. A claim with a shorter lease could expire while the claim is being written.
const SHORTEST_LEASE: Duration = Duration::from_millis(500);
/// Maximum number of entries in a claim. A batch of clears names every entry of its claims and must fit into one
/// command.
const MOST_IN_A_CLAIM: usize = 500;

/// Processes documents. Clones share one queue of clears.
#[derive(Clone)]
pub struct Processor {
    pub(crate) mongo: Mongo,
    pub(crate) claimer: Claimer,
    /// Delivered messages whose clear is deferred to the next save of their document.
    pub(crate) deferred_clears: Option<DeferredClears>,
    /// Clears that no save waits for.
    pub(crate) clears_under_way: ClearsUnderWay,
    pub(crate) deliver: Arc<dyn Deliver>,
    pub(crate) retry: RetryPolicy,
    pub(crate) claim_limit: usize,
    pub(crate) unsettled: Unsettled,
    pub(crate) oversized: Oversized,
    pub(crate) pace: Option<Arc<dyn Pace>>,
    pub(crate) report: Reporter,
    pub(crate) path: DispatchPath,
    /// Cancelled when the last clone is dropped.
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
    /// Creates a processor that works through this client.
    pub fn new(client: Client, deliver: Arc<dyn Deliver>, settings: ProcessorSettings) -> Self {
        Self::worker(Backend::Server(client), deliver, settings)
    }

    /// Creates the processor of a worker.
    pub(crate) fn worker(backend: Backend, deliver: Arc<dyn Deliver>, settings: ProcessorSettings) -> Self {
        Self::on(DispatchPath::Dispatcher, backend, deliver, settings, None)
    }

    /// Creates the processor of an inline dispatcher. Delivered messages may stay in their documents for the time
    /// `defer_clears`.
    pub(crate) fn inline(
        backend: Backend,
        deliver: Arc<dyn Deliver>,
        settings: ProcessorSettings,
        capacity: usize,
        defer_clears: Duration,
    ) -> Self {
        let mut processor = Self::on(DispatchPath::Inline, backend, deliver, settings, Some(capacity));
        // With a longer time, a clear could come after its claim has ended.
        let defer_clears = defer_clears.min(processor.claimer.lease / 4);
        if !defer_clears.is_zero() {
            processor.deferred_clears = Some(processor.defer_clears(defer_clears));
        }
        processor
    }

    /// Creates deferred clears that wait up to `time` for the next save of their document.
    fn defer_clears(&self, time: Duration) -> DeferredClears {
        let (mongo, report) = (self.mongo.clone(), self.report.clone());
        DeferredClears::start(time, move |delivered| {
            clear_deferred(mongo.clone(), report.clone(), delivered).boxed()
        })
    }

    fn on(
        path: DispatchPath,
        backend: Backend,
        deliver: Arc<dyn Deliver>,
        settings: ProcessorSettings,
        capacity: Option<usize>,
    ) -> Self {
        let metrics = Arc::new(Metrics::register(path));
        let gone = CancellationToken::new();
        let ProcessorSettings {
            name,
            claim_lease,
            claim_limit,
            retry,
            counts_claims,
            state_database,
            group_commit,
            max_repeats,
            memory_bytes,
        } = settings;
        let lease = claim_lease.max(SHORTEST_LEASE);
        let asked = MongoSettings { group_commit, memory_bytes, lease };
        let mongo = Mongo::start(backend, &asked, metrics.claims_lost.clone());

        Self {
            oversized: Oversized::new(mongo.clone(), &state_database, lease),
            unsettled: Unsettled::most(max_repeats),
            deferred_clears: None,
            clears_under_way: ClearsUnderWay::default(),
            claimer: Claimer { mongo: mongo.clone(), name, lease, counts_claims },
            mongo,
            deliver,
            retry,
            claim_limit: claim_limit.clamp(1, MOST_IN_A_CLAIM),
            pace: None,
            path,
            report: Reporter::new(metrics.clone(), HealthRecord::new(metrics, capacity)),
            _last: Arc::new(gone.clone().drop_guard()),
            gone,
        }
    }

    /// Limits the delivery rate.
    #[must_use]
    pub fn paced(mut self, pace: Arc<dyn Pace>) -> Self {
        self.pace = Some(pace);
        self
    }

    /// Subscribes to the events that are published from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.report.subscribe()
    }

    /// The deliverer.
    pub fn deliverer(&self) -> &Arc<dyn Deliver> {
        &self.deliver
    }

    /// The MongoDB client that the processor works with.
    pub fn client(&self) -> &Client {
        self.mongo.client()
    }

    /// The database of leases and positions.
    pub fn state_database(&self) -> Database {
        self.mongo.database(self.oversized.database())
    }

    /// The clock that follows the server's time, from which all dates in an outbox come.
    pub fn clock(&self) -> &ServerClock {
        self.mongo.clock()
    }

    /// Returns a handle that reports the processor's health, for your own health endpoint. The handle stays valid for
    /// the life of the process.
    pub fn health(&self) -> Health {
        Health::of(self.vitals())
    }

    pub(crate) fn vitals(&self) -> &Arc<HealthRecord> {
        self.report.vitals()
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        self.report.metrics()
    }

    /// Publishes an event to subscribers and counts it.
    pub(crate) fn emit(&self, event: Event) {
        self.report.emit(event);
    }

    /// The deferred clears. `None` if delivered messages are cleared at once.
    pub(crate) fn deferred_clears(&self) -> Option<&DeferredClears> {
        self.deferred_clears.as_ref()
    }

    /// Carries out a clear that a delivery has left to its caller.
    pub(crate) async fn clear(&self, clear: &ClearUnderWay) {
        let delivered = clear.delivered();
        let outcome = self.mongo.clear(delivered).await;
        self.report.cleared(&delivered.document, &outcome);
    }

    /// Whether the deliverer is available now.
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

    pub(crate) fn plan<'a>(
        &self,
        slots: &'a [Slot],
        ordering: DeliveryOrder,
        now: DateTime,
    ) -> Deliverable<'a> {
        let serves = |via: Option<&str>| self.deliver.serves(via);
        deliverable(slots, Rules { now, ordering, limit: self.claim_limit, serves: &serves })
    }
}

/// Clears messages of several documents, and reports those that were not cleared.
async fn clear_deferred(mongo: Mongo, report: Reporter, delivered: Vec<Delivered>) {
    let outcomes = mongo.clear_all(&delivered).await;
    for (Delivered { document, .. }, outcome) in delivered.iter().zip(outcomes) {
        report.cleared(document, &outcome);
    }
}
