//! Turns messages into [CloudEvents] 1.0 in the binary mode of the [AMQP binding], with attributes as headers and the
//! payload as body.
//!
//! | on the wire | from the message |
//! |---|---|
//! | header `cloudEvents:specversion` | `1.0` |
//! | header `cloudEvents:id`, property `message_id` | the message's id |
//! | header `cloudEvents:type`, property `type`, routing key | the message's type |
//! | header `cloudEvents:source` | `/{database}/{collection}`, percent-encoded (RFC 3986, 3.3) |
//! | header `cloudEvents:subject` | the document's `_id` as [text](crate::DocumentRef::subject); left out if the text is empty or longer than 8 KiB |
//! | header `cloudEvents:time`, property `timestamp` | the time at which the message was sent; left out if the time is unknown or outside the years 0 to 9999 |
//! | header `cloudEvents:dataschema` | [`Message::SCHEMA`](crate::Message::SCHEMA); left out if the message has no schema |
//! | property `content_type` | `application/json` |
//! | body | the payload as [JSON](super::json) |
//! | every other header | the message's header of that name: `traceparent`, `tracestate` and the user's headers |
//!
//! All headers are strings. If receivers can't take a colon in a header's name, set the [prefix](AttributePrefix) to
//! `cloudEvents_`.
//!
//! A message header is dropped if it could be mistaken for a header of the library or the broker. Such headers are
//! those whose name begins with `cloudEvents:` or `cloudEvents_`, in upper or lower case, and headers that RabbitMQ
//! reserves for its own records or for another protocol's properties (`x-death` and similar, `x-received-from`,
//! `x-amqp-1.0-…`).
//!
//! [CloudEvents]: https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md
//! [AMQP binding]: https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/amqp-protocol-binding.md

use mongodb::bson::DateTime;

use super::{
    Envelope,
    json::{self, PayloadError, PayloadFormat},
};
use crate::{aggregate::message::SCHEMA_HEADER, amqp::Publication};

/// The prefixes of CloudEvents attributes, in upper or lower case.
pub(crate) const ATTRIBUTES: [&str; 2] = ["cloudEvents:", "cloudEvents_"];
/// The prefixes of other reserved header names, in upper or lower case.
const OF_THE_BROKER: [&str; 5] = [
    // RabbitMQ records dead-lettering in this header. If the record shows a cycle, RabbitMQ drops the message.
    "x-death",
    "x-first-death-",
    "x-last-death-",
    // RabbitMQ federation records the path of a message in this header, and drops messages that took too many hops.
    "x-received-from",
    // RabbitMQ derives properties for AMQP 1.0 receivers from headers with this prefix.
    "x-amqp-1.0-",
];
/// The longest routing key that AMQP 0-9-1 can carry.
const MAX_TYPE_BYTES: usize = 255;
/// Maximum length of a subject; a longer one is left out. All headers together must fit into one frame of 128 KiB, and
/// an `_id` can have megabytes.
const LONGEST_SUBJECT: usize = 8 << 10;

/// The prefix of attribute names. Both prefixes are reserved, whichever is in use.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, strum::EnumString, strum::IntoStaticStr, strum::VariantNames,
)]
pub enum AttributePrefix {
    /// `cloudEvents:`
    #[default]
    #[strum(serialize = "cloudEvents:")]
    Colon,
    /// `cloudEvents_`, which the binding allows for receivers that can't take a colon, such as JMS clients.
    #[strum(serialize = "cloudEvents_")]
    Underscore,
}

impl AttributePrefix {
    /// Returns the prefix as text.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// Why a message can never be published. The error text never includes any of the payload.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnpublishableError {
    /// The payload cannot be written as JSON.
    #[error(transparent)]
    Payload(#[from] PayloadError),
    /// The message type doesn't fit into a routing key.
    #[error("the message type has {0} bytes, but a routing key can have at most {MAX_TYPE_BYTES}")]
    TypeTooLong(usize),
}

/// Builds the publication of a message to an exchange.
///
/// # Errors
/// An error if no broker could ever accept the message.
pub fn publication(
    envelope: &Envelope,
    exchange: &str,
    format: PayloadFormat,
    prefix: AttributePrefix,
) -> Result<Publication, UnpublishableError> {
    let message_type = &envelope.message_type;
    if message_type.len() > MAX_TYPE_BYTES {
        return Err(UnpublishableError::TypeTooLong(message_type.len()));
    }
    Ok(Publication {
        exchange: exchange.to_owned(),
        routing_key: message_type.clone(),
        message_id: envelope.id.to_string(),
        message_type: Some(message_type.clone()),
        content_type: format.content_type().to_owned(),
        headers: headers(envelope, prefix),
        body: json::encode(&envelope.payload, format)?,
        timestamp: envelope.created_at.and_then(seconds),
        expiration: None,
    })
}

fn headers(envelope: &Envelope, prefix: AttributePrefix) -> Vec<(String, String)> {
    let prefix = prefix.as_str();
    let attribute = |name: &str, value: String| ([prefix, name].concat(), value);
    let required = [
        attribute("specversion", "1.0".to_owned()),
        attribute("id", envelope.id.to_string()),
        attribute("type", envelope.message_type.clone()),
        attribute("source", envelope.document.source()),
    ];
    let optional = [
        ("subject", Some(envelope.document.subject()).filter(|subject| subject.len() <= LONGEST_SUBJECT)),
        ("time", envelope.created_at.and_then(json::rfc3339)),
        ("dataschema", envelope.headers.get(SCHEMA_HEADER).cloned()),
    ];
    let optional = optional.into_iter().filter_map(|(name, value)| {
        let value = value.filter(|value| !value.is_empty())?;
        Some(attribute(name, value))
    });
    let plain = envelope
        .headers
        .iter()
        .filter(|(name, _)| *name != SCHEMA_HEADER && !is_reserved(name))
        .map(|(name, value)| (name.clone(), value.clone()));
    required.into_iter().chain(optional).chain(plain).collect()
}

fn is_reserved(name: &str) -> bool {
    ATTRIBUTES.iter().any(|prefix| after(prefix, name).is_some()) || is_of_the_broker(name)
}

/// Whether the broker reserves this header's name for its own records or another protocol's properties.
pub(crate) fn is_of_the_broker(name: &str) -> bool {
    OF_THE_BROKER.iter().any(|prefix| after(prefix, name).is_some())
}

/// Returns the rest of a header's name, if the name begins with this prefix in upper or lower case.
pub(crate) fn after<'a>(prefix: &str, name: &'a str) -> Option<&'a str> {
    let (start, rest) = name.split_at_checked(prefix.len())?;
    start.eq_ignore_ascii_case(prefix).then_some(rest)
}

fn seconds(date: DateTime) -> Option<u64> {
    u64::try_from(date.timestamp_millis().div_euclid(1000)).ok()
}

#[cfg(test)]
mod tests {
    use mongodb::{Namespace, bson::doc};
    use uuid::Uuid;

    use super::*;
    use crate::stored::document_ref::DocumentRef;

    fn envelope() -> Envelope {
        Envelope {
            document: DocumentRef::by_id(Namespace::new("shop", "orders"), "o-1"),
            id: Uuid::from_bytes([0x11; 16]),
            message_type: "order.placed".into(),
            payload: doc! { "total": 3 }.into(),
            headers: [("tenant".to_owned(), "north".to_owned())].into(),
            via: None,
            created_at: Some(DateTime::from_millis(1_700_000_000_120)),
            attempts: 0,
            delivered_to: vec![],
        }
    }

    fn headers_of(envelope: &Envelope) -> Vec<(String, String)> {
        publication(envelope, "x", PayloadFormat::Json, AttributePrefix::Colon).unwrap().headers
    }

    fn header(envelope: &Envelope, name: &str) -> Option<String> {
        let mut headers = headers_of(envelope).into_iter();
        headers.find(|(found, _)| found == name).map(|(_, value)| value)
    }

    #[test]
    fn a_header_cannot_pass_itself_off_as_an_attribute() {
        let mut envelope = envelope();
        for name in [
            "cloudEvents:id",
            "CLOUDEVENTS:source",
            "cloudEvents_id",
            "cloudevents_Type",
            "x-death",
            "X-First-Death-Queue",
            "x-received-from",
            "x-amqp-1.0-properties",
        ] {
            envelope.headers.insert(name.into(), "forged".into());
        }
        envelope.headers.insert("cloudEvents".into(), "plain".into());
        for prefix in [AttributePrefix::Colon, AttributePrefix::Underscore] {
            let headers = headers(&envelope, prefix);
            assert!(headers.iter().all(|(_, value)| value != "forged"));
        }
        assert_eq!(header(&envelope, "tenant").as_deref(), Some("north"));
        assert_eq!(header(&envelope, "cloudEvents").as_deref(), Some("plain"));
    }

    #[test]
    fn the_prefix_of_attributes_can_be_chosen() {
        let headers: std::collections::BTreeMap<_, _> =
            headers(&envelope(), AttributePrefix::Underscore).into_iter().collect();
        assert_eq!(headers["cloudEvents_id"], envelope().id.to_string());
        assert_eq!(headers["cloudEvents_specversion"], "1.0");
        assert!(headers.keys().all(|name| !name.starts_with("cloudEvents:")));
    }

    #[test]
    fn the_schema_is_an_attribute_only_once() {
        let mut envelope = envelope();
        envelope.headers.insert(SCHEMA_HEADER.into(), "https://example.test/s".into());
        assert_eq!(header(&envelope, "cloudEvents:dataschema").as_deref(), Some("https://example.test/s"));
        assert_eq!(header(&envelope, SCHEMA_HEADER), None);
    }

    #[test]
    fn absent_fields_of_foreign_entries_are_omitted() {
        let mut envelope = envelope();
        envelope.created_at = None;
        envelope.document = DocumentRef::by_id(envelope.document.namespace, "");
        assert_eq!(header(&envelope, "cloudEvents:time"), None);
        assert_eq!(header(&envelope, "cloudEvents:subject"), None);
        let of = |length| DocumentRef::by_id(envelope.document.namespace.clone(), "x".repeat(length));
        let (fits, long) = (of(LONGEST_SUBJECT), of(LONGEST_SUBJECT + 1));
        envelope.document = fits;
        assert!(header(&envelope, "cloudEvents:subject").is_some());
        envelope.document = long;
        assert_eq!(header(&envelope, "cloudEvents:subject"), None, "the attribute is left out");
        assert_eq!(
            publication(&envelope, "x", PayloadFormat::Json, AttributePrefix::Colon).unwrap().timestamp,
            None
        );
    }

    #[test]
    fn a_type_unfit_for_routing_keys_is_refused() {
        let mut envelope = envelope();
        envelope.message_type = "x".repeat(256);
        assert_eq!(
            publication(&envelope, "x", PayloadFormat::Json, AttributePrefix::Colon),
            Err(UnpublishableError::TypeTooLong(256))
        );
    }
}
