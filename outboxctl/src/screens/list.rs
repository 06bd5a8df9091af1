//! The screen of `list`.

use std::str::FromStr;

use mongodb::bson::DateTime;
use outbox_operate::{
    list::{PlanNote, Row},
    text,
};
use outbox_service::did_you_mean;

use super::{age, dash};
use crate::table::{Column, Table};

/// From this width on, a list has all columns.
const WIDE: usize = 120;

/// A column of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListColumn {
    /// The message's id.
    Id,
    /// Its state.
    State,
    /// Its type.
    Type,
    /// The document's `_id`.
    Document,
    /// The collection.
    Collection,
    /// The time since it was sent.
    Age,
    /// The time since it died, or until it is due.
    When,
    /// The number of failed attempts.
    Attempts,
    /// Why it died.
    Reason,
    /// The last error, or the flaw of a malformed element.
    Error,
    /// The claim.
    Claim,
    /// The destination.
    Via,
}

const NAMES: [(&str, ListColumn); 12] = [
    ("id", ListColumn::Id),
    ("state", ListColumn::State),
    ("type", ListColumn::Type),
    ("document", ListColumn::Document),
    ("collection", ListColumn::Collection),
    ("age", ListColumn::Age),
    ("when", ListColumn::When),
    ("attempts", ListColumn::Attempts),
    ("reason", ListColumn::Reason),
    ("error", ListColumn::Error),
    ("claim", ListColumn::Claim),
    ("via", ListColumn::Via),
];

impl FromStr for ListColumn {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = NAMES.iter().find(|(name, _)| *name == text);
        found.map(|(_, column)| *column).ok_or_else(|| {
            let names = NAMES.map(|(name, _)| name);
            let meant = did_you_mean(text, names);
            format!("there is no column {text:?}{meant}; the columns are {}", names.join(", "))
        })
    }
}

/// The columns with these names; without names, those that fit the width.
///
/// # Errors
/// A sentence about an unknown name.
pub fn columns(names: &[String], width: usize) -> Result<Vec<ListColumn>, String> {
    use ListColumn::{Age, Attempts, Collection, Document, Error, Id, State, Type};
    if !names.is_empty() {
        return names.iter().map(|name| name.trim().parse()).collect();
    }
    Ok(if width < WIDE {
        vec![Id, State, Type, Document]
    } else {
        vec![Id, State, Type, Collection, Document, Age, Attempts, Error]
    })
}

/// Draws messages.
pub fn draw(rows: &[Row], columns: &[ListColumn], now: DateTime, width: usize) -> String {
    if rows.is_empty() {
        return "No message matches.\n".to_owned();
    }
    let mut table = Table::new(columns.iter().map(|column| column.drawn()).collect::<Vec<_>>());
    for row in rows {
        table.row(columns.iter().map(|column| column.cell(row, now)));
    }
    table.draw(width)
}

/// What served the query, as a sentence.
pub fn plan(plan: &PlanNote) -> String {
    match &plan.index {
        Some(index) => format!("{}: read {} by the index {index}.", plan.collection, plan.reads),
        None => format!("{}: read {}, without an index.", plan.collection, plan.reads),
    }
}

impl ListColumn {
    fn drawn(self) -> Column {
        match self {
            Self::Id => Column::whole("ID"),
            Self::State => Column::whole("STATE"),
            Self::Type => Column::cut("TYPE", 8),
            Self::Document => Column::cut("DOCUMENT", 8),
            Self::Collection => Column::cut("COLLECTION", 10),
            Self::Age => Column::number("AGE"),
            Self::When => Column::whole("WHEN"),
            Self::Attempts => Column::number("TRIES"),
            Self::Reason => Column::cut("REASON", 8),
            Self::Error => Column::cut("ERROR", 10),
            Self::Claim => Column::cut("CLAIM", 8),
            Self::Via => Column::cut("VIA", 5),
        }
    }

    fn cell(self, row: &Row, now: DateTime) -> String {
        let optional = |text: &Option<String>| text.clone().unwrap_or_else(dash);
        match self {
            Self::Id => row.id.map_or_else(dash, |id| id.to_string()),
            Self::State => row.state.to_string(),
            Self::Type => optional(&row.message_type),
            Self::Document => row.document.clone(),
            Self::Collection => row.collection.to_string(),
            Self::Age => age(now, row.created_at),
            Self::When => row.dead_at.or(row.available_at).map_or_else(dash, |at| text::relative(now, at)),
            Self::Attempts => row.attempts.to_string(),
            Self::Reason => optional(&row.dead_reason),
            Self::Error => optional(&row.flaw.clone().or_else(|| row.last_error.clone())),
            Self::Claim => optional(&row.claimed_by),
            Self::Via => optional(&row.via),
        }
    }
}
