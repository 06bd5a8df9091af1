//! Schedules of the document locks, under which one task at a time works on a document.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use shuttle::future::{spawn, yield_now};

use super::document_locks::DocumentLocks;
use crate::{document, explore};

const TASKS: usize = 4;

/// Checks that only one task at a time works on a document, and that another task does the work of a task which gets no lock.
pub fn no_work_on_a_document_is_lost() {
    explore(work_beside_each_other);
}

async fn work_beside_each_other() {
    let locks = DocumentLocks::default();
    let (at_work, waiting) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));

    let mut tasks = Vec::new();
    for number in 0..TASKS {
        let (locks, at_work, waiting) = (locks.clone(), at_work.clone(), waiting.clone());
        tasks.push(spawn(async move {
            // The task counts its work as waiting before it asks for the lock.
            waiting.fetch_add(1, Ordering::SeqCst);
            yield_now().await;
            let lock =
                if number == 0 { locks.queue(&document(1)).await } else { locks.join(&document(1)).await };
            let Some(_lock) = lock else { return };

            assert_eq!(at_work.fetch_add(1, Ordering::SeqCst), 0);
            yield_now().await;
            waiting.store(0, Ordering::SeqCst);
            yield_now().await;
            at_work.fetch_sub(1, Ordering::SeqCst);
        }));
    }
    for task in tasks {
        assert!(task.await.is_ok());
    }

    assert_eq!(waiting.load(Ordering::SeqCst), 0, "work is left");
    assert!(!locks.is_taken(&document(1)), "the lock has no user left");
}
