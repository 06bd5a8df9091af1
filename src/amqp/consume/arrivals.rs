//! Deliveries that have arrived and were not requested yet.

use std::collections::VecDeque;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::amqp::consume::delivery::Delivery;

/// Deliveries that were not requested yet. No lock is held over an await: a `next` that is no longer polled
/// must not keep [`Consumer::stop_taking`] waiting.
#[derive(Debug, Default)]
pub(super) struct Arrivals {
    deliveries: Mutex<VecDeque<Delivery>>,
    pub(super) arrived: Notify,
}

impl Arrivals {
    pub(super) fn put(&self, delivery: Delivery) {
        self.deliveries.lock().push_back(delivery);
        self.arrived.notify_one();
    }

    /// The oldest delivery that is not stale.
    pub(super) fn take(&self) -> Option<Delivery> {
        let mut deliveries = self.deliveries.lock();
        while let Some(delivery) = deliveries.pop_front() {
            if !delivery.is_stale() {
                if !deliveries.is_empty() {
                    self.arrived.notify_one();
                }
                return Some(delivery);
            }
        }
        None
    }
}
