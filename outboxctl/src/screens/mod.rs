//! Draws results as text. Every screen is a pure function of a result, the time and the width.

pub mod act;
pub mod advise;
pub mod audit;
pub mod doctor;
pub mod document;
pub mod explain;
pub mod groups;
pub mod list;
pub mod message;
pub mod status;

use mongodb::bson::DateTime;
use outbox_operate::text;

/// The age of a date, or a dash.
fn age(now: DateTime, date: Option<DateTime>) -> String {
    date.map_or_else(dash, |date| text::duration(text::since(now, date)))
}

fn dash() -> String {
    "-".to_owned()
}
