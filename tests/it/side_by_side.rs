//! Tests documents that are processed concurrently and therefore read together. The result for each document
//! is the same as if it were read alone.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use crate::support::{Recorder, TestDatabase, uri};
use document_outbox::{
    DeliveryOrder, DocumentRef,
    dispatch::{Processed, Processor, ProcessorSettings},
};
use futures::future::join_all;
use mongodb::{
    Client, Namespace,
    bson::{Bson, DateTime, Decimal128, Document, Uuid, doc, oid::ObjectId},
    event::{EventHandler, command::CommandEvent},
    options::ClientOptions,
};
use tokio_util::sync::CancellationToken;

/// A processor, with the number of `find` commands that its client has sent.
async fn processor(deliver: Recorder) -> (Processor, Arc<AtomicUsize>) {
    let finds = Arc::new(AtomicUsize::new(0));
    let counted = finds.clone();
    let mut options = ClientOptions::parse(uri("OUTBOX_MONGODB_URI")).await.unwrap();
    options.command_event_handler = Some(EventHandler::callback(move |event| {
        if let CommandEvent::Started(started) = event
            && started.command_name == "find"
        {
            counted.fetch_add(1, Relaxed);
        }
    }));
    let client = Client::with_options(options).unwrap();
    (Processor::new(client, Arc::new(deliver), ProcessorSettings::default()), finds)
}

fn filled(id: impl Into<Bson>) -> Document {
    let sent = DateTime::from_millis(DateTime::now().timestamp_millis() - 60_000);
    let entry =
        doc! { "id": Uuid::new(), "type": "t", "payload": {}, "created_at": sent, "available_at": sent };
    doc! { "_id": id.into(), "outbox": [entry] }
}

async fn process(processor: &Processor, documents: &[DocumentRef]) -> Vec<Processed> {
    let stop = CancellationToken::new();
    let passes = documents.iter().map(|document| processor.process(document, DeliveryOrder::Ordered, &stop));
    join_all(passes).await.into_iter().map(Result::unwrap).collect()
}

#[tokio::test]
async fn ids_of_every_type_find_exactly_their_document() {
    let test = TestDatabase::create().await;
    let orders = test.orders();
    let namespace = Namespace::new(test.database.name(), orders.name());
    let ids = [
        Bson::from("text"),
        Bson::from("$odd.text"),
        Bson::from(1),
        Bson::from("1"),
        Bson::from(true),
        Bson::Null,
        Bson::from(ObjectId::new()),
        Bson::from(Uuid::new()),
        Bson::from(DateTime::from_millis(1)),
        Bson::from(doc! { "a": 1, "b": { "c": "d" } }),
        Bson::Decimal128("2.5".parse::<Decimal128>().unwrap()),
        Bson::MinKey,
        Bson::MaxKey,
    ];
    orders.insert_many(ids.iter().map(|id| filled(id.clone()))).await.unwrap();
    let recorder = Recorder::default();
    let (processor, _) = processor(recorder.clone()).await;
    let there = ids.iter().map(|id| DocumentRef::by_id(namespace.clone(), id.clone()));
    let missing =
        [Bson::from(2), Bson::from("other"), Bson::from(doc! { "a": 1 }), Bson::from(doc! { "$gt": 0 })];
    let gone = missing.into_iter().map(|id| DocumentRef::by_id(namespace.clone(), id));
    let documents: Vec<_> = there.chain(gone).collect();

    let processed = process(&processor, &documents).await;
    let (found, gone) = processed.split_at(ids.len());
    assert!(found.iter().all(|processed| *processed == Processed::Done), "{found:?}");
    assert!(gone.iter().all(|processed| *processed == Processed::Gone), "{gone:?}");
    assert_eq!(recorder.delivered().len(), ids.len());
    let left = orders.count_documents(doc! { "outbox.0": { "$exists": true } }).await.unwrap();
    assert_eq!(left, 0);
    test.drop().await;
}

/// MongoDB treats equal numbers of different types as the same `_id`, so a command with a 64-bit id must find
/// the document with the equal 32-bit `_id`.
#[tokio::test]
async fn an_id_of_another_number_type_finds_its_document() {
    let test = TestDatabase::create().await;
    let orders = test.orders();
    let namespace = Namespace::new(test.database.name(), orders.name());
    orders.insert_many((0..30).map(filled)).await.unwrap();
    let (processor, _) = processor(Recorder::default()).await;
    let documents: Vec<_> = (0..30_i64).map(|id| DocumentRef::by_id(namespace.clone(), id)).collect();
    let processed = process(&processor, &documents).await;
    assert!(processed.iter().all(|processed| *processed == Processed::Done), "{processed:?}");
    test.drop().await;
}

#[tokio::test]
async fn many_documents_are_read_with_few_commands() {
    const MANY: i32 = 200;
    let test = TestDatabase::create().await;
    let orders = test.orders();
    let namespace = Namespace::new(test.database.name(), orders.name());
    orders.insert_many((0..MANY).map(filled)).await.unwrap();
    let recorder = Recorder::default();
    let (processor, finds) = processor(recorder.clone()).await;
    let ids = (0..MANY).map(Bson::from).chain([Bson::Undefined]);
    let documents: Vec<_> = ids.map(|id| DocumentRef::by_id(namespace.clone(), id)).collect();
    let stop = CancellationToken::new();
    let passes = documents.iter().map(|document| processor.process(document, DeliveryOrder::Ordered, &stop));
    let processed = join_all(passes).await;
    let done = processed.iter().filter(|processed| matches!(processed, Ok(Processed::Done))).count();
    assert_eq!(done, MANY as usize, "{processed:?}");
    assert_eq!(recorder.delivered().len(), MANY as usize);
    let finds = finds.load(Relaxed);
    assert!(finds < MANY as usize / 10, "{finds} commands for {MANY} documents");
    test.drop().await;
}
