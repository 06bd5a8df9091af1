//! Group commit: updates of concurrent savers and claimers go to the server together.
//!
//! # Flow
//! Updates that arrive while the last batches are in flight make the next one: one `update` command with a statement each,
//! and one wait for the majority. No timer: an update that arrives alone is sent alone and at once, by the task that brings
//! it. Inserts, deletes and large updates always go alone. All of them are sent and answered by [`batch`].
//!
//! # Guarantees
//! Each write has an answer of its own, as exact as if it had been sent alone, and has it within [`WRITE_TIMEOUT`](crate::mongo::write::WRITE_TIMEOUT).
//!
//! # Caveats
//! A server that takes no retryable writes from us (a standalone one, some that only speak MongoDB's protocol) refuses every
//! batch. Once it has refused one and then done all its statements one by one, the writes of that collection go one by one
//! for [`ONE_BY_ONE`].

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::future::join_all;
use mongodb::{Client, Namespace, bson::RawDocumentBuf};
use tokio::time::{Instant, timeout_at};

use crate::{
    encoding::codec,
    mongo::{
        batch::{self, Wire},
        batching::{Lane, Place},
        error_codes,
        request::Request,
        statement::{Delete, Insert, Update},
        write::{DeleteStatement, Kind, UpdateStatement, WriteOutcome},
    },
};

/// Statements of one command.
const MOST_STATEMENTS: usize = 1_000;
/// Bytes of one command, below the 16 MiB that a message may have with room for what surrounds the statements.
const MOST_BYTES: usize = 12 << 20;
/// An update larger than this goes alone: it would hold others up for longer than it could gain.
const LARGE: usize = 64 << 10;
/// How long a collection's refusal of batches is remembered.
const ONE_BY_ONE: Duration = Duration::from_secs(60);

/// How writes are sent; clones share one lane.
#[derive(Clone)]
pub(crate) struct Writes {
    sender: Arc<Sender>,
    /// None where each goes alone.
    lane: Option<Lane<Request>>,
}

impl std::fmt::Debug for Writes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writes").field("lane", &self.lane).finish_non_exhaustive()
    }
}

impl Writes {
    /// Each write alone.
    pub(crate) fn single(client: Client) -> Self {
        Self { sender: Arc::new(Sender::new(client)), lane: None }
    }

    /// Concurrent updates together. Must be called inside a tokio runtime; sends nothing by itself.
    pub(crate) fn grouped(client: Client) -> Self {
        let sender = Arc::new(Sender::new(client));
        let lane = {
            let sender = sender.clone();
            Lane::start(MOST_STATEMENTS, move |requests, place| settle_all(sender.clone(), requests, place))
        };
        Self { sender, lane: Some(lane) }
    }

    /// Sends an update, with majority. If its caller goes away meanwhile, it may be sent or not.
    pub(crate) async fn update(&self, update: Update) -> WriteOutcome {
        let statement = match codec::encode(&UpdateStatement::of(&update)) {
            Ok(statement) => statement,
            Err(error) => return WriteOutcome::Failed(error_codes::unencodable(error.to_string())),
        };
        let namespace = update.namespace;
        let Some(lane) = self.lane.as_ref().filter(|_| statement.as_bytes().len() <= LARGE) else {
            return self.alone(Kind::Update, namespace, statement, None).await;
        };
        if let Some(place) = lane.turn_for_one() {
            return self.alone(Kind::Update, namespace, statement, Some(place)).await;
        }

        let (request, waiter) = Request::new(Kind::Update, namespace, statement);
        // A request that doesn't get in is dropped, which its waiter notices.
        let _joined = timeout_at(waiter.deadline, lane.join(request)).await;
        waiter.answer().await
    }

    /// Sends an insert, with majority.
    pub(crate) async fn insert(&self, insert: Insert) -> WriteOutcome {
        self.alone(Kind::Insert, insert.namespace, insert.document, None).await
    }

    /// Sends a delete of one document, with majority.
    pub(crate) async fn delete(&self, delete: Delete) -> WriteOutcome {
        match codec::encode(&DeleteStatement { q: &delete.filter, limit: 1 }) {
            Ok(statement) => self.alone(Kind::Delete, delete.namespace, statement, None).await,
            Err(error) => WriteOutcome::Failed(error_codes::unencodable(error.to_string())),
        }
    }

    async fn alone(
        &self,
        kind: Kind,
        namespace: Namespace,
        statement: RawDocumentBuf,
        place: Option<Place>,
    ) -> WriteOutcome {
        let (request, waiter) = Request::new(kind, namespace, statement);
        let _settled = timeout_at(waiter.deadline, settle(&self.sender, vec![request], place)).await;
        waiter.answer().await
    }
}

/// By collection, each no larger than a command may be, in the order they came.
fn batches(requests: Vec<Request>) -> Vec<Vec<Request>> {
    let mut batches: Vec<Vec<Request>> = Vec::new();
    let mut filling: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for request in requests {
        let namespace = request.namespace.to_string();
        let size = request.statement.as_bytes().len();
        match filling.get_mut(&namespace) {
            Some((batch, bytes)) if *bytes + size <= MOST_BYTES => {
                *bytes += size;
                batches[*batch].push(request);
            }
            _ => {
                filling.insert(namespace, (batches.len(), size));
                batches.push(vec![request]);
            }
        }
    }
    batches
}

/// Sends what the lane gives out together.
async fn settle_all(sender: Arc<Sender>, requests: Vec<Request>, place: Place) {
    let mut batches = batches(requests);
    if batches.len() == 1 {
        return settle(&sender, batches.remove(0), Some(place)).await;
    }
    join_all(batches.into_iter().map(|batch| settle(&sender, batch, None))).await;
    drop(place);
}

/// Sends writes of one collection and gives each its answer.
async fn settle(sender: &Sender, requests: Vec<Request>, place: Option<Place>) {
    let Some(namespace) = requests.first().map(|request| request.namespace.clone()) else { return };
    if sender.goes_one_by_one(&namespace) {
        send_plain(sender, requests).await;
        return;
    }

    let were_together = requests.len() > 1;
    let mut refused = batch::settle(&sender.wire, requests, place).await;
    if were_together {
        // What was refused may be one of them; each has the right to its own answer.
        let singly = refused.into_iter().map(|request| batch::settle(&sender.wire, vec![request], None));
        refused = join_all(singly).await.into_iter().flatten().collect();
    }
    if !refused.is_empty() && send_plain(sender, refused).await {
        sender.go_one_by_one(&namespace);
    }
}

/// Sends each write by itself and once; whether the server has done them all.
async fn send_plain(sender: &Sender, requests: Vec<Request>) -> bool {
    let sent = requests.into_iter().map(|request| async move {
        let answer = batch::send_plain(&sender.wire, &request).await;
        let is_done = matches!(answer, WriteOutcome::Done | WriteOutcome::Missed);
        // The caller may have gone.
        let _gone = request.answer.send(answer);
        is_done
    });
    join_all(sent).await.into_iter().all(|is_done| is_done)
}

struct Sender {
    wire: Wire,
    /// Collections that took one by one what they had refused as a batch, and when.
    one_by_one: Mutex<HashMap<String, Instant>>,
}

impl Sender {
    fn new(client: Client) -> Self {
        Self { wire: Wire::new(client), one_by_one: Mutex::default() }
    }

    fn goes_one_by_one(&self, namespace: &Namespace) -> bool {
        let mut refused = self.one_by_one.lock().unwrap_or_else(PoisonError::into_inner);
        if refused.is_empty() {
            return false;
        }
        refused.retain(|_, since| since.elapsed() < ONE_BY_ONE);
        refused.contains_key(&namespace.to_string())
    }

    fn go_one_by_one(&self, namespace: &Namespace) {
        let mut refused = self.one_by_one.lock().unwrap_or_else(PoisonError::into_inner);
        refused.insert(namespace.to_string(), Instant::now());
        tracing::warn!(
            collection = namespace.to_string(),
            seconds = ONE_BY_ONE.as_secs(),
            "the server refuses retryable writes of several statements and takes them one by one: so they go for a while"
        );
    }
}

#[cfg(test)]
mod tests {
    use mongodb::bson::rawdoc;

    use super::*;

    fn request(namespace: &str, bytes: usize) -> Request {
        let (db, coll) = namespace.split_once('.').unwrap();
        let statement = rawdoc! { "q": "x".repeat(bytes) };
        Request::new(Kind::Update, Namespace::new(db, coll), statement).0
    }

    #[test]
    fn a_batch_is_of_one_collection_and_no_larger_than_a_command_may_be() {
        let requests = vec![
            request("a.x", MOST_BYTES - 60),
            request("a.y", 1),
            request("a.x", 10),
            request("a.x", 60),
            request("a.y", 1),
        ];
        let batches = batches(requests);
        let made: Vec<_> =
            batches.iter().map(|batch| (batch[0].namespace.coll.as_str(), batch.len())).collect();
        assert_eq!(made, [("x", 2), ("y", 2), ("x", 1)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_of_batches_is_forgotten_after_a_minute() {
        let options = mongodb::options::ClientOptions::builder().hosts(Vec::new()).build();
        let sender = Sender::new(Client::with_options(options).unwrap());
        let (refusing, other) = (Namespace::new("a", "x"), Namespace::new("a", "y"));
        sender.go_one_by_one(&refusing);
        assert!(sender.goes_one_by_one(&refusing) && !sender.goes_one_by_one(&other));
        tokio::time::advance(ONE_BY_ONE).await;
        assert!(!sender.goes_one_by_one(&refusing));
    }
}
