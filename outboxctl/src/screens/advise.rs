//! The screen of `advise`.

use outbox_operate::{advise::Advice, text};

use super::dash;
use crate::table::{Column, Table, wrapped};

/// Draws the advice.
pub fn draw(advice: &Advice, width: usize) -> String {
    let times = &advice.times;
    let head = format!(
        "Objective: a message is at most {} late. Delay {}, inline lease {}, claim lease {}, sweep interval {}.",
        text::duration(advice.objective),
        text::duration(times.delay),
        text::duration(times.inline_lease),
        text::duration(times.claim_lease),
        text::duration(times.sweep_interval)
    );
    let mut screen = wrapped(&head, "", "", width);
    screen.push('\n');

    let mut table = Table::new([
        Column::cut("IF", 20),
        Column::number("LATE"),
        Column::whole("KEPT"),
        Column::number("MARGIN"),
        Column::number("LONGEST DELAY"),
    ]);
    for case in &advice.cases {
        let margin = text::duration(case.margin);
        table.row([
            case.name.to_owned(),
            text::duration(case.late),
            if case.is_kept { "yes".to_owned() } else { "NO".to_owned() },
            if case.is_kept { margin } else { format!("-{margin}") },
            case.longest_delay.map_or_else(|| "none".to_owned(), text::duration),
        ]);
    }
    screen.push_str(&table.draw(width));

    screen.push('\n');
    for sentence in &advice.sentences {
        screen.push_str(&wrapped(sentence, "- ", "  ", width));
    }
    let measured = &advice.measured;
    let optional = |duration: Option<std::time::Duration>| duration.map_or_else(dash, text::duration);
    let line = format!(
        "Measured: oldest due {}, oldest position {}, oplog {}, commands waiting {}.",
        optional(measured.due_for),
        optional(measured.position_age),
        optional(measured.oplog),
        measured.commands.map_or_else(dash, |commands| commands.to_string())
    );
    screen.push_str(&wrapped(&line, "", "  ", width));
    screen
}
