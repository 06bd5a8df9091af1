//! Reads outboxes. Documents that are processed concurrently are read together.
//!
//! [`batching`](crate::mongo::batching) forms batches, and each batch is one `find` by `_id` per collection. Answers
//! are matched by the bytes of the `_id`. If an id has no match, its document is read again alone, so that MongoDB's
//! own equality applies. For example, the stored `_id` may have a different number type than the requested `_id`.
//!
//! # Memory
//! A `find` reserves memory for its single reply, which the server limits to 16 MiB. Documents that don't fit into the
//! reply are requested again. Each outbox is passed to its reader together with the memory reserved for it.

use std::collections::HashMap;

use futures::{TryStreamExt, future::join_all};
use mongodb::{
    Client, Collection,
    bson::{Bson, Document, RawDocument, RawDocumentBuf, doc},
    error::Error,
    options::ReadConcern,
};

use crate::{
    mongo::{
        batching::{Asked, Batcher, by_collection},
        concern::primary,
        error_codes::{self, Verdict},
        find,
        statement::Find,
    },
    stored::{
        document_ref::DocumentRef,
        entry::{NotAnArray, OUTBOX, Slot, read_outbox_of},
        memory::{Memory, REPLY, Room, weight_of},
    },
};

/// Maximum number of documents in one `find`, which the server returns in a single reply.
const MOST: u32 = 100;

/// The outbox of a document.
#[derive(Debug)]
pub(crate) enum StoredOutbox {
    /// There is no such document.
    Gone,
    /// The field `outbox` is not an array.
    Malformed(NotAnArray),
    /// The elements of the outbox, and the memory reserved for these elements.
    Entries { slots: Vec<Slot>, room: Room },
}

impl StoredOutbox {
    pub(super) fn read(document: &RawDocument, room: Room) -> Self {
        match read_outbox_of(document) {
            Ok(slots) => Self::Entries { slots, room },
            Err(reason) => Self::Malformed(reason),
        }
    }
}

/// Reads outboxes in batches. Clones share the batches.
#[derive(Debug, Clone)]
pub(crate) struct Reads {
    reader: OutboxReader,
    batcher: Batcher<OutboxRequest, Result<StoredOutbox, Error>>,
}

#[derive(Debug, Clone)]
struct OutboxReader {
    client: Client,
    memory: Memory,
}

#[derive(Debug)]
struct OutboxRequest {
    document: DocumentRef,
    id: Bson,
}

type AskedOutbox = Asked<OutboxRequest, Result<StoredOutbox, Error>>;

/// The requests that have no answer yet, by document key. Each key contains only the `_id`. Several requests may be for
/// the same document.
type Unanswered = HashMap<Vec<u8>, Vec<AskedOutbox>>;

impl Reads {
    /// Starts the batches. Must be called inside a tokio runtime. Sends no request by itself.
    pub(crate) fn start(client: Client, memory: Memory) -> Self {
        let reader = OutboxReader { client, memory };
        let of_batches = reader.clone();
        let batcher = Batcher::start(MOST as usize, move |batch, permit| {
            let reader = of_batches.clone();
            async move {
                let _permit = permit;
                let collections = by_collection(batch, |request: &OutboxRequest| &request.document.namespace);
                join_all(collections.map(|batch| reader.answer(batch))).await;
            }
        });
        Self { reader, batcher }
    }

    /// Reads an outbox from the primary. Waits for memory, so the caller must not have reserved any.
    pub(crate) async fn read(&self, document: &DocumentRef) -> Result<StoredOutbox, Error> {
        // Read the document alone if its id would be interpreted as an expression, or can't be part of a
        // list at all.
        let Some(id) = document.listable_id() else {
            return self.reader.alone(document).await;
        };
        if let Some(_permit) = self.batcher.permit_for_one() {
            return self.reader.alone(document).await;
        }
        if let Some(read) = self.batcher.ask(OutboxRequest { document: document.clone(), id }).await {
            return read;
        }

        // The sending runtime has ended, but this runtime has not, so read from here.
        self.reader.alone(document).await
    }
}

impl OutboxReader {
    async fn alone(&self, document: &DocumentRef) -> Result<StoredOutbox, Error> {
        let mut room = self.memory.reserve(REPLY).await;
        let mut is_last = false;
        loop {
            let find = Find {
                namespace: &document.namespace,
                filter: document.select(Document::new()),
                projection: Some(doc! { OUTBOX: 1 }),
                concern: ReadConcern::local(),
            };
            let Some(raw) = find::find(&self.client, find).await? else { return Ok(StoredOutbox::Gone) };

            let weight = weight_of(&raw);
            if is_last || room.holds(weight) {
                room.shrink_to(weight);
                return Ok(StoredOutbox::read(&raw, room));
            }

            // The document consists of many small values and needs more memory. Release the document and the reserved
            // memory first, because a reader that waits for memory must not have reserved any.
            drop((raw, room));
            room = self.memory.reserve(weight).await;
            is_last = true;
        }
    }

    /// Answers the requests of one collection.
    async fn answer(&self, batch: Vec<AskedOutbox>) {
        let mut unanswered = Unanswered::new();
        for asked in batch {
            let key = asked.request.document.key().as_bytes().to_vec();
            unanswered.entry(key).or_default().push(asked);
        }

        // A reply contains as many documents as fit into 16 MiB; the other documents are requested again.
        let mut alone = Vec::new();
        while unanswered.len() > 1 {
            let mut room = self.memory.reserve(REPLY).await;
            let found = match self.together(&unanswered).await {
                Ok(found) => found,
                // The error is about one of the documents, so read each document alone to get its own result.
                Err(error) if error_codes::verdict(&error) == Verdict::Refused => break,
                Err(error) => {
                    for asked in unanswered.into_values().flatten() {
                        asked.answer(Err(error.clone()));
                    }
                    return;
                }
            };

            let before = unanswered.len();
            for (key, raw) in found {
                let weight = weight_of(&raw);
                for asked in unanswered.remove(&key).into_iter().flatten() {
                    if room.holds(weight) {
                        asked.answer(Ok(StoredOutbox::read(&raw, room.split(weight))));
                    } else {
                        alone.push(asked);
                    }
                }
            }
            if unanswered.len() == before {
                break;
            }
        }

        let left = unanswered.into_values().flatten().chain(alone);
        let answered = left.map(|asked| async move {
            let read = self.alone(&asked.request.document).await;
            asked.answer(read);
        });
        join_all(answered).await;
    }

    /// Reads the documents that fit into one reply. Returns each with its document key, which contains only the `_id`.
    async fn together(&self, unanswered: &Unanswered) -> Result<Vec<(Vec<u8>, RawDocumentBuf)>, Error> {
        let requests: Vec<_> =
            unanswered.values().filter_map(|asked| asked.first()).map(|asked| &asked.request).collect();
        let Some(first) = requests.first() else { return Ok(Vec::new()) };
        let namespace = &first.document.namespace;
        let ids: Vec<_> = requests.iter().map(|request| request.id.clone()).collect();

        let collection: Collection<RawDocumentBuf> =
            self.client.database(&namespace.db).collection(&namespace.coll);
        let found = collection
            .find(doc! { "_id": { "$in": ids } })
            .projection(doc! { OUTBOX: 1 })
            // A negative limit requests a single reply without a cursor.
            .limit(-i64::from(MOST))
            .read_concern(ReadConcern::local())
            .selection_criteria(primary())
            .await?;
        let found: Vec<RawDocumentBuf> = found.try_collect().await?;

        let mut documents = Vec::with_capacity(found.len());
        for document in found {
            if let Some(named) = DocumentRef::of_stored(namespace.clone(), &document) {
                documents.push((named.key().as_bytes().to_vec(), document));
            }
        }
        Ok(documents)
    }
}
