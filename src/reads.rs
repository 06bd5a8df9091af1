//! Reading outboxes: documents that are processed side by side are read together.
//!
//! Batches as [`lane`](crate::lane) makes them: one `find` by `_id` for each collection. Answers are matched by the bytes of
//! the `_id`. One that finds no match is read again alone, so that what MongoDB takes for equal counts: a document may be
//! named by another type of number than it is stored with.

use std::collections::HashMap;

use futures::{TryStreamExt, future::join_all};
use mongodb::{
    Client, Collection, Namespace,
    bson::{Bson, Document, RawDocumentBuf, doc},
    error::Error,
    options::ReadConcern,
};
use tokio::sync::oneshot;

use crate::{
    DocumentRef,
    claim::primary,
    codes::{self, Verdict},
    entry::{NotAnArray, OUTBOX, Slot, read_outbox},
    filter,
    lane::{Lane, by_collection},
};

/// Documents of one `find`: the server returns so many at once.
const MOST: u32 = 100;

/// What is read of a document: none when it is gone.
pub(crate) type Read = Option<Result<Vec<Slot>, NotAnArray>>;

/// Reads outboxes; clones share one lane.
#[derive(Debug, Clone)]
pub(crate) struct Reads {
    client: Client,
    lane: Lane<Request>,
}

#[derive(Debug)]
struct Request {
    document: DocumentRef,
    /// Its `_id`.
    id: Bson,
    answer: oneshot::Sender<Result<Read, Error>>,
}

impl Reads {
    /// Must be called inside a tokio runtime; sends nothing by itself.
    pub(crate) fn start(client: Client) -> Self {
        let reader = client.clone();
        let lane = Lane::start(MOST as usize, move |requests: Vec<Request>| {
            let client = reader.clone();
            async move {
                let collections = by_collection(requests, |request| &request.document.namespace);
                join_all(collections.map(|batch| settle(&client, batch))).await;
            }
        });
        Self { client, lane }
    }

    /// Reads an outbox, from the primary, as it stands there.
    pub(crate) async fn read(&self, document: &DocumentRef) -> Result<Read, Error> {
        // Some ids would be read as an expression, and some can't be in a list at all.
        let Some(id) = document.listable_id() else {
            return alone(&self.client, document).await;
        };
        if let Some(_turn) = self.lane.turn_for_one() {
            return alone(&self.client, document).await;
        }
        let (answer, answered) = oneshot::channel();
        let ended = || Error::custom("the task that reads outboxes has ended");
        match self.lane.join(Request { document: document.clone(), id, answer }).await {
            true => answered.await.unwrap_or_else(|_| Err(ended())),
            false => Err(ended()),
        }
    }
}

fn collection(client: &Client, namespace: &Namespace) -> Collection<RawDocumentBuf> {
    client.database(&namespace.db).collection(&namespace.coll)
}

async fn alone(client: &Client, document: &DocumentRef) -> Result<Read, Error> {
    let filter = document.select(Document::new());
    let projection = doc! { OUTBOX: 1 };
    let found = filter::find(client, &document.namespace, filter, projection, ReadConcern::local()).await?;
    Ok(found.as_ref().map(outbox))
}

async fn settle(client: &Client, batch: Vec<Request>) {
    let found = match batch.as_slice() {
        [first, _, ..] => match together(client, &first.document.namespace, &batch).await {
            // Something of one of them; each has the right to its own error.
            Err(error) if codes::verdict(&error) == Verdict::Refused => Ok(HashMap::new()),
            found => found,
        },
        _ => Ok(HashMap::new()),
    };
    let answers = batch.into_iter().map(|Request { document, answer, .. }| {
        let found = match &found {
            Ok(found) => Ok(found.get(document.key().as_bytes())),
            Err(error) => Err(error.clone()),
        };
        async move {
            let read = match found {
                Ok(Some(raw)) => Ok(Some(outbox(raw))),
                Ok(None) => alone(client, &document).await,
                Err(error) => Err(error),
            };
            // Whoever asked may have gone.
            let _ = answer.send(read);
        }
    });
    join_all(answers).await;
}

/// Documents, by their key of an `_id` alone.
async fn together(
    client: &Client,
    namespace: &Namespace,
    batch: &[Request],
) -> Result<HashMap<Vec<u8>, RawDocumentBuf>, Error> {
    let ids: Vec<_> = batch.iter().map(|request| request.id.clone()).collect();
    let mut found = collection(client, namespace)
        .find(doc! { "_id": { "$in": ids } })
        .projection(doc! { OUTBOX: 1 })
        .batch_size(MOST)
        .read_concern(ReadConcern::local())
        .selection_criteria(primary())
        .await?;
    let mut documents = HashMap::with_capacity(batch.len());
    while let Some(document) = found.try_next().await? {
        if let Some(named) = DocumentRef::of_stored(namespace.clone(), &document) {
            documents.insert(named.key().as_bytes().to_vec(), document);
        }
    }
    Ok(documents)
}

fn outbox(document: &RawDocumentBuf) -> Result<Vec<Slot>, NotAnArray> {
    // Bytes that are no BSON: the server would not have stored them.
    let unreadable = |_| NotAnArray("bytes that cannot be read");
    let value = document.get(OUTBOX).map_err(unreadable)?;
    let value = value.map(Bson::try_from).transpose().map_err(unreadable)?;
    read_outbox(value.as_ref())
}
