//! The outbox, a field of an aggregate that collects the messages sent since the aggregate was loaded.

use std::{collections::BTreeMap, time::Duration};

use mongodb::bson::{Bson, DateTime, Uuid};
use serde::de::DeserializeOwned;

use crate::{
    aggregate::{
        due::Due,
        message::{Message, SCHEMA_HEADER},
        revision::Revision,
    },
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
/// Two outboxes are equal if they have the same messages in the same order with the same due times and keys, and the
/// same [`revisions`](Self::revisions); the ids of the sent messages are not compared.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outbox {
    pending: Vec<PendingMessage>,
    revisions: Vec<Revision>,
}

/// A message that was sent and will be stored by the next save.
#[derive(Debug, Clone)]
pub struct PendingMessage {
    pub(crate) id: Uuid,
    pub(crate) message_type: &'static str,
    pub(crate) payload: Result<Bson, String>,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) key: Option<String>,
    pub(crate) due: Due,
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
            key: None,
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

    /// Sends a message that replaces the earlier messages of its type with the same key. So the outbox keeps only the
    /// latest message of each key.
    ///
    /// A message that was sent since the load is replaced at once. A message that is stored is replaced by the save, if
    /// it is alive, no process has claimed it, and none of its handlers has received it. Otherwise it stays, and both
    /// messages are delivered; the receipt reports it as [`TooLate`](crate::RevisionOutcome::TooLate). The new message
    /// has a new id, and its place is at the end of the outbox. Such a save
    /// reads the stored outbox first.
    ///
    /// Use [`PendingMessage::when`] to schedule the message.
    pub fn send_keyed<M: Message>(&mut self, message: M, key: impl Into<String>) -> &mut PendingMessage {
        let (message_type, key) = (message.message_type(), Some(key.into()));
        self.pending.retain(|sent| sent.message_type != message_type || sent.key != key);
        let sent = self.send(message);
        sent.key = key;
        sent
    }

    /// Cancels a message. If it was sent since the load, it is taken back at once. If it is stored, the save removes it,
    /// unless its delivery has begun. The save's [receipt](crate::store::Receipt::revision) reports the outcome.
    ///
    /// The id is the one that [`PendingMessage::id`] returned when the message was sent. Such a save reads
    /// the stored outbox first.
    pub fn cancel(&mut self, message: uuid::Uuid) {
        let sent = self.pending.len();
        self.pending.retain(|sent| sent.id() != message);
        if self.pending.len() == sent {
            self.revise(Revision::Cancel(message));
        }
    }

    /// Changes the time at which a message is due: to a time (a [`SystemTime`](std::time::SystemTime) or a BSON date),
    /// to a duration after the save, or to [`Due::Now`]. A past time counts as now. The same conditions hold as for
    /// [`cancel`](Self::cancel), and a message that is also cancelled stays cancelled.
    ///
    /// The message keeps its place in the outbox. In an ordered document, a message that has already failed blocks the
    /// later ones until its new time, as it did until the time of its next attempt.
    pub fn reschedule(&mut self, message: uuid::Uuid, when: impl Into<Due>) {
        let when = when.into();
        match self.pending.iter_mut().find(|sent| sent.id() == message) {
            Some(sent) => sent.due = when,
            None => self.revise(Revision::Reschedule(message, when)),
        }
    }

    /// Remembers a revision in place of an earlier one of the same message. A cancelled message stays cancelled.
    fn revise(&mut self, revision: Revision) {
        match self.revisions.iter_mut().find(|earlier| earlier.message() == revision.message()) {
            Some(Revision::Cancel(_)) => {}
            Some(earlier) => *earlier = revision,
            None => self.revisions.push(revision),
        }
    }

    /// The cancelled and rescheduled messages that the next save is to change in the document.
    #[must_use]
    pub fn revisions(&self) -> &[Revision] {
        &self.revisions
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

    /// Forgets the sent messages and the revisions, because a save has stored them.
    pub(crate) fn clear(&mut self) {
        self.pending.clear();
        self.revisions.clear();
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

    /// Sets the time at which the message is due: a time (a [`SystemTime`](std::time::SystemTime) or a BSON date), or a
    /// duration after the save.
    pub fn when(&mut self, when: impl Into<Due>) -> &mut Self {
        self.due = when.into();
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

    /// The key under which the message replaces earlier ones of its type, if it was sent by
    /// [`send_keyed`](Outbox::send_keyed).
    #[must_use]
    pub fn key(&self) -> Option<&str> {
        self.key.as_deref()
    }

    /// The headers added so far.
    #[must_use]
    pub fn headers(&self) -> &BTreeMap<String, String> {
        &self.headers
    }
}

impl PartialEq for PendingMessage {
    fn eq(&self, other: &Self) -> bool {
        (self.message_type, &self.payload, &self.headers, &self.key, self.due)
            == (other.message_type, &other.payload, &other.headers, &other.key, other.due)
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
    fn a_cancelled_pending_message_is_taken_back() {
        let mut outbox = Outbox::default();
        let first = outbox.send(Paid(1)).id();
        let second = outbox.send(Paid(2)).id();
        outbox.reschedule(second, Duration::from_secs(60));
        outbox.cancel(first);
        assert_eq!(outbox.sent::<Paid>(), [Paid(2)]);
        assert_eq!(outbox.iter().next().unwrap().due(), Due::After(Duration::from_secs(60)));
        assert_eq!(outbox.revisions(), []);
    }

    #[test]
    fn a_cancelled_stored_message_stays_cancelled() {
        let (mut outbox, id) = (Outbox::default(), uuid::Uuid::now_v7());
        outbox.reschedule(id, Due::Now);
        outbox.reschedule(id, DateTime::from_millis(7));
        assert_eq!(outbox.revisions(), [Revision::Reschedule(id, Due::At(DateTime::from_millis(7)))]);
        outbox.cancel(id);
        outbox.reschedule(id, Due::Now);
        assert_eq!(outbox.revisions(), [Revision::Cancel(id)]);
    }

    #[test]
    fn only_the_latest_message_of_a_key_is_sent() {
        let mut outbox = Outbox::default();
        outbox.send_keyed(Paid(1), "a");
        outbox.send_keyed(Paid(2), "b");
        outbox.send_keyed(OldPaid(3), "a");
        outbox.send(Paid(4));
        outbox.send_keyed(Paid(5), "a").when(Duration::from_secs(1));
        let sent: Vec<_> = outbox.iter().map(|sent| (sent.message_type(), sent.key())).collect();
        let expected = [
            ("order.paid", Some("b")),
            ("OrderPaid", Some("a")),
            ("order.paid", None),
            ("order.paid", Some("a")),
        ];
        assert_eq!(sent, expected);
        assert_eq!(outbox.iter().last().unwrap().due(), Due::After(Duration::from_secs(1)));
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
