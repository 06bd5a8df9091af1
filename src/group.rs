//! Group commit: updates of concurrent savers and claimers go to the server together.
//!
//! # Flow
//! Whatever comes while the last batches are in flight makes the next one: one `update` command with a statement each, and one
//! wait for the majority. No timer: an update that comes alone is sent alone and at once, by the task that brings it, as
//! the driver sends any other.
//!
//! # Guarantees
//! Each update has an answer of its own, as exact as if it had been sent alone:
//! - Every statement is an upsert that would insert another `_id` than its filter names. Where the filter matches that is
//!   inert; where not, the server refuses that statement by its index with code 66 and inserts nothing. That tells those
//!   that matched from those that missed, which the reply's sum does not.
//! - A command is a *retryable write*: repeated in the same session under the same `txnNumber`, the server answers for
//!   the statements it has executed instead of executing them again. A reply that leaves open whether they will last (no
//!   answer, a write concern that was not met, an interruption) decides nothing; the command is repeated until a clean
//!   reply comes, and if none does the updates are [`Answer::Unknown`].
//! - What is refused in company is sent again alone, so that the error is its own.
//!
//! # Invariants
//! - The sessions are this module's alone and never go back to the driver's pool: another's `txnNumber` in the same
//!   session would be answered with "done" for writes that were never made. They count from 2^40, beyond any number that
//!   the driver has used in them.
//! - A filter names `_id` by equality, and an update leaves `_id` alone.
//!
//! # Caveats
//! An upsert needs the privilege `insert` besides `update`, although it inserts nothing. Without it every update goes alone.
//!
//! An update that takes long (a transaction holds its document) holds up those of its batch: after [`LONGEST`] the batch is
//! taken apart. The next ones overtake it before that.

use std::{
    collections::{BTreeMap, VecDeque},
    mem::ManuallyDrop,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use backon::{BackoffBuilder, ExponentialBuilder};
use futures::future::join_all;
use mongodb::{
    Client, ClientSession, Namespace,
    bson::{Bson, Document, doc, oid::ObjectId},
    error::Error as DriverError,
    options::SessionOptions,
};
use serde::Serialize;
use tokio::{
    sync::oneshot,
    time::{Instant, sleep, timeout_at},
};

use crate::{
    claim::{MAJORITY_TIMEOUT, primary},
    codec,
    codes::{self, Verdict},
    filter::Filter,
    lane::Lane,
    write::{self, Answer, WRITE_TIMEOUT},
};

/// Statements of one command.
const MOST_STATEMENTS: usize = 1_000;
/// Bytes of one command, below the 16 MiB that a message may have with room for what surrounds the statements.
const MOST_BYTES: usize = 12 << 20;
/// An update larger than this goes alone: it would hold others up for longer than it could gain.
const LARGE: usize = 64 << 10;
/// A command that takes longer than this to execute has met a document that somebody holds.
const LONGEST: Duration = Duration::from_secs(1);
/// Beyond what the driver has ever counted to in a session of its own.
const FIRST_NUMBER: i64 = 1 << 40;
/// The server's answer to an upsert that would insert another `_id` than its filter names: nothing matched.
const NOTHING_MATCHED: i32 = 66;

/// An update of one document, named by its `_id`.
#[derive(Debug, Clone)]
pub(crate) struct Statement {
    pub(crate) namespace: Namespace,
    pub(crate) filter: Filter,
    pub(crate) update: Document,
    pub(crate) array_filters: Vec<Document>,
}

impl Statement {
    fn bytes(&self) -> usize {
        let size = |document: &Document| crate::caps::document_bytes(document);
        self.filter.bytes() + size(&self.update) + self.array_filters.iter().map(size).sum::<usize>()
    }

    /// Has the server say where nothing matches, as the guarantees have it. Where it is sent alone, this does nothing.
    fn tell_misses(&mut self) {
        self.update.insert("$setOnInsert", doc! { "_id": ObjectId::new() });
    }

    fn in_company(&self) -> InCompany<'_> {
        InCompany { q: &self.filter, u: &self.update, upsert: true, array_filters: &self.array_filters }
    }
}

/// A statement as it stands in a command.
#[derive(Serialize)]
struct InCompany<'a> {
    q: &'a Filter,
    u: &'a Document,
    upsert: bool,
    #[serde(rename = "arrayFilters", skip_serializing_if = "<[_]>::is_empty")]
    array_filters: &'a [Document],
}

/// The command of a batch: written from what is at hand, nothing of it copied.
#[derive(Serialize)]
struct Update<'a> {
    update: &'a str,
    updates: Vec<InCompany<'a>>,
    ordered: bool,
    #[serde(rename = "txnNumber")]
    number: i64,
    #[serde(rename = "stmtIds")]
    places: Vec<i32>,
    #[serde(rename = "writeConcern")]
    write_concern: Document,
    #[serde(rename = "maxTimeMS")]
    longest: i64,
}

/// How updates are sent; clones share one lane.
#[derive(Debug, Clone)]
pub(crate) struct Writes {
    client: Client,
    /// None where each goes alone.
    lane: Option<Lane<Request>>,
}

#[derive(Debug)]
struct Request {
    statement: Statement,
    bytes: usize,
    answer: oneshot::Sender<Answer>,
}

impl Writes {
    /// Each update alone.
    pub(crate) fn single(client: Client) -> Self {
        Self { client, lane: None }
    }

    /// Concurrent updates together. Must be called inside a tokio runtime; sends nothing by itself.
    pub(crate) fn grouped(client: Client) -> Self {
        let sender = Arc::new(Sender::new(client.clone()));
        let lane = Lane::start(MOST_STATEMENTS, move |requests| {
            let settled: Vec<_> =
                batches(requests).into_iter().map(|batch| settle(sender.clone(), batch)).collect();
            async { drop(join_all(settled).await) }
        });
        Self { client, lane: Some(lane) }
    }

    /// Sends an update, with majority. Where its caller goes away meanwhile, it may be sent or not.
    pub(crate) async fn update(&self, mut statement: Statement) -> Answer {
        let bytes = statement.bytes();
        let Some(lane) = self.lane.as_ref().filter(|_| bytes <= LARGE) else {
            return alone(&self.client, statement).await;
        };
        if let Some(_turn) = lane.turn_for_one() {
            return alone(&self.client, statement).await;
        }
        statement.tell_misses();
        let (answer, answered) = oneshot::channel();
        let ended = || Answer::Unknown(DriverError::custom("the task that groups updates has ended"));
        match lane.join(Request { statement, bytes, answer }).await {
            true => answered.await.unwrap_or_else(|_| ended()),
            false => ended(),
        }
    }
}

/// An update as the driver sends it.
async fn alone(client: &Client, statement: Statement) -> Answer {
    let Statement { namespace, filter, update, array_filters } = statement;
    write::update(client, &namespace, filter, update, array_filters).await
}

struct Sender {
    client: Client,
    /// Those that no batch uses now.
    sessions: Mutex<Vec<Session>>,
    /// Set once the server has refused a batch for want of a privilege.
    forbidden: AtomicBool,
}

/// By collection, each no larger than a command may be, in the order they came.
fn batches(requests: Vec<Request>) -> Vec<Vec<Request>> {
    let mut batches: Vec<Vec<Request>> = Vec::new();
    let mut filling: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for request in requests {
        let namespace = request.statement.namespace.to_string();
        match filling.get_mut(&namespace) {
            Some((batch, bytes)) if *bytes + request.bytes <= MOST_BYTES => {
                *bytes += request.bytes;
                batches[*batch].push(request);
            }
            _ => {
                filling.insert(namespace, (batches.len(), request.bytes));
                batches.push(vec![request]);
            }
        }
    }
    batches
}

/// Sends the updates of one collection and gives each its answer.
async fn settle(sender: Arc<Sender>, batch: Vec<Request>) {
    let client = &sender.client;
    let namespace = match batch.as_slice() {
        [first, _, ..] if !sender.forbidden.load(Ordering::Relaxed) => first.statement.namespace.clone(),
        _ => return send_alone(client, batch).await,
    };
    // Without a session there is no server to send to, and each has the right to the driver's own error.
    let Ok(session) = sender.session().await else { return send_alone(client, batch).await };
    let batch = Batch::new(session, namespace, batch);
    let (session, refused) = batch.settle(&sender).await;
    if let Some(session) = session {
        sender.sessions.lock().unwrap_or_else(PoisonError::into_inner).push(session);
    }
    send_alone(client, refused).await;
}

async fn send_alone(client: &Client, requests: Vec<Request>) {
    let sent = requests.into_iter().map(|request| async move {
        // Whoever asked may have gone.
        let _ = request.answer.send(alone(client, request.statement).await);
    });
    join_all(sent).await;
}

impl Sender {
    fn new(client: Client) -> Self {
        Self { client, sessions: Mutex::default(), forbidden: AtomicBool::new(false) }
    }

    /// What the server thinks of an upsert is decided by privileges, before anything is executed.
    fn forbid(&self, error: &DriverError) {
        if !self.forbidden.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                %error,
                "updates go one by one from now on: grant `insert` on the collections as well, or turn group commit off"
            );
        }
    }

    async fn session(&self) -> Result<Session, DriverError> {
        let kept = self.sessions.lock().unwrap_or_else(PoisonError::into_inner).pop();
        match kept {
            Some(session) => Ok(session),
            None => {
                let options = SessionOptions::builder().causal_consistency(false).build();
                let session = self.client.start_session().with_options(options).await?;
                Ok(Session { session: ManuallyDrop::new(session), number: FIRST_NUMBER })
            }
        }
    }
}

/// A session that is never given back to the driver: the server forgets it half an hour after its last use.
struct Session {
    session: ManuallyDrop<ClientSession>,
    /// Of the last command.
    number: i64,
}

/// Updates on their way.
struct Batch {
    session: Session,
    namespace: Namespace,
    /// Those without an answer, each with its place in the first command.
    open: VecDeque<(i32, Request)>,
    /// Those to be sent alone: not executed, certainly.
    refused: Vec<Request>,
    deadline: Instant,
    /// Whether a command may have been executed without a clean reply.
    in_doubt: bool,
}

/// What a reply says.
#[derive(Debug, PartialEq)]
enum Reply {
    /// Of each statement, in order.
    Each(Vec<Said>),
    /// Nothing for certain.
    Nothing(String),
    /// A first command was answered as if it were a repeated one.
    Foreign,
}

/// What a reply says of a statement.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Said {
    Done,
    Missed,
    Refused,
    Interrupted,
}

impl Batch {
    fn new(mut session: Session, namespace: Namespace, requests: Vec<Request>) -> Self {
        session.number += 1;
        let open = (0..).zip(requests).collect();
        let deadline = Instant::now() + WRITE_TIMEOUT;
        Self { session, namespace, open, refused: Vec::new(), deadline, in_doubt: false }
    }

    /// Gives every update its answer but those that it returns, which were refused in company. The session comes back where it
    /// can be used again.
    async fn settle(mut self, sender: &Sender) -> (Option<Session>, Vec<Request>) {
        let mut pauses = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(10))
            .with_max_delay(Duration::from_secs(1))
            .with_jitter()
            .without_max_times()
            .build();
        let mut apart = false;
        let mut first = true;
        let mut last_error = None;
        while !self.open.is_empty() {
            let count = if apart { 1 } else { self.open.len() };
            match timeout_at(self.deadline, self.send(&sender.client, count)).await {
                Err(_elapsed) => {
                    self.in_doubt = true;
                    return (None, self.give_up(last_error));
                }
                Ok(Ok(reply)) => match read_reply(&reply, count, first) {
                    Reply::Each(each) => {
                        if self.note(each) == 0 {
                            continue;
                        }
                    }
                    Reply::Nothing(reason) => {
                        self.in_doubt = true;
                        last_error = Some(DriverError::custom(reason));
                    }
                    Reply::Foreign => {
                        self.in_doubt = true;
                        let reason = "the server took a new write for one that was repeated";
                        return (None, self.give_up(Some(DriverError::custom(reason))));
                    }
                },
                Ok(Err(error)) => match codes::verdict(&error) {
                    Verdict::NotSent => last_error = Some(error),
                    Verdict::Unknown => {
                        self.in_doubt = true;
                        apart |= codes::code(&error) == Some(OUT_OF_TIME);
                        if apart {
                            // Whoever is held up waits behind the others.
                            self.open.rotate_left(1);
                        }
                        last_error = Some(error);
                    }
                    Verdict::Refused if first && codes::code(&error) == Some(UNAUTHORIZED) => {
                        sender.forbid(&error);
                        self.refused.extend(self.open.drain(..).map(|(_, request)| request));
                        continue;
                    }
                    Verdict::Duplicate | Verdict::TooLarge | Verdict::Refused if !apart => apart = true,
                    Verdict::Duplicate | Verdict::TooLarge | Verdict::Refused => {
                        if let Some((_, request)) = self.open.pop_front() {
                            self.refused.push(request);
                        }
                        continue;
                    }
                },
            }
            first = false;
            let pause = pauses.next().unwrap_or(LONGEST);
            if Instant::now() + pause >= self.deadline {
                return (None, self.give_up(last_error));
            }
            sleep(pause).await;
        }
        (Some(self.session), self.refused)
    }

    async fn send(&mut self, client: &Client, count: usize) -> Result<Document, DriverError> {
        let millis = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
        let open = || self.open.iter().take(count);
        let command = Update {
            update: &self.namespace.coll,
            updates: open().map(|(_, request)| request.statement.in_company()).collect(),
            ordered: false,
            number: self.session.number,
            places: open().map(|(place, _)| *place).collect(),
            write_concern: doc! { "w": "majority", "wtimeout": millis(MAJORITY_TIMEOUT) },
            longest: millis(LONGEST),
        };
        let command = codec::encode(&command).map_err(DriverError::custom)?;
        let database = client.database(&self.namespace.db);
        let session = &mut *self.session.session;
        database.run_raw_command(command).session(session).selection_criteria(primary()).await
    }

    /// Answers those of the first statements that a clean reply decides; how many of them it leaves open.
    fn note(&mut self, each: Vec<Said>) -> usize {
        let mut left = VecDeque::new();
        for said in each {
            let Some((place, request)) = self.open.pop_front() else { break };
            let answer = match said {
                Said::Done => Answer::Done,
                Said::Missed => Answer::Missed,
                Said::Refused => {
                    self.refused.push(request);
                    continue;
                }
                Said::Interrupted => {
                    // By the table of `codes`: it may have been done.
                    self.in_doubt = true;
                    left.push_back((place, request));
                    continue;
                }
            };
            let _ = request.answer.send(answer);
        }
        let count = left.len();
        self.open.append(&mut left);
        count
    }

    /// No clean reply came in time.
    fn give_up(mut self, error: Option<DriverError>) -> Vec<Request> {
        let error = error.unwrap_or_else(|| DriverError::custom("no answer in time"));
        for (_, request) in self.open.drain(..) {
            let answer = match self.in_doubt {
                true => Answer::Unknown(error.clone()),
                false => Answer::Failed(error.clone()),
            };
            let _ = request.answer.send(answer);
        }
        self.refused
    }
}

/// The server's code for a command that took longer than its `maxTimeMS`.
const OUT_OF_TIME: i32 = 50;
/// The server's code for a command that the user may not send.
const UNAUTHORIZED: i32 = 13;

/// `run_command` returns `Ok` for replies that refuse single statements or whose write concern was not met: reads them.
fn read_reply(reply: &Document, statements: usize, first: bool) -> Reply {
    if let Some(concern) = reply.get("writeConcernError") {
        return Reply::Nothing(format!("the majority did not acknowledge the write: {concern}"));
    }
    if first && reply.get_array("retriedStmtIds").is_ok_and(|retried| !retried.is_empty()) {
        return Reply::Foreign;
    }
    let mut each = vec![Said::Done; statements];
    for error in reply.get_array("writeErrors").into_iter().flatten().filter_map(Bson::as_document) {
        let index = error.get_i32("index").ok().and_then(|index| usize::try_from(index).ok());
        let Some(said) = index.and_then(|index| each.get_mut(index)) else {
            return Reply::Nothing(format!("an answer about a statement that was not sent: {error}"));
        };
        *said = match error.get_i32("code") {
            Ok(NOTHING_MATCHED) => Said::Missed,
            Ok(code) if codes::interrupts(code) => Said::Interrupted,
            _ => Said::Refused,
        };
    }
    Reply::Each(each)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(namespace: &str, bytes: usize) -> Request {
        let (db, coll) = namespace.split_once('.').unwrap();
        let namespace = Namespace::new(db, coll);
        let statement =
            Statement { namespace, filter: doc! {}.into(), update: doc! {}, array_filters: Vec::new() };
        Request { statement, bytes, answer: oneshot::channel().0 }
    }

    #[test]
    fn a_batch_is_of_one_collection_and_no_larger_than_a_command_may_be() {
        let requests = vec![
            request("a.x", MOST_BYTES - 10),
            request("a.y", 1),
            request("a.x", 10),
            request("a.x", 1),
            request("a.y", 1),
        ];
        let batches = batches(requests);
        let told: Vec<_> =
            batches.iter().map(|batch| (batch[0].statement.namespace.coll.as_str(), batch.len())).collect();
        assert_eq!(told, [("x", 2), ("y", 2), ("x", 1)]);
    }

    #[test]
    fn a_clean_reply_says_of_each_statement_what_became_of_it() {
        let reply = doc! { "ok": 1, "n": 1, "writeErrors": [
            { "index": 1, "code": 66 }, { "index": 2, "code": 121 }, { "index": 3, "code": 11602 },
        ] };
        let each = vec![Said::Done, Said::Missed, Said::Refused, Said::Interrupted];
        assert_eq!(read_reply(&reply, 4, true), Reply::Each(each));
    }

    #[test]
    fn a_reply_that_may_not_last_says_nothing_of_any() {
        let reply = doc! { "ok": 1, "n": 2, "writeErrors": [{ "index": 1, "code": 66 }],
        "writeConcernError": { "code": 64, "errmsg": "waiting for replication timed out" } };
        assert!(matches!(read_reply(&reply, 2, true), Reply::Nothing(_)));
        let beyond = doc! { "ok": 1, "writeErrors": [{ "index": 2, "code": 66 }] };
        assert!(matches!(read_reply(&beyond, 2, true), Reply::Nothing(_)));
    }

    #[test]
    fn a_repeated_command_may_be_answered_from_memory_and_a_new_one_may_not() {
        let reply = doc! { "ok": 1, "n": 2, "retriedStmtIds": [0, 1] };
        assert_eq!(read_reply(&reply, 2, false), Reply::Each(vec![Said::Done; 2]));
        assert_eq!(read_reply(&reply, 2, true), Reply::Foreign);
    }
}
