//! The TOML file that `--config` names.

use toml::{Table, Value};

use super::{
    key::{Key, Kind},
    problem::Problem,
    sources::Given,
};
use crate::{quote::shown, suggestion::did_you_mean};

/// Parses the text of the settings file, whose path the user gave as `path`.
pub(super) fn parse(path: &str, text: &str, keys: &[Key]) -> Given {
    let mut given = Given::default();
    let table = match text.parse::<Table>() {
        Ok(table) => table,
        Err(error) => {
            // The error's own `Display` quotes the line, which may contain a password.
            let (line, column) = position(text, error.span().map_or(0, |span| span.start));
            let sentence = format!("is not TOML: {}; correct the file", error.message());
            given.problems.push(Problem::new(format!("{path}:{line}:{column}"), sentence));
            given.incomplete = true;
            return given;
        }
    };
    for (name, value) in &table {
        let spelled = format!("{path}:{name}");
        match keys.iter().find(|key| key.name() == name) {
            Some(key) => match text_of(value, key.kind()) {
                Ok(text) => given.set(key, text),
                Err(sentence) => given.refuse(key, spelled, sentence),
            },
            None => given.problems.push(Problem::new(spelled, unknown(name, keys))),
        }
    }
    given
}

fn unknown(name: &str, keys: &[Key]) -> String {
    let hint = did_you_mean(name, keys.iter().map(Key::name));
    format!("is not a setting of this program{hint}; correct or remove it; --help lists all settings")
}

fn text_of(value: &Value, kind: &Kind) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Integer(number) => Ok(number.to_string()),
        Value::Float(number) => Ok(number.to_string()),
        Value::Boolean(boolean) => Ok(boolean.to_string()),
        Value::Datetime(date) => Ok(date.to_string()),
        Value::Array(items) if kind.is_list() => {
            let texts: Result<Vec<_>, _> = items.iter().map(item_of).collect();
            texts.map(|texts| texts.join(","))
        }
        Value::Array(_) => Err("takes one value, not a list; drop the brackets".into()),
        Value::Table(_) => Err("takes a value, not a table; write it as key = \"value\"".into()),
    }
}

fn item_of(item: &Value) -> Result<&str, String> {
    match item {
        Value::String(text) if text.contains(',') => {
            Err(format!("has a comma in {}; give each item its own quotes", shown(text)))
        }
        Value::String(text) => Ok(text),
        _ => Err("takes a list of texts; put each item in quotes".into()),
    }
}

/// The line and the column of a byte offset, both counted from 1.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::{keys, settings::Kind};

    fn table() -> Vec<Key> {
        vec![
            keys::watch(),
            keys::shutdown_grace(),
            keys::mongodb_uri(),
            Key::new("window", Kind::Boolean, ""),
        ]
    }

    fn problems(text: &str) -> Vec<String> {
        parse("f.toml", text, &table()).problems.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_list_is_an_array_or_comma_separated() {
        for text in ["watch = ['shop.orders', 'shop.stock']", "watch = 'shop.orders,shop.stock'"] {
            let given = parse("f.toml", text, &table());
            assert_eq!(given.texts["watch"].as_deref(), Some("shop.orders,shop.stock"));
        }
    }

    #[test]
    fn an_unknown_key_is_refused_with_a_suggestion() {
        assert_eq!(
            problems("shutdown_grace = '5s'\nshutdown_gracee = '5s'"),
            [
                "f.toml:shutdown_gracee: is not a setting of this program (did you mean shutdown_grace?); correct \
             or remove it; --help lists all settings"
            ]
        );
        assert!(problems("colour = 'red'")[0].contains("is not a setting of this program; correct"));
    }

    #[test]
    fn a_value_of_the_wrong_shape_is_refused() {
        let all = problems("shutdown_grace = ['5s']\nwatch = [1]\n[window]\nsize = 1");
        assert_eq!(all.len(), 3);
        assert!(all[0].starts_with("f.toml:shutdown_grace: takes one value"), "{all:?}");
        assert!(all[1].starts_with("f.toml:watch: takes a list of texts"), "{all:?}");
        assert!(all[2].starts_with("f.toml:window: takes a value, not a table"), "{all:?}");
    }

    #[test]
    fn a_syntax_error_does_not_quote_its_line() {
        for text in [
            "watch = 'a.b'\nmongodb_uri = 'mongodb://u:hunter2@h",
            "watch = 'a.b'\nmongodb_uri = mongodb://u:hunter2@h",
            "watch = 'a.b'\nmongodb_uri mongodb://u:hunter2@h",
            "watch = 'a.b'\nmongodb_uri = \"\\hunter2\"",
        ] {
            let given = parse("f.toml", text, &table());
            let problem = given.problems[0].to_string();
            assert!(problem.starts_with("f.toml:2:"), "{problem}");
            assert!(!problem.contains("hunter2"), "{problem}");
            assert!(given.incomplete);
        }
    }
}
