//! Keeps a text on one line of a log.
//!
//! Readers of a text log treat each line as a record. A line feed in a document's `_id` or in an error text would allow
//! any user with permission to insert documents to forge a record.

use std::{borrow::Cow, fmt::Write as _};

/// The control characters that are not escaped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// None.
    Nothing,
    /// Tabs are kept, and so is ESC, which starts colours. Use this variant for a record that its formatter has
    /// already escaped.
    TabsAndColours,
}

/// Escapes all characters that end a line, move the cursor or change the direction of text.
pub fn one_line(text: &str, keep: Keep) -> Cow<'_, str> {
    if !text.contains(|character| is_escaped(character, keep)) {
        return Cow::Borrowed(text);
    }

    let mut line = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        if is_escaped(character, keep) {
            // Writing to a string can't fail.
            let _ = write!(line, "{}", character.escape_default());
        } else {
            line.push(character);
        }
    }

    Cow::Owned(line)
}

fn is_escaped(character: char, keep: Keep) -> bool {
    match character {
        '\t' | '\u{1b}' => keep == Keep::Nothing,
        // Unicode's line and paragraph separators, and the marks that change the direction of text.
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
            for keep in [Keep::Nothing, Keep::TabsAndColours] {
                assert_eq!(one_line(text, keep), line);
            }
        }
    }

    #[test]
    fn ordinary_text_and_colours_stay() {
        let text = "\u{1b}[2mINFO\u{1b}[0m café ☃\tid=1";
        assert!(matches!(one_line(text, Keep::TabsAndColours), Cow::Borrowed(kept) if kept == text));
        assert_eq!(one_line("\u{1b}[2m☃\t", Keep::Nothing), "\\u{1b}[2m☃\\t");
    }
}
