//! The screen of `status`.

use std::collections::BTreeMap;

use mongodb::bson::DateTime;
use outbox_operate::{
    MessageState,
    status::{CommandQueueState, Count, Status},
    streams::{OplogWindow, StreamView},
    text,
};

use super::{age, dash};
use crate::table::{Column, Table, wrapped};

/// Draws the overview.
pub fn draw(status: &Status, width: usize) -> String {
    let now = status.at.unwrap_or(DateTime::MIN);
    let mut screen = messages(status, now, width);
    for left_out in &status.left_out {
        let text = format!("{} was not counted: {}.", left_out.collection, left_out.reason);
        screen.push_str(&wrapped(&text, "", "  ", width));
    }
    for pattern in &status.catalogue.unmatched {
        screen.push_str(&wrapped(&format!("{pattern} matches no collection."), "", "  ", width));
    }

    screen.push('\n');
    screen.push_str(&streams(&status.streams, now, width));
    screen.push('\n');
    screen.push_str(&facts(status, now, width));
    screen
}

/// The counts of one collection and type.
#[derive(Default)]
struct Line {
    by_state: BTreeMap<MessageState, i64>,
    due_since: Option<DateTime>,
}

fn messages(status: &Status, now: DateTime, width: usize) -> String {
    if status.counts.is_empty() {
        return "No outbox has a message.\n".to_owned();
    }

    let mut lines: BTreeMap<(String, String), Line> = BTreeMap::new();
    for count in &status.counts {
        let line = lines.entry((count.collection.to_string(), named(count))).or_default();
        *line.by_state.entry(count.state).or_default() += count.messages;
        line.due_since = line.due_since.into_iter().chain(count.due_since).min();
    }

    let mut table = Table::new([
        Column::cut("COLLECTION", 10),
        Column::cut("TYPE", 8),
        Column::number("DUE"),
        Column::number("CLAIM"),
        Column::number("RETRY"),
        Column::number("SCHED"),
        Column::number("DEAD"),
        Column::number("BAD"),
        Column::number("OLDEST"),
    ]);
    for ((collection, message_type), line) in lines {
        use MessageState::{Claimed, Dead, Due, Retrying, Scheduled, Unreadable};
        let mut cells = vec![collection, message_type];
        for state in [Due, Claimed, Retrying, Scheduled, Dead, Unreadable] {
            cells.push(line.by_state.get(&state).map_or_else(dash, i64::to_string));
        }
        cells.push(age(now, line.due_since));
        table.row(cells);
    }
    table.draw(width)
}

fn named(count: &Count) -> String {
    let message_type = count.message_type.clone().unwrap_or_else(|| "(unreadable)".to_owned());
    match &count.via {
        Some(via) => format!("{message_type} via {via}"),
        None => message_type,
    }
}

fn streams(streams: &[StreamView], now: DateTime, width: usize) -> String {
    if streams.is_empty() {
        return "No rescuer has stored a position.\n".to_owned();
    }
    let mut table = Table::new([
        Column::cut("STREAM", 8),
        Column::number("BEHIND"),
        Column::number("SAVED"),
        Column::cut("OWNER", 10),
        Column::whole("LEASE"),
        Column::cut("STANDBY", 8),
    ]);
    for stream in streams {
        let lease = match stream.lease_until {
            Some(_) if stream.is_owned(now) => "held".to_owned(),
            Some(until) => format!("ended {}", text::relative(now, until)),
            None => "released".to_owned(),
        };
        table.row([
            stream.stream.clone(),
            age(now, stream.position),
            age(now, stream.saved_at),
            stream.owner.clone().unwrap_or_else(dash),
            lease,
            stream.standby.clone().unwrap_or_else(dash),
        ]);
    }
    table.draw(width)
}

fn facts(status: &Status, now: DateTime, width: usize) -> String {
    let mut facts = Vec::new();
    facts.push(("Oldest due", age(now, status.oldest_due())));
    let fullest = status.fullest.iter().max_by_key(|fullest| fullest.elements);
    facts.push((
        "Fullest",
        fullest.map_or_else(dash, |fullest| {
            format!("{} messages in {}/{}", fullest.elements, fullest.collection, fullest.document)
        }),
    ));
    facts.push((
        "Oplog",
        match &status.oplog {
            OplogWindow::Unknown(reason) => format!("unknown: {reason}"),
            OplogWindow::Covers { whole, .. } => {
                let length = status.oplog.length().map_or_else(dash, text::duration);
                let more = if *whole { ", nothing dropped yet" } else { "" };
                format!("covers {length}{more}")
            }
        },
    ));
    facts.push((
        "Commands",
        match status.commands.as_ref().map(|commands| &commands.state) {
            None => "not asked: no RabbitMQ was named".to_owned(),
            Some(CommandQueueState::Exists { ready, consumers }) => {
                format!("{ready} waiting, {consumers} consumers")
            }
            Some(CommandQueueState::Missing) => "the queue does not exist".to_owned(),
            Some(CommandQueueState::Unknown(reason)) => format!("unknown: {reason}"),
        },
    ));
    facts.push(("Indexes", indexes(status)));

    let mut text = String::new();
    for (name, fact) in facts {
        text.push_str(&wrapped(&fact, &format!("{name:<12}"), &" ".repeat(12), width));
    }
    text
}

fn indexes(status: &Status) -> String {
    let mut missing = Vec::new();
    for collection in &status.catalogue.collections {
        if collection.due_index.is_none() || collection.dead_index.is_none() {
            missing.push(collection.namespace.to_string());
        }
    }
    if missing.is_empty() { "present".to_owned() } else { format!("missing in {}", missing.join(", ")) }
}
