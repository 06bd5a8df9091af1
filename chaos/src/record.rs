//! One run as one line of a file.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead, BufReader, Write},
    path::Path,
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::timeline::Span;

/// The results of one run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) seed: u64,
    pub(crate) commit: String,
    pub(crate) good: bool,
    pub(crate) saves: usize,
    pub(crate) outcomes: BTreeMap<String, usize>,
    pub(crate) committed: usize,
    pub(crate) delivered: usize,
    pub(crate) duplicates: BTreeMap<String, usize>,
    pub(crate) lost: usize,
    pub(crate) phantoms: usize,
    pub(crate) misreported: usize,
    pub(crate) order_violations: usize,
    /// Documents whose outbox wasn't empty in time.
    pub(crate) stuck: u64,
    /// Messages that were dead for a time and were replayed.
    pub(crate) died: usize,
    pub(crate) answerable: usize,
    pub(crate) indeterminate: usize,
    /// Seconds from the end of the storm until the servers were whole, from then until all was delivered, and of the storm itself.
    pub(crate) healed_in: f64,
    pub(crate) drained_in: f64,
    pub(crate) storm: f64,
    /// Seconds of the storm in which at least one fault was in force.
    pub(crate) in_force: f64,
    /// The whole run, with set-up and checks.
    pub(crate) took: f64,
    pub(crate) problems: Vec<String>,
    /// A few duplicates of each window.
    #[serde(default)]
    pub(crate) examples: BTreeMap<String, Vec<String>>,
    pub(crate) timeline: Vec<Span>,
}

impl Record {
    /// Adds it to the end of a file.
    pub(crate) fn append(&self, file: &Path) -> Result<()> {
        let mut file = File::options().create(true).append(true).open(file)?;
        let line = serde_json::to_string(self)? + "\n";
        file.write_all(line.as_bytes())?;
        Ok(())
    }

    /// All records of a file; none when it isn't there.
    pub(crate) fn read_all(file: &Path) -> Result<Vec<Self>> {
        let Ok(opened) = File::open(file) else { return Ok(Vec::new()) };
        let mut records = Vec::new();
        for line in BufReader::new(opened).lines() {
            let line = line?;
            // The last line may be half, where a session was cut off.
            if line.ends_with('}') {
                records.push(
                    serde_json::from_str(&line).with_context(|| format!("a line of {}", file.display()))?,
                );
            }
        }
        Ok(records)
    }

    pub(crate) fn sentence(&self) -> String {
        let duplicates: usize = self.duplicates.values().sum();
        let outside = self.duplicates.get("outside").copied().unwrap_or_default();
        let took = self.timeline.iter().filter(|span| span.took).count();
        format!(
            "seed {:>5} {:<4} saves {:>5}  committed {:>5}  delivered {:>5}  duplicates {:>4} ({outside} outside)  lost {}  \
             phantoms {}  order {}  misreported {}  stuck {}  died {:>3}  unknown {}/{}  faults {took}/{}  in force {:.0} %  \
             healed {:.1} s  drained {:.1} s  in all {:.0} s",
            self.seed,
            if self.good { "good" } else { "BAD" },
            self.saves,
            self.committed,
            self.delivered,
            duplicates,
            self.lost,
            self.phantoms,
            self.order_violations,
            self.misreported,
            self.stuck,
            self.died,
            self.indeterminate,
            self.answerable,
            self.timeline.len(),
            100.0 * self.in_force / self.storm,
            self.healed_in,
            self.drained_in,
            self.took,
        )
    }
}
