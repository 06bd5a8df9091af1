//! Limits the memory for stored data, with a budget in bytes.
//!
//! # Flow
//! A read reserves memory for the largest possible reply. When the reply has arrived, each outbox keeps a reservation
//! of its estimated size while it is processed, and the rest becomes free.
//!
//! # Guarantees
//! - A task that waits for memory has no memory reserved, so two tasks can't wait for each other.
//! - An outbox that is larger than the whole budget is still processed, but no other outbox is processed at the same
//!   time.
//!
//! # Caveats
//! The size in memory is only estimated from the stored size. Allocators keep more memory than is in use, and a process
//! has other needs, so give the process several times the budget.

use std::sync::Arc;

use mongodb::bson::{Bson, RawBsonRef, RawDocument};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::stored::entry::Entry;

/// The size of the server's largest reply: 16 MiB of documents and their overhead.
pub(crate) const REPLY: usize = 17 << 20;
/// The budget is counted in units of this many bytes.
const UNIT: usize = 1 << 10;
/// Estimated memory of a value in addition to its bytes.
const VALUE: usize = 160;
/// Number of copies of a message during its delivery: the envelope, the body, and the copy in flight to the broker.
const COPIES: usize = 3;
/// In a document up to this size, the values are not counted; the document is assumed to consist of small values.
const SMALL: usize = 4 << 10;

/// The memory budget. Clones share the same budget.
#[derive(Debug, Clone)]
pub(crate) struct Memory {
    units: u32,
    free: Arc<Semaphore>,
}

/// A reserved part of the budget, which becomes free when this value is dropped.
#[derive(Debug)]
pub(crate) struct Room {
    permit: Option<OwnedSemaphorePermit>,
}

impl Memory {
    pub(crate) fn of(bytes: usize) -> Self {
        let units = units(bytes).max(1);
        Self { units, free: Arc::new(Semaphore::new(usize::try_from(units).unwrap_or(1))) }
    }

    /// Reserves this many bytes, but at most the whole budget. Waits until these bytes are free. The caller must not
    /// have a reservation already.
    pub(crate) async fn reserve(&self, bytes: usize) -> Room {
        let units = units(bytes).min(self.units);
        // An error would mean that the semaphore was closed, which never happens.
        Room { permit: self.free.clone().acquire_many_owned(units).await.ok() }
    }

    /// Reserves this many bytes, if they are free now.
    pub(crate) fn try_reserve(&self, bytes: usize) -> Option<Room> {
        let units = units(bytes).min(self.units);
        let permit = self.free.clone().try_acquire_many_owned(units).ok()?;
        Some(Room { permit: Some(permit) })
    }
}

impl Room {
    fn units(&self) -> u32 {
        let units = self.permit.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        u32::try_from(units).unwrap_or(u32::MAX)
    }

    pub(crate) fn holds(&self, bytes: usize) -> bool {
        units(bytes) <= self.units()
    }

    /// Splits off this many bytes, or all bytes if there are fewer, as a separate reservation.
    pub(crate) fn split(&mut self, bytes: usize) -> Self {
        let units = units(bytes).min(self.units());
        let units = usize::try_from(units).unwrap_or(usize::MAX);
        Self { permit: self.permit.as_mut().and_then(|permit| permit.split(units)) }
    }

    /// Keeps a reservation of this many bytes and frees the rest.
    pub(crate) fn shrink_to(&mut self, bytes: usize) {
        *self = self.split(bytes);
    }
}

fn units(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).min(MOST_UNITS)
}

/// Maximum budget, 1 TiB, which is far below the limit of a semaphore.
const MOST_UNITS: u32 = 1 << 30;

/// Estimates the memory for the outbox of this document: twice the size of its bytes and values, because the messages
/// in delivery need the same amount.
pub(crate) fn weight_of(document: &RawDocument) -> usize {
    let bytes = document.as_bytes().len();
    let values = if bytes <= SMALL { bytes / 16 } else { values_of(document) };
    2 * (bytes + values * VALUE)
}

fn values_of(document: &RawDocument) -> usize {
    let mut values = 0;
    // Stop counting at bytes that are not BSON.
    for (_, value) in document.iter().map_while(Result::ok) {
        values += 1 + values_in(value);
    }
    values
}

fn values_in(value: RawBsonRef<'_>) -> usize {
    match value {
        RawBsonRef::Document(document) => values_of(document),
        RawBsonRef::Array(array) => {
            array.into_iter().map_while(Result::ok).map(|value| 1 + values_in(value)).sum()
        }
        _ => 0,
    }
}

/// Estimates the memory for an entry.
pub(crate) fn weight_of_entry(entry: &Entry) -> usize {
    let headers: usize = entry.headers.iter().map(|(name, value)| name.len() + value.len() + VALUE).sum();
    2 * VALUE + headers + weight_of_value(&entry.payload)
}

pub(crate) fn weight_of_value(value: &Bson) -> usize {
    let within: usize = match value {
        Bson::Document(document) => {
            document.iter().map(|(name, value)| name.len() + weight_of_value(value)).sum()
        }
        Bson::Array(values) => values.iter().map(weight_of_value).sum(),
        Bson::String(text) | Bson::Symbol(text) | Bson::JavaScriptCode(text) => text.len(),
        Bson::Binary(binary) => binary.bytes.len(),
        _ => 0,
    };
    VALUE + within
}

/// Estimates the memory for delivering these entries, with at most `window` bytes of messages at a time.
pub(crate) fn weight_of_claim(entries: &[Entry], window: usize) -> usize {
    let mut all = 0;
    let mut largest = 0;
    for entry in entries {
        let weight = weight_of_entry(entry);
        all += weight;
        largest = largest.max(weight);
    }
    all + COPIES * largest.max(window.min(all))
}

/// Estimates the memory for delivering a message with this payload, from its save on.
pub(crate) fn weight_of_message(payload: &Bson) -> usize {
    (1 + COPIES) * weight_of_value(payload)
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use mongodb::bson::{RawDocumentBuf, doc};

    use super::*;

    const MIB: usize = 1 << 20;

    #[tokio::test]
    async fn room_is_released_on_drop_or_shrink() {
        let memory = Memory::of(10 * MIB);
        let mut first = memory.reserve(8 * MIB).await;
        assert!(memory.reserve(4 * MIB).now_or_never().is_none());
        first.shrink_to(6 * MIB);
        let mut second = memory.try_reserve(4 * MIB).unwrap();
        let part = second.split(MIB);
        drop(second);
        assert!(memory.try_reserve(4 * MIB).is_none(), "a part is kept");
        drop(part);
        assert!(memory.try_reserve(4 * MIB).is_some());
    }

    #[tokio::test]
    async fn a_value_over_the_budget_goes_alone() {
        let memory = Memory::of(10 * MIB);
        let large = memory.reserve(50 * MIB).await;
        assert!(memory.try_reserve(1).is_none());
        assert!(!large.holds(50 * MIB));
        drop(large);
        assert!(memory.try_reserve(10 * MIB).is_some());
    }

    #[test]
    fn many_small_values_weigh_more_than_their_bytes() {
        let weight = |document| weight_of(&RawDocumentBuf::try_from(&document).unwrap());
        let numbers: Vec<i32> = (0..10_000).collect();
        let numbers = doc! { "outbox": [{ "payload": numbers }] };
        assert!(weight(numbers) > 10_000 * VALUE);
        let text = doc! { "outbox": [{ "payload": "x".repeat(MIB) }] };
        assert!((2 * MIB..3 * MIB).contains(&weight(text)));
    }
}
