//! The identity of a document, which is its namespace and its key.

use std::{borrow::Cow, fmt, fmt::Write as _};

use mongodb::{
    Namespace,
    bson::{Binary, Bson, Document, RawBsonRef, RawDocument, RawDocumentBuf, doc, spec::BinarySubtype},
};

use crate::{
    encoding::{
        bytes::{self, Builder, Element, List, kind},
        codec,
        extended_json::relaxed_text,
        one_line::{Keep, one_line},
        salvage,
    },
    stored::filter::{Filter, equal_to, push_equal},
};

const ID: &str = "_id";
/// A key that is nested deeper than this is not decoded but kept as bytes. Decoding uses stack space for each level,
/// and the server allows 180 levels.
const DEPTH: usize = 32;
/// Maximum length of an `_id` in log lines. A longer `_id` is cut, because its length can be several megabytes.
const LONGEST_SHOWN: usize = 200;

/// Identifies one document in the way a change event does, by a namespace and a *document key*.
///
/// The document key contains `_id` and, on a sharded collection, the fields of the shard key. The server's bytes are
/// kept, so that every `_id` that MongoDB stores survives, even one that is not UTF-8. Keys are only compared for
/// equality.
#[derive(Clone, PartialEq)]
pub struct DocumentRef {
    /// Database and collection.
    pub namespace: Namespace,
    /// `{ _id, ..shard key fields }`.
    key: RawDocumentBuf,
    /// Whether a [`Document`] can represent this key unchanged.
    plain: bool,
}

impl DocumentRef {
    /// Identifies a document by its document key, from a change event or a command.
    pub fn new(namespace: Namespace, key: RawDocumentBuf) -> Self {
        let plain = is_plain(&key);
        Self { namespace, key, plain }
    }

    /// Identifies a document by its `_id` alone.
    pub fn by_id(namespace: Namespace, id: impl Into<Bson>) -> Self {
        let key = codec::encode(&doc! { ID: id.into() });
        // No document can have an `_id` that can't be encoded or that is an array, so such a reference matches no
        // document.
        let key = key.or_else(|_| codec::encode(&doc! { ID: [] })).unwrap_or_default();
        Self { namespace, key, plain: true }
    }

    /// Identifies a stored document by its `_id` alone. Returns `None` if these bytes have no `_id`.
    pub fn of_stored(namespace: Namespace, document: &RawDocument) -> Option<Self> {
        let mut key = Builder::new();
        key.push(bytes::element(document, ID)?);
        Some(Self::new(namespace, key.build()))
    }

    /// The document key.
    pub fn key(&self) -> &RawDocument {
        &self.key
    }

    /// Returns the `_id`, for people and for code that knows its own documents. Invalid UTF-8 is replaced here, so
    /// different documents may appear equal.
    pub fn id(&self) -> Bson {
        let key = match self.plain_key() {
            None if bytes::is_sound(&self.key, DEPTH) => Some(salvage::lossy(&self.key)),
            key => key,
        };
        key.and_then(|mut key| key.remove(ID)).unwrap_or_else(|| self.id_in_base64().into())
    }

    /// Returns a filter for the driver that selects only this document.
    ///
    /// If a [`Document`] can't represent the key, for example because of invalid UTF-8, this filter selects no
    /// document; use [`filter_bytes`](Self::filter_bytes) in this case.
    pub fn filter(&self) -> Document {
        match self.select(Document::new()) {
            Filter::Plain(filter) => filter,
            Filter::Bytes(_) => doc! { ID: [] },
        }
    }

    /// Returns a filter that selects only this document, for a command that is sent as bytes.
    ///
    /// Values that a query would interpret as an expression (sub-documents, regular expressions) are wrapped in `$eq`.
    pub fn filter_bytes(&self) -> RawDocumentBuf {
        let mut filter = Builder::new();
        for element in bytes::elements(&self.key) {
            push_equal(&mut filter, element);
        }
        filter.build()
    }

    /// Returns a filter, as bytes, that selects these documents of one collection by `_id`.
    pub fn any_of(documents: &[Self]) -> RawDocumentBuf {
        let (mut listed, mut odd) = (List::new(), List::new());
        for document in documents {
            let Some(id) = bytes::element(&document.key, ID) else { continue };
            if is_listable(id) {
                listed.push(id);
            } else {
                let mut filter = Builder::new();
                push_equal(&mut filter, id);
                odd.push_document(&filter.build());
            }
        }

        let mut any = Builder::new();
        any.push_array("$in", listed);
        let mut filter = Builder::new();
        filter.push_document(ID.as_bytes(), &any.build());
        if odd.is_empty() {
            return filter.build();
        }

        odd.push_document(&filter.build());
        let mut filter = Builder::new();
        filter.push_array("$or", odd);
        filter.build()
    }

    /// Returns a filter that selects this document if it meets further conditions.
    pub(crate) fn select(&self, further: Document) -> Filter {
        if let Some(key) = self.plain_key() {
            let mut filter: Document =
                key.into_iter().map(|(name, value)| (name, equal_to(&value))).collect();
            filter.extend(further);
            return Filter::Plain(filter);
        }
        self.select_bytes(&codec::encode(&further).unwrap_or_default())
    }

    /// Returns the filter of [`select`](Self::select) for a command, with the key and the conditions as bytes.
    pub(crate) fn select_bytes(&self, further: &RawDocument) -> Filter {
        let mut filter = Builder::new();
        filter.extend(&self.filter_bytes());
        filter.extend(further);
        Filter::Bytes(filter.build())
    }

    /// Returns the `_id` for use in a filter's list (`$in`). Returns `None` if a query would interpret the `_id` as an
    /// expression, or if the `_id` alone doesn't identify the document.
    pub(crate) fn listable_id(&self) -> Option<Bson> {
        let mut key = self.plain_key().filter(|key| key.len() == 1)?;
        key.remove(ID)
            .filter(|id| !matches!(id, Bson::Document(_) | Bson::RegularExpression(_) | Bson::Undefined))
    }

    /// Adds a field of the shard key.
    pub(crate) fn add_shard_key(&mut self, field: &str, value: Bson) {
        let Ok(mut key) = codec::to_document(&self.key) else { return };
        key.insert(field, value);
        if let Ok(key) = codec::encode(&key) {
            self.key = key;
        }
    }

    /// Returns the `_id` as text, as in the CloudEvents `subject`. A string is unchanged, an `ObjectId` or UUID has its
    /// usual text form, a number is written with its digits, and everything else is relaxed extended JSON. Invalid
    /// UTF-8 is replaced.
    ///
    /// Sixteen bytes of the generic binary subtype are also treated as a UUID, because serde writes a UUID to BSON in
    /// this form.
    pub fn subject(&self) -> String {
        // Most `_id`s are strings. Such an `_id` is read without decoding the rest of the key.
        if let Ok(Some(RawBsonRef::String(text))) = self.key.get(ID) {
            return text.to_owned();
        }
        match self.id() {
            Bson::String(text) => text,
            Bson::ObjectId(id) => id.to_hex(),
            Bson::Int32(number) => number.to_string(),
            Bson::Int64(number) => number.to_string(),
            Bson::Boolean(value) => value.to_string(),
            Bson::DateTime(date) => {
                codec::rfc3339(date).unwrap_or_else(|| date.timestamp_millis().to_string())
            }
            Bson::Binary(binary) => match uuid_of(&binary) {
                Some(uuid) => uuid.to_string(),
                None => relaxed_text(&Bson::Binary(binary)),
            },
            other => relaxed_text(&other),
        }
    }

    /// Returns the CloudEvents `source`, a URI reference with two path segments, `/{database}/{collection}`.
    pub fn source(&self) -> String {
        format!("/{}/{}", segment(&self.namespace.db), segment(&self.namespace.coll))
    }

    /// Returns bytes that are equal exactly if the documents are the same, as the key for in-memory maps.
    pub fn map_key(&self) -> Vec<u8> {
        let Namespace { db, coll } = &self.namespace;
        [db.as_bytes(), b".", coll.as_bytes(), b"\0", self.key.as_bytes()].concat()
    }

    /// Returns the key as a [`Document`], if a `Document` can represent the key unchanged.
    pub(crate) fn plain_key(&self) -> Option<Document> {
        if !self.plain {
            return None;
        }
        codec::to_document(&self.key).ok()
    }

    /// Returns the text for an `_id` that can't be decoded at all.
    fn id_in_base64(&self) -> String {
        let value = bytes::element(&self.key, ID).map(|Element { value, .. }| value);
        codec::base64(value.unwrap_or_default())
    }
}

/// Whether a list in a filter treats this id as a value and not as an expression.
fn is_listable(id: Element<'_>) -> bool {
    if id.kind != kind::DOCUMENT {
        return !matches!(id.kind, kind::REGULAR_EXPRESSION | kind::UNDEFINED);
    }
    let Ok(document) = RawDocument::from_bytes(id.value) else { return false };
    bytes::elements(document).all(|element| !element.name.starts_with(b"$"))
}

/// Returns the UUID in a binary `_id`, if the `_id` is a UUID.
fn uuid_of(binary: &Binary) -> Option<uuid::Uuid> {
    if !matches!(binary.subtype, BinarySubtype::Uuid | BinarySubtype::Generic) {
        return None;
    }
    uuid::Uuid::from_slice(&binary.bytes).ok()
}

/// Whether these bytes can be decoded without loss.
fn is_plain(key: &RawDocument) -> bool {
    if !bytes::is_sound(key, DEPTH) {
        return false;
    }
    let again = codec::to_document(key).and_then(|decoded| codec::encode(&decoded));
    again.is_ok_and(|again| again.as_bytes() == key.as_bytes())
}

/// Writes the reference for log lines, on one line and limited in length.
impl fmt::Display for DocumentRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let subject = self.subject();
        write!(f, "{}/{}", shown(&self.namespace.to_string()), shown(&subject))?;
        if subject.len() > LONGEST_SHOWN {
            write!(f, "… ({} bytes)", subject.len())?;
        }
        Ok(())
    }
}

/// Keeps a text on one line and cuts it if it is too long.
fn shown(text: &str) -> Cow<'_, str> {
    one_line(&text[..text.floor_char_boundary(LONGEST_SHOWN)], Keep::Nothing)
}

impl fmt::Debug for DocumentRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DocumentRef({self})")
    }
}

/// Encodes one path segment. Everything except the `pchar` of RFC 3986 is percent-encoded, byte by byte.
fn segment(name: &str) -> String {
    let mut encoded = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => encoded.push(byte.into()),
            _ if b"-._~!$&'()*+,;=:@".contains(&byte) => encoded.push(byte.into()),
            _ => {
                // Writing to a string can't fail.
                let _ = write!(encoded, "%{byte:02X}");
            }
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn orders() -> Namespace {
        Namespace::new("shop", "orders")
    }

    /// Builds a string `_id` from these bytes.
    fn text(bytes: &[u8]) -> RawDocumentBuf {
        let length = i32::try_from(bytes.len() + 1).unwrap().to_le_bytes();
        let value = [&length[..], bytes, &[0]].concat();
        let mut key = Builder::new();
        key.push(Element { kind: 0x02, name: b"_id", value: &value });
        key.build()
    }

    #[test]
    fn document_ids_never_act_as_query_expressions() {
        let document = DocumentRef::by_id(orders(), doc! { "$gt": "" });
        let filter = doc! { "_id": { "$eq": { "$gt": "" } } };
        assert_eq!(document.filter(), filter);
        assert_eq!(document.filter_bytes(), RawDocumentBuf::try_from(&filter).unwrap());
    }

    #[test]
    fn ids_like_expressions_are_not_listed_with_others() {
        let of = |id: Bson| DocumentRef::by_id(orders(), id);
        let (sub, evil): (Bson, Bson) = (doc! { "tenant": 1 }.into(), doc! { "$gt": "" }.into());
        let any = DocumentRef::any_of(&[of(1.into()), of(sub.clone()), of(evil.clone())]);
        let expected = doc! { "$or": [{ "_id": { "$eq": evil } }, { "_id": { "$in": [1, sub.clone()] } }] };
        assert_eq!(codec::to_document(&any).unwrap(), expected);
        let plain = DocumentRef::any_of(&[of(1.into()), of(sub.clone())]);
        assert_eq!(codec::to_document(&plain).unwrap(), doc! { "_id": { "$in": [1, sub] } });
    }

    #[test]
    fn names_are_percent_encoded_in_the_source() {
        let source = |db: &str, coll: &str| DocumentRef::by_id(Namespace::new(db, coll), 1).source();
        assert_eq!(source("shop", "orders.archive"), "/shop/orders.archive");
        assert_eq!(source("shop", "a/b c%?#☃"), "/shop/a%2Fb%20c%25%3F%23%E2%98%83");
    }

    #[test]
    fn map_keys_distinguish_int_long_and_string() {
        let keys: std::collections::HashSet<_> = [Bson::Int32(1), Bson::Int64(1), Bson::String("1".into())]
            .into_iter()
            .map(|id| DocumentRef::by_id(orders(), id).map_key())
            .collect();
        assert_eq!(keys.len(), 3);
    }

    #[test]
    fn ids_with_invalid_utf8_keep_their_bytes() {
        let [one, other] = [b"a\xFF", b"a\xFE"].map(|id| DocumentRef::new(orders(), text(id)));
        assert!(one != other && one.map_key() != other.map_key());
        assert_eq!(one.subject(), "a\u{FFFD}");
        assert_eq!(one.filter_bytes(), text(b"a\xFF"));
        assert_eq!(one.filter(), doc! { "_id": [] }, "it selects no other document");
        assert!(matches!(one.select(doc! { "x": 1 }), Filter::Bytes(_)));
    }

    #[test]
    fn an_id_with_duplicate_fields_is_not_shortened() {
        let mut id = Builder::new();
        for value in [1i32, 2] {
            id.push(Element { kind: 0x10, name: b"a", value: &value.to_le_bytes() });
        }
        let mut key = Builder::new();
        key.push_document(b"_id", &id.build());
        let key = key.build();
        let document = DocumentRef::of_stored(orders(), &key).unwrap();
        assert_eq!(document.key().as_bytes(), key.as_bytes());
        assert!(matches!(document.select(Document::new()), Filter::Bytes(_)));
        let filter = document.filter_bytes();
        let equal = bytes::element(&filter, "_id").unwrap();
        assert_eq!(
            (equal.kind, bytes::elements(RawDocument::from_bytes(equal.value).unwrap()).count()),
            (kind::DOCUMENT, 1)
        );
    }

    #[test]
    fn sixteen_generic_bytes_are_shown_as_a_uuid() {
        let uuid = uuid::Uuid::from_u128(0x0190_a0a1_0000_7000_8000_0000_0000_0001);
        for subtype in [BinarySubtype::Generic, BinarySubtype::Uuid] {
            let id = Binary { subtype, bytes: uuid.as_bytes().to_vec() };
            assert_eq!(DocumentRef::by_id(orders(), id).subject(), uuid.to_string());
        }
        let old = Binary { subtype: BinarySubtype::UuidOld, bytes: uuid.as_bytes().to_vec() };
        assert!(DocumentRef::by_id(orders(), old).subject().contains("$binary"));
    }

    #[test]
    fn logged_ids_are_cut_to_one_line() {
        let shown = DocumentRef::by_id(orders(), "o-1\n2030 ERROR forged").to_string();
        assert_eq!(shown, "shop.orders/o-1\\n2030 ERROR forged");
        let long = DocumentRef::by_id(orders(), "☃".repeat(1_000_000)).to_string();
        assert!(long.len() < 250 && long.ends_with("(3000000 bytes)"), "{long}");
    }
}
