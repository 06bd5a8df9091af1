//! Messages that an aggregate sends.

use serde::Serialize;

/// A message: an event of an aggregate, or a request.
///
/// ```
/// use document_outbox::Message;
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize, Message)]
/// #[message(type = "order.placed")]
/// struct OrderPlaced {
///     order: String,
/// }
/// ```
///
/// Messages that belong together can be an enum, with a type for each variant; here `order.paid` and `order.shipped`. The body is
/// the whole enum, as `serde_json` writes it:
///
/// ```
/// # use document_outbox::Message;
/// # use serde::{Deserialize, Serialize};
/// #[derive(Serialize, Deserialize, Message)]
/// #[message(prefix = "order")]
/// enum OrderEvent {
///     Paid { order: String },
///     Shipped { order: String },
/// }
/// # let event = OrderEvent::Paid { order: "o-1".into() };
/// assert_eq!(event.message_type(), "order.paid");
/// ```
///
/// The [derive](macro@crate::Message) has more; [`Aggregate`](crate::Aggregate#by-hand) shows both traits without it.
///
/// The body that receivers get is the struct as `serde_json` writes it;
/// [`deliver::json`](crate::deliver::json) lists the exceptions. It is stored in the same human-readable
/// form: a `uuid::Uuid` and an `IpAddr` as their text.
pub trait Message: Serialize {
    /// The message's stable name: the routing key and the CloudEvents `type`. It is stored and sent, so it
    /// outlives the code: don't use a Rust type name. At most 255 bytes. For messages with
    /// [several](Self::TYPES), their common prefix.
    const TYPE: &'static str;

    /// All names that messages of this Rust type have today: more than one if
    /// [`message_type`](Self::message_type) differs from value to value.
    const TYPES: &'static [&'static str] = &[Self::TYPE];

    /// Names the message had before. Entries and deliveries under these names are decoded as this type.
    const ALIASES: &'static [&'static str] = &[];

    /// The URI of the payload's schema, sent as the CloudEvents `dataschema`.
    const SCHEMA: Option<&'static str> = None;

    /// The name of this message: one of [`TYPES`](Self::TYPES).
    #[must_use]
    fn message_type(&self) -> &'static str {
        Self::TYPE
    }

    /// The URI of the schema of this message's payload.
    #[must_use]
    fn schema(&self) -> Option<&'static str> {
        Self::SCHEMA
    }

    /// Whether `name` is or was the name of such a message.
    #[must_use]
    fn is_named(name: &str) -> bool {
        Self::TYPES.contains(&name) || Self::ALIASES.contains(&name)
    }
}

/// The header that carries [`Message::SCHEMA`] in an entry; on the wire it becomes `cloudEvents:dataschema`.
pub(crate) const SCHEMA_HEADER: &str = "dataschema";
