//! One measured figure, and the bound that it must keep.

use std::fmt::Write as _;

use serde::Serialize;

#[derive(Debug, Clone, Serialize)]
pub(crate) struct Finding {
    pub(crate) limit: &'static str,
    pub(crate) what: String,
    pub(crate) figure: String,
    /// The bound in words, empty if the figure is only reported.
    pub(crate) bound: String,
    pub(crate) holds: Option<bool>,
}

impl Finding {
    /// A figure without a bound.
    pub(crate) fn figure(limit: &'static str, what: impl Into<String>, figure: impl Into<String>) -> Self {
        let finding =
            Self { limit, what: what.into(), figure: figure.into(), bound: String::new(), holds: None };
        eprintln!("  {}: {}", finding.what, finding.figure);
        finding
    }

    pub(crate) fn bound(mut self, bound: impl Into<String>, holds: bool) -> Self {
        self.bound = bound.into();
        self.holds = Some(holds);
        self
    }
}

pub(crate) fn table(findings: &[Finding]) -> String {
    let mut table = "| limit | measured | figure | bound | |\n|---|---|---|---|---|\n".to_owned();
    for Finding { limit, what, figure, bound, holds } in findings {
        let verdict = match holds {
            Some(true) => "holds",
            Some(false) => "**exceeded**",
            None => "",
        };
        let _ = writeln!(table, "| {limit} | {what} | {figure} | {bound} | {verdict} |");
    }
    table
}
