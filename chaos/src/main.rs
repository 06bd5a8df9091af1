//! Breaks document-outbox on real servers, by seed: `scripts/chaos --help` says more.
//!
//! # Flow
//! A run puts applications, rescuers and dispatchers on a [`system`], each process with [links](proxy) of its own to its servers.
//! The [`storm`] strikes with [`faults`] that were drawn from the seed, and heals them. Then everything has to drain, and the
//! [`ledger`] compares what the applications said with what a consumer of the harness received.

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

/// Breaks document-outbox on real servers, by seed.
#[derive(Debug, Parser)]
#[command(name = "outbox-chaos")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Lets storms rage.
    Storm(Session),
    /// Writes the table of the runs in these files.
    Report {
        /// What `storm` appended to.
        files: Vec<PathBuf>,
    },
    /// One application of a storm.
    #[command(hide = true)]
    Application {
        /// As JSON.
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
    // What is still under way ends with its processes.
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
