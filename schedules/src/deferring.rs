//! Schedules of deferred clears, which leave delivered messages in their document for a while.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use mongodb::bson::Uuid;
use shuttle::future::{spawn, yield_now};
use tokio::time::Instant;

use super::deferred_clears::DeferredClears;
use crate::{
    document, explore,
    mongo::{Delivered, Overtaken},
};

/// How many times each message was cleared. The lock is one of std and not of shuttle, so the scheduler never switches to another
/// task at this lock.
type Cleared = Arc<Mutex<HashMap<Uuid, usize>>>;

/// Checks that each deferred message is cleared exactly once: when it has been deferred for long enough, when a save that took it
/// fails, or by a flush.
pub fn whatever_is_deferred_is_cleared_once() {
    explore(defer_take_and_flush);
}

/// Checks that every message deferred before a flush is cleared when the flush returns, even if other tasks defer messages
/// meanwhile.
pub fn a_flush_waits_for_all_earlier_messages() {
    explore(flush_beside_others);
}

/// Checks that messages which a written save removed from the document are not cleared again. If the messages had been deferred
/// for long enough before the save could take them, they are cleared once.
pub fn what_a_save_removed_is_gone() {
    explore(take_and_save);
}

async fn defer_take_and_flush() {
    let (deferred, cleared) = deferred_clears();
    let mut tasks = Vec::new();
    for number in 0..3 {
        let deferred = deferred.clone();
        tasks.push(spawn(async move {
            // The first and the third message belong to the same document.
            assert!(deferred.defer(delivered(i32::from(number % 2), number), claim_end()).is_ok());
        }));
    }
    let saver = deferred.clone();
    tasks.push(spawn(async move {
        let taken = saver.take(&document(0));
        yield_now().await;
        drop(taken);
    }));
    for task in tasks {
        assert!(task.await.is_ok());
    }

    deferred.flush_all().await;
    for number in 0..3 {
        assert_eq!(count(&cleared, number), 1, "message {number}");
    }
}

async fn flush_beside_others() {
    let (deferred, cleared) = deferred_clears();
    assert!(deferred.defer(delivered(0, 0), claim_end()).is_ok());

    let other = deferred.clone();
    let busy = spawn(async move {
        for number in 1..4 {
            // Once `close` was called, `defer` refuses the message. The library would then clear the message at once.
            let _cleared_at_once = other.defer(delivered(i32::from(number % 2), number), claim_end());
            yield_now().await;
        }
    });
    deferred.flush(&document(0)).await;
    assert_eq!(count(&cleared, 0), 1);

    deferred.close();
    deferred.flush_all().await;
    assert!(busy.await.is_ok());
}

async fn take_and_save() {
    let (deferred, cleared) = deferred_clears();
    assert!(deferred.defer(delivered(0, 0), claim_end()).is_ok());

    let saver = deferred.clone();
    let save = spawn(async move {
        let Some(taken) = saver.take(&document(0)) else { return false };
        yield_now().await;
        taken.done();
        true
    });
    let beside = deferred.clone();
    let flush = spawn(async move { beside.flush(&document(0)).await });
    let is_saved = save.await.is_ok_and(|saved| saved);
    assert!(flush.await.is_ok());

    deferred.flush_all().await;
    assert_eq!(count(&cleared, 0), usize::from(!is_saved));
}

fn claim_end() -> Instant {
    Instant::now() + Duration::from_hours(1)
}

fn id(number: u8) -> Uuid {
    Uuid::from_bytes([number; 16])
}

fn delivered(of: i32, number: u8) -> Delivered {
    Delivered {
        document: document(of),
        token: "p/1".into(),
        ids: vec![id(number)],
        overtaken: Overtaken::default(),
    }
}

fn deferred_clears() -> (DeferredClears, Cleared) {
    let cleared = Cleared::default();
    let noted = cleared.clone();
    let deferred = DeferredClears::start(Duration::ZERO, move |all| {
        let noted = noted.clone();
        Box::pin(async move {
            yield_now().await;
            let mut noted = noted.lock().unwrap_or_else(PoisonError::into_inner);
            for id in all.into_iter().flat_map(|delivered| delivered.ids) {
                *noted.entry(id).or_default() += 1;
            }
        })
    });
    (deferred, cleared)
}

fn count(cleared: &Cleared, number: u8) -> usize {
    let cleared = cleared.lock().unwrap_or_else(PoisonError::into_inner);
    cleared.get(&id(number)).copied().unwrap_or(0)
}
