//! One page: changes that are old enough, their documents looked up at once, what is still undelivered queued as one
//! window.

use std::collections::HashMap;

use document_outbox::{DocumentRef, command::Reason};
use mongodb::{Namespace, bson::DateTime, error::Error};

use crate::{
    RescuerError,
    change::Filled,
    commands::{Wanted, send_all},
    context::Context,
    event::RescueEvent,
    look::{any_of, look, projection},
    verdict::Moment,
};

/// Checks a page, the first change of which was `due` then; `false` when told to stop before everything it needed was
/// confirmed.
pub(crate) async fn check(
    context: &Context,
    changes: Vec<Filled>,
    due: DateTime,
) -> Result<bool, RescuerError> {
    let (count, mut documents, mut wanted) = (changes.len(), 0, Vec::new());
    for (namespace, refs) in by_collection(changes) {
        documents += refs.len();
        let Some(now) = context.now().await? else {
            return Ok(false);
        };
        let moment = Moment::following(now, context.plan.delay);
        let find = || find(context, &namespace, &refs, moment);
        match context.insist("look documents of a change up", find).await? {
            Some(found) => wanted.extend(found),
            None => return Ok(false),
        }
    }
    context.count_inline(wanted.len(), documents);
    // An entry without a date is as old as its change, and that is as old as the page's first at the most.
    wanted.iter_mut().for_each(|wanted: &mut Wanted| _ = wanted.due.get_or_insert(due));
    let Some(queued) = send_all(context, wanted, Reason::Stream).await else {
        return Ok(false);
    };
    context.report.emit(RescueEvent::PageDone { changes: count, documents, queued });
    Ok(true)
}

/// Each document once, however many changes it had.
fn by_collection(changes: Vec<Filled>) -> HashMap<Namespace, Vec<DocumentRef>> {
    let mut documents: HashMap<Vec<u8>, DocumentRef> = HashMap::new();
    for change in changes {
        documents.entry(change.document.map_key()).or_insert(change.document);
    }
    let mut collections: HashMap<Namespace, Vec<DocumentRef>> = HashMap::new();
    for document in documents.into_values() {
        collections.entry(document.namespace.clone()).or_default().push(document);
    }
    collections
}

async fn find(
    context: &Context,
    namespace: &Namespace,
    documents: &[DocumentRef],
    moment: Moment,
) -> Result<Vec<Wanted>, Error> {
    let mut cursor = context.collection(namespace).find(any_of(documents)).projection(projection()).await?;
    let mut wanted = Vec::new();
    while cursor.advance().await? {
        wanted.extend(look(context, namespace, cursor.current(), moment));
    }
    Ok(with_keys(wanted, documents))
}

/// Gives each document the key that its change named: on a sharded collection it holds more than the `_id`, and several
/// documents can have one `_id`.
fn with_keys(wanted: Vec<Wanted>, documents: &[DocumentRef]) -> Vec<Wanted> {
    let mut keys: HashMap<Vec<u8>, Vec<&DocumentRef>> = HashMap::new();
    for document in documents {
        let by_id = DocumentRef::by_id(document.namespace.clone(), document.id().clone());
        keys.entry(by_id.map_key()).or_default().push(document);
    }
    let named = |wanted: Wanted| match keys.get(&wanted.document.map_key()) {
        Some(documents) => documents
            .iter()
            .map(|document| Wanted { document: (*document).clone(), ..wanted.clone() })
            .collect(),
        // Deleted and inserted again with an equal `_id` of another type of number.
        None => vec![wanted],
    };
    wanted.into_iter().flat_map(named).collect()
}
