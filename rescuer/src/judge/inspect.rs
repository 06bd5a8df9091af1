//! Looking at documents: what is read of them, and what is made of it.

use std::{collections::HashSet, time::Duration};

use document_outbox::{DocumentRef, internal::read_outbox_of};
use mongodb::{
    Namespace,
    bson::{Bson, Document, RawDocument, RawDocumentBuf, doc, rawdoc},
};

use crate::{
    Warning,
    judge::verdict::{Moment, Verdict, judge},
    leadership::term::Context,
    observe::event::RescueEvent,
    send::commands::Wanted,
    send::recently_queued::hash,
    sweep::catalogue,
};

/// The fields by which an entry is judged: neither payloads nor errors, which can be large.
const FIELDS: [&str; 11] = [
    "id",
    "type",
    "headers",
    "via",
    "available_at",
    "claimed_by",
    "attempts",
    "claims",
    "delivered_to",
    "dead_at",
    "created_at",
];

/// What is read of a document: its `_id`, and of its outbox what it is judged by.
///
/// A plain projection of paths would leave out elements that are not objects, and an `outbox` that is not an array: the document
/// would pass for one with an empty outbox. So they are replaced by an empty value of their kind.
pub(crate) fn projection() -> Document {
    let is_a = |value: &str, kind: &str| doc! { "$eq": [{ "$type": value }, kind] };
    let fields: Document =
        FIELDS.iter().map(|field| ((*field).to_owned(), format!("$$e.{field}").into())).collect();
    // An update that looks for an `id` finds it in an inner array, too.
    let inner = doc! { "$map": { "input": "$$e", "as": "i", "in": {
        "$cond": [is_a("$$i", "object"), { "id": "$$i.id" }, Bson::Null],
    } } };
    let element = doc! { "$switch": {
        "branches": [
            { "case": is_a("$$e", "object"), "then": fields },
            { "case": is_a("$$e", "array"), "then": inner },
            { "case": is_small("$$e"), "then": "$$e" },
        ],
        "default": "",
    } };
    let outbox = doc! { "$switch": {
        "branches": [
            { "case": { "$isArray": "$outbox" }, "then": { "$map": { "input": "$outbox", "as": "e", "in": element } } },
            { "case": is_a("$outbox", "missing"), "then": "$$REMOVE" },
            { "case": is_a("$outbox", "object"), "then": { "$literal": {} } },
            { "case": is_small("$outbox"), "then": "$outbox" },
        ],
        "default": "",
    } };
    doc! { "outbox": outbox }
}

/// Whether a value has a few bytes by its type.
fn is_small(value: &str) -> Document {
    let small = ["null", "bool", "int", "long", "double", "decimal", "date", "objectId", "timestamp"];
    doc! { "$in": [{ "$type": value }, small.as_slice()] }
}

/// What was seen in a document.
#[derive(Debug, Default)]
pub(crate) struct Looked {
    /// Set where it wants a command.
    pub(crate) wanted: Option<Wanted>,
    /// Whether a living entry has no date.
    pub(crate) undated: bool,
}

/// Judges one projected document. Announces what is unreadable.
pub(crate) fn look(context: &Context, namespace: &Namespace, raw: &RawDocument, moment: Moment) -> Looked {
    catalogue::found_outbox(context, namespace);
    let Some(reference) = DocumentRef::of_stored(namespace.clone(), raw) else {
        return Looked::default();
    };
    let ordering = context.settings.ordering(namespace);
    let outbox = read_outbox_of(raw);
    // A message that was pushed twice is left out, but without its payload it may be another.
    let read = outbox.as_ref().map_or(0, Vec::len);
    let is_unsure = raw.get_array("outbox").is_ok_and(|elements| elements.into_iter().count() > read);
    let mut verdict = judge(outbox, ordering, moment);
    let (head, due, undated) = (verdict.work.take(), verdict.due, verdict.undated);
    if let Some(lease) = verdict.long_claim {
        context.report.warn(Warning::InlineLeaseLong { lease, delay: context.plan.delay });
    }
    announce(context, &reference, verdict);
    Looked { wanted: head.map(|head| Wanted { document: reference, head, due, moment, is_unsure }), undated }
}

fn announce(context: &Context, document: &DocumentRef, verdict: Verdict) {
    if verdict.unreadable > 0 {
        let (count, reason) = (verdict.unreadable, verdict.flaw.unwrap_or_default());
        match context.unreadable().is_new(document) {
            true => {
                tracing::warn!(%document, count, reason, "elements of an outbox are not entries; they are left alone")
            }
            false => tracing::debug!(%document, count, reason, "elements of an outbox are still not entries"),
        }
        context.report.emit(RescueEvent::Unreadable { document: document.clone(), count, reason });
    }
}

/// The documents that were warned of, so that each is once.
#[derive(Debug, Default)]
pub(crate) struct Unreadable(HashSet<u64>);

impl Unreadable {
    /// Whether it was not warned of before, as far as is remembered.
    fn is_new(&mut self, document: &DocumentRef) -> bool {
        if self.0.len() >= REMEMBERED {
            self.0.clear();
        }
        self.0.insert(hash(&document.map_key()))
    }
}

/// At about 16 bytes each.
const REMEMBERED: usize = 10_000;

/// The command that reads of these documents what they are judged by, as bytes: an `_id` need not be readable.
pub(crate) fn find_command(
    namespace: &Namespace,
    documents: &[DocumentRef],
    read_concern: RawDocumentBuf,
    max_time: Duration,
) -> RawDocumentBuf {
    let projection = RawDocumentBuf::try_from(&projection()).unwrap_or_default();
    let max_time = i64::try_from(max_time.as_millis()).unwrap_or(i64::MAX);
    rawdoc! {
        "find": namespace.coll.as_str(),
        "filter": DocumentRef::any_of(documents),
        "projection": projection,
        "readConcern": read_concern,
        "maxTimeMS": max_time,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_is_warned_of_once_and_the_memory_of_that_is_bounded() {
        let mut unreadable = Unreadable::default();
        let of = |id: i64| DocumentRef::by_id(Namespace::new("shop", "orders"), id);
        assert!(unreadable.is_new(&of(1)));
        assert!(!unreadable.is_new(&of(1)));
        for id in 0..3 * REMEMBERED as i64 {
            unreadable.is_new(&of(id));
        }
        assert!(unreadable.0.len() <= REMEMBERED);
    }

    #[test]
    fn no_payload_is_read() {
        let fields = projection();
        let text = fields.to_string();
        assert!(text.contains("$$e.available_at"), "{text}");
        assert!(!text.contains("payload") && !text.contains("last_error"), "{text}");
    }
}
