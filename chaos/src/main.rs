//! Lets storms of faults strike document-outbox on real servers. `scripts/chaos --help` lists the options.
//!
//! # Flow
//! A run starts a [`system`] of applications, rescuers and dispatchers. Each process has its own [links](proxy) to its servers.
//! The [`storm`] strikes with [`faults`] that were drawn from the seed, and heals each of them. Afterwards every outbox must become
//! empty. The [`ledger`] compares the saves that the applications reported with the messages that the harness's consumer received.

#![allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "counts and times are far below 2^52"
)]

mod actors;
mod application;
mod control;
mod faults;
mod ledger;
mod ports;
mod probe;
mod process;
mod proxy;
mod record;
mod report;
mod run;
mod servers;
mod session;
mod settings;
mod storm;
mod system;
mod timeline;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

use crate::session::Session;

/// Lets storms of faults, drawn from seeds, strike document-outbox on real servers.
#[derive(Debug, Parser)]
#[command(name = "outbox-chaos")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs storms.
    Storm(Session),
    /// Prints a table of the runs in these files.
    Report {
        /// Files that `storm --resume` wrote.
        files: Vec<PathBuf>,
    },
    /// Runs one application of a storm.
    #[command(hide = true)]
    Application {
        /// The job of the application, as JSON.
        job: String,
    },
}

fn main() -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("chaos: {error}");
            return ExitCode::from(2);
        }
    };
    let ended = match Arguments::parse().command {
        Command::Storm(session) => runtime.block_on(session::sit(&session)),
        Command::Report { files } => session::show_report(&files),
        Command::Application { job } => runtime.block_on(apply(&job)),
    };
    // Tasks that still run are abandoned; the process ends right after this.
    runtime.shutdown_background();
    ended.unwrap_or_else(|error| {
        eprintln!("chaos: {error:#}");
        ExitCode::from(2)
    })
}

async fn apply(job: &str) -> anyhow::Result<ExitCode> {
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(std::io::stderr).init();
    application::run(serde_json::from_str(job)?).await?;
    Ok(ExitCode::SUCCESS)
}
