//! `ProcessDocumentMessages`: the hint that a document's outbox wants looking at.
//!
//! A command can be lost, repeated, stale or forged without harm: it names a document and grants nothing. It is the
//! only thing that rescuer, inline dispatcher and dispatcher worker say to each other.
//!
//! ```json
//! {"database":"shop","collection":"orders","document_key":{"_id":"o-1"},"reason":"stream"}
//! ```
//!
//! `document_key` is canonical extended JSON, so that every type of `_id` survives.

use std::fmt;

use mongodb::{
    Namespace,
    bson::{Bson, Document},
};
use serde::{Deserialize, Serialize};

use crate::DocumentRef;

/// The AMQP `type` of a command.
pub const COMMAND_TYPE: &str = "ProcessDocumentMessages";
/// The default exchange for commands: direct, durable.
pub const COMMANDS_EXCHANGE: &str = "outbox.commands";
/// The routing key of every command.
pub const COMMANDS_ROUTING_KEY: &str = "process-document-messages";
/// The default queue that dispatcher workers consume: quorum, with a delivery limit.
pub const COMMANDS_QUEUE: &str = "outbox.process-document-messages";
/// How often the broker hands out one command before it drops it; the sweep sends another.
pub const COMMANDS_DELIVERY_LIMIT: u32 = 20;
/// A longer body is refused unread: a document key is an `_id` and a shard key.
pub const MAX_COMMAND_BYTES: usize = 64 * 1024;
/// A document key nested deeper is refused.
const MAX_KEY_DEPTH: usize = 32;

/// Why a command was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reason {
    /// The change stream showed a document whose outbox was still filled after the delay.
    Stream,
    /// The sweep found something due.
    Sweep,
    /// A failed delivery was left to a worker.
    Handoff,
    /// An operator asked for it.
    Operator,
    /// A reason that this version doesn't know.
    #[serde(other)]
    Other,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stream => "stream",
            Self::Sweep => "sweep",
            Self::Handoff => "handoff",
            Self::Operator => "operator",
            Self::Other => "other",
        })
    }
}

/// The command: look at this document's outbox.
#[derive(Debug, Clone, PartialEq)]
pub struct ProcessDocumentMessages {
    /// The document.
    pub document: DocumentRef,
    /// Why.
    pub reason: Reason,
}

/// Why a command is refused. Shows nothing of the command's content beyond names.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// The body is longer than a command can be.
    #[error("the body has {0} bytes; a command has at most {MAX_COMMAND_BYTES}")]
    TooLong(usize),
    /// Not the JSON of a command.
    #[error("not a command: {0}")]
    Malformed(String),
    /// The namespace is not a database and a collection.
    #[error("not a namespace: database and collection must be non-empty names without `$` or NUL")]
    BadNamespace,
    /// The key is not a document key.
    #[error("not a document key: {0}")]
    BadKey(&'static str),
}

#[derive(Serialize, Deserialize)]
struct Wire {
    database: String,
    collection: String,
    document_key: serde_json::Map<String, serde_json::Value>,
    reason: Reason,
}

impl ProcessDocumentMessages {
    /// The body on the wire.
    pub fn to_json(&self) -> Vec<u8> {
        let key = Bson::Document(self.document.key.clone()).into_canonical_extjson();
        let wire = Wire {
            database: self.document.namespace.db.clone(),
            collection: self.document.namespace.coll.clone(),
            document_key: key.as_object().cloned().unwrap_or_default(),
            reason: self.reason,
        };
        serde_json::to_vec(&wire).unwrap_or_default()
    }

    /// Reads a body: every field, and a key that can act as nothing but a key. A field besides and a reason that are unknown are
    /// from a later version, and say nothing about the document.
    ///
    /// # Errors
    /// [`CommandError`], which names what is wrong without quoting the body.
    pub fn from_json(body: &[u8]) -> Result<Self, CommandError> {
        if body.len() > MAX_COMMAND_BYTES {
            return Err(CommandError::TooLong(body.len()));
        }
        let wire: Wire =
            serde_json::from_slice(body).map_err(|error| CommandError::Malformed(describe(&error)))?;
        let named = |name: &str| !name.is_empty() && !name.contains(['$', '\0']);
        let database_named = named(&wire.database) && !wire.database.contains(['.', '/', '\\', ' ', '"']);
        if !database_named || !named(&wire.collection) {
            return Err(CommandError::BadNamespace);
        }
        let key = document_key(wire.document_key)?;
        let namespace = Namespace::new(wire.database, wire.collection);
        Ok(Self { document: DocumentRef { namespace, key }, reason: wire.reason })
    }
}

/// Says where and how the JSON is off; serde's own text could quote values.
fn describe(error: &serde_json::Error) -> String {
    let what = match error.classify() {
        serde_json::error::Category::Data => "a field is missing or of the wrong type",
        _ => "the JSON does not parse",
    };
    format!("{what} (line {}, column {})", error.line(), error.column())
}

fn document_key(json: serde_json::Map<String, serde_json::Value>) -> Result<Document, CommandError> {
    if json.keys().any(|name| name.starts_with('$')) {
        return Err(CommandError::BadKey("a field name begins with `$`"));
    }
    let mut key = Document::new();
    for (name, value) in json {
        let value = Bson::try_from(value).map_err(|_| CommandError::BadKey("not extended JSON"))?;
        check_value(&value, 0)?;
        key.insert(name, value);
    }
    match key.get("_id") {
        None => Err(CommandError::BadKey("`_id` is missing")),
        Some(Bson::Array(_) | Bson::RegularExpression(_) | Bson::Undefined) => {
            Err(CommandError::BadKey("`_id` is of a type that no `_id` has"))
        }
        Some(_) => Ok(key),
    }
}

/// Refuses what a query could read as an operator, at any depth.
fn check_value(value: &Bson, depth: usize) -> Result<(), CommandError> {
    if depth > MAX_KEY_DEPTH {
        return Err(CommandError::BadKey("nested too deep"));
    }
    match value {
        Bson::Document(document) => {
            document.iter().try_for_each(|(name, value)| match name.starts_with('$') {
                true => Err(CommandError::BadKey("a field name begins with `$`")),
                false => check_value(value, depth + 1),
            })
        }
        Bson::Array(items) => items.iter().try_for_each(|item| check_value(item, depth + 1)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use mongodb::bson::{DateTime, Uuid, doc, oid::ObjectId};

    use super::*;

    fn command(id: impl Into<Bson>) -> ProcessDocumentMessages {
        let document = DocumentRef::by_id(Namespace::new("shop", "orders.archive"), id);
        ProcessDocumentMessages { document, reason: Reason::Stream }
    }

    #[test]
    fn every_type_of_id_survives_the_wire() {
        let ids: Vec<Bson> = vec![
            "o-1".into(),
            "{\"$oid\": \"x\"} \u{0} ☃".into(),
            ObjectId::new().into(),
            Uuid::new().into(),
            Bson::Int32(1),
            Bson::Int64(i64::MAX),
            Bson::Double(0.1),
            Bson::Double(f64::INFINITY),
            Bson::Boolean(true),
            Bson::Null,
            DateTime::from_millis(-5).into(),
            doc! { "tenant": 1, "nested": { "list": [1, 2] } }.into(),
        ];
        for id in ids {
            let sent = command(id);
            assert_eq!(ProcessDocumentMessages::from_json(&sent.to_json()), Ok(sent));
        }
    }

    #[test]
    fn the_wire_is_the_documented_json() {
        let text = String::from_utf8(command(7i64).to_json()).unwrap();
        assert_eq!(
            text,
            r#"{"database":"shop","collection":"orders.archive","document_key":{"_id":{"$numberLong":"7"}},"reason":"stream"}"#
        );
    }

    #[test]
    fn unknown_fields_are_ignored_and_an_unknown_reason_is_another() {
        let later = br#"{"version":2,"database":"shop","collection":"c","document_key":{"_id":1},"reason":"because","hints":[{}]}"#;
        let command = ProcessDocumentMessages::from_json(later).unwrap();
        assert_eq!((command.document.id(), command.reason), (&Bson::Int32(1), Reason::Other));
    }

    #[test]
    fn forged_malformed_and_huge_commands_are_refused_without_quoting_them() {
        let key = |json: &str| {
            format!(r#"{{"database":"shop","collection":"c","document_key":{json},"reason":"stream"}}"#)
                .into_bytes()
        };
        let refused: Vec<Vec<u8>> = vec![
            b"".to_vec(),
            b"secret".to_vec(),
            b"{}".to_vec(),
            vec![b'['; 60_000],
            vec![b' '; MAX_COMMAND_BYTES + 1],
            key(r#"{}"#),
            key(r#"{"_id":{"$gt":"secret"}}"#),
            key(r#"{"_id":{"a":{"$where":"secret"}}}"#),
            key(r#"{"$where":"secret","_id":1}"#),
            key(r#"{"_id":[1]}"#),
            key(r#"{"_id":{"$regularExpression":{"pattern":"secret","options":""}}}"#),
            br#"{"database":"a.b","collection":"c","document_key":{"_id":1},"reason":"stream"}"#.to_vec(),
            br#"{"database":"","collection":"c","document_key":{"_id":1},"reason":"stream"}"#.to_vec(),
            br#"{"database":"shop","collection":"$cmd","document_key":{"_id":1},"reason":"stream"}"#.to_vec(),
            br#"{"database":"shop","collection":"c","document_key":{"_id":1}}"#.to_vec(),
            br#"{"database":"shop","collection":"c","document_key":{"_id":1},"reason":1}"#.to_vec(),
        ];
        for body in refused {
            let error = ProcessDocumentMessages::from_json(&body).expect_err(&String::from_utf8_lossy(&body));
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }
}
