//! Reads documents again, with payloads, if they can't be judged without payloads.
//!
//! The usual read of an outbox leaves payloads out. Without them the rescuer can't decide whether two
//! entries with the same id are one message, or whether a payload is readable. If such entries can't be
//! delivered, commands for them would be sent again for as long as the entries exist. So a document is
//! read whole before it is queued if an id occurs twice, or if the document was queued before and is still
//! in the same state.

use std::collections::HashMap;

use document_outbox::DocumentRef;
use mongodb::{Namespace, bson::rawdoc, error::Error};
use parking_lot::Mutex;

use super::recently_queued::RecentlyQueued;
use crate::{
    judge::inspect::{Inspector, Wanted},
    leadership::term::Term,
    mongo::primary,
};

/// Removes the documents that turn out to have nothing to deliver when they are read whole.
pub(super) async fn confirm(
    term: &Term,
    inspector: &Inspector,
    queued: &Mutex<RecentlyQueued>,
    wanted: Vec<Wanted>,
) -> Vec<Wanted> {
    let unsure = unsure(queued, &wanted);
    if unsure.is_empty() {
        return wanted;
    }

    // The results by document: `None` if the document was read and has nothing to deliver.
    let mut confirmed = HashMap::<Vec<u8>, Option<Wanted>>::new();
    for (namespace, unsure) in unsure {
        // If the read fails, the documents are queued: an extra command is harmless, a missing one is not.
        let Ok(found) = read(term, inspector, &namespace, &unsure).await else {
            continue;
        };
        for wanted in unsure {
            confirmed.insert(wanted.document.map_key(), None);
        }
        for found in found {
            confirmed.insert(found.document.map_key(), Some(found));
        }
    }

    let mut left = Vec::with_capacity(wanted.len());
    for wanted in wanted {
        left.extend(confirmed.remove(&wanted.document.map_key()).unwrap_or(Some(wanted)));
    }
    left
}

/// The documents to be read whole, grouped by collection.
fn unsure(queued: &Mutex<RecentlyQueued>, wanted: &[Wanted]) -> HashMap<Namespace, Vec<Wanted>> {
    let queued = queued.lock();
    let mut unsure = HashMap::<Namespace, Vec<Wanted>>::new();
    for wanted in wanted {
        if wanted.is_unsure || queued.knows(&wanted.document, &wanted.head) {
            unsure.entry(wanted.document.namespace.clone()).or_default().push(wanted.clone());
        }
    }
    unsure
}

async fn read(
    term: &Term,
    inspector: &Inspector,
    namespace: &Namespace,
    unsure: &[Wanted],
) -> Result<Vec<Wanted>, Error> {
    let mut documents = Vec::with_capacity(unsure.len());
    let mut known = HashMap::<Vec<u8>, &Wanted>::new();
    for wanted in unsure {
        documents.push(wanted.document.clone());
        if let Some(id) = id_alone(&wanted.document) {
            known.insert(id, wanted);
        }
    }
    let command = rawdoc! {
        "find": namespace.coll.as_str(),
        "filter": DocumentRef::any_of(&documents),
        "projection": { "outbox": 1 },
    };

    let database = term.mongo.database(&namespace.db);
    let mut cursor = database.run_raw_cursor_command(command).selection_criteria(primary()).await?;
    let mut confirmed = Vec::new();
    while cursor.advance().await? {
        let Some(named) = DocumentRef::of_stored(namespace.clone(), cursor.current()) else {
            continue;
        };
        let Some(before) = known.get(&named.map_key()) else {
            continue;
        };
        if let Some(found) = inspector.inspect(namespace, cursor.current(), before.moment).wanted {
            // Keeps the document's key and due date from the first read: in a sharded collection, the key
            // contains more than the `_id`.
            let due = found.due.or(before.due);
            confirmed.push(Wanted { document: before.document.clone(), due, ..found });
        }
    }
    Ok(confirmed)
}

/// The document's `_id` as the key of a map, without the document's shard key.
fn id_alone(document: &DocumentRef) -> Option<Vec<u8>> {
    let named = DocumentRef::of_stored(document.namespace.clone(), document.key())?;
    Some(named.map_key())
}
