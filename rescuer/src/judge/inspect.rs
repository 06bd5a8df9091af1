//! Inspects documents: selects the fields to read, and judges what was read.

use std::{sync::Arc, time::Duration};

use document_outbox::{DocumentRef, internal::read_outbox_of};
use mongodb::{
    Namespace,
    bson::{Bson, DateTime, Document, RawDocument, RawDocumentBuf, doc, rawdoc},
};
use parking_lot::Mutex;

use super::{
    unreadable::Unreadable,
    verdict::{Head, Moment, Verdict, judge},
};
use crate::{
    leadership::term::Term,
    observe::{event::RescueEvent, warning::Warning},
};

/// The fields by which an entry is judged. Payloads and error texts are left out because they can
/// be large.
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

/// Selects the fields to read: the document's `_id`, and the parts of its outbox that the judgement
/// needs.
///
/// A plain projection of paths would omit array elements that are not objects, and an `outbox` that
/// is not an array: the document would appear to have an empty outbox. So such values are replaced
/// by an empty value of the same BSON type.
pub(crate) fn projection() -> Document {
    let mut fields = Document::new();
    for field in FIELDS {
        fields.insert(field, format!("$$e.{field}"));
    }

    // If an element is an array, keeps each `id` inside that array, because an update that selects by `id`
    // also finds an `id` there.
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

fn is_a(value: &str, kind: &str) -> Document {
    doc! { "$eq": [{ "$type": value }, kind] }
}

/// An expression that tests whether a value has a BSON type whose values take only a few bytes.
fn is_small(value: &str) -> Document {
    let small = ["null", "bool", "int", "long", "double", "decimal", "date", "objectId", "timestamp"];
    doc! { "$in": [{ "$type": value }, small.as_slice()] }
}

/// A document that needs a command, in the state in which it was found.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    pub(crate) document: DocumentRef,
    pub(crate) head: Head,
    /// When the document became due for rescue, if known.
    pub(crate) due: Option<DateTime>,
    /// The moment at which the document was found.
    pub(crate) moment: Moment,
    /// Whether the fields that were read are not enough to decide.
    pub(crate) is_unsure: bool,
}

/// The result of inspecting one document.
#[derive(Debug, Default)]
pub(crate) struct Inspected {
    /// The document, if it needs a command.
    pub(crate) wanted: Option<Wanted>,
    /// Whether any entry that is not dead has no date.
    pub(crate) undated: bool,
}

/// Inspects documents during one leadership term.
pub(crate) struct Inspector {
    term: Arc<Term>,
    unreadable: Mutex<Unreadable>,
}

impl Inspector {
    pub(crate) fn new(term: Arc<Term>) -> Self {
        Self { term, unreadable: Mutex::default() }
    }

    /// Judges one projected document, and reports its malformed elements.
    pub(crate) fn inspect(&self, namespace: &Namespace, raw: &RawDocument, moment: Moment) -> Inspected {
        let Some(document) = DocumentRef::of_stored(namespace.clone(), raw) else {
            return Inspected::default();
        };
        let ordering = self.term.settings.ordering(namespace);
        let outbox = read_outbox_of(raw);

        // If two entries have the same id, `outbox` contains only one of the two. The entries may
        // be one message that was pushed twice, or two different messages; only the payloads show
        // which of these is the case.
        let read = outbox.as_ref().map_or(0, Vec::len);
        let is_unsure = raw.get_array("outbox").is_ok_and(|elements| elements.into_iter().count() > read);

        let mut verdict = judge(outbox, ordering, moment);
        if let Some(lease) = verdict.long_claim {
            self.term.report.warn(Warning::InlineLeaseLong { lease, delay: self.term.plan.delay });
        }
        self.announce_unreadable(&document, &mut verdict);

        let Verdict { work, due, undated, .. } = verdict;
        let wanted = work.map(|head| Wanted { document, head, due, moment, is_unsure });
        Inspected { wanted, undated }
    }

    fn announce_unreadable(&self, document: &DocumentRef, verdict: &mut Verdict) {
        if verdict.unreadable == 0 {
            return;
        }
        let (count, reason) = (verdict.unreadable, verdict.flaw.take().unwrap_or_default());
        let is_new = self.unreadable.lock().is_new(document);
        if is_new {
            tracing::warn!(%document, count, reason, "an outbox has malformed elements; they are neither delivered nor deleted");
        } else {
            tracing::debug!(%document, count, reason, "an outbox still has malformed elements");
        }

        let document = document.clone();
        self.term.report.emit(RescueEvent::Unreadable { document, count, reason });
    }
}

/// The command that reads the fields for the judgement. It is built as bytes, because an `_id` need
/// not be valid UTF-8.
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
    fn no_payload_is_read() {
        let fields = projection();
        let text = fields.to_string();
        assert!(text.contains("$$e.available_at"), "{text}");
        assert!(!text.contains("payload") && !text.contains("last_error"), "{text}");
    }
}
