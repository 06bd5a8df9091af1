//! The screen of `groups`.

use mongodb::bson::DateTime;
use outbox_operate::groups::Failures;

use super::{age, dash};
use crate::table::{Column, Table, wrapped};

/// Draws the failures.
pub fn draw(failures: &Failures, now: DateTime, width: usize) -> String {
    let mut screen = String::new();
    if failures.groups.is_empty() {
        screen.push_str("No message is dead, and none has failed.\n");
    } else {
        screen.push_str(&table(failures, now, width));
    }
    if failures.others > 0 {
        let text = format!("{} more failures belong to other groups.", failures.others);
        screen.push_str(&wrapped(&text, "", "  ", width));
    }
    for collection in &failures.left_out {
        let text = format!("{collection} was not read: its index is missing.");
        screen.push_str(&wrapped(&text, "", "  ", width));
    }
    screen
}

fn table(failures: &Failures, now: DateTime, width: usize) -> String {
    let mut table = Table::new([
        Column::number("COUNT"),
        Column::whole("STATE"),
        Column::cut("TYPE", 10),
        Column::cut("REASON", 10),
        Column::number("FIRST"),
        Column::number("LAST"),
        Column::cut("ERROR", 20),
    ]);
    for group in &failures.groups {
        table.row([
            group.messages.to_string(),
            group.state.to_string(),
            group.message_type.clone(),
            group.reason.clone().unwrap_or_else(dash),
            age(now, group.first),
            age(now, group.last),
            group.error.clone(),
        ]);
    }
    let mut screen = table.draw(width);

    screen.push_str("\nSamples:\n");
    for (number, group) in failures.groups.iter().enumerate() {
        let sample = &group.sample;
        let id = sample.id.map_or_else(dash, |id| id.to_string());
        let error = sample.error.as_deref().unwrap_or("no error is recorded");
        let text = format!("{id} in {}/{}: {error}", sample.collection, sample.document);
        screen.push_str(&wrapped(&text, &format!("{:>3}. ", number + 1), "     ", width));
    }
    screen
}
