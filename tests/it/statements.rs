//! Compares the in-memory database of the test kit with MongoDB, statement by statement: both must match the same
//! documents, leave the same bytes, and refuse with the same code.

use document_outbox::{Mode, testing::Kit};
use fastrand::Rng;
use mongodb::{
    bson::{Bson, DateTime, Document, doc},
    error::{Error, ErrorKind, WriteFailure},
    options::UpdateModifications,
};

use crate::support::TestDatabase;

/// The code with which the in-memory database refuses an operator that it doesn't interpret.
const NOT_INTERPRETED: i32 = 238;

fn code(error: &Error) -> i32 {
    match error.kind.as_ref() {
        ErrorKind::Write(WriteFailure::WriteError(error)) => error.code,
        ErrorKind::Command(error) => error.code,
        other => panic!("{other}"),
    }
}

/// Both databases, with one collection each.
struct Pair {
    kit: Kit,
    test: TestDatabase,
    next: i32,
    /// The statements whose outcome differed.
    differences: Vec<String>,
}

impl Pair {
    async fn start() -> Self {
        let kit = Kit::builder().mode(Mode::Off).build();
        Self { kit, test: TestDatabase::create().await, next: 0, differences: Vec::new() }
    }

    /// Inserts the document, and executes the update on it in both databases. Returns whether it was interpreted.
    async fn compare(
        &mut self,
        mut document: Document,
        filter: Document,
        update: impl Into<UpdateModifications>,
    ) -> bool {
        self.next += 1;
        let update = update.into();
        let statement = format!("{filter} {update:?} on {document}");
        document.insert("_id", self.next);
        let mut by_id = doc! { "_id": self.next };
        by_id.extend(filter);
        self.kit.insert_one("orders", document.clone()).unwrap();
        let own = self.kit.update_one("orders", by_id.clone(), update.clone());
        if own.as_ref().is_err_and(|error| code(error) == NOT_INTERPRETED) {
            return false;
        }

        let orders = self.test.orders();
        orders.insert_one(document).await.unwrap();
        let real = orders.update_one(by_id, update).await.map(|updated| updated.matched_count);
        let is_same = match (&own, &real) {
            (Ok(own), Ok(real)) => own == real,
            (Err(own), Err(real)) => code(own) == code(real),
            _ => false,
        };
        if !is_same {
            let shown = |result: &Result<u64, Error>| match result {
                Ok(matched) => format!("matched {matched}"),
                Err(error) => format!("refused: {}", error.kind),
            };
            self.differences.push(format!("{statement}:\n    {}\n    {}", shown(&own), shown(&real)));
        }

        let stored = self.kit.document("orders", self.next).unwrap().to_string();
        let real = orders.find_one(doc! { "_id": self.next }).await.unwrap().unwrap().to_string();
        if stored != real {
            self.differences.push(format!("{statement}:\n    {stored}\n    {real}"));
        }
        true
    }

    async fn end(self) {
        let differences = self.differences;
        assert!(differences.is_empty(), "{} differences\n{}", differences.len(), differences.join("\n"));
        self.test.drop().await;
    }
}

fn document() -> Document {
    let at = DateTime::from_millis(10);
    doc! {
        "total": 1, "long": 5_i64, "half": 0.5, "name": "a", "none": null, "on": true, "at": at,
        "tags": ["a", "b"], "numbers": [1, 5, 9], "empty": [], "sub": { "a": 1, "list": [{ "x": 1 }] },
        "outbox": [{ "id": 1, "by": "p", "n": 1 }, { "id": 2, "keys": ["k"] }, 3, [{ "id": 4 }], null],
    }
}

fn filters() -> Vec<Document> {
    let at = DateTime::from_millis(9);
    vec![
        doc! {},
        doc! { "total": 1_i64 },
        doc! { "total": 1.0 },
        doc! { "total": "1" },
        doc! { "none": null },
        doc! { "absent": null },
        doc! { "absent": { "$exists": false } },
        doc! { "none": { "$exists": true } },
        doc! { "none": { "$exists": 0 } },
        doc! { "tags": "b" },
        doc! { "tags": ["a", "b"] },
        doc! { "tags": ["b", "a"] },
        doc! { "tags": { "$size": 2 } },
        doc! { "empty": { "$size": 0 } },
        doc! { "total": { "$size": 0 } },
        doc! { "empty": null },
        doc! { "empty.x": null },
        doc! { "empty.x": { "$exists": false } },
        doc! { "tags.x": null },
        doc! { "tags.0": "a" },
        doc! { "tags.5": { "$exists": false } },
        doc! { "numbers": { "$gt": 8 } },
        doc! { "numbers": { "$not": { "$gt": 8 } } },
        doc! { "numbers": { "$elemMatch": { "$gt": 4, "$lt": 6 } } },
        doc! { "numbers": { "$all": [1, 9] } },
        doc! { "numbers": { "$all": [] } },
        doc! { "numbers": { "$in": [2, 5.0] } },
        doc! { "numbers": { "$nin": [2, 5.0] } },
        doc! { "numbers": { "$ne": 3 } },
        doc! { "at": { "$gt": at } },
        doc! { "at": { "$gt": 1 } },
        doc! { "absent": { "$not": { "$gt": at } } },
        doc! { "absent": { "$gte": null } },
        doc! { "on": { "$gt": false }, "name": { "$lt": "b" } },
        doc! { "sub": { "a": 1_i64, "list": [{ "x": 1 }] } },
        doc! { "sub": { "list": [{ "x": 1 }], "a": 1 } },
        doc! { "sub": { "$eq": { "a": 1 } } },
        doc! { "sub.list.x": 1 },
        doc! { "sub.list.0.x": 1, "sub.list.1": { "$exists": false } },
        doc! { "outbox.id": 2 },
        doc! { "outbox.id": 4 },
        doc! { "outbox.0.id": 1, "outbox.1.keys": "k" },
        doc! { "outbox.3.id": 4 },
        doc! { "outbox.3.0.id": 4 },
        doc! { "outbox.1.by": null },
        doc! { "outbox": null },
        doc! { "outbox.by": null },
        doc! { "outbox": { "$elemMatch": { "id": 1, "by": "p" } } },
        doc! { "outbox": { "$elemMatch": { "id": 2, "by": "p" } } },
        doc! { "outbox": { "$elemMatch": { "id": 2, "by": null, "keys": { "$in": [null, ["k"]] } } } },
        doc! { "outbox": { "$elemMatch": { "id": 4 } } },
        doc! { "outbox": { "$elemMatch": { "0.id": 4 } } },
        doc! { "outbox": { "$elemMatch": { "$or": [{ "id": 7 }, { "n": { "$gte": 1 } }] } } },
        doc! { "outbox": { "$all": [{ "$elemMatch": { "id": 1 } }, { "$elemMatch": { "id": 2 } }] } },
        doc! { "outbox": { "$all": [{ "$elemMatch": { "id": 1 } }, { "$elemMatch": { "id": 9 } }] } },
        doc! { "$or": [{ "total": 2 }, { "name": "a" }] },
        doc! { "$and": [{ "total": 1 }, { "name": "b" }] },
        doc! { "$nor": [{ "total": 2 }, { "name": "b" }] },
        doc! { "$or": "x" },
        doc! { "numbers": { "$in": 5 } },
        doc! { "numbers": { "$not": 5 } },
        doc! { "name": "a", "total": { "$gt": 0, "$lte": 1 } },
        doc! { "$expr": { "$lte": [{ "$bsonSize": "$$ROOT" }, 1_000_i64] } },
        doc! { "$expr": { "$lt": [{ "$bsonSize": "$$ROOT" }, 10] } },
        doc! { "$expr": { "$lt": ["$$NOW", DateTime::MAX] }, "total": 1 },
        doc! { "$expr": { "$gt": ["$absent", null] } },
        doc! { "$expr": { "$eq": ["$sub.list.x", [1]] } },
        doc! { "$expr": "$none" },
        doc! { "$expr": { "$in": [5.0, "$numbers"] } },
    ]
}

fn updates() -> Vec<Document> {
    vec![
        doc! { "$set": { "z": 1, "b": 2, "a": 3 } },
        doc! { "$set": { "sub.z": 1, "sub.b.c": 2 }, "$unset": { "name": "" }, "$push": { "y": 1 } },
        doc! { "$set": { "new.10": 1, "new.9": 2 } },
        doc! { "$set": { "tags.0": "c", "tags.4": "d" } },
        doc! { "$set": { "tags.x": 1 } },
        doc! { "$set": { "total.x": 1 } },
        doc! { "$set": { "none.x": 1 } },
        doc! { "$set": { "outbox.1.by": "q" } },
        doc! { "$set": { "outbox.7.by": "q" } },
        doc! { "$set": { "outbox.$[].by": "q" } },
        doc! { "$set": { "numbers.$[]": 7 } },
        doc! { "$set": { "sub.list.$[].x": 7 } },
        doc! { "$set": { "absent.$[]": 7 } },
        doc! { "$set": { "total.$[]": 7 } },
        doc! { "$set": { "a": 1, "a.b": 1 } },
        doc! { "$set": { "total": 1 }, "$inc": { "total": 1 } },
        doc! { "$set": { "_id": "other" } },
        doc! { "$set": { "a..b": 1 } },
        doc! { "$set": {} },
        doc! { "$unset": { "total": "", "absent": "", "sub.a": "", "tags.0": "", "tags.9": "" } },
        doc! { "$unset": { "name.x": "", "tags.x": "" } },
        doc! { "$inc": { "total": 1, "long": 1, "half": 1, "new": 2, "sub.a": 1 } },
        doc! { "$inc": { "total": i32::MAX } },
        doc! { "$inc": { "long": i64::MAX } },
        doc! { "$inc": { "name": 1 } },
        doc! { "$inc": { "total": "1" } },
        doc! { "$inc": { "none": 1 } },
        doc! { "$mul": { "total": 2_i64, "half": 3, "new": 2.5 } },
        doc! { "$min": { "total": 0, "half": 1, "new": 4 }, "$max": { "long": 9, "name": 1 } },
        doc! { "$push": { "tags": "c", "new": { "$each": [1, 2] }, "numbers": [1] } },
        doc! { "$push": { "tags": { "x": 1 } } },
        doc! { "$push": { "total": 1 } },
        doc! { "$push": { "tags": { "$each": 1 } } },
        doc! { "$addToSet": { "tags": "a", "numbers": { "$each": [1.0, 3, 3] }, "new": { "x": 1 } } },
        doc! { "$addToSet": { "total": 1 } },
        doc! { "$pull": { "outbox": { "id": { "$in": [1, 2] }, "by": "p" } } },
        doc! { "$pull": { "outbox": { "id": 4 } } },
        doc! { "$pull": { "outbox": { "by": null } } },
        doc! { "$pull": { "outbox": null, "tags": "a", "absent": 1 } },
        doc! { "$pull": { "numbers": { "$gt": 4 }, "tags": { "$in": ["b"] } } },
        doc! { "$pull": { "outbox": [{ "id": 4 }] } },
        doc! { "$pull": { "total": 1 } },
        doc! { "$pullAll": { "numbers": [1, 9.0], "tags": [] } },
        doc! { "$pop": { "numbers": 1, "tags": -1, "empty": 1 } },
        doc! { "$rename": { "total": "sum", "absent": "x" } },
        doc! { "$setOnInsert": { "total": 9 } },
        doc! { "$set": { "outbox": [], "etag": 1 } },
    ]
}

fn pipelines() -> Vec<Vec<Document>> {
    let staying =
        |condition: Document| doc! { "$filter": { "input": "$outbox", "as": "entry", "cond": condition } };
    let leaves = doc! { "$in": ["$$entry.id", { "$literal": [1, 4] }] };
    let case = doc! { "case": { "$eq": ["$$entry.id", 2] }, "then": { "$mergeObjects": ["$$entry", { "id": 9, "at": 1 }] } };
    let changed = doc! { "$switch": { "branches": [case], "default": "$$entry" } };
    vec![
        vec![doc! { "$set": { "z": "$total", "total": { "$literal": "$total" }, "a": "$absent" } }],
        vec![doc! { "$unset": ["total", "absent", "sub"] }, doc! { "$set": { "b": "$total", "total": 1 } }],
        vec![doc! { "$unset": "total" }],
        vec![doc! { "$set": { "outbox": staying(doc! { "$not": [leaves.clone()] }) } }],
        vec![doc! { "$set": { "outbox": staying(leaves) } }],
        vec![doc! { "$set": { "outbox": { "$map": { "input": "$outbox", "as": "entry", "in": changed } } } }],
        vec![
            doc! { "$set": { "outbox": { "$concatArrays": ["$outbox", { "$literal": [{ "a": "$b" }] }] } } },
        ],
        vec![doc! { "$set": { "outbox": { "$concatArrays": ["$absent", { "$literal": [1] }] } } }],
        vec![doc! { "$set": { "sub": { "$literal": { "new": { "$x": 1 } } } } }],
        vec![doc! { "$set": { "_id": 5 } }],
        vec![doc! { "$set": { "size": { "$cond": [{ "$isArray": "$tags" }, { "$size": "$tags" }, 0] } } }],
    ]
}

#[tokio::test]
async fn every_pipeline_leaves_the_same_document() {
    let mut pair = Pair::start().await;
    for stages in pipelines() {
        let shown = format!("{stages:?}");
        assert!(pair.compare(document(), doc! {}, stages).await, "{shown}");
    }
    pair.end().await;
}

#[tokio::test]
async fn every_filter_matches_the_same_documents() {
    let mut pair = Pair::start().await;
    for filter in filters() {
        let shown = filter.to_string();
        assert!(pair.compare(document(), filter, doc! { "$set": { "hit": 1 } }).await, "{shown}");
    }
    pair.end().await;
}

#[tokio::test]
async fn every_update_leaves_the_same_document() {
    let mut pair = Pair::start().await;
    for update in updates() {
        let shown = update.to_string();
        assert!(pair.compare(document(), doc! {}, update).await, "{shown}");
    }
    pair.end().await;
}

/// Combines parts of statements at random, always in the same way.
#[tokio::test]
async fn random_statements_have_the_same_outcome() {
    const STATEMENTS: usize = 400;
    let mut pair = Pair::start().await;
    let seed = std::env::var("OUTBOX_TEST_SEED").map_or(20_261_127, |seed| seed.parse().unwrap());
    let mut random = Rng::with_seed(seed);
    let mut interpreted = 0;
    for _ in 0..STATEMENTS {
        let document = random_document(&mut random, 2);
        let filter = random_filter(&mut random, 2);
        let update = random_update(&mut random);
        interpreted += usize::from(pair.compare(document, filter, update).await);
    }
    assert!(interpreted > STATEMENTS / 2, "{interpreted}");
    pair.end().await;
}

fn pick<T: Clone>(random: &mut Rng, values: &[T]) -> T {
    values[random.usize(..values.len())].clone()
}

fn random_value(random: &mut Rng, depth: usize) -> Bson {
    let simple: [Bson; 9] = [
        1.into(),
        2_i64.into(),
        1.5.into(),
        "x".into(),
        "1".into(),
        Bson::Null,
        true.into(),
        DateTime::from_millis(5).into(),
        mongodb::bson::Uuid::from_bytes([1; 16]).into(),
    ];
    match random.usize(..10) {
        0..=1 if depth > 0 => Bson::Document(random_document(random, depth - 1)),
        2..=4 if depth > 0 => {
            (0..random.usize(..4)).map(|_| random_value(random, depth - 1)).collect::<Vec<_>>().into()
        }
        _ => pick(random, &simple),
    }
}

fn random_document(random: &mut Rng, depth: usize) -> Document {
    let mut document = Document::new();
    for _ in 0..random.usize(1..5) {
        document.insert(pick(random, &["a", "b", "c", "0", "1"]), random_value(random, depth));
    }
    document
}

fn random_path(random: &mut Rng) -> String {
    let parts: Vec<&str> =
        (0..random.usize(1..4)).map(|_| pick(random, &["a", "b", "c", "0", "1"])).collect();
    parts.join(".")
}

fn random_filter(random: &mut Rng, depth: usize) -> Document {
    let mut filter = Document::new();
    for _ in 0..random.usize(..3) {
        filter.insert(random_path(random), random_condition(random, depth));
    }
    if depth > 0 && random.usize(..5) == 0 {
        let any = [random_filter(random, depth - 1), random_filter(random, depth - 1)];
        filter.insert(pick(random, &["$or", "$and", "$nor"]), any.to_vec());
    }
    filter
}

fn random_condition(random: &mut Rng, depth: usize) -> Bson {
    let value = random_value(random, 1);
    match random.usize(..12) {
        0 => doc! { "$exists": random.bool() }.into(),
        1 => doc! { "$ne": value }.into(),
        2 => doc! { "$gt": value }.into(),
        3 => doc! { "$lte": value }.into(),
        4 => doc! { "$in": [value, random_value(random, 1), null] }.into(),
        5 => doc! { "$size": random.i32(-1..3) }.into(),
        6 => doc! { "$not": { "$gte": value } }.into(),
        7 if depth > 0 => doc! { "$elemMatch": random_filter(random, depth - 1) }.into(),
        8 => doc! { "$eq": value }.into(),
        9 => doc! { "$all": [value] }.into(),
        _ => value,
    }
}

fn random_update(random: &mut Rng) -> Document {
    let mut update = Document::new();
    for _ in 0..random.usize(1..3) {
        let path = match random.usize(..4) {
            0 => format!("{}.$[]", random_path(random)),
            1 => format!("{}.$[].a", random_path(random)),
            _ => random_path(random),
        };
        let value = random_value(random, 1);
        let (operator, operand) = match random.usize(..10) {
            0 => ("$unset", "".into()),
            1 => ("$inc", pick(random, &[Bson::Int32(1), Bson::Int64(2), Bson::Double(0.5)])),
            2 => ("$push", doc! { "$each": [value, 1] }.into()),
            3 => ("$pull", value),
            4 => ("$addToSet", value),
            5 => ("$min", value),
            6 => ("$max", value),
            7 => ("$pop", pick(random, &[Bson::Int32(1), Bson::Int32(-1)])),
            _ => ("$set", value),
        };
        let fields = doc! { path: operand };
        match update.get_document_mut(operator) {
            Ok(known) => known.extend(fields),
            Err(_) => _ = update.insert(operator, fields),
        }
    }
    update
}
