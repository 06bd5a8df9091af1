//! Looking at documents: what is read of them, and what is made of it.

use document_outbox::DocumentRef;
use mongodb::{
    Namespace,
    bson::{Bson, Document, RawDocument, doc},
};

use crate::{
    commands::Wanted,
    context::Context,
    event::RescueEvent,
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
    let Ok(document) = Document::try_from(raw) else {
        tracing::warn!(%namespace, "a document cannot be read (its text may be no UTF-8); it is left alone");
        let flaw = Some("the document cannot be decoded".to_owned());
        let verdict = Verdict { work: None, unreadable: 1, flaw };
        announce(context, &DocumentRef::by_id(namespace.clone(), Bson::Null), verdict);
        return None;
    };
    let id = document.get("_id").cloned().unwrap_or(Bson::Null);
    let reference = DocumentRef::by_id(namespace.clone(), id);
    let ordering = context.settings.ordering(namespace);
    let mut verdict = judge(document.get("outbox"), ordering, moment);
    let head = verdict.work.take();
    announce(context, &reference, verdict);
    head.map(|head| Wanted { document: reference, head })
}

fn announce(context: &Context, document: &DocumentRef, verdict: Verdict) {
    if verdict.unreadable > 0 {
        let (count, reason) = (verdict.unreadable, verdict.flaw.unwrap_or_default());
        tracing::debug!(%document, count, reason, "elements of an outbox are no entries");
        context.events.emit(RescueEvent::Unreadable { document: document.clone(), count, reason });
    }
}

/// A filter that selects these documents and no others, whatever stands in their `_id`.
pub(crate) fn any_of(documents: &[DocumentRef]) -> Document {
    // A list takes values as they are, but for those it could read as an expression.
    let is_plain = |id: &Bson| match id {
        Bson::RegularExpression(_) => false,
        Bson::Document(document) => !document.keys().any(|name| name.starts_with('$')),
        _ => true,
    };
    let (plain, odd): (Vec<_>, Vec<_>) = documents.iter().partition(|document| is_plain(document.id()));
    let plain: Vec<Bson> = plain.into_iter().map(|document| document.id().clone()).collect();
    let mut filters = vec![doc! { "_id": { "$in": plain } }];
    filters.extend(odd.into_iter().map(|document| doc! { "_id": { "$eq": document.id().clone() } }));
    match filters.len() {
        1 => filters.remove(0),
        _ => doc! { "$or": filters },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_cannot_act_as_an_expression() {
        let of = |id: Bson| DocumentRef::by_id(Namespace::new("shop", "orders"), id);
        let sub: Bson = doc! { "tenant": 1 }.into();
        let evil: Bson = doc! { "$gt": "" }.into();
        assert_eq!(
            any_of(&[of(1.into()), of(sub.clone()), of(evil.clone())]),
            doc! { "$or": [{ "_id": { "$in": [1, sub] } }, { "_id": { "$eq": evil } }] }
        );
    }

    #[test]
    fn no_payload_is_read() {
        let fields = projection();
        assert!(fields.contains_key("outbox.id"));
        assert!(!fields.contains_key("outbox") && !fields.contains_key("outbox.payload"));
    }
}
