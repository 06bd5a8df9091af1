//! The screen of `explain`.

use outbox_operate::explain::Explanation;

use super::dash;
use crate::table::wrapped;

/// Draws an explanation.
pub fn draw(explanation: &Explanation, width: usize) -> String {
    let row = &explanation.row;
    let head = format!(
        "{} {} in {}/{} is {}.",
        row.message_type.as_deref().unwrap_or("Message"),
        row.id.map_or_else(dash, |id| id.to_string()),
        row.collection,
        row.document,
        row.state
    );
    let mut screen = wrapped(&head, "", "", width);
    for sentence in &explanation.sentences {
        screen.push_str(&wrapped(sentence, "- ", "  ", width));
    }
    if let Some(runbook) = explanation.runbook {
        screen.push_str(&wrapped(&format!("Runbook: docs/operations.md, \"{runbook}\"."), "", "  ", width));
    }
    screen
}
