//! The command line for operators of document-outbox. Everything that it shows comes from `outbox_operate`.
//!
//! # Flow
//! [`args`] reads the command line, [`settings`] the environment or a profile. [`commands`] calls an operation, and
//! [`screens`] draws its result as text within the width of the terminal. [`output`] writes it as a table, as JSON or as
//! one JSON object a line.
//!
//! # Rules
//! - Results go to standard output; notes and errors go to standard error.
//! - Exit codes: see [`Exit`].
//! - Secrets are never arguments, because arguments are visible to every user of the machine.

#![cfg_attr(test, allow(clippy::pedantic, reason = "these lints apply to product code, not to tests"))]

pub mod acting;
pub mod args;
pub mod commands;
pub mod exit;
pub mod output;
pub mod screens;
pub mod settings;
pub mod table;

use std::process::ExitCode;

use clap::Parser;

use crate::{args::Args, exit::Exit};

/// Runs the program.
pub fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            // Help and version are errors to the parser, too. A closed terminal can't be reported.
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage.into() } else { Exit::Done.into() };
        }
    };

    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("outboxctl: the runtime could not start: {error}");
            return Exit::Failed.into();
        }
    };
    runtime.block_on(commands::run(args)).into()
}
