//! The screens of the commands that change messages.

use mongodb::bson::DateTime;
use outbox_operate::act::{Act, ActSum, Acted, Preview};

use super::{dash, list};
use crate::table::{Column, Table, wrapped};

/// Draws what an act would do.
pub fn preview(preview: &Preview, now: DateTime, width: usize) -> String {
    let act = preview.act;
    let mut screen = if preview.is_above_ceiling {
        let text =
            format!("More than {} messages match, which is the ceiling of this {act}.", preview.messages);
        wrapped(&text, "", "", width)
    } else {
        wrapped(&format!("This {act} takes {} messages.", preview.messages), "", "", width)
    };

    if !preview.sample.is_empty() {
        let columns = [
            list::ListColumn::Id,
            list::ListColumn::State,
            list::ListColumn::Type,
            list::ListColumn::Document,
        ];
        screen.push('\n');
        screen.push_str(&list::draw(&preview.sample, &columns, now, width));
        if preview.messages > preview.sample.len() {
            let more = format!("… and {} more", preview.messages - preview.sample.len());
            screen.push_str(&wrapped(&more, "", "", width));
        }
    }
    for skipped in &preview.skipped {
        let id = skipped.message.id.map_or_else(dash, |id| id.to_string());
        screen.push_str(&wrapped(&format!("Left out: {id}: {}.", skipped.because), "", "  ", width));
    }

    screen.push('\n');
    for warning in &preview.warnings {
        screen.push_str(&wrapped(warning, "", "", width));
    }
    let next = if preview.messages == 0 || preview.is_above_ceiling {
        "No message was changed.".to_owned()
    } else {
        format!(
            "No message was changed. To do it, add: --execute --expect {} --reason \"…\"",
            preview.messages
        )
    };
    screen.push_str(&wrapped(&next, "", "", width));
    screen
}

/// Draws what an act has done.
pub fn done(act: Act, sum: &ActSum, messages: &[Acted], width: usize) -> String {
    let mut table = Table::new([Column::whole("ID"), Column::whole("RESULT"), Column::cut("WHY", 20)]);
    for acted in messages.iter().filter(|acted| acted.outcome != outbox_operate::act::ActOutcome::Done) {
        let why = acted.outcome.detail().unwrap_or("it is no longer as it was shown");
        table.row([
            acted.shown.id.map_or_else(dash, |id| id.to_string()),
            acted.outcome.as_str().to_owned(),
            why.to_owned(),
        ]);
    }

    let mut screen = String::new();
    if !table.is_empty() {
        screen.push_str(&table.draw(width));
        screen.push('\n');
    }
    let text = format!(
        "{act}: {} done, {} changed meanwhile, {} failed, {} left.",
        sum.done, sum.changed, sum.failed, sum.left
    );
    screen.push_str(&wrapped(&text, "", "", width));
    screen.push_str(&wrapped(&format!("Operation {}", sum.operation), "", "", width));
    screen
}
