//! One at a time per document, within this process.
//!
//! Two tasks that process the same document would only steal each other's claims. So each takes its turn, and one that
//! comes while another already waits is superfluous: the one that waits will read the document after it.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::OwnedMutexGuard;

use crate::stored::document_ref::DocumentRef;

/// Who works on which document; clones share it. Holds an entry only for documents that are worked on.
#[derive(Clone, Default)]
pub struct Turns {
    documents: Arc<Mutex<HashMap<Vec<u8>, Place>>>,
}

impl fmt::Debug for Turns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Turns").field("documents", &self.lock().len()).finish()
    }
}

#[derive(Default)]
struct Place {
    lock: Arc<tokio::sync::Mutex<()>>,
    /// Tasks that hold or wait for the lock.
    users: usize,
    /// Tasks that wait for it.
    waiting: usize,
}

/// The right to process a document, until dropped.
pub struct Turn {
    turns: Turns,
    key: Vec<u8>,
    guard: Option<OwnedMutexGuard<()>>,
}

impl fmt::Debug for Turn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Turn").finish_non_exhaustive()
    }
}

impl Turns {
    fn lock(&self) -> MutexGuard<'_, HashMap<Vec<u8>, Place>> {
        self.documents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the turn; none at once when another already waits, which then does this one's work too. A wait that is
    /// dropped gives its place up.
    pub async fn join(&self, document: &DocumentRef) -> Option<Turn> {
        self.take(document, true).await
    }

    /// Waits for the turn behind whoever else waits.
    pub async fn queue(&self, document: &DocumentRef) -> Option<Turn> {
        self.take(document, false).await
    }

    /// Whether somebody works on the document, or waits for that.
    pub fn is_taken(&self, document: &DocumentRef) -> bool {
        self.lock().contains_key(&document.map_key())
    }

    /// Takes part without waiting: later comers wait for it, but it waits for nobody.
    pub fn beside(&self, document: &DocumentRef) -> Turn {
        let key = document.map_key();
        let mut documents = self.lock();
        let place = documents.entry(key.clone()).or_default();
        place.users += 1;
        let guard = place.lock.clone().try_lock_owned().ok();
        Turn { turns: self.clone(), key, guard }
    }

    async fn take(&self, document: &DocumentRef, coalesce: bool) -> Option<Turn> {
        let key = document.map_key();
        let lock = {
            let mut documents = self.lock();
            let place = documents.entry(key.clone()).or_default();
            if coalesce && place.waiting > 0 {
                return None;
            }
            place.users += 1;
            place.waiting += 1;
            place.lock.clone()
        };
        let mut turn = Turn { turns: self.clone(), key, guard: None };
        let waiting = Waiting(&turn);
        let guard = lock.lock_owned().await;
        drop(waiting);
        turn.guard = Some(guard);
        Some(turn)
    }
}

/// Counts its task as waiting until dropped, even when the task is.
struct Waiting<'a>(&'a Turn);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(place) = self.0.turns.lock().get_mut(&self.0.key) {
            place.waiting -= 1;
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.guard = None;
        let mut documents = self.turns.lock();
        if let Some(place) = documents.get_mut(&self.key) {
            place.users -= 1;
            if place.users == 0 {
                documents.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use mongodb::Namespace;

    use super::*;

    fn document(id: i32) -> DocumentRef {
        DocumentRef::by_id(Namespace::new("shop", "orders"), id)
    }

    #[tokio::test]
    async fn a_third_comer_for_one_document_is_superfluous() {
        let turns = Turns::default();
        let first = turns.join(&document(1)).await.unwrap();
        let one = document(1);
        let mut second = Box::pin(turns.join(&one));
        assert!(second.as_mut().now_or_never().is_none(), "waits for the first");
        assert!(turns.join(&document(1)).await.is_none(), "the second will do its work");
        assert!(turns.join(&document(2)).await.is_some());
        drop(first);
        assert!(second.await.is_some());
        assert!(turns.lock().is_empty(), "nothing is kept for documents nobody works on");
    }

    #[tokio::test]
    async fn a_dropped_waiter_leaves_room_for_the_next() {
        let turns = Turns::default();
        let first = turns.join(&document(1)).await.unwrap();
        let one = document(1);
        let mut second = Box::pin(turns.join(&one));
        assert!(second.as_mut().now_or_never().is_none());
        drop(second);
        let mut third = Box::pin(turns.join(&one));
        assert!(third.as_mut().now_or_never().is_none(), "it waits itself");
        drop(first);
        assert!(third.await.is_some());
    }

    #[tokio::test]
    async fn one_beside_waits_for_nobody() {
        let turns = Turns::default();
        let _first = turns.join(&document(1)).await.unwrap();
        let beside = turns.beside(&document(1));
        assert!(beside.guard.is_none());
    }
}
