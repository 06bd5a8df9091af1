//! What an aggregate sends.

use serde::Serialize;

/// A message: something that happened to an aggregate, or that it asks for.
///
/// ```
/// use document_outbox::Message;
///
/// #[derive(serde::Serialize, serde::Deserialize)]
/// struct OrderPlaced {
///     order: String,
/// }
///
/// impl Message for OrderPlaced {
///     const TYPE: &'static str = "order.placed";
/// }
/// ```
///
/// The body that receivers get is what `serde_json` writes for the struct; [`deliver::json`](crate::deliver::json) lists the
/// exceptions. It is stored in the same human-readable form: a `uuid::Uuid` and an `IpAddr` as their text.
pub trait Message: Serialize {
    /// The message's stable name: the routing key and the CloudEvents `type`. It is stored and sent, so it
    /// outlives the code: never a language's type name. At most 255 bytes.
    const TYPE: &'static str;

    /// Names the message had before. Entries and deliveries under these names are decoded as this type.
    const ALIASES: &'static [&'static str] = &[];

    /// Where the payload's schema is described, sent as the CloudEvents `dataschema`.
    const SCHEMA: Option<&'static str> = None;

    /// Whether `name` is this message's name, or was.
    #[must_use]
    fn is_named(name: &str) -> bool {
        name == Self::TYPE || Self::ALIASES.contains(&name)
    }
}

/// The header that carries [`Message::SCHEMA`] in an entry; on the wire it becomes `cloudEvents:dataschema`.
pub(crate) const SCHEMA_HEADER: &str = "dataschema";
