//! The benchmark suite. It measures the performance that the documentation claims and compares it with code that people
//! write instead, in the same run and in alternating blocks. `scripts/bench` builds and starts it; docs/performance.md
//! explains each row.

#![allow(clippy::cast_precision_loss, reason = "counts and times are far below 2^52")]
#![allow(clippy::similar_names, reason = "`saver` and `saves` belong together")]

mod baseline;
mod bed;
mod contender;
mod counters;
mod figure;
mod limits;
mod machine;
mod order;
mod report;
mod result;
mod rows;
mod services;
mod stats;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

use crate::{
    bed::{Bed, Scale},
    limits::Limits,
    report::Report,
    result::Result,
};

#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// Measures every row with small counts, in less than three minutes.
    #[arg(long)]
    quick: bool,
    /// Exits with 1 if a goal is missed and docs/performance.md gives no reason for it.
    #[arg(long)]
    check: bool,
    /// Runs only these measurements, given by prefixes of their names, such as `save` or `drain`.
    #[arg(long)]
    only: Vec<String>,
    /// The folder for results and figures.
    #[arg(long, default_value = "benches/results")]
    results: PathBuf,
    /// The page with the reasons for --check.
    #[arg(long, default_value = "docs/performance.md")]
    reasons: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measures the limits of docs/scaling.md instead.
    Limits(Limits),
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::from(2)
        }
    }
}

async fn run(arguments: Arguments) -> Result<ExitCode> {
    if let Some(Command::Limits(limits)) = arguments.command {
        return limits::run(limits).await;
    }

    let bed = Bed::make(Scale::new(arguments.quick)).await?;
    let mut report = Report::new(&bed).await?;
    let measured = rows::measure(&bed, &arguments.only, &mut report).await;
    bed.clean_up().await?;
    measured?;
    println!("{}", report.table());
    report.write(&arguments.results)?;
    if !arguments.check {
        return Ok(ExitCode::SUCCESS);
    }
    let reasons = std::fs::read_to_string(&arguments.reasons)?;
    let unexplained = report.unexplained(&reasons);
    for row in &unexplained {
        eprintln!("bench: `{row}` is not met, and {} gives no reason for it", arguments.reasons.display());
    }
    Ok(if unexplained.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
