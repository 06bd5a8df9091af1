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
        matches!(self, Self::Io(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

/// Writes one result.
///
/// # Errors
/// [`OutputError`].
pub fn write(
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

/// Writes several results: a table or a JSON array of all, or one line each.
///
/// # Errors
/// [`OutputError`].
pub fn write_each<T: Serialize>(
    format: Format,
    results: &[T],
    text: impl FnOnce() -> String,
) -> Result<(), OutputError> {
    if format != Format::Jsonl {
        return write(format, &results, text);
    }
    let mut out = io::stdout().lock();
    for result in results {
        serde_json::to_writer(&mut out, result)?;
        writeln!(out)?;
    }
    out.flush()?;
    Ok(())
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
