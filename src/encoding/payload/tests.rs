use std::{
    collections::{BTreeMap, HashMap},
    fmt::Debug,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
    time::Duration,
};

use mongodb::bson::{
    self, Binary, Bson, DateTime, Decimal128, Document, JavaScriptCodeWithScope, RawDocumentBuf, Regex,
    Timestamp, doc, oid::ObjectId, spec::BinarySubtype,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::*;
use crate::deliver::json::{self, PayloadFormat};

fn body(payload: &Bson) -> String {
    String::from_utf8(json::encode(payload, PayloadFormat::Json).unwrap()).unwrap()
}

/// Checks that a message's body is what `serde_json` writes for it, and that the message is read back equal.
#[track_caller]
fn is_as_in_json<M: Serialize + DeserializeOwned + PartialEq + Debug>(message: M) {
    let payload = encode(&message).unwrap();
    assert_eq!(body(&payload), serde_json::to_string(&message).unwrap());
    assert_eq!(decode::<M>(&stored(&payload)).unwrap(), message);
}

/// Checks that a message with BSON's own types has this body and is read back equal.
#[track_caller]
fn has_body<M: Serialize + DeserializeOwned + PartialEq + Debug>(message: M, expected: &str) {
    let payload = encode(&message).unwrap();
    assert_eq!(body(&payload), expected);
    assert_eq!(decode::<M>(&stored(&payload)).unwrap(), message);
}

/// Returns the payload after a round trip through the server's bytes.
fn stored(payload: &Bson) -> Bson {
    let bytes = codec::encode(&doc! { "v": payload.clone() }).unwrap();
    Document::try_from(bytes.as_ref() as &bson::RawDocument).unwrap().remove("v").unwrap()
}

/// Encodes a message as drivers and earlier versions of this library do.
fn compact<M: Serialize>(message: &M) -> Bson {
    codec::encode_value(message).unwrap()
}

fn uuid(byte: u8) -> uuid::Uuid {
    uuid::Uuid::from_bytes([byte; 16])
}

#[derive(Serialize, Deserialize, PartialEq, Debug, Clone)]
struct Everyday {
    id: uuid::Uuid,
    parent: Option<uuid::Uuid>,
    others: Vec<uuid::Uuid>,
    pair: (uuid::Uuid, u8),
    by_id: BTreeMap<uuid::Uuid, String>,
    from: IpAddr,
    peer: SocketAddr,
    took: Duration,
    letter: char,
    nothing: (),
}

fn everyday() -> Everyday {
    Everyday {
        id: uuid(1),
        parent: Some(uuid(2)),
        others: vec![uuid(3), uuid(4)],
        pair: (uuid(5), 6),
        by_id: [(uuid(7), "seven".to_owned())].into(),
        from: IpAddr::V6(Ipv6Addr::LOCALHOST),
        peer: SocketAddr::from((Ipv4Addr::LOCALHOST, 80)),
        took: Duration::new(1, 5),
        letter: '☃',
        nothing: (),
    }
}

#[test]
fn the_body_is_what_serde_json_writes() {
    is_as_in_json(everyday());
    is_as_in_json(Everyday { parent: None, others: vec![], ..everyday() });
    is_as_in_json(uuid(9));
    is_as_in_json("top level".to_owned());
    is_as_in_json(
        serde_json::json!({ "b": [1, 2.5, -3, null, true, "☃"], "a": { "$oid": "not one", "x.y": {} } }),
    );
}

#[test]
fn dates_of_every_crate_are_as_in_json() {
    is_as_in_json(chrono::DateTime::from_timestamp(1_700_000_000, 120_000_000).unwrap());
    is_as_in_json(chrono::NaiveDate::from_ymd_opt(2024, 2, 29).unwrap());
    is_as_in_json(jiff::Timestamp::from_millisecond(1_700_000_000_120).unwrap());
    is_as_in_json(jiff::civil::date(2024, 2, 29));
}

#[test]
fn enums_of_every_kind_are_as_in_json() {
    #[derive(Serialize, Deserialize, PartialEq, Debug)]
    enum External {
        Unit,
        Newtype(uuid::Uuid),
        Tuple(IpAddr, u8),
        Struct { id: uuid::Uuid },
    }
    #[derive(Serialize, Deserialize, PartialEq, Debug)]
    #[serde(tag = "kind")]
    enum Internal {
        Struct { id: uuid::Uuid, from: IpAddr },
        Unit,
    }
    #[derive(Serialize, Deserialize, PartialEq, Debug)]
    #[serde(tag = "kind", content = "is")]
    enum Adjacent {
        Newtype(IpAddr),
        Tuple(uuid::Uuid, i64),
    }
    #[derive(Serialize, Deserialize, PartialEq, Debug)]
    #[serde(untagged)]
    enum Untagged {
        Id(uuid::Uuid),
        Text(String),
        Number(i64),
    }
    #[derive(Serialize, Deserialize, PartialEq, Debug)]
    struct Flat {
        #[serde(flatten)]
        inner: Inner,
        #[serde(flatten)]
        rest: BTreeMap<String, IpAddr>,
    }
    #[derive(Serialize, Deserialize, PartialEq, Debug)]
    struct Inner {
        id: uuid::Uuid,
        from: Option<IpAddr>,
    }

    let from = IpAddr::V4(Ipv4Addr::LOCALHOST);
    is_as_in_json(vec![External::Unit, External::Newtype(uuid(1))]);
    is_as_in_json(vec![External::Tuple(from, 1), External::Struct { id: uuid(2) }]);
    is_as_in_json(vec![Internal::Struct { id: uuid(1), from }, Internal::Unit]);
    is_as_in_json(vec![Adjacent::Newtype(from), Adjacent::Tuple(uuid(1), i64::MIN)]);
    is_as_in_json(vec![Untagged::Id(uuid(1)), Untagged::Text("x".into()), Untagged::Number(7)]);
    let inner = Inner { id: uuid(1), from: Some(from) };
    is_as_in_json(Flat { inner, rest: [("gateway".to_owned(), from)].into() });
}

#[test]
fn keys_other_than_strings_are_as_in_json() {
    #[derive(Serialize, Deserialize, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
    enum Size {
        Small,
        Large,
    }
    #[derive(Serialize, Deserialize, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
    struct Line(u32);

    is_as_in_json(BTreeMap::from([(-1i8, 1), (2, 2)]));
    is_as_in_json(BTreeMap::from([(u64::MAX, 1), (0, 2)]));
    is_as_in_json(BTreeMap::from([(i128::MIN, 1)]));
    is_as_in_json(BTreeMap::from([(true, 1), (false, 2)]));
    is_as_in_json(BTreeMap::from([('a', 1)]));
    is_as_in_json(BTreeMap::from([(Size::Small, 1), (Size::Large, 2)]));
    is_as_in_json(BTreeMap::from([(Line(1), BTreeMap::from([(2u16, uuid(1))]))]));
    is_as_in_json(HashMap::from([(IpAddr::V4(Ipv4Addr::LOCALHOST), 1)]));
    assert!(encode(&BTreeMap::from([((1, 2), 3)])).is_err());
    assert!(encode(&BTreeMap::from([(None::<u8>, 3)])).is_err());
}

#[test]
fn numbers_are_as_in_json_or_refused() {
    is_as_in_json((i8::MIN, i16::MIN, i32::MIN, i64::MIN, i128::from(i64::MIN)));
    is_as_in_json((u8::MAX, u16::MAX, u32::MAX, i64::MAX as u64, i64::MAX as u128));
    is_as_in_json((0.1f32, 1.0f32, -0.0f32, 1e-30f32, 16_777_217.0f32, 0.1f64, 1e300f64));
    for beyond in [u64::MAX, i64::MAX as u64 + 1] {
        assert!(encode(&beyond).unwrap_err().to_string().contains("fit into 64 bits"));
        assert!(encode(&serde_json::json!({ "a": beyond })).is_err());
    }
    assert!(encode(&i128::MAX).is_err());
    assert!(encode(&u128::MAX).is_err());
}

#[test]
fn every_float_of_32_bits_is_read_again() {
    let mut random = fastrand::Rng::with_seed(7);
    for _ in 0..200_000 {
        let number = f32::from_bits(random.u32(..));
        let read: f32 = decode(&encode(&number).unwrap()).unwrap();
        assert!(read == number || number.is_nan() && read.is_nan(), "{number}");
    }
    for number in [f32::MIN_POSITIVE, f32::MAX, f32::from_bits(1), f32::INFINITY, f32::NEG_INFINITY] {
        assert_eq!(decode::<f32>(&encode(&number).unwrap()).unwrap(), number);
    }
    has_body(f64::NEG_INFINITY, r#""-Infinity""#);
}

#[test]
fn decimals_of_any_sixteen_bytes_keep_their_digits() {
    let mut random = fastrand::Rng::with_seed(7);
    for _ in 0..20_000 {
        let mut bytes = [0; 16];
        random.fill(&mut bytes);
        let decimal = Decimal128::from_bytes(bytes);
        let payload = encode(&decimal).unwrap();
        assert_eq!(body(&payload), format!("\"{decimal}\""));
    }
}

#[test]
fn raw_json_is_stored_as_its_value() {
    #[derive(Serialize)]
    #[serde(rename = "$serde_json::private::RawValue")]
    struct Raw {
        #[serde(rename = "$serde_json::private::RawValue")]
        text: &'static str,
    }
    let payload = encode(&[Raw { text: r#"{"a": [1, 0.5, "x"]}"# }]).unwrap();
    assert_eq!(body(&payload), r#"[{"a":[1,0.5,"x"]}]"#);
    assert!(encode(&Raw { text: "{" }).is_err());
}

#[allow(clippy::unnecessary_fallible_conversions, reason = "the conversion can fail in one BSON version")]
fn regex(pattern: &str) -> Regex {
    Regex { pattern: pattern.try_into().unwrap(), options: "i".try_into().unwrap() }
}

#[test]
fn bson_types_keep_the_type_and_documented_text() {
    #[derive(Serialize, Deserialize, PartialEq, Debug)]
    struct Own {
        id: ObjectId,
        at: DateTime,
        price: Option<Decimal128>,
        ids: Vec<bson::Uuid>,
        old: Binary,
    }
    let old = Binary { subtype: BinarySubtype::UuidOld, bytes: vec![0; 3] };
    let own = Own {
        id: ObjectId::from_bytes([0xab; 12]),
        at: DateTime::from_millis(120),
        price: Some(Decimal128::from_str("9.99").unwrap()),
        ids: vec![bson::Uuid::from_bytes([1; 16])],
        old: old.clone(),
    };
    let payload = encode(&own).unwrap();
    let uuid = bson::Uuid::from_bytes([1; 16]);
    let expected =
        doc! { "id": own.id, "at": own.at, "price": own.price.unwrap(), "ids": [uuid], "old": old };
    assert_eq!(payload, Bson::from(expected));
    has_body(
        own,
        r#"{"id":"abababababababababababab","at":"1970-01-01T00:00:00.120Z","price":"9.99","ids":["01010101-0101-0101-0101-010101010101"],"old":"AAAA"}"#,
    );
    has_body(serde_bytes::ByteBuf::from(vec![0xfb, 0xff]), r#""+/8=""#);
    has_body(Timestamp { time: 7, increment: u32::MAX }, r#"{"$timestamp":{"t":7,"i":4294967295}}"#);
    has_body(regex("^a"), r#"{"$regularExpression":{"pattern":"^a","options":"i"}}"#);
}

#[test]
fn every_bson_value_is_stored_as_it_is() {
    let scope =
        JavaScriptCodeWithScope { code: "f()".into(), scope: doc! { "n": 1i64, "at": DateTime::MIN } };
    let values = doc! {
        "double": 0.5, "string": "s", "array": [1, [2i64]], "object": { "x": { "y.z": Bson::Null, "$w": true } },
        "id": ObjectId::from_bytes([7; 12]), "date": DateTime::MAX, "far": DateTime::MIN,
        "generic": Binary { subtype: BinarySubtype::Generic, bytes: vec![1; 16] },
        "uuid": bson::Uuid::from_bytes([2; 16]),
        "user": Binary { subtype: BinarySubtype::UserDefined(0x81), bytes: vec![] },
        "code": Bson::JavaScriptCode("g()".into()), "scope": Bson::JavaScriptCodeWithScope(scope),
        "symbol": Bson::Symbol("s".into()), "regex": Bson::RegularExpression(regex("a/b")),
        "timestamp": Timestamp { time: u32::MAX, increment: 1 }, "decimal": Decimal128::from_str("-1E+3").unwrap(),
        "undefined": Bson::Undefined, "min": Bson::MinKey, "max": Bson::MaxKey,
        "pointer": serde_json::from_str::<Bson>(r#"{"$dbPointer":{"$ref":"c","$id":{"$oid":"abababababababababababab"}}}"#).unwrap(),
    };
    let payload = encode(&values).unwrap();
    assert_eq!(payload, Bson::Document(values.clone()));
    assert_eq!(decode::<Document>(&payload).unwrap(), values);
    assert_eq!(decode::<Bson>(&payload).unwrap(), Bson::Document(values.clone()));
    let raw = codec::encode(&values).unwrap();
    assert_eq!(encode(&raw).unwrap(), payload);
    assert_eq!(decode::<RawDocumentBuf>(&payload).unwrap(), raw);
}

#[test]
fn lookalikes_of_extended_json_stay_unchanged() {
    let sent = HashMap::from([("$oid".to_owned(), "abababababababababababab".to_owned())]);
    is_as_in_json(sent);
    is_as_in_json(serde_json::json!({ "$date": { "$numberLong": "1" }, "$numberInt": 2 }));
}

#[test]
fn messages_in_the_compact_form_are_read() {
    assert_eq!(decode::<Everyday>(&compact(&everyday().without_keys())).unwrap(), everyday().without_keys());
    let own = doc! { "at": DateTime::MIN, "id": ObjectId::from_bytes([1; 12]) };
    assert_eq!(decode::<Document>(&compact(&own)).unwrap(), own);
    let peer = SocketAddr::from((Ipv4Addr::LOCALHOST, 80));
    assert_eq!(decode::<SocketAddr>(&compact(&peer)).unwrap(), peer);
}

impl Everyday {
    /// Removes keys that aren't strings, because the compact form supports only string keys.
    fn without_keys(mut self) -> Self {
        self.by_id.clear();
        self
    }
}

#[test]
fn uuids_are_read_from_text_and_binaries() {
    #[derive(Deserialize, PartialEq, Debug)]
    struct Holder {
        id: uuid::Uuid,
        maybe: Option<uuid::Uuid>,
        own: bson::Uuid,
    }
    #[derive(Deserialize, PartialEq, Debug)]
    struct Flat {
        #[serde(flatten)]
        inner: Inner,
        from: IpAddr,
    }
    #[derive(Deserialize, PartialEq, Debug)]
    struct Inner {
        id: uuid::Uuid,
    }

    let own = bson::Uuid::from_bytes([1; 16]);
    let generic = Binary { subtype: BinarySubtype::Generic, bytes: vec![1; 16] };
    let forms = [Bson::from(uuid(1).to_string()), Bson::from(own), Bson::Binary(generic)];
    for form in forms {
        let holder = doc! { "id": form.clone(), "maybe": form.clone(), "own": form.clone() };
        let read: Holder = decode(&holder.into()).unwrap();
        assert_eq!(read, Holder { id: uuid(1), maybe: Some(uuid(1)), own }, "{form}");
        let from = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let flat: Flat = decode(&doc! { "id": form.clone(), "from": from.to_string() }.into()).unwrap();
        assert_eq!(flat, Flat { inner: Inner { id: uuid(1) }, from }, "{form}");
    }
    let java = Binary { subtype: BinarySubtype::UuidOld, bytes: vec![1; 16] };
    assert!(decode::<uuid::Uuid>(&java.into()).is_err(), "its byte order is unknown");
}

#[test]
fn values_unfit_for_bson_are_refused_by_name() {
    let refused = |error: CodecError| error.to_string();
    let nul = refused(encode(&HashMap::from([("a\0b", 1)])).unwrap_err());
    assert!(nul.contains(r#""a\0b" has a NUL"#), "{nul}");
    assert!(encode(&doc! { "x": [{ "a\0": 1 }] }).is_err());

    #[derive(Serialize)]
    struct Twice {
        id: u8,
        #[serde(flatten)]
        rest: BTreeMap<String, u8>,
    }
    let twice = refused(encode(&Twice { id: 1, rest: [("id".to_owned(), 2)].into() }).unwrap_err());
    assert!(twice.contains(r#""id" occurs twice"#), "{twice}");
}

#[test]
fn a_message_nested_without_end_is_refused() {
    struct Endless;
    impl Serialize for Endless {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.collect_seq([Self])
        }
    }
    assert!(encode(&Endless).unwrap_err().to_string().contains("nested deeper"));
}

#[test]
fn a_message_that_does_not_fit_says_which_field() {
    #[derive(Deserialize, Debug)]
    #[expect(dead_code, reason = "only decoded")]
    struct Paid {
        id: uuid::Uuid,
        amount: i64,
    }
    let error = decode::<Paid>(&doc! { "id": uuid(1).to_string() }.into()).unwrap_err();
    assert_eq!(error.to_string(), "missing field `amount`");
}
