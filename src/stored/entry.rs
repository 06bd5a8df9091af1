//! One entry of an outbox as it is stored in the document, read without trusting it.
//!
//! A stored array can contain anything: another program's bug, a hand edit, an older format. Therefore
//! reading an outbox never fails and never panics; each element becomes an [`Entry`] or an [`Unreadable`]
//! with the reason, and an unreadable one is neither delivered nor deleted, and never blocks its neighbours.
//! A message that was pushed twice is one message: the first counts, and the writes that claim and clear it
//! by its id take the others along.

use std::collections::{BTreeMap, HashMap, HashSet};

use mongodb::bson::{Bson, DateTime, Document, RawDocument, RawDocumentBuf, Uuid, doc, spec::BinarySubtype};

use crate::encoding::{bytes::Element, codec, salvage};

/// The array field with the undelivered and dead messages.
pub(crate) const OUTBOX: &str = "outbox";
/// The field renewed by every save of this library, for optimistic concurrency.
pub(crate) const ETAG: &str = "etag";
/// The header with the trace of a message's sender ([W3C Trace Context](https://www.w3.org/TR/trace-context/)).
pub(crate) const TRACEPARENT: &str = "traceparent";
/// The header that goes with it.
pub(crate) const TRACESTATE: &str = "tracestate";

/// One message in a document's `outbox`.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Unique in its document; the message id on the wire.
    pub id: Uuid,
    /// The message's stable name, such as `order.placed`.
    pub message_type: String,
    /// The message's content, any BSON value; null if the writer left it out.
    pub payload: Bson,
    /// Headers that travel with the message.
    pub headers: BTreeMap<String, String>,
    /// Its deliverer: absent means the broker, `handlers` the application's handlers.
    pub via: Option<String>,
    /// When it was sent (server time).
    pub created_at: Option<DateTime>,
    /// Only its claimer may deliver it before this time (server time); absent means at once.
    pub available_at: Option<DateTime>,
    /// The claim that holds it until `available_at`.
    pub claimed_by: Option<String>,
    /// Failed deliveries so far.
    pub attempts: i64,
    /// Claims by dispatchers that neither ended in a failure nor were released.
    pub claims: i64,
    /// The error of the last failed delivery, without payload or secret, at most 1 KiB.
    pub last_error: Option<String>,
    /// Keys of the handlers that have had it already, if one type has several.
    pub delivered_to: Vec<String>,
    /// Set once it is dead.
    pub dead: Option<Dead>,
}

/// Since when and why an entry is dead.
#[derive(Debug, Clone, PartialEq)]
pub struct Dead {
    /// When it died (server time).
    pub at: DateTime,
    /// `attempts_exhausted`, `permanent`, `crashed` or `operator`; free text of other writers survives.
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
    /// The processes that claimed it kept dying without an answer.
    Crashed,
    /// An operator declared it dead.
    Operator,
}

impl DeadReason {
    /// The word stored in `dead_reason`.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// An element of an outbox that is not an entry.
#[derive(Debug, Clone, PartialEq)]
pub struct Unreadable {
    /// Its place in the array, from 0.
    pub index: usize,
    /// The problem, naming the field.
    pub reason: String,
}

/// One element of an outbox.
#[derive(Debug, Clone, PartialEq)]
pub enum Slot {
    /// An entry.
    Entry(Box<Entry>),
    /// Something else.
    Unreadable(Unreadable),
}

impl Slot {
    /// The entry, if it is one.
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

/// The `outbox` field of a document holds something other than an array.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("field `outbox` holds {0}, not an array; move that value elsewhere and remove or empty the field")]
pub struct NotAnArray(pub &'static str);

/// Reads the outbox of a stored document, or of a projection of one, regardless of the rest of the document.
///
/// Text that is not UTF-8 makes only its own entry unreadable.
///
/// # Errors
/// [`NotAnArray`] when the field holds anything else.
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

/// The fields by which an entry is delivered. Others may have any value.
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

/// Why an element cannot be read as it was written.
fn damage(element: &Element<'_>) -> Option<String> {
    let damaged =
        element.fields()?.find(|field| FIELDS.contains(&&*field.text_name()) && field.read().is_none())?;
    Some(format!("`{}` contains invalid UTF-8 or invalid BSON", damaged.text_name()))
}

/// Reads the value of a document's `outbox` field; an absent one is empty.
///
/// # Errors
/// [`NotAnArray`] when it is anything else.
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

/// The elements of an outbox as entries, without messages that occur again.
fn slots(elements: &[Bson], damaged: &BTreeMap<usize, String>) -> Vec<Slot> {
    let mut places: HashMap<[u8; 16], Vec<usize>> = HashMap::with_capacity(elements.len());
    let mut entries = Vec::with_capacity(elements.len());

    // By every id that an update would match: a hidden one makes an entry ambiguous, too.
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

    // Of a message that was pushed again, the first element counts. With different content, it is unknown
    // which one is right.
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

/// Whether the elements at these places are one message that was pushed again: by a write that was repeated
/// after an error, or with an outbox that was copied. The time it was sent, and its later state, don't count.
fn is_one_message(places: &[usize], entries: &[Result<Entry, String>]) -> bool {
    let mut contents = places.iter().map(|place| entries[*place].as_ref().ok().and_then(content));
    let Some(Some(first)) = contents.next() else {
        return false;
    };
    contents.all(|content| content.is_some_and(|content| content == first))
}

/// The bytes that a receiver gets. Neither the width of a whole number nor the order of fields counts: the
/// driver of another language that repeats a push may choose both differently, and the delivered JSON means
/// the same.
fn content(entry: &Entry) -> Option<Vec<u8>> {
    let mut headers = entry.headers.clone();
    // It belongs to the save, not to the message.
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

/// A value with its fields in order of their names, and its whole numbers of one width.
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

/// The UUIDs by which the server's query `{id: X}` would find this element: its `id`, the members of an array
/// `id`, and, where the element is itself an array, those of its members.
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
        return Err(format!("the element is {}, not an object", type_name(element)));
    };
    let id = document.get("id").ok_or("`id` is missing")?;
    let id = uuid_bytes(id)
        .map(Uuid::from_bytes)
        .ok_or_else(|| format!("`id` is {}, not a UUID (binary subtype 4)", type_name(id)))?;
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

/// An absent or null field is `None`; a wrong type is an error that names the field.
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
            None => Err(format!("`{name}` is {}, not {wanted}", type_name(value))),
        },
    }
}

fn string(document: &Document, name: &str) -> Result<Option<String>, String> {
    field(document, name, "a string", |value| value.as_str().map(str::to_owned))
}

/// A field for people: a wrong type counts as absent.
fn lenient_string(document: &Document, name: &str) -> Option<String> {
    document.get_str(name).ok().map(str::to_owned)
}

fn date(document: &Document, name: &str) -> Result<Option<DateTime>, String> {
    field(document, name, "a date", |value| value.as_datetime().copied())
}

fn count(document: &Document, name: &str) -> Result<i64, String> {
    // Null is refused here, not read as absent: the server cannot `$inc` it.
    let Some(value) = document.get(name) else { return Ok(0) };
    let Some(number) = whole_number(value) else {
        return Err(format!("`{name}` is {}, not a whole number", type_name(value)));
    };

    // Far from the ends of i64, so that neither arithmetic here nor `$inc` on the server can overflow.
    if number.unsigned_abs() < 1 << 31 { Ok(number) } else { Err(format!("`{name}` is out of range")) }
}

#[expect(clippy::cast_possible_truncation, reason = "a whole number below 2^53 is exact in both")]
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

/// The name of a value's BSON type, with its article.
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

    /// As a driver of another language may write it again.
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
            (Bson::from("##"), "a string, not an object"),
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
