//! Clears that no save waits for. Each is sent as soon as its messages are confirmed. The next save of the document may come before
//! the clear has arrived; it then takes out the entries that it still finds.
//!
//! # Flow
//! ```text
//! confirmed ─▶ the save is answered ─▶ clear sent ─────────────────────────────┬─▶ gone
//!                                        └─ the next save of the document, ─┬─ saved: the clear finds nothing
//!                                           if it comes meanwhile           └─ missed: it waits for the clear
//! ```
//!
//! # Guarantees
//! - A clear is under way from before its save is answered until the server has answered the clear, or a save has taken its
//!   messages out.
//! - A clear that finds nothing because a save was faster has lost no claim, and is not reported as one.

use std::{collections::HashMap, future::Future, sync::Arc};

use futures::future::join_all;
use parking_lot::{Mutex, MutexGuard};
use tokio_util::sync::CancellationToken;

use crate::{dispatch::unsettled::Permits, mongo::Delivered, stored::document_ref::DocumentRef};

/// A save names each entry that it takes out by its place. More than these are cleared at once, and a save waits for that.
pub(crate) const MOST_ENTRIES: usize = 16;

type ByDocument = HashMap<Vec<u8>, Arc<ClearState>>;

/// The clears under way of a process, by their documents; clones share them.
#[derive(Clone, Default)]
pub(crate) struct ClearsUnderWay {
    documents: Arc<Mutex<ByDocument>>,
}

struct ClearState {
    key: Vec<u8>,
    delivered: Delivered,
    /// Cancelled once its entries have left the document, as far as they can be cleared.
    ended: CancellationToken,
}

/// A clear under way, until dropped.
pub(crate) struct ClearUnderWay {
    clears: ClearsUnderWay,
    state: Arc<ClearState>,
    /// Its messages count among those that would be repeated until then.
    _unsettled: Permits,
}

impl ClearsUnderWay {
    fn lock(&self) -> MutexGuard<'_, ByDocument> {
        self.documents.lock()
    }

    /// From now on the next save of the document can take these out.
    pub(crate) fn begin(&self, delivered: Delivered, unsettled: Permits) -> ClearUnderWay {
        let key = delivered.document.map_key();
        let state = Arc::new(ClearState { key: key.clone(), delivered, ended: CancellationToken::new() });
        self.lock().insert(key, state.clone());
        ClearUnderWay { clears: self.clone(), state, _unsettled: unsettled }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// How many entries of this document are about to be cleared.
    pub(crate) fn count(&self, document: &DocumentRef) -> usize {
        let documents = self.lock();
        if documents.is_empty() {
            return 0;
        }
        documents.get(&document.map_key()).map_or(0, |state| state.delivered.ids.len())
    }

    /// The clear of this document that is under way, for a save to overtake.
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

    /// Waits for the clear of this document that is under way now, if there is one.
    pub(crate) fn ended(&self, document: &DocumentRef) -> impl Future<Output = ()> + Send + use<> {
        let state = self.lock().get(&document.map_key()).cloned();
        async move {
            if let Some(state) = state {
                state.ended.cancelled().await;
            }
        }
    }

    /// Waits until all clears that are under way now have ended.
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

/// A clear that a save tries to overtake. If the save ends without an answer, it may have succeeded.
pub(crate) struct OvertakenClear {
    clears: ClearsUnderWay,
    state: Arc<ClearState>,
}

impl OvertakenClear {
    pub(crate) fn delivered(&self) -> &Delivered {
        &self.state.delivered
    }

    /// The save has taken the messages out.
    pub(crate) fn done(self) {
        self.clears.end(&self.state);
    }

    /// The save was not written: its clear has to find what it removes.
    pub(crate) fn missed(&self) {
        self.state.delivered.overtaken.give_up();
    }
}
