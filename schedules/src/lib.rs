//! Tests the parts of the library that several tasks use at the same time. Each test runs under many schedules; a schedule is an
//! order in which the tasks take their steps.
//!
//! The files under test are files of the library, compiled again with the locks, channels and tasks of
//! [shuttle](https://docs.rs/shuttle) instead of those of tokio. At each step of a lock, channel or task, shuttle's scheduler
//! decides which task runs next. A run that fails prints its schedule, which `shuttle::replay` repeats. The MongoDB driver, lapin
//! and tokio-util are not replaced.
//!
//! `build.rs` also writes altered copies of the files. In each broken copy the code breaks one rule, and the schedules of the
//! copy must fail.
//!
//! # Caveats
//! Time is not modelled: a `sleep` ends whenever its task runs, and a `timeout` never expires.

#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    reason = "files of the library, of which the schedules use a part"
)]
#![allow(clippy::drop_non_drop, reason = "in the unit tests of those files, which run in the library")]
#![allow(clippy::duplicate_mod, reason = "the same schedules for the code as it is, and broken")]

pub mod as_is;
pub mod broken;
pub mod late_flush;

use document_outbox::DocumentRef;
use mongodb::Namespace;
use shuttle::future::block_on;
use tokio::sync::mpsc;

mod dispatch;
mod mongo;
mod observe;
mod stored;

/// How many schedules each test runs when the environment variable `SCHEDULES` is not set.
const SCHEDULES: usize = 4_000;

/// Runs `run` under many schedules. Half of the schedules choose each step at random. The other half give the tasks random
/// priorities, and so find errors that need a rare order of a few steps.
fn explore<F: Future<Output = ()> + 'static>(run: fn() -> F) {
    let asked = std::env::var("SCHEDULES").ok().and_then(|count| count.parse().ok());
    let count: usize = asked.unwrap_or(SCHEDULES);
    shuttle::check_random(move || block_on(run()), count.div_ceil(2));
    shuttle::check_pct(move || block_on(run()), count.div_ceil(2), 3);
}

fn document(id: i32) -> DocumentRef {
    DocumentRef::by_id(Namespace::new("shop", "orders"), id)
}

/// Does what tokio's `recv_many` does: waits for a value, takes it and any other values that have arrived, up to `limit`
/// together, and returns their number. The number is zero when the channel is closed.
async fn recv_many<T>(queue: &mut mpsc::Receiver<T>, buffer: &mut Vec<T>, limit: usize) -> usize {
    let Some(first) = queue.recv().await else { return 0 };
    buffer.push(first);

    let mut count = 1;
    while count < limit
        && let Ok(value) = queue.try_recv()
    {
        buffer.push(value);
        count += 1;
    }
    count
}
