//! Reads the entries of an outbox as they are stored in the document, without trusting their form.
//!
//! A stored array can contain anything, because of another program's bug, a hand edit, or an older format. So reading
//! an outbox never fails or panics. Each element becomes an [`Entry`], or an [`Unreadable`] that contains the reason. A
//! malformed element is neither delivered nor deleted, and never blocks its neighbours. A message that was pushed twice
//! counts as one message: the first element is used, and the writes that claim and clear the message by id also apply
//! to its other elements.

use std::collections::{BTreeMap, HashMap, HashSet};

use mongodb::bson::{Bson, DateTime, Document, RawDocument, RawDocumentBuf, Uuid, doc, spec::BinarySubtype};

use crate::encoding::{bytes::Element, codec, salvage};

/// The name of the array field with the undelivered and dead messages.
pub(crate) const OUTBOX: &str = "outbox";
/// The name of the field that every save renews, for optimistic concurrency.
pub(crate) const ETAG: &str = "etag";
/// The header with the trace context of a message's sender ([W3C Trace Context](https://www.w3.org/TR/trace-context/)).
pub(crate) const TRACEPARENT: &str = "traceparent";
/// The header with the vendor-specific part of the trace context.
pub(crate) const TRACESTATE: &str = "tracestate";

/// One message in a document's `outbox`.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// The message's id, unique in its document and also used on the wire.
    pub id: Uuid,
    /// The message's stable name, such as `order.placed`.
    pub message_type: String,
    /// The message's content, which can be any BSON value. Null if the writer left it out.
    pub payload: Bson,
    /// The headers that are sent with the message.
    pub headers: BTreeMap<String, String>,
    /// Where the message is delivered. Absent means the broker; `handlers` means the application's handlers.
    pub via: Option<String>,
    /// The key under which a later message of the same type replaces this one.
    pub key: Option<String>,
    /// The server time at which the message was sent.
    pub created_at: Option<DateTime>,
    /// The server time before which only the claim's holder may deliver the message. Absent means that the message is
    /// due at once.
    pub available_at: Option<DateTime>,
    /// The text that identifies the claim. The claim lasts until `available_at`.
    pub claimed_by: Option<String>,
    /// Number of failed deliveries so far.
    pub attempts: i64,
    /// Number of times that a worker claimed the message and did not release the claim.
    pub claims: i64,
    /// The error of the last failed delivery, at most 1 KiB, without payload or secrets.
    pub last_error: Option<String>,
    /// The keys of the handlers that have already received the message, if its type has several handlers.
    pub delivered_to: Vec<String>,
    /// Set if the message is dead.
    pub dead: Option<Dead>,
}

/// When and why an entry died.
#[derive(Debug, Clone, PartialEq)]
pub struct Dead {
    /// The server time at which the entry died.
    pub at: DateTime,
    /// The reason: `attempts_exhausted`, `permanent`, `crashed` or `operator`. A reader accepts and keeps any other
    /// text.
    pub reason: String,
}

/// Why an entry died.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum DeadReason {
    /// Every attempt allowed by the retry policy failed.
    AttemptsExhausted,
    /// A delivery reported that it can never succeed.
    Permanent,
    /// The entry was claimed several times, and each time the process died before it recorded an outcome.
    Crashed,
    /// An operator marked the entry dead.
    Operator,
}

impl DeadReason {
    /// Returns the text that is stored in `dead_reason`.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// A malformed element of an outbox.
#[derive(Debug, Clone, PartialEq)]
pub struct Unreadable {
    /// The element's index in the array, from 0.
    pub index: usize,
    /// The problem, including the name of the field.
    pub reason: String,
}

/// One element of an outbox.
#[derive(Debug, Clone, PartialEq)]
pub enum Slot {
    /// An entry.
    Entry(Box<Entry>),
    /// A malformed element.
    Unreadable(Unreadable),
}

impl Slot {
    /// Returns the entry, unless the element is malformed.
    pub fn entry(&self) -> Option<&Entry> {
        match self {
            Self::Entry(entry) => Some(entry),
            Self::Unreadable(_) => None,
        }
    }

    pub(crate) fn entry_mut(&mut self) -> Option<&mut Entry> {
        match self {
            Self::Entry(entry) => Some(entry),
            Self::Unreadable(_) => None,
        }
    }
}

/// The `outbox` field of a document contains something other than an array.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "field `outbox` contains {0} and not an array; move that value elsewhere and remove or empty the field"
)]
pub struct NotAnArray(pub &'static str);

/// Reads the outbox of a stored document, or of a projection of such a document, regardless of the rest of the
/// document.
///
/// Invalid UTF-8 affects only the entry that contains it.
///
/// # Errors
/// [`NotAnArray`] if the field contains anything other than an array.
pub fn read_outbox_of(document: &RawDocument) -> Result<Vec<Slot>, NotAnArray> {
    if let Ok(outbox) = document.get(OUTBOX)
        && let Ok(outbox) = outbox.map(Bson::try_from).transpose()
    {
        return read_outbox(outbox.as_ref());
    }

    let Ok(outbox) = salvage::field(document, OUTBOX) else {
        return Err(NotAnArray("bytes that cannot be read"));
    };
    let Some(outbox) = outbox else {
        return Ok(Vec::new());
    };
    let Some(mut items) = outbox.items() else {
        return Err(NotAnArray(type_name(&outbox.read_lossily())));
    };

    let (mut elements, mut damaged) = (Vec::new(), BTreeMap::new());
    for item in items.by_ref() {
        if let Some(reason) = damage(&item) {
            damaged.insert(elements.len(), reason);
        }
        elements.push(item.read_lossily());
    }
    if !items.is_exhausted() {
        damaged.insert(elements.len(), "the rest of the array cannot be read".into());
        elements.push(Bson::Null);
    }
    Ok(slots(&elements, &damaged))
}

/// The fields that matter for delivery. Other fields may have any value.
const FIELDS: [&str; 11] = [
    "id",
    "type",
    "payload",
    "headers",
    "via",
    "available_at",
    "claimed_by",
    "attempts",
    "claims",
    "delivered_to",
    "dead_at",
];

/// Returns why an element cannot be read without loss.
fn damage(element: &Element<'_>) -> Option<String> {
    let damaged =
        element.fields()?.find(|field| FIELDS.contains(&&*field.text_name()) && field.read().is_none())?;
    Some(format!("`{}` contains invalid UTF-8 or invalid BSON", damaged.text_name()))
}

/// Reads the value of a document's `outbox` field. An absent field counts as empty.
///
/// # Errors
/// [`NotAnArray`] if the value is not an array.
pub fn read_outbox(outbox: Option<&Bson>) -> Result<Vec<Slot>, NotAnArray> {
    match outbox {
        None => Ok(Vec::new()),
        Some(Bson::Array(elements)) => Ok(read_elements(elements)),
        Some(other) => Err(NotAnArray(type_name(other))),
    }
}

/// Reads the elements of an outbox.
pub(crate) fn read_elements(elements: &[Bson]) -> Vec<Slot> {
    slots(elements, &BTreeMap::new())
}

/// Reads the elements of an outbox, and leaves out repeated messages.
fn slots(elements: &[Bson], damaged: &BTreeMap<usize, String>) -> Vec<Slot> {
    let mut places: HashMap<[u8; 16], Vec<usize>> = HashMap::with_capacity(elements.len());
    let mut entries = Vec::with_capacity(elements.len());

    // Group the elements by every id that an update would match, because an id hidden in an array also makes an entry
    // ambiguous.
    for (index, element) in elements.iter().enumerate() {
        for id in ids_an_update_would_match(element) {
            places.entry(id).or_default().push(index);
        }
        entries.push(match damaged.get(&index) {
            Some(reason) => Err(reason.clone()),
            None => read_entry(element),
        });
    }

    let mut repeats: HashSet<usize> = HashSet::new();
    let mut ambiguous = HashSet::new();
    for (id, places) in places.iter().filter(|(_, places)| places.len() > 1) {
        if is_one_message(places, &entries) {
            repeats.extend(&places[1..]);
        } else {
            ambiguous.insert(*id);
        }
    }

    // If several elements are the same message, use the first element. If their contents differ, it is unknown which
    // element is right.
    let mut slots = Vec::with_capacity(entries.len());
    for (index, entry) in entries.into_iter().enumerate() {
        let reason = match entry {
            Ok(_) if repeats.contains(&index) => continue,
            Ok(entry) if !ambiguous.contains(&entry.id.bytes()) => {
                slots.push(Slot::Entry(Box::new(entry)));
                continue;
            }
            Ok(entry) => {
                format!("`id` {} occurs more than once in this outbox, with different content", entry.id)
            }
            Err(reason) => reason,
        };
        slots.push(Slot::Unreadable(Unreadable { index, reason }));
    }
    slots
}

/// Whether the elements at these indexes are the same message. A message is pushed again if a write is repeated after
/// an error, or if an outbox is copied. The time of sending and the delivery state are not compared.
fn is_one_message(places: &[usize], entries: &[Result<Entry, String>]) -> bool {
    let mut contents = places.iter().map(|place| entries[*place].as_ref().ok().and_then(content));
    let Some(Some(first)) = contents.next() else {
        return false;
    };
    contents.all(|content| content.is_some_and(|content| content == first))
}

/// Returns a canonical form of the content that a receiver gets. Integer width and field order are ignored, because a
/// driver in another language may change the width and the order when it repeats a push, without changing the meaning
/// of the delivered JSON.
fn content(entry: &Entry) -> Option<Vec<u8>> {
    let mut headers = entry.headers.clone();
    // The trace context belongs to the save and not to the message.
    headers.retain(|name, _| ![TRACEPARENT, TRACESTATE].contains(&&**name));
    let headers: Document = headers.into_iter().map(|(name, value)| (name, Bson::from(value))).collect();
    let content = doc! {
        "type": &entry.message_type,
        "payload": in_one_form(&entry.payload),
        "headers": headers,
        "via": &entry.via,
    };
    codec::encode(&content).ok().map(RawDocumentBuf::into_bytes)
}

/// Returns the value with its fields sorted by name and all integers of the same width.
fn in_one_form(value: &Bson) -> Bson {
    match value {
        Bson::Int32(number) => Bson::Int64(i64::from(*number)),
        Bson::Array(items) => Bson::Array(items.iter().map(in_one_form).collect()),
        Bson::Document(document) => {
            let by_name: BTreeMap<&String, &Bson> = document.iter().collect();
            let fields = by_name.into_iter().map(|(name, value)| (name.clone(), in_one_form(value)));
            Bson::Document(fields.collect())
        }
        other => other.clone(),
    }
}

/// Returns the UUIDs for which the server's query `{id: X}` would match this element: the element's `id`; if `id` is an
/// array, its members; if the element itself is an array, the ids of its members.
fn ids_an_update_would_match(element: &Bson) -> Vec<[u8; 16]> {
    match element {
        Bson::Document(document) => ids_in(document),
        Bson::Array(members) => members.iter().filter_map(Bson::as_document).flat_map(ids_in).collect(),
        _ => Vec::new(),
    }
}

fn ids_in(document: &Document) -> Vec<[u8; 16]> {
    match document.get("id") {
        Some(Bson::Array(ids)) => ids.iter().filter_map(uuid_bytes).collect(),
        Some(id) => uuid_bytes(id).into_iter().collect(),
        None => Vec::new(),
    }
}

fn uuid_bytes(value: &Bson) -> Option<[u8; 16]> {
    match value {
        Bson::Binary(binary) if binary.subtype == BinarySubtype::Uuid => {
            binary.bytes.as_slice().try_into().ok()
        }
        _ => None,
    }
}

fn read_entry(element: &Bson) -> Result<Entry, String> {
    let Bson::Document(document) = element else {
        return Err(format!("the element is {} and not an object", type_name(element)));
    };
    let id = document.get("id").ok_or("`id` is missing")?;
    let id = uuid_bytes(id)
        .map(Uuid::from_bytes)
        .ok_or_else(|| format!("`id` is {} and not a UUID (binary subtype 4)", type_name(id)))?;
    let message_type = string(document, "type")?.ok_or("`type` is missing")?;
    if message_type.is_empty() {
        return Err("`type` is empty".into());
    }
    let dead_at = date(document, "dead_at")?;
    let dead_reason = lenient_string(document, "dead_reason").unwrap_or_default();

    Ok(Entry {
        id,
        message_type,
        payload: document.get("payload").cloned().unwrap_or(Bson::Null),
        headers: headers(document)?,
        via: string(document, "via")?,
        // Entries of other programs could have a field of this name before it had a meaning, so a value of another type
        // must not make them unreadable.
        key: lenient_string(document, "key"),
        created_at: document.get_datetime("created_at").ok().copied(),
        available_at: date(document, "available_at")?,
        claimed_by: string(document, "claimed_by")?,
        attempts: count(document, "attempts")?,
        claims: count(document, "claims")?,
        last_error: lenient_string(document, "last_error"),
        delivered_to: strings(document, "delivered_to")?,
        dead: dead_at.map(|at| Dead { at, reason: dead_reason }),
    })
}

/// Reads a field. An absent or null field gives `None`; a wrong type gives an error that names the field.
fn field<'a, T>(
    document: &'a Document,
    name: &str,
    wanted: &str,
    read: impl Fn(&'a Bson) -> Option<T>,
) -> Result<Option<T>, String> {
    match document.get(name) {
        None | Some(Bson::Null) => Ok(None),
        Some(value) => match read(value) {
            Some(read) => Ok(Some(read)),
            None => Err(format!("`{name}` is {} and not {wanted}", type_name(value))),
        },
    }
}

fn string(document: &Document, name: &str) -> Result<Option<String>, String> {
    field(document, name, "a string", |value| value.as_str().map(str::to_owned))
}

/// Reads a field that a delivery doesn't need, so a wrong type counts as absent.
fn lenient_string(document: &Document, name: &str) -> Option<String> {
    document.get_str(name).ok().map(str::to_owned)
}

fn date(document: &Document, name: &str) -> Result<Option<DateTime>, String> {
    field(document, name, "a date", |value| value.as_datetime().copied())
}

fn count(document: &Document, name: &str) -> Result<i64, String> {
    // Null does not count as absent here, because the server cannot `$inc` a null.
    let Some(value) = document.get(name) else { return Ok(0) };
    let Some(number) = whole_number(value) else {
        return Err(format!("`{name}` is {} and not a whole number", type_name(value)));
    };

    // Refuse large numbers, so that neither arithmetic here nor `$inc` on the server can overflow.
    if number.unsigned_abs() < 1 << 31 { Ok(number) } else { Err(format!("`{name}` is out of range")) }
}

#[expect(clippy::cast_possible_truncation, reason = "both types are exact for whole numbers below 2^53")]
fn whole_number(value: &Bson) -> Option<i64> {
    match value {
        Bson::Int32(number) => Some(i64::from(*number)),
        Bson::Int64(number) => Some(*number),
        Bson::Double(number) if number.fract() == 0.0 && number.abs() < 1e15 => Some(*number as i64),
        _ => None,
    }
}

fn strings(document: &Document, name: &str) -> Result<Vec<String>, String> {
    field(document, name, "an array of strings", all_strings).map(Option::unwrap_or_default)
}

fn all_strings(value: &Bson) -> Option<Vec<String>> {
    value.as_array()?.iter().map(|item| item.as_str().map(str::to_owned)).collect()
}

fn headers(document: &Document) -> Result<BTreeMap<String, String>, String> {
    field(document, "headers", "an object of strings", all_texts).map(Option::unwrap_or_default)
}

fn all_texts(value: &Bson) -> Option<BTreeMap<String, String>> {
    let pairs = value.as_document()?.iter();
    pairs.map(|(name, text)| Some((name.clone(), text.as_str()?.to_owned()))).collect()
}

/// Returns the name of a value's BSON type with an article.
pub(crate) fn type_name(value: &Bson) -> &'static str {
    match value {
        Bson::Double(_) => "a double",
        Bson::String(_) => "a string",
        Bson::Array(_) => "an array",
        Bson::Document(_) => "an object",
        Bson::Boolean(_) => "a boolean",
        Bson::Null => "null",
        Bson::Int32(_) | Bson::Int64(_) => "an integer",
        Bson::DateTime(_) => "a date",
        Bson::Binary(_) => "binary",
        Bson::ObjectId(_) => "an ObjectId",
        Bson::Decimal128(_) => "a decimal",
        Bson::Timestamp(_) => "a timestamp",
        _ => "a value of a rare type",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encoding::salvage::tests::damaged;

    fn minimal(id: Uuid) -> Document {
        doc! { "id": id, "type": "order.placed", "payload": 1 }
    }

    fn read(elements: Vec<Bson>) -> Vec<Slot> {
        read_outbox(Some(&Bson::Array(elements))).unwrap()
    }

    fn reason(slot: &Slot) -> &str {
        match slot {
            Slot::Unreadable(unreadable) => &unreadable.reason,
            Slot::Entry(entry) => panic!("readable: {entry:?}"),
        }
    }

    #[test]
    fn a_key_that_is_not_text_is_ignored() {
        let with = |key: Bson| {
            let mut entry = minimal(Uuid::new());
            entry.insert("key", key);
            read(vec![entry.into()])[0].entry().expect("it is readable").key.clone()
        };
        assert_eq!(with("a".into()), Some("a".into()));
        assert_eq!((with(5.into()), with(Bson::Null), with(doc! {}.into())), (None, None, None));
    }

    #[test]
    fn a_minimal_foreign_entry_gets_defaults() {
        let id = Uuid::new();
        let slots = read(vec![minimal(id).into()]);
        let entry = slots[0].entry().unwrap();
        assert_eq!((entry.id, entry.attempts, entry.claims), (id, 0, 0));
        assert_eq!((&entry.available_at, &entry.via, &entry.dead), (&None, &None, &None));
    }

    #[test]
    fn an_absent_outbox_is_empty_but_null_fails() {
        assert_eq!(read_outbox(None), Ok(vec![]));
        assert_eq!(read_outbox(Some(&Bson::Null)), Err(NotAnArray("null")));
        assert_eq!(read_outbox(Some(&Bson::Int32(1))), Err(NotAnArray("an integer")));
    }

    #[test]
    fn an_id_twice_with_other_content_makes_both_unreadable() {
        let (twice, once) = (Uuid::new(), Uuid::new());
        let mut other = minimal(twice);
        other.insert("payload", 2);
        let slots = read(vec![minimal(twice).into(), minimal(once).into(), other.into()]);
        assert!(reason(&slots[0]).contains("more than once"));
        assert!(slots[1].entry().is_some());
        assert!(reason(&slots[2]).contains("more than once"));
    }

    #[test]
    fn a_message_that_was_pushed_twice_is_one() {
        let (id, other) = (Uuid::new(), Uuid::new());
        let mut first = minimal(id);
        first.extend(doc! {
            "payload": { "nan": f64::NAN }, "claimed_by": "p/1", "attempts": 2, "created_at": DateTime::from_millis(1),
            "headers": { "tenant": "north", "traceparent": "a" },
        });
        let mut again = minimal(id);
        again.extend(doc! {
            "payload": { "nan": f64::NAN }, "created_at": DateTime::from_millis(2),
            "headers": { "tenant": "north", "traceparent": "b", "tracestate": "c" },
        });
        let slots = read(vec![
            first.clone().into(),
            minimal(other).into(),
            again.clone().into(),
            again.clone().into(),
        ]);
        let found: Vec<_> =
            slots.iter().map(|slot| slot.entry().map(|entry| (entry.id, entry.attempts))).collect();
        assert_eq!(found, [Some((id, 2)), Some((other, 0))]);

        for (name, value) in [
            ("type", Bson::from("order.paid")),
            ("payload", Bson::Null),
            ("headers", Bson::from(doc! { "tenant": "south" })),
            ("via", Bson::from("handlers")),
            ("attempts", Bson::Null),
        ] {
            let mut unlike = again.clone();
            unlike.insert(name, value);
            let slots = read(vec![first.clone().into(), unlike.into()]);
            assert!(slots.iter().all(|slot| slot.entry().is_none()), "{name}");
            assert_eq!(slots.len(), 2);
        }
    }

    /// A driver in another language may write the repeated message in a different form.
    #[test]
    fn a_message_pushed_again_in_other_words_is_one() {
        let id = Uuid::new();
        let with = |payload: Document| {
            let mut entry = minimal(id);
            entry.insert("payload", payload);
            Bson::from(entry)
        };
        let first = with(doc! { "sku": "a", "qty": 1, "at": { "x": 1, "y": 2 } });
        for again in [
            doc! { "sku": "a", "qty": 1_i64, "at": { "x": 1, "y": 2 } },
            doc! { "at": { "y": 2, "x": 1 }, "qty": 1, "sku": "a" },
        ] {
            let slots = read(vec![first.clone(), with(again)]);
            assert_eq!(slots.len(), 1);
            assert_eq!(slots[0].entry().map(|entry| entry.id), Some(id));
        }

        for unlike in [
            doc! { "sku": "a", "qty": 1.5, "at": { "x": 1, "y": 2 } },
            doc! { "sku": "a", "qty": "1", "at": { "x": 1, "y": 2 } },
            doc! { "sku": "a", "qty": 1, "at": { "x": 2, "y": 1 } },
        ] {
            let slots = read(vec![first.clone(), with(unlike)]);
            assert!(slots.iter().all(|slot| slot.entry().is_none()));
        }
    }

    #[test]
    fn invalid_utf8_makes_only_its_entry_unreadable() {
        let entry = |extra: Document| {
            let mut entry = minimal(Uuid::new());
            entry.extend(extra);
            Bson::from(entry)
        };
        for (bad, flaw) in [
            (entry(doc! { "payload": { "a": ["##"] } }), "`payload`"),
            (entry(doc! { "payload": { "##": 1 } }), "`payload`"),
            (entry(doc! { "headers": { "a": "##" } }), "`headers`"),
            (entry(doc! { "headers": { "##": "a" } }), "`headers`"),
            (entry(doc! { "type": "##" }), "`type`"),
            (entry(doc! { "via": "##" }), "`via`"),
            (entry(doc! { "claimed_by": "##" }), "`claimed_by`"),
            (entry(doc! { "delivered_to": ["##"] }), "`delivered_to`"),
            (Bson::from("##"), "a string and not an object"),
        ] {
            let outbox = vec![entry(doc! {}), bad, entry(doc! {})];
            let document = damaged(&doc! { "##": "##", "name": "##", "outbox": outbox, "later": "##" });
            let slots = read_outbox_of(&document).unwrap();
            assert!(slots[0].entry().is_some() && slots[2].entry().is_some(), "{flaw}");
            assert!(reason(&slots[1]).contains(flaw), "{}", reason(&slots[1]));
        }
    }

    #[test]
    fn invalid_utf8_in_unread_fields_is_ignored() {
        let mut entry = minimal(Uuid::new());
        entry.extend(doc! { "last_error": "##", "dead_reason": "##", "unknown": "##", "##": 1 });
        let document = damaged(&doc! { "outbox": [entry] });
        assert!(read_outbox_of(&document).unwrap()[0].entry().is_some());
        assert_eq!(read_outbox_of(&damaged(&doc! { "name": "##" })), Ok(vec![]));
        assert_eq!(read_outbox_of(&damaged(&doc! { "outbox": "##" })), Err(NotAnArray("a string")));
    }

    #[test]
    fn an_id_repeated_in_a_damaged_entry_is_ambiguous() {
        let mut bad = minimal(Uuid::from_bytes([1; 16]));
        bad.insert("payload", "##");
        let document = damaged(&doc! { "outbox": [minimal(Uuid::from_bytes([1; 16])), bad] });
        assert!(read_outbox_of(&document).unwrap().iter().all(|slot| slot.entry().is_none()));
    }

    #[test]
    fn an_id_inside_an_array_counts_as_the_same() {
        let id = Uuid::new();
        for hidden in [Bson::Document(doc! { "id": [id] }), Bson::Array(vec![Bson::Document(minimal(id))])] {
            let slots = read(vec![minimal(id).into(), hidden]);
            assert!(reason(&slots[0]).contains("more than once"));
        }
    }

    #[test]
    fn wrong_types_name_their_field() {
        let cases: Vec<(&str, Bson)> = vec![
            ("id", Bson::Int32(1)),
            ("type", Bson::Int32(1)),
            ("headers", Bson::from(doc! { "a": 1 })),
            ("via", Bson::Boolean(true)),
            ("available_at", Bson::from("soon")),
            ("claimed_by", Bson::Int32(1)),
            ("attempts", Bson::from("many")),
            ("claims", Bson::Double(0.5)),
            ("attempts", Bson::Null),
            ("attempts", Bson::Int64(i64::MAX)),
            ("delivered_to", Bson::from(vec![Bson::Int32(1)])),
            ("dead_at", Bson::from("yesterday")),
        ];
        for (name, value) in cases {
            let mut document = minimal(Uuid::new());
            document.insert(name, value);
            let slots = read(vec![document.into()]);
            assert!(reason(&slots[0]).contains(&format!("`{name}`")), "{name}: {}", reason(&slots[0]));
        }
        assert!(reason(&read(vec![Bson::Null])[0]).contains("not an object"));
    }
}
