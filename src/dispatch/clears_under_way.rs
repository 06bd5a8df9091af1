//! Tracks clears that no save waits for. Each clear is sent as soon as its messages are confirmed. If the next save of
//! the document comes before the clear has arrived, that save removes the entries that are still there.
//!
//! # Flow
//! ```text
//! confirmed ─▶ the save is answered ─▶ clear sent ─────────────────────────────┬─▶ gone
//!                                        └─ the next save of the document, ─┬─ saved: the clear finds nothing
//!                                           if it comes meanwhile           └─ missed: it waits for the clear
//! ```
//!
//! # Guarantees
//! - The tracking of a clear begins before its save is answered. The tracking ends when the server has answered the
//!   clear, or when a save has removed the clear's messages.
//! - If a clear finds nothing because a save was faster, no lost claim is reported.

use std::{collections::HashMap, future::Future, sync::Arc};

use futures::future::join_all;
use parking_lot::{Mutex, MutexGuard};
use tokio_util::sync::CancellationToken;

use crate::{dispatch::unsettled::Permits, mongo::Delivered, stored::document_ref::DocumentRef};

/// Maximum number of entries in a clear that no save waits for. A save names each entry that it removes by the entry's
/// position in the outbox, so the number must be small. With more entries, the save waits for the clear.
pub(crate) const MOST_ENTRIES: usize = 16;

type ByDocument = HashMap<Vec<u8>, Arc<ClearState>>;

/// The clears in progress in this process, by document. Clones share the same clears.
#[derive(Clone, Default)]
pub(crate) struct ClearsUnderWay {
    documents: Arc<Mutex<ByDocument>>,
}

struct ClearState {
    key: Vec<u8>,
    delivered: Delivered,
    /// Cancelled once the clear has ended, whether or not it removed the entries.
    ended: CancellationToken,
}

/// A clear in progress. The clear counts as ended when this value is dropped.
pub(crate) struct ClearUnderWay {
    clears: ClearsUnderWay,
    state: Arc<ClearState>,
    /// The permits of the clear's messages. Until the clear has ended, these messages count against the limit of
    /// messages that a crash would repeat.
    _unsettled: Permits,
}

impl ClearsUnderWay {
    fn lock(&self) -> MutexGuard<'_, ByDocument> {
        self.documents.lock()
    }

    /// Begins tracking a clear. From now on the next save of the document can remove these entries.
    pub(crate) fn begin(&self, delivered: Delivered, unsettled: Permits) -> ClearUnderWay {
        let key = delivered.document.map_key();
        let state = Arc::new(ClearState { key: key.clone(), delivered, ended: CancellationToken::new() });
        self.lock().insert(key, state.clone());
        ClearUnderWay { clears: self.clone(), state, _unsettled: unsettled }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Number of entries of this document that are about to be cleared.
    pub(crate) fn count(&self, document: &DocumentRef) -> usize {
        let documents = self.lock();
        if documents.is_empty() {
            return 0;
        }
        documents.get(&document.map_key()).map_or(0, |state| state.delivered.ids.len())
    }

    /// Returns the clear in progress for this document, so that a save can overtake it.
    pub(crate) fn overtake(&self, document: &DocumentRef) -> Option<OvertakenClear> {
        let documents = self.lock();
        if documents.is_empty() {
            return None;
        }
        let state = documents.get(&document.map_key())?.clone();
        drop(documents);

        state.delivered.overtaken.begin();
        Some(OvertakenClear { clears: self.clone(), state })
    }

    /// Waits for the clear of this document that is now in progress, if there is one.
    pub(crate) fn ended(&self, document: &DocumentRef) -> impl Future<Output = ()> + Send + use<> {
        let state = self.lock().get(&document.map_key()).cloned();
        async move {
            if let Some(state) = state {
                state.ended.cancelled().await;
            }
        }
    }

    /// Waits until all clears that are now in progress have ended.
    pub(crate) async fn all_ended(&self) {
        let states: Vec<_> = self.lock().values().cloned().collect();
        join_all(states.iter().map(|state| state.ended.cancelled())).await;
    }

    fn end(&self, state: &Arc<ClearState>) {
        let mut documents = self.lock();
        if documents.get(&state.key).is_some_and(|current| Arc::ptr_eq(current, state)) {
            documents.remove(&state.key);
        }
        drop(documents);
        state.ended.cancel();
    }
}

impl ClearUnderWay {
    pub(crate) fn delivered(&self) -> &Delivered {
        &self.state.delivered
    }
}

impl Drop for ClearUnderWay {
    fn drop(&mut self) {
        self.clears.end(&self.state);
    }
}

/// A clear that a save tries to overtake. If this value is dropped without a call to [`done`](Self::done) or
/// [`missed`](Self::missed), the save may have removed the entries, so a clear that finds none of them is not reported
/// as a lost claim.
pub(crate) struct OvertakenClear {
    clears: ClearsUnderWay,
    state: Arc<ClearState>,
}

impl OvertakenClear {
    pub(crate) fn delivered(&self) -> &Delivered {
        &self.state.delivered
    }

    /// Records that the save has removed the messages.
    pub(crate) fn done(self) {
        self.clears.end(&self.state);
    }

    /// Records that the save was not written, so the clear must still find its messages.
    pub(crate) fn missed(&self) {
        self.state.delivered.overtaken.give_up();
    }
}
