//! One page: changes that are old enough, their documents looked up at once, what is still undelivered queued as one
//! window.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use document_outbox::{DocumentRef, command::Reason};
use mongodb::{
    Namespace,
    bson::{DateTime, RawDocument, RawDocumentBuf, Timestamp, rawdoc},
    error::Error,
};
use tokio::time::timeout;

use crate::{
    classify::{self, Fault},
    judge::inspect::{find_command, look},
    judge::verdict::Moment,
    leadership::term::{Context, primary},
    observe::event::RescueEvent,
    send::commands::{Pauses, Wanted, send_all},
    send::recently_queued::hash,
    stream::change::Filled,
    stream::set_aside::{Aside, PATIENCE},
};

/// From this many changes on, a page is worth asking for the time of the look-up.
const FULL: usize = 100;
/// No look-up keeps the stream waiting for longer.
const LONGEST_LOOK: Duration = Duration::from_secs(10);

/// Checks a page, the first change of which was `due` then; `false` when stopped before everything it needed was confirmed.
pub(crate) async fn check(
    context: &Context,
    settled: &mut Settled,
    aside: &mut Aside,
    changes: Vec<Filled>,
    due: DateTime,
) -> bool {
    context.report.page_moved();
    let (count, mut wanted) = (changes.len(), Vec::new());
    let changed = by_document(changes);
    let documents = changed.len();
    let collections = by_collection(changed.into_iter().filter(|(key, change)| !settled.covers(key, change)));

    // Asked before anything is looked up: everything until then is seen.
    let mut time = None;
    if count >= FULL && !collections.is_empty() {
        let asked = context.insist("ask MongoDB for its cluster time", || context.cluster_time()).await;
        let Some(answer) = asked else {
            return false;
        };
        time = answer;
    }

    for (namespace, refs) in collections {
        match look_up(context, aside, &namespace, &refs, time).await {
            LookedUp::Found(found) => {
                wanted.extend(found.wanted);
                if let Some(time) = time {
                    found.empty.iter().for_each(|key| settled.note(key, time));
                }
            }
            LookedUp::SetAside => context.full_sweep.owe(&namespace),
            LookedUp::Stopped => return false,
        }
        context.report.page_moved();
    }
    context.count_inline(wanted.len(), documents);

    // An entry without a date is as old as its change, and that is as old as the page's first at most.
    wanted.iter_mut().for_each(|wanted: &mut Wanted| _ = wanted.due.get_or_insert(due));
    let Some(queued) = send_all(context, wanted, Reason::Stream).await else {
        return false;
    };
    context.report.emit(RescueEvent::PageDone { changes: count, documents, queued });
    true
}

/// What became of the look-up of one collection's documents.
enum LookedUp {
    Found(Found),
    /// It fails for this collection; the sweep finds what its changes were about.
    SetAside,
    Stopped,
}

/// Looks up documents of one collection until that succeeds, or it is clear that it is this collection that fails.
async fn look_up(
    context: &Context,
    aside: &mut Aside,
    namespace: &Namespace,
    refs: &[DocumentRef],
    time: Option<Timestamp>,
) -> LookedUp {
    if aside.waits(namespace) {
        return LookedUp::SetAside;
    }
    let part = format!("look up changed documents of {namespace}");
    let (mut pauses, begun) = (Pauses::new(), Instant::now());
    while !context.is_over() {
        let Some(now) = context.now().await else {
            break;
        };
        let moment = Moment::following(now, context.plan.delay);
        let find = find(context, namespace, refs, moment, time);
        let Some(found) = context.stop.run_until_cancelled(find).await else {
            break;
        };
        let error = match found {
            Ok(found) => {
                aside.take_back(namespace);
                context.report.healed(&part);
                return LookedUp::Found(found);
            }
            Err(error) => error,
        };

        let fault = classify::of(&error);
        context.report.trouble(&part, &classify::explain(&error, fault));
        let long =
            matches!(fault, Fault::Fatal(_)) || aside.contains(namespace) || begun.elapsed() >= PATIENCE;
        if long && answers(context).await {
            aside.put(namespace);
            return LookedUp::SetAside;
        }
        pauses.pause(&context.stop).await;
    }
    LookedUp::Stopped
}

/// Whether MongoDB answers at all: then it is the collection that fails.
async fn answers(context: &Context) -> bool {
    let asked = timeout(LONGEST_LOOK, context.cluster_time());
    let answer = context.stop.run_until_cancelled(asked).await;
    matches!(answer, Some(Ok(Ok(_))))
}

/// The last change of each document.
fn by_document(changes: Vec<Filled>) -> HashMap<Vec<u8>, Filled> {
    changes.into_iter().map(|change| (change.document.map_key(), change)).collect()
}

fn by_collection(changes: impl Iterator<Item = (Vec<u8>, Filled)>) -> HashMap<Namespace, Vec<DocumentRef>> {
    let mut collections: HashMap<Namespace, Vec<DocumentRef>> = HashMap::new();
    for (_, Filled { document, .. }) in changes {
        match collections.get_mut(&document.namespace) {
            Some(documents) => documents.push(document),
            None => _ = collections.insert(document.namespace.clone(), vec![document]),
        }
    }
    collections
}

/// Documents that were found with an empty outbox, and the cluster time by which they were: what they changed until then needs
/// no second look. So a document that changed many times in a backlog is looked up once, and not once in every page.
///
/// Forgetting costs another look and nothing else, so it is bounded. Two documents whose hashes are equal would hide each
/// other's changes from the stream, though not from the sweep.
#[derive(Debug, Default)]
pub(crate) struct Settled(HashMap<u64, Timestamp>);

/// At some 40 bytes each.
const MOST_SETTLED: usize = 100_000;

impl Settled {
    fn covers(&self, key: &[u8], change: &Filled) -> bool {
        let time = self.0.get(&hash(&key));
        time.zip(change.mark.cluster_time).is_some_and(|(time, change)| change <= *time)
    }

    fn note(&mut self, key: &[u8], time: Timestamp) {
        if self.0.len() >= MOST_SETTLED {
            self.0.clear();
        }
        self.0.insert(hash(&key), time);
    }
}

/// What a look-up found.
struct Found {
    wanted: Vec<Wanted>,
    /// The keys of those whose outbox is empty.
    empty: Vec<Vec<u8>>,
}

/// With a `time`, everything that was written until then is seen, also by writes that were still committing when it was asked
/// for: without it a document could be found empty "by" a time before which a message was pushed to it.
fn read_concern(time: Option<Timestamp>) -> RawDocumentBuf {
    match time {
        Some(time) => rawdoc! { "level": "local", "afterClusterTime": time },
        None => rawdoc! { "level": "local" },
    }
}

async fn find(
    context: &Context,
    namespace: &Namespace,
    documents: &[DocumentRef],
    moment: Moment,
    time: Option<Timestamp>,
) -> Result<Found, Error> {
    // On the primary, which has everything that a change stream has shown.
    let database = context.client.database(&namespace.db);
    let command = find_command(namespace, documents, read_concern(time), LONGEST_LOOK);
    let mut cursor = database.run_raw_cursor_command(command).selection_criteria(primary()).await?;

    let (mut wanted, mut empty) = (Vec::new(), Vec::new());
    while cursor.advance().await? {
        let document = cursor.current();
        match DocumentRef::of_stored(namespace.clone(), document) {
            Some(named) if is_empty(document) => empty.push(named.map_key()),
            _ => wanted.extend(look(context, namespace, document, moment).wanted),
        }
    }
    Ok(Found { wanted: with_keys(wanted, documents), empty })
}

/// Whether the outbox is an empty array.
fn is_empty(document: &RawDocument) -> bool {
    /// Its length, and the byte that ends it.
    const BYTES: usize = 5;
    document.get_array("outbox").is_ok_and(|outbox| outbox.as_bytes().len() == BYTES)
}

/// Gives each document the key that its change named: on a sharded collection it holds more than the `_id`, and several
/// documents can have one `_id`.
fn with_keys(wanted: Vec<Wanted>, documents: &[DocumentRef]) -> Vec<Wanted> {
    if wanted.is_empty() {
        return wanted;
    }
    let mut keys: HashMap<Vec<u8>, Vec<&DocumentRef>> = HashMap::new();
    for document in documents {
        if let Some(by_id) = DocumentRef::of_stored(document.namespace.clone(), document.key()) {
            keys.entry(by_id.map_key()).or_default().push(document);
        }
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

#[cfg(test)]
mod tests {
    use mongodb::bson::{RawDocumentBuf, doc};

    use super::*;
    use crate::stream::position::Mark;

    fn change(id: i32, time: Option<u32>) -> (Vec<u8>, Filled) {
        let document = DocumentRef::by_id(Namespace::new("shop", "orders"), id);
        let cluster_time = time.map(|time| Timestamp { time, increment: 1 });
        let mark = Mark { token: None, cluster_time };
        let (at, read) = (DateTime::from_millis(0), Instant::now());
        (document.map_key(), Filled { document, at, read, mark })
    }

    #[test]
    fn what_a_document_changed_until_it_was_found_empty_needs_no_second_look() {
        let mut settled = Settled::default();
        let covers = |settled: &Settled, id, time| {
            let (key, change) = change(id, time);
            settled.covers(&key, &change)
        };
        assert!(!covers(&settled, 1, Some(1)));
        settled.note(&change(1, None).0, Timestamp { time: 7, increment: 1 });
        assert!(covers(&settled, 1, Some(6)) && covers(&settled, 1, Some(7)));
        assert!(!covers(&settled, 1, Some(8)), "it has changed since");
        assert!(!covers(&settled, 1, None), "nobody knows when");
        assert!(!covers(&settled, 2, Some(6)));
    }

    #[test]
    fn the_memory_of_empty_documents_is_bounded() {
        let mut settled = Settled::default();
        for number in 0..3 * MOST_SETTLED {
            settled.note(&number.to_le_bytes(), Timestamp { time: 7, increment: 1 });
        }
        assert!(settled.0.len() <= MOST_SETTLED);
    }

    #[test]
    fn only_an_empty_array_is_an_empty_outbox() {
        let empty = |document| is_empty(&RawDocumentBuf::try_from(&document).unwrap());
        assert!(empty(doc! { "_id": 7, "outbox": [] }));
        for outbox in [doc! { "outbox": [{}] }, doc! { "outbox": null }, doc! { "outbox": {} }, doc! {}] {
            let mut document = doc! { "_id": 7 };
            document.extend(outbox);
            assert!(!empty(document));
        }
    }
}
