//! Group commit sends the updates of concurrent saves and claims to the server together.
//!
//! # Flow
//! Updates that arrive while earlier batches are in flight form the next batch, which is one `update` command with a
//! statement for each update, and one wait for the majority. There is no timer: an update that arrives alone is sent
//! alone and at once, by the task that made it. Inserts, deletes, large updates and pipelines are always sent alone. All
//! writes are sent and answered by [`retryable_write`](crate::mongo::retryable_write).
//!
//! # Guarantees
//! Each write gets its own answer, as exact as if it had been sent alone, within
//! [`WRITE_TIMEOUT`](crate::mongo::deadline::WRITE_TIMEOUT).
//!
//! # Caveats
//! Some servers refuse every batch because they don't support these retryable writes: standalone servers, and some that
//! only imitate MongoDB's protocol. If a server refuses a batch and then accepts all its statements one by one, the
//! writes of that collection are sent one by one for the time [`ONE_BY_ONE`].

use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

use futures::future::join_all;
use mongodb::{Client, Namespace, bson::RawDocumentBuf};
use parking_lot::Mutex;
use tokio::time::{Instant, timeout_at};

use crate::{
    encoding::codec,
    mongo::{
        batching::{BatchPermit, Batcher},
        error_codes, plain_write,
        retryable_write::RetryableWrites,
        statement::{Delete, Insert, Operators, Update, WriteOutcome},
        write_command::{DeleteStatement, UpdateStatement, WriteKind},
        write_request::{self, AskedWrite, WriteRequest},
    },
};

/// Maximum number of statements in one command.
const MOST_STATEMENTS: usize = 1_000;
/// Maximum size of the statements in one command. This size is below the 16 MiB limit of a message, to leave room for
/// the rest of the command.
const MOST_BYTES: usize = 12 << 20;
/// An update larger than this is sent alone, because it would delay the other updates of its batch by more time than
/// the batch saves.
const LARGE: usize = 64 << 10;
/// The time for which a collection's writes are sent one by one after a batch was refused.
const ONE_BY_ONE: Duration = Duration::from_mins(1);

/// Sends writes in batches. Clones share the batches.
#[derive(Clone)]
pub(crate) struct Writes {
    sender: Arc<WriteSender>,
    /// `None` if each write is sent alone.
    batcher: Option<Batcher<WriteRequest, WriteOutcome>>,
}

impl fmt::Debug for Writes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writes").field("batcher", &self.batcher).finish_non_exhaustive()
    }
}

impl Writes {
    /// Creates a sender that sends each write alone.
    pub(crate) fn single(client: Client) -> Self {
        Self { sender: Arc::new(WriteSender::new(client)), batcher: None }
    }

    /// Creates a sender that sends concurrent updates together. Must be called inside a tokio runtime. Sends no request
    /// by itself.
    pub(crate) fn grouped(client: Client) -> Self {
        let sender = Arc::new(WriteSender::new(client));
        let of_batches = sender.clone();
        let batcher =
            Batcher::start(MOST_STATEMENTS, move |batch, permit| send_all(of_batches.clone(), batch, permit));
        Self { sender, batcher: Some(batcher) }
    }

    /// Sends an update with write concern majority. If the caller is dropped before the answer, the update may or may
    /// not be sent.
    pub(crate) async fn update(&self, update: Update) -> WriteOutcome {
        let statement = match codec::encode(&UpdateStatement::of(&update)) {
            Ok(statement) => statement,
            Err(error) => return WriteOutcome::Failed(error_codes::unencodable(error.to_string())),
        };
        let namespace = update.namespace;

        let is_large = statement.as_bytes().len() > LARGE;
        // A server that doesn't know pipelines would refuse the other updates of the batch, too.
        let goes_alone = is_large || matches!(update.operators, Operators::Pipeline(_));
        let Some(batcher) = self.batcher.as_ref().filter(|_| !goes_alone) else {
            return self.alone(WriteKind::Update, namespace, statement, None).await;
        };
        if let Some(permit) = batcher.permit_for_one() {
            return self.alone(WriteKind::Update, namespace, statement, Some(permit)).await;
        }

        let (asked, waiter) = write_request::ask(WriteKind::Update, namespace, statement);
        // If a request can't be queued, the request is dropped, and its caller notices the drop.
        let _queued = timeout_at(waiter.deadline, batcher.enqueue(asked)).await;
        waiter.outcome().await
    }

    /// Sends an insert with write concern majority.
    pub(crate) async fn insert(&self, insert: Insert) -> WriteOutcome {
        self.alone(WriteKind::Insert, insert.namespace, insert.document, None).await
    }

    /// Sends a delete of one document with write concern majority.
    pub(crate) async fn delete(&self, delete: Delete) -> WriteOutcome {
        match codec::encode(&DeleteStatement { q: &delete.filter, limit: 1 }) {
            Ok(statement) => self.alone(WriteKind::Delete, delete.namespace, statement, None).await,
            Err(error) => WriteOutcome::Failed(error_codes::unencodable(error.to_string())),
        }
    }

    async fn alone(
        &self,
        kind: WriteKind,
        namespace: Namespace,
        statement: RawDocumentBuf,
        permit: Option<BatchPermit>,
    ) -> WriteOutcome {
        let (asked, waiter) = write_request::ask(kind, namespace, statement);
        let _sent = timeout_at(waiter.deadline, self.sender.send(vec![asked], permit)).await;
        waiter.outcome().await
    }
}

/// Groups the writes by collection, in the order of their arrival, into commands that don't exceed the size limit.
fn commands(writes: Vec<AskedWrite>) -> Vec<Vec<AskedWrite>> {
    let mut commands: Vec<Vec<AskedWrite>> = Vec::new();
    // The last command of each collection, and its size.
    let mut filling: HashMap<Namespace, (usize, usize)> = HashMap::new();
    for write in writes {
        let size = write.request.statement.as_bytes().len();

        match filling.get_mut(&write.request.namespace) {
            Some((command, bytes)) if *bytes + size <= MOST_BYTES => {
                *bytes += size;
                commands[*command].push(write);
            }
            _ => {
                filling.insert(write.request.namespace.clone(), (commands.len(), size));
                commands.push(vec![write]);
            }
        }
    }
    commands
}

/// Sends a batch, possibly as several commands.
async fn send_all(sender: Arc<WriteSender>, batch: Vec<AskedWrite>, permit: BatchPermit) {
    let mut commands = commands(batch);
    if commands.len() == 1 {
        return sender.send(commands.remove(0), Some(permit)).await;
    }
    join_all(commands.into_iter().map(|command| sender.send(command, None))).await;
    drop(permit);
}

struct WriteSender {
    retryable: RetryableWrites,
    /// The collections that accepted writes one by one after refusing a batch, and the time of the refusal.
    one_by_one: Mutex<HashMap<Namespace, Instant>>,
}

impl WriteSender {
    fn new(client: Client) -> Self {
        Self { retryable: RetryableWrites::new(client), one_by_one: Mutex::default() }
    }

    /// Sends writes of one collection and returns the outcome of each.
    async fn send(&self, writes: Vec<AskedWrite>, permit: Option<BatchPermit>) {
        let Some(namespace) = writes.first().map(|write| write.request.namespace.clone()) else { return };
        if self.goes_one_by_one(&namespace) {
            self.send_plain(writes).await;
            return;
        }

        let were_together = writes.len() > 1;
        let mut refused = self.retryable.send(writes, permit).await;
        if were_together {
            // The error may be about only one of the writes, so send each write alone to get its own answer.
            let singly = refused.into_iter().map(|write| self.retryable.send(vec![write], None));
            refused = join_all(singly).await.into_iter().flatten().collect();
        }
        if refused.is_empty() {
            return;
        }

        // If the server accepts all the writes in plain form, the server had refused only the form of the batch, and
        // not the writes.
        if self.send_plain(refused).await == Accepted::All {
            self.go_one_by_one(&namespace);
        }
    }

    /// Sends each write alone and only once.
    async fn send_plain(&self, writes: Vec<AskedWrite>) -> Accepted {
        let sent = writes.into_iter().map(|write| async move {
            let outcome = plain_write::send(&self.retryable.client, &write.request).await;
            let is_taken = matches!(outcome, WriteOutcome::Done | WriteOutcome::Missed);
            write.answer(outcome);
            is_taken
        });
        if join_all(sent).await.into_iter().all(|is_taken| is_taken) { Accepted::All } else { Accepted::Some }
    }

    fn goes_one_by_one(&self, namespace: &Namespace) -> bool {
        let mut refused = self.one_by_one.lock();
        if refused.is_empty() {
            return false;
        }
        refused.retain(|_, since| since.elapsed() < ONE_BY_ONE);
        refused.contains_key(namespace)
    }

    fn go_one_by_one(&self, namespace: &Namespace) {
        let mut refused = self.one_by_one.lock();
        refused.insert(namespace.clone(), Instant::now());
        tracing::warn!(
            collection = namespace.to_string(),
            seconds = ONE_BY_ONE.as_secs(),
            "the server refuses retryable writes with several statements but accepts the statements one by one; sending writes one by one for a while"
        );
    }
}

/// Whether the server has executed all of the writes.
#[derive(PartialEq)]
enum Accepted {
    All,
    Some,
}

#[cfg(test)]
mod tests {
    use mongodb::bson::rawdoc;

    use super::*;

    fn write(namespace: &str, bytes: usize) -> AskedWrite {
        let (db, coll) = namespace.split_once('.').unwrap();
        let statement = rawdoc! { "q": "x".repeat(bytes) };
        write_request::ask(WriteKind::Update, Namespace::new(db, coll), statement).0
    }

    #[test]
    fn a_batch_fits_one_collection_and_one_command() {
        let writes = vec![
            write("a.x", MOST_BYTES - 60),
            write("a.y", 1),
            write("a.x", 10),
            write("a.x", 60),
            write("a.y", 1),
        ];
        let commands = commands(writes);
        let made: Vec<_> =
            commands.iter().map(|of| (of[0].request.namespace.coll.as_str(), of.len())).collect();
        assert_eq!(made, [("x", 2), ("y", 2), ("x", 1)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_of_batches_is_forgotten_after_a_minute() {
        let options = mongodb::options::ClientOptions::builder().hosts(Vec::new()).build();
        let sender = WriteSender::new(Client::with_options(options).unwrap());
        let (refusing, other) = (Namespace::new("a", "x"), Namespace::new("a", "y"));
        sender.go_one_by_one(&refusing);
        assert!(sender.goes_one_by_one(&refusing) && !sender.goes_one_by_one(&other));
        tokio::time::advance(ONE_BY_ONE).await;
        assert!(!sender.goes_one_by_one(&refusing));
    }
}
