//! Properties of message bodies: a body equals the output of `serde_json` for the same message, and extended JSON keeps the type
//! of every value.

use std::collections::BTreeMap;

use document_outbox::{
    deliver::{Envelope, PayloadFormat, json},
    internal::encode_payload,
};
use mongodb::bson::{
    Binary, Bson, Decimal128, JavaScriptCodeWithScope, Regex, Timestamp, doc, oid::ObjectId,
    spec::BinarySubtype,
};
use proptest::prelude::*;
use serde::{
    Serialize, Serializer,
    ser::{SerializeStruct, SerializeStructVariant, SerializeTuple, SerializeTupleVariant},
};

use crate::generated::any_bson;

/// A message of any type that serde can describe.
#[derive(Debug, Clone)]
enum Shape {
    Unit,
    Bool(bool),
    Small(i8),
    Whole(i64),
    Unsigned(u32),
    Single(f32),
    Double(f64),
    Letter(char),
    Text(String),
    Absent,
    Present(Box<Shape>),
    List(Vec<Shape>),
    Pair(Box<[Shape; 2]>),
    ByName(BTreeMap<String, Shape>),
    ByNumber(BTreeMap<i64, Shape>),
    Struct(Box<[Shape; 2]>),
    Wrapped(Box<Shape>),
    Variant,
    VariantOf(Box<Shape>),
    VariantOfTwo(Box<[Shape; 2]>),
    VariantWithFields(Box<[Shape; 2]>),
}

impl Serialize for Shape {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Unit => to.serialize_unit_struct("Unit"),
            Self::Bool(value) => to.serialize_bool(*value),
            Self::Small(value) => to.serialize_i8(*value),
            Self::Whole(value) => to.serialize_i64(*value),
            Self::Unsigned(value) => to.serialize_u32(*value),
            Self::Single(value) => to.serialize_f32(*value),
            Self::Double(value) => to.serialize_f64(*value),
            Self::Letter(value) => to.serialize_char(*value),
            Self::Text(value) => to.serialize_str(value),
            Self::Absent => to.serialize_none(),
            Self::Present(value) => to.serialize_some(value),
            Self::List(values) => to.collect_seq(values),
            Self::Pair(values) => {
                let mut pair = to.serialize_tuple(2)?;
                values.iter().try_for_each(|value| pair.serialize_element(value))?;
                pair.end()
            }
            Self::ByName(values) => to.collect_map(values),
            Self::ByNumber(values) => to.collect_map(values),
            Self::Struct(values) => {
                let mut fields = to.serialize_struct("Struct", 2)?;
                fields.serialize_field("a", &values[0])?;
                fields.serialize_field("b", &values[1])?;
                fields.end()
            }
            Self::Wrapped(value) => to.serialize_newtype_struct("Wrapped", value),
            Self::Variant => to.serialize_unit_variant("Enum", 0, "Variant"),
            Self::VariantOf(value) => to.serialize_newtype_variant("Enum", 1, "VariantOf", value),
            Self::VariantOfTwo(values) => {
                let mut pair = to.serialize_tuple_variant("Enum", 2, "VariantOfTwo", 2)?;
                values.iter().try_for_each(|value| pair.serialize_field(value))?;
                pair.end()
            }
            Self::VariantWithFields(values) => {
                let mut fields = to.serialize_struct_variant("Enum", 3, "VariantWithFields", 2)?;
                fields.serialize_field("a", &values[0])?;
                fields.serialize_field("b", &values[1])?;
                fields.end()
            }
        }
    }
}

fn any_shape() -> impl Strategy<Value = Shape> {
    let leaf = prop_oneof![
        Just(Shape::Unit),
        any::<bool>().prop_map(Shape::Bool),
        any::<i8>().prop_map(Shape::Small),
        any::<i64>().prop_map(Shape::Whole),
        any::<u32>().prop_map(Shape::Unsigned),
        proptest::num::f32::ANY.prop_map(Shape::Single),
        proptest::num::f64::ANY.prop_map(Shape::Double),
        any::<char>().prop_map(Shape::Letter),
        any::<String>().prop_map(Shape::Text),
        Just(Shape::Absent),
        Just(Shape::Variant),
    ];
    leaf.prop_recursive(4, 24, 3, |inner| {
        let two = || [inner.clone(), inner.clone()].prop_map(Box::new);
        prop_oneof![
            inner.clone().prop_map(|value| Shape::Present(value.into())),
            prop::collection::vec(inner.clone(), 0..3).prop_map(Shape::List),
            two().prop_map(Shape::Pair),
            prop::collection::btree_map("[^\0]{0,6}", inner.clone(), 0..3).prop_map(Shape::ByName),
            prop::collection::btree_map(any::<i64>(), inner.clone(), 0..3).prop_map(Shape::ByNumber),
            two().prop_map(Shape::Struct),
            inner.clone().prop_map(|value| Shape::Wrapped(value.into())),
            inner.clone().prop_map(|value| Shape::VariantOf(value.into())),
            two().prop_map(Shape::VariantOfTwo),
            two().prop_map(Shape::VariantWithFields),
        ]
    })
}

/// Applies the documented exceptions of `deliver::json`: a number that is not finite becomes a word, and an `f32` becomes its
/// shortest decimal.
fn as_documented(shape: &Shape) -> Shape {
    let both = |values: &[Shape; 2]| Box::new([as_documented(&values[0]), as_documented(&values[1])]);
    let one = |value: &Shape| Box::new(as_documented(value));
    match shape {
        Shape::Single(number) if number.is_finite() => Shape::Double(number.to_string().parse().unwrap()),
        Shape::Single(number) => as_documented(&Shape::Double((*number).into())),
        Shape::Double(number) if number.is_nan() => Shape::Text("NaN".into()),
        Shape::Double(number) if number.is_infinite() && *number > 0.0 => Shape::Text("Infinity".into()),
        Shape::Double(number) if number.is_infinite() => Shape::Text("-Infinity".into()),
        Shape::Present(value) => Shape::Present(one(value)),
        Shape::List(values) => Shape::List(values.iter().map(as_documented).collect()),
        Shape::Pair(values) => Shape::Pair(both(values)),
        Shape::ByName(values) => {
            Shape::ByName(values.iter().map(|(name, value)| (name.clone(), as_documented(value))).collect())
        }
        Shape::ByNumber(values) => {
            Shape::ByNumber(values.iter().map(|(name, value)| (*name, as_documented(value))).collect())
        }
        Shape::Struct(values) => Shape::Struct(both(values)),
        Shape::Wrapped(value) => Shape::Wrapped(one(value)),
        Shape::VariantOf(value) => Shape::VariantOf(one(value)),
        Shape::VariantOfTwo(values) => Shape::VariantOfTwo(both(values)),
        Shape::VariantWithFields(values) => Shape::VariantWithFields(both(values)),
        leaf => leaf.clone(),
    }
}

/// Generates a floating-point number, or a value of a type that BSON has and JSON does not have.
fn any_rare_bson() -> impl Strategy<Value = Bson> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..20);
    let text = || "[^\0]{0,5}";
    prop_oneof![
        proptest::num::f64::ANY.prop_map(Bson::from),
        any::<[u8; 12]>().prop_map(|bytes| Bson::from(ObjectId::from_bytes(bytes))),
        (any::<u32>(), any::<u32>()).prop_map(|(time, increment)| Timestamp { time, increment }.into()),
        any::<i64>().prop_map(|millis| Bson::from(mongodb::bson::DateTime::from_millis(millis))),
        (prop::sample::select(vec![0u8, 1, 3, 5, 0x80, 0xff]), bytes()).prop_map(|(subtype, bytes)| Binary {
            subtype: BinarySubtype::from(subtype),
            bytes
        }
        .into()),
        any::<i64>().prop_map(|number| number.to_string().parse::<Decimal128>().unwrap().into()),
        text().prop_map(|pattern| Regex { pattern, options: "im".into() }.into()),
        text().prop_map(Bson::JavaScriptCode),
        text().prop_map(|code| Bson::JavaScriptCodeWithScope(JavaScriptCodeWithScope {
            code,
            scope: doc! { "a": 1 }
        })),
        text().prop_map(Bson::Symbol),
        Just(Bson::Undefined),
        Just(Bson::MinKey),
        Just(Bson::MaxKey),
    ]
}

/// Returns the bytes of a value. Every NaN has the same bytes.
fn bytes(value: &Bson) -> Vec<u8> {
    let value = if matches!(value, Bson::Double(number) if number.is_nan()) {
        &Bson::Double(f64::NAN)
    } else {
        value
    };
    mongodb::bson::to_vec(&doc! { "": value }).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn a_body_is_what_serde_json_writes(shape in any_shape()) {
        let payload = encode_payload(&shape).unwrap();
        let body = json::encode(&payload, PayloadFormat::Json).unwrap();
        let expected = serde_json::to_string(&as_documented(&shape)).unwrap();
        prop_assert_eq!(String::from_utf8(body).unwrap(), expected);
    }

    #[test]
    fn a_message_is_decoded_as_it_was_sent(value in any_bson()) {
        let json: serde_json::Value = value.clone().into_relaxed_extjson();
        let envelope = Envelope {
            document: document_outbox::DocumentRef::by_id(mongodb::Namespace::new("shop", "orders"), 1),
            id: uuid::Uuid::nil(),
            message_type: "t".into(),
            payload: encode_payload(&json).unwrap(),
            headers: BTreeMap::new(),
            via: None,
            created_at: None,
            attempts: 0,
            delivered_to: Vec::new(),
        };
        prop_assert_eq!(envelope.decode::<serde_json::Value>().unwrap(), json);
    }

    #[test]
    fn extended_json_keeps_every_value(value in prop_oneof![any_bson(), any_rare_bson()], rare in any_rare_bson()) {
        for value in [value.clone(), rare.clone(), Bson::Document(doc! { "a": value, "b": [rare] })] {
            let body = json::encode(&value, PayloadFormat::CanonicalExtendedJson).unwrap();
            let read: serde_json::Value = serde_json::from_slice(&body).unwrap();
            let again = Bson::try_from(read).unwrap();
            prop_assert_eq!(again.to_string(), value.to_string());
            if !value.to_string().contains("NaN") {
                prop_assert_eq!(bytes(&again), bytes(&value));
            }
        }
    }
}
