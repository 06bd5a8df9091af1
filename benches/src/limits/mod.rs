//! Measures the limits of one system: a large backlog, many collections, large documents, and a load at a fixed rate.
//! `scripts/limits` builds and starts them; docs/scaling.md shows the figures and what follows from them.

mod backlog;
mod collections;
mod finding;
mod large;
mod received;
mod services;
mod soak;
mod stranded;
mod watched;

use std::{path::Path, process::ExitCode};

use self::finding::Finding;
use crate::{
    bed::{Bed, Scale},
    machine::Machine,
    result::Result,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Limits {
    /// Runs only these, by name: soak, stranded, collections, large.
    #[arg(long, value_parser = ["soak", "stranded", "collections", "large"])]
    only: Vec<String>,
    /// The duration of the soak, in minutes.
    #[arg(long, default_value_t = 30)]
    minutes: u64,
    /// Runs with a thousandth of the documents and a soak of a minute.
    #[arg(long)]
    quick: bool,
    /// The folder for limits.json and limits.txt.
    #[arg(long, default_value = "benches/results")]
    results: std::path::PathBuf,
}

/// Runs the requested measurements. The exit code is 1 if one of them found a limit exceeded or a message missing.
pub(crate) async fn run(limits: Limits) -> Result<ExitCode> {
    let wanted = |name: &str| limits.only.is_empty() || limits.only.iter().any(|only| only == name);
    let mut findings = Vec::new();

    if wanted("stranded") {
        findings.extend(with_bed(limits.quick, stranded::measure).await?);
    }
    if wanted("collections") {
        findings.extend(with_bed(limits.quick, collections::measure).await?);
    }
    if wanted("large") {
        findings.extend(with_bed(limits.quick, large::measure).await?);
    }
    if wanted("soak") {
        let minutes = if limits.quick { 1 } else { limits.minutes };
        findings.extend(with_bed(limits.quick, async |bed| soak::measure(bed, minutes).await).await?);
    }

    write(&limits.results, limits.quick, &findings).await?;
    let exceeded = findings.iter().any(|finding| finding.holds == Some(false));
    Ok(if exceeded { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Gives a measurement a database and queues of its own, and removes them afterwards.
async fn with_bed(
    quick: bool,
    measure: impl AsyncFnOnce(&Bed) -> Result<Vec<Finding>>,
) -> Result<Vec<Finding>> {
    let bed = Bed::make(Scale::new(quick)).await?;
    let found = measure(&bed).await;
    bed.clean_up().await?;
    found
}

/// Prints the findings, and writes them to the folder as a table and as JSON.
async fn write(folder: &Path, quick: bool, findings: &[Finding]) -> Result<()> {
    let bed = Bed::make(Scale::new(quick)).await?;
    let machine = Machine::look(&bed).await?;
    bed.clean_up().await?;

    let table = format!("{}\n\n{}", machine.line(), finding::table(findings));
    println!("{table}");
    std::fs::create_dir_all(folder)?;
    std::fs::write(folder.join("limits.txt"), table)?;
    let json = serde_json::json!({ "machine": machine, "findings": findings });
    std::fs::write(folder.join("limits.json"), serde_json::to_string_pretty(&json)? + "\n")?;
    Ok(())
}
