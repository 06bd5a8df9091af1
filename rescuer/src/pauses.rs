//! Pauses between attempts: growing and jittered, from 100 ms to 10 s.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// The pauses of an operation that is retried until it succeeds. The mutex is never locked: it only
/// makes the type `Sync`, so that a task can borrow a value that contains `Pauses` across an await.
pub(crate) struct Pauses(Mutex<Box<dyn Iterator<Item = Duration> + Send>>);

impl Pauses {
    pub(crate) fn new() -> Self {
        let delays = ExponentialBuilder::default()
            .with_min_delay(SHORTEST_PAUSE)
            // The jitter at most doubles the pause.
            .with_max_delay(LONGEST_PAUSE / 2)
            .with_jitter()
            .without_max_times();
        Self(Mutex::new(Box::new(delays.build())))
    }

    pub(crate) fn next(&mut self) -> Duration {
        let delays = self.0.get_mut();
        delays.next().unwrap_or(LONGEST_PAUSE)
    }

    /// Sleeps for the next pause, or until stopped.
    pub(crate) async fn pause(&mut self, stop: &CancellationToken) {
        stop.run_until_cancelled(tokio::time::sleep(self.next())).await;
    }
}
