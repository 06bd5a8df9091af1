//! The updates of the acts, as values.
//!
//! An update changes an entry only if the entry is still as it was shown. The fields that a delivery, a save or another
//! operator can change are all part of the condition; the other fields of an entry never change.

use mongodb::bson::{Bson, DateTime, Document, doc};

use super::Act;
use crate::list::Row;

/// An update of one entry.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Transition {
    /// The condition on the array: one of its elements is as it was shown.
    pub(crate) element: Document,
    /// The update.
    pub(crate) update: Document,
    /// The filter for the elements that the update changes; none for an update that removes them.
    pub(crate) array_filter: Option<Document>,
}

/// The update of an act on a message that was shown as this row.
pub(crate) fn transition(act: Act, shown: &Row, by: &str, now: DateTime) -> Option<Transition> {
    let element = as_shown(shown)?;
    let update = match act {
        Act::Replay => doc! {
            "$set": {
                "outbox.$[e].available_at": now, "outbox.$[e].attempts": 0, "outbox.$[e].claims": 0,
                "outbox.$[e].replayed_at": now, "outbox.$[e].replayed_by": by,
            },
            "$unset": { "outbox.$[e].dead_at": "", "outbox.$[e].dead_reason": "", "outbox.$[e].last_error": "" },
        },
        Act::Kill => doc! {
            "$set": { "outbox.$[e].dead_at": now, "outbox.$[e].dead_reason": "operator" },
            "$unset": { "outbox.$[e].available_at": "", "outbox.$[e].claimed_by": "" },
        },
        Act::Release => doc! {
            "$set": { "outbox.$[e].available_at": now },
            "$unset": { "outbox.$[e].claimed_by": "" },
        },
        Act::Discard => {
            // All elements with the id are this message. A repeated one may lack the date of death, and would be
            // delivered.
            shown.dead_at?;
            let removed = doc! { "id": shown.id? };
            return Some(Transition {
                element,
                update: doc! { "$pull": { "outbox": removed } },
                array_filter: None,
            });
        }
        Act::Restore | Act::Reveal => return None,
    };

    let array_filter = element.iter().map(|(name, value)| (format!("e.{name}"), value.clone())).collect();
    Some(Transition { element, update, array_filter: Some(array_filter) })
}

/// The condition that an element is still as it was shown.
fn as_shown(shown: &Row) -> Option<Document> {
    let date = |date: Option<DateTime>| date.map_or(Bson::Null, Bson::from);
    let text = |text: &Option<String>| text.clone().map_or(Bson::Null, Bson::from);
    Some(doc! {
        "id": shown.id?,
        // A null condition is met by a missing field, too.
        "available_at": date(shown.available_at),
        "claimed_by": text(&shown.claimed_by),
        "dead_at": date(shown.dead_at),
        "attempts": number(shown.attempts),
        "claims": number(shown.claims),
    })
}

/// A missing number counts as zero.
fn number(number: i64) -> Bson {
    match number {
        0 => doc! { "$in": [0, Bson::Null] }.into(),
        number => number.into(),
    }
}
