//! Properties of single decisions, tested with generated values.

#![allow(clippy::unwrap_used, reason = "a test that cannot continue fails")]

mod bodies;
mod generated;
mod settings;

use std::collections::BTreeMap;

use document_outbox::{
    DocumentRef, RetryPolicy,
    command::{ProcessDocumentMessages, Reason},
    deliver::Outcome,
    internal::{Dead, Entry, Settlement, Slot, due_again, settlement},
};
use mongodb::{
    Namespace,
    bson::{Bson, Document, Uuid, doc},
};
use outbox_proof::{
    targets::{TARGETS, check_plan, entry},
    world::at,
};
use proptest::prelude::*;

use crate::generated::{any_bson, any_order};

/// Generates an element in the form of an entry. Some of its fields have values of any type.
fn odd_element() -> impl Strategy<Value = Bson> {
    let fields = [
        "id",
        "type",
        "payload",
        "headers",
        "via",
        "created_at",
        "available_at",
        "claimed_by",
        "attempts",
        "claims",
        "delivered_to",
        "dead_at",
    ];
    let odd = prop::collection::vec((prop::sample::select(fields.to_vec()), any_bson()), 0..4);
    (0..3u8, odd).prop_map(|(id, odd)| {
        let mut element = doc! { "id": Uuid::from_bytes([id; 16]), "type": "t", "payload": 1 };
        for (name, value) in odd {
            element.insert(name, value);
        }
        element.into()
    })
}

/// Generates an entry in any state.
fn any_entry() -> impl Strategy<Value = Entry> {
    let dates = (prop::option::of(0..14u8), prop::option::of(0..14u8));
    let counts = (0..12i64, 0..12i64);
    let flags = (any::<bool>(), any::<bool>(), any::<bool>());
    (any::<[u8; 16]>(), dates, counts, flags).prop_map(
        |(id, (created, available), (attempts, claims), flags)| {
            let (is_claimed, is_dead, is_for_handlers) = flags;
            Entry {
                id: Uuid::from_bytes(id),
                message_type: "t".into(),
                payload: Bson::Null,
                headers: BTreeMap::new(),
                via: is_for_handlers.then(|| "handlers".into()),
                key: None,
                created_at: created.map(at),
                available_at: available.map(at),
                claimed_by: is_claimed.then(|| "p/1".into()),
                attempts,
                claims,
                last_error: None,
                delivered_to: Vec::new(),
                dead: is_dead.then(|| Dead { at: at(0), reason: "permanent".into() }),
            }
        },
    )
}

fn any_outcome() -> impl Strategy<Value = Outcome> {
    prop::sample::select(vec![
        Outcome::Delivered,
        Outcome::Transient("t".into()),
        Outcome::Unroutable("u".into()),
        Outcome::Permanent("p".into()),
        Outcome::Unavailable("a".into()),
    ])
}

fn any_id() -> impl Strategy<Value = Bson> {
    prop_oneof![
        any::<i32>().prop_map(Bson::from),
        any::<i64>().prop_map(Bson::from),
        ".{0,12}".prop_map(Bson::from),
        any::<[u8; 16]>().prop_map(|bytes| Bson::from(Uuid::from_bytes(bytes))),
        prop::collection::btree_map("[a-z]{1,4}", any::<i32>(), 1..3).prop_map(|fields| Bson::from(
            fields.into_iter().map(|(k, v)| (k, Bson::from(v))).collect::<Document>()
        )),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_lead_to_an_answer(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        for (_, target) in TARGETS {
            target(&bytes);
        }
    }

    #[test]
    fn an_outbox_of_any_shape_leads_to_a_plan(elements in prop::collection::vec(odd_element(), 0..6)) {
        let document = doc! { "_id": 1, "outbox": elements };
        entry(&mongodb::bson::to_vec(&document).unwrap());
    }

    #[test]
    fn no_plan_breaks_the_order(
        entries in prop::collection::vec(any_entry(), 0..8),
        order in any_order(),
        now in 0..14u8,
    ) {
        let slots: Vec<_> = entries.into_iter().map(|entry| Slot::Entry(Box::new(entry))).collect();
        check_plan(&slots, order, at(now));
    }

    #[test]
    fn a_settlement_follows_from_outcome_and_attempts(entry in any_entry(), outcome in any_outcome(), most in 1..10u32) {
        let mut policy = RetryPolicy::default();
        policy.max_attempts = most;
        let is_last = entry.attempts + 1 >= i64::from(most);
        let settled = settlement(outcome.clone(), &entry, &policy);
        match outcome {
            Outcome::Delivered => prop_assert_eq!(settled, Settlement::Clear),
            Outcome::Unavailable(_) => {
                let is_released = matches!(settled, Settlement::Release { .. });
                prop_assert!(is_released);
            }
            Outcome::Permanent(_) => {
                let is_dead = matches!(settled, Settlement::Die { .. });
                prop_assert!(is_dead);
            }
            _ => {
                let is_dead = matches!(settled, Settlement::Die { .. });
                prop_assert_eq!(is_dead, is_last);
            }
        }
    }

    #[test]
    fn every_released_entry_has_one_date(entries in prop::collection::vec(any_entry(), 0..6), now in 0..14u8) {
        let given_back: Vec<&Entry> = entries.iter().collect();
        let dates = due_again(&given_back, at(now));
        for entry in &entries {
            let of: Vec<_> = dates.iter().filter(|(_, ids)| ids.contains(&entry.id)).collect();
            prop_assert_eq!(of.len(), 1);
            // If a claimed entry was created at or before `now`, its new date is at or before `now` too, so the entry is due at
            // once.
            if entry.created_at.is_some_and(|made| made <= at(now)) && entry.claimed_by.is_some() {
                prop_assert!(of[0].0.is_some_and(|due| due <= at(now)));
            }
        }
    }

    #[test]
    fn a_command_is_read_as_it_was_written(id in any_id(), database in "[a-z]{1,8}", collection in "[a-z.]{1,8}") {
        let document = DocumentRef::by_id(Namespace::new(database, collection), id);
        let command = ProcessDocumentMessages::new(document, Reason::Sweep);
        let read = ProcessDocumentMessages::from_json(&command.to_json());
        prop_assert_eq!(read.ok(), Some(command));
    }
}
