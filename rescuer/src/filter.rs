//! What the server is asked to send: which changes, of which collections, and how little of each.
//!
//! The server filters, so that changes which touch no outbox cost nothing on the wire. It must not look documents up
//! (`updateLookup`): a filter on a looked-up document breaks resuming as soon as the document changes.
//!
//! | change | passes when |
//! |---|---|
//! | insert, replace | `fullDocument.outbox.0` exists |
//! | update | it sets `outbox` to a non-empty array, or sets `outbox.<n>`, or `outbox.<n>.id` |
//! | rename | it gives a collection a watched name: what is in it was saved under another |
//! | invalidate | always: it ends the cursor, and its token is where to go on |
//!
//! A `$push` onto an empty array shows as `outbox: [..]`, onto a filled one as `"outbox.1"`; a `$pull` always as
//! `outbox: [rest]`. A pipeline that puts one entry in another's place shows as each of its fields (`"outbox.0.id"`,
//! `"outbox.0.type"`, …). A key with a dot in it cannot be addressed by a path, hence `$objectToArray`. Other changes
//! inside an entry (`"outbox.0.attempts"`) are left out: they are claims, failures and releases, which never touch the
//! `id`, and those are the sweep's.
//!
//! Nothing here may fail on what users write, or the stream stops at that change for ever. A field's name may be no UTF-8,
//! which a regular expression refuses with an error: hence names are split and compared.

use mongodb::bson::{Bson, Document, doc};
use outbox_service::NamespacePattern;

/// What a change stream is opened on: as little as holds every pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Scope {
    Cluster,
    Database(String),
    Collection(String, String),
}

impl Scope {
    pub(crate) fn of(patterns: &[NamespacePattern]) -> Self {
        let mut databases = patterns.iter().map(NamespacePattern::database);
        let Some(first) = databases.next() else {
            return Self::Cluster;
        };
        match patterns {
            [one] => match one.collection() {
                Some(collection) => Self::Collection(first.into(), collection.into()),
                None => Self::Database(first.into()),
            },
            _ if databases.all(|database| database == first) => Self::Database(first.into()),
            _ => Self::Cluster,
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Cluster => "*".into(),
            Self::Database(database) => format!("{database}.*"),
            Self::Collection(database, collection) => format!("{database}.{collection}"),
        }
    }
}

/// The stages after `$changeStream` that a rescuer of these patterns reads with.
pub fn pipeline(patterns: &[NamespacePattern]) -> Vec<Document> {
    let renamed = doc! { "$and": [{ "operationType": "rename" }, namespaces("to", patterns)] };
    let filled = doc! { "$and": [
        namespaces("ns", patterns),
        { "$or": [
            { "operationType": { "$in": ["insert", "replace"] }, "fullDocument.outbox.0": { "$exists": true } },
            { "operationType": "update", "$expr": fills_an_outbox() },
        ] },
    ] };
    let stages = match Scope::of(patterns) {
        // A cluster's stream is never invalidated, and a plain filter is one that the server can look at the oplog with.
        Scope::Cluster => doc! { "$or": [filled, renamed] },
        _ => doc! { "$or": [filled, renamed, { "operationType": "invalidate" }] },
    };
    vec![
        doc! { "$match": stages },
        // `_id` is the token and has to stay; the driver needs `operationType` and `ns`.
        doc! { "$project": {
            "_id": 1, "operationType": 1, "ns": 1, "documentKey": 1, "clusterTime": 1, "wallTime": 1,
        } },
    ]
}

fn namespaces(field: &str, patterns: &[NamespacePattern]) -> Document {
    let (db, coll) = (format!("{field}.db"), format!("{field}.coll"));
    let of = |pattern: &NamespacePattern| match pattern.collection() {
        Some(collection) => doc! { &db: pattern.database(), &coll: collection },
        None => doc! { &db: pattern.database() },
    };
    doc! { "$or": patterns.iter().map(of).collect::<Vec<_>>() }
}

fn fills_an_outbox() -> Document {
    let elements = doc! { "$cond": [{ "$isArray": "$$field.v" }, "$$field.v", []] };
    let filled = doc! { "$gt": [{ "$size": elements }, 0] };
    let part = |at: i32| doc! { "$arrayElemAt": ["$$path", at] };
    let parts = |count: i32| doc! { "$eq": [{ "$size": "$$path" }, count] };
    let is_entry = doc! { "$and": [
        { "$eq": [part(0), "outbox"] },
        // Begins with a digit.
        { "$gte": [part(1), "0"] },
        { "$lt": [part(1), ":"] },
        { "$or": [parts(2), { "$and": [parts(3), { "$eq": [part(2), "id"] }] }] },
    ] };
    doc! { "$anyElementTrue": { "$map": {
        "input": { "$objectToArray": { "$ifNull": ["$updateDescription.updatedFields", {}] } },
        "as": "field",
        "in": { "$or": [
            { "$and": [{ "$eq": ["$$field.k", "outbox"] }, filled] },
            { "$let": { "vars": { "path": { "$split": ["$$field.k", "."] } }, "in": is_entry } },
        ] },
    } } }
}

/// Equal for as long as a token of the one stream can be used for the other.
///
/// A token made with another pipeline may be refused, or point behind changes that this pipeline wants.
pub(crate) fn fingerprint(patterns: &[NamespacePattern]) -> String {
    let mut patterns = patterns.to_vec();
    patterns.sort();
    let stages: Vec<Bson> = pipeline(&patterns).into_iter().map(Bson::Document).collect();
    let text = format!("{} {}", Scope::of(&patterns).name(), Bson::Array(stages).into_relaxed_extjson());
    format!("{:016x}", fnv1a(text.as_bytes()))
}

/// FNV-1a, 64 bits: the same in every version of this program, as the standard library's hashes need not be.
pub(crate) fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patterns(texts: &[&str]) -> Vec<NamespacePattern> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_stream_is_opened_on_as_little_as_holds_every_pattern() {
        for (texts, scope) in [
            (&["shop.orders"][..], Scope::Collection("shop".into(), "orders".into())),
            (&["shop.*"], Scope::Database("shop".into())),
            (&["shop.orders", "shop.stock"], Scope::Database("shop".into())),
            (&["shop.orders", "mail.sent"], Scope::Cluster),
        ] {
            assert_eq!(Scope::of(&patterns(texts)), scope, "{texts:?}");
        }
    }

    #[test]
    fn the_fingerprint_tells_what_is_watched_and_not_in_which_order_it_was_written() {
        let of = |texts: &[&str]| fingerprint(&patterns(texts));
        assert_eq!(of(&["a.b", "c.d"]), of(&["c.d", "a.b"]));
        assert_ne!(of(&["a.b"]), of(&["a.*"]));
        assert_ne!(of(&["a.b"]), of(&["a.b", "a.c"]));
    }

    #[test]
    fn the_hash_is_the_published_one() {
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn the_token_survives_the_projection_and_documents_are_not_looked_up() {
        let stages = pipeline(&patterns(&["shop.*"]));
        let project = stages.last().and_then(|stage| stage.get_document("$project").ok());
        assert_eq!(project.and_then(|fields| fields.get_i32("_id").ok()), Some(1));
        assert!(!format!("{stages:?}").contains("updateLookup"));
    }
}
