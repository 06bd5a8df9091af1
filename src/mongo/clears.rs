//! Clears are sent in windows, made by [`batching`](crate::mongo::batching): one unordered `update` command
//! per collection.
//!
//! A clear without a clear answer, whether for the whole window or interrupted alone, is retried alone for as
//! long as its claim may last. It matches ids and the claim, so it can be repeated any number of times;
//! entries that are never cleared are delivered again.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use futures::future::join_all;
use metrics::Counter;
use mongodb::{
    Client, Namespace,
    bson::{Document, doc},
    error::Error,
};
use serde::Serialize;
use tokio::time::{Instant, sleep, timeout_at};

use crate::{
    mongo::{
        batching::{Asked, Batcher, by_collection},
        error_codes::{self, Verdict},
        local_update::{self, LocalReply},
        statement::{ClearOutcome, Delivered, Overtaken},
    },
    stored::filter::Filter,
};

/// The server's own bound on the statements of one command is far above this.
const WINDOW: usize = 1_000;
/// Bytes of one command, below the 16 MiB that it may have.
const MOST_BYTES: usize = 12 << 20;
/// An id in a statement, with its place in the list.
const ID_BYTES: usize = 30;
/// The rest of a statement, without ids and names.
const STATEMENT_BYTES: usize = 200;
/// The pauses between tries of a single clear.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Clears, batched; clones share the batches.
#[derive(Debug, Clone)]
pub(crate) struct Clears {
    sender: ClearSender,
    batcher: Batcher<ClearRequest, ClearOutcome>,
}

/// How windows are sent.
#[derive(Debug, Clone)]
struct ClearSender {
    client: Client,
    /// Counts lost claims.
    lost: Counter,
    /// How long a clear is tried.
    lease: Duration,
}

/// One clear as it is sent.
#[derive(Debug)]
struct ClearRequest {
    namespace: Namespace,
    statement: Pull,
    /// About how long the statement is.
    bytes: usize,
    overtaken: Overtaken,
}

/// Its statement in the command.
#[derive(Debug, Serialize)]
struct Pull {
    q: Filter,
    u: Document,
}

type AskedClear = Asked<ClearRequest, ClearOutcome>;

/// The result of a try.
enum Tried {
    Settled(ClearOutcome),
    /// It may or may not have been done.
    Open(String),
}

impl Clears {
    /// Claims last for `lease`. Lost claims are counted if they can't be reported to a caller.
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

    /// Removes these entries if the claim still holds them; resolves once the server has done it.
    pub(crate) async fn clear(&self, delivered: &Delivered) -> ClearOutcome {
        if let Some(_permit) = self.batcher.permit_for_one() {
            return self.sender.send_one(ClearRequest::of(delivered)).await;
        }
        if let Some(outcome) = self.batcher.ask(ClearRequest::of(delivered)).await {
            return outcome;
        }

        // The sending runtime has ended, but this one has not. A clear can be repeated any number of times.
        self.sender.send_one(ClearRequest::of(delivered)).await
    }

    /// Like [`clear`](Self::clear), for those of many documents at once; the outcomes are in their order.
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
        let Delivered { document, token, ids, overtaken } = delivered;
        let cleared = doc! { "id": { "$in": ids }, "claimed_by": token };
        Self {
            namespace: document.namespace.clone(),
            statement: Pull {
                q: document.select(Document::new()),
                u: doc! { "$pull": { "outbox": cleared } },
            },
            bytes: STATEMENT_BYTES + document.key().as_bytes().len() + token.len() + ids.len() * ID_BYTES,
            overtaken: overtaken.clone(),
        }
    }
}

impl ClearSender {
    /// Sends clears in windows, concurrently: one that meets a locked document delays no other.
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

    /// Sends a window, and the clears that have no answer of it one by one.
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

    /// The first try of clears of one collection. Its reply also shows claims that were lost.
    async fn try_together(
        &self,
        namespace: &Namespace,
        clears: &[&ClearRequest],
        deadline: Instant,
    ) -> Vec<Tried> {
        let statements: Vec<&Pull> = clears.iter().map(|clear| &clear.statement).collect();
        let sent = timeout_at(deadline, local_update::send(&self.client, namespace, &statements)).await;
        let reply = match sent {
            Ok(Ok(reply)) => reply,
            Ok(Err(error)) => return statements.iter().map(|_| of_error(&error)).collect(),
            Err(_elapsed) => {
                let why = "no answer while the claim held";
                return statements.iter().map(|_| Tried::Open(why.into())).collect();
            }
        };

        // The reply counts the clears that found no entry. A save may have overtaken some of them.
        let overtaken = clears.iter().filter(|clear| clear.overtaken.may_be()).count();
        let lost = lost_claims(&reply).saturating_sub(overtaken as u64);
        if lost > 0 && statements.len() == 1 {
            return vec![Tried::Settled(ClearOutcome::ClaimLost)];
        }
        if lost > 0 {
            // It doesn't name them.
            tracing::warn!(
                collection = namespace.to_string(),
                claims = lost,
                "claims expired during delivery; their messages may be delivered again"
            );
            self.lost.increment(lost);
        }
        local_update::read(&reply, statements.len()).into_iter().map(of_reply).collect()
    }

    /// Sends a clear repeatedly, until it has an answer or its claim has expired.
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

            let statements = [&clear.statement];
            let sent = local_update::send(&self.client, &clear.namespace, &statements);
            let tried = match timeout_at(deadline, sent).await {
                // The number of entries that it found is meaningless: an earlier try may have removed them.
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

/// Each no larger than a command may be: a claim can have a thousand entries, and a document a key of any size.
fn windows(clears: Vec<AskedClear>) -> Vec<Vec<AskedClear>> {
    let mut windows: Vec<Vec<AskedClear>> = Vec::new();
    let mut bytes = 0;
    for clear in clears {
        bytes += clear.request.bytes;

        match windows.last_mut() {
            Some(window) if window.len() < WINDOW && bytes <= MOST_BYTES => window.push(clear),
            _ => {
                bytes = clear.request.bytes;
                windows.push(vec![clear]);
            }
        }
    }
    windows
}

/// How many statements found their document, but no entry to remove. The reply to a first send is reliable;
/// after a repeated one, the first may have removed them.
fn lost_claims(reply: &Document) -> u64 {
    let found = reply.get_i32("n").unwrap_or(0);
    let modified = reply.get_i32("nModified").unwrap_or(0);
    u64::try_from(found - modified).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use mongodb::bson::Uuid;

    use super::*;
    use crate::{encoding::codec, stored::document_ref::DocumentRef};

    #[test]
    fn windows_of_clears_fit_one_command() {
        let request = |ids: usize| {
            let document = DocumentRef::by_id(Namespace::new("shop", "orders"), 1);
            let ids = vec![Uuid::new(); ids];
            ClearRequest::of(&Delivered {
                document,
                token: "p/1".into(),
                ids,
                overtaken: Overtaken::default(),
            })
        };
        let full = codec::encode(&request(1_000).statement).unwrap().as_bytes().len();
        assert!(full <= request(1_000).bytes, "{full}");
        let requests: Vec<_> = (0..WINDOW).map(|_| Asked::new(request(1_000)).0).collect();
        let windows = windows(requests);
        assert!(windows.len() > 1);
        for window in windows {
            assert!(window.iter().map(|clear| clear.request.bytes).sum::<usize>() <= MOST_BYTES);
        }
    }

    #[test]
    fn a_claim_that_removed_no_entry_is_lost() {
        let lost =
            |found: i32, removed: i32| lost_claims(&doc! { "ok": 1, "n": found, "nModified": removed });
        assert_eq!((lost(3, 3), lost(3, 1), lost(0, 0)), (0, 2, 0));
    }
}
