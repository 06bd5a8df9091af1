//! Generates outboxes. The entries are in any state and come from this library or from other writers. Some entries have unknown
//! fields, and some elements are not entries.

use document_outbox::internal::{Slot, read_outbox};
use mongodb::bson::{Bson, DateTime, Document, Uuid, doc};
use proptest::prelude::*;

use crate::generated::any_bson;

pub(crate) const MINUTE: i64 = 60_000;

/// An element of an outbox. Its dates are relative to the present time, `now`, which is known only when `outbox` builds the
/// element.
#[derive(Debug, Clone)]
pub(crate) enum Part {
    /// An entry. The dates are in minutes after `now`.
    Entry { fields: Document, dates: Vec<(&'static str, i64)> },
    /// An element that is not an entry.
    Odd(Bson),
    /// A copy of an element from an earlier place in the outbox.
    Again(prop::sample::Index),
}

pub(crate) fn any_parts() -> impl Strategy<Value = Vec<Part>> {
    prop::collection::vec(any_part(), 0..7)
}

fn any_part() -> impl Strategy<Value = Part> {
    prop_oneof![
        12 => any_entry(),
        2 => any_bson().prop_map(Part::Odd),
        1 => any::<prop::sample::Index>().prop_map(Part::Again),
    ]
}

/// Generates an entry. Its dates are hours away from now, so that no date passes while a test runs.
fn any_entry() -> impl Strategy<Value = Part> {
    let made = prop::option::of(Just(-120i64));
    let available =
        prop_oneof![2 => Just(None), 4 => Just(Some(-120)), 4 => Just(Some(-60)), 3 => Just(Some(120i64))];
    let counts =
        (prop_oneof![4 => Just(0), 1 => 1..10i32, 1 => Just(9)], prop_oneof![6 => 0..2i32, 1 => 3..10i32]);
    let flags = (prop::bool::weighted(0.3), prop::bool::weighted(0.1), prop::bool::weighted(0.15));
    let unknown = prop::option::weighted(0.4, any_bson());
    let more = (prop::option::weighted(0.2, "[a-z]{1,3}"), prop::option::weighted(0.2, Just("h1")));

    (any_bson(), made, available, counts, flags, unknown, more).prop_map(
        |(
            payload,
            made,
            available,
            (attempts, crashes),
            (claimed, dead, elsewhere),
            unknown,
            (header, handler),
        )| {
            let mut fields = doc! { "type": "t", "payload": payload };
            let mut dates = Vec::new();
            if let Some(unknown) = unknown {
                fields.insert("unknown", unknown);
            }
            if let Some(header) = header {
                fields.insert("headers", doc! { header: "x" });
            }
            if let Some(handler) = handler {
                fields.insert("delivered_to", [handler].as_slice());
            }
            if elsewhere {
                fields.insert("via", "handlers");
            }
            if claimed {
                fields.insert("claimed_by", "another/1");
            }
            if attempts > 0 {
                fields.insert("attempts", attempts);
            }
            if attempts + crashes > 0 {
                fields.insert("claims", Bson::from(f64::from(attempts + crashes)));
            }
            dates.extend(made.map(|minutes| ("created_at", minutes)));
            if dead {
                dates.push(("dead_at", -30));
            } else {
                dates.extend(available.map(|minutes| ("available_at", minutes)));
            }
            Part::Entry { fields, dates }
        },
    )
}

/// Returns the elements with their dates relative to `now`.
pub(crate) fn outbox(parts: Vec<Part>, now: DateTime) -> Vec<Bson> {
    let mut elements: Vec<Bson> = Vec::new();
    for part in parts {
        elements.push(match part {
            Part::Odd(value) => value,
            Part::Again(place) if !elements.is_empty() => elements[place.index(elements.len())].clone(),
            Part::Again(_) => Bson::Null,
            Part::Entry { fields, dates } => {
                let mut entry = doc! { "id": Uuid::new() };
                entry.extend(fields);
                for (name, minutes) in dates {
                    entry.insert(name, DateTime::from_millis(now.timestamp_millis() + minutes * MINUTE));
                }
                entry.into()
            }
        });
    }
    elements
}

pub(crate) fn slots(outbox: &[Bson]) -> Vec<Slot> {
    read_outbox(Some(&Bson::from(outbox.to_vec()))).unwrap()
}

/// Returns the bytes of an element, because NaN is not equal to itself but its bytes are.
pub(crate) fn bytes(value: &Bson) -> Vec<u8> {
    mongodb::bson::to_vec(&doc! { "": value }).unwrap()
}
