//! The outbox, a field of an aggregate that collects the messages sent since the aggregate was loaded.

use std::{collections::BTreeMap, time::Duration};

use mongodb::bson::{Bson, DateTime, Uuid};
use serde::de::DeserializeOwned;

use crate::{
    aggregate::message::{Message, SCHEMA_HEADER},
    encoding::payload,
    stored::ids::new_id,
};

/// Collects the messages that an aggregate sends. Add an outbox as a field of your own struct, marked `#[serde(skip)]`.
///
/// Sending writes nothing: the messages are written by the save, in the same update as the aggregate's other
/// fields. An outbox is never read from a document; it does not contain the entries of earlier saves.
///
/// A unit test can read the sent messages from the outbox, without a server:
///
/// ```
/// # use document_outbox::{Message, Outbox};
/// # #[derive(serde::Serialize, serde::Deserialize, Message, PartialEq, Debug)]
/// # #[message(type = "order.paid")]
/// # struct OrderPaid { order: String }
/// let mut outbox = Outbox::default();
/// outbox.send(OrderPaid { order: "o-1".into() }).header("tenant", "north");
///
/// assert_eq!(outbox.types(), ["order.paid"]);
/// assert_eq!(outbox.sent::<OrderPaid>(), [OrderPaid { order: "o-1".into() }]);
///
/// let hour = std::time::Duration::from_secs(3600);
/// outbox.send_after(OrderPaid { order: "o-2".into() }, hour);
/// assert_eq!(outbox.iter().last().unwrap().due(), document_outbox::Due::After(hour));
/// ```
///
/// Two outboxes are equal if they have the same messages in the same order with the same due times; message ids are not
/// compared.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outbox {
    pending: Vec<PendingMessage>,
}

/// A message that was sent and will be stored by the next save.
#[derive(Debug, Clone)]
pub struct PendingMessage {
    pub(crate) id: Uuid,
    pub(crate) message_type: &'static str,
    pub(crate) payload: Result<Bson, String>,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) due: Due,
}

/// When a message may be delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Due {
    /// As soon as the save has stored the message.
    #[default]
    Now,
    /// Not before this time.
    At(DateTime),
    /// Not before this much time has passed since the save.
    After(Duration),
}

impl Outbox {
    /// Sends a message with the next save. This call never fails. If the payload cannot be encoded, the save fails
    /// instead, before anything is written. Examples are an integer that doesn't fit a signed 64-bit integer, a field
    /// name that occurs twice or contains a NUL character, and a map key that JSON can't represent as a string.
    ///
    /// Use the returned handle to add headers and to get the message's id.
    #[allow(clippy::needless_pass_by_value, reason = "a sent message belongs to the outbox")]
    pub fn send<M: Message>(&mut self, message: M) -> &mut PendingMessage {
        let headers = message
            .schema()
            .map(|schema| (SCHEMA_HEADER.to_owned(), schema.to_owned()))
            .into_iter()
            .collect();
        self.pending.push(PendingMessage {
            id: new_id(),
            message_type: message.message_type(),
            payload: payload::encode(&message).map_err(|error| error.to_string()),
            headers,
            due: Due::Now,
        });
        let last = self.pending.len() - 1;
        &mut self.pending[last]
    }

    /// Sends a message with the next save and delays its delivery until `at`, by the server's clock. `at` is a
    /// [`SystemTime`](std::time::SystemTime) or a BSON date; a past time counts as now.
    ///
    /// The message is stored with the document like any other. Once the message is due, the rescuer's sweep finds it,
    /// up to one `sweep_interval` later. Until then the message doesn't block the document's other messages; after
    /// that it keeps the order in which the document's messages were sent. While the message waits,
    /// [`Store::delete`](crate::Store::delete) doesn't delete the document, and the document's other messages are
    /// delivered more slowly.
    pub fn send_at<M: Message>(&mut self, message: M, at: impl Into<DateTime>) -> &mut PendingMessage {
        let sent = self.send(message);
        sent.due = Due::At(at.into());
        sent
    }

    /// Like [`send_at`](Self::send_at), but the delay is counted from the save, or from [`stage`](crate::Store::stage)
    /// if you write your own update.
    pub fn send_after<M: Message>(&mut self, message: M, after: Duration) -> &mut PendingMessage {
        let sent = self.send(message);
        sent.due = Due::After(after);
        sent
    }

    /// The sent messages of one type, decoded as a handler would receive them. Messages that can't be decoded are left
    /// out.
    #[must_use]
    pub fn sent<M: Message + DeserializeOwned>(&self) -> Vec<M> {
        let of_type = self.pending.iter().filter(|sent| M::is_named(sent.message_type));
        of_type.filter_map(|sent| payload::decode(sent.payload.as_ref().ok()?).ok()).collect()
    }

    /// The types of the sent messages, in order.
    #[must_use]
    pub fn types(&self) -> Vec<&'static str> {
        self.pending.iter().map(|sent| sent.message_type).collect()
    }

    /// The sent messages, in order.
    pub fn iter(&self) -> impl Iterator<Item = &PendingMessage> {
        self.pending.iter()
    }

    /// Number of messages sent.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pending.len()
    }

    /// Whether no messages were sent.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// Takes the sent messages, leaving the outbox empty.
    pub(crate) fn take(&mut self) -> Vec<PendingMessage> {
        std::mem::take(&mut self.pending)
    }
}

impl PendingMessage {
    /// Adds a header, or replaces the header of that name. Headers are sent with the message and shown to operators, so
    /// don't put secrets in them.
    ///
    /// The header `dataschema` carries [`Message::SCHEMA`], so a header with that name is ignored.
    /// [`cloudevents`](crate::deliver::cloudevents) lists the names that are reserved on the wire.
    pub fn header(&mut self, name: impl Into<String>, value: impl Into<String>) -> &mut Self {
        let name = name.into();
        if name != SCHEMA_HEADER {
            self.headers.insert(name, value.into());
        }
        self
    }

    /// The message's id in the outbox, on the wire, and in the receiver's inbox.
    #[must_use]
    pub fn id(&self) -> uuid::Uuid {
        uuid::Uuid::from_bytes(self.id.bytes())
    }

    /// The message's type.
    #[must_use]
    pub fn message_type(&self) -> &'static str {
        self.message_type
    }

    /// When the message may be delivered.
    #[must_use]
    pub fn due(&self) -> Due {
        self.due
    }

    /// The headers added so far.
    #[must_use]
    pub fn headers(&self) -> &BTreeMap<String, String> {
        &self.headers
    }
}

impl PartialEq for PendingMessage {
    fn eq(&self, other: &Self) -> bool {
        (self.message_type, &self.payload, &self.headers, self.due)
            == (other.message_type, &other.payload, &other.headers, other.due)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use serde::{Deserialize, Serialize, Serializer};

    use super::*;

    #[derive(Serialize, Deserialize, Debug, PartialEq)]
    pub(crate) struct Paid(pub(crate) i32);
    impl Message for Paid {
        const TYPE: &'static str = "order.paid";
        const ALIASES: &'static [&'static str] = &["OrderPaid"];
        const SCHEMA: Option<&'static str> = Some("https://example.test/paid.json");
    }

    #[derive(Serialize, Deserialize, Debug, PartialEq)]
    struct OldPaid(i32);
    impl Message for OldPaid {
        const TYPE: &'static str = "OrderPaid";
    }

    struct Broken;
    impl Serialize for Broken {
        fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            Err(serde::ser::Error::custom("no such luck"))
        }
    }
    impl Message for Broken {
        const TYPE: &'static str = "broken";
    }

    #[test]
    fn outboxes_are_equal_by_content_and_not_by_id() {
        let (mut a, mut b) = (Outbox::default(), Outbox::default());
        a.send(Paid(1));
        b.send(Paid(1));
        assert_eq!(a, b);
        assert_ne!(a.iter().next().unwrap().id(), b.iter().next().unwrap().id());
        b.send(Paid(2));
        assert_ne!(a, b);
    }

    #[test]
    fn outboxes_whose_messages_are_due_at_other_times_differ() {
        let (mut now, mut later) = (Outbox::default(), Outbox::default());
        now.send(Paid(1));
        later.send_at(Paid(1), std::time::UNIX_EPOCH + Duration::from_secs(60));
        assert_ne!(now, later);
        let due: Vec<_> = later.iter().map(PendingMessage::due).collect();
        assert_eq!(due, [Due::At(DateTime::from_millis(60_000))]);
        assert_eq!(later.sent::<Paid>(), [Paid(1)]);
    }

    #[test]
    fn a_message_staged_under_a_former_name_is_decoded() {
        let mut outbox = Outbox::default();
        outbox.send(OldPaid(7));
        assert_eq!(outbox.sent::<Paid>(), [Paid(7)]);
    }

    #[test]
    fn an_encoding_error_is_kept_for_the_save() {
        let mut outbox = Outbox::default();
        outbox.send(Broken);
        assert_eq!(outbox.types(), ["broken"]);
        let error = outbox.iter().next().unwrap().payload.clone().unwrap_err();
        assert!(error.contains("no such luck"));
    }

    #[test]
    fn the_schema_travels_as_a_header() {
        let mut outbox = Outbox::default();
        let staged = outbox.send(Paid(1)).header("tenant", "north").header(SCHEMA_HEADER, "forged");
        assert_eq!(staged.headers()[SCHEMA_HEADER], "https://example.test/paid.json");
        assert_eq!(staged.headers()["tenant"], "north");
    }
}
