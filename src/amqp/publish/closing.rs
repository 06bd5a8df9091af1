//! Closes a publisher, with a time limit for its last confirms.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::amqp::publish::backlog::Item;

/// Maximum time that closing waits for the confirms of earlier messages.
const LAST_CONFIRMS: Duration = Duration::from_secs(5);
/// The interval at which closing checks whether any caller still waits for an answer.
const CALLERS_CHECK: Duration = Duration::from_millis(20);

/// Whether closing was requested, and the deadline for the last confirms.
#[derive(Clone, Debug, Default)]
pub(super) struct Closing {
    asked: CancellationToken,
    until: Arc<OnceLock<Instant>>,
}

impl Closing {
    pub(super) fn ask(&self) {
        self.until.get_or_init(|| Instant::now() + LAST_CONFIRMS);
        self.asked.cancel();
    }

    pub(super) fn is_asked(&self) -> bool {
        self.asked.is_cancelled()
    }

    pub(super) fn left(&self) -> Duration {
        match self.until.get() {
            Some(until) => until.saturating_duration_since(Instant::now()),
            None => LAST_CONFIRMS,
        }
    }

    pub(super) async fn asked(&self) {
        self.asked.cancelled().await;
    }

    /// Completes when closing must stop waiting.
    pub(super) async fn overdue(&self) {
        self.asked.cancelled().await;
        sleep_until(Instant::now() + self.left()).await;
    }

    /// Completes when closing must stop waiting for this window, because the deadline has passed or no caller waits for
    /// an answer any more.
    pub(super) async fn overdue_for(&self, items: &[Item]) {
        self.asked.cancelled().await;
        while !self.left().is_zero() && !items.iter().all(Item::is_abandoned) {
            sleep(CALLERS_CHECK).await;
        }
    }
}
