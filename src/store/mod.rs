//! Loading and saving aggregates, with their messages.
//!
//! # Flow
//! A save is one update of one document: the changed top-level fields, a fresh `etag`, and the new entries appended to the
//! outbox. It matches the `etag` the aggregate was loaded with, so nobody's change is lost, and doesn't touch the
//! entries that stand there, so no delivery is lost either: but for entries that this process has
//! delivered and left there, which it takes out.
//!
//! # Guarantees
//! - A message exists if and only if the save that sent it is committed by the majority.
//! - Stored fields that the struct doesn't know survive, in arrays those of every element that can be recognised.
//! - What is stored decodes as the same struct again, and is found by the same id.
//! - Documents from before the library, without `etag` and `outbox`, are loaded and saved like the rest.
//!
//! # Caveats
//! A save future that is dropped leaves the save undecided: done or not, never by half.

pub(crate) mod caps;
pub(crate) mod error;
mod fields;
mod identity;
mod loaded;
mod outcome;
mod staged;
mod unknown;

use std::{
    fmt,
    marker::PhantomData,
    sync::{
        Arc,
        atomic::{self, AtomicUsize},
    },
    time::Duration,
};

use mongodb::{
    Collection, IndexModel, Namespace,
    bson::{Bson, DateTime, Document, RawDocument, RawDocumentBuf, doc},
    error::Error as DriverError,
    options::{IndexOptions, ReadConcern},
};
use tracing::{Instrument, Span};

pub use self::{
    caps::{Caps, MAX_TYPE_BYTES},
    error::Error,
    loaded::Loaded,
    outcome::{Deleted, Inserted, Receipt, Saved, Updated},
    staged::StagedMessages,
};
use self::{
    fields::{check_reserved, insertable},
    identity::{ID, check_id, id_of, is_of_one_type, is_unset, named_by, other_forms},
    loaded::{Hope, encode, entry, scheduled},
    unknown::{carry, renamed::Differences},
};
use crate::{
    aggregate::{
        Aggregate,
        outbox::{Outbox, PendingMessage},
    },
    dispatch::{
        claim::Claim, deferred_clears::Taken, deliveries::Work, inline::InlineDispatcher, outcome::Dispatch,
        seats::Seat,
    },
    encoding::codec,
    mongo::{
        Delete, Delivered, Find, Insert, Mongo, Update, WriteOutcome,
        clock::later,
        error_codes::{self, Verdict},
        write,
    },
    observe::{metrics::SaveOutcome, trace},
    store::caps::{array_bytes, document_bytes},
    stored::{
        document_ref::DocumentRef,
        entry::{ETAG, OUTBOX, Slot, read_elements},
        filter::equal_to,
        ids::new_random,
    },
};

/// How often [`Store::update`] tries before it gives up on a document that others keep changing.
const UPDATE_TRIES: u32 = 32;

/// Aggregates of one type in one collection.
pub struct Store<T> {
    collection: Collection<RawDocumentBuf>,
    namespace: Namespace,
    mongo: Mongo,
    inline: InlineDispatcher,
    caps: Caps,
    shard_key: Vec<String>,
    /// In which form the `_id` that was seen last is encoded.
    form: Arc<AtomicUsize>,
    aggregate: PhantomData<fn() -> T>,
}

impl<T> fmt::Debug for Store<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("collection", &self.namespace.to_string())
            .field("caps", &self.caps)
            .finish_non_exhaustive()
    }
}

impl<T> Clone for Store<T> {
    fn clone(&self) -> Self {
        Self {
            collection: self.collection.clone(),
            namespace: self.namespace.clone(),
            mongo: self.mongo.clone(),
            inline: self.inline.clone(),
            caps: self.caps,
            shard_key: self.shard_key.clone(),
            form: self.form.clone(),
            aggregate: PhantomData,
        }
    }
}

impl<T: Aggregate> Store<T> {
    /// A store of the aggregates in the collection of this name. It reads and writes through the client that the inline
    /// dispatcher was built with, with concerns of its own: majority.
    pub fn new<C: Send + Sync>(collection: Collection<C>, inline: &InlineDispatcher) -> Self {
        Self {
            namespace: collection.namespace(),
            collection: collection.clone_with_type(),
            mongo: inline.mongo().clone(),
            inline: inline.clone(),
            caps: Caps::default(),
            shard_key: Vec::new(),
            form: Arc::default(),
            aggregate: PhantomData,
        }
    }

    /// Bounds on what a save may add.
    #[must_use]
    pub fn with_caps(mut self, caps: Caps) -> Self {
        self.caps = caps;
        self
    }

    /// The fields of the collection's shard key besides `_id`: top-level fields of the aggregate.
    #[must_use]
    pub fn with_shard_key(mut self, fields: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.shard_key = fields.into_iter().map(Into::into).collect();
        self
    }

    /// The collection, for updates of your own.
    pub fn collection(&self) -> &Collection<RawDocumentBuf> {
        &self.collection
    }

    /// Makes the two indexes by which due and dead messages are found; does nothing where they exist.
    ///
    /// # Errors
    /// [`Error::Refused`] or [`Error::Unavailable`].
    pub async fn ensure_indexes(&self) -> Result<(), Error> {
        self.mongo.create_indexes(&self.namespace, indexes()).await.map_err(Error::of_read)
    }

    /// Loads an aggregate, as the majority has it; none when there is no such document.
    ///
    /// # Errors
    /// [`Error::Decode`] when it doesn't fit the struct, [`Error::Unavailable`] when MongoDB can't be asked.
    pub async fn load(&self, id: &T::Id) -> Result<Option<Loaded<T>>, Error> {
        let own = id_of(id)?;
        let others = other_forms(&own);
        // Most of a store's documents have their `_id` in one form: that of the last one that was seen is tried first.
        let last = self.form.load(atomic::Ordering::Relaxed);
        if let Some(form) = last.checked_sub(1).and_then(|place| others.get(place))
            && let Some(loaded) = self.load_other(&own, &others, equal_to(form)).await?
        {
            return Ok(Some(loaded));
        }
        let document = DocumentRef::by_id(self.namespace.clone(), own.clone());
        if let Some(raw) = self.find(&document, None, ReadConcern::majority()).await? {
            self.form.store(0, atomic::Ordering::Relaxed);
            return self.read(&raw).map(Some);
        }
        if others.is_empty() {
            return Ok(None);
        }
        let any = Bson::from(doc! { "$in": others.clone() });
        self.load_other(&own, &others, any).await
    }

    /// Loads an aggregate whose field has an encoding of its own.
    async fn load_other(&self, own: &Bson, others: &[Bson], id: Bson) -> Result<Option<Loaded<T>>, Error> {
        let found = self.find_by(doc! { ID: id }, None, ReadConcern::majority()).await?;
        let Some(raw) = found else { return Ok(None) };
        let loaded = self.read(&raw)?;
        // A struct that takes any `_id` tells a text from the ObjectId of the same digits.
        if !is_of_one_type(own, &id_of(loaded.value.id())?) {
            return Ok(None);
        }
        let place = others.iter().position(|form| *form == loaded.document.id());
        self.form.store(place.map_or(0, |place| place + 1), atomic::Ordering::Relaxed);
        Ok(Some(loaded))
    }

    /// Reads a stored document, which from then on has the name by which it is stored.
    fn read(&self, raw: &RawDocumentBuf) -> Result<Loaded<T>, Error> {
        let document = named_by(self.namespace.clone(), &self.shard_key, raw)?;
        Loaded::read(document, raw)
    }

    /// Inserts a new aggregate with the messages it sent.
    ///
    /// # Errors
    /// [`Error`]; nothing was written then, and nothing was sent.
    pub async fn insert(&self, value: T) -> Result<Inserted<T>, Error> {
        let outcome = |inserted: &Inserted<T>| match inserted {
            Inserted::Applied(..) => SaveOutcome::Applied,
            Inserted::Exists(_) => SaveOutcome::Conflict,
            Inserted::Unknown(..) => SaveOutcome::Unknown,
        };
        self.observe("insert", self.insert_with(value), outcome).await
    }

    async fn insert_with(&self, mut value: T) -> Result<Inserted<T>, Error> {
        let encoded = encode(&value)?;
        check_reserved(None, &encoded)?;
        let form = check_id(&encoded, value.id())?;
        if is_unset::<T>(&encoded) {
            return Err(Error::NoId { id: Bson::Null.to_string() });
        }
        let document = named_by(self.namespace.clone(), &self.shard_key, &encoded)?;
        let messages = value.outbox().take();
        // A new document's outbox is empty: its entries can always be born claimed.
        let mut prepared = self.prepare(&document, &messages, true).await?;
        let mut new = insertable(&encoded)?;
        let etag = Bson::from(new_random());
        new.insert(ETAG, etag.clone());
        if !prepared.entries.is_empty() {
            new.insert(OUTBOX, std::mem::take(&mut prepared.entries));
        }
        let bytes = document_bytes(&new);
        self.check_size(&document, bytes, 0)?;
        // As it is stored, with the library's fields: a struct that refuses those could not be loaded.
        let stored = codec::encode(&new).map_err(Error::of_encoding)?;
        check_readable::<T>(&document, &stored)?;
        match self.mongo.insert(Insert { namespace: document.namespace.clone(), document: stored }).await {
            WriteOutcome::Done | WriteOutcome::Missed => {
                self.form.store(form, atomic::Ordering::Relaxed);
                let mut loaded = Loaded {
                    value,
                    document: document.clone(),
                    etag: Some(etag),
                    baseline: encoded,
                    differences: Differences::default(),
                    held: Ok(0),
                    hope: Hope::default(),
                    bytes,
                };
                let receipt = self.dispatch(&document, prepared).await;
                loaded.has_sent(receipt.messages.len(), 0, &receipt.dispatch);
                Ok(Inserted::Applied(Box::new(loaded), receipt))
            }
            WriteOutcome::Unknown(error) => {
                value.outbox().restore(messages);
                Ok(Inserted::Unknown(value, error))
            }
            WriteOutcome::Failed(error) if self.exists(&document, &error).await? => {
                value.outbox().restore(messages);
                Ok(Inserted::Exists(value))
            }
            WriteOutcome::Failed(error) => Err(Error::of_write(&document, error, bytes)),
        }
    }

    /// Saves what changed since the aggregate was loaded, with the messages it sent.
    ///
    /// On any outcome but [`Saved::Applied`] the messages are still in the aggregate's outbox.
    ///
    /// # Errors
    /// [`Error`]; nothing was written then.
    pub async fn save(&self, loaded: &mut Loaded<T>) -> Result<Saved, Error> {
        // The messages leave the aggregate once they are saved, and no sooner: a dropped save must not lose them.
        let messages: Vec<_> = loaded.value.outbox().iter().cloned().collect();
        let outcome = |saved: &Saved| match saved {
            Saved::Applied(_) => SaveOutcome::Applied,
            Saved::Unchanged => SaveOutcome::Unchanged,
            Saved::Conflict => SaveOutcome::Conflict,
            Saved::Gone => SaveOutcome::Gone,
            Saved::Unknown(_) => SaveOutcome::Unknown,
        };
        let saved = self.observe("save", self.save_with(loaded, &messages), outcome).await;
        if matches!(saved, Ok(Saved::Applied(_))) {
            loaded.value.outbox().take();
        }
        saved
    }

    async fn save_with(&self, loaded: &mut Loaded<T>, messages: &[PendingMessage]) -> Result<Saved, Error> {
        let now = encode(&loaded.value)?;
        let document = loaded.document.clone();
        loaded.check_named_alike(&now, &self.shard_key)?;
        check_id(&now, loaded.value.id())?;
        let mut changes = loaded.changes(&now)?;
        if let Some(field) = [ETAG, OUTBOX].into_iter().find(|field| changes.set.contains_key(field)) {
            return Err(Error::ReservedField { field });
        }
        if changes.is_empty() && messages.is_empty() {
            return Ok(Saved::Unchanged);
        }
        if !changes.is_empty() {
            check_readable::<T>(&document, &now)?;
        }
        let (dropped, unknown) = (std::mem::take(&mut changes.dropped), std::mem::take(&mut changes.unknown));
        let unset = changes.unset.clone();
        let held = match (&loaded.held, messages.is_empty()) {
            (Ok(held), _) => *held,
            (Err(_), true) => 0,
            (Err(source), false) => {
                return Err(Error::OutboxNotArray { document, source: source.clone() });
            }
        };
        // What was delivered and waits for this save to take it out, or for its clear, does not count.
        let linger = self.inline.linger().filter(|_| !messages.is_empty());
        let lingering = linger.map_or(0, |linger| linger.count(&document));
        let held = held.saturating_sub(lingering);
        let mut size = Size { held, bytes: loaded.bytes };
        if self.check_entries(&document, held, messages.len()).is_err() {
            // Counted up since the document was loaded: what was delivered meanwhile has left.
            size = self.measure(&document).await?.unwrap_or(size);
            size.held = size.held.saturating_sub(lingering);
            self.check_entries(&document, size.held, messages.len())?;
        }
        let hopes = size.held > 0 && loaded.hope.covers(size.held) && !self.inline.works_on(&document);
        let mut prepared = self.prepare(&document, messages, size.held == 0 || hopes).await?;
        let mut taken = prepared.claim.as_ref().and(linger).and_then(|linger| linger.take(&document));
        let sent = match prepared.entries.is_empty() {
            true => 0,
            false => 2 + OUTBOX.len() + array_bytes(&prepared.entries),
        };
        let grown = |bytes: usize| {
            (bytes + now.as_bytes().len() + sent).saturating_sub(loaded.baseline.as_bytes().len())
        };
        if self.check_size(&document, grown(size.bytes), size.bytes).is_err() {
            size = self.measure(&document).await?.unwrap_or(size);
            self.check_size(&document, grown(size.bytes), size.bytes)?;
        }
        let (held, bytes) = (size.held, grown(size.bytes));

        // Moved into the statement; one that has missed is written anew.
        let mut written = Some((changes, std::mem::take(&mut prepared.entries)));
        let etag = Bson::from(new_random());
        let mut filter = document.filter();
        filter.insert(
            ETAG,
            loaded.etag.as_ref().map_or_else(|| Bson::from(doc! { "$exists": false }), equal_to),
        );
        loop {
            let mut filter = filter.clone();
            match taken.as_ref().map(Taken::delivered) {
                Some(delivered) => filter.extend(holds_only(delivered)),
                None if prepared.claim.is_some() => {
                    filter.insert("outbox.0", doc! { "$exists": false });
                }
                None => {}
            }
            let (changes, entries) = match written.take() {
                Some(written) => written,
                None => (
                    loaded.changes(&now)?,
                    self.entries(&document, messages, prepared.now, prepared.claim.as_ref())?,
                ),
            };
            let update = update_of(changes, &etag, entries, taken.is_some());
            let namespace = document.namespace.clone();
            let filter = filter.into();
            match self.mongo.update(Update { namespace, filter, update, array_filters: Vec::new() }).await {
                WriteOutcome::Done => break,
                WriteOutcome::Unknown(error) => return Ok(Saved::Unknown(error)),
                WriteOutcome::Failed(error) => return Err(Error::of_write(&document, error, bytes)),
                WriteOutcome::Missed => match self.look(loaded).await? {
                    // The etag is as loaded, so only the outbox can have been in the way.
                    Look::Same if let (Some(taken), Some(linger)) = (taken.take(), linger) => {
                        drop(taken);
                        // What is not cleared by then fails the next try.
                        write::until_deadline(linger.flush(&document)).await;
                    }
                    Look::Same if prepared.claim.is_some() => {
                        prepared.claim = None;
                        if hopes {
                            loaded.hope.was_wrong();
                        }
                    }
                    Look::Same | Look::Changed => return Ok(Saved::Conflict),
                    Look::Gone => return Ok(Saved::Gone),
                },
            }
        }
        let was_empty = prepared.claim.is_some();
        if let Some(taken) = taken {
            taken.done();
        }
        loaded.etag = Some(etag);
        loaded.baseline = now;
        loaded.bytes = bytes;
        loaded.now_knows(unknown, &unset);
        if !dropped.is_empty() {
            carry::warn_of(&document.namespace, &dropped);
            self.inline.metrics().unknown_fields_dropped(dropped.values().sum());
        }
        let receipt = self.dispatch(&document, prepared).await;
        loaded.has_sent(receipt.messages.len(), if was_empty { 0 } else { held }, &receipt.dispatch);
        Ok(Saved::Applied(receipt))
    }

    /// Loads an aggregate, changes it and saves it; again from the start when somebody else saved in between.
    ///
    /// The closure may run several times, each time on a fresh aggregate; it should do nothing but change it.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Contended`], [`Error::Unknown`] (look before repeating), or any other [`Error`].
    pub async fn update<R>(
        &self,
        id: &T::Id,
        mut change: impl FnMut(&mut T) -> R,
    ) -> Result<Updated<T, R>, Error> {
        let infallible = |value: &mut T| Ok::<R, std::convert::Infallible>(change(value));
        match self.try_update(id, infallible).await? {
            Ok(updated) => Ok(updated),
            Err(never) => match never {},
        }
    }

    /// Like [`update`](Store::update), with a closure that can refuse: nothing is saved then.
    ///
    /// # Errors
    /// The outer error is the store's, the inner one the closure's: `orders.try_update(&id, Order::pay).await??`.
    pub async fn try_update<R, E>(
        &self,
        id: &T::Id,
        mut change: impl FnMut(&mut T) -> Result<R, E>,
    ) -> Result<Result<Updated<T, R>, E>, Error> {
        let named = || Ok::<_, Error>(DocumentRef::by_id(self.namespace.clone(), id_of(id)?));
        for tries in 0..UPDATE_TRIES {
            let Some(mut document) = self.load(id).await? else {
                return Err(Error::NotFound { document: named()? });
            };
            let value = match change(&mut document.value) {
                Ok(value) => value,
                Err(error) => return Ok(Err(error)),
            };
            match self.save(&mut document).await? {
                Saved::Applied(receipt) => {
                    return Ok(Ok(Updated { value, document, receipt: Some(receipt) }));
                }
                Saved::Unchanged => {
                    return Ok(Ok(Updated { value, document, receipt: None }));
                }
                Saved::Unknown(source) => {
                    return Err(Error::Unknown { document: named()?, source });
                }
                Saved::Gone => return Err(Error::NotFound { document: named()? }),
                Saved::Conflict => {
                    // Full jitter, up to a quarter of a second: the other save may wait for its majority that long.
                    let longest = Duration::from_millis(2 << tries.min(7));
                    tokio::time::sleep(longest.mul_f64(fastrand::f64())).await;
                }
            }
        }
        Err(Error::Contended { document: named()?, tries: UPDATE_TRIES })
    }

    /// Deletes an aggregate that nobody else has changed and that has nothing left to deliver.
    ///
    /// # Errors
    /// [`Error`]; nothing was deleted then.
    pub async fn delete(&self, loaded: &Loaded<T>) -> Result<Deleted, Error> {
        let outcome = |deleted: &Deleted| match deleted {
            Deleted::Done => SaveOutcome::Applied,
            Deleted::Conflict => SaveOutcome::Conflict,
            Deleted::Gone => SaveOutcome::Gone,
            Deleted::Undelivered => SaveOutcome::Refused,
            Deleted::Unknown(_) => SaveOutcome::Unknown,
        };
        self.observe("delete", self.delete_with(loaded), outcome).await
    }

    async fn delete_with(&self, loaded: &Loaded<T>) -> Result<Deleted, Error> {
        if let Some(linger) = self.inline.linger() {
            write::until_deadline(linger.flush(&loaded.document)).await;
        }
        let mut filter = loaded.document.filter();
        filter.insert(
            ETAG,
            loaded.etag.as_ref().map_or_else(|| Bson::from(doc! { "$exists": false }), equal_to),
        );
        filter.insert("outbox.0", doc! { "$exists": false });
        let namespace = loaded.document.namespace.clone();
        match self.mongo.delete(Delete { namespace, filter }).await {
            WriteOutcome::Done => Ok(Deleted::Done),
            WriteOutcome::Unknown(error) => Ok(Deleted::Unknown(error)),
            WriteOutcome::Failed(error) => Err(Error::of_write(&loaded.document, error, 0)),
            WriteOutcome::Missed => Ok(match self.look(loaded).await? {
                Look::Same => Deleted::Undelivered,
                Look::Changed => Deleted::Conflict,
                Look::Gone => Deleted::Gone,
            }),
        }
    }

    /// Makes messages ready for an update, an insert or a transaction of your own: see [`StagedMessages`].
    ///
    /// # Errors
    /// [`Error`] for messages past their caps; they stay in the outbox.
    pub async fn stage(&self, outbox: &mut Outbox) -> Result<StagedMessages, Error> {
        let messages: Vec<_> = outbox.iter().cloned().collect();
        let unnamed = DocumentRef::by_id(self.namespace.clone(), Bson::Null);
        let now = self.mongo.now().await.map_err(Error::of_read)?;
        let entries = self.entries(&unnamed, &messages, now, None)?;
        outbox.take();
        Ok(StagedMessages {
            mongo: self.mongo.clone(),
            inline: self.inline.clone(),
            collection: self.collection.clone(),
            shard_key: self.shard_key.clone(),
            ordering: T::ORDERING,
            ids: messages.iter().map(|message| message.id).collect(),
            due: due_now(&messages, now),
            entries,
        })
    }

    /// Does a write in a span of its own, and counts what it came to.
    async fn observe<R>(
        &self,
        verb: &'static str,
        write: impl Future<Output = Result<R, Error>>,
        outcome: impl FnOnce(&R) -> SaveOutcome,
    ) -> Result<R, Error> {
        let span = trace::save(verb, &self.namespace);
        let written = write::within_one_timeout(write.instrument(span.clone())).await;
        let outcome = match &written {
            Ok(written) => outcome(written),
            Err(Error::Unknown { .. }) => SaveOutcome::Unknown,
            Err(_) => SaveOutcome::Refused,
        };
        if let Some(error_type) = outcome.error_type() {
            trace::failed(&span, error_type);
        }
        self.inline.metrics().save(outcome);
        written
    }

    /// Makes entries of messages, with a seat where one is free, and claimed where `empty` promises success.
    async fn prepare(
        &self,
        document: &DocumentRef,
        messages: &[PendingMessage],
        empty: bool,
    ) -> Result<Prepared, Error> {
        if messages.is_empty() {
            return Ok(Prepared::nothing());
        }
        self.check_entries(document, 0, messages.len())?;
        let now = self.mongo.now().await.map_err(Error::of_read)?;
        let due = due_now(messages, now);
        let seat = self.inline.seat_for(due, messages);
        let claim = match &seat {
            Ok(_) if empty && self.serves_all(messages) => {
                let claimer = self.inline.claimer();
                let until = later(now, claimer.lease);
                Some(Claim {
                    document: document.clone(),
                    token: claimer.token(),
                    until,
                    counted: false,
                    entries: Vec::new(),
                })
            }
            _ => None,
        };
        let entries = self.entries(document, messages, now, claim.as_ref())?;
        let claim = claim.map(|claim| Claim { entries: claimed(&entries, &claim.token), ..claim });
        let ids = messages.iter().map(|message| message.id).collect();
        Ok(Prepared { ids, now, due, entries, seat, claim })
    }

    fn serves_all(&self, messages: &[PendingMessage]) -> bool {
        messages.iter().all(|message| self.inline.serves(self.inline.via(message.message_type)))
    }

    fn entries(
        &self,
        document: &DocumentRef,
        messages: &[PendingMessage],
        now: DateTime,
        claim: Option<&Claim>,
    ) -> Result<Vec<Bson>, Error> {
        self.check_entries(document, 0, messages.len())?;
        let payloads = messages.iter().map(|message| Ok((message, self.caps.check_message(message)?)));
        let payloads = payloads.collect::<Result<Vec<_>, Error>>()?;
        let claim = claim.map(|claim| (claim.token.as_str(), claim.until));
        let entries = payloads.into_iter().map(|(message, payload)| {
            Bson::from(entry(message, payload, self.inline.via(message.message_type), now, claim))
        });
        Ok(entries.collect())
    }

    async fn dispatch(&self, document: &DocumentRef, prepared: Prepared) -> Receipt {
        let Prepared { ids, due, seat, claim, .. } = prepared;
        self.inline.metrics().sent(ids.len());
        Span::current().record("messaging.batch.message_count", ids.len());
        let messages = ids.iter().map(|id| uuid::Uuid::from_bytes(id.bytes())).collect();
        let dispatch = match seat {
            _ if ids.is_empty() => Dispatch::Nothing,
            Err(why) => {
                self.inline.left(document, due, &why);
                why
            }
            Ok(seat) => {
                let unclaimed = || Work::Unclaimed(document.clone());
                let work = claim.map_or_else(unclaimed, Work::BornClaimed);
                self.inline.dispatch(seat, work, ids, T::ORDERING).await
            }
        };
        Receipt { messages, dispatch }
    }

    async fn find(
        &self,
        document: &DocumentRef,
        projection: Option<Document>,
        concern: ReadConcern,
    ) -> Result<Option<RawDocumentBuf>, Error> {
        self.find_by(document.filter(), projection, concern).await
    }

    async fn find_by(
        &self,
        filter: Document,
        projection: Option<Document>,
        concern: ReadConcern,
    ) -> Result<Option<RawDocumentBuf>, Error> {
        let find = Find { namespace: &self.namespace, filter: filter.into(), projection, concern };
        self.mongo.find(find).await.map_err(Error::of_read)
    }

    async fn exists(&self, document: &DocumentRef, error: &DriverError) -> Result<bool, Error> {
        if error_codes::verdict(error) != Verdict::Duplicate {
            return Ok(false);
        }
        let found = self.find(document, Some(doc! { "_id": 1 }), ReadConcern::local()).await?;
        Ok(found.is_some())
    }

    /// Why a filter found nothing: looks at the latest state, not the majority's, which may be older.
    async fn look(&self, loaded: &Loaded<T>) -> Result<Look, Error> {
        let found = self.find(&loaded.document, Some(doc! { ETAG: 1 }), ReadConcern::local()).await?;
        let Some(raw) = found else { return Ok(Look::Gone) };
        let found = codec::to_document(&raw).unwrap_or_default();
        Ok(if found.get(ETAG) == loaded.etag.as_ref() { Look::Same } else { Look::Changed })
    }

    fn check_entries(&self, document: &DocumentRef, held: usize, sent: usize) -> Result<(), Error> {
        match sent > 0 && held + sent > self.caps.entries {
            true => Err(Error::OutboxFull { document: document.clone(), held, sent, cap: self.caps.entries }),
            false => Ok(()),
        }
    }

    /// A document may always shrink.
    fn check_size(&self, document: &DocumentRef, bytes: usize, was: usize) -> Result<(), Error> {
        match bytes > self.caps.document_bytes && bytes > was {
            true => Err(Error::DocumentTooLarge {
                document: document.clone(),
                bytes,
                cap: self.caps.document_bytes,
            }),
            false => Ok(()),
        }
    }

    /// Asks for the size of the stored document; none when it is gone.
    async fn measure(&self, document: &DocumentRef) -> Result<Option<Size>, Error> {
        let is_array = doc! { "$isArray": "$outbox" };
        let held = doc! { "$cond": [is_array, { "$size": "$outbox" }, 0] };
        let projection = doc! { "_id": 0, "held": held, "bytes": { "$bsonSize": "$$ROOT" } };
        let found = self.find(document, Some(projection), ReadConcern::local()).await?;
        let size = |raw: RawDocumentBuf| {
            let found = codec::to_document(&raw).unwrap_or_default();
            let number =
                |name| found.get_i32(name).ok().and_then(|number| usize::try_from(number).ok()).unwrap_or(0);
            Size { held: number("held"), bytes: number("bytes") }
        };
        Ok(found.map(size))
    }
}

/// The indexes an outbox needs: due entries by time, over filled outboxes only, and dead ones by time.
pub fn indexes() -> [IndexModel; 2] {
    let filled = doc! { "outbox.id": { "$exists": true } };
    let due = IndexOptions::builder()
        .name("outbox_available_at".to_owned())
        .partial_filter_expression(filled)
        .build();
    let dead = IndexOptions::builder().name("outbox_dead_at".to_owned()).sparse(true).build();
    [
        IndexModel::builder().keys(doc! { "outbox.available_at": 1 }).options(due).build(),
        IndexModel::builder().keys(doc! { "outbox.dead_at": 1 }).options(dead).build(),
    ]
}

/// How large a stored document is.
#[derive(Clone, Copy)]
struct Size {
    /// Entries in its outbox.
    held: usize,
    bytes: usize,
}

enum Look {
    Same,
    Changed,
    Gone,
}

/// A save's messages, ready to be written.
struct Prepared {
    ids: Vec<mongodb::bson::Uuid>,
    /// Server time, when they are sent.
    now: DateTime,
    /// How many of them are due.
    due: usize,
    entries: Vec<Bson>,
    seat: Result<Seat, Dispatch>,
    /// With those of the entries that it holds.
    claim: Option<Claim>,
}

impl Prepared {
    fn nothing() -> Self {
        Self {
            ids: Vec::new(),
            now: DateTime::MIN,
            due: 0,
            entries: Vec::new(),
            seat: Err(Dispatch::Nothing),
            claim: None,
        }
    }
}

/// The entries among one's own that were written with this claim.
fn claimed(entries: &[Bson], token: &str) -> Vec<crate::stored::entry::Entry> {
    let entries = read_elements(entries).into_iter().filter_map(|slot| match slot {
        Slot::Entry(entry) => Some(*entry),
        Slot::Unreadable(_) => None,
    });
    entries.filter(|entry| entry.claimed_by.as_deref() == Some(token)).collect()
}

/// How many of these messages are not for later.
fn due_now(messages: &[PendingMessage], now: DateTime) -> usize {
    messages.iter().filter(|message| scheduled(message.due, now).is_none()).count()
}

/// Checks that what would be stored can be loaded again.
fn check_readable<T: Aggregate>(document: &DocumentRef, content: &RawDocument) -> Result<(), Error> {
    match codec::decode::<T>(content.as_bytes()) {
        Ok(_) => Ok(()),
        Err(error) => Err(Error::Unreadable { document: document.clone(), reason: error.to_string() }),
    }
}

/// Matches an outbox that holds these entries, still under their claim, and nothing else.
fn holds_only(delivered: &Delivered) -> Document {
    let mut filter = doc! { format!("{OUTBOX}.{}", delivered.ids.len()): { "$exists": false } };
    for (place, id) in delivered.ids.iter().enumerate() {
        filter.insert(format!("{OUTBOX}.{place}.id"), id);
        filter.insert(format!("{OUTBOX}.{place}.claimed_by"), &delivered.token);
    }
    filter
}

/// The update that writes the changes and appends these entries, or puts them in the place of all that stand there.
fn update_of(changes: fields::Changes, etag: &Bson, entries: Vec<Bson>, alone: bool) -> Document {
    let fields::Changes { mut set, unset, .. } = changes;
    set.insert(ETAG, etag.clone());
    let mut update = Document::new();
    if !unset.is_empty() {
        let unset: Document = unset.into_iter().map(|field| (field, Bson::from(""))).collect();
        update.insert("$unset", unset);
    }
    if alone {
        set.insert(OUTBOX, entries);
    } else if !entries.is_empty() {
        update.insert("$push", doc! { OUTBOX: { "$each": entries } });
    }
    update.insert("$set", set);
    update
}
