//! Clears go out in windows, as [`lane`](crate::mongo::batching) makes them: one unordered `update` command per collection.
//!
//! A clear that has no clean answer, whether for the whole window or interrupted by itself, is tried
//! again, alone, for as long as its claim may hold. It matches ids and the claim, so that it can be repeated at will; what is
//! never cleared is delivered again.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use futures::future::join_all;
use metrics::Counter;
use mongodb::{
    Client, Database, Namespace,
    bson::{Document, doc},
    error::Error,
};
use serde::Serialize;
use tokio::{
    sync::oneshot,
    time::{Instant, sleep, timeout_at},
};

use crate::{
    encoding::codec,
    mongo::{
        batching::{Lane, by_collection},
        concern::primary,
        error_codes::{self, Verdict},
        statement::{Delivered, Update},
        write::UpdateStatement,
    },
    stored::filter::Filter,
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
/// The pauses between tries of a single clear.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Sends clears; clones share one lane.
#[derive(Debug, Clone)]
pub(crate) struct Clears {
    wire: Wire,
    lane: Lane<Request>,
}

/// How windows are sent.
#[derive(Debug, Clone)]
struct Wire {
    client: Client,
    lost: Counter,
    /// How long a clear is tried.
    lease: Duration,
}

/// How a clear was answered.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum ClearOutcome {
    /// The entries are gone, or are about to be: the server has done it, the majority perhaps not yet.
    Done,
    /// Its claim held none of the entries.
    ClaimLost,
    /// For this reason the entries stay, and are delivered again once the claim has run out.
    Failed(String),
}

/// A statement as it is in a command.
#[derive(Debug, Serialize)]
struct Pull {
    q: Filter,
    u: Document,
}

impl Pull {
    fn of(delivered: &Delivered) -> Self {
        let cleared = doc! { "id": { "$in": &delivered.ids }, "claimed_by": &delivered.token };
        Self { q: delivered.document.select(Document::new()), u: doc! { "$pull": { "outbox": cleared } } }
    }
}

#[derive(Debug)]
struct Request {
    namespace: Namespace,
    statement: Pull,
    /// About how long the statement is.
    bytes: usize,
    done: oneshot::Sender<ClearOutcome>,
}

impl Clears {
    /// Claims hold for `lease`. Those that turn out to be lost are counted where no caller can be told.
    pub(crate) fn start(client: Client, lost: Counter, lease: Duration) -> Self {
        let wire = Wire { client, lost, lease };
        let sender = wire.clone();
        let lane = Lane::start(WINDOW, move |requests: Vec<Request>, place| {
            let wire = sender.clone();
            async move {
                let _place = place;
                settle_all(&wire, requests).await;
            }
        });
        Self { wire, lane }
    }

    /// Removes these entries where the claim still holds them; resolves once the server has done it.
    pub(crate) async fn clear(&self, delivered: &Delivered) -> ClearOutcome {
        let (request, outcome) = Request::of(delivered);
        if let Some(_turn) = self.lane.turn_for_one() {
            settle(&self.wire, vec![request]).await;
            return outcome_of(outcome).await;
        }
        if self.lane.join(request).await
            && let Ok(outcome) = outcome.await
        {
            return outcome;
        }

        // The runtime that sends windows has ended; this one has not. A clear can be repeated at will.
        let (request, outcome) = Request::of(delivered);
        settle(&self.wire, vec![request]).await;
        outcome_of(outcome).await
    }

    /// Like [`clear`](Self::clear), for those of many documents at once; the outcomes are in their order.
    pub(crate) async fn clear_all(&self, delivered: &[Delivered]) -> Vec<ClearOutcome> {
        let (requests, outcomes): (Vec<_>, Vec<_>) = delivered.iter().map(Request::of).unzip();
        settle_all(&self.wire, requests).await;
        join_all(outcomes.into_iter().map(outcome_of)).await
    }

    /// Sends an update once, without waiting for the majority.
    pub(crate) async fn send_once(&self, update: Update) -> Result<(), Error> {
        let database = self.wire.client.database(&update.namespace.db);
        let statement = UpdateStatement::of(&update);
        let reply = send(&database, &update.namespace.coll, std::slice::from_ref(&statement)).await?;
        match read_reply(&reply, 1).pop() {
            Some(Cleared::Refused(why) | Cleared::Open(why)) => Err(error_codes::lost(why)),
            Some(Cleared::Done | Cleared::Lost) | None => Ok(()),
        }
    }
}

impl Request {
    fn of(delivered: &Delivered) -> (Self, oneshot::Receiver<ClearOutcome>) {
        let (done, answer) = oneshot::channel();
        let namespace = delivered.document.namespace.clone();
        let key = delivered.document.key().as_bytes().len();
        let bytes = STATEMENT_BYTES + key + delivered.token.len() + delivered.ids.len() * ID_BYTES;
        (Self { namespace, statement: Pull::of(delivered), bytes, done }, answer)
    }
}

async fn outcome_of(answered: oneshot::Receiver<ClearOutcome>) -> ClearOutcome {
    match answered.await {
        Ok(outcome) => outcome,
        Err(_ended) => ClearOutcome::Failed("the clearing task has ended".into()),
    }
}

/// Sends clears in windows, side by side: one that meets a document which somebody holds holds up no other.
async fn settle_all(wire: &Wire, requests: Vec<Request>) {
    let collections = by_collection(requests, |request| &request.namespace);
    let windows = collections.flat_map(windows);
    join_all(windows.map(|window| settle(wire, window))).await;
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

/// What became of a clear.
#[derive(Debug, Clone, PartialEq)]
enum Cleared {
    Done,
    /// Its claim held none of the entries.
    Lost,
    Refused(String),
    /// It may have been done or not.
    Open(String),
}

/// Sends a window, and what has no answer of it statement by statement.
async fn settle(wire: &Wire, requests: Vec<Request>) {
    let Some(namespace) = requests.first().map(|request| request.namespace.clone()) else { return };
    let deadline = Instant::now() + wire.lease;
    let database = wire.client.database(&namespace.db);
    let (statements, waiting): (Vec<_>, Vec<_>) =
        requests.into_iter().map(|request| (request.statement, request.done)).unzip();

    let sent = timeout_at(deadline, send(&database, &namespace.coll, &statements)).await;
    let outcomes = match sent {
        Ok(Ok(reply)) => read_first(wire, &namespace, &reply, statements.len()),
        Ok(Err(error)) => vec![of_error(&error); statements.len()],
        Err(_elapsed) => vec![Cleared::Open("no answer while the claim held".into()); statements.len()],
    };

    let settled = outcomes.into_iter().zip(&statements).zip(waiting).map(|((outcome, statement), done)| {
        let (database, collection) = (&database, &namespace.coll);
        async move {
            let outcome = match outcome {
                Cleared::Open(why) => settle_one(database, collection, statement, deadline, why).await,
                outcome => outcome,
            };
            let answer = match outcome {
                Cleared::Done => ClearOutcome::Done,
                Cleared::Lost => ClearOutcome::ClaimLost,
                Cleared::Refused(why) | Cleared::Open(why) => ClearOutcome::Failed(why),
            };
            // The caller may have gone.
            let _gone = done.send(answer);
        }
    });
    join_all(settled).await;
}

/// Sends a clear again and again, until it has an answer or its claim has run out.
async fn settle_one(
    database: &Database,
    collection: &str,
    statement: &Pull,
    deadline: Instant,
    why: String,
) -> Cleared {
    let mut outcome = Cleared::Open(why);
    let mut pauses = ExponentialBuilder::default()
        .with_min_delay(FIRST_PAUSE)
        .with_max_delay(LONGEST_PAUSE)
        .with_jitter()
        .without_max_times()
        .build();
    while matches!(outcome, Cleared::Open(_)) {
        let pause = pauses.next().unwrap_or(LONGEST_PAUSE);
        if Instant::now() + pause >= deadline {
            break;
        }
        sleep(pause).await;

        let sent = timeout_at(deadline, send(database, collection, std::slice::from_ref(statement))).await;
        outcome = match sent {
            // How many entries it found says nothing: an earlier try may have removed them.
            Ok(Ok(reply)) => read_reply(&reply, 1).pop().unwrap_or(Cleared::Done),
            Ok(Err(error)) => of_error(&error),
            Err(_elapsed) => break,
        };
    }
    outcome
}

fn of_error(error: &Error) -> Cleared {
    if error_codes::verdict(error) == Verdict::Refused {
        Cleared::Refused(error.to_string())
    } else {
        Cleared::Open(error.to_string())
    }
}

/// Reads the reply to a first send, which tells of claims that were lost, too.
fn read_first(wire: &Wire, namespace: &Namespace, reply: &Document, statements: usize) -> Vec<Cleared> {
    let mut outcomes = read_reply(reply, statements);
    let lost = lost_claims(reply);
    if lost == 0 {
        return outcomes;
    }
    if let [only] = &mut outcomes[..] {
        *only = Cleared::Lost;
        return outcomes;
    }

    tracing::warn!(
        collection = namespace.to_string(),
        claims = lost,
        "claims ran out while their holder worked; messages may be delivered again"
    );
    wire.lost.increment(lost);
    outcomes
}

/// The command of a window.
#[derive(Serialize)]
struct Window<'a, S> {
    update: &'a str,
    updates: &'a [S],
    ordered: bool,
    #[serde(rename = "writeConcern")]
    write_concern: Document,
    #[serde(rename = "maxTimeMS")]
    longest: i64,
}

async fn send<S: Serialize>(
    database: &Database,
    collection: &str,
    statements: &[S],
) -> Result<Document, Error> {
    let command = Window {
        update: collection,
        updates: statements,
        ordered: false,
        write_concern: doc! { "w": 1 },
        longest: LONGEST_MILLIS,
    };
    let command = codec::encode(&command).map_err(|error| error_codes::unencodable(error.to_string()))?;
    database.run_raw_command(command).selection_criteria(primary()).await
}

/// How many statements found their document, and nothing in it that they would remove. The reply of a first send says so;
/// after a repeated one it may be what the first has done.
fn lost_claims(reply: &Document) -> u64 {
    let number = |name| reply.get_i32(name).unwrap_or(0);
    u64::try_from(number("n") - number("nModified")).unwrap_or(0)
}

/// One outcome per statement. `run_command` returns `Ok` for a reply that refuses single statements: read it.
fn read_reply(reply: &Document, statements: usize) -> Vec<Cleared> {
    let mut outcomes = vec![Cleared::Done; statements];
    for error in reply.get_array("writeErrors").into_iter().flatten().filter_map(|error| error.as_document())
    {
        let index = error.get_i32("index").ok().and_then(|index| usize::try_from(index).ok());
        if let Some(outcome) = index.and_then(|index| outcomes.get_mut(index)) {
            let why = error.get_str("errmsg").unwrap_or("refused").to_owned();
            let is_interrupted = error.get_i32("code").is_ok_and(error_codes::interrupts);
            *outcome = if is_interrupted { Cleared::Open(why) } else { Cleared::Refused(why) };
        }
    }
    outcomes
}

#[cfg(test)]
mod tests {
    use mongodb::bson::Uuid;

    use super::*;
    use crate::stored::document_ref::DocumentRef;

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

    #[tokio::test]
    async fn a_clear_that_cannot_be_encoded_is_refused_in_words() {
        let nowhere = mongodb::options::ClientOptions::builder().hosts(Vec::new()).build();
        let database = Client::with_options(nowhere).unwrap().database("shop");
        let pull = Pull { q: doc! { "a\0b": 1 }.into(), u: Document::new() };
        let error = send(&database, "orders", &[pull]).await.unwrap_err();
        assert!(matches!(of_error(&error), Cleared::Refused(why) if why.contains("null byte")), "{error}");
    }

    #[test]
    fn a_refused_statement_fails_alone() {
        let reply = doc! { "ok": 1, "n": 2, "writeErrors": [{ "index": 1, "code": 2, "errmsg": "no" }] };
        assert_eq!(read_reply(&reply, 3), [Cleared::Done, Cleared::Refused("no".into()), Cleared::Done]);
    }

    #[test]
    fn an_interrupted_statement_stays_open() {
        let interrupted = |code: i32| {
            let error = doc! { "index": 0, "code": code, "errmsg": "later" };
            read_reply(&doc! { "ok": 1, "n": 0, "writeErrors": [error] }, 1)
        };
        for code in [10107, 189, 112] {
            assert_eq!(interrupted(code), [Cleared::Open("later".into())]);
        }
    }

    #[test]
    fn a_claim_counts_as_lost_where_its_document_is_there_and_nothing_of_it_was_removed() {
        let lost =
            |found: i32, removed: i32| lost_claims(&doc! { "ok": 1, "n": found, "nModified": removed });
        assert_eq!((lost(3, 3), lost(3, 1), lost(0, 0)), (0, 2, 0));
    }
}
