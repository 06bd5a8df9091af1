//! A second reading, with payloads, of documents about which a reading without them doesn't say enough.
//!
//! What is read of an outbox leaves payloads out, and so it can't tell whether two entries of one id are one message, nor that
//! a payload is not readable. Such entries are never delivered: a command for them would be sent again for as long as they are
//! there. So a document is read whole before it is queued where an id is there twice, and where it was queued before and is
//! still in the same state.

use std::collections::HashMap;

use document_outbox::DocumentRef;
use mongodb::{
    Namespace,
    bson::{RawDocumentBuf, rawdoc},
    error::Error,
};

use crate::{
    judge::inspect::look,
    leadership::term::{Context, primary},
    send::commands::Wanted,
};

/// Leaves out the documents that have nothing to deliver, seen whole.
pub(crate) async fn confirm(context: &Context, wanted: Vec<Wanted>) -> Vec<Wanted> {
    let mut unsure = HashMap::<Namespace, Vec<Wanted>>::new();
    for wanted in &wanted {
        if wanted.is_unsure || context.queued().knows(&wanted.document, &wanted.head) {
            unsure.entry(wanted.document.namespace.clone()).or_default().push(wanted.clone());
        }
    }
    if unsure.is_empty() {
        return wanted;
    }

    let mut confirmed = HashMap::<Vec<u8>, Option<Wanted>>::new();
    for (namespace, unsure) in unsure {
        // Where it fails, they are queued: a command too many does no harm, one too few does.
        if let Ok(found) = read_whole(context, &namespace, &unsure).await {
            confirmed.extend(unsure.iter().map(|wanted| (wanted.document.map_key(), None)));
            confirmed.extend(found.into_iter().map(|found| (found.document.map_key(), Some(found))));
        }
    }
    let mut left = Vec::with_capacity(wanted.len());
    for wanted in wanted {
        left.extend(confirmed.remove(&wanted.document.map_key()).unwrap_or(Some(wanted)));
    }
    left
}

async fn read_whole(
    context: &Context,
    namespace: &Namespace,
    unsure: &[Wanted],
) -> Result<Vec<Wanted>, Error> {
    let documents: Vec<DocumentRef> = unsure.iter().map(|wanted| wanted.document.clone()).collect();
    let known: HashMap<Vec<u8>, &Wanted> =
        unsure.iter().filter_map(|wanted| Some((id_alone(&wanted.document)?, wanted))).collect();
    let command = rawdoc! {
        "find": namespace.coll.as_str(),
        "filter": DocumentRef::any_of(&documents),
        "projection": { "outbox": 1 },
    };

    let database = context.client.database(&namespace.db);
    let mut cursor = database.run_raw_cursor_command(command).selection_criteria(primary()).await?;
    let mut confirmed = Vec::new();
    while cursor.advance().await? {
        let document: RawDocumentBuf = cursor.current().to_owned();
        let Some(before) = DocumentRef::of_stored(namespace.clone(), &document)
            .and_then(|named| known.get(&named.map_key()))
        else {
            continue;
        };
        if let Some(found) = look(context, namespace, &document, before.moment).wanted {
            let due = found.due.or(before.due);
            confirmed.push(Wanted { document: before.document.clone(), due, ..found });
        }
    }
    Ok(confirmed)
}

/// The document's `_id` as the key of a map, without its shard key.
fn id_alone(document: &DocumentRef) -> Option<Vec<u8>> {
    let named = DocumentRef::of_stored(document.namespace.clone(), document.key())?;
    Some(named.map_key())
}
