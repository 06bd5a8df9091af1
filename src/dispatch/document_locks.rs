//! Lets only one task at a time process a document, within this process.
//!
//! Two tasks that process the same document would only take claims from each other, so each task first takes the
//! document's lock. A task that arrives while another task already waits is superfluous, because the waiting task will
//! read the document later.

use std::{collections::HashMap, fmt, sync::Arc};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::OwnedMutexGuard;

use crate::stored::document_ref::DocumentRef;

/// The tasks that work on each document. Clones share the same state. Only documents with a task have an entry.
#[derive(Clone, Default)]
pub struct DocumentLocks {
    documents: Arc<Mutex<HashMap<Vec<u8>, LockState>>>,
}

impl fmt::Debug for DocumentLocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DocumentLocks").field("documents", &self.lock().len()).finish()
    }
}

#[derive(Default)]
struct LockState {
    lock: Arc<tokio::sync::Mutex<()>>,
    /// Number of tasks that hold the lock or wait for it.
    users: usize,
    /// Number of tasks that wait for the lock.
    waiting: usize,
}

/// The right to process a document. The right ends when this value is dropped.
pub struct DocumentLock {
    locks: DocumentLocks,
    key: Vec<u8>,
    guard: Option<OwnedMutexGuard<()>>,
}

impl fmt::Debug for DocumentLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DocumentLock").finish_non_exhaustive()
    }
}

/// What to do if another task already waits for the document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum IfOneWaits {
    /// Don't wait, because the waiting task will read the document later and deliver these messages too.
    LeaveItToIt,
    Queue,
}

impl DocumentLocks {
    fn lock(&self) -> MutexGuard<'_, HashMap<Vec<u8>, LockState>> {
        self.documents.lock()
    }

    /// Waits for the lock. Returns `None` at once if another task already waits, because that task will do this task's
    /// work too. If the future of this call is dropped, the task's place in the queue becomes free.
    pub async fn join(&self, document: &DocumentRef) -> Option<DocumentLock> {
        self.take(document, IfOneWaits::LeaveItToIt).await
    }

    /// Waits for the lock behind all tasks that already wait.
    pub async fn queue(&self, document: &DocumentRef) -> Option<DocumentLock> {
        self.take(document, IfOneWaits::Queue).await
    }

    /// Whether a task works on the document, or waits to do so.
    pub fn is_taken(&self, document: &DocumentRef) -> bool {
        self.lock().contains_key(&document.map_key())
    }

    /// Takes the document without waiting for other tasks. Tasks that come later wait for this task.
    pub fn beside(&self, document: &DocumentRef) -> DocumentLock {
        let key = document.map_key();
        let mut documents = self.lock();
        let place = documents.entry(key.clone()).or_default();
        place.users += 1;
        let guard = place.lock.clone().try_lock_owned().ok();
        DocumentLock { locks: self.clone(), key, guard }
    }

    async fn take(&self, document: &DocumentRef, if_one_waits: IfOneWaits) -> Option<DocumentLock> {
        let key = document.map_key();
        let lock = {
            let mut documents = self.lock();
            let place = documents.entry(key.clone()).or_default();
            if place.waiting > 0 && if_one_waits == IfOneWaits::LeaveItToIt {
                return None;
            }
            place.users += 1;
            place.waiting += 1;
            place.lock.clone()
        };

        let mut document_lock = DocumentLock { locks: self.clone(), key, guard: None };
        let waiting = Waiting(&document_lock);
        let guard = lock.lock_owned().await;
        drop(waiting);
        document_lock.guard = Some(guard);
        Some(document_lock)
    }
}

/// Counts a task as waiting until this value is dropped, which also happens if the task is dropped.
struct Waiting<'a>(&'a DocumentLock);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(place) = self.0.locks.lock().get_mut(&self.0.key) {
            place.waiting -= 1;
        }
    }
}

impl Drop for DocumentLock {
    fn drop(&mut self) {
        self.guard = None;
        let mut documents = self.locks.lock();
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
        let locks = DocumentLocks::default();
        let first = locks.join(&document(1)).await.unwrap();
        let one = document(1);
        let mut second = Box::pin(locks.join(&one));
        assert!(second.as_mut().now_or_never().is_none(), "waits for the first");
        assert!(locks.join(&document(1)).await.is_none(), "the waiting task will do the third task's work");
        assert!(locks.join(&document(2)).await.is_some());
        drop(first);
        assert!(second.await.is_some());
        assert!(locks.lock().is_empty(), "idle documents have no lock");
    }

    #[tokio::test]
    async fn a_dropped_waiter_leaves_room_for_the_next() {
        let locks = DocumentLocks::default();
        let first = locks.join(&document(1)).await.unwrap();
        let one = document(1);
        let mut second = Box::pin(locks.join(&one));
        assert!(second.as_mut().now_or_never().is_none());
        drop(second);
        let mut third = Box::pin(locks.join(&one));
        assert!(third.as_mut().now_or_never().is_none(), "the task waits for the first");
        drop(first);
        assert!(third.await.is_some());
    }

    #[tokio::test]
    async fn a_task_that_takes_part_never_waits() {
        let locks = DocumentLocks::default();
        let _first = locks.join(&document(1)).await.unwrap();
        let beside = locks.beside(&document(1));
        assert!(beside.guard.is_none());
    }
}
