//! One record, one line: whatever stands in an id, a type or an error text, it can't begin a line of its own.
//!
//! `tracing-subscriber` escapes most control characters of the values it writes, but not line feeds. Readers of a text log
//! take each line for a record, so a line feed in a document's `_id` would let anybody who may insert documents forge one.

use std::{
    borrow::Cow,
    fmt::Write as _,
    io::{self, Write},
};

use tracing_subscriber::fmt::MakeWriter;

/// Writes records of the text format to standard error, each on one line.
///
/// Errors are dropped: a closed or full standard error must not end the program, and there is no other place to report it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TextLines;

/// Writes records of the JSON format to standard error. JSON escapes line feeds itself; errors are dropped as well.
#[derive(Clone, Copy, Debug)]
pub(crate) struct JsonLines;

impl Write for TextLines {
    /// Takes one record: the formatter hands over each whole, with its line feed at the end.
    fn write(&mut self, record: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(record);
        let body = text.strip_suffix('\n').unwrap_or(&text);

        let mut line = one_line(body).into_owned();
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

/// Writes to standard error as far as that works.
pub(crate) fn to_stderr(bytes: &[u8]) {
    let mut stderr = io::stderr().lock();
    // Nothing can be done about an error here, and `eprintln!` would panic.
    let _ = stderr.write_all(bytes);
}

/// The text with everything escaped that ends a line, moves the cursor or reverses the direction of what follows.
///
/// ESC stays: colours of the formatter itself begin with it, and the formatter escapes it in values.
pub(crate) fn one_line(text: &str) -> Cow<'_, str> {
    if !text.contains(breaks_a_line) {
        return Cow::Borrowed(text);
    }

    let mut line = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        if breaks_a_line(character) {
            // Writing to a string can't fail.
            let _ = write!(line, "{}", character.escape_default());
        } else {
            line.push(character);
        }
    }

    Cow::Owned(line)
}

fn breaks_a_line(character: char) -> bool {
    match character {
        '\t' | '\u{1b}' => false,
        // Unicode's line and paragraph separators, and its marks that change the direction of text.
        '\u{2028}'
        | '\u{2029}'
        | '\u{200e}'
        | '\u{200f}'
        | '\u{202a}'..='\u{202e}'
        | '\u{2066}'..='\u{2069}' => true,
        other => other.is_control(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_cannot_begin_a_line() {
        for (text, line) in [
            ("a\n2030-01-01 ERROR forged", "a\\n2030-01-01 ERROR forged"),
            ("a\r\nb", "a\\r\\nb"),
            ("a\u{b}b\u{c}c\u{85}d", "a\\u{b}b\\u{c}c\\u{85}d"),
            ("a\u{2028}b\u{2029}c", "a\\u{2028}b\\u{2029}c"),
            ("a\u{202e}b\u{0}", "a\\u{202e}b\\u{0}"),
        ] {
            assert_eq!(one_line(text), line);
        }
    }

    #[test]
    fn ordinary_text_and_colours_stay() {
        let text = "\u{1b}[2mINFO\u{1b}[0m café ☃\tid=1";
        assert!(matches!(one_line(text), Cow::Borrowed(kept) if kept == text));
    }
}
