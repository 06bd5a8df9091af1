//! Messages that an aggregate sends.

use serde::Serialize;

/// A message that an aggregate sends: an event, or a request to another service.
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
/// Related messages can be the variants of one enum, each with its own type. In this example the types are `order.paid`
/// and `order.shipped`. The body is the whole enum, as `serde_json` writes it:
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
/// The [derive macro](macro@crate::Message) documents further options; [`Aggregate`](crate::Aggregate#by-hand) shows
/// how to implement both traits by hand.
///
/// The body that receivers get is the struct as `serde_json` writes it; [`deliver::json`](crate::deliver::json) lists
/// the exceptions. The body is stored in the same human-readable form; for example, a `uuid::Uuid` or an `IpAddr` is
/// stored as text.
pub trait Message: Serialize {
    /// The message's stable name, used as the routing key and the CloudEvents `type`, at most 255 bytes. The name is
    /// stored and sent, so it outlives the code; don't use a Rust type name. If the Rust type has [several
    /// names](Self::TYPES), `TYPE` is their common prefix.
    const TYPE: &'static str;

    /// All names that new messages of this Rust type can have. There are several names if
    /// [`message_type`](Self::message_type) depends on the value.
    const TYPES: &'static [&'static str] = &[Self::TYPE];

    /// Former names of the message. Entries and deliveries with these names are still decoded as this Rust type.
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

    /// Whether `name` is a current or former name of this message type.
    #[must_use]
    fn is_named(name: &str) -> bool {
        Self::TYPES.contains(&name) || Self::ALIASES.contains(&name)
    }
}

/// The header that carries [`Message::SCHEMA`] in an entry; on the wire this header becomes `cloudEvents:dataschema`.
pub(crate) const SCHEMA_HEADER: &str = "dataschema";
