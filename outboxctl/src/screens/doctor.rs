//! The screen of `doctor`.

use outbox_operate::doctor::{Finding, Level};

use crate::table::wrapped;

/// Draws the findings.
pub fn draw(findings: &[Finding], width: usize) -> String {
    let mut screen = String::new();
    for finding in findings {
        let level = match finding.level {
            Level::Problem => "PROBLEM",
            Level::Warning => "warning",
            Level::Fine => "fine",
        };
        let first = format!("{level:<8} {:<12} ", finding.check.as_str());
        let indent = " ".repeat(first.chars().count());
        screen.push_str(&wrapped(&finding.sentence, &first, &indent, width));
        if let Some(runbook) = finding.runbook {
            screen.push_str(&wrapped(&format!("Runbook: \"{runbook}\""), &indent, &indent, width));
        }
    }

    let problems = findings.iter().filter(|finding| finding.level == Level::Problem).count();
    let warnings = findings.iter().filter(|finding| finding.level == Level::Warning).count();
    let sum = format!("Problems: {problems}. Warnings: {warnings}. The runbooks are in docs/operations.md.");
    screen.push('\n');
    screen.push_str(&wrapped(&sum, "", "", width));
    screen
}
