//! Bounds the stored data in memory: a budget in bytes, not in documents.
//!
//! # Flow
//! A read reserves room for the largest reply there is. When the reply has come, each outbox keeps what it weighs, for as long
//! as it is processed, and the rest is free again.
//!
//! # Guarantees
//! - A task that waits for room holds none, so two can't wait for each other.
//! - An outbox that is larger than the whole budget is still processed, alone.
//!
//! # Caveats
//! It weighs what is stored, and estimates what that takes in memory. Allocators keep more than is in use, and a process has
//! other needs: give it several times the budget.

use std::sync::Arc;

use mongodb::bson::{Bson, RawBsonRef, RawDocument};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::stored::entry::Entry;

/// The size of the server's largest reply: 16 MiB of documents and their overhead.
pub(crate) const REPLY: usize = 17 << 20;
/// The budget is counted in units of this many bytes.
const UNIT: usize = 1 << 10;
/// About the memory of a value in addition to its bytes.
const VALUE: usize = 160;
/// How many copies of a message there are while it is delivered: the envelope, its body, and the copy in
/// flight to the broker.
const COPIES: usize = 3;
/// Up to this many bytes a document is assumed to consist of small values, without counting them.
const SMALL: usize = 4 << 10;

/// The budget; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Memory {
    units: u32,
    free: Arc<Semaphore>,
}

/// A part of the budget, until dropped.
#[derive(Debug)]
pub(crate) struct Room {
    permit: Option<OwnedSemaphorePermit>,
}

impl Memory {
    pub(crate) fn of(bytes: usize) -> Self {
        let units = units(bytes).max(1);
        Self { units, free: Arc::new(Semaphore::new(usize::try_from(units).unwrap_or(1))) }
    }

    /// Waits for room for this many bytes, or for all of it. The caller must hold none.
    pub(crate) async fn reserve(&self, bytes: usize) -> Room {
        let units = units(bytes).min(self.units);
        // The error would mean that the budget was closed, which never happens.
        Room { permit: self.free.clone().acquire_many_owned(units).await.ok() }
    }

    /// Room for this many bytes, if it is free now.
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

    /// Room for this many bytes from this, at most all of it.
    pub(crate) fn split(&mut self, bytes: usize) -> Self {
        let units = units(bytes).min(self.units());
        let units = usize::try_from(units).unwrap_or(usize::MAX);
        Self { permit: self.permit.as_mut().and_then(|permit| permit.split(units)) }
    }

    /// Returns all except this.
    pub(crate) fn shrink_to(&mut self, bytes: usize) {
        *self = self.split(bytes);
    }
}

fn units(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).min(MOST_UNITS)
}

/// Far below the range of a semaphore: 1 TiB.
const MOST_UNITS: u32 = 1 << 30;

/// About the memory of an outbox that is stored in this document: its bytes, its values, and as much again
/// for the messages in delivery.
pub(crate) fn weight_of(document: &RawDocument) -> usize {
    let bytes = document.as_bytes().len();
    let values = if bytes <= SMALL { bytes / 16 } else { values_of(document) };
    2 * (bytes + values * VALUE)
}

fn values_of(document: &RawDocument) -> usize {
    let mut values = 0;
    // Bytes that are not BSON have no values.
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

/// About the memory of an entry.
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

/// About the memory for delivering these entries, this many bytes of them at a time.
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

/// About the memory for delivering a message with this payload, from its save on.
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
