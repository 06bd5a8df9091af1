//! The request to the server: which changes of which collections to send, and which few fields of each
//! change.
//!
//! The server filters, so changes that touch no outbox cost no network traffic. The server must not look
//! documents up (`updateLookup`): a filter on a looked-up document breaks resuming as soon as the document
//! changes.
//!
//! | change | passes when |
//! |---|---|
//! | insert, replace | `fullDocument.outbox` exists and is not an empty array |
//! | update | it sets `outbox` to anything other than an empty array, or sets `outbox.<n>`, or `outbox.<n>.id` |
//! | update | it sets or removes a field of an entry by which the entry is judged, and gives that entry no date |
//! | rename | it gives a collection a watched name: the collection's messages were saved under its former name |
//! | invalidate | always: this change ends the cursor, and the stream continues after this change's token |
//!
//! A change event shows a `$push` onto an empty array as `outbox: [..]`, a `$push` onto a non-empty
//! array as `"outbox.1"`, and every `$pull` as `outbox: [rest]`. It shows a pipeline update that
//! replaces one entry by another as each of the entry's fields (`"outbox.0.id"`, `"outbox.0.type"`,
//! …). A key that contains a dot cannot be addressed by a path; that is why `$objectToArray` is
//! used.
//!
//! Claims, failures and releases by the library also change entries. These changes are filtered out by the
//! date that each of them sets (`available_at` or `dead_at`), because the sweep finds the entry by that
//! date. A change that sets neither date was made by a person or another program, for example a repair
//! that makes an entry readable, or a manual removal of a claim. A change to an `outbox` that is not an
//! array passes, so that it can be reported.
//!
//! No stage must fail on users' data; otherwise the stream would stop forever at the change that contains the
//! data. A field's name may be invalid UTF-8, which makes a regular expression fail; therefore names are
//! split and compared.

use document_outbox::internal::relaxed_text;
use mongodb::bson::{Bson, Document, doc};
use outbox_service::NamespacePattern;

use crate::{
    Settings,
    watch_plan::{Coverage, CoveredPattern, plans},
};

/// The fields by which an entry is judged; see the table in ARCHITECTURE.md.
const JUDGED: [&str; 9] =
    ["type", "headers", "via", "available_at", "claimed_by", "attempts", "claims", "delivered_to", "dead_at"];

/// The scope of a change stream: the smallest scope that covers every pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Scope {
    Cluster,
    Database(String),
    Collection(String, String),
}

impl Scope {
    pub(crate) fn of(coverage: &Coverage) -> Self {
        let mut databases = coverage.patterns().map(|pattern| pattern.database().exact());
        let Some(Some(database)) = databases.next() else {
            return Self::Cluster;
        };
        if databases.any(|other| other != Some(database)) {
            return Self::Cluster;
        }

        let mut collections = coverage.patterns().map(|pattern| pattern.collection().exact());
        match (collections.next(), collections.next()) {
            (Some(Some(collection)), None) => Self::Collection(database.into(), collection.into()),
            _ => Self::Database(database.into()),
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

/// The stages after `$changeStream`, for each stream of a rescuer with these settings. The stream with the
/// shortest delay comes first.
#[must_use]
pub fn pipelines(settings: &Settings) -> Vec<Vec<Document>> {
    plans(settings).iter().map(|plan| pipeline(&plan.coverage)).collect()
}

/// The stages after `$changeStream`.
pub(crate) fn pipeline(coverage: &Coverage) -> Vec<Document> {
    let renamed = doc! { "$and": [{ "operationType": "rename" }, namespaces("to", coverage)] };
    let passing = match Scope::of(coverage) {
        // A stream over the whole cluster is never invalidated, and the server can apply a plain filter
        // directly to the oplog.
        Scope::Cluster => doc! { "$or": [filled(coverage), renamed] },
        Scope::Database(_) | Scope::Collection(..) => {
            doc! { "$or": [filled(coverage), renamed, { "operationType": "invalidate" }] }
        }
    };

    vec![
        doc! { "$match": passing },
        // `_id` is the resume token, which contains the cluster time; it must not be removed.
        doc! { "$project": {
            "_id": 1,
            "operationType": { "$cond": [
                { "$in": ["$operationType", ["rename", "invalidate"]] }, "$operationType", "$$REMOVE",
            ] },
            "ns": 1,
            "key": "$documentKey",
            "at": "$wallTime",
        } },
    ]
}

/// A filter for changes that fill an outbox.
fn filled(coverage: &Coverage) -> Document {
    // `$ne: []` would also exclude an outbox that has an empty array among its elements.
    let not_empty = doc! { "$exists": true, "$not": { "$size": 0 } };
    doc! { "$and": [
        namespaces("ns", coverage),
        { "$or": [
            { "operationType": { "$in": ["insert", "replace"] }, "fullDocument.outbox": not_empty },
            { "operationType": "update", "$expr": { "$or": [fills_an_outbox(), changes_an_undated_entry()] } },
        ] },
    ] }
}

fn namespaces(field: &str, coverage: &Coverage) -> Document {
    let mut arms = Vec::with_capacity(coverage.parts.len());
    for CoveredPattern { pattern, except } in &coverage.parts {
        let mut wanted = named(field, pattern, &coverage.state_database);
        if !except.is_empty() {
            let except: Vec<Document> = except.iter().map(|other| named(field, other, "")).collect();
            wanted.insert("$nor", except);
        }
        arms.push(wanted);
    }
    doc! { "$or": arms }
}

/// A filter for the names that a pattern matches. In a filter, a regular expression skips a name that is
/// invalid UTF-8; in an aggregation expression it would end the stream.
fn named(field: &str, pattern: &NamespacePattern, state_database: &str) -> Document {
    let mut filter = Document::new();

    let database = pattern.database();
    let name = format!("{field}.db");
    if let Some(exact) = database.exact() {
        filter.insert(name, exact);
    } else {
        let mut names = doc! { "$regex": database.regex() };
        if database.matches(state_database) {
            names.insert("$ne", state_database);
        }
        filter.insert(name, names);
    }

    let collection = pattern.collection();
    let name = format!("{field}.coll");
    if let Some(exact) = collection.exact() {
        filter.insert(name, exact);
    } else if !collection.is_any() {
        filter.insert(name, doc! { "$regex": collection.regex() });
    }
    filter
}

fn fills_an_outbox() -> Document {
    let not_empty = doc! { "$ne": ["$$field.v", []] };
    let is_entry = doc! { "$and": [
        { "$eq": [part(0), "outbox"] },
        // Tests whether the name begins with a digit.
        { "$gte": [part(1), "0"] },
        { "$lt": [part(1), ":"] },
        { "$or": [has_parts(2), { "$and": [has_parts(3), { "$eq": [part(2), "id"] }] }] },
    ] };

    doc! { "$anyElementTrue": { "$map": {
        "input": { "$objectToArray": { "$ifNull": ["$updateDescription.updatedFields", {}] } },
        "as": "field",
        "in": { "$or": [
            { "$and": [{ "$eq": ["$$field.k", "outbox"] }, not_empty] },
            { "$let": { "vars": { "path": { "$split": ["$$field.k", "."] } }, "in": is_entry } },
        ] },
    } } }
}

/// A condition for updates that change fields of existing entries, and that set no date in at least
/// one of these entries.
fn changes_an_undated_entry() -> Document {
    let set = doc! { "$objectToArray": { "$ifNull": ["$updateDescription.updatedFields", {}] } };
    let names = doc! { "$concatArrays": [
        { "$map": { "input": "$$set", "as": "field", "in": "$$field.k" } },
        { "$ifNull": ["$updateDescription.removedFields", []] },
    ] };
    let with_dates = doc! { "$filter": {
        "input": "$$set", "as": "field", "cond": { "$eq": [{ "$type": "$$field.v" }, "date"] },
    } };
    let dated = doc! { "$map": { "input": with_dates, "as": "field", "in": "$$field.k" } };

    let left_undated = doc! { "$setDifference": [
        places("$$names", &JUDGED),
        places("$$dated", &["available_at"]),
    ] };
    doc! { "$let": { "vars": { "set": set }, "in": {
        "$let": { "vars": { "names": names, "dated": dated }, "in": { "$gt": [{ "$size": left_undated }, 0] } },
    } } }
}

/// The array indexes of the entries that these field names refer to.
fn places(names: &str, fields: &[&str]) -> Document {
    let paths = doc! { "$map": { "input": names, "as": "name", "in": { "$split": ["$$name", "."] } } };
    let of_entry = doc! { "$and": [
        { "$gte": [{ "$size": "$$path" }, 3] },
        { "$eq": [part(0), "outbox"] },
        { "$in": [part(2), fields] },
    ] };
    let entries = doc! { "$filter": { "input": paths, "as": "path", "cond": of_entry } };
    doc! { "$map": { "input": entries, "as": "path", "in": part(1) } }
}

/// One part of a field's path.
fn part(at: i32) -> Document {
    doc! { "$arrayElemAt": ["$$path", at] }
}

fn has_parts(count: i32) -> Document {
    doc! { "$eq": [{ "$size": "$$path" }, count] }
}

/// A hash of the pipeline; if two hashes are equal, a token of one stream can be used for the other.
///
/// A token made with another pipeline may be refused, or may point past changes that this pipeline needs.
pub(crate) fn fingerprint(coverage: &Coverage) -> String {
    let stages: Vec<Bson> = pipeline(coverage).into_iter().map(Bson::Document).collect();
    let text = format!("{} {}", Scope::of(coverage).name(), relaxed_text(&Bson::Array(stages)));
    format!("{:016x}", fnv1a(text.as_bytes()))
}

/// FNV-1a with 64 bits. Unlike the standard library's hashes, its result is the same in every version of
/// this program.
pub(crate) fn fnv1a(bytes: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325;
    for byte in bytes {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patterns(texts: &[&str]) -> Coverage {
        let watch = texts.iter().map(|text| text.parse().unwrap()).collect();
        crate::watch_plan::plans(&crate::Settings::new(watch)).remove(0).coverage
    }

    #[test]
    fn a_stream_is_opened_on_as_little_as_possible() {
        for (texts, scope) in [
            (&["shop.orders"][..], Scope::Collection("shop".into(), "orders".into())),
            (&["shop.*"], Scope::Database("shop".into())),
            (&["shop.orders", "shop.stock"], Scope::Database("shop".into())),
            (&["shop.orders", "mail.sent"], Scope::Cluster),
            (&["shop.order_*"], Scope::Database("shop".into())),
            (&["tenant_*.orders"], Scope::Cluster),
            (&["shop.*", "*.orders"], Scope::Cluster),
        ] {
            assert_eq!(Scope::of(&patterns(texts)), scope, "{texts:?}");
        }
    }

    #[test]
    fn the_fingerprint_ignores_the_order_of_patterns() {
        let of = |texts: &[&str]| fingerprint(&patterns(texts));
        assert_eq!(of(&["a.b", "c.d"]), of(&["c.d", "a.b"]));
        assert_ne!(of(&["a.b"]), of(&["a.*"]));
        assert_ne!(of(&["a.b"]), of(&["a.b", "a.c"]));
        assert_ne!(of(&["a.*"]), of(&["a.x*"]));
    }

    #[test]
    fn collections_of_an_earlier_pattern_are_not_sent() {
        let watch = ["shop.orders@1s", "shop.*"].iter().map(|text| text.parse().unwrap()).collect();
        let base = crate::watch_plan::plans(&crate::Settings::new(watch)).remove(1).coverage;
        let expected =
            doc! { "$or": [{ "ns.db": "shop", "$nor": [{ "ns.db": "shop", "ns.coll": "orders" }] }] };
        assert_eq!(namespaces("ns", &base), expected);
        assert_eq!(
            namespaces("ns", &patterns(&["*.*"])),
            doc! { "$or": [
                { "ns.db": { "$regex": "(?s)^.*\\z", "$ne": "document_outbox" } },
            ] }
        );
    }

    #[test]
    fn the_hash_is_the_published_one() {
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn the_pipeline_keeps_tokens_and_looks_nothing_up() {
        let stages = pipeline(&patterns(&["shop.*"]));
        let project = stages.last().and_then(|stage| stage.get_document("$project").ok());
        assert_eq!(project.and_then(|fields| fields.get_i32("_id").ok()), Some(1));
        assert!(!format!("{stages:?}").contains("updateLookup"));
    }
}
