//! The test kit.

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
    sync::Arc,
    time::Duration,
};

use mongodb::{
    Database, Namespace,
    bson::{Bson, DateTime, Document},
    options::UpdateModifications,
};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::{
    left::{LeftMessage, MessageState, left_in},
    recorder::Recorder,
};
use crate::{
    Aggregate, InlineDispatcher, Store,
    deliver::{Deliver, Outcome},
    dispatch::{Processed, Processor},
    encoding::codec,
    mongo::{
        clock::{later, until},
        error_codes,
        in_memory::{InMemory, fault::SaveFault},
    },
    stored::{deliverable::DeliveryOrder, document_ref::DocumentRef, entry::read_outbox_of},
};

/// The name of the database that has the kit's collections.
const DATABASE: &str = "in_memory";
/// Number of the last deliveries whose types an error shows.
const SHOWN: usize = 6;

/// An in-memory database with an inline dispatcher, a worker, a [`Recorder`] and a time that is advanced by hand. See
/// the [module's](crate::testing) example. Clones share everything.
#[derive(Clone)]
pub struct Kit {
    parts: Arc<KitParts>,
    /// The order of messages in the collections that have a store.
    orderings: Arc<Mutex<BTreeMap<String, DeliveryOrder>>>,
}

pub(super) struct KitParts {
    pub(super) database: InMemory,
    pub(super) recorder: Recorder,
    pub(super) inline: InlineDispatcher,
    /// Delivers as a worker does.
    pub(super) worker: Processor,
    pub(super) most_deliveries: usize,
}

/// A document with messages that are due.
struct DueDocument {
    document: DocumentRef,
    ordering: DeliveryOrder,
    /// The bytes of the document, with its namespace.
    bytes: Vec<u8>,
}

/// Why messages that are due could not all be delivered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NotQuiet {
    /// There were too many deliveries. Messages probably cause each other without an end.
    #[error("not quiet after {deliveries} deliveries; the types of the last messages are {types:?}")]
    TooManyDeliveries {
        /// Number of deliveries.
        deliveries: usize,
        /// The types of the last messages.
        types: Vec<String>,
    },
    /// The destination is unavailable.
    #[error("the destination is unavailable, so the messages of {document} cannot be delivered")]
    Unavailable {
        /// A document that has due messages.
        document: DocumentRef,
    },
    /// The database refused a statement.
    #[error("the delivery of the messages of {document} failed")]
    Failed {
        /// The document.
        document: DocumentRef,
        /// The reason.
        source: mongodb::error::Error,
    },
}

impl fmt::Debug for Kit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kit").field("now", &self.now()).finish_non_exhaustive()
    }
}

impl Kit {
    pub(super) fn of(parts: KitParts) -> Self {
        Self { parts: Arc::new(parts), orderings: Arc::default() }
    }

    /// Creates a store for a collection of the in-memory database.
    #[must_use]
    pub fn store<T: Aggregate>(&self, collection: &str) -> Store<T> {
        self.orderings.lock().insert(collection.to_owned(), T::ORDERING);
        Store::new(self.database().collection::<Document>(collection), self.inline())
    }

    /// The database of the stores, for code that creates its stores itself: `Store::new(database.collection("orders"),
    /// inline)`. Any other use of its collections fails, because there is no server. Create the stores of aggregates
    /// that are not [`Ordered`](DeliveryOrder::Ordered) with [`store`](Self::store), so that the worker knows their
    /// order.
    #[must_use]
    pub fn database(&self) -> Database {
        self.parts.database.client().database(DATABASE)
    }

    /// The inline dispatcher, which all stores of the kit share.
    #[must_use]
    pub fn inline(&self) -> &InlineDispatcher {
        &self.parts.inline
    }

    /// The deliverer, which records every delivery and can fail.
    #[must_use]
    pub fn recorder(&self) -> &Recorder {
        &self.parts.recorder
    }

    /// Passes messages on to the application's own deliverer, such as [`Handlers`](crate::deliver::Handlers). See
    /// [`Recorder::deliver_to`].
    ///
    /// # Panics
    /// If messages are already passed on to a deliverer.
    pub fn deliver_to(&self, deliver: impl Deliver) {
        self.recorder().deliver_to(deliver);
    }

    /// The time of the database.
    #[must_use]
    pub fn now(&self) -> DateTime {
        self.parts.database.time().now()
    }

    /// Advances the time of the database. Delivers nothing by itself; see [`until_quiet`](Self::until_quiet).
    pub fn advance(&self, time: Duration) {
        self.parts.database.time().advance(time);
    }

    /// Adds a fault for the next save, insert or delete of a store. Several faults apply to several saves, in order.
    pub fn fail_next_save(&self, fault: SaveFault) {
        self.parts.database.fail_save(fault);
    }

    /// Makes the next clear fail, as if the process died between a delivery and its clear. The message is delivered
    /// again once its claim has ended: after the inline lease for a save's own delivery, or after 60 s for a worker's.
    pub fn fail_next_clear(&self) {
        self.parts.database.fail_clear();
    }

    /// Delivers all messages that are due, as rescuer and dispatcher would, and the messages that these deliveries
    /// cause. Waits for the deliveries of the inline dispatcher. Doesn't advance the time.
    ///
    /// A document that a delivery leaves as it was is not tried again. It causes no error, even if one of its messages
    /// appears due: for example, a message whose `via` is unknown to the kit's deliverer.
    /// [`assert_nothing_left`](Self::assert_nothing_left) reports such messages.
    ///
    /// # Errors
    /// [`NotQuiet`], if there were too many deliveries, the destination is unavailable, or the database refused a statement.
    pub async fn until_quiet(&self) -> Result<(), NotQuiet> {
        let recorder = self.recorder();
        let most = recorder.tries() + self.parts.most_deliveries;
        tokio::select! {
            biased;
            () = recorder.reach(most) => Err(self.too_many()),
            quiet = self.dispatch_all() => quiet,
        }
    }

    /// Advances the time step by step, and delivers at each step the messages that are due then.
    ///
    /// # Errors
    /// [`NotQuiet`], for the same reasons as [`until_quiet`](Self::until_quiet) at one of the steps.
    pub async fn run_for(&self, time: Duration) -> Result<(), NotQuiet> {
        let end = later(self.now(), time);
        loop {
            self.until_quiet().await?;
            let now = self.now();
            let Some(next) = self.next_due().filter(|at| *at <= end) else {
                self.advance(until(now, end));
                return Ok(());
            };
            self.advance(until(now, next));
        }
    }

    /// Delivers each message again that was delivered so far, once and in the same order, as after a crash between the
    /// delivery and the clear. Returns the outcomes. A receiver must tolerate such repeats.
    pub async fn redeliver(&self) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        for envelope in self.recorder().delivered() {
            let answers = self.recorder().deliver(&[envelope]).await;
            outcomes.extend(answers.into_iter().map(|answer| answer.outcome));
        }
        outcomes
    }

    /// The messages that are left in the documents of all collections.
    #[must_use]
    pub fn left(&self) -> Vec<LeftMessage> {
        let now = self.now();
        let mut left = Vec::new();
        for (namespace, document) in self.all_documents() {
            left.extend(left_in(&namespace, &document, now));
        }
        left
    }

    /// Checks that no message is left in a document.
    ///
    /// # Panics
    /// If a message is left. The text lists every such message with its state.
    #[track_caller]
    pub fn assert_nothing_left(&self) {
        let left: Vec<String> = self.left().iter().map(|message| format!("\n  {message}")).collect();
        assert!(left.is_empty(), "{} messages are left:{}", left.len(), left.concat());
    }

    /// A stored document. `None` if there is no document with this `_id`.
    #[must_use]
    pub fn document(&self, collection: &str, id: impl Into<Bson>) -> Option<Document> {
        let id = id.into();
        self.documents(collection).into_iter().find(|document| document.get("_id") == Some(&id))
    }

    /// The stored documents of a collection, in the order of their inserts.
    #[must_use]
    pub fn documents(&self, collection: &str) -> Vec<Document> {
        self.parts.database.documents(&Namespace::new(DATABASE, collection))
    }

    /// Inserts a document as another program would, for example one from before the library was in use.
    ///
    /// # Errors
    /// The error that a server would report, if it would refuse the document.
    pub fn insert_one(&self, collection: &str, document: Document) -> Result<(), mongodb::error::Error> {
        self.parts.database.insert_own(&Namespace::new(DATABASE, collection), document)
    }

    /// Executes an update of the application's own, such as one with
    /// [staged messages](crate::store::StagedMessages::onto). Returns the number of documents that matched.
    ///
    /// # Errors
    /// The error that a server would report, or an error that names an operator that only a server interprets.
    #[allow(clippy::needless_pass_by_value, reason = "the arguments are the same as the driver's")]
    pub fn update_one(
        &self,
        collection: &str,
        filter: Document,
        update: impl Into<UpdateModifications>,
    ) -> Result<u64, mongodb::error::Error> {
        let update = codec::encode_value(&update.into())
            .map_err(|error| error_codes::unencodable(error.to_string()))?;
        self.parts.database.update_own(&Namespace::new(DATABASE, collection), &filter, &update)
    }

    async fn dispatch_all(&self) -> Result<(), NotQuiet> {
        let KitParts { inline, worker, most_deliveries, .. } = &*self.parts;
        let stop = CancellationToken::new();
        let mut processed = HashSet::new();
        for _round in 0..=*most_deliveries {
            inline.idle().await;
            // A document that stays as it was has nothing to deliver now, although its messages seem due: for example,
            // if the time of their retry is kept with a lease.
            let mut due = self.documents_with_due_messages();
            due.retain(|due| processed.insert(due.bytes.clone()));
            if due.is_empty() {
                return Ok(());
            }

            for DueDocument { document, ordering, .. } in due {
                match worker.process(&document, ordering, &stop).await {
                    Ok(Processed::Unavailable) => return Err(NotQuiet::Unavailable { document }),
                    Ok(_) => {}
                    Err(source) => return Err(NotQuiet::Failed { document, source }),
                }
            }
        }
        Err(self.too_many())
    }

    fn too_many(&self) -> NotQuiet {
        let deliveries = self.recorder().deliveries();
        let last = deliveries.iter().rev().take(SHOWN).rev();
        let types = last.map(|delivery| delivery.envelope.message_type.clone()).collect();
        NotQuiet::TooManyDeliveries { deliveries: self.parts.most_deliveries, types }
    }

    fn documents_with_due_messages(&self) -> Vec<DueDocument> {
        let (now, orderings) = (self.now(), self.orderings.lock().clone());
        let mut due = Vec::new();
        for (namespace, document) in self.all_documents() {
            let Ok(raw) = codec::encode(&document) else { continue };
            let Ok(slots) = read_outbox_of(&raw) else { continue };
            let ordering = orderings.get(&namespace.coll).copied().unwrap_or_default();
            if self.parts.worker.plan(&slots, ordering, now).is_work()
                && let Some(document) = DocumentRef::of_stored(namespace, &raw)
            {
                let bytes = [&document.map_key(), raw.as_bytes()].concat();
                due.push(DueDocument { document, ordering, bytes });
            }
        }
        due
    }

    /// The next time at which a message becomes due.
    fn next_due(&self) -> Option<DateTime> {
        let times = self.left().into_iter().filter_map(|message| match message.state {
            MessageState::Scheduled(at) | MessageState::Retrying(at) | MessageState::Claimed(at) => Some(at),
            MessageState::Due | MessageState::Dead(_) | MessageState::Malformed(_) => None,
        });
        times.min()
    }

    fn all_documents(&self) -> Vec<(Namespace, Document)> {
        let KitParts { database, worker, .. } = &*self.parts;
        let mut documents = database.all_documents();
        documents.retain(|(namespace, _)| namespace.db != worker.state_database().name());
        documents
    }
}
