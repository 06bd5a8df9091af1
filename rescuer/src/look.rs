//! Looking at documents: what is read of them, and what is made of it.

use std::{collections::HashSet, time::Duration};

use document_outbox::DocumentRef;
use mongodb::{
    Namespace,
    bson::{Bson, Document, RawDocument, RawDocumentBuf, rawdoc},
};

use crate::{
    Warning,
    commands::Wanted,
    context::Context,
    event::RescueEvent,
    queued::hash,
    verdict::{Moment, Verdict, judge},
};

/// The fields by which an outbox is judged: neither payloads nor errors, which can be large. Elements that are no objects
/// are left out by the server, so these are neither judged nor counted here.
pub(crate) fn projection() -> Document {
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
    FIELDS.iter().map(|field| (format!("outbox.{field}"), Bson::Int32(1))).collect()
}

/// Judges one projected document; what wants a command comes back. Announces what is unreadable.
pub(crate) fn look(
    context: &Context,
    namespace: &Namespace,
    raw: &RawDocument,
    moment: Moment,
) -> Option<Wanted> {
    let reference = DocumentRef::of_stored(namespace.clone(), raw)?;
    let outbox = match raw.get("outbox") {
        Ok(outbox) => outbox.map(Bson::try_from).transpose(),
        Err(error) => Err(error),
    };
    let Ok(outbox) = outbox else {
        let flaw = Some("the outbox cannot be decoded".to_owned());
        announce(context, &reference, Verdict { unreadable: 1, flaw, ..Verdict::default() });
        return None;
    };
    let ordering = context.settings.ordering(namespace);
    let mut verdict = judge(outbox.as_ref(), ordering, moment);
    let (head, due) = (verdict.work.take(), verdict.due);
    if let Some(lease) = verdict.long_claim {
        context.report.warn(Warning::InlineLeaseLong { lease, delay: context.plan.delay });
    }
    announce(context, &reference, verdict);
    head.map(|head| Wanted { document: reference, head, due })
}

fn announce(context: &Context, document: &DocumentRef, verdict: Verdict) {
    if verdict.unreadable > 0 {
        let (count, reason) = (verdict.unreadable, verdict.flaw.unwrap_or_default());
        match context.unreadable().is_new(document) {
            true => {
                tracing::warn!(%document, count, reason, "elements of an outbox are no entries; they are left alone")
            }
            false => tracing::debug!(%document, count, reason, "elements of an outbox are still no entries"),
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
        assert!(fields.contains_key("outbox.id"));
        assert!(!fields.contains_key("outbox") && !fields.contains_key("outbox.payload"));
    }
}
