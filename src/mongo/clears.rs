//! Sends clears in windows that [`batching`](crate::mongo::batching) forms, each as one unordered `update` command per
//! collection.
//!
//! If the outcome of a clear is unknown, because its window got no answer or because the clear's own statement was
//! interrupted, that clear is retried alone for as long as its claim may last. A clear's filter requires the ids and
//! the claim, so it can be repeated any number of times. Entries that are never cleared are delivered again.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use futures::future::join_all;
use metrics::Counter;
use mongodb::{
    Client, Namespace,
    bson::{Document, RawDocument, RawDocumentBuf},
    error::Error,
};
use tokio::time::{Instant, sleep, timeout_at};

use crate::{
    encoding::bytes::{Builder, List},
    mongo::{
        batching::{Asked, Batcher, by_collection},
        error_codes::{self, Verdict},
        local_update::{self, LocalReply},
        statement::{ClearOutcome, Delivered, Overtaken},
    },
    stored::entry::OUTBOX,
};

/// Maximum number of statements in one command, far below the server's own limit.
const WINDOW: usize = 1_000;
/// Maximum size of one command, below the server's limit of 16 MiB.
const MOST_BYTES: usize = 12 << 20;
/// The first pause between two tries of a single clear.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Sends clears in batches. Clones share the batches.
#[derive(Debug, Clone)]
pub(crate) struct Clears {
    sender: ClearSender,
    batcher: Batcher<ClearRequest, ClearOutcome>,
}

/// Sends the windows.
#[derive(Debug, Clone)]
struct ClearSender {
    client: Client,
    /// The counter of lost claims.
    lost: Counter,
    /// The time for which a clear is tried.
    lease: Duration,
}

/// One clear as it is sent.
#[derive(Debug)]
struct ClearRequest {
    namespace: Namespace,
    /// The complete statement of the command.
    statement: RawDocumentBuf,
    overtaken: Overtaken,
}

type AskedClear = Asked<ClearRequest, ClearOutcome>;

/// The result of one try.
enum Tried {
    Settled(ClearOutcome),
    /// The clear may or may not have been executed.
    Open(String),
}

impl Clears {
    /// Starts sending clears. Claims last for `lease`. Lost claims that can't be reported to a caller are counted in
    /// `lost`.
    pub(crate) fn start(client: Client, lost: Counter, lease: Duration) -> Self {
        let sender = ClearSender { client, lost, lease };
        let of_batches = sender.clone();
        let batcher = Batcher::start(WINDOW, move |batch, permit| {
            let sender = of_batches.clone();
            async move {
                let _permit = permit;
                sender.send_all(batch).await;
            }
        });
        Self { sender, batcher }
    }

    /// Removes the delivered entries if they are still under their claim. Completes once the server has executed the
    /// update.
    pub(crate) async fn clear(&self, delivered: &Delivered) -> ClearOutcome {
        if let Some(_permit) = self.batcher.permit_for_one() {
            return self.sender.send_one(ClearRequest::of(delivered)).await;
        }
        if let Some(outcome) = self.batcher.ask(ClearRequest::of(delivered)).await {
            return outcome;
        }

        // The sending runtime has ended, but this runtime has not, so send the clear from here. A clear can be repeated
        // any number of times.
        self.sender.send_one(ClearRequest::of(delivered)).await
    }

    /// Does the same as [`clear`](Self::clear) for many documents at once. Returns the outcomes in the same order.
    pub(crate) async fn clear_all(&self, delivered: &[Delivered]) -> Vec<ClearOutcome> {
        let (asked, answered): (Vec<_>, Vec<_>) =
            delivered.iter().map(|delivered| Asked::new(ClearRequest::of(delivered))).unzip();
        self.sender.send_all(asked).await;

        let mut outcomes = Vec::with_capacity(answered.len());
        for outcome in answered {
            outcomes.push(match outcome.await {
                Ok(outcome) => outcome,
                Err(_ended) => ClearOutcome::Failed("the clearing task has ended".into()),
            });
        }
        outcomes
    }
}

impl ClearRequest {
    fn of(delivered: &Delivered) -> Self {
        Self {
            namespace: delivered.document.namespace.clone(),
            statement: statement_of(delivered),
            overtaken: delivered.overtaken.clone(),
        }
    }

    fn bytes(&self) -> usize {
        self.statement.as_bytes().len()
    }
}

/// The statement of the command that removes these entries if the claim still holds them.
pub(super) fn statement_of(delivered: &Delivered) -> RawDocumentBuf {
    let mut statement = Builder::new();
    statement.push_document(b"q", &delivered.document.filter_bytes());
    statement.push_document(b"u", &pull(delivered));
    statement.build()
}

/// The update that removes these entries if the claim still holds them.
fn pull(delivered: &Delivered) -> RawDocumentBuf {
    let mut ids = List::new();
    for id in &delivered.ids {
        ids.push_uuid(*id);
    }
    let mut any = Builder::new();
    any.push_array("$in", ids);

    let mut cleared = Builder::new();
    cleared.push_document(b"id", &any.build());
    cleared.push_text("claimed_by", &delivered.token);

    let mut outbox = Builder::new();
    outbox.push_document(OUTBOX.as_bytes(), &cleared.build());
    let mut pull = Builder::new();
    pull.push_document(b"$pull", &outbox.build());
    pull.build()
}

impl ClearSender {
    /// Sends the windows of clears concurrently, so that a window with a locked document doesn't delay other windows.
    async fn send_all(&self, clears: Vec<AskedClear>) {
        let collections = by_collection(clears, |clear| &clear.namespace);
        let windows = collections.flat_map(windows);
        join_all(windows.map(|window| self.send_window(window))).await;
    }

    async fn send_one(&self, clear: ClearRequest) -> ClearOutcome {
        let deadline = Instant::now() + self.lease;
        let first = self.try_together(&clear.namespace, &[&clear], deadline).await.pop();
        match first {
            Some(Tried::Settled(outcome)) => outcome,
            Some(Tried::Open(why)) => self.try_again(&clear, deadline, why).await,
            None => ClearOutcome::Failed("no reply to this clear".into()),
        }
    }

    /// Sends a window. Clears that got no answer are then sent one by one.
    async fn send_window(&self, window: Vec<AskedClear>) {
        let Some(first) = window.first() else { return };
        let deadline = Instant::now() + self.lease;
        let clears: Vec<&ClearRequest> = window.iter().map(|clear| &clear.request).collect();
        let tried = self.try_together(&first.request.namespace, &clears, deadline).await;

        let settled = window.into_iter().zip(tried).map(|(clear, tried)| async move {
            let outcome = match tried {
                Tried::Settled(outcome) => outcome,
                Tried::Open(why) => self.try_again(&clear.request, deadline, why).await,
            };
            clear.answer(outcome);
        });
        join_all(settled).await;
    }

    /// Tries the clears of one collection for the first time. The reply also shows how many claims were lost.
    async fn try_together(
        &self,
        namespace: &Namespace,
        clears: &[&ClearRequest],
        deadline: Instant,
    ) -> Vec<Tried> {
        let statements: Vec<&RawDocument> = clears.iter().map(|clear| clear.statement.as_ref()).collect();
        let sent = timeout_at(deadline, local_update::send(&self.client, namespace, &statements)).await;
        let reply = match sent {
            Ok(Ok(reply)) => reply,
            Ok(Err(error)) => return statements.iter().map(|_| of_error(&error)).collect(),
            Err(_elapsed) => {
                let why = "no answer before the claim expired";
                return statements.iter().map(|_| Tried::Open(why.into())).collect();
            }
        };

        // The reply has only the number of clears that found no entry. A save may have overtaken some of these clears.
        let overtaken = clears.iter().filter(|clear| clear.overtaken.may_be()).count();
        let lost = lost_claims(&reply).saturating_sub(overtaken as u64);
        if lost > 0 && statements.len() == 1 {
            return vec![Tried::Settled(ClearOutcome::ClaimLost)];
        }
        if lost > 0 {
            // The reply doesn't report which claims were lost.
            tracing::warn!(
                collection = namespace.to_string(),
                claims = lost,
                "claims expired during delivery; their messages may be delivered again"
            );
            self.lost.increment(lost);
        }
        local_update::read(&reply, statements.len()).into_iter().map(of_reply).collect()
    }

    /// Sends a clear repeatedly until there is an answer or the claim has expired.
    async fn try_again(&self, clear: &ClearRequest, deadline: Instant, mut why: String) -> ClearOutcome {
        let mut pauses = ExponentialBuilder::default()
            .with_min_delay(FIRST_PAUSE)
            .with_max_delay(LONGEST_PAUSE)
            .with_jitter()
            .without_max_times()
            .build();

        loop {
            let pause = pauses.next().unwrap_or(LONGEST_PAUSE);
            if Instant::now() + pause >= deadline {
                return ClearOutcome::Failed(why);
            }
            sleep(pause).await;

            let statements: [&RawDocument; 1] = [clear.statement.as_ref()];
            let sent = local_update::send(&self.client, &clear.namespace, &statements);
            let tried = match timeout_at(deadline, sent).await {
                // Ignore the number of entries that the clear found, because an earlier try may have removed entries.
                Ok(Ok(reply)) => {
                    local_update::read(&reply, 1).pop().map_or(Tried::Settled(ClearOutcome::Done), of_reply)
                }
                Ok(Err(error)) => of_error(&error),
                Err(_elapsed) => return ClearOutcome::Failed(why),
            };
            match tried {
                Tried::Settled(outcome) => return outcome,
                Tried::Open(again) => why = again,
            }
        }
    }
}

fn of_reply(reply: LocalReply) -> Tried {
    match reply {
        LocalReply::Executed => Tried::Settled(ClearOutcome::Done),
        LocalReply::Refused(why) => Tried::Settled(ClearOutcome::Failed(why)),
        LocalReply::Open(why) => Tried::Open(why),
    }
}

fn of_error(error: &Error) -> Tried {
    if error_codes::verdict(error) == Verdict::Refused {
        Tried::Settled(ClearOutcome::Failed(error.to_string()))
    } else {
        Tried::Open(error.to_string())
    }
}

/// Splits clears into windows that fit into one command. The size must be checked because a claim can have hundreds of
/// entries and a document key can have any size.
fn windows(clears: Vec<AskedClear>) -> Vec<Vec<AskedClear>> {
    let mut windows: Vec<Vec<AskedClear>> = Vec::new();
    let mut bytes = 0;
    for clear in clears {
        bytes += clear.request.bytes();

        match windows.last_mut() {
            Some(window) if window.len() < WINDOW && bytes <= MOST_BYTES => window.push(clear),
            _ => {
                bytes = clear.request.bytes();
                windows.push(vec![clear]);
            }
        }
    }
    windows
}

/// Returns the number of statements that found their document but no entry to remove. The number is reliable only for
/// the first send of a command: if the command is repeated, its first send may already have removed the entries.
fn lost_claims(reply: &Document) -> u64 {
    let found = reply.get_i32("n").unwrap_or(0);
    let modified = reply.get_i32("nModified").unwrap_or(0);
    u64::try_from(found - modified).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use mongodb::bson::{Uuid, doc};

    use super::*;
    use crate::{encoding::codec, stored::document_ref::DocumentRef};

    fn request(ids: Vec<Uuid>) -> ClearRequest {
        let document = DocumentRef::by_id(Namespace::new("shop", "orders"), 1);
        ClearRequest::of(&Delivered { document, token: "p/1".into(), ids, overtaken: Overtaken::default() })
    }

    #[test]
    fn a_clear_removes_only_what_its_claim_holds() {
        let ids = vec![Uuid::new(), Uuid::new()];
        let pull = doc! { "outbox": { "id": { "$in": &ids }, "claimed_by": "p/1" } };
        let statement = codec::to_document(&request(ids).statement).unwrap();
        assert_eq!(statement, doc! { "q": { "_id": 1 }, "u": { "$pull": pull } });
    }

    #[test]
    fn windows_of_clears_fit_one_command() {
        let full = || request(vec![Uuid::new(); 1_000]);
        let requests: Vec<_> = (0..WINDOW).map(|_| Asked::new(full()).0).collect();
        let windows = windows(requests);
        assert!(windows.len() > 1);
        for window in windows {
            assert!(window.iter().map(|clear| clear.request.bytes()).sum::<usize>() <= MOST_BYTES);
        }
    }

    #[test]
    fn a_claim_that_removed_no_entry_is_lost() {
        let lost =
            |found: i32, removed: i32| lost_claims(&doc! { "ok": 1, "n": found, "nModified": removed });
        assert_eq!((lost(3, 3), lost(3, 1), lost(0, 0)), (0, 2, 0));
    }
}
