//! Limits the number of messages that are published and not yet cleared. Such messages would be repeated if the
//! process were killed now.
//!
//! A delivery takes permits before it publishes, and returns them when its clear has been answered. A delivery that has
//! to wait for permits first clears its delivered messages, so it has no permits while it waits. The limit can make
//! clears smaller, but never causes a deadlock.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Limits the messages that are published and not yet cleared. Clones share the limit.
#[derive(Debug, Clone)]
pub(crate) struct Unsettled {
    most: u32,
    free: Arc<Semaphore>,
}

/// Permission for a number of messages to be published. The permits are returned when this value is dropped.
#[derive(Debug)]
pub(crate) struct Permits {
    permit: Option<OwnedSemaphorePermit>,
}

impl Unsettled {
    pub(crate) fn most(messages: usize) -> Self {
        let most = u32::try_from(messages).unwrap_or(u32::MAX).clamp(1, MOST);
        Self { most, free: Arc::new(Semaphore::new(usize::try_from(most).unwrap_or(1))) }
    }

    /// The limit, which is also the maximum number of permits that one caller may take.
    pub(crate) fn bound(&self) -> usize {
        usize::try_from(self.most).unwrap_or(usize::MAX)
    }

    pub(crate) fn try_take(&self, messages: usize) -> Option<Permits> {
        let permit = self.free.clone().try_acquire_many_owned(self.count(messages)).ok()?;
        Some(Permits { permit: Some(permit) })
    }

    pub(crate) async fn take(&self, messages: usize) -> Permits {
        // An error would mean that the semaphore was closed, which never happens.
        Permits { permit: self.free.clone().acquire_many_owned(self.count(messages)).await.ok() }
    }

    fn count(&self, messages: usize) -> u32 {
        u32::try_from(messages).unwrap_or(u32::MAX).min(self.most)
    }
}

impl Permits {
    pub(crate) fn none() -> Self {
        Self { permit: None }
    }

    /// Moves `count` permits from `others` into `self`. The remaining permits of `others` become free.
    pub(crate) fn keep(&mut self, mut others: Self, count: usize) {
        let Some(kept) = others.permit.as_mut().and_then(|permit| permit.split(count)) else { return };
        match &mut self.permit {
            Some(permit) => permit.merge(kept),
            None => self.permit = Some(kept),
        }
    }
}

/// Far more messages than a process can have in flight, and within a semaphore's range on every platform.
const MOST: u32 = 1 << 24;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delivered_messages_count_until_they_are_cleared() {
        let unsettled = Unsettled::most(10);
        let window = unsettled.try_take(8).unwrap();
        assert!(unsettled.try_take(3).is_none());
        let mut delivered = Permits::none();
        delivered.keep(window, 5);
        delivered.keep(unsettled.try_take(3).unwrap(), 3);
        assert!(unsettled.try_take(3).is_none());
        drop(unsettled.try_take(2).unwrap());
        drop(delivered);
        assert!(unsettled.try_take(10).is_some());
    }

    #[test]
    fn there_is_always_room_for_one() {
        assert!(Unsettled::most(0).try_take(1).is_some());
    }
}
