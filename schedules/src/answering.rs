//! Schedules of the batcher, which sends requests together.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use shuttle::future::{spawn, yield_now};

use super::batching::{Asked, BatchPermit, Batcher};
use crate::explore;

const REQUESTS: usize = 6;
const MOST: usize = 2;

/// Checks that every request gets its own answer, whether it is sent alone or in a batch, that no batch is larger than `MOST`,
/// and that no request waits forever.
pub fn each_request_is_answered_once() {
    explore(ask_all);
}

async fn ask_all() {
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = sent.clone();
    let batcher = Batcher::start(MOST, move |batch: Vec<Asked<usize, usize>>, permit: BatchPermit| {
        assert!(!batch.is_empty() && batch.len() <= MOST);
        counted.fetch_add(batch.len(), Ordering::Relaxed);
        async move {
            yield_now().await;
            for asked in batch {
                let answer = asked.request + 100;
                asked.answer(answer);
            }
            drop(permit);
        }
    });

    let mut tasks = Vec::new();
    for request in 0..REQUESTS {
        let (batcher, sent) = (batcher.clone(), sent.clone());
        tasks.push(spawn(async move {
            if let Some(_permit) = batcher.permit_for_one() {
                sent.fetch_add(1, Ordering::Relaxed);
                yield_now().await;
                return;
            }
            assert_eq!(batcher.ask(request).await, Some(request + 100));
        }));
    }
    for task in tasks {
        assert!(task.await.is_ok());
    }
    assert_eq!(sent.load(Ordering::Relaxed), REQUESTS);
}
