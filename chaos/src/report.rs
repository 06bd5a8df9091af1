//! Writes a table of many runs, as Markdown.

use std::{collections::BTreeMap, fmt::Write};

use crate::{faults, record::Record, settings};

/// A row of the table of faults: how one fault turned out in all runs together.
#[derive(Default)]
struct Row {
    struck: usize,
    took: usize,
    runs: usize,
    bad: usize,
}

/// Returns the section of docs/reliability.md about these runs.
pub(crate) fn report(records: &[Record]) -> String {
    let mut text = String::new();
    summary(records, &mut text);
    duplicates(records, &mut text);
    table_of_faults(records, &mut text);
    table_of_settings(&mut text);
    text
}

fn summary(records: &[Record], text: &mut String) {
    let sum = |of: fn(&Record) -> usize| records.iter().map(of).sum::<usize>();
    let total = |of: fn(&Record) -> f64| records.iter().map(of).sum::<f64>();
    let mut commits: Vec<_> = records.iter().map(|record| record.commit.as_str()).collect();
    commits.sort_unstable();
    commits.dedup();
    let mut drains: Vec<_> = records.iter().map(|record| record.drained_in).collect();
    drains.sort_by(f64::total_cmp);
    let percentile = |part: f64| {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a place in a short list")]
        let place = ((drains.len() as f64 * part) as usize).min(drains.len().saturating_sub(1));
        drains.get(place).copied().unwrap_or_default()
    };
    let stuck: u64 = records.iter().map(|record| record.stuck).sum();
    let share = |part: usize, whole: usize| if whole == 0 { 0.0 } else { 100.0 * part as f64 / whole as f64 };

    let bad: Vec<_> =
        records.iter().filter(|record| !record.good).map(|record| record.seed.to_string()).collect();
    let rows = [
        ("commit", commits.join(", ")),
        ("runs", format!("{}, of which bad: {}", records.len(), bad.len())),
        ("seeds", seeds(records)),
        ("seeds of bad runs", if bad.is_empty() { "none".to_owned() } else { bad.join(", ") }),
        ("saves", sum(|record| record.saves).to_string()),
        ("messages committed", sum(|record| record.committed).to_string()),
        ("messages delivered", sum(|record| record.delivered).to_string()),
        ("lost", sum(|record| record.lost).to_string()),
        ("phantoms", sum(|record| record.phantoms).to_string()),
        ("order violations", sum(|record| record.order_violations).to_string()),
        ("saves with a wrongly reported outcome", sum(|record| record.misreported).to_string()),
        ("documents stuck", stuck.to_string()),
        ("messages that were dead for a time, and replayed", sum(|record| record.died).to_string()),
        (
            "time to drain: median, 95 %, longest",
            format!("{:.1} s, {:.1} s, {:.1} s", percentile(0.5), percentile(0.95), percentile(1.0)),
        ),
        (
            "indeterminate saves, of those made while a majority could answer within 10 s",
            format!(
                "{} of {} ({:.2} %)",
                sum(|record| record.indeterminate),
                sum(|record| record.answerable),
                share(sum(|record| record.indeterminate), sum(|record| record.answerable))
            ),
        ),
        (
            "time of the storms in which a fault was in force",
            format!(
                "{:.0} %",
                100.0 * total(|record| record.in_force) / total(|record| record.storm).max(f64::MIN_POSITIVE)
            ),
        ),
    ];
    text.push_str("| | |\n|---|---|\n");
    for (what, value) in rows {
        let _ = writeln!(text, "| {what} | {value} |");
    }
}

/// Returns the seeds of the records as ranges, such as `1–20, 30`.
fn seeds(records: &[Record]) -> String {
    let mut seeds: Vec<_> = records.iter().map(|record| record.seed).collect();
    seeds.sort_unstable();
    seeds.dedup();
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for seed in seeds {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == seed => *last = seed,
            _ => ranges.push((seed, seed)),
        }
    }
    let shown = |(first, last): &(u64, u64)| {
        if first == last { first.to_string() } else { format!("{first}–{last}") }
    };
    ranges.iter().map(shown).collect::<Vec<_>>().join(", ")
}

fn duplicates(records: &[Record], text: &mut String) {
    const WINDOWS: [(&str, &str); 7] = [
        ("process", "(a) the process that published it ended before the clear was durable"),
        ("connection", "(a) its connection to RabbitMQ ended before the clear was durable"),
        ("primary", "(a) the primary changed before the clear was durable"),
        ("claim", "(b) the claim ran out while its holder still worked"),
        ("replay", "(c) an operator replayed it"),
        ("refusal", "(d) RabbitMQ refused it, closed its channel, or answered late"),
        ("outside", "none of these"),
    ];
    text.push_str("\n| duplicates by window of P3 | messages |\n|---|---|\n");
    for (window, meaning) in WINDOWS {
        let count: usize = records.iter().filter_map(|record| record.duplicates.get(window)).sum();
        let _ = writeln!(text, "| {meaning} | {count} |");
    }
}

fn table_of_faults(records: &[Record], text: &mut String) {
    let mut rows: BTreeMap<&str, Row> = BTreeMap::new();
    for record in records {
        for fault in faults::ALL {
            let spans: Vec<_> = record.timeline.iter().filter(|span| span.fault == fault.name()).collect();
            let row = rows.entry(fault.name()).or_default();
            row.struck += spans.len();
            row.took += spans.iter().filter(|span| span.took).count();
            row.runs += usize::from(spans.iter().any(|span| span.took));
            row.bad += usize::from(!record.good && spans.iter().any(|span| span.took));
        }
    }

    text.push_str("\n| fault | struck | took effect | in runs | of which bad |\n|---|---|---|---|---|\n");
    for fault in faults::ALL {
        if let Some(row) = rows.get(fault.name()) {
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} |",
                fault.name(),
                row.struck,
                row.took,
                row.runs,
                row.bad
            );
        }
    }
}

fn table_of_settings(text: &mut String) {
    text.push_str("\n| setting of a run | value |\n|---|---|\n");
    for (name, value) in settings::table() {
        let _ = writeln!(text, "| {name} | {value} |");
    }
}
