//! The settings that an application gets, and the lines that an application prints.

use std::io::Write;

use serde::{Deserialize, Serialize};

/// The settings of an application process, which the harness passes to it as JSON.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Job {
    pub(crate) name: String,
    pub(crate) mongodb: String,
    pub(crate) rabbitmq: String,
    pub(crate) database: String,
    pub(crate) state_database: String,
    pub(crate) collection: String,
    pub(crate) messages_exchange: String,
    pub(crate) commands_exchange: String,
    pub(crate) commands_queue: String,
    pub(crate) order: Order,
    pub(crate) defers_clears: bool,
    /// Whether messages count as delivered before RabbitMQ has confirmed them. This breaks the delivery on purpose.
    pub(crate) clears_before_confirm: bool,
}

/// The delivery order of the application's documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Order {
    Ordered,
    Unordered,
    DeadBlocks,
}

/// A line that an application prints for the harness.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "says", rename_all = "snake_case")]
pub(crate) enum Line {
    /// Printed before a save: the save's number and document, and the ids of its messages.
    Try { life: u32, number: u64, document: String, ids: Vec<String> },
    /// Printed after a save: the outcome of the save.
    End { life: u32, number: u64, outcome: String },
    /// Printed regularly: the date of the application's own clock, in milliseconds.
    Date { millis: i64 },
}

impl Line {
    /// Prints this line with one write, so that a kill right afterwards loses no part of it.
    pub(super) fn say(&self) {
        let Ok(mut line) = serde_json::to_string(self) else { return };
        line.push('\n');
        let _ = std::io::stdout().lock().write_all(line.as_bytes());
    }
}
