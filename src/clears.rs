//! Clears go out in windows, as [`lane`](crate::lane) makes them: one unordered `update` command per collection.

use backon::{ExponentialBuilder, Retryable};
use futures::future::join_all;
use metrics::Counter;
use mongodb::{
    Client, Database, Namespace,
    bson::{Document, Uuid, doc},
    error::Error,
};
use serde::Serialize;
use tokio::sync::oneshot;

use crate::{
    DocumentRef,
    claim::primary,
    codec,
    codes::{self, Verdict},
    filter::Filter,
    lane::{Lane, by_collection},
};

/// The server's own bound on the statements of one command is far above this.
const WINDOW: usize = 1_000;
/// Bytes of one command, below the 16 MiB that it may have.
const MOST_BYTES: usize = 12 << 20;
/// An id in a statement, with its place in the list; and all that is neither ids nor names.
const ID_BYTES: usize = 30;
const STATEMENT_BYTES: usize = 200;
/// A window that takes longer has met a document that a transaction holds.
const LONGEST_MILLIS: i64 = 1_000;

/// Sends clears; clones share one lane.
#[derive(Debug, Clone)]
pub(crate) struct Clears {
    client: Client,
    lost: Counter,
    lane: Lane<Request>,
}

/// Entries of a document that were delivered under a claim.
#[derive(Debug, Clone)]
pub(crate) struct Delivered {
    pub(crate) document: DocumentRef,
    /// The claim's value.
    pub(crate) token: String,
    pub(crate) ids: Vec<Uuid>,
}

impl Delivered {
    /// The statement that clears them. It matches ids and the claim, so that it can be repeated at will.
    fn statement(&self) -> Pull {
        let delivered = doc! { "id": { "$in": &self.ids }, "claimed_by": &self.token };
        Pull { q: self.document.select(Document::new()), u: doc! { "$pull": { "outbox": delivered } } }
    }
}

/// A statement as it is in a command.
#[derive(Debug, Serialize)]
struct Pull {
    q: Filter,
    u: Document,
}

#[derive(Debug)]
struct Request {
    namespace: Namespace,
    statement: Pull,
    /// About how long the statement is.
    bytes: usize,
    done: oneshot::Sender<Result<bool, String>>,
}

impl Clears {
    /// Claims that turn out to be lost are counted where no caller can be told of them.
    pub(crate) fn start(client: Client, lost: Counter) -> Self {
        let lane = {
            let (client, lost) = (client.clone(), lost.clone());
            Lane::start(WINDOW, move |requests: Vec<Request>| {
                let (client, lost) = (client.clone(), lost.clone());
                async move { settle_all(&client, requests, &lost).await }
            })
        };
        Self { client, lost, lane }
    }

    /// Removes these entries where the claim still holds them; resolves once the server has done it. False when it is known to
    /// have held none of them.
    ///
    /// # Errors
    /// A text; the entries then stay, and are delivered again once the claim has run out.
    pub(crate) async fn clear(&self, delivered: &Delivered) -> Result<bool, String> {
        let (request, answer) = Request::of(delivered);
        if let Some(_turn) = self.lane.turn_for_one() {
            settle(&self.client, vec![request], &self.lost).await;
            return answer.await.map_err(|_| ENDED)?;
        }
        if self.lane.join(request).await
            && let Ok(answer) = answer.await
        {
            return answer;
        }

        // The runtime that sends windows has ended; this one has not. A clear can be repeated at will.
        let (request, answer) = Request::of(delivered);
        settle(&self.client, vec![request], &self.lost).await;
        answer.await.map_err(|_| ENDED)?
    }

    /// Like [`clear`](Self::clear), for those of many documents at once; the answers are in their order.
    pub(crate) async fn clear_all(&self, delivered: &[Delivered]) -> Vec<Result<bool, String>> {
        let (requests, answers): (Vec<_>, Vec<_>) = delivered.iter().map(Request::of).unzip();
        settle_all(&self.client, requests, &self.lost).await;
        let answers = answers.into_iter().map(|answer| async { answer.await.map_err(|_| ENDED)? });
        join_all(answers).await
    }
}

impl Request {
    fn of(delivered: &Delivered) -> (Self, oneshot::Receiver<Result<bool, String>>) {
        let (done, answer) = oneshot::channel();
        let namespace = delivered.document.namespace.clone();
        let key = delivered.document.key().as_bytes().len();
        let bytes = STATEMENT_BYTES + key + delivered.token.len() + delivered.ids.len() * ID_BYTES;
        (Self { namespace, statement: delivered.statement(), bytes, done }, answer)
    }
}

const ENDED: &str = "the clearing task has ended";

/// Sends clears in windows, side by side: one that meets a document which somebody holds holds up no other.
async fn settle_all(client: &Client, requests: Vec<Request>, lost: &Counter) {
    let collections = by_collection(requests, |request| &request.namespace);
    let windows = collections.flat_map(windows);
    join_all(windows.map(|window| settle(client, window, lost))).await;
}

/// Each no larger than a command may be: a claim can have a thousand entries, and a document a key of any size.
fn windows(requests: Vec<Request>) -> Vec<Vec<Request>> {
    let mut windows: Vec<Vec<Request>> = Vec::new();
    let mut bytes = 0;
    for request in requests {
        bytes += request.bytes;
        match windows.last_mut() {
            Some(window) if window.len() < WINDOW && bytes <= MOST_BYTES => window.push(request),
            _ => {
                bytes = request.bytes;
                windows.push(vec![request]);
            }
        }
    }
    windows
}

/// Sends a window; where it has no answer as a whole, each of its statements by itself.
async fn settle(client: &Client, requests: Vec<Request>, lost: &Counter) {
    let Some(namespace) = requests.first().map(|request| request.namespace.clone()) else { return };
    let database = client.database(&namespace.db);
    let (statements, waiting): (Vec<_>, Vec<_>) =
        requests.into_iter().map(|request| (request.statement, request.done)).unzip();
    let answers = match send(&database, &namespace.coll, &statements).await {
        Ok(reply) => {
            let mut answers = read_reply(&reply, statements.len());
            match (lost_claims(&reply), &mut answers[..]) {
                (0, _) => {}
                (_, [only]) => *only = only.clone().map(|_| false),
                (claims, _) => {
                    tracing::warn!(
                        collection = %namespace,
                        claims,
                        "claims ran out while their holder worked; messages may be delivered again"
                    );
                    lost.increment(claims);
                }
            }
            answers
        }
        Err(error) if codes::verdict(&error) == Verdict::Refused => {
            vec![Err(error.to_string()); statements.len()]
        }
        Err(_) => {
            let singly = statements.iter().map(|statement| {
                let (database, collection) = (&database, &namespace.coll);
                async move {
                    let tries = ExponentialBuilder::default().with_jitter().with_max_times(3);
                    let send = || send(database, collection, std::slice::from_ref(statement));
                    let again = |error: &Error| codes::verdict(error) != Verdict::Refused;
                    let reply = send.retry(tries).when(again).await.map_err(|error| error.to_string())?;
                    read_reply(&reply, 1).pop().unwrap_or(Ok(true))
                }
            });
            join_all(singly).await
        }
    };
    for (done, answer) in waiting.into_iter().zip(answers) {
        // Whoever asked may have gone.
        let _ = done.send(answer);
    }
}

/// The command of a window.
#[derive(Serialize)]
struct Update<'a> {
    update: &'a str,
    updates: &'a [Pull],
    ordered: bool,
    #[serde(rename = "writeConcern")]
    write_concern: Document,
    #[serde(rename = "maxTimeMS")]
    longest: i64,
}

async fn send(database: &Database, collection: &str, statements: &[Pull]) -> Result<Document, Error> {
    let command = Update {
        update: collection,
        updates: statements,
        ordered: false,
        write_concern: doc! { "w": 1 },
        longest: LONGEST_MILLIS,
    };
    let command = codec::encode(&command).map_err(Error::custom)?;
    database.run_raw_command(command).selection_criteria(primary()).await
}

/// How many statements found their document, and nothing in it that they would remove. The reply of a first send says so;
/// after a repeated one it may be what the first has done.
fn lost_claims(reply: &Document) -> u64 {
    let number = |name| reply.get_i32(name).unwrap_or(0);
    u64::try_from(number("n") - number("nModified")).unwrap_or(0)
}

/// One answer per statement. `run_command` returns `Ok` for a reply that refuses single statements: read it.
fn read_reply(reply: &Document, statements: usize) -> Vec<Result<bool, String>> {
    let mut answers = vec![Ok(true); statements];
    for error in reply.get_array("writeErrors").into_iter().flatten().filter_map(|error| error.as_document())
    {
        let index = error.get_i32("index").ok().and_then(|index| usize::try_from(index).ok());
        if let Some(answer) = index.and_then(|index| answers.get_mut(index)) {
            *answer = Err(error.get_str("errmsg").unwrap_or("refused").to_owned());
        }
    }
    answers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_no_larger_than_a_command_may_be() {
        let request = |ids: usize| {
            let document = DocumentRef::by_id(Namespace::new("shop", "orders"), 1);
            let ids = vec![Uuid::new(); ids];
            Request::of(&Delivered { document, token: "p/1".into(), ids }).0
        };
        let full = codec::encode(&request(1_000).statement).unwrap().as_bytes().len();
        assert!(full <= request(1_000).bytes, "{full}");
        let requests: Vec<_> = (0..WINDOW).map(|_| request(1_000)).collect();
        let windows = windows(requests);
        assert!(windows.len() > 1);
        for window in windows {
            assert!(window.iter().map(|request| request.bytes).sum::<usize>() <= MOST_BYTES);
        }
    }

    #[test]
    fn a_refused_statement_fails_alone() {
        let reply = doc! { "ok": 1, "n": 2, "writeErrors": [{ "index": 1, "code": 2, "errmsg": "no" }] };
        assert_eq!(read_reply(&reply, 3), [Ok(true), Err("no".into()), Ok(true)]);
    }

    #[test]
    fn a_claim_counts_as_lost_where_its_document_is_there_and_nothing_of_it_was_removed() {
        let lost =
            |found: i32, removed: i32| lost_claims(&doc! { "ok": 1, "n": found, "nModified": removed });
        assert_eq!((lost(3, 3), lost(3, 1), lost(0, 0)), (0, 2, 0));
    }
}
