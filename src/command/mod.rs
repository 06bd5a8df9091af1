//! The command `ProcessDocumentMessages`, a hint that a document's outbox should be processed.
//!
//! A command only names a document and grants no rights, so it does no damage if it is lost, repeated, stale or
//! forged. Commands are the only kind of message between rescuer, inline dispatcher and dispatcher worker.
//!
//! ```json
//! {"database":"shop","collection":"orders","document_key":{"_id":"o-1"},"key":"EgAAAAJfaWQABAAAAG8tMQAA","reason":"stream"}
//! ```
//!
//! `key` is the document key as BSON in base64, so that every `_id` that MongoDB stores survives. `document_key` is
//! the same key as canonical extended JSON, for people and for older dispatchers. The field `document_key` is left out
//! if extended JSON would change the key, or would make the command too long for older dispatchers. A reader uses
//! `key` if it is present.
//!
//! `cluster` names the MongoDB cluster that the document is in, by the UUID that this cluster has assigned to the
//! collection of positions in the state database. A command without this field may be from any cluster.

#[cfg(feature = "rabbitmq")]
pub(crate) mod sender;
#[cfg(not(feature = "rabbitmq"))]
#[path = "unsent.rs"]
pub(crate) mod sender;

use std::time::Duration;

use mongodb::{
    Namespace,
    bson::{Bson, Document, RawDocumentBuf},
};
use serde::{Deserialize, Serialize, de::IgnoredAny};
use uuid::Uuid;

use crate::{
    encoding::{
        bytes::{self, kind},
        codec, extended_json,
    },
    stored::document_ref::DocumentRef,
};

/// The AMQP `type` of a command.
pub const COMMAND_TYPE: &str = "ProcessDocumentMessages";
/// The default exchange for commands, which is direct and durable.
pub const COMMANDS_EXCHANGE: &str = "outbox.commands";
/// The routing key of every command.
pub const COMMANDS_ROUTING_KEY: &str = "process-document-messages";
/// The default queue that dispatcher workers consume, a quorum queue with a delivery limit.
pub const COMMANDS_QUEUE: &str = "outbox.process-document-messages";
/// The number of deliveries after which the broker drops a command. The sweep then sends another command.
pub const COMMANDS_DELIVERY_LIMIT: u32 = 20;
/// The time after which the broker drops a command that no dispatcher has taken. The sweep then sends another command.
///
/// This lifetime is more than twice the longest pause between two commands that the sweep sends for one document (2
/// min). So the queue always contains at least one command for a document that is stuck, and at most four.
pub const COMMAND_LIFETIME: Duration = Duration::from_mins(5);
/// Maximum size of a command's body, below the 16 MiB that publishers accept. A longer body is not sent, and a reader
/// refuses it without decoding it. A document key of 11 MB fits.
pub const MAX_COMMAND_BYTES: usize = 15 << 20;
/// Maximum size of a readable key, and of a body with a readable key. Older dispatchers refuse a body that is longer
/// than this.
const MAX_READABLE_BYTES: usize = 64 << 10;
/// Maximum number of nested levels in a key. The server allows documents with up to 180 levels.
const MAX_KEY_DEPTH: usize = 200;
/// Maximum number of nested levels in a readable key; older dispatchers refuse keys with more levels.
const MAX_READABLE_DEPTH: usize = 32;

/// Why a command was sent.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Hash,
    Serialize,
    Deserialize,
    strum::Display,
    strum::IntoStaticStr,
    strum::VariantArray,
)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum Reason {
    /// The change stream showed a document whose outbox was still filled after the delay.
    Stream,
    /// The sweep found a due entry.
    Sweep,
    /// The inline dispatcher handed a failed delivery to a worker.
    Handoff,
    /// An operator requested the command.
    Operator,
    /// A reason that this version doesn't know.
    #[serde(other)]
    Other,
}

impl Reason {
    /// Returns the label value in metrics.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// The command to process one document's outbox.
#[derive(Debug, Clone, PartialEq)]
pub struct ProcessDocumentMessages {
    /// The document.
    pub document: DocumentRef,
    /// Why the command was sent.
    pub reason: Reason,
    /// The cluster of the document, if the sender knows it. `None` is treated as the reader's own cluster.
    pub cluster: Option<Uuid>,
}

/// Why a command is refused. The error text includes only names from the command's content.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// The body is longer than a command can be.
    #[error("the body has {0} bytes, but a command can have at most {MAX_COMMAND_BYTES}")]
    TooLong(usize),
    /// The body is not the JSON of a command.
    #[error("not a command: {0}")]
    Malformed(String),
    /// The namespace is not a database and a collection.
    #[error("not a namespace: database and collection must be non-empty names without `$` or NUL")]
    BadNamespace,
    /// The key is not a document key.
    #[error("not a document key: {0}")]
    BadKey(&'static str),
    /// The cluster is not a UUID.
    #[error("`cluster` is not a UUID")]
    BadCluster,
}

#[derive(Serialize)]
struct SentCommand<'a> {
    database: &'a str,
    collection: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    document_key: Option<serde_json::Value>,
    key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<String>,
    reason: Reason,
}

/// A received command whose readable key has type `K`.
#[derive(Deserialize)]
struct ReceivedCommand<K> {
    database: String,
    collection: String,
    document_key: Option<K>,
    key: Option<String>,
    cluster: Option<String>,
    reason: Reason,
}

type Readable = serde_json::Map<String, serde_json::Value>;

impl ProcessDocumentMessages {
    /// Creates a command for this document. The command is valid in any cluster.
    pub fn new(document: DocumentRef, reason: Reason) -> Self {
        Self { document, reason, cluster: None }
    }

    /// Sets the cluster that the document is in.
    #[must_use]
    pub fn of_cluster(mut self, cluster: Option<Uuid>) -> Self {
        self.cluster = cluster;
        self
    }

    /// Encodes the body.
    pub fn to_json(&self) -> Vec<u8> {
        let mut wire = SentCommand {
            database: &self.document.namespace.db,
            collection: &self.document.namespace.coll,
            document_key: readable(&self.document),
            key: codec::base64(self.document.key().as_bytes()),
            cluster: self.cluster.map(|cluster| cluster.to_string()),
            reason: self.reason,
        };
        let body = serde_json::to_vec(&wire).unwrap_or_default();
        if body.len() <= MAX_READABLE_BYTES || wire.document_key.is_none() {
            return body;
        }

        wire.document_key = None;
        serde_json::to_vec(&wire).unwrap_or_default()
    }

    /// Decodes a body and checks every field, so that the key can't act as a query operator. Unknown fields and unknown
    /// reasons are ignored, because they may come from a later version.
    ///
    /// # Errors
    /// [`CommandError`], which names what is wrong without quoting the body.
    pub fn from_json(body: &[u8]) -> Result<Self, CommandError> {
        if body.len() > MAX_COMMAND_BYTES {
            return Err(CommandError::TooLong(body.len()));
        }
        if body.len() <= MAX_READABLE_BYTES {
            let wire: ReceivedCommand<Readable> =
                serde_json::from_slice(body).map_err(|error| malformed(&error))?;
            return wire.command(key_of_readable);
        }
        let wire: ReceivedCommand<IgnoredAny> =
            serde_json::from_slice(body).map_err(|error| malformed(&error))?;
        wire.command(|_| Err(CommandError::BadKey("longer than 64 KiB without being in `key`")))
    }
}

impl<K> ReceivedCommand<K> {
    fn command(
        self,
        of_readable: impl Fn(K) -> Result<RawDocumentBuf, CommandError>,
    ) -> Result<ProcessDocumentMessages, CommandError> {
        if !is_database(&self.database) || !is_name(&self.collection) {
            return Err(CommandError::BadNamespace);
        }
        let key = match (self.key, self.document_key) {
            (Some(key), _) => key_of_base64(&key)?,
            (None, Some(readable)) => of_readable(readable)?,
            (None, None) => return Err(CommandError::BadKey("neither `key` nor `document_key`")),
        };
        let cluster = match self.cluster {
            Some(text) => Some(Uuid::parse_str(&text).map_err(|_| CommandError::BadCluster)?),
            None => None,
        };

        let namespace = Namespace::new(self.database, self.collection);
        let document = DocumentRef::new(namespace, key);
        Ok(ProcessDocumentMessages { document, reason: self.reason, cluster })
    }
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(['$', '\0'])
}

fn is_database(name: &str) -> bool {
    is_name(name) && !name.contains(['.', '/', '\\', ' ', '"'])
}

/// Describes the place and kind of a JSON error. serde's own text is not used, because it could quote values.
fn malformed(error: &serde_json::Error) -> CommandError {
    let what = match error.classify() {
        serde_json::error::Category::Data => "a field is missing or of the wrong type",
        _ => "the JSON does not parse",
    };
    CommandError::Malformed(format!("{what} (line {}, column {})", error.line(), error.column()))
}

/// Returns the key as canonical extended JSON. Returns `None` if this form would be read back as a different key, or if
/// an older reader would refuse it.
fn readable(document: &DocumentRef) -> Option<serde_json::Value> {
    let key = document.key();
    // The base64 form alone is already too long for older readers.
    if key.as_bytes().len() > MAX_READABLE_BYTES {
        return None;
    }
    let json = extended_json::canonical(&Bson::Document(document.plain_key()?)).ok()?;
    let again = key_of_readable(json.as_object()?.clone()).ok()?;
    (again.as_bytes() == key.as_bytes()).then_some(json)
}

fn key_of_base64(text: &str) -> Result<RawDocumentBuf, CommandError> {
    let bytes = codec::from_base64(text).ok_or(CommandError::BadKey("`key` is not base64"))?;
    let key = RawDocumentBuf::from_bytes(bytes).map_err(|_| CommandError::BadKey("`key` is not BSON"))?;
    if !bytes::is_sound(&key, MAX_KEY_DEPTH) {
        return Err(CommandError::BadKey("`key` is not BSON, or nested too deep"));
    }
    // Check only the top level. Deeper levels can't act as an expression, because a filter compares sub-documents with
    // `$eq`.
    if bytes::elements(&key).any(|element| element.name.starts_with(b"$")) {
        return Err(CommandError::BadKey("a field name begins with `$`"));
    }
    match bytes::element(&key, "_id").map(|id| id.kind) {
        None => Err(CommandError::BadKey("`_id` is missing")),
        Some(kind::ARRAY | kind::REGULAR_EXPRESSION | kind::UNDEFINED) => {
            Err(CommandError::BadKey("`_id` has a type that MongoDB does not allow for it"))
        }
        Some(_) => Ok(key),
    }
}

fn key_of_readable(json: Readable) -> Result<RawDocumentBuf, CommandError> {
    if json.keys().any(|name| name.starts_with('$')) {
        return Err(CommandError::BadKey("a field name begins with `$`"));
    }
    let mut key = Document::new();
    for (name, value) in json {
        let value = extended_json::read(value).ok_or(CommandError::BadKey("not extended JSON"))?;
        check_value(&value, 0)?;
        key.insert(name, value);
    }
    match key.get("_id") {
        None => Err(CommandError::BadKey("`_id` is missing")),
        Some(Bson::Array(_) | Bson::RegularExpression(_) | Bson::Undefined) => {
            Err(CommandError::BadKey("`_id` has a type that MongoDB does not allow for it"))
        }
        Some(_) => codec::encode(&key).map_err(|_| CommandError::BadKey("not a document key")),
    }
}

/// Refuses values that a query could interpret as an operator, at any depth.
fn check_value(value: &Bson, depth: usize) -> Result<(), CommandError> {
    if depth > MAX_READABLE_DEPTH {
        return Err(CommandError::BadKey("nested too deep"));
    }
    match value {
        Bson::Document(document) => {
            for (name, value) in document {
                if name.starts_with('$') {
                    return Err(CommandError::BadKey("a field name begins with `$`"));
                }
                check_value(value, depth + 1)?;
            }
            Ok(())
        }
        Bson::Array(items) => items.iter().try_for_each(|item| check_value(item, depth + 1)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use mongodb::bson::{self, DateTime, doc, oid::ObjectId};

    use super::*;
    use crate::encoding::bytes::Builder;

    fn command(id: impl Into<Bson>) -> ProcessDocumentMessages {
        let document = DocumentRef::by_id(Namespace::new("shop", "orders.archive"), id);
        ProcessDocumentMessages::new(document, Reason::Stream)
    }

    fn read_back(command: &ProcessDocumentMessages) -> Result<ProcessDocumentMessages, CommandError> {
        ProcessDocumentMessages::from_json(&command.to_json())
    }

    fn json(command: &ProcessDocumentMessages) -> serde_json::Value {
        serde_json::from_slice(&command.to_json()).unwrap()
    }

    /// Decodes the body as an older reader does, without the field `key`, which such a reader doesn't know.
    fn read_by_a_reader_of_before(
        command: &ProcessDocumentMessages,
    ) -> Result<ProcessDocumentMessages, CommandError> {
        let mut json = json(command);
        json.as_object_mut().unwrap().remove("key");
        ProcessDocumentMessages::from_json(json.to_string().as_bytes())
    }

    #[test]
    fn every_type_of_id_survives_the_wire() {
        let ids: Vec<Bson> = vec![
            "o-1".into(),
            "{\"$oid\": \"x\"} \u{0} ☃".into(),
            ObjectId::new().into(),
            bson::Uuid::new().into(),
            Bson::Int32(1),
            Bson::Int64(i64::MAX),
            Bson::Double(0.1),
            Bson::Double(-0.0),
            Bson::Double(f64::INFINITY),
            Bson::Boolean(true),
            Bson::Null,
            Bson::MinKey,
            DateTime::from_millis(-5).into(),
            Bson::Decimal128(mongodb::bson::Decimal128::from_bytes([7; 16])),
            Bson::JavaScriptCode("f".into()),
            doc! { "tenant": 1, "nested": { "list": [1, 2] } }.into(),
            doc! { "a.b": 1, "": 2 }.into(),
        ];
        for id in ids {
            let sent = command(id);
            assert_eq!(read_back(&sent), Ok(sent.clone()));
            assert_eq!(read_by_a_reader_of_before(&sent), Ok(sent));
        }
    }

    /// Covers names that readers of extended JSON interpret, depth and length that older readers refuse, and bytes that
    /// are not UTF-8.
    #[test]
    fn an_id_without_readable_form_keeps_its_bytes() {
        let mut deep = codec::encode(&doc! { "a": 1 }).unwrap();
        for _ in 0..150 {
            let mut outer = Builder::new();
            outer.push_document(b"a", &deep);
            deep = outer.build();
        }
        let mut nested = Builder::new();
        nested.push_document(b"_id", &deep);
        let mut not_utf_8 = codec::encode(&doc! { "_id": "??" }).unwrap().into_bytes();
        let place = not_utf_8.len() - 4;
        not_utf_8[place..place + 2].copy_from_slice(b"\xFF\xFE");
        let not_utf_8 = RawDocumentBuf::from_bytes(not_utf_8).unwrap();
        let orders = Namespace::new("shop", "orders");
        let unreadable = [
            command(doc! { "$ref": "customers", "$id": 7 }),
            command(doc! { "$oid": "6555a1b2c3d4e5f601234567" }),
            command(doc! { "a": { "$numberLong": "1" } }),
            command("x".repeat(100_000)),
            command("x".repeat(11 << 20)),
            ProcessDocumentMessages::new(DocumentRef::new(orders.clone(), nested.build()), Reason::Sweep),
            ProcessDocumentMessages::new(DocumentRef::new(orders, not_utf_8), Reason::Sweep),
        ];
        for sent in unreadable {
            assert_eq!(json(&sent).get("document_key"), None, "{sent:?}");
            assert!(read_back(&sent) == Ok(sent.clone()), "{sent:?}");
        }
    }

    #[test]
    fn the_wire_is_the_documented_json() {
        let text = String::from_utf8(command(7i64).to_json()).unwrap();
        let fields =
            r#""database":"shop","collection":"orders.archive","document_key":{"_id":{"$numberLong":"7"}}"#;
        let key = "EgAAABJfaWQABwAAAAAAAAAA";
        assert_eq!(text, format!(r#"{{{fields},"key":"{key}","reason":"stream"}}"#));
        let cluster = Uuid::from_bytes([7; 16]);
        let text = String::from_utf8(command(7i64).of_cluster(Some(cluster)).to_json()).unwrap();
        assert_eq!(text, format!(r#"{{{fields},"key":"{key}","cluster":"{cluster}","reason":"stream"}}"#));
    }

    #[test]
    fn an_older_command_without_cluster_is_read() {
        let before = br#"{"database":"shop","collection":"orders.archive","document_key":{"_id":"o-1"},"reason":"stream"}"#;
        assert_eq!(ProcessDocumentMessages::from_json(before), Ok(command("o-1")));
    }

    #[test]
    fn commands_tolerate_unknown_fields_and_reasons() {
        let later = br#"{"version":2,"database":"shop","collection":"c","document_key":{"_id":1},"reason":"because","hints":[{}]}"#;
        let command = ProcessDocumentMessages::from_json(later).unwrap();
        assert_eq!((command.document.id(), command.reason), (Bson::Int32(1), Reason::Other));
    }

    #[test]
    fn malformed_and_huge_commands_are_refused_without_quoting() {
        let key = |json: &str| {
            format!(r#"{{"database":"shop","collection":"c","document_key":{json},"reason":"stream"}}"#)
                .into_bytes()
        };
        let in_bytes = |text: &str| {
            format!(r#"{{"database":"shop","collection":"c","key":"{text}","reason":"stream"}}"#).into_bytes()
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
            br#"{"database":"shop","collection":"c","reason":"stream"}"#.to_vec(),
            br#"{"database":"shop","collection":"c","document_key":{"_id":1},"cluster":"secret","reason":"stream"}"#.to_vec(),
            key(&format!(r#"{{"_id":"{}"}}"#, "x".repeat(MAX_READABLE_BYTES))),
            in_bytes("secret"),
            in_bytes(&codec::base64(b"secret")),
            in_bytes(&codec::base64(&[5, 0, 0, 0, 0])),
            in_bytes(&codec::base64(&[7, 0, 0, 0, 0x55, 0, 0])),
            in_bytes(&codec::base64(codec::encode(&doc! { "_id": [1] }).unwrap().as_bytes())),
            in_bytes(&codec::base64(codec::encode(&doc! { "_id": 1, "$where": "secret" }).unwrap().as_bytes())),
        ];
        for body in refused {
            let error = ProcessDocumentMessages::from_json(&body).expect_err(&String::from_utf8_lossy(&body));
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }
}
