//! The claims of each message over time, as MongoDB's oplog shows them. No log or metric of the product is used.

use std::collections::HashMap;

use anyhow::Result;
use futures::TryStreamExt;
use mongodb::bson::{Bson, DateTime, Document, Timestamp, doc};
use uuid::Uuid;

use super::truth::uuid_of;
use crate::servers::Set;

/// The states that each message of a run had, in the order of time.
#[derive(Debug, Default)]
pub(crate) struct History {
    states: HashMap<Uuid, Vec<State>>,
    outboxes: HashMap<String, Vec<Bson>>,
}

/// The state that a message in an outbox had from the time `at` on. All times are dates of the server, in milliseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct State {
    pub(super) at: i64,
    pub(super) claimed_by: Option<String>,
    pub(super) available_at: Option<i64>,
}

/// How the claim of the first of two publishes of a message ended before the second publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ClaimEnd {
    /// The claim did not end: both publishes were under the same claim.
    Held,
    /// The claim was in force from `since` to `until`, and then expired.
    Expired { since: i64, until: i64 },
    /// The holder released the claim at this time.
    Released(i64),
    /// Another holder claimed the message before the first claim had expired. This must not happen.
    Broken,
}

impl History {
    /// Reads all writes to this database since `since` from the oplog. The oplog does not contain writes that were rolled back.
    pub(crate) async fn read(set: &Set, database: &str, since: DateTime) -> Result<Self> {
        let seconds = u32::try_from(since.timestamp_millis() / 1_000 - 5).unwrap_or_default();
        let of_database = format!("^{database}[.]");
        let filter = doc! {
            "ts": { "$gte": Timestamp { time: seconds, increment: 0 } },
            "$or": [
                { "ns": { "$regex": &of_database } },
                { "o.applyOps.ns": { "$regex": &of_database } },
            ],
        };
        let log = set.database("local").collection::<Document>("oplog.rs");
        let writes: Vec<Document> = log.find(filter).await?.try_collect().await?;

        let mut history = Self::default();
        for write in &writes {
            let at = write.get_datetime("wall").map(|wall| wall.timestamp_millis()).unwrap_or_default();
            history.note(write, at);
            let inner = write.get_document("o").and_then(|o| o.get_array("applyOps"));
            for write in inner.into_iter().flatten().filter_map(Bson::as_document) {
                history.note(write, at);
            }
        }
        Ok(history)
    }

    fn note(&mut self, write: &Document, at: i64) {
        let Ok(change) = write.get_document("o") else { return };
        let key = write.get_document("o2").unwrap_or(change);
        // An id is enough as a key, because no two documents of a run have the same id.
        let Ok(id) = key.get_str("_id") else { return };
        let outbox = self.outboxes.entry(id.to_owned()).or_default();
        match write.get_str("op").unwrap_or_default() {
            "u" if change.contains_key("diff") => {
                let diff = change.get_document("diff").cloned().unwrap_or_default();
                change_field(outbox, &diff);
            }
            "i" | "u" => *outbox = change.get_array("outbox").cloned().unwrap_or_default(),
            _ => return,
        }

        for entry in outbox.iter().filter_map(Bson::as_document) {
            let Some(id) = entry.get("id").and_then(uuid_of) else { continue };
            let state = State {
                at,
                claimed_by: entry.get_str("claimed_by").ok().map(str::to_owned),
                available_at: entry.get_datetime("available_at").ok().map(|date| date.timestamp_millis()),
            };
            let states = self.states.entry(id).or_default();
            let is_new = states.last().is_none_or(|last| {
                (&last.claimed_by, last.available_at) != (&state.claimed_by, state.available_at)
            });
            if is_new {
                states.push(state);
            }
        }
    }

    /// Returns how the claim of the first publish, at `first`, ended before the second publish, at `again`. Returns `None` if
    /// the oplog shows no claim before the first publish.
    pub(super) fn claim_end(&self, id: Uuid, first: i64, again: i64) -> Option<ClaimEnd> {
        let states = self.states.get(&id)?;
        let claim_at =
            |time: i64| states.iter().rposition(|state| state.at <= time && state.claimed_by.is_some());
        let (one, other) = (claim_at(first)?, claim_at(again)?);
        if one == other {
            return Some(ClaimEnd::Held);
        }

        let claim = &states[one];
        let next = &states[one + 1];
        let until = claim.available_at?;
        Some(if next.claimed_by.is_none() {
            ClaimEnd::Released(next.at)
        } else if next.at >= until {
            ClaimEnd::Expired { since: claim.at, until }
        } else {
            ClaimEnd::Broken
        })
    }
}

/// Applies an update from the oplog to the field `outbox`.
fn change_field(outbox: &mut Vec<Bson>, diff: &Document) {
    for section in ["u", "i"] {
        if let Ok(whole) = diff.get_document(section).and_then(|fields| fields.get_array("outbox")) {
            outbox.clone_from(whole);
        }
    }
    if diff.get_document("d").is_ok_and(|fields| fields.contains_key("outbox")) {
        outbox.clear();
    }
    if let Ok(part) = diff.get_document("soutbox") {
        change_array(outbox, part);
    }
}

fn change_array(array: &mut Vec<Bson>, diff: &Document) {
    let length = diff.get("l").and_then(|length| length.as_i32().map(i64::from).or(length.as_i64()));
    if let Some(length) = length.and_then(|length| usize::try_from(length).ok()) {
        array.resize(length, Bson::Null);
    }
    for (name, value) in diff {
        let Some(place) = name.get(1..).and_then(|place| place.parse::<usize>().ok()) else { continue };
        if place >= array.len() {
            array.resize(place + 1, Bson::Null);
        }
        match (name.as_bytes()[0], value, &mut array[place]) {
            (b'u', value, element) => *element = value.clone(),
            (b's', Bson::Document(part), Bson::Document(element)) => change_document(element, part),
            _ => {}
        }
    }
}

/// Applies an update to the fields of an outbox entry. Changes inside nested documents are ignored, because the history needs
/// only fields of the entry itself.
fn change_document(document: &mut Document, diff: &Document) {
    for name in diff.get_document("d").into_iter().flat_map(Document::keys) {
        document.remove(name);
    }
    for section in ["u", "i"] {
        for (name, value) in diff.get_document(section).into_iter().flatten() {
            document.insert(name, value.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "018bcfe5-6878-7e5e-9d8b-1f5a4d6a9c11";

    fn id() -> Uuid {
        Uuid::parse_str(ID).unwrap()
    }

    fn date(millis: i64) -> DateTime {
        DateTime::from_millis(millis)
    }

    fn saved_at_100() -> History {
        let mut history = History::default();
        let entry = doc! { "id": ID, "available_at": date(1_000), "claimed_by": "a/1" };
        history.note(&doc! { "op": "i", "o": { "_id": "d", "outbox": [entry] } }, 100);
        history
    }

    fn update(history: &mut History, at: i64, entry: Document) {
        let diff = doc! { "soutbox": { "a": true, "s0": entry } };
        history.note(&doc! { "op": "u", "o": { "$v": 2, "diff": diff }, "o2": { "_id": "d" } }, at);
    }

    fn claimed(at: i64) -> Document {
        doc! { "u": { "claimed_by": "b/2", "available_at": date(at + 1_000) } }
    }

    #[test]
    fn a_claim_taken_over_in_time_is_expired() {
        let mut history = saved_at_100();
        update(&mut history, 1_000, claimed(1_000));

        assert_eq!(history.claim_end(id(), 150, 900), Some(ClaimEnd::Held));
        assert_eq!(history.claim_end(id(), 150, 1_100), Some(ClaimEnd::Expired { since: 100, until: 1_000 }));
    }

    #[test]
    fn a_claim_taken_over_too_soon_is_broken() {
        let mut history = saved_at_100();
        update(&mut history, 999, claimed(999));

        assert_eq!(history.claim_end(id(), 150, 1_100), Some(ClaimEnd::Broken));
    }

    #[test]
    fn a_claim_given_up_is_released() {
        let mut history = saved_at_100();
        update(&mut history, 500, doc! { "d": { "claimed_by": false }, "u": { "available_at": date(500) } });
        update(&mut history, 600, claimed(600));

        assert_eq!(history.claim_end(id(), 150, 700), Some(ClaimEnd::Released(500)));
    }

    #[test]
    fn entries_move_up_when_others_leave() {
        let mut outbox = vec![Bson::Int32(1), Bson::Int32(2), Bson::Int32(3)];
        change_field(&mut outbox, &doc! { "soutbox": { "a": true, "l": 2, "u0": 2, "u1": 3 } });
        assert_eq!(outbox, [Bson::Int32(2), Bson::Int32(3)]);

        change_field(&mut outbox, &doc! { "u": { "outbox": [] } });
        assert!(outbox.is_empty());
    }
}
