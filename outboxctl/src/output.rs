//! Writes results to standard output, and notes to standard error.

use std::io::{self, Write};

use document_outbox::internal::{Keep, one_line};
use serde::Serialize;

use crate::args::Format;

/// Why a result could not be written.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// Standard output failed.
    #[error("the result could not be written: {0}")]
    Io(#[from] io::Error),
    /// A value can't be written as JSON.
    #[error("the result could not be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

impl OutputError {
    /// Whether the reader of the output has ended, as `head` does.
    pub fn is_closed(&self) -> bool {
        let kind = match self {
            Self::Io(error) => Some(error.kind()),
            Self::Json(error) => error.io_error_kind(),
        };
        kind == Some(io::ErrorKind::BrokenPipe)
    }
}

/// Writes one result. A reader that has ended, as `head` does, has what it wanted, and does not change the exit code.
///
/// # Errors
/// [`OutputError`].
pub fn write(
    format: Format,
    result: &impl Serialize,
    text: impl FnOnce() -> String,
) -> Result<(), OutputError> {
    unless_closed(write_one(format, result, text))
}

/// Writes several results: a table or a JSON array of all, or one line each. A reader that has ended does not change the
/// exit code.
///
/// # Errors
/// [`OutputError`].
pub fn write_each<T: Serialize>(
    format: Format,
    results: &[T],
    text: impl FnOnce() -> String,
) -> Result<(), OutputError> {
    unless_closed(write_part(format, results, text))
}

/// Writes a part of a stream, which ends if its reader has ended.
///
/// # Errors
/// [`OutputError`].
pub fn write_part<T: Serialize>(
    format: Format,
    results: &[T],
    text: impl FnOnce() -> String,
) -> Result<(), OutputError> {
    if format != Format::Jsonl {
        return write_one(format, &results, text);
    }
    let mut out = io::stdout().lock();
    for result in results {
        serde_json::to_writer(&mut out, result)?;
        writeln!(out)?;
    }
    out.flush()?;
    Ok(())
}

fn write_one(
    format: Format,
    result: &impl Serialize,
    text: impl FnOnce() -> String,
) -> Result<(), OutputError> {
    let mut out = io::stdout().lock();
    match format {
        Format::Table => out.write_all(text().as_bytes())?,
        Format::Json => {
            serde_json::to_writer_pretty(&mut out, result)?;
            writeln!(out)?;
        }
        Format::Jsonl => {
            serde_json::to_writer(&mut out, result)?;
            writeln!(out)?;
        }
        Format::None => {}
    }
    out.flush()?;
    Ok(())
}

fn unless_closed(written: Result<(), OutputError>) -> Result<(), OutputError> {
    match written {
        Err(error) if error.is_closed() => Ok(()),
        written => written,
    }
}

/// Writes a note for people.
pub fn note(text: &str) {
    // A terminal that is gone can't be reported.
    let _ = writeln!(io::stderr().lock(), "{}", one_line(text, Keep::Nothing));
}

/// Writes an error, which may have several lines.
pub fn error(text: &str) {
    let mut err = io::stderr().lock();
    for (number, line) in text.lines().enumerate() {
        let prefix = if number == 0 { "outboxctl: " } else { "" };
        let _ = writeln!(err, "{prefix}{}", one_line(line, Keep::Nothing));
    }
}
