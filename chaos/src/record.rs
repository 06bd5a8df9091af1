//! The results of a run, stored as one line of a file.

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
    /// Number of documents whose outbox was still not empty when the harness stopped waiting.
    pub(crate) stuck: u64,
    /// Number of messages that were dead and were replayed.
    pub(crate) died: usize,
    pub(crate) answerable: usize,
    pub(crate) indeterminate: usize,
    /// Times in seconds: `healed_in` is from the end of the storm until all servers were healed, `drained_in` is from that moment
    /// until every message was delivered, and `storm` is the length of the storm.
    pub(crate) healed_in: f64,
    pub(crate) drained_in: f64,
    pub(crate) storm: f64,
    /// For how many seconds at least one fault that had an effect was in force.
    pub(crate) in_force: f64,
    /// Seconds that the whole run took, including set-up and checks.
    pub(crate) took: f64,
    pub(crate) problems: Vec<String>,
    /// Descriptions of a few duplicates for each window of promise P3.
    #[serde(default)]
    pub(crate) examples: BTreeMap<String, Vec<String>>,
    pub(crate) timeline: Vec<Span>,
}

impl Record {
    /// Appends this record to a file.
    pub(crate) fn append(&self, file: &Path) -> Result<()> {
        let mut file = File::options().create(true).append(true).open(file)?;
        let line = serde_json::to_string(self)? + "\n";
        file.write_all(line.as_bytes())?;
        Ok(())
    }

    /// Reads all records of a file; returns `None` if the file does not exist.
    pub(crate) fn read_all(file: &Path) -> Result<Vec<Self>> {
        let Ok(opened) = File::open(file) else { return Ok(Vec::new()) };
        let mut records = Vec::new();
        for line in BufReader::new(opened).lines() {
            let line = line?;
            // The last line may be incomplete if a session was interrupted.
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
