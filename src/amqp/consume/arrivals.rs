//! Deliveries that have arrived, but that no call of `next` has returned yet.

use std::collections::VecDeque;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::amqp::consume::delivery::Delivery;

/// Deliveries that no call of `next` has returned yet. No lock is held across an await, because a `next` that is no
/// longer polled must not make [`Consumer::stop_taking`] wait.
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

    /// Takes the oldest delivery whose connection still exists.
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
