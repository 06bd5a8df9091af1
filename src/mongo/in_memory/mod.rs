//! The in-memory back end of the test kit. It executes the statements that would be sent to a MongoDB server.
//!
//! # Flow
//! A statement is encoded as for a server. This module decodes the encoded statement, and interprets its filter, its
//! update and its array filters. So a test with this back end also tests the statements of the product.
//!
//! # Guarantees
//! - A statement is executed completely or not at all, and no other statement is executed at the same time.
//! - A statement with an operator that is not interpreted is refused with an error that names the operator.
//!
//! # Caveats
//! There is one server, every write is durable at once, and read concerns make no difference. Values that a
//! [`Document`] can't represent, such as text that is not UTF-8, are refused or lost.

mod assign;
mod compare;
mod documents;
mod expression;
pub(crate) mod fault;
mod filter;
mod operation;
mod path;
mod pipeline;
mod projection;
mod refused;
pub(crate) mod time;
mod update;

use std::{collections::VecDeque, fmt, sync::Arc, time::Duration};

use mongodb::{
    Client, Namespace,
    bson::{Bson, DateTime, Document, RawDocument, RawDocumentBuf, doc},
    error::Error,
    options::{ClientOptions, ReadConcern},
};
use parking_lot::{Mutex, MutexGuard};
use tokio::task::yield_now;

use self::{
    documents::{Documents, Matched, UpdateParts},
    fault::SaveFault,
    projection::projected,
    refused::Refused,
    time::ManualTime,
};
use crate::{
    encoding::codec,
    mongo::{
        clears, error_codes,
        reads::StoredOutbox,
        statement::{ClearOutcome, Delete, Delivered, Find, Insert, Update, Upsert, WriteOutcome},
        write_command::UpdateStatement,
    },
    stored::{
        document_ref::DocumentRef,
        entry::{ETAG, OUTBOX},
        filter::Filter,
        ids::new_random,
        memory::{Memory, REPLY, weight_of},
    },
};

const ID: &str = "_id";
/// The driver shows the name of the replica set in the error of every operation that finds no server.
const NO_SERVER: &str = "none, because this is the in-memory database of the test kit: use a real MongoDB server to test raw access to collections, sessions and transactions";
/// An operation on the client fails after this time.
const FAILS_AFTER: Duration = Duration::from_millis(1);

/// An in-memory database. Clones share the documents and the time.
#[derive(Clone)]
pub(crate) struct InMemory {
    /// A client without a server. Every operation on it fails, with an error that explains why.
    client: Client,
    time: ManualTime,
    state: Arc<Mutex<DatabaseState>>,
}

#[derive(Default)]
struct DatabaseState {
    documents: Documents,
    /// The faults of the next saves, in order.
    save_faults: VecDeque<SaveFault>,
    /// Number of clears that will fail.
    failing_clears: usize,
}

/// A decoded write.
enum Write {
    Insert(Document),
    Update { filter: Document, update: Bson, array_filters: Vec<Document> },
    Delete { filter: Document },
}

impl fmt::Debug for InMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InMemory").field("now", &self.time.now()).finish_non_exhaustive()
    }
}

impl InMemory {
    /// Creates an empty database. Must be called inside a tokio runtime.
    pub(crate) fn new(time: ManualTime) -> Result<Self, Error> {
        let options = ClientOptions::builder()
            .hosts(Vec::new())
            .repl_set_name(NO_SERVER.to_owned())
            .server_selection_timeout(FAILS_AFTER)
            .build();
        Ok(Self { client: Client::with_options(options)?, time, state: Arc::default() })
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    pub(crate) fn time(&self) -> &ManualTime {
        &self.time
    }

    fn lock(&self) -> MutexGuard<'_, DatabaseState> {
        self.state.lock()
    }

    /// Adds a fault for the next save that has no fault yet.
    pub(crate) fn fail_save(&self, fault: SaveFault) {
        self.lock().save_faults.push_back(fault);
    }

    /// Makes the next clear fail. The delivered messages stay in their document until their claim ends.
    pub(crate) fn fail_clear(&self) {
        self.lock().failing_clears += 1;
    }

    /// The documents of a collection, in the order of their inserts.
    pub(crate) fn documents(&self, namespace: &Namespace) -> Vec<Document> {
        self.lock().documents.of(namespace).to_vec()
    }

    /// The documents of all collections.
    pub(crate) fn all_documents(&self) -> Vec<(Namespace, Document)> {
        self.lock().documents.all()
    }

    /// Inserts a document of the application.
    pub(crate) fn insert_own(&self, namespace: &Namespace, document: Document) -> Result<(), Error> {
        Ok(self.lock().documents.insert(namespace, document)?)
    }

    /// Executes an update of the application, with operators or with stages, on one document. Returns the number of documents that matched.
    pub(crate) fn update_own(
        &self,
        namespace: &Namespace,
        filter: &Document,
        update: &Bson,
    ) -> Result<u64, Error> {
        let parts = UpdateParts { filter, update, array_filters: &[] };
        let matched = self.lock().documents.update(namespace, &parts, self.time.now())?;
        Ok(u64::from(matched != Matched::Nothing))
    }

    pub(crate) async fn insert(&self, insert: Insert) -> WriteOutcome {
        match decoded(&insert.document) {
            Ok(document) => self.write(&insert.namespace, &Write::Insert(document)).await,
            Err(refused) => WriteOutcome::Failed(refused.into()),
        }
    }

    pub(crate) async fn update(&self, update: Update) -> WriteOutcome {
        let statement = match codec::encode(&UpdateStatement::of(&update)) {
            Ok(statement) => statement,
            Err(error) => return WriteOutcome::Failed(error_codes::unencodable(error.to_string())),
        };
        match Write::update(&statement) {
            Ok(write) => self.write(&update.namespace, &write).await,
            Err(refused) => WriteOutcome::Failed(refused.into()),
        }
    }

    pub(crate) async fn delete(&self, delete: Delete) -> WriteOutcome {
        match plain(&delete.filter) {
            Ok(filter) => self.write(&delete.namespace, &Write::Delete { filter }).await,
            Err(refused) => WriteOutcome::Failed(refused.into()),
        }
    }

    pub(crate) async fn upsert(&self, upsert: Upsert) -> Result<Option<Document>, Error> {
        yield_now().await;
        let Upsert { namespace, filter, update } = upsert;
        let after = self.lock().documents.upsert(&namespace, &filter, &update.into(), self.time.now())?;
        Ok(Some(after))
    }

    pub(crate) async fn find(&self, find: Find<'_>) -> Result<Option<RawDocumentBuf>, Error> {
        yield_now().await;
        let filter = plain(&find.filter)?;
        let state = self.lock();
        let now = self.time.now();
        let Some(document) = state.documents.find(find.namespace, &filter, now)? else { return Ok(None) };
        let found = match &find.projection {
            Some(projection) => &projected(projection, document, now)?,
            None => document,
        };
        match codec::encode(found) {
            Ok(found) => Ok(Some(found)),
            Err(error) => Err(error_codes::unencodable(error.to_string())),
        }
    }

    /// Reads a document's outbox. Waits for memory, so the caller must not have reserved any.
    pub(crate) async fn read_outbox(
        &self,
        document: &DocumentRef,
        memory: &Memory,
    ) -> Result<StoredOutbox, Error> {
        let mut room = memory.reserve(REPLY).await;
        let filter = document.select(Document::new());
        let projection = Some(doc! { OUTBOX: 1 });
        let find = Find { namespace: &document.namespace, filter, projection, concern: ReadConcern::local() };
        let Some(raw) = self.find(find).await? else { return Ok(StoredOutbox::Gone) };
        room.shrink_to(weight_of(&raw));
        Ok(StoredOutbox::read(&raw, room))
    }

    pub(crate) async fn clear(&self, delivered: &Delivered) -> ClearOutcome {
        yield_now().await;
        let (namespace, statement) = (&delivered.document.namespace, clears::statement_of(delivered));
        let mut state = self.lock();
        if state.failing_clears > 0 {
            state.failing_clears -= 1;
            return ClearOutcome::Failed("the test made this clear fail".into());
        }

        let cleared = Write::update(&statement).and_then(|write| state.apply(namespace, &write, &self.time));
        match cleared {
            Ok(Matched::Unchanged) if !delivered.overtaken.may_be() => ClearOutcome::ClaimLost,
            Ok(_) => ClearOutcome::Done,
            Err(refused) => ClearOutcome::Failed(refused.to_string()),
        }
    }

    async fn write(&self, namespace: &Namespace, write: &Write) -> WriteOutcome {
        // Other tasks run during a write to a server.
        yield_now().await;

        let mut state = self.lock();
        let fault = if write.is_of_store() { state.take_fault(write) } else { None };
        let no_answer = || error_codes::lost("no answer arrived, because the test lost it");
        match fault {
            Some(SaveFault::Unavailable) => {
                return WriteOutcome::Failed(error_codes::not_sent("the test made MongoDB unavailable"));
            }
            Some(SaveFault::UnknownNotWritten) => return WriteOutcome::Unknown(no_answer()),
            Some(SaveFault::Conflict) => state.save_first(namespace, write),
            Some(SaveFault::Gone) => state.delete_first(namespace, write),
            Some(SaveFault::UnknownWritten) | None => {}
        }

        match state.apply(namespace, write, &self.time) {
            Ok(_) if fault == Some(SaveFault::UnknownWritten) => WriteOutcome::Unknown(no_answer()),
            Ok(Matched::Nothing) => WriteOutcome::Missed,
            Ok(Matched::Unchanged | Matched::Changed) => WriteOutcome::Done,
            Err(refused) => WriteOutcome::Failed(refused.into()),
        }
    }
}

impl DatabaseState {
    fn apply(&mut self, namespace: &Namespace, write: &Write, time: &ManualTime) -> Result<Matched, Refused> {
        match write {
            Write::Insert(document) => {
                self.documents.insert(namespace, document.clone())?;
                Ok(Matched::Changed)
            }
            Write::Update { filter, update, array_filters } => {
                self.documents.update(namespace, &UpdateParts { filter, update, array_filters }, time.now())
            }
            Write::Delete { filter } => self.documents.delete(namespace, filter, time.now()),
        }
    }

    fn take_fault(&mut self, write: &Write) -> Option<SaveFault> {
        let is_for_it =
            |fault: &mut SaveFault| *fault != SaveFault::Gone || !matches!(write, Write::Insert(_));
        self.save_faults.pop_front_if(is_for_it)
    }

    /// Saves the document of a write first, as another process would.
    fn save_first(&mut self, namespace: &Namespace, write: &Write) {
        if let Write::Insert(document) = write {
            let mut theirs = document.clone();
            theirs.insert(ETAG, new_random());
            if let Ok(entries) = theirs.get_array_mut(OUTBOX) {
                entries.iter_mut().filter_map(Bson::as_document_mut).for_each(make_theirs);
            }
            // If the document exists, the write fails in the same way.
            let _exists = self.documents.insert(namespace, theirs);
            return;
        }
        let (filter, update) = (write.by_id(), doc! { "$set": { ETAG: new_random() } }.into());
        let parts = UpdateParts { filter: &filter, update: &update, array_filters: &[] };
        // The filter only has the `_id`, and the update has only `$set`, so both are interpreted.
        let _saved = self.documents.update(namespace, &parts, DateTime::MIN);
    }

    /// Deletes the document of a write first, as another process would.
    fn delete_first(&mut self, namespace: &Namespace, write: &Write) {
        let _deleted = self.documents.delete(namespace, &write.by_id(), DateTime::MIN);
    }
}

impl Write {
    /// Decodes the statement of an update command.
    fn update(statement: &RawDocument) -> Result<Self, Refused> {
        let mut statement = decoded(statement)?;
        let (Some(Bson::Document(filter)), Some(update)) = (statement.remove("q"), statement.remove("u"))
        else {
            return Err(Refused::not_interpreted("an update without a filter or without operators"));
        };
        let array_filters = match statement.remove("arrayFilters") {
            Some(Bson::Array(filters)) => filters,
            _ => Vec::new(),
        };
        let array_filters = array_filters.iter().filter_map(|filter| filter.as_document().cloned()).collect();
        Ok(Self::Update { filter, update, array_filters })
    }

    /// Whether a store makes this write. The writes of deliveries don't touch the etag.
    fn is_of_store(&self) -> bool {
        match self {
            Self::Insert(_) => true,
            Self::Update { update: Bson::Array(stages), .. } => {
                stages.iter().filter_map(Bson::as_document).any(sets_etag)
            }
            Self::Update { update, .. } => update.as_document().is_some_and(sets_etag),
            Self::Delete { filter } => filter.contains_key(ETAG),
        }
    }

    /// A filter that selects the document of this write.
    fn by_id(&self) -> Document {
        let filter = match self {
            Self::Insert(document) => document,
            Self::Update { filter, .. } | Self::Delete { filter } => filter,
        };
        Document::from_iter([(ID.to_owned(), filter.get(ID).cloned().unwrap_or(Bson::Null))])
    }
}

/// Turns an entry into one that another process has sent, and that no process has claimed.
fn make_theirs(entry: &mut Document) {
    entry.insert("id", new_random());
    if entry.remove("claimed_by").is_some()
        && let Some(created_at) = entry.get("created_at").cloned()
    {
        entry.insert("available_at", created_at);
    }
}

/// Whether an update, or a stage of an update, sets the etag.
fn sets_etag(update: &Document) -> bool {
    update.get_document("$set").is_ok_and(|set| set.contains_key(ETAG))
}

fn decoded(raw: &RawDocument) -> Result<Document, Refused> {
    codec::to_document(raw)
        .map_err(|error| Refused::not_interpreted(format_args!("a value that cannot be decoded ({error})")))
}

fn plain(filter: &Filter) -> Result<Document, Refused> {
    match filter {
        Filter::Plain(filter) => Ok(filter.clone()),
        Filter::Bytes(filter) => decoded(filter),
    }
}
