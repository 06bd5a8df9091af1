//! A file with every key: what it means, what it takes, what it is by default.

use std::fmt::Write;

use serde_json::Value;

use super::{
    key::{Key, Kind},
    program::Program,
};

/// Parses as it is; where a default is uncommented as well.
pub(super) fn sample(program: &Program, keys: &[Key]) -> String {
    let mut file = format!(
        "# Every setting of {0}, as `{0} config sample` prints them. What is commented out is the default.\n\
         # The environment and the command line go before this file: OUTBOX_LOG_FORMAT and --log-format before log_format.\n\
         # `{0} config check --config FILE` tells what is in effect.\n",
        program.name
    );
    for key in keys {
        file.push('\n');
        let required = key.default().is_none().then(|| "Required.".to_owned());
        let takes = key.kind().takes().map(|takes| format!("Takes {takes}."));
        let rules: Vec<_> = required.into_iter().chain(takes).collect();
        for line in wrapped(key.help()).into_iter().chain(wrapped(&rules.join(" "))) {
            // Writing to a text does not fail.
            let _ = writeln!(file, "# {line}");
        }
        let (mark, text) = key.default().map_or_else(|| ("", key.kind().example()), |text| ("# ", text));
        let _ = writeln!(file, "{mark}{} = {}", key.name(), literal(key.kind(), text));
    }
    file
}

/// A value as it stands in the file.
pub(super) fn literal(kind: &Kind, text: &str) -> String {
    // A text of JSON is one of TOML.
    let quoted = |text: &str| Value::from(text).to_string();
    match kind {
        Kind::Integer(_) | Kind::Boolean => text.to_owned(),
        Kind::List(_) | Kind::Namespaces => {
            let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
            format!("[{}]", items.map(quoted).collect::<Vec<_>>().join(", "))
        }
        Kind::Uri(_) | Kind::Duration(_) | Kind::Choice(_) | Kind::Text(_) => quoted(text),
    }
}

fn wrapped(text: &str) -> Vec<String> {
    const WIDTH: usize = 100;
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
