//! Limits on what a save may add, checked before anything is written.

use mongodb::bson::{Bson, Document};

use super::error::Error;
use crate::{
    aggregate::outbox::PendingMessage,
    stored::{document_ref::DocumentRef, entry::Entry},
};

/// Maximum length of a message `type`, which becomes the routing key, an AMQP short string.
pub const MAX_TYPE_BYTES: usize = 255;
/// Maximum length of the key under which a message replaces earlier ones.
const MAX_KEY_BYTES: usize = 1 << 10;
/// The size of an empty document or array: a length field and a NUL.
const EMPTY_DOCUMENT: usize = 5;

/// Limits on an outbox. The defaults leave enough room in every document for the fields that deliveries write.
///
/// ```
/// let mut caps = document_outbox::Caps::default();
/// caps.entries = 100;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Caps {
    /// Maximum number of entries in one document's outbox. Default 1,000.
    pub entries: usize,
    /// Maximum encoded size of one message's payload. Default 1 MiB.
    pub payload_bytes: usize,
    /// Maximum encoded size of one message's headers. Default 16 KiB.
    pub header_bytes: usize,
    /// Maximum encoded size of the document with its outbox. Default 15 MiB; the server's limit is 16 MiB.
    pub document_bytes: usize,
    /// Maximum nesting depth of a payload. Default 80; the server's limit for a whole document is 100.
    pub depth: usize,
}

impl Default for Caps {
    fn default() -> Self {
        Self {
            entries: 1_000,
            payload_bytes: 1 << 20,
            header_bytes: 16 << 10,
            document_bytes: 15 << 20,
            depth: 80,
        }
    }
}

impl Caps {
    /// Checks one message. Returns its payload and the payload's size.
    pub(super) fn check_message<'a>(&self, message: &'a PendingMessage) -> Result<(&'a Bson, usize), Error> {
        let message_type = message.message_type;
        let payload = message.payload.as_ref().map_err(|reason| Error::Encode {
            what: format!("message `{message_type}`"),
            reason: reason.clone(),
        })?;
        if message_type.is_empty() || message_type.len() > MAX_TYPE_BYTES {
            return Err(Error::MessageType { message_type: message_type.into() });
        }
        if let Some(name) = message.headers.keys().find(|name| name.contains('\0')) {
            return Err(Error::Encode {
                what: format!("header {name:?} of message `{message_type}`"),
                reason: "a field name in BSON cannot contain a NUL character".into(),
            });
        }

        if let Some(key) = message.key.as_ref().filter(|key| key.len() > MAX_KEY_BYTES) {
            return Err(too_large(message, "key", key.len(), MAX_KEY_BYTES));
        }

        let headers: usize = message.headers.iter().map(|(name, value)| name.len() + value.len() + 7).sum();
        if headers > self.header_bytes {
            return Err(too_large(message, "headers", headers, self.header_bytes));
        }
        let bytes = encoded_bytes(payload);
        if bytes > self.payload_bytes {
            return Err(too_large(message, "payload", bytes, self.payload_bytes));
        }
        if !is_within(payload, self.depth) {
            return Err(Error::NestedTooDeep { message_type: message_type.into(), cap: self.depth });
        }
        Ok((payload, bytes))
    }

    /// Checks that the new entries fit into the outbox in addition to the entries that the outbox already has.
    pub(super) fn check_entries(
        &self,
        document: &DocumentRef,
        held: usize,
        sent: usize,
    ) -> Result<(), Error> {
        if sent > 0 && held + sent > self.entries {
            return Err(Error::OutboxFull { document: document.clone(), held, sent, cap: self.entries });
        }
        Ok(())
    }

    /// Checks the size that a document will have. A save that shrinks the document is always allowed.
    pub(super) fn check_document(
        &self,
        document: &DocumentRef,
        bytes: usize,
        was: usize,
    ) -> Result<(), Error> {
        if bytes > self.document_bytes && bytes > was {
            let document = document.clone();
            return Err(Error::DocumentTooLarge { document, bytes, cap: self.document_bytes });
        }
        Ok(())
    }
}

fn too_large(message: &PendingMessage, what: &'static str, bytes: usize, cap: usize) -> Error {
    Error::MessageTooLarge { message_type: message.message_type.into(), what, bytes, cap }
}

/// The BSON size of an entry with `created_at`, `available_at` and a payload of this size.
pub(super) fn entry_bytes(entry: &Entry, payload: usize) -> usize {
    let headers: usize =
        entry.headers.iter().map(|(name, value)| field_bytes(name, string_bytes(value))).sum();
    let mut bytes = EMPTY_DOCUMENT
        + field_bytes("id", 5 + 16)
        + field_bytes("type", string_bytes(&entry.message_type))
        + field_bytes("payload", payload)
        + field_bytes("created_at", 8)
        + field_bytes("available_at", 8);
    if !entry.headers.is_empty() {
        bytes += field_bytes("headers", EMPTY_DOCUMENT + headers);
    }
    if let Some(via) = &entry.via {
        bytes += field_bytes("via", string_bytes(via));
    }
    if let Some(key) = &entry.key {
        bytes += field_bytes("key", string_bytes(key));
    }
    bytes
}

/// The BSON size of an entry's claim with a value of this length.
pub(super) fn claim_bytes(token: usize) -> usize {
    field_bytes("claimed_by", 5 + token)
}

/// The BSON size of an array of documents of these sizes.
pub(super) fn array_bytes_of(items: impl Iterator<Item = usize>) -> usize {
    EMPTY_DOCUMENT + items.enumerate().map(|(place, bytes)| 2 + digits(place) + bytes).sum::<usize>()
}

/// The BSON size of a value, without its name.
pub(super) fn encoded_bytes(value: &Bson) -> usize {
    match value {
        Bson::Document(document) => document_bytes(document),
        Bson::Array(items) => array_bytes_of(items.iter().map(encoded_bytes)),
        Bson::String(text) | Bson::Symbol(text) | Bson::JavaScriptCode(text) => string_bytes(text),
        Bson::Binary(binary) => binary.bytes.len() + 5,
        Bson::Int32(_) => 4,
        Bson::ObjectId(_) => 12,
        Bson::Decimal128(_) => 16,
        Bson::Boolean(_) => 1,
        Bson::Null | Bson::Undefined | Bson::MinKey | Bson::MaxKey => 0,
        Bson::RegularExpression(regex) => regex.pattern.as_str().len() + regex.options.as_str().len() + 2,
        Bson::JavaScriptCodeWithScope(code) => code.code.len() + 9 + document_bytes(&code.scope),
        _ => 8,
    }
}

fn document_bytes(document: &Document) -> usize {
    EMPTY_DOCUMENT
        + document.iter().map(|(name, value)| field_bytes(name, encoded_bytes(value))).sum::<usize>()
}

/// The size of a field: its type byte, its name with a NUL, and its value.
fn field_bytes(name: &str, value: usize) -> usize {
    2 + name.len() + value
}

/// The size of a string: its length field, its text and a NUL.
fn string_bytes(text: &str) -> usize {
    5 + text.len()
}

/// Number of digits in this array index. In BSON, the digits are the field name of the element.
fn digits(place: usize) -> usize {
    place.checked_ilog10().map_or(1, |log| log as usize + 1)
}

fn is_within(value: &Bson, depth: usize) -> bool {
    match value {
        Bson::Document(_) | Bson::Array(_) | Bson::JavaScriptCodeWithScope(_) if depth == 0 => false,
        Bson::Document(document) => document.values().all(|value| is_within(value, depth - 1)),
        Bson::JavaScriptCodeWithScope(code) => code.scope.values().all(|value| is_within(value, depth - 1)),
        Bson::Array(items) => items.iter().all(|value| is_within(value, depth - 1)),
        _ => true,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use mongodb::bson::{DateTime, Regex, Uuid, doc, oid::ObjectId};

    use super::*;
    use crate::encoding::codec;

    #[allow(clippy::unnecessary_fallible_conversions, reason = "the conversion can fail in one BSON version")]
    fn regex(pattern: &str, options: &str) -> Bson {
        Bson::RegularExpression(Regex {
            pattern: pattern.try_into().unwrap(),
            options: options.try_into().unwrap(),
        })
    }

    /// A document with one value of each of most BSON types.
    pub(crate) fn many_values() -> Document {
        let items: Vec<Bson> = (0..120).map(Bson::Int32).collect();
        doc! {
            "s": "text ☃", "i": 1, "l": 1i64, "d": 0.5, "b": true, "n": Bson::Null, "u": Uuid::new(),
            "o": ObjectId::new(), "t": DateTime::now(), "a": items, "m": { "x": { "y": [] } },
            "r": regex("a+", "i"),
        }
    }

    #[test]
    fn the_computed_size_is_the_encoded_size() {
        let document = many_values();
        assert_eq!(document_bytes(&document), codec::encode(&document).unwrap().as_bytes().len());
    }

    #[test]
    fn a_header_name_with_a_nul_is_refused() {
        let mut outbox = crate::Outbox::default();
        outbox.send(crate::aggregate::outbox::tests::Paid(1)).header("tenant\0", "north");
        let sent: Vec<_> = outbox.iter().collect();
        let error = Caps::default().check_message(sent[0]).unwrap_err().to_string();
        assert!(error.contains(r#"header "tenant\0" of message `order.paid`"#), "{error}");
    }

    #[test]
    fn depth_counts_nested_levels() {
        let value = Bson::from(doc! { "a": [{}] });
        assert!(is_within(&value, 3));
        assert!(!is_within(&value, 2));
    }
}
