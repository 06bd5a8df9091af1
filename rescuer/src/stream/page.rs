//! Checks a page of changes that are old enough. Their documents are read together, and documents with
//! undelivered messages are queued as one window.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use document_outbox::{DocumentRef, command::Reason};
use mongodb::{
    Namespace,
    bson::{DateTime, RawDocument, RawDocumentBuf, Timestamp, rawdoc},
    error::Error,
};
use tokio::time::timeout;

use super::{
    change::Filled,
    inline_share::InlineShare,
    set_aside::{PATIENCE, SetAside},
    settled::Settled,
};
use crate::{
    classify::{self, Fault},
    halt::Run,
    judge::{
        inspect::{Inspector, Wanted, find_command},
        verdict::Moment,
    },
    leadership::term::Term,
    mongo::primary,
    observe::event::RescueEvent,
    pauses::Pauses,
    send::sender::Sender,
    sweep::{catalogue::Catalogue, full_sweep::FullSweep},
};

/// A page with at least this many changes asks for the cluster time before the read; for a smaller page, the
/// time isn't worth a request.
const FULL: usize = 100;
/// The longest time that a read may delay the stream.
const LONGEST_LOOK_UP: Duration = Duration::from_secs(10);
/// The size of an empty array: its length and the terminating byte.
const EMPTY_ARRAY: usize = 5;

/// Checks pages, one after another.
pub(super) struct PageChecker {
    term: Arc<Term>,
    sender: Arc<Sender>,
    inspector: Arc<Inspector>,
    catalogue: Arc<Catalogue>,
    full_sweep: Arc<FullSweep>,
    settled: Settled,
    aside: SetAside,
    inline: InlineShare,
}

/// The documents of one collection that a read found.
struct FoundDocuments {
    wanted: Vec<Wanted>,
    /// The keys of the documents whose outbox is empty.
    empty: Vec<Vec<u8>>,
}

/// The result of a read in one collection.
enum PageRead {
    Found(FoundDocuments),
    /// Reads of this collection fail, so its changes are skipped; the sweep finds the documents.
    SetAside,
}

impl PageChecker {
    pub(super) fn new(
        term: Arc<Term>,
        sender: Arc<Sender>,
        inspector: Arc<Inspector>,
        catalogue: Arc<Catalogue>,
        full_sweep: Arc<FullSweep>,
    ) -> Self {
        Self {
            term,
            sender,
            inspector,
            catalogue,
            full_sweep,
            settled: Settled::default(),
            aside: SetAside::default(),
            inline: InlineShare::default(),
        }
    }

    /// Checks a page until every command that it needs is confirmed. The page's first change was due at
    /// `due`.
    pub(super) async fn check(&mut self, changes: Vec<Filled>, due: DateTime) -> Run<()> {
        self.term.report.page_moved();
        let count = changes.len();
        let last = last_changes(changes);
        let documents = last.len();
        let collections = self.by_collection(last);

        // The time is requested before the read, so that the read sees all writes up to that time.
        let mut time = None;
        if count >= FULL && !collections.is_empty() {
            let ask = || self.term.mongo.primary_time();
            time = self.term.insist("ask MongoDB for its cluster time", ask).await?;
        }

        let mut wanted = Vec::new();
        for (namespace, documents) in collections {
            match self.read_documents(&namespace, &documents, time).await? {
                PageRead::Found(found) => {
                    wanted.extend(found.wanted);
                    self.settle(&found.empty, time);
                }
                PageRead::SetAside => self.full_sweep.request_collection(&namespace),
            }
            self.term.report.page_moved();
        }
        if let Some(warning) = self.inline.count(wanted.len(), documents, self.term.plan.delay) {
            self.term.report.warn(warning);
        }

        // An entry without a date is as old as its change, which is at most as old as the page's first
        // change.
        for wanted in &mut wanted {
            wanted.due.get_or_insert(due);
        }
        let queued = self.sender.send_all(wanted, Reason::Stream).await?;
        self.term.report.emit(RescueEvent::PageDone { changes: count, documents, queued });
        Ok(())
    }

    /// The documents to read. A document is skipped if a read after the change found its outbox empty.
    fn by_collection(&self, changed: HashMap<Vec<u8>, Filled>) -> HashMap<Namespace, Vec<DocumentRef>> {
        let mut collections: HashMap<Namespace, Vec<DocumentRef>> = HashMap::new();
        for (key, change) in changed {
            if !self.settled.covers(&key, &change) {
                let namespace = change.document.namespace.clone();
                collections.entry(namespace).or_default().push(change.document);
            }
        }
        collections
    }

    fn settle(&mut self, empty: &[Vec<u8>], time: Option<Timestamp>) {
        if let Some(time) = time {
            for key in empty {
                self.settled.note(key, time);
            }
        }
    }

    /// Reads documents of one collection until the read succeeds, or until it is clear that reads of this
    /// collection fail.
    async fn read_documents(
        &mut self,
        namespace: &Namespace,
        documents: &[DocumentRef],
        time: Option<Timestamp>,
    ) -> Run<PageRead> {
        if self.aside.waits(namespace) {
            return Ok(PageRead::SetAside);
        }
        let part = format!("read the changed documents of {namespace}");
        let (mut pauses, begun) = (Pauses::new(), Instant::now());

        loop {
            self.term.check()?;
            let moment = Moment::following(self.term.now().await?, self.term.plan.delay);
            let find = self.find(namespace, documents, moment, time);
            let error = match self.term.unless_stopped(find).await? {
                Ok(found) => {
                    self.aside.take_back(namespace);
                    self.term.report.healed(&part);
                    return Ok(PageRead::Found(found));
                }
                Err(error) => error,
            };

            let fault = classify::of(&error);
            self.term.report.trouble(&part, &classify::explain(&error, fault));
            // After `PATIENCE` an election would be over, but a missing privilege would not end by
            // itself.
            let lasts = matches!(fault, Fault::Fatal(_))
                || self.aside.contains(namespace)
                || begun.elapsed() >= PATIENCE;
            if lasts && self.mongodb_answers().await? {
                self.aside.put(namespace);
                return Ok(PageRead::SetAside);
            }
            pauses.pause(&self.term.stop).await;
        }
    }

    /// Whether MongoDB answers at all. If so, the failure is limited to the collection.
    async fn mongodb_answers(&self) -> Run<bool> {
        let asked = timeout(LONGEST_LOOK_UP, self.term.mongo.primary_time());
        let answer = self.term.unless_stopped(asked).await?;
        Ok(matches!(answer, Ok(Ok(_))))
    }

    async fn find(
        &self,
        namespace: &Namespace,
        documents: &[DocumentRef],
        moment: Moment,
        time: Option<Timestamp>,
    ) -> Result<FoundDocuments, Error> {
        // The read goes to the primary, which has every write that a change stream has shown.
        let database = self.term.mongo.database(&namespace.db);
        let command = find_command(namespace, documents, read_concern(time), LONGEST_LOOK_UP);
        let mut cursor = database.run_raw_cursor_command(command).selection_criteria(primary()).await?;

        let (mut wanted, mut empty) = (Vec::new(), Vec::new());
        while cursor.advance().await? {
            let document = cursor.current();
            match DocumentRef::of_stored(namespace.clone(), document) {
                Some(named) if is_empty(document) => empty.push(named.map_key()),
                _ => {
                    self.catalogue.found_outbox(namespace);
                    wanted.extend(self.inspector.inspect(namespace, document, moment).wanted);
                }
            }
        }
        Ok(FoundDocuments { wanted: with_keys(wanted, documents), empty })
    }
}

/// The last change of each document, by the document's key.
fn last_changes(changes: Vec<Filled>) -> HashMap<Vec<u8>, Filled> {
    changes.into_iter().map(|change| (change.document.map_key(), change)).collect()
}

/// With a `time`, the read sees all writes up to that time, including writes that were still being committed
/// when the read was requested. Otherwise a document could be recorded as empty at that time although a
/// message had been pushed to it earlier.
fn read_concern(time: Option<Timestamp>) -> RawDocumentBuf {
    if let Some(time) = time {
        rawdoc! { "level": "local", "afterClusterTime": time }
    } else {
        rawdoc! { "level": "local" }
    }
}

/// Whether the outbox is an empty array.
fn is_empty(document: &RawDocument) -> bool {
    document.get_array("outbox").is_ok_and(|outbox| outbox.as_bytes().len() == EMPTY_ARRAY)
}

/// Gives each document the key that its change named: in a sharded collection the key contains more than
/// the `_id`, and several documents can have the same `_id`.
fn with_keys(wanted: Vec<Wanted>, documents: &[DocumentRef]) -> Vec<Wanted> {
    if wanted.is_empty() {
        return wanted;
    }
    let mut by_id: HashMap<Vec<u8>, Vec<&DocumentRef>> = HashMap::new();
    for document in documents {
        if let Some(id_alone) = DocumentRef::of_stored(document.namespace.clone(), document.key()) {
            by_id.entry(id_alone.map_key()).or_default().push(document);
        }
    }

    let mut named = Vec::with_capacity(wanted.len());
    for wanted in wanted {
        match by_id.get(&wanted.document.map_key()) {
            Some(documents) => {
                for document in documents {
                    named.push(Wanted { document: (*document).clone(), ..wanted.clone() });
                }
            }
            // The document was deleted and inserted again with an `_id` that is equal to the earlier `_id`
            // but has another number type.
            None => named.push(wanted),
        }
    }
    named
}

#[cfg(test)]
mod tests {
    use mongodb::bson::{RawDocumentBuf, doc};

    use super::*;

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
