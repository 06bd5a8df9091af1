//! Generates unusual BSON values from a seed.

#![allow(clippy::pedantic, reason = "product code is held to these lints; a test may be short instead")]
#![allow(unreachable_pub, reason = "a module of a test")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot continue fails")]

use mongodb::bson::{
    Binary, Bson, DateTime, Decimal128, Document, JavaScriptCodeWithScope, Timestamp, Uuid, doc,
    oid::ObjectId, spec::BinarySubtype,
};

/// The fields of an entry, and one unknown field.
pub const FIELDS: [&str; 16] = [
    "id",
    "type",
    "payload",
    "headers",
    "via",
    "created_at",
    "available_at",
    "claimed_by",
    "attempts",
    "claims",
    "last_error",
    "delivered_to",
    "dead_at",
    "dead_reason",
    "unknown",
    "",
];

const NAMES: [&str; 16] = [
    "id",
    "type",
    "payload",
    "",
    "$",
    "$set",
    "$oid",
    "$date",
    "a.b",
    ".",
    "0",
    "_id",
    "outbox",
    "e",
    "☃",
    "__proto__",
];
const TEXTS: [&str; 10] =
    ["", "x", "handlers", "worker/1", "$outbox", "0", "\u{0}", "\u{feff}☃\u{202e}", "order.placed", "[]"];
const NUMBERS: [i64; 12] =
    [0, 1, -1, 7, 8, 255, i32::MAX as i64, i32::MIN as i64, i64::MAX, i64::MIN, 1 << 53, 1_700_000_000_000];
const FRACTIONS: [f64; 10] =
    [0.0, -0.0, 0.5, 3.0, -1e300, 1e15, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, f64::MIN_POSITIVE];
/// The minimum depth of deeply nested values. The maximum is twice this depth; the server accepts 200 levels.
const DEEP: usize = 110;

pub struct Generator {
    random: fastrand::Rng,
    /// Ids that occur repeatedly.
    ids: [Uuid; 4],
}

impl Generator {
    /// Creates a generator and prints its seed, with which a failure can be reproduced.
    pub fn announced(stream: u64) -> Self {
        let seed: u64 = match std::env::var("OUTBOX_TEST_SEED") {
            Ok(seed) => seed.parse().expect("OUTBOX_TEST_SEED is a number"),
            Err(_) => 20_251_121,
        };
        println!("OUTBOX_TEST_SEED={seed}");
        let mut random = fastrand::Rng::with_seed(seed.wrapping_mul(31).wrapping_add(stream));
        let ids = std::array::from_fn(|_| Uuid::from_bytes(random.u128(..).to_be_bytes()));
        Self { random, ids }
    }

    pub fn below(&mut self, end: usize) -> usize {
        self.random.usize(..end)
    }

    fn one_in(&mut self, odds: usize) -> bool {
        self.below(odds) == 0
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    /// A minimal entry with its own id and one to three random fields.
    pub fn nearly_an_entry(&mut self) -> Bson {
        let fields: Vec<_> = (0..1 + self.below(3)).map(|_| self.pick(&FIELDS)).collect();
        self.entry_with(&fields).into()
    }

    /// A minimal entry with a generated id, in which these fields have random values.
    pub fn entry_with(&mut self, fields: &[&str]) -> Document {
        let mut entry = doc! { "id": self.id(), "type": "order.placed", "payload": self.value(2) };
        for field in fields {
            let value = match self.one_in(3) {
                true => self.fitting(field),
                false => self.value(3),
            };
            entry.insert(*field, value);
        }
        entry
    }

    /// Generates a value of a type that the field may have.
    fn fitting(&mut self, field: &str) -> Bson {
        match field {
            "id" => self.pick(&self.ids.clone()).into(),
            "created_at" | "available_at" | "dead_at" => self.date().into(),
            "attempts" | "claims" => self.number(),
            "headers" => doc! { self.name(): self.text(), self.name(): self.text() }.into(),
            "delivered_to" => Bson::Array(vec![self.text().into(), self.text().into()]),
            _ => self.text().into(),
        }
    }

    /// Generates any value, with at most this many levels of nesting, and occasionally with many more.
    pub fn value(&mut self, depth: usize) -> Bson {
        if depth > 0 && self.one_in(1_500) {
            return self.deep();
        }
        match self.below(if depth == 0 { 20 } else { 28 }) {
            0 => Bson::Null,
            1 => Bson::Undefined,
            2 => Bson::MinKey,
            3 => Bson::MaxKey,
            4 => self.random.bool().into(),
            5 => Bson::Double(self.pick(&FRACTIONS)),
            6 => self.number(),
            7 => Bson::Int64(self.pick(&NUMBERS)),
            8 => self.text().into(),
            9 => Bson::Symbol(self.text()),
            10 => Bson::JavaScriptCode(self.text()),
            11 => Bson::JavaScriptCodeWithScope(JavaScriptCodeWithScope {
                code: self.text(),
                scope: self.document(depth.saturating_sub(1)),
            }),
            12 => self.date().into(),
            13 => Bson::Timestamp(Timestamp { time: self.random.u32(..), increment: self.random.u32(..) }),
            14 => ObjectId::from_bytes(std::array::from_fn(|_| self.random.u8(..))).into(),
            15 => Bson::Decimal128(Decimal128::from_bytes(self.random.u128(..).to_le_bytes())),
            16 => self.extended(r#"{"$regularExpression":{"pattern":"^(a|$x)*.","options":"imsx"}}"#),
            17 => self.extended(r#"{"$dbPointer":{"$ref":"a.b","$id":{"$oid":"0123456789abcdef01234567"}}}"#),
            18 => self.binary(),
            19 => self.pick(&self.ids.clone()).into(),
            20..=23 => Bson::Document(self.document(depth - 1)),
            24 => self.nearly_an_entry(),
            _ => Bson::Array((0..self.below(5)).map(|_| self.value(depth - 1)).collect()),
        }
    }

    fn document(&mut self, depth: usize) -> Document {
        (0..self.below(5)).map(|_| (self.name(), self.value(depth))).collect()
    }

    fn deep(&mut self) -> Bson {
        let nest = |inner: Bson, nth: usize| match nth % 2 {
            0 => Bson::Array(vec![inner]),
            _ => doc! { "id": inner }.into(),
        };
        (0..DEEP + self.below(DEEP)).fold(self.id().into(), nest)
    }

    /// Generates an id, which is usually unique but sometimes equals another entry's id.
    fn id(&mut self) -> Uuid {
        match self.one_in(20) {
            true => self.pick(&self.ids.clone()),
            false => Uuid::from_bytes(self.random.u128(..).to_be_bytes()),
        }
    }

    fn name(&mut self) -> String {
        self.pick(&NAMES).into()
    }

    fn text(&mut self) -> String {
        match self.one_in(10) {
            true => self.pick(&TEXTS).repeat(300),
            false => self.pick(&TEXTS).into(),
        }
    }

    fn number(&mut self) -> Bson {
        let number = self.pick(&NUMBERS);
        match (self.below(3), i32::try_from(number)) {
            (0, _) => Bson::Double(number as f64),
            (1, Ok(small)) => small.into(),
            _ => number.into(),
        }
    }

    fn date(&mut self) -> DateTime {
        DateTime::from_millis(self.pick(&NUMBERS))
    }

    fn binary(&mut self) -> Bson {
        let subtype = match self.below(6) {
            0 => BinarySubtype::Generic,
            1 => BinarySubtype::Function,
            2 => BinarySubtype::Uuid,
            3 => BinarySubtype::UuidOld,
            4 => BinarySubtype::Md5,
            _ => BinarySubtype::UserDefined(0x80),
        };
        let bytes = match self.below(3) {
            0 => vec![],
            1 => self.ids[0].bytes().to_vec(),
            _ => (0..self.below(40)).map(|_| self.random.u8(..)).collect(),
        };
        Binary { subtype, bytes }.into()
    }

    /// Generates a value of a type that can only be created from its text.
    fn extended(&self, json: &str) -> Bson {
        let json: serde_json::Value = serde_json::from_str(json).unwrap();
        Bson::try_from(json).unwrap()
    }
}
