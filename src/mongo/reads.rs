//! Reading outboxes: documents that are processed side by side are read together.
//!
//! Batches as [`lane`](crate::mongo::batching) makes them: one `find` by `_id` for each collection. Answers are matched by the bytes of
//! the `_id`. One that finds no match is read again alone, so that what MongoDB takes for equal counts: a document may be
//! named by another type of number than it is stored with.
//!
//! # Memory
//! A `find` asks for one reply and no more, which the server fills with 16 MiB at most, and reserves room for it; what the
//! reply does not hold is asked for again. Each outbox goes to its reader with the room that it takes.

use std::collections::HashMap;

use futures::{TryStreamExt, future::join_all};
use mongodb::{
    Client, Collection, Namespace,
    bson::{Bson, Document, RawDocument, RawDocumentBuf, doc},
    error::Error,
    options::ReadConcern,
};
use tokio::sync::oneshot;

use crate::{
    mongo::{
        batching::{Lane, by_collection},
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

/// Documents of one `find`: the server returns so many at once.
const MOST: u32 = 100;

/// The outbox that a document has.
#[derive(Debug)]
pub(crate) enum StoredOutbox {
    /// There is no such document.
    Gone,
    /// The field is no array.
    Malformed(NotAnArray),
    /// Its elements, and the room that they take in memory.
    Entries { slots: Vec<Slot>, room: Room },
}

impl StoredOutbox {
    fn read(document: &RawDocument, room: Room) -> Self {
        match read_outbox_of(document) {
            Ok(slots) => Self::Entries { slots, room },
            Err(reason) => Self::Malformed(reason),
        }
    }
}

/// Reads outboxes; clones share one lane.
#[derive(Debug, Clone)]
pub(crate) struct Reads {
    reader: Reader,
    lane: Lane<Request>,
}

#[derive(Debug, Clone)]
struct Reader {
    client: Client,
    memory: Memory,
}

#[derive(Debug)]
struct Request {
    document: DocumentRef,
    id: Bson,
    answer: oneshot::Sender<Result<StoredOutbox, Error>>,
}

impl Reads {
    /// Must be called inside a tokio runtime; sends nothing by itself.
    pub(crate) fn start(client: Client, memory: Memory) -> Self {
        let reader = Reader { client, memory };
        let of_lane = reader.clone();
        let lane = Lane::start(MOST as usize, move |requests: Vec<Request>, place| {
            let reader = of_lane.clone();
            async move {
                let _place = place;
                let collections = by_collection(requests, |request| &request.document.namespace);
                join_all(collections.map(|batch| reader.settle(batch))).await;
            }
        });
        Self { reader, lane }
    }

    /// Reads an outbox, from the primary, as it is there. Waits for the room that it takes: its reader must hold none.
    pub(crate) async fn read(&self, document: &DocumentRef) -> Result<StoredOutbox, Error> {
        // Some ids would be read as an expression, and some can't be in a list at all.
        let Some(id) = document.listable_id() else {
            return self.reader.alone(document).await;
        };
        if let Some(_turn) = self.lane.turn_for_one() {
            return self.reader.alone(document).await;
        }

        let (answer, answered) = oneshot::channel();
        if self.lane.join(Request { document: document.clone(), id, answer }).await
            && let Ok(read) = answered.await
        {
            return read;
        }
        // The runtime that reads together has ended; this one has not.
        self.reader.alone(document).await
    }
}

fn collection(client: &Client, namespace: &Namespace) -> Collection<RawDocumentBuf> {
    client.database(&namespace.db).collection(&namespace.coll)
}

impl Reader {
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
            // Made of many small values. Nobody waits for more room while holding some.
            drop((raw, room));
            room = self.memory.reserve(weight).await;
            is_last = true;
        }
    }

    /// Answers the requests of one collection.
    async fn settle(&self, batch: Vec<Request>) {
        let mut open: HashMap<Vec<u8>, Vec<Request>> = HashMap::new();
        for request in batch {
            open.entry(request.document.key().as_bytes().to_vec()).or_default().push(request);
        }
        let mut alone = Vec::new();
        while open.len() > 1 {
            let mut room = self.memory.reserve(REPLY).await;
            let found = match self.together(&open).await {
                Ok(found) if !found.is_empty() => found,
                Ok(_) => break,
                // Something of one of them; each has the right to its own error.
                Err(error) if error_codes::verdict(&error) == Verdict::Refused => break,
                Err(error) => {
                    for request in open.into_values().flatten() {
                        // Whoever asked may have gone.
                        let _ = request.answer.send(Err(error.clone()));
                    }
                    return;
                }
            };
            let before = open.len();
            for (id, raw) in found {
                let weight = weight_of(&raw);
                for request in open.remove(&id).into_iter().flatten() {
                    if room.holds(weight) {
                        let outbox = StoredOutbox::read(&raw, room.split(weight));
                        let _ = request.answer.send(Ok(outbox));
                    } else {
                        alone.push(request);
                    }
                }
            }
            if open.len() == before {
                break;
            }
        }

        let left = open.into_values().flatten().chain(alone);
        let answered = left.map(|Request { document, answer, .. }| async move {
            let _ = answer.send(self.alone(&document).await);
        });
        join_all(answered).await;
    }

    /// Those of the documents that fit into one reply, by their key of an `_id` alone.
    async fn together(
        &self,
        open: &HashMap<Vec<u8>, Vec<Request>>,
    ) -> Result<Vec<(Vec<u8>, RawDocumentBuf)>, Error> {
        let requests: Vec<_> = open.values().filter_map(|requests| requests.first()).collect();
        let Some(first) = requests.first() else { return Ok(Vec::new()) };
        let ids: Vec<_> = requests.iter().map(|request| request.id.clone()).collect();
        let found = collection(&self.client, &first.document.namespace)
            .find(doc! { "_id": { "$in": ids } })
            .projection(doc! { OUTBOX: 1 })
            // Below zero: one reply, and no cursor.
            .limit(-i64::from(MOST))
            .read_concern(ReadConcern::local())
            .selection_criteria(primary())
            .await?;
        let found: Vec<RawDocumentBuf> = found.try_collect().await?;

        let mut documents = Vec::with_capacity(found.len());
        for document in found {
            if let Some(named) = DocumentRef::of_stored(first.document.namespace.clone(), &document) {
                documents.push((named.key().as_bytes().to_vec(), document));
            }
        }
        Ok(documents)
    }
}
