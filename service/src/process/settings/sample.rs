//! Prints a sample file with every key, its meaning, its accepted values and its default.

use std::fmt::Write;

use serde_json::Value;

use super::{
    key::{Key, Kind},
    program::Program,
};

/// The maximum length of a line of a comment.
const WIDTH: usize = 100;

/// The sample file. It can be parsed as it is printed, and also after the lines with defaults were
/// uncommented.
pub(super) fn sample(program: &Program, keys: &[Key]) -> String {
    let mut file = format!(
        "# Every setting of {0}, as `{0} config sample` prints them. Lines that are commented out show the default.\n\
         # The environment and the command line take precedence: OUTBOX_LOG_FORMAT and --log-format over log_format.\n\
         # `{0} config check --config FILE` prints the effective settings.\n",
        program.name
    );
    for key in keys {
        file.push('\n');
        let mut rules = Vec::new();
        if key.default().is_none() {
            rules.push("Required.".to_owned());
        }
        if let Some(takes) = key.kind().takes() {
            rules.push(format!("Takes {takes}."));
        }
        for line in [wrapped(key.help()), wrapped(&rules.join(" "))].concat() {
            // Writing to a string can't fail.
            let _ = writeln!(file, "# {line}");
        }

        let (mark, text) = match key.default() {
            Some(default) => ("# ", default),
            None => ("", key.kind().example()),
        };
        let _ = writeln!(file, "{mark}{} = {}", key.name(), literal(key.kind(), text));
    }
    file
}

/// A value in the syntax of the file.
pub(super) fn literal(kind: &Kind, text: &str) -> String {
    match kind {
        Kind::Integer(_) | Kind::Boolean => text.to_owned(),
        Kind::List(_) | Kind::Namespaces => {
            let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
            format!("[{}]", items.map(quoted).collect::<Vec<_>>().join(", "))
        }
        Kind::Uri(_) | Kind::Duration(_) | Kind::Choice(_) | Kind::Text(_) => quoted(text),
    }
}

/// Quotes a text. A JSON string is also a TOML string, except for one character, which must be escaped in
/// TOML.
fn quoted(text: &str) -> String {
    Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}

fn wrapped(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= WIDTH => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}
