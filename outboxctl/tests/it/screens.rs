//! The screens of docs/outboxctl.md are drawn by the program, within 80 columns.

use std::{fs, path::Path, time::Duration};

use mongodb::{
    Namespace,
    bson::{DateTime, Uuid},
};
use outbox_operate::{
    MessageState,
    act::{Act, AuditRecord, Preview, Skipped},
    advise::{Measured, Times, advice},
    catalogue::{Catalogue, WatchedCollection},
    doctor::{Check, Finding, Level},
    document::{DocumentView, InboxView, PlacedMessage},
    explain::{Explanation, Reason},
    groups::{Failures, Group, Sample},
    list::Row,
    message::{Happening, MessageView, Wire},
    status::{CommandQueue, CommandQueueState, Count, Fullest, Status},
    streams::{OplogWindow, StreamView},
};
use outboxctl::screens;
use serde_json::json;

const WIDTH: usize = 80;
/// 2026-01-31T12:00:00Z.
const NOW: DateTime = DateTime::from_millis(1_769_860_800_000);

fn at(seconds: i64) -> Option<DateTime> {
    Some(DateTime::from_millis(NOW.timestamp_millis() + seconds * 1_000))
}

fn id(number: u8) -> Option<Uuid> {
    let text = format!("019c1408-4c00-7a11-9d8b-1f5a4d6a9c{number:02x}");
    Some(Uuid::parse_str(text).unwrap())
}

fn orders() -> Namespace {
    Namespace::new("shop", "orders")
}

fn row(number: u8, state: MessageState, message_type: &str, document: &str) -> Row {
    Row {
        collection: orders(),
        document: document.to_owned(),
        place: 1,
        state,
        id: id(number),
        message_type: Some(message_type.to_owned()),
        via: None,
        created_at: at(-5_520),
        available_at: None,
        claimed_by: None,
        attempts: 0,
        claims: 0,
        last_error: None,
        dead_at: None,
        dead_reason: None,
        flaw: None,
    }
}

fn status() -> String {
    let count = |message_type: &str, state, messages, due_since| Count {
        collection: orders(),
        message_type: Some(message_type.to_owned()),
        via: None,
        state,
        messages,
        oldest: due_since,
        due_since,
    };
    let status = Status {
        at: Some(NOW),
        catalogue: Catalogue {
            collections: vec![WatchedCollection {
                namespace: orders(),
                due_index: Some("outbox_available_at".to_owned()),
                dead_index: Some("outbox_dead_at".to_owned()),
                ttl_index: None,
                capped: false,
                documents: 200_000,
            }],
            ..Catalogue::default()
        },
        counts: vec![
            count("order.paid", MessageState::Dead, 41, None),
            count("order.paid", MessageState::Retrying, 1_204, None),
            count("order.placed", MessageState::Due, 12, at(-192)),
            count("order.placed", MessageState::Claimed, 3, None),
            count("order.reminded", MessageState::Scheduled, 87, None),
        ],
        fullest: vec![Fullest { collection: orders(), document: "o-4711".to_owned(), elements: 312 }],
        left_out: Vec::new(),
        streams: vec![StreamView {
            stream: "default".to_owned(),
            position: at(-16),
            saved_at: at(-1),
            owner: Some("rescuer-0/7/f3a1".to_owned()),
            lease_until: at(12),
            standby: Some("rescuer-1/7/09bc".to_owned()),
        }],
        oplog: OplogWindow::Covers { first: at(-172_800), last: at(0), whole: false },
        commands: Some(CommandQueue {
            queue: "outbox.process-document-messages".to_owned(),
            state: CommandQueueState::Exists { ready: 4, consumers: 2 },
        }),
    };
    screens::status::draw(&status, WIDTH)
}

fn list() -> String {
    let columns = screens::list::columns(&[], WIDTH).unwrap();
    let rows = [
        row(1, MessageState::Dead, "order.paid", "o-1017"),
        row(2, MessageState::Dead, "order.paid", "65f0c0ffee65f0c0ffee1234"),
        row(3, MessageState::Dead, "order.shipping_address_changed", "o-4711"),
    ];
    screens::list::draw(&rows, &columns, NOW, WIDTH)
}

fn show() -> String {
    let mut shown = row(1, MessageState::Dead, "order.paid", "o-1017");
    (shown.attempts, shown.claims) = (10, 10);
    shown.last_error = Some("the receiver answered 503 Service Unavailable".to_owned());
    let view = MessageView {
        row: shown,
        timeline: vec![
            Happening { at: at(-5_520), what: "sent".to_owned() },
            Happening {
                at: at(-4_980),
                what: "died (attempts_exhausted), after 10 failed attempts".to_owned(),
            },
        ],
        lease: vec![],
        headers: vec![],
        trace_id: Some("4bf92f3577b34da6a3ce929d0e0e4736".to_owned()),
        delivered_to: vec![],
        stored: json!({
            "type": "order.paid",
            "payload": { "order": "<string of 6 characters>", "cents": "<number>" },
            "attempts": { "$numberInt": "10" },
        }),
        wire: Wire::CloudEvent {
            exchange: "outbox.messages".to_owned(),
            routing_key: "order.paid".to_owned(),
            content_type: "application/json".to_owned(),
            headers: vec![
                ("cloudEvents:specversion".to_owned(), "1.0".to_owned()),
                ("cloudEvents:type".to_owned(), "order.paid".to_owned()),
                ("cloudEvents:subject".to_owned(), "o-1017".to_owned()),
            ],
            body: json!({ "order": "<string of 6 characters>", "cents": "<number>" }),
        },
    };
    screens::message::draw(&view, NOW, WIDTH)
}

fn behind() -> Reason {
    Reason::Behind {
        place: 2,
        id: id(5),
        message_type: Some("order.paid".to_owned()),
        because: Box::new(Reason::Retrying),
    }
}

fn explain() -> String {
    let explanation = Explanation {
        row: row(6, MessageState::Due, "order.shipped", "o-1017"),
        reason: behind(),
        sentences: vec![
            format!(
                "Message 2 of the same document ({}) blocks it, because messages of a document keep their order.",
                id(5).unwrap()
            ),
            "3 attempts have failed, and the next attempt is in 42s (2026-01-31T12:00:42Z).".to_owned(),
            "The last error was: the receiver answered 503 Service Unavailable".to_owned(),
        ],
        runbook: Some("Deliveries fail"),
    };
    screens::explain::draw(&explanation, WIDTH)
}

fn document() -> String {
    let mut dead = row(4, MessageState::Dead, "order.placed", "o-1017");
    dead.attempts = 10;
    let mut retrying = row(5, MessageState::Retrying, "order.paid", "o-1017");
    (retrying.place, retrying.attempts, retrying.available_at) = (2, 3, at(42));
    let mut due = row(6, MessageState::Due, "order.shipped", "o-1017");
    due.place = 3;
    let view = DocumentView {
        collection: orders(),
        document: "o-1017".to_owned(),
        id: json!("o-1017"),
        bytes: 2_304,
        ordering: "ordered",
        messages: vec![
            PlacedMessage { row: dead, reason: Reason::Dead },
            PlacedMessage { row: retrying, reason: Reason::Retrying },
            PlacedMessage { row: due, reason: behind() },
        ],
        flaw: None,
        inboxes: vec![InboxView {
            field: "inbox".to_owned(),
            records: 4,
            oldest: at(-86_400),
            newest: at(-75),
        }],
        oversized: None,
    };
    screens::document::draw(&view, NOW, WIDTH)
}

fn groups() -> String {
    let group = |number, state, reason: Option<&str>, error: &str, whole: &str, messages| Group {
        state,
        message_type: "order.paid".to_owned(),
        reason: reason.map(str::to_owned),
        error: error.to_owned(),
        messages,
        first: at(-4_980),
        last: at(-75),
        sample: Sample {
            collection: orders(),
            document: "o-1017".to_owned(),
            id: id(number),
            error: Some(whole.to_owned()),
        },
    };
    let failures = Failures {
        groups: vec![
            group(7, MessageState::Retrying, None, "timed out after # ms", "timed out after 250 ms", 1_204),
            group(
                1,
                MessageState::Dead,
                Some("attempts_exhausted"),
                "the receiver answered # Service Unavailable",
                "the receiver answered 503 Service Unavailable",
                38,
            ),
            group(
                2,
                MessageState::Dead,
                Some("permanent"),
                "no customer <id>",
                "no customer 65f0c0ffee65f0c0ffee1234",
                3,
            ),
        ],
        ..Failures::default()
    };
    screens::groups::draw(&failures, NOW, WIDTH)
}

fn doctor() -> String {
    let finding = |check: Check, level, sentence: &str| Finding {
        check,
        level,
        sentence: sentence.to_owned(),
        runbook: (level != Level::Fine).then_some(check.runbook()),
    };
    let findings = [
        finding(Check::Dead, Level::Problem, "shop.orders has dead messages."),
        finding(
            Check::Indexes,
            Level::Problem,
            "shop.stock lacks the index outbox_available_at and outbox_dead_at.",
        ),
        finding(Check::Collections, Level::Warning, "The pattern shop.order matches no collection."),
        finding(Check::Server, Level::Fine, "MongoDB is version 8.0.4, with change streams."),
        finding(Check::Leases, Level::Fine, "A rescuer owns every stream."),
    ];
    screens::doctor::draw(&findings, WIDTH)
}

fn advise() -> String {
    let measured = Measured {
        due_for: Some(Duration::from_secs(3)),
        oplog: Some(Duration::from_hours(48)),
        position_age: Some(Duration::from_secs(16)),
        commands: Some(4),
    };
    screens::advise::draw(&advice(Duration::from_secs(60), Times::default(), measured), WIDTH)
}

fn replay() -> String {
    let preview = Preview {
        act: Act::Replay,
        messages: 3,
        is_above_ceiling: false,
        sample: [1, 2, 3].map(|number| row(number, MessageState::Dead, "order.paid", "o-1017")).to_vec(),
        skipped: vec![Skipped {
            message: row(8, MessageState::Dead, "order.paid", "o-4711"),
            because: "it ended the processes that delivered it; name it by its id, or with reason:crashed".to_owned(),
        }],
        warnings: vec![
            "A replayed message keeps its id: a receiver whose inbox still has that id ignores it, and a receiver \
             whose record of it has expired applies it again."
                .to_owned(),
        ],
    };
    screens::act::preview(&preview, NOW, WIDTH)
}

fn audit() -> String {
    let record = |seconds, act: &str, result: Option<&str>, message| AuditRecord {
        id: id(90).unwrap(),
        operation: None,
        act: act.to_owned(),
        at: at(seconds),
        by: "alice".to_owned(),
        mongodb_user: Some("operator@admin".to_owned()),
        host: "laptop".to_owned(),
        reason: "ticket 4711".to_owned(),
        query: None,
        collection: "shop.orders".to_owned(),
        key: json!({ "_id": "o-1017" }),
        message: id(message),
        message_type: Some("order.paid".to_owned()),
        shown: json!({}),
        result: result.map(str::to_owned),
        detail: None,
    };
    let records = [
        record(-42, "replay", None, 3),
        record(-42, "replay", Some("done"), 2),
        record(-42, "replay", Some("changed"), 1),
        record(-7_200, "discard", Some("done"), 9),
    ];
    screens::audit::draw(&records, NOW, WIDTH)
}

fn drawn() -> Vec<(&'static str, String)> {
    vec![
        ("outboxctl status", status()),
        ("outboxctl list state:dead", list()),
        ("outboxctl show 019c1408-4c00-7a11-9d8b-1f5a4d6a9c01", show()),
        ("outboxctl document shop.orders o-1017", document()),
        ("outboxctl explain 019c1408-4c00-7a11-9d8b-1f5a4d6a9c06", explain()),
        ("outboxctl groups", groups()),
        ("outboxctl doctor", doctor()),
        ("outboxctl advise --sla 60s", advise()),
        ("outboxctl replay state:dead", replay()),
        ("outboxctl audit", audit()),
    ]
}

#[test]
fn the_documented_screens_are_what_is_drawn() {
    let guide = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/outboxctl.md");
    let guide = fs::read_to_string(guide).unwrap();
    let screens = drawn().into_iter().map(|(command, screen)| format!("```text\n$ {command}\n{screen}```\n"));
    let missing: Vec<String> = screens.filter(|screen| !guide.contains(screen)).collect();
    assert!(missing.is_empty(), "docs/outboxctl.md should have:\n{}", missing.join("\n"));
}

#[test]
fn every_screen_fits_eighty_columns() {
    for (command, screen) in drawn() {
        for line in screen.lines() {
            assert!(line.chars().count() <= WIDTH, "{command}: {line}");
        }
    }
}

#[test]
fn a_wide_list_has_the_errors() {
    let mut dead = row(1, MessageState::Dead, "order.paid", "o-1017");
    dead.last_error = Some("no route\nto host".to_owned());
    let columns = screens::list::columns(&[], 160).unwrap();
    let drawn = screens::list::draw(&[dead.clone()], &columns, NOW, 160);
    assert!(drawn.contains("no route\\nto host"), "{drawn}");

    let chosen = screens::list::columns(&["error".to_owned(), "age".to_owned()], WIDTH).unwrap();
    let drawn = screens::list::draw(&[dead], &chosen, NOW, WIDTH);
    assert!(drawn.starts_with("ERROR") && drawn.contains("1h32m"), "{drawn}");
    let refused = screens::list::columns(&["errror".to_owned()], WIDTH).unwrap_err();
    assert!(refused.contains("did you mean error?"), "{refused}");
}
