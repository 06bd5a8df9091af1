//! Writes each record on one line, so that no content of an id, a type or an error text can begin a
//! new line.
//!
//! `tracing-subscriber` escapes most control characters in values, but not line feeds. Readers of a text log
//! take each line for a record. So any user with permission to insert documents could forge a record with a
//! line feed in a document's `_id`.

use std::io::{self, Write};

use document_outbox::internal::{Keep, one_line};
use tracing_subscriber::fmt::MakeWriter;

/// Writes records of the text format to standard error, each on one line.
///
/// Errors are ignored: a closed or full standard error must not end the program, and there is no other
/// place to report them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TextLines;

/// Writes records of the JSON format to standard error. JSON escapes line feeds itself; errors are ignored
/// as well.
#[derive(Clone, Copy, Debug)]
pub(crate) struct JsonLines;

impl Write for TextLines {
    /// Writes one record. The formatter passes each record as a whole, with its line feed at the end.
    fn write(&mut self, record: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(record);
        let body = text.strip_suffix('\n').unwrap_or(&text);

        let mut line = one_line(body, Keep::TabsAndColours).into_owned();
        line.push('\n');
        to_stderr(line.as_bytes());

        Ok(record.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Write for JsonLines {
    fn write(&mut self, record: &[u8]) -> io::Result<usize> {
        to_stderr(record);

        Ok(record.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for TextLines {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        *self
    }
}

impl MakeWriter<'_> for JsonLines {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        *self
    }
}

/// Writes to standard error if possible.
pub(crate) fn to_stderr(bytes: &[u8]) {
    let mut stderr = io::stderr().lock();
    // An error can't be handled here, and `eprintln!` would panic.
    let _ = stderr.write_all(bytes);
}
