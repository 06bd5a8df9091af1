//! Reports the results as a table, as JSON and as figures.

use std::{fmt::Write as _, fs, path::Path};

use serde::Serialize;

use crate::{
    bed::Bed,
    counters::Counters,
    figure::Figure,
    machine::Machine,
    result::Result,
    stats::{Spread, number},
};

/// The goal of a row.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Goal {
    AtLeast(f64),
    AtMost(f64),
    /// There is no goal; the value is only reported.
    None,
}

/// One line of the table.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Row {
    /// The row's name in docs/performance.md.
    pub(crate) id: String,
    pub(crate) measured: String,
    pub(crate) against: String,
    pub(crate) goal: Goal,
    pub(crate) unit: &'static str,
    pub(crate) value: Spread,
    /// The measured values from which the result was calculated, or other details of the measurement.
    pub(crate) detail: String,
}

impl Row {
    pub(crate) fn new(
        id: impl Into<String>,
        measured: impl Into<String>,
        against: impl Into<String>,
    ) -> Self {
        let value = Spread::of(&[]);
        let (id, measured, against) = (id.into(), measured.into(), against.into());
        Self { id, measured, against, goal: Goal::None, unit: "×", value, detail: String::new() }
    }

    pub(crate) fn goal(mut self, goal: Goal) -> Self {
        self.goal = goal;
        self
    }

    pub(crate) fn values(mut self, unit: &'static str, values: &[f64]) -> Self {
        self.unit = unit;
        self.value = Spread::of(values);
        self
    }

    pub(crate) fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = detail.into();
        self
    }

    /// Whether the median meets the goal. `None` if there is no goal.
    pub(crate) fn is_met(&self) -> Option<bool> {
        match self.goal {
            Goal::AtLeast(goal) => Some(self.value.median >= goal),
            Goal::AtMost(goal) => Some(self.value.median <= goal),
            Goal::None => None,
        }
    }

    fn cells(&self) -> [String; 6] {
        let unit = self.unit;
        let goal = match self.goal {
            Goal::AtLeast(goal) => format!("≥ {}{unit}", number(goal)),
            Goal::AtMost(goal) => format!("≤ {}{unit}", number(goal)),
            Goal::None => "–".into(),
        };
        let Spread { median, low, high, blocks } = self.value;
        let value = match blocks {
            1 => format!("{}{unit}", number(median)),
            _ => format!("{}{unit} ({}–{})", number(median), number(low), number(high)),
        };
        let verdict = match self.is_met() {
            Some(true) => "met",
            Some(false) => "not met",
            None => "",
        };
        let (measured, against) = (self.measured.clone(), self.against.clone());
        [measured, against, goal, value, verdict.into(), self.detail.clone()]
    }
}

/// Counters that belong to a row.
#[derive(Debug, Clone, Serialize)]
struct Counted {
    what: String,
    operations: f64,
    counters: Counters,
}

#[derive(Serialize)]
pub(crate) struct Report {
    machine: Machine,
    pub(crate) rows: Vec<Row>,
    counted: Vec<Counted>,
    #[serde(skip)]
    figures: Vec<Figure>,
}

impl Report {
    pub(crate) async fn new(bed: &Bed) -> Result<Self> {
        let machine = Machine::look(bed).await?;
        println!("{}", machine.line());
        Ok(Self { machine, rows: Vec::new(), counted: Vec::new(), figures: Vec::new() })
    }

    /// Records a row and prints it.
    pub(crate) fn add(&mut self, row: Row) {
        let [measured, _, _, value, verdict, detail] = row.cells();
        eprintln!("  {measured}: {value} {verdict}  {detail}");
        self.rows.push(row);
    }

    pub(crate) fn count(&mut self, what: impl Into<String>, operations: f64, counters: Counters) {
        self.counted.push(Counted { what: what.into(), operations, counters });
    }

    pub(crate) fn draw(&mut self, figure: Figure) {
        self.figures.push(figure);
    }

    pub(crate) fn table(&self) -> String {
        let head = ["measured", "against, in the same run", "goal", "value (lowest–highest block)", "", ""];
        let lines: Vec<_> =
            [head.map(str::to_owned)].into_iter().chain(self.rows.iter().map(Row::cells)).collect();
        let mut text = format!("\n{}\n\n{}", self.machine.line(), columns(&lines));
        let counted: Vec<_> = self.counted.iter().map(Counted::cells).collect();
        let head = [
            "per operation",
            "commands",
            "document writes",
            "oplog",
            "sent by MongoDB",
            "published",
            "CPU ms",
            "peak MiB",
        ];
        let lines: Vec<_> = [head.map(str::to_owned)].into_iter().chain(counted).collect();
        let _ = write!(text, "\n{}", columns(&lines));
        let judged = self.rows.iter().filter_map(Row::is_met);
        let (met, missed): (Vec<bool>, Vec<bool>) = judged.partition(|met| *met);
        let _ = write!(text, "\n{} goals met, {} not met", met.len(), missed.len());
        text
    }

    /// Returns each row whose goal is not met and whose name does not appear, between backticks, in a
    /// level-three heading of the text.
    pub(crate) fn unexplained(&self, text: &str) -> Vec<&str> {
        let missed = self.rows.iter().filter(|row| row.is_met() == Some(false));
        let reasons: Vec<_> =
            text.lines().filter_map(|line| line.strip_prefix("### `")?.split('`').next()).collect();
        missed.map(|row| row.id.as_str()).filter(|id| !reasons.contains(id)).collect()
    }

    pub(crate) fn write(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder)?;
        fs::write(folder.join("results.json"), serde_json::to_string_pretty(self)? + "\n")?;
        fs::write(folder.join("table.txt"), self.table() + "\n")?;
        for figure in &self.figures {
            fs::write(folder.join(format!("{}.svg", figure.name)), figure.svg())?;
        }
        println!("written to {}", folder.display());
        Ok(())
    }
}

impl Counted {
    fn cells(&self) -> [String; 8] {
        let Counters {
            commands, documents_written, oplog_bytes, mongodb_bytes_sent, messages_published, ..
        } = self.counters;
        let each = |count: i64| number(count as f64 / self.operations);
        let by_process = |numbers: &std::collections::BTreeMap<&str, f64>, scale: f64| {
            let parts = numbers.iter().map(|(name, value)| format!("{name} {}", number(value * scale)));
            parts.collect::<Vec<_>>().join(", ")
        };
        [
            self.what.clone(),
            each(commands),
            each(documents_written),
            format!("{} B", each(oplog_bytes)),
            format!("{} B", each(mongodb_bytes_sent)),
            each(messages_published),
            by_process(&self.counters.cpu_seconds, 1000.0 / self.operations),
            by_process(&self.counters.peak_memory_mib, 1.0),
        ]
    }
}

fn columns<const N: usize>(lines: &[[String; N]]) -> String {
    let width =
        |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or_default();
    let widths: Vec<_> = (0..N).map(width).collect();
    let line = |cells: &[String; N]| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    lines.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_is_judged_by_the_median() {
        let row = Row::new("id", "m", "a").values("×", &[0.9, 1.1, 2.0]);
        assert_eq!(row.clone().goal(Goal::AtLeast(1.0)).is_met(), Some(true));
        assert_eq!(row.clone().goal(Goal::AtMost(1.0)).is_met(), Some(false));
        assert_eq!(row.is_met(), None);
    }

    #[test]
    fn nothing_measured_meets_no_goal() {
        let row = Row::new("id", "m", "a").goal(Goal::AtLeast(1.0));
        assert_eq!(row.is_met(), Some(false));
    }
}
