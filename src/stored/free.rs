//! Decides which stored messages a save of their own aggregate may still remove or reschedule.
//!
//! Such a message is *free*: it is alive, no process has claimed it, and none of its handlers has received it. The end of
//! a claim does not count, because the holder of an expired claim may still deliver.

use mongodb::bson::{Bson, Document, Uuid, doc};

use crate::stored::entry::Entry;

/// Whether the message of this entry may be removed or rescheduled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Freedom {
    Free,
    /// Its delivery has begun.
    InDelivery,
    Dead,
}

impl Freedom {
    pub(crate) fn of(entry: &Entry) -> Self {
        if entry.dead.is_some() {
            Self::Dead
        } else if entry.claimed_by.is_some() || !entry.delivered_to.is_empty() {
            Self::InDelivery
        } else {
            Self::Free
        }
    }
}

/// Builds the conditions that an outbox has these messages, and that each of their elements is free. A message can have
/// several elements if its push was repeated.
pub(crate) fn all_free(ids: &[Uuid]) -> Document {
    let none = vec![Bson::Null, Bson::Array(Vec::new())];
    let mut conditions = Vec::with_capacity(ids.len() + 1);
    for id in ids {
        let free = doc! { "id": id, "claimed_by": null, "dead_at": null, "delivered_to": { "$in": &none } };
        conditions.push(doc! { "outbox": { "$elemMatch": free } });
    }

    let not_free = [
        doc! { "claimed_by": { "$ne": null } },
        doc! { "dead_at": { "$ne": null } },
        doc! { "delivered_to": { "$nin": none } },
    ];
    let not_free = doc! { "id": { "$in": ids }, "$or": not_free.to_vec() };
    conditions.push(doc! { "$nor": [{ "outbox": { "$elemMatch": not_free } }] });
    doc! { "$and": conditions }
}
