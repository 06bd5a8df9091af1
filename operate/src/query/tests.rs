use std::time::Duration;

use document_outbox::internal::read_outbox;
use mongodb::bson::{Bson, DateTime, Uuid, doc};
use outbox_service::Glob;
use proptest::prelude::*;

use super::*;

const NOW: DateTime = DateTime::from_millis(1_800_000_000_000);

fn parsed(text: &str) -> Query {
    text.parse().unwrap_or_else(|error| panic!("{error}"))
}

fn refused(text: &str) -> String {
    text.parse::<Query>().unwrap_err().to_string()
}

/// Whether an entry with these fields meets a query.
fn meets(query: &str, fields: mongodb::bson::Document) -> bool {
    let mut entry = doc! { "id": Uuid::new(), "type": "order.placed", "payload": {} };
    entry.extend(fields);
    let slots = read_outbox(Some(&Bson::Array(vec![entry.into()]))).unwrap();
    parsed(query).matches(&slots[0], NOW)
}

fn ago(seconds: i64) -> DateTime {
    DateTime::from_millis(NOW.timestamp_millis() - seconds * 1_000)
}

#[test]
fn every_field_can_be_given() {
    let id = "018bcfe5-6878-7e5e-9d8b-1f5a4d6a9c11";
    let query = parsed(&format!(
        "type:order.*,invoice.sent state:dead,retrying reason:crashed error:\"no \\\"route\\\"\" doc:o-1 id:{id} \
         collection:shop.* since:24h until:2026-01-31 attempts:>3 header.tenant:south,north"
    ));
    assert_eq!(query.types, [Glob::new("order.*"), Glob::new("invoice.sent")]);
    assert_eq!(query.states, [MessageState::Dead, MessageState::Retrying]);
    assert_eq!(query.errors, ["no \"route\""]);
    assert_eq!(query.ids, [Uuid::parse_str(id).unwrap()]);
    assert_eq!(query.since, Some(Moment::Ago(Duration::from_hours(24))));
    assert_eq!(query.until.map(|until| text_of(until.at(NOW))).as_deref(), Some("2026-01-31T00:00:00Z"));
    assert_eq!(query.attempts.map(|range| range.least), Some(4));
    assert_eq!(query.headers, [("tenant".to_owned(), vec!["south".to_owned(), "north".to_owned()])]);
}

fn text_of(date: DateTime) -> String {
    crate::text::date(date)
}

#[test]
fn mistakes_are_marked_with_a_correction() {
    for (text, marked, hint) in [
        ("type:a sate:dead", "sate", "did you mean state?"),
        ("state:daed", "daed", "did you mean dead?"),
        ("dead", "dead", "write state:dead"),
        ("order.placed", "order.placed", "type:order.placed"),
        ("018bcfe5-6878-7e5e-9d8b-1f5a4d6a9c11", "018bcfe5-6878-7e5e-9d8b-1f5a4d6a9c11", "write id:018b"),
        ("id:018bcfe5", "018bcfe5", "write all of the id"),
        ("since:yesterday", "yesterday", "90m, 24h, 7d"),
        ("attempts:many", "many", ">3, >=3"),
        ("collection:shop", "shop", "database.collection"),
        ("error:\"open", "\"open", "not closed"),
        ("type:a type:b", "type", "separated by commas"),
        ("since:1h,2h", "2h", "only one value"),
        ("header.:x", "header.", "header.tenant:south"),
        ("error:\"a\"b", "b", "a blank is missing"),
    ] {
        let error = text.parse::<Query>().unwrap_err();
        assert_eq!(&text[error.place.clone()], marked, "{error}");
        assert!(error.to_string().contains(hint), "{error}");
    }
    assert!(refused("type:").contains("has no value here"));
}

#[test]
fn an_error_points_below_the_text() {
    let lines: Vec<String> = refused("type:ä sate:dead").lines().map(str::to_owned).collect();
    assert_eq!(lines[1], "  type:ä sate:dead");
    assert_eq!(lines[2], "         ^^^^");
}

#[test]
fn a_message_has_to_meet_every_condition() {
    let dead =
        || doc! { "dead_at": ago(60), "dead_reason": "permanent", "attempts": 3, "last_error": "No route" };
    for query in [
        "",
        "state:dead",
        "type:order.*",
        "reason:permanent",
        "error:\"NO R\"",
        "attempts:3",
        "attempts:>2",
        "attempts:>=3",
        "attempts:<4",
        "attempts:<=3",
        "attempts:2..5",
        "since:2m",
        "until:30s",
        "state:dead type:order.placed error:route attempts:1..3",
    ] {
        assert!(meets(query, dead()), "{query}");
    }
    for query in [
        "state:due",
        "type:order",
        "reason:crashed",
        "error:timeout",
        "attempts:>3",
        "attempts:<3",
        "since:30s",
        "until:2m",
        "header.tenant:south",
        "state:dead type:invoice.sent",
    ] {
        assert!(!meets(query, dead()), "{query}");
    }
}

#[test]
fn living_messages_are_dated_by_their_sending() {
    assert!(meets("since:2m", doc! { "created_at": ago(60) }));
    assert!(!meets("since:30s", doc! { "created_at": ago(60) }));
    assert!(!meets("since:30s", doc! {}), "a message without a date is in no range");
    assert!(!meets("reason:permanent", doc! {}), "only dead messages have a reason");
    assert!(meets("header.tenant:south", doc! { "headers": { "tenant": "south" } }));
}

#[test]
fn malformed_elements_meet_no_condition_on_fields() {
    let slots = read_outbox(Some(&Bson::Array(vec![Bson::Null]))).unwrap();
    assert!(parsed("").matches(&slots[0], NOW));
    assert!(parsed("state:unreadable").matches(&slots[0], NOW));
    assert!(!parsed("state:dead").matches(&slots[0], NOW));
    assert!(!parsed("type:*").matches(&slots[0], NOW));
}

fn a_value() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z0-9.*_-]{1,12}", "\\PC{1,12}", "[ \",\\\\:]{1,5}"]
}

fn values() -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec(a_value(), 0..3)
}

fn moment() -> impl Strategy<Value = Option<Moment>> {
    prop_oneof![
        Just(None),
        (0_i64..4_000_000_000_000).prop_map(|millis| Some(Moment::At(DateTime::from_millis(millis)))),
        (0_u64..1_000_000_000_000).prop_map(|millis| Some(Moment::Ago(Duration::from_millis(millis)))),
    ]
}

prop_compose! {
    fn a_query()(
        types in values(),
        states in prop::collection::vec(
            prop_oneof![Just(MessageState::Dead), Just(MessageState::Due), Just(MessageState::Unreadable)], 0..3),
        reasons in values(),
        errors in values(),
        documents in values(),
        ids in prop::collection::vec(any::<[u8; 16]>().prop_map(Uuid::from_bytes), 0..3),
        since in moment(),
        until in moment(),
        range in prop::option::of((0_i64..9, 0_i64..9)),
        header in prop::option::of(("[a-z-]{1,8}", prop::collection::vec(a_value(), 1..3))),
    ) -> Query {
        Query {
            types: types.into_iter().map(Glob::new).collect(),
            states, reasons, errors, documents, ids,
            collections: vec!["shop.*".parse().unwrap()],
            since, until,
            attempts: range.map(|(least, most)| Attempts { least, most }),
            headers: header.into_iter().collect(),
        }
    }
}

proptest! {
    #[test]
    fn a_written_query_is_read_again(query in a_query()) {
        let text = query.to_string();
        let again: Query = text.parse().map_err(|error| TestCaseError::fail(format!("{error}")))?;
        prop_assert_eq!(again, query);
    }

    #[test]
    fn any_text_is_read_or_refused_with_a_place(text in "\\PC{0,60}") {
        if let Err(error) = text.parse::<Query>() {
            prop_assert!(text.get(error.place.clone()).is_some());
            prop_assert!(!error.to_string().is_empty());
        }
    }

    #[test]
    fn odd_conditions_are_read_or_refused(text in "((type|state|id|since|attempts|header|error)[:.,]?[\"\\\\a-z0-9>.<, ]{0,8} ?){0,5}") {
        if let Err(error) = text.parse::<Query>() {
            prop_assert!(text.get(error.place.clone()).is_some());
        }
    }
}
