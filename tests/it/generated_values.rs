//! Tests unforeseen values: thousands of generated BSON values replace an outbox, an entry or a field of an
//! entry.
//!
//! Every part that reads outboxes processes each value: a load, a save with a message, the rescuer's stream
//! and sweep, and a worker. A run can be repeated with its seed: `OUTBOX_TEST_SEED=… cargo nextest run --test
//! generated_values`.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use crate::flow::{Heard, soon};
use crate::generator::Generator;
use crate::support::{Recorder, TestDatabase};
use async_trait::async_trait;
use document_outbox::{
    Aggregate, DeliveryOrder, DocumentRef, Error, InlineDispatcher, Message, Outbox, SendFailure, Store,
    command::{ProcessDocumentMessages, Reason},
    deliver::{AttributePrefix, Envelope, PayloadFormat, cloudevents},
    dispatch::{Processed, Processor, ProcessorSettings},
    internal::{Deliverable, Rules, ServerClock, Slot, deliverable, read_outbox},
};
use futures::{StreamExt, stream};
use mongodb::{
    Database,
    bson::{Bson, DateTime, RawDocumentBuf, Uuid, doc},
};
use outbox_rescuer::{CancellationToken, Commands, RescueEvent, Rescuer, RescuerError, Settings};
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;

const CONCURRENCY: usize = 32;
const GOOD: &str = "good";

/// An aggregate that accepts any document with any outbox.
#[derive(Debug, Serialize, Deserialize)]
struct Any {
    #[serde(rename = "_id")]
    id: i32,
    #[serde(skip)]
    outbox: Outbox,
}

impl Aggregate for Any {
    type Id = i32;
    fn id(&self) -> &i32 {
        &self.id
    }
    fn outbox(&mut self) -> &mut Outbox {
        &mut self.outbox
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Good;

impl Message for Good {
    const TYPE: &'static str = GOOD;
}

/// Generates values that replace a whole outbox.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odd_values_as_outbox_are_left_unchanged() {
    let mut generator = Generator::announced(1);
    let outboxes = (0..3_000).map(|_| generator.value(4)).collect();
    see_through(outboxes).await;
}

/// Generates elements for an outbox: random values, and elements that are almost entries. One element in ten
/// is a valid entry.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odd_values_as_entries_spare_their_neighbours() {
    let mut generator = Generator::announced(2);
    let outboxes = (0..300).map(|_| {
        let elements = (0..10).map(|nth| match nth % 2 {
            0 => generator.value(4),
            _ => generator.nearly_an_entry(),
        });
        let mut elements: Vec<Bson> = elements.collect();
        elements.insert(generator.below(11), good().into());
        Bson::Array(elements)
    });
    see_through(outboxes.collect()).await;
}

/// Generates values for one field of an otherwise valid entry.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odd_values_in_entry_fields_spare_their_neighbours() {
    let mut generator = Generator::announced(3);
    let outboxes = (0..400).map(|nth| {
        let field = crate::generator::FIELDS[nth % crate::generator::FIELDS.len()];
        let mut elements: Vec<Bson> = (0..10).map(|_| generator.entry_with(&[field]).into()).collect();
        elements.insert(generator.below(11), good().into());
        Bson::Array(elements)
    });
    see_through(outboxes.collect()).await;
}

fn good() -> mongodb::bson::Document {
    doc! { "id": Uuid::new(), "type": GOOD, "payload": 1 }
}

/// Checks that an unreadable entry is never delivered or deleted, never blocks its neighbours, and never causes
/// repeated commands for its document, and that such entries are counted and listed.
async fn see_through(outboxes: Vec<Bson>) {
    let world = World::create().await;
    let mut rescuer = world.rescuer("first").await;
    let documents = world.insert(outboxes).await;
    let queued = rescuer.sees_all(&world, -1).await;

    let before = world.stored().await;
    let saved = world.save_each(&documents, &before).await;
    let found = world.stored().await;
    let delivered = world.process_each(&documents).await;
    let after = world.stored().await;

    let name = |envelope: &Envelope| {
        (envelope.document.id().as_i32().unwrap(), Uuid::from_bytes(envelope.id.into_bytes()))
    };
    let ids: HashSet<(i32, Uuid)> = delivered.iter().map(name).collect();
    assert_eq!(ids.len(), delivered.len(), "each once");
    for id in &documents {
        let good = good_ones(&found[id]);
        assert_eq!(good.len(), good_ones(&before[id]).len() + usize::from(saved.contains(id)));
        assert!(good.iter().all(|good| ids.contains(&(*id, *good))), "the valid entries of document {id}");
        unreadable_ones_are_as_they_were(*id, &found[id], &after[id]);
        let times = queued.get(id).copied().unwrap_or_default();
        assert!(times <= 3, "document {id} was queued {times} times");
        let wanted = world.plan(&before[id], DeliveryOrder::Ordered, |plan| {
            plan.entries.iter().any(|entry| entry.message_type == GOOD)
        });
        assert!(!wanted || times > 0, "document {id} was not queued");
    }
    delivered.iter().for_each(can_be_put_on_the_wire_or_told_why_not);

    // A document that a worker has finished is not queued again, because a new rescuer without saved state finds no
    // message in the document.
    let mut second = world.rescuer("second").await;
    for (id, times) in second.sees_all(&world, -2).await {
        let elsewhere = world.plan(&after[&id], DeliveryOrder::Ordered, |plan| plan.not_mine);
        assert!(elsewhere > 0, "document {id} is queued forever ({times} times by now)");
    }
    println!("{} messages of {} documents delivered", delivered.len(), documents.len());
    rescuer.stop().await;
    second.stop().await;
    world.end().await;
}

type Stored = HashMap<i32, RawDocumentBuf>;

struct World {
    test: TestDatabase,
    store: Store<Any>,
    now: DateTime,
}

impl World {
    async fn create() -> Self {
        let test = TestDatabase::create().await;
        let store = Store::<Any>::new(test.orders(), &InlineDispatcher::off(&test.client));
        store.ensure_indexes().await.unwrap();
        let clock = ServerClock::new(test.client.clone());
        Self { now: clock.now().await.unwrap(), test, store }
    }

    fn document(&self, id: i32) -> DocumentRef {
        DocumentRef::by_id(self.test.orders().namespace(), id)
    }

    fn state(&self) -> Database {
        let name = format!("{}_state", self.test.database.name());
        self.test.client.database(&name)
    }

    async fn end(self) {
        self.state().drop().await.unwrap();
        self.test.drop().await;
    }

    async fn rescuer(&self, stream: &str) -> Waking {
        let client = mongodb::Client::with_uri_str(crate::support::uri("OUTBOX_MONGODB_URI")).await.unwrap();
        let settings = Settings::new(vec![format!("{}.*", self.test.database.name()).parse().unwrap()]).with(
            |settings| {
                settings.stream = stream.into();
                settings.delay = Duration::from_secs(1);
                settings.sweep_interval = Duration::from_millis(200);
                settings.state_database = self.state().name().into();
            },
        );
        let rescuer = Rescuer::new(client, Arc::new(Taken), settings).unwrap();
        let mut events = Heard::from(rescuer.subscribe());
        let stop = CancellationToken::new();
        let task = tokio::spawn(rescuer.run(stop.clone()));
        let opened = |event: &RescueEvent| matches!(event, RescueEvent::Opened { .. }).then_some(());
        events.wait("the stream to open", opened).await;
        Waking { events, stop, task }
    }

    /// Stores each value in a separate document, except values that the server refuses.
    async fn insert(&self, outboxes: Vec<Bson>) -> Vec<i32> {
        let all = outboxes.len();
        let inserts = outboxes.into_iter().zip(0..).map(async |(outbox, id)| {
            let document = doc! { "_id": id, "outbox": outbox };
            let inserted = self.test.orders().insert_one(document).await;
            inserted.is_ok().then_some(id)
        });
        let documents: Vec<i32> = at_once(inserts).await.into_iter().flatten().collect();
        let refused = all - documents.len();
        println!("{refused} of {all} documents were refused by the server");
        assert!(refused * 20 <= all, "too many to be a test");
        documents
    }

    async fn stored(&self) -> Stored {
        let collection = self.test.orders().clone_with_type::<RawDocumentBuf>();
        let found = collection.find(doc! { "_id": { "$gte": 0 } }).await.unwrap();
        let all: Vec<RawDocumentBuf> = found.map(|document| document.unwrap()).collect().await;
        let id = |document: &RawDocumentBuf| document.get_i32("_id").unwrap();
        all.into_iter().map(|document| (id(&document), document)).collect()
    }

    /// Loads each document and saves it with a valid message. Returns the documents that accepted the message.
    async fn save_each(&self, documents: &[i32], stored: &Stored) -> HashSet<i32> {
        let saves = documents.iter().map(async |id| {
            let mut loaded = self.store.load(id).await.unwrap().unwrap();
            loaded.outbox.send(Good);
            let saved = self.store.save(&mut loaded).await;
            let array = read_outbox(outbox(&stored[id]).as_ref()).is_ok();
            match saved {
                Ok(saved) => assert!(array && saved.is_current(), "document {id}: {saved:?}"),
                Err(error) => {
                    assert!(!array && matches!(error, Error::OutboxNotArray { .. }), "document {id}: {error}")
                }
            }
            array.then_some(*id)
        });
        at_once(saves).await.into_iter().flatten().collect()
    }

    /// Lets a worker process each document, first as an ordered and then as an unordered document. Returns the
    /// delivered messages.
    async fn process_each(&self, documents: &[i32]) -> Vec<Envelope> {
        let recorder = Recorder::default();
        let settings = ProcessorSettings::default()
            .with(|settings| settings.state_database = self.state().name().into());
        let client = self.test.client.clone();
        let worker = Processor::new(client, Arc::new(recorder.clone()), settings);
        let runs = documents.iter().map(async |id| {
            for ordering in [DeliveryOrder::DeadBlocks, DeliveryOrder::Ordered, DeliveryOrder::Unordered] {
                self.process(&worker, *id, ordering).await;
            }
        });
        at_once(runs).await;
        recorder.delivered()
    }

    async fn process(&self, worker: &Processor, id: i32, ordering: DeliveryOrder) {
        let (document, stop) = (self.document(id), CancellationToken::new());
        let processing = worker.process(&document, ordering, &stop);
        let processed = soon(&format!("document {id} to be finished"), processing).await;
        let processed = processed.unwrap_or_else(|error| panic!("document {id}: {error}"));
        let collection = self.test.orders().clone_with_type::<RawDocumentBuf>();
        let stored = collection.find_one(doc! { "_id": id }).await.unwrap().unwrap();
        let (work, held) = self.plan(&stored, ordering, |plan| (plan.is_work(), plan.held));
        assert!(!work, "document {id}: something deliverable was left, {processed:?}");
        let end = held.map_or(Processed::Done, Processed::Held);
        assert_eq!(processed, end, "document {id}");
    }

    /// Returns the entries of a document that can be delivered to the broker.
    fn plan<T>(
        &self,
        stored: &RawDocumentBuf,
        ordering: DeliveryOrder,
        ask: impl Fn(Deliverable<'_>) -> T,
    ) -> T {
        let slots = slots(stored);
        ask(deliverable(
            &slots,
            Rules { now: self.now, ordering, limit: usize::MAX, serves: &|via| via.is_none() },
        ))
    }
}

/// A rescuer that runs in this process.
struct Waking {
    events: Heard<RescueEvent>,
    stop: CancellationToken,
    task: JoinHandle<Result<(), RescuerError>>,
}

impl Waking {
    /// Waits until stream and sweep have read everything stored so far. Returns the queued documents with their number
    /// of commands.
    async fn sees_all(&mut self, world: &World, last: i32) -> HashMap<i32, usize> {
        // Apart from the first sweep, only the stream finds entries without a date. The stream is read in order, so
        // when it shows this document, it has shown all earlier documents.
        let document = doc! { "_id": last, "outbox": [good()] };
        world.test.orders().insert_one(document).await.unwrap();
        let (mut swept, mut found, mut followed) = (false, false, false);
        let mut queued = HashMap::new();
        let collect = |event: &RescueEvent| {
            match event {
                RescueEvent::Queued { document, reason } => {
                    let id = document.id().as_i32().unwrap();
                    found |= id == last && *reason == Reason::Stream;
                    if id >= 0 {
                        *queued.entry(id).or_default() += 1;
                    }
                }
                RescueEvent::SweepDone { full: true, cut_short, .. } => swept |= !cut_short,
                // The commands of a page are announced in any order, so the page counts only when it has
                // ended.
                RescueEvent::PageDone { .. } => followed |= found,
                _ => {}
            }
            (swept && followed).then_some(())
        };
        self.events.wait("stream and sweep to read everything", collect).await;
        queued
    }

    async fn stop(self) {
        self.stop.cancel();
        soon("the rescuer to stop", self.task).await.unwrap().unwrap();
    }
}

/// Accepts every command.
struct Taken;

#[async_trait]
impl Commands for Taken {
    async fn send(&self, commands: Vec<ProcessDocumentMessages>) -> Vec<Result<(), SendFailure>> {
        commands.iter().map(|_| Ok(())).collect()
    }

    async fn ready(&self) {}
}

async fn at_once<F: Future>(work: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    stream::iter(work).buffer_unordered(CONCURRENCY).collect().await
}

fn outbox(stored: &RawDocumentBuf) -> Option<Bson> {
    let value = stored.get("outbox").unwrap();
    value.map(|value| Bson::try_from(value).unwrap())
}

fn slots(stored: &RawDocumentBuf) -> Vec<Slot> {
    read_outbox(outbox(stored).as_ref()).unwrap_or_default()
}

fn good_ones(stored: &RawDocumentBuf) -> Vec<Uuid> {
    let slots = slots(stored);
    let entries = slots.iter().filter_map(Slot::entry);
    let good = entries.filter(|entry| entry.message_type == GOOD);
    good.map(|entry| entry.id).collect()
}

fn unreadable_ones_are_as_they_were(id: i32, before: &RawDocumentBuf, after: &RawDocumentBuf) {
    if read_outbox(outbox(before).as_ref()).is_err() {
        assert_eq!(before.as_bytes(), after.as_bytes(), "document {id}");
    }
    assert_eq!(unreadable_ones(before), unreadable_ones(after), "document {id}");
}

/// Returns the bytes of each document.
fn unreadable_ones(stored: &RawDocumentBuf) -> Vec<Vec<u8>> {
    let Some(Bson::Array(elements)) = outbox(stored) else {
        return Vec::new();
    };
    let both = elements.into_iter().zip(slots(stored));
    let unreadable = both.filter(|(_, slot)| slot.entry().is_none());
    let bytes = |element: Bson| RawDocumentBuf::try_from(&doc! { "e": element }).unwrap();
    unreadable.map(|(element, _)| bytes(element).as_bytes().to_vec()).collect()
}

fn can_be_put_on_the_wire_or_told_why_not(envelope: &Envelope) {
    for format in [PayloadFormat::Json, PayloadFormat::CanonicalExtendedJson] {
        if let Err(error) = cloudevents::publication(envelope, "messages", format, AttributePrefix::Colon) {
            assert!(!error.to_string().is_empty());
        }
    }
}

/// An aggregate whose struct knows only a few of the stored fields, at every depth.
#[derive(Debug, Serialize, Deserialize)]
struct Tree {
    #[serde(rename = "_id")]
    id: i32,
    root: Node,
    #[serde(skip)]
    outbox: Outbox,
}

#[derive(Debug, Serialize, Deserialize)]
struct Node {
    id: i64,
    n: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    inner: Option<Box<Node>>,
    #[serde(default)]
    nodes: Vec<Node>,
}

impl Aggregate for Tree {
    type Id = i32;
    fn id(&self) -> &i32 {
        &self.id
    }
    fn outbox(&mut self) -> &mut Outbox {
        &mut self.outbox
    }
}

impl Node {
    fn of(stored: &mongodb::bson::Document) -> Self {
        let nodes = stored.get_array("nodes").unwrap();
        Self {
            id: stored.get_i64("id").unwrap(),
            n: stored.get_i64("n").unwrap(),
            inner: stored.get_document("inner").ok().map(|inner| Box::new(Self::of(inner))),
            nodes: nodes.iter().map(|node| Self::of(node.as_document().unwrap())).collect(),
        }
    }
}

/// P6: *a save loses no stored field that its struct doesn't know, at any depth*, with any content; a save
/// does not restore a removed field either.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn six_hundred_generated_changes_keep_every_unknown_field() {
    let test = TestDatabase::create().await;
    let trees = Store::<Tree>::new(test.orders(), &InlineDispatcher::off(&test.client));
    let raw = test.orders().clone_with_type::<RawDocumentBuf>();
    let mut generator = Generator::announced(4);
    let mut refused = 0;
    for id in 0..300 {
        let mut model = doc! { "_id": id, "root": node(&mut generator, 2) };
        if test.orders().insert_one(&model).await.is_err() {
            refused += 1;
            continue;
        }
        let mut tree = trees.load(&id).await.unwrap().unwrap();
        for _ in 0..2 {
            let mut changed = model.clone();
            change(&mut generator, changed.get_document_mut("root").unwrap(), 2);
            tree.root = Node::of(changed.get_document("root").unwrap());
            match trees.save(&mut tree).await {
                Ok(saved) => assert!(saved.is_current(), "{saved:?}"),
                // The server accepts these names only in an insert.
                Err(Error::Refused(_)) => {
                    refused += 1;
                    break;
                }
                Err(error) => panic!("document {id}: {error}"),
            }
            model = changed;
            let stored = raw.find_one(doc! { "_id": id }).await.unwrap().unwrap();
            let root = Bson::try_from(stored.get("root").unwrap().unwrap()).unwrap();
            assert_eq!(ordered(&root), ordered(&model["root"]), "document {id}");
        }
    }
    assert!(refused < 60, "{refused} documents were refused, too many to be a test");
    test.drop().await;
}

fn node(generator: &mut Generator, depth: usize) -> mongodb::bson::Document {
    let mut node = doc! { "id": generator.below(1 << 40) as i64, "n": generator.below(3) as i64 };
    for name in ["u", "v"] {
        if generator.below(2) == 0 {
            node.insert(name, generator.value(2));
        }
    }
    let mut nodes = Vec::new();
    if depth > 0 {
        node.insert("inner", self::node(generator, depth - 1));
        nodes.extend((0..generator.below(5)).map(|_| Bson::from(self::node(generator, depth - 1))));
    }
    node.insert("nodes", nodes);
    node
}

/// Changes the document like an application that knows every field.
fn change(generator: &mut Generator, node: &mut mongodb::bson::Document, depth: usize) {
    if generator.below(3) == 0 {
        node.insert("n", generator.below(3) as i64);
    }
    match node.get_document_mut("inner") {
        Ok(_) if generator.below(6) == 0 => _ = node.remove("inner"),
        Ok(inner) => change(generator, inner, depth.saturating_sub(1)),
        Err(_) => {}
    }
    let nodes = node.get_array_mut("nodes").unwrap();
    for inner in nodes.iter_mut() {
        change(generator, inner.as_document_mut().unwrap(), depth.saturating_sub(1));
    }
    let place = generator.below(nodes.len() + 1);
    match generator.below(5) {
        0 => nodes.rotate_left(place),
        1 => nodes.truncate(place),
        2 => nodes.insert(place, doc! { "id": -1_i64, "n": 0_i64, "nodes": [] }.into()),
        3 => nodes.reverse(),
        _ => {}
    }
}

/// Converts a value to text with sorted fields, because some values are not equal to themselves.
fn ordered(value: &Bson) -> String {
    match value {
        Bson::Document(document) => {
            let mut fields: Vec<_> =
                document.iter().map(|(name, value)| format!("{name:?}: {}", ordered(value))).collect();
            fields.sort();
            format!("{{{}}}", fields.join(", "))
        }
        Bson::Array(items) => format!("[{}]", items.iter().map(ordered).collect::<Vec<_>>().join(", ")),
        other => format!("{other:?}"),
    }
}
