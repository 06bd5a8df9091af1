//! Handles documents as bytes. Elements are copied unchanged, whatever their names, types or text.
//!
//! The server stores strings and field names that are not UTF-8, and documents in which two fields have the same name.
//! A [`Document`](mongodb::bson::Document) can represent neither. A key only has to be compared, so it is never
//! decoded. The layout of BSON is defined at <https://bsonspec.org>.

use mongodb::bson::{DateTime, RawDocument, RawDocumentBuf, Uuid};

/// The size of the length with which a document begins.
const LENGTH_BYTES: usize = 4;
/// The initial capacity of a document before its elements are known.
const USUAL_BYTES: usize = 128;
/// The number of the binary subtype of UUIDs.
const UUID_SUBTYPE: u8 = 4;
const UUID_BYTES: u8 = 16;
/// The size of a UUID as a binary value: four bytes of length, one byte of subtype, and the bytes of the UUID.
const UUID_VALUE_BYTES: usize = 4 + 1 + UUID_BYTES as usize;

/// BSON's numbers for the types that this module distinguishes.
pub(crate) mod kind {
    pub(crate) const STRING: u8 = 0x02;
    pub(crate) const DOCUMENT: u8 = 0x03;
    pub(crate) const ARRAY: u8 = 0x04;
    pub(crate) const BINARY: u8 = 0x05;
    pub(crate) const UNDEFINED: u8 = 0x06;
    pub(crate) const BOOLEAN: u8 = 0x08;
    pub(crate) const DATE: u8 = 0x09;
    pub(crate) const NULL: u8 = 0x0A;
    pub(crate) const REGULAR_EXPRESSION: u8 = 0x0B;
    pub(crate) const INT32: u8 = 0x10;
    pub(crate) const INT64: u8 = 0x12;
}

/// One element of a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Element<'a> {
    pub(crate) kind: u8,
    /// The name without its final NUL.
    pub(crate) name: &'a [u8],
    pub(crate) value: &'a [u8],
}

/// Iterates over the elements of a document in order. Ends early at bytes that are not BSON.
pub(crate) fn elements(document: &RawDocument) -> Elements<'_> {
    // Skip the length field, and the NUL after the last element.
    let bytes = document.as_bytes();
    let end = bytes.len().saturating_sub(1);
    Elements { rest: bytes.get(LENGTH_BYTES..end).unwrap_or_default() }
}

/// Finds the first element with this name.
pub(crate) fn element<'a>(document: &'a RawDocument, name: &str) -> Option<Element<'a>> {
    elements(document).find(|element| element.name == name.as_bytes())
}

/// The iterator that [`elements`] returns.
pub(crate) struct Elements<'a> {
    rest: &'a [u8],
}

impl Elements<'_> {
    /// Whether every byte so far was part of an element.
    pub(crate) fn is_exhausted(&self) -> bool {
        self.rest.is_empty()
    }
}

impl<'a> Iterator for Elements<'a> {
    type Item = Element<'a>;

    fn next(&mut self) -> Option<Element<'a>> {
        let (&kind, rest) = self.rest.split_first()?;
        let (name, rest) = split_text(rest)?;
        let length = value_length(kind, rest)?;
        let (value, rest) = rest.split_at_checked(length)?;

        self.rest = rest;
        Some(Element { kind, name, value })
    }
}

/// Splits the bytes at the first NUL.
fn split_text(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|byte| *byte == 0)?;
    Some((&bytes[..end], &bytes[end + 1..]))
}

/// Returns the length of the value at the start of these bytes. `None` if BSON has no such type.
fn value_length(kind: u8, bytes: &[u8]) -> Option<usize> {
    match kind {
        // Undefined, null, min key, max key.
        0x06 | 0x0A | 0xFF | 0x7F => Some(0),
        // Boolean.
        0x08 => Some(1),
        // int32.
        0x10 => Some(4),
        // Double, date, timestamp, int64.
        0x01 | 0x09 | 0x11 | 0x12 => Some(8),
        // ObjectId.
        0x07 => Some(12),
        // decimal128.
        0x13 => Some(16),
        // String, JavaScript, symbol.
        0x02 | 0x0D | 0x0E => declared_length(bytes)?.checked_add(4),
        // Binary: length and subtype precede the bytes.
        0x05 => declared_length(bytes)?.checked_add(5),
        // DBPointer: a string and an ObjectId.
        0x0C => declared_length(bytes)?.checked_add(4 + 12),
        // Document, array, JavaScript with scope: the length includes the length field.
        0x03 | 0x04 | 0x0F => declared_length(bytes),
        // Regular expression: pattern and options, each up to a NUL.
        0x0B => {
            let (pattern, rest) = split_text(bytes)?;
            let (options, _) = split_text(rest)?;
            Some(pattern.len() + options.len() + 2)
        }
        _ => None,
    }
}

fn declared_length(bytes: &[u8]) -> Option<usize> {
    let length = i32::from_le_bytes(*bytes.first_chunk()?);
    usize::try_from(length).ok()
}

/// Whether the server would accept these bytes, apart from the server's rules for names and types.
pub(crate) fn is_sound(document: &RawDocument, depth: usize) -> bool {
    let mut elements = elements(document);
    let sound = elements.all(|element| is_sound_element(element, depth));
    sound && elements.is_exhausted()
}

fn is_sound_element(element: Element<'_>, depth: usize) -> bool {
    let Element { kind, value, .. } = element;
    match kind {
        0x02 | 0x0D | 0x0E => value.len() > 4 && value.ends_with(&[0]),
        0x03 | 0x04 => is_sound_value(value, depth),
        0x08 => matches!(value, [0 | 1]),
        0x0C => value.len() > 4 + 12 && value[value.len() - 13] == 0,
        0x0F => {
            let code = value.get(4..).and_then(declared_length).and_then(|length| length.checked_add(8));
            let scope = code.and_then(|end| value.get(end..));
            scope.is_some_and(|scope| is_sound_value(scope, depth))
        }
        _ => true,
    }
}

fn is_sound_value(value: &[u8], depth: usize) -> bool {
    let Ok(inner) = RawDocument::from_bytes(value) else { return false };
    depth > 0 && is_sound(inner, depth - 1)
}

/// Builds a document from elements.
#[derive(Debug, Clone)]
pub(crate) struct Builder {
    /// Space for the length field, followed by the elements.
    bytes: Vec<u8>,
}

impl Builder {
    pub(crate) fn new() -> Self {
        let mut bytes = Vec::with_capacity(USUAL_BYTES);
        bytes.extend_from_slice(&[0; LENGTH_BYTES]);
        Self { bytes }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.len() == LENGTH_BYTES
    }

    /// Whether there is an element with this name.
    pub(crate) fn contains(&self, name: &str) -> bool {
        let mut elements = Elements { rest: &self.bytes[LENGTH_BYTES..] };
        elements.any(|element| element.name == name.as_bytes())
    }

    pub(crate) fn push(&mut self, element: Element<'_>) {
        // Two more bytes are for the type and for the NUL after the name.
        self.bytes.reserve(element.name.len() + element.value.len() + 2);
        self.bytes.push(element.kind);
        self.bytes.extend_from_slice(element.name);
        self.bytes.push(0);
        self.bytes.extend_from_slice(element.value);
    }

    /// Adds all elements of a document.
    pub(crate) fn extend(&mut self, document: &RawDocument) {
        for element in elements(document) {
            self.push(element);
        }
    }

    pub(crate) fn push_document(&mut self, name: &[u8], document: &RawDocument) {
        self.push(Element { kind: kind::DOCUMENT, name, value: document.as_bytes() });
    }

    pub(crate) fn push_uuid(&mut self, name: &str, uuid: Uuid) {
        self.push(Element { kind: kind::BINARY, name: name.as_bytes(), value: &uuid_value(uuid) });
    }

    pub(crate) fn push_text(&mut self, name: &str, text: &str) {
        self.push(Element { kind: kind::STRING, name: name.as_bytes(), value: &text_value(text) });
    }

    pub(crate) fn push_date(&mut self, name: &str, date: DateTime) {
        let value = date.timestamp_millis().to_le_bytes();
        self.push(Element { kind: kind::DATE, name: name.as_bytes(), value: &value });
    }

    pub(crate) fn push_null(&mut self, name: &str) {
        self.push(Element { kind: kind::NULL, name: name.as_bytes(), value: &[] });
    }

    pub(crate) fn push_i32(&mut self, name: &str, number: i32) {
        self.push(Element { kind: kind::INT32, name: name.as_bytes(), value: &number.to_le_bytes() });
    }

    pub(crate) fn push_i64(&mut self, name: &str, number: i64) {
        self.push(Element { kind: kind::INT64, name: name.as_bytes(), value: &number.to_le_bytes() });
    }

    pub(crate) fn push_bool(&mut self, name: &str, value: bool) {
        self.push(Element { kind: kind::BOOLEAN, name: name.as_bytes(), value: &[u8::from(value)] });
    }

    pub(crate) fn push_array(&mut self, name: &str, items: List) {
        let items = items.items.build();
        self.push(Element { kind: kind::ARRAY, name: name.as_bytes(), value: items.as_bytes() });
    }

    pub(crate) fn build(mut self) -> RawDocumentBuf {
        self.bytes.push(0);
        // MongoDB accepts at most 16 MiB, so the length of any useful value fits.
        let length = i32::try_from(self.bytes.len()).unwrap_or(i32::MAX);
        self.bytes[..4].copy_from_slice(&length.to_le_bytes());
        RawDocumentBuf::from_bytes(self.bytes).unwrap_or_default()
    }
}

impl Default for Builder {
    fn default() -> Self {
        Self::new()
    }
}

/// Builds an array.
pub(crate) struct List {
    items: Builder,
    length: usize,
}

impl List {
    pub(crate) fn new() -> Self {
        Self { items: Builder::new(), length: 0 }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Adds a value to the array. Its index in the array replaces the element's name.
    pub(crate) fn push(&mut self, element: Element<'_>) {
        let place = self.length.to_string();
        self.items.push(Element { name: place.as_bytes(), ..element });
        self.length += 1;
    }

    pub(crate) fn push_document(&mut self, document: &RawDocument) {
        self.push(Element { kind: kind::DOCUMENT, name: b"", value: document.as_bytes() });
    }

    pub(crate) fn push_uuid(&mut self, uuid: Uuid) {
        self.push(Element { kind: kind::BINARY, name: b"", value: &uuid_value(uuid) });
    }

    pub(crate) fn push_text(&mut self, text: &str) {
        self.push(Element { kind: kind::STRING, name: b"", value: &text_value(text) });
    }

    pub(crate) fn push_null(&mut self) {
        self.push(Element { kind: kind::NULL, name: b"", value: &[] });
    }

    pub(crate) fn push_i32(&mut self, number: i32) {
        self.push(Element { kind: kind::INT32, name: b"", value: &number.to_le_bytes() });
    }

    pub(crate) fn push_array(&mut self, items: Self) {
        self.push(Element { kind: kind::ARRAY, name: b"", value: items.items.build().as_bytes() });
    }
}

/// A text as the value of an element: its length, which counts the NUL, and its bytes.
fn text_value(text: &str) -> Vec<u8> {
    // A text that MongoDB accepts is far shorter than 2 GiB.
    let length = i32::try_from(text.len() + 1).unwrap_or(i32::MAX);
    [&length.to_le_bytes()[..], text.as_bytes(), &[0]].concat()
}

/// A UUID as the value of an element: its length, its subtype, its bytes.
fn uuid_value(uuid: Uuid) -> [u8; UUID_VALUE_BYTES] {
    let mut value = [0; UUID_VALUE_BYTES];
    value[0] = UUID_BYTES;
    value[4] = UUID_SUBTYPE;
    value[5..].copy_from_slice(&uuid.bytes());
    value
}

#[cfg(test)]
mod tests {
    use mongodb::bson::{
        Binary, Bson, DateTime, Decimal128, JavaScriptCodeWithScope, Regex, Timestamp, doc, oid::ObjectId,
        spec::BinarySubtype,
    };

    use super::*;

    #[allow(clippy::unnecessary_fallible_conversions, reason = "the conversion can fail in one BSON version")]
    fn every_type() -> RawDocumentBuf {
        let mut document = doc! {
            "double": 1.5, "string": "text", "document": { "a": 1 }, "array": [1, "two"],
            "binary": Binary { subtype: BinarySubtype::Generic, bytes: vec![1, 2, 3] },
            "old": Binary { subtype: BinarySubtype::BinaryOld, bytes: vec![1, 2, 3] },
            "oid": ObjectId::new(), "bool": true, "date": DateTime::now(), "null": null,
            "js": Bson::JavaScriptCode("f".into()), "symbol": Bson::Symbol("s".into()),
            "int": 7, "timestamp": Timestamp { time: 1, increment: 2 }, "long": 7i64,
            "decimal": Decimal128::from_bytes([7; 16]), "min": Bson::MinKey, "max": Bson::MaxKey,
            "undefined": Bson::Undefined, "": "no name",
        };
        let (code, scope) = ("f".to_owned(), doc! { "x": 1 });
        document.insert("scope", JavaScriptCodeWithScope { code, scope });
        document
            .insert("regex", Regex { pattern: "a.b".try_into().unwrap(), options: "i".try_into().unwrap() });
        RawDocumentBuf::try_from(&document).unwrap()
    }

    #[test]
    fn elements_of_every_type_are_copied_byte_by_byte() {
        let document = every_type();
        let mut copy = Builder::new();
        copy.extend(&document);
        assert_eq!(copy.build().as_bytes(), document.as_bytes());
        assert_eq!(elements(&document).count(), document.iter().count());
    }

    #[test]
    fn pushed_values_are_encoded_as_the_bson_crate_does() {
        let id = Uuid::new();
        let mut built = Builder::new();
        built.push_uuid("id", id);
        built.push_text("text", "☃\0");
        built.push_date("at", DateTime::from_millis(-1));
        built.push_null("none");
        built.push_i32("small", -1);
        built.push_i64("large", 1 << 40);
        built.push_bool("yes", true);
        built.push_bool("no", false);
        let mut list = List::new();
        list.push_uuid(id);
        list.push_text("☃");
        list.push_null();
        list.push_i32(-1);
        list.push_array(List::new());
        built.push_array("list", list);
        let expected = doc! {
            "id": id, "text": "☃\0", "at": DateTime::from_millis(-1), "none": null, "small": -1, "large": 1_i64 << 40,
            "yes": true, "no": false, "list": [id, "☃", null, -1, []],
        };
        let expected = RawDocumentBuf::try_from(&expected).unwrap();
        assert_eq!(built.build().as_bytes(), expected.as_bytes());
    }

    #[test]
    fn bytes_that_are_not_bson_end_the_elements() {
        let whole = every_type();
        let mut broken = whole.as_bytes().to_vec();
        broken[4] = 0x55;
        let broken = RawDocumentBuf::from_bytes(broken).unwrap();
        let mut elements = elements(&broken);
        assert_eq!(elements.next(), None);
        assert!(!elements.is_exhausted());
    }

    #[test]
    fn soundness_is_checked_at_every_depth() {
        let nested = |inner: RawDocumentBuf| {
            let mut outer = Builder::new();
            outer.push_document(b"a", &inner);
            outer.build()
        };
        assert!(is_sound(&nested(every_type()), 2));
        assert!(!is_sound(&nested(every_type()), 1), "too deep");

        let mut bool_of_2 = Builder::new();
        bool_of_2.push(Element { kind: 0x08, name: b"b", value: &[2] });
        assert!(!is_sound(&nested(bool_of_2.build()), 1));
        let mut unknown_kind = Builder::new();
        unknown_kind.push(Element { kind: 0x55, name: b"b", value: &[] });
        assert!(!is_sound(&nested(unknown_kind.build()), 1));
    }

    #[test]
    fn no_length_leads_outside_of_the_document() {
        let whole = every_type().as_bytes().to_vec();
        for place in 4..whole.len() - 1 {
            for byte in [0, 1, 0x7F, 0xFF] {
                let mut broken = whole.clone();
                broken[place] = byte;
                let broken = RawDocumentBuf::from_bytes(broken).unwrap();
                assert!(elements(&broken).count() < broken.as_bytes().len());
            }
        }
    }
}
