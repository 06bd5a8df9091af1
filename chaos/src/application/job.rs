//! The orders of an application, and the lines that it prints.

use std::io::Write;

use serde::{Deserialize, Serialize};

/// The task of an application.
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
    /// Breaks the engine: messages count as delivered before RabbitMQ has confirmed them.
    pub(crate) clears_before_confirm: bool,
}

/// The order of its type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Order {
    Ordered,
    Unordered,
    DeadBlocks,
}

/// What an application says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "says", rename_all = "snake_case")]
pub(crate) enum Line {
    /// Before a save.
    Try { life: u32, number: u64, document: String, ids: Vec<String> },
    /// After it.
    End { life: u32, number: u64, outcome: String },
    /// Now and then: the date that it believes in, in milliseconds.
    Date { millis: i64 },
}

impl Line {
    /// Written at once: a kill right afterwards loses no part of it.
    pub(super) fn say(&self) {
        let Ok(mut line) = serde_json::to_string(self) else { return };
        line.push('\n');
        let _ = std::io::stdout().lock().write_all(line.as_bytes());
    }
}
