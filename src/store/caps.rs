//! Bounds on what a save may add, checked before anything is written.

use mongodb::bson::{Bson, Document};

use crate::{aggregate::outbox::PendingMessage, store::error::Error};

/// Bounds on an outbox. The defaults leave every document room for its deliveries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caps {
    /// Entries in one document's outbox. Default 1,000.
    pub entries: usize,
    /// Encoded bytes of one message's payload. Default 1 MiB.
    pub payload_bytes: usize,
    /// Encoded bytes of one message's headers. Default 16 KiB.
    pub header_bytes: usize,
    /// Encoded bytes of the document with its outbox. Default 15 MiB; the server takes 16 MiB.
    pub document_bytes: usize,
    /// Levels of nesting in a payload. Default 80; the server takes 100 in all.
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

/// The longest `type`: it is the routing key, an AMQP short string.
pub const MAX_TYPE_BYTES: usize = 255;

impl Caps {
    /// Checks one message and gives its payload.
    pub(crate) fn check_message<'a>(&self, staged: &'a PendingMessage) -> Result<&'a Bson, Error> {
        let message_type = staged.message_type;
        let payload = staged.payload.as_ref().map_err(|reason| Error::Encode {
            what: format!("message `{message_type}`"),
            reason: reason.clone(),
        })?;
        if message_type.is_empty() || message_type.len() > MAX_TYPE_BYTES {
            return Err(Error::MessageType { message_type: message_type.into() });
        }
        if let Some(name) = staged.headers.keys().find(|name| name.contains('\0')) {
            return Err(Error::Encode {
                what: format!("header {name:?} of message `{message_type}`"),
                reason: "a name in BSON cannot hold a NUL character".into(),
            });
        }
        let headers: usize = staged.headers.iter().map(|(name, value)| name.len() + value.len() + 7).sum();
        let too_large =
            |what, bytes, cap| Error::MessageTooLarge { message_type: message_type.into(), what, bytes, cap };
        let bytes = encoded_bytes(payload);
        if bytes > self.payload_bytes {
            return Err(too_large("payload", bytes, self.payload_bytes));
        }
        if headers > self.header_bytes {
            return Err(too_large("headers", headers, self.header_bytes));
        }
        if !is_within(payload, self.depth) {
            return Err(Error::NestedTooDeep { message_type: message_type.into(), cap: self.depth });
        }
        Ok(payload)
    }
}

/// How many bytes a value takes in BSON, without its name.
pub(crate) fn encoded_bytes(value: &Bson) -> usize {
    match value {
        Bson::Document(document) => document_bytes(document),
        Bson::Array(items) => array_bytes(items),
        Bson::String(text) | Bson::Symbol(text) | Bson::JavaScriptCode(text) => text.len() + 5,
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

/// How many bytes an array of these takes in BSON.
pub(crate) fn array_bytes(items: &[Bson]) -> usize {
    let digits = |index: usize| index.checked_ilog10().map_or(1, |log| log as usize + 1);
    let items = items.iter().enumerate();
    5 + items.map(|(index, item)| 2 + digits(index) + encoded_bytes(item)).sum::<usize>()
}

/// How many bytes a document takes in BSON.
pub(crate) fn document_bytes(document: &Document) -> usize {
    5 + document.iter().map(|(name, value)| 2 + name.len() + encoded_bytes(value)).sum::<usize>()
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
mod tests {
    use mongodb::bson::{DateTime, Regex, Uuid, doc, oid::ObjectId};

    use super::*;
    use crate::encoding::codec;

    #[allow(clippy::unnecessary_fallible_conversions, reason = "fallible in one of the BSON versions")]
    fn regex(pattern: &str, options: &str) -> Bson {
        Bson::RegularExpression(Regex {
            pattern: pattern.try_into().unwrap(),
            options: options.try_into().unwrap(),
        })
    }

    #[test]
    fn the_computed_size_is_the_encoded_size() {
        let items: Vec<Bson> = (0..120).map(Bson::Int32).collect();
        let document = doc! {
            "s": "text ☃", "i": 1, "l": 1i64, "d": 0.5, "b": true, "n": Bson::Null, "u": Uuid::new(),
            "o": ObjectId::new(), "t": DateTime::now(), "a": items, "m": { "x": { "y": [] } },
            "r": regex("a+", "i"),
        };
        assert_eq!(document_bytes(&document), codec::encode(&document).unwrap().as_bytes().len());
    }

    #[test]
    fn a_header_name_with_a_nul_is_refused() {
        let mut outbox = crate::Outbox::default();
        outbox.send(crate::aggregate::outbox::tests::Paid(1)).header("tenant\0", "north");
        let staged: Vec<_> = outbox.iter().collect();
        let error = Caps::default().check_message(staged[0]).unwrap_err().to_string();
        assert!(error.contains(r#"header "tenant\0" of message `order.paid`"#), "{error}");
    }

    #[test]
    fn depth_counts_levels() {
        let value = Bson::from(doc! { "a": [{}] });
        assert!(is_within(&value, 3));
        assert!(!is_within(&value, 2));
    }
}
