//! Prints the JSON Schema of the settings file, for editors and pipelines.

use serde_json::{Map, Value, json};

use super::{
    key::{Key, Kind},
    program::Program,
};

/// Digits and a unit, any number of times: the format that `humantime` reads.
const DURATION: &str = "^(\\s*[0-9]+\\s*(nsec|ns|usec|us|msec|ms|seconds?|sec|s|minutes?|mins?|m|hours?|hrs?|hr|h|days?|d|weeks?|wks?|wk|w|months?|M|years?|yrs?|yr|y))+\\s*$";
/// The form of a namespace: a database, a dot, and the rest. The exact rules are checked when the file is
/// read.
const NAMESPACE: &str = "^\\s*[^.,\\s]+\\.[^,]+$";

/// The schema. It requires no key, because each key may be set by a source other than the file.
pub(super) fn schema(program: &Program, keys: &[Key]) -> String {
    let properties: Map<String, Value> =
        keys.iter().map(|key| (key.name().to_owned(), property(key))).collect();
    let schema = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": format!("Settings of {}", program.name),
        "description": program.about,
        "type": "object",
        "additionalProperties": false,
        "properties": properties,
    });
    format!("{schema:#}\n")
}

fn property(key: &Key) -> Value {
    let mut sentences = vec![key.help().to_owned()];
    if let Some(takes) = key.kind().takes() {
        sentences.push(format!("Takes {takes}."));
    }
    if key.default().is_none() {
        sentences.push("Required here, in the environment or on the command line.".into());
    }

    let mut property = Map::new();
    property.insert("description".into(), sentences.join(" ").into());
    if let Value::Object(shape) = shape(key.kind()) {
        property.extend(shape);
    }
    if let Some(default) = key.default() {
        property.insert("default".into(), typed(key.kind(), default));
    }
    Value::Object(property)
}

fn shape(kind: &Kind) -> Value {
    match kind {
        Kind::Uri(scheme) => {
            let [plain, other] = scheme.prefixes();
            json!({ "type": "string", "pattern": format!("^({plain}|{})", other.replace('+', "\\+")) })
        }
        Kind::Duration(_) => json!({ "type": "string", "pattern": DURATION }),
        Kind::Integer(bounds) => {
            json!({ "type": "integer", "minimum": bounds.start(), "maximum": bounds.end() })
        }
        Kind::Boolean => json!({ "type": "boolean" }),
        Kind::Choice(names) => json!({ "enum": names }),
        Kind::Text(_) => json!({ "type": "string" }),
        Kind::List(_) => list_of("^[^,]+$"),
        Kind::Namespaces => list_of(NAMESPACE),
    }
}

/// An array of texts with this pattern, or one text with commas.
fn list_of(pattern: &str) -> Value {
    let item = json!({ "type": "string", "pattern": pattern });
    json!({ "anyOf": [{ "type": "array", "items": item }, { "type": "string" }] })
}

/// A text as a JSON value of the type that it has in the file.
fn typed(kind: &Kind, text: &str) -> Value {
    match kind {
        Kind::Integer(_) => text.parse::<u64>().map_or_else(|_| text.into(), Value::from),
        Kind::Boolean => (text == "true").into(),
        Kind::List(_) | Kind::Namespaces => {
            text.split(',').map(str::trim).filter(|item| !item.is_empty()).collect::<Vec<_>>().into()
        }
        Kind::Uri(_) | Kind::Duration(_) | Kind::Choice(_) | Kind::Text(_) => text.into(),
    }
}
