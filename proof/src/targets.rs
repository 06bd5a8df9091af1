//! Functions that accept any bytes, give them to the code under test, and check the results. The property tests, the fuzz targets
//! and the replay of the corpora share these functions.

use std::cell::RefCell;

use document_outbox::{
    DeliveryOrder,
    command::ProcessDocumentMessages,
    internal::{Hold, Rules, Slot, deliverable, hold, read_outbox_of},
};
use mongodb::bson::{self, DateTime, RawDocument, Timestamp};
use outbox_dispatcher::NamespacePattern;
use outbox_rescuer::internal::{FoundPosition, Here, Moment, Start, judge, start};
use outbox_service::{Key, Kind, Problems, Program, Reader, Resolution, Sources, keys, settings::resolve};

use crate::world::{DELAY, at, ticks};

/// The name of a target, and its function.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 4] =
    [("command", command), ("entry", entry), ("settings", settings), ("position", position)];

/// Reads a command from the queue. If the bytes are a valid command, it must stay the same when it is written and read again.
pub fn command(bytes: &[u8]) {
    let Ok(command) = ProcessDocumentMessages::from_json(bytes) else { return };
    let again = ProcessDocumentMessages::from_json(&command.to_json());
    assert_eq!(again.ok(), Some(command));
}

/// Reads a document with an outbox of any shape. For each delivery order, the library must decide which messages it delivers, and
/// the rescuer must decide whether the document needs a command.
pub fn entry(bytes: &[u8]) {
    let Ok(document) = RawDocument::from_bytes(bytes) else { return };
    let Ok(slots) = read_outbox_of(document) else { return };
    for order in [DeliveryOrder::Ordered, DeliveryOrder::DeadBlocks, DeliveryOrder::Unordered] {
        check_plan(&slots, order, at(7));

        let verdict = judge(Ok(slots.clone()), order, Moment::sweeping(at(7), ticks(DELAY)));
        let has_entry = slots.iter().any(|slot| slot.entry().is_some());
        assert!(has_entry || verdict.work.is_none(), "a command for a document without a message");
    }
}

/// Reads the bytes as a pattern of collections, and again as a file of settings. A pattern or file that is accepted must stay the
/// same when it is printed and read again.
pub fn settings(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(pattern) = text.parse::<NamespacePattern>() {
        assert_eq!(pattern.to_string().parse::<NamespacePattern>().ok(), Some(pattern));
    }

    let Ok(printed) = check_settings(text) else { return };
    // A value that could hold a password is printed as `***`, so the printed text can't be read again.
    if !printed.contains("***") {
        let again = check_settings(&printed).map_err(|problems| problems.to_string());
        assert_eq!(again.map(|again| without_origins(&again)), Ok(without_origins(&printed)));
    }
}

thread_local! {
    /// The text that `check_settings` reads as the settings file.
    static FILE: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Returns the text that `config check` prints for a file.
///
/// # Errors
/// Returns all problems of the file.
pub fn check_settings(text: &str) -> Result<String, Problems> {
    const PROGRAM: Program = Program { name: "proof", version: "0", about: "" };
    FILE.set(text.to_owned());
    let sources = Sources {
        args: vec!["--config".into(), "outbox.toml".into()],
        env: Vec::new(),
        read_file: |_| Ok(FILE.with_borrow(String::clone)),
    };
    match resolve(&PROGRAM, &settings_keys(), &sources) {
        Resolution::Run(resolved) => Reader::new(&resolved).finish(resolved.effective()),
        other => unreachable!("a file can only lead to a run: {other:?}"),
    }
}

/// The settings keys that the services share, and two other keys, so that the list contains a key of each kind.
pub fn settings_keys() -> Vec<Key> {
    let mut keys = vec![
        keys::watch(),
        keys::unordered(),
        keys::dead_blocks(),
        keys::state_database(),
        keys::commands_exchange(),
        keys::commands_queue(),
        keys::topology(),
        keys::shutdown_grace(),
        keys::log_format(),
        keys::log_filter(),
        keys::mongodb_uri().with_default("mongodb://127.0.0.1"),
        Key::new("count", Kind::Integer(1..=1000), "").with_default("10"),
        Key::new("tags", Kind::List(|_| Ok(())), "").with_default(""),
    ];
    keys.extend(keys::transport());
    keys
}

/// Parses the printed lines into values. The comments in these lines name the origin of each value, and are dropped.
fn without_origins(printed: &str) -> Option<toml::Table> {
    printed.parse().ok()
}

/// Reads a stored position of any shape. A rescuer that finds a stored position must never start as if there were none.
pub fn position(bytes: &[u8]) {
    let Ok(found) = bson::from_slice::<FoundPosition>(bytes) else { return };
    let here = Here { pipeline: "p".into(), lineage: None, time: Timestamp { time: 1000, increment: 1 } };
    assert_ne!(start(Some(found), &here), Start::Fresh);
}

/// Checks that the plan for an outbox stays within its limit and keeps the delivery order.
pub fn check_plan(slots: &[Slot], ordering: DeliveryOrder, now: DateTime) {
    let limit = 3;
    let plan = deliverable(slots, Rules { now, ordering, limit, serves: &|via| via.is_none() });
    assert!(plan.entries.len() <= limit);
    assert!(plan.crashed.is_none() || plan.entries.is_empty());

    let mut taken = plan.entries.iter().peekable();
    let mut is_closed = false;
    for entry in slots.iter().filter_map(Slot::entry) {
        if taken.peek().is_some_and(|next| next.id == entry.id) {
            taken.next();
            assert!(!is_closed, "the entry overtakes an earlier one");
            assert!(entry.dead.is_none() && entry.via.is_none() && hold(entry, now).is_none());
            continue;
        }
        is_closed |= match (ordering, &entry.dead) {
            (DeliveryOrder::Unordered, _) | (DeliveryOrder::Ordered, Some(_)) => false,
            (DeliveryOrder::DeadBlocks, Some(_)) => true,
            (DeliveryOrder::Ordered | DeliveryOrder::DeadBlocks, None) => {
                !matches!(hold(entry, now), Some(Hold::Scheduled(_)))
            }
        };
    }
    assert!(taken.next().is_none(), "entries are taken in their order");
}
