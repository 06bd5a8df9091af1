//! The screen of `document`.

use mongodb::bson::DateTime;
use outbox_operate::{
    document::{DocumentView, PlacedMessage},
    explain::Reason,
    text,
};

use super::{age, dash};
use crate::table::{Column, Table, wrapped};

/// Draws a document.
pub fn draw(view: &DocumentView, now: DateTime, width: usize) -> String {
    let size = format!("{:.1} KiB", bytes(view.bytes) / 1024.0);
    let head = format!(
        "{}/{}: {} messages, {}, {size}",
        view.collection,
        view.document,
        view.messages.len(),
        view.ordering
    );
    let mut screen = wrapped(&head, "", "  ", width);
    if let Some(flaw) = &view.flaw {
        screen.push_str(&wrapped(flaw, "", "  ", width));
    }
    if let Some(lease) = &view.oversized {
        let text = format!(
            "It has no room for a claim; a lease records {} failed and {} dead messages.",
            lease.failed, lease.dead
        );
        screen.push_str(&wrapped(&text, "", "  ", width));
    }

    if !view.messages.is_empty() {
        screen.push('\n');
        screen.push_str(&messages(&view.messages, now, width));
    }
    for inbox in &view.inboxes {
        let text = format!(
            "Inbox `{}`: {} records, the newest {} old, the oldest {}.",
            inbox.field,
            inbox.records,
            age(now, inbox.newest),
            age(now, inbox.oldest)
        );
        screen.push('\n');
        screen.push_str(&wrapped(&text, "", "  ", width));
    }
    screen
}

#[expect(clippy::cast_precision_loss, reason = "a size that is shown with one decimal")]
fn bytes(size: usize) -> f64 {
    size as f64
}

fn messages(messages: &[PlacedMessage], now: DateTime, width: usize) -> String {
    let mut table = Table::new([
        Column::number("#"),
        Column::whole("ID"),
        Column::cut("TYPE", 8),
        Column::whole("STATE"),
        Column::cut("NOW", 14),
    ]);
    for PlacedMessage { row, reason } in messages {
        table.row([
            row.place.to_string(),
            row.id.map_or_else(dash, |id| id.to_string()),
            row.message_type.clone().unwrap_or_else(dash),
            row.state.to_string(),
            brief(reason, row.available_at, now),
        ]);
    }
    table.draw(width)
}

fn brief(reason: &Reason, available_at: Option<DateTime>, now: DateTime) -> String {
    let at = available_at.map_or_else(String::new, |at| format!(" {}", text::relative(now, at)));
    match reason {
        Reason::Deliverable => "deliverable".to_owned(),
        Reason::Dead => "dead".to_owned(),
        Reason::Claimed => format!("claim ends{at}"),
        Reason::Retrying => format!("retry{at}"),
        Reason::Scheduled => format!("due{at}"),
        Reason::Crashing => "dies next".to_owned(),
        Reason::Unreadable => "malformed".to_owned(),
        Reason::Behind { place, .. } => format!("behind #{place}"),
    }
}
