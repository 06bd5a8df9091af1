//! Builds, as bytes, every kind of `_id` that MongoDB stores and that may confuse a reader.

#![allow(clippy::pedantic, reason = "product code is held to these lints; a test may be short instead")]
#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "not every test needs all of this; a broken fixture fails the test"
)]

use document_outbox::DocumentRef;
use mongodb::{
    Collection, Namespace,
    bson::{
        Binary, Bson, DateTime, Decimal128, Document, JavaScriptCodeWithScope, RawDocument, RawDocumentBuf,
        Regex, Timestamp, doc, rawdoc, spec::BinarySubtype,
    },
};

/// Returns `{ _id }` for each odd id, with a name.
pub(crate) fn odd_ids() -> Vec<(&'static str, RawDocumentBuf)> {
    let binary = |subtype, length| Bson::Binary(Binary { subtype, bytes: vec![7; length] });
    let scoped = JavaScriptCodeWithScope { code: "f".into(), scope: doc! { "x": 1 } };
    let regex = Regex { pattern: "a.b".into(), options: "i".into() };
    let mut ids: Vec<(&str, RawDocumentBuf)> = vec![
        ("text that is not UTF-8", patched("??", "??", b"\xFF\xFE")),
        ("other text that is not UTF-8", patched("??", "??", b"\xFE\xFF")),
        ("inner text that is not UTF-8", patched(doc! { "a": "??" }, "??", b"\xFF\xFE")),
        ("a name that is not UTF-8", patched(doc! { "?a": 1 }, "?a", b"\xFFa")),
        ("two fields of one name", patched(doc! { "aa": 1, "ab": 2 }, "ab", b"aa")),
        ("code that is not UTF-8", patched(Bson::JavaScriptCode("??".into()), "??", b"\xFF\xFE")),
        ("200 levels less 50", nested(150)),
    ];
    let plain: Vec<(&str, Bson)> = vec![
        ("a reference", doc! { "$ref": "customers", "$id": 7 }.into()),
        ("names with dots", doc! { "a.b": 1, "": 2 }.into()),
        ("a NUL", "a\0b".into()),
        ("forged line", "o-1\n2030-01-01T00:00:00Z ERROR forged".into()),
        ("nothing", "".into()),
        ("null", Bson::Null),
        ("an inner regular expression", doc! { "a": regex }.into()),
        ("an inner array", doc! { "a": [1, { "b": [] }] }.into()),
        ("an inner undefined", doc! { "a": Bson::Undefined }.into()),
        ("min key", Bson::MinKey),
        ("max key", Bson::MaxKey),
        ("not a number", f64::NAN.into()),
        ("infinity", f64::NEG_INFINITY.into()),
        ("minus zero", (-0.0).into()),
        ("a decimal", Decimal128::from_bytes([7; 16]).into()),
        ("code", Bson::JavaScriptCode("f".into())),
        ("code with a scope", scoped.into()),
        ("a symbol", Bson::Symbol("s".into())),
        ("a timestamp", Timestamp { time: 1, increment: 2 }.into()),
        ("a date far away", DateTime::from_millis(i64::MAX).into()),
        ("sixteen bytes", binary(BinarySubtype::Generic, 16)),
        ("an old UUID", binary(BinarySubtype::UuidOld, 16)),
        ("old binary", binary(BinarySubtype::BinaryOld, 3)),
        ("binary of one's own", binary(BinarySubtype::UserDefined(200), 3)),
        ("300 kB", "x".repeat(300_000).into()),
        ("300 kB with a name", doc! { "a": "x".repeat(300_000) }.into()),
    ];
    ids.extend(plain.into_iter().map(|(name, id)| (name, encoded(&doc! { "_id": id }))));
    ids
}

/// Encodes an `_id` and replaces a part of it with bytes of the same length.
fn patched(id: impl Into<Bson>, part: &str, by: &[u8]) -> RawDocumentBuf {
    let mut bytes = encoded(&doc! { "_id": id.into() }).into_bytes();
    let place = bytes.windows(part.len()).rposition(|window| window == part.as_bytes()).unwrap();
    bytes[place..place + by.len()].copy_from_slice(by);
    RawDocumentBuf::from_bytes(bytes).unwrap()
}

fn nested(levels: usize) -> RawDocumentBuf {
    let mut inner = rawdoc! { "a": 1 };
    for _ in 0..levels {
        inner = rawdoc! { "a": inner };
    }
    rawdoc! { "_id": inner }
}

fn encoded(document: &Document) -> RawDocumentBuf {
    RawDocumentBuf::try_from(document).unwrap()
}

/// Builds `{ _id, outbox }`.
pub(crate) fn stored(id: &RawDocument, outbox: Vec<Document>) -> RawDocumentBuf {
    let outbox = encoded(&doc! { "outbox": outbox });
    // Both documents are joined without their length fields and final NULs.
    let inner = |document: &RawDocument| document.as_bytes()[4..document.as_bytes().len() - 1].to_vec();
    let elements = [inner(id), inner(&outbox)].concat();
    let length = i32::try_from(elements.len() + 5).unwrap().to_le_bytes();
    RawDocumentBuf::from_bytes([&length[..], &elements, &[0]].concat()).unwrap()
}

/// Inserts documents that the driver's own insert refuses.
pub(crate) async fn insert(collection: &Collection<Document>, documents: &[RawDocumentBuf]) {
    let database = collection.client().database(&collection.namespace().db);
    for document in documents {
        let list = mongodb::bson::RawArrayBuf::from_iter([document.clone()]);
        let command = rawdoc! { "insert": collection.name(), "documents": list };
        let reply = database.run_raw_command(command).await.unwrap();
        assert_eq!((reply.get_i32("n"), reply.get_array("writeErrors").ok()), (Ok(1), None));
    }
}

/// Number of documents in a collection that still have an entry.
pub(crate) async fn undelivered(collection: &Collection<Document>) -> u64 {
    collection.count_documents(doc! { "outbox.0": { "$exists": true } }).await.unwrap()
}

pub(crate) fn named(namespace: &Namespace, id: &RawDocumentBuf) -> DocumentRef {
    DocumentRef::new(namespace.clone(), id.clone())
}
