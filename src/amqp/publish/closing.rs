//! Asking a publisher to close, and for how long its last confirms are awaited.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::amqp::publish::backlog::Item;

/// The longest that closing waits for the confirms of messages that were handed over before.
const LAST_CONFIRMS: Duration = Duration::from_secs(5);
/// While closing, how often to check whether any caller still waits for an answer.
const CALLERS_CHECK: Duration = Duration::from_millis(20);

/// Whether somebody asked to close, and until when the last confirms may come.
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

    /// When closing waits no longer.
    pub(super) async fn overdue(&self) {
        self.asked.cancelled().await;
        sleep_until(Instant::now() + self.left()).await;
    }

    /// When closing waits no longer for this window: it is overdue, or no caller wants to know.
    pub(super) async fn overdue_for(&self, items: &[Item]) {
        self.asked.cancelled().await;
        while !self.left().is_zero() && !items.iter().all(Item::is_abandoned) {
            sleep(CALLERS_CHECK).await;
        }
    }
}
