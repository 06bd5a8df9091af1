//! The screens of `audit` and `archive`.

use mongodb::bson::DateTime;
use outbox_operate::act::{ArchivedMessage, AuditRecord};

use super::{age, dash};
use crate::table::{Column, Table};

/// Draws acts.
pub fn draw(records: &[AuditRecord], now: DateTime, width: usize) -> String {
    if records.is_empty() {
        return "The audit trail has no such act.\n".to_owned();
    }
    let mut table = Table::new([
        Column::number("AGE"),
        Column::whole("ACT"),
        Column::whole("RESULT"),
        Column::cut("BY", 5),
        Column::whole("MESSAGE"),
        Column::cut("REASON", 6),
    ]);
    for record in records {
        table.row([
            age(now, record.at),
            record.act.clone(),
            record.result.clone().unwrap_or_else(dash),
            record.by.clone(),
            record.message.map_or_else(dash, |id| id.to_string()),
            record.reason.clone(),
        ]);
    }
    table.draw(width)
}

/// Draws discarded messages.
pub fn archive(archived: &[ArchivedMessage], now: DateTime, width: usize) -> String {
    if archived.is_empty() {
        return "The archive is empty.\n".to_owned();
    }
    let mut table = Table::new([
        Column::number("AGE"),
        Column::whole("MESSAGE"),
        Column::cut("TYPE", 8),
        Column::cut("BY", 5),
        Column::cut("REASON", 6),
        Column::cut("NO RESTORE", 10),
    ]);
    for message in archived {
        table.row([
            age(now, message.archived_at),
            message.message.map_or_else(dash, |id| id.to_string()),
            message.message_type.clone().unwrap_or_else(dash),
            message.by.clone(),
            message.reason.clone(),
            message.objection.clone().unwrap_or_else(dash),
        ]);
    }
    table.draw(width)
}
