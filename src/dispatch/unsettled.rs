//! How many messages are published and not yet cleared: what a process would repeat if it were killed now. Bounded.
//!
//! Whoever wants to publish takes permits first, and gives them back when the clear has been answered. Whoever has to wait for
//! permits holds none: it clears first what it has delivered. So the bound costs smaller clears, never a standstill.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The bound; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Unsettled {
    most: u32,
    free: Arc<Semaphore>,
}

/// Messages that may be published, or have been, until dropped.
#[derive(Debug)]
pub(crate) struct Permits {
    permit: Option<OwnedSemaphorePermit>,
}

impl Unsettled {
    pub(crate) fn most(messages: usize) -> Self {
        let most = u32::try_from(messages).unwrap_or(u32::MAX).clamp(1, MOST);
        Self { most, free: Arc::new(Semaphore::new(usize::try_from(most).unwrap_or(1))) }
    }

    /// The bound, and the most that is taken at once.
    pub(crate) fn bound(&self) -> usize {
        usize::try_from(self.most).unwrap_or(usize::MAX)
    }

    pub(crate) fn try_take(&self, messages: usize) -> Option<Permits> {
        let permit = self.free.clone().try_acquire_many_owned(self.count(messages)).ok()?;
        Some(Permits { permit: Some(permit) })
    }

    pub(crate) async fn take(&self, messages: usize) -> Permits {
        // The error would say that the bound was taken away, which it never is.
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

    /// Adds this many of others to these; the rest is free.
    pub(crate) fn keep(&mut self, mut others: Self, count: usize) {
        let Some(kept) = others.permit.as_mut().and_then(|permit| permit.split(count)) else { return };
        match &mut self.permit {
            Some(permit) => permit.merge(kept),
            None => self.permit = Some(kept),
        }
    }
}

/// Far more than a process can have under way, and what a semaphore can count anywhere.
const MOST: u32 = 1 << 24;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_delivered_counts_until_it_is_cleared() {
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
