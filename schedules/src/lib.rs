//! Schedules of the parts that tasks share, one for each seed.
//!
//! The files under test are those of the library, compiled again with the locks, channels and tasks of
//! [shuttle](https://docs.rs/shuttle) in place of tokio's: its scheduler decides at each of their steps who runs next. A run that
//! fails prints its schedule, which `shuttle::replay` repeats. The driver, lapin and tokio-util stay as they are.
//!
//! Of each file there are also copies in which one rule is broken (`build.rs`): their schedules must fail.
//!
//! # Caveats
//! Time is not modelled: a `sleep` ends whenever its task runs, a `timeout` never does.

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

/// How many schedules each test runs: `SCHEDULES`, or this many.
const SCHEDULES: usize = 4_000;

/// Runs it under many schedules: half of them random, half by priorities that find rare orders of few steps.
fn explore<F: Future<Output = ()> + 'static>(run: fn() -> F) {
    let asked = std::env::var("SCHEDULES").ok().and_then(|count| count.parse().ok());
    let count: usize = asked.unwrap_or(SCHEDULES);
    shuttle::check_random(move || block_on(run()), count.div_ceil(2));
    shuttle::check_pct(move || block_on(run()), count.div_ceil(2), 3);
}

fn document(id: i32) -> DocumentRef {
    DocumentRef::by_id(Namespace::new("shop", "orders"), id)
}

/// As tokio's: waits for a value, and takes those that are there with it; zero when the channel has ended.
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
