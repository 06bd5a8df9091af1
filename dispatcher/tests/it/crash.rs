//! Tests a message that kills the process that delivers it.

use std::sync::Arc;

use async_trait::async_trait;
use document_outbox::{
    DocumentRef, InlineDispatcher,
    deliver::{Answer, Deliver, Envelope, Outcome},
    dispatch::{Processor, ProcessorSettings},
    store::Inserted,
};
use mongodb::bson::{DateTime, Document, doc};

use crate::support::{Added, Order, TestDatabase, uri};

/// Kills its process at one message, and records the other messages in a collection.
struct Killer {
    notes: mongodb::Collection<Document>,
}

#[async_trait]
impl Deliver for Killer {
    async fn deliver(&self, window: &[Envelope]) -> Vec<Answer> {
        let mut answers = Vec::new();
        for envelope in window {
            let amount = envelope.decode::<Added>().unwrap().amount;
            if amount == 13 {
                std::process::abort();
            }
            // If the process is killed later, this message is delivered again, as P3 (a) allows; the upsert
            // records it only once.
            let note = doc! { "$set": { "amount": amount } };
            self.notes.update_one(doc! { "_id": envelope.id.to_string() }, note).upsert(true).await.unwrap();
            answers.push(Outcome::Delivered.into());
        }
        answers
    }
}

/// The process that the next test starts as its worker. When it is run as a test of its own, it does nothing.
#[tokio::test]
async fn a_worker_process_that_a_message_kills() {
    let Ok(name) = std::env::var("OUTBOX_TEST_KILLER_DATABASE") else {
        return;
    };
    let client = mongodb::Client::with_uri_str(uri("OUTBOX_MONGODB_URI")).await.unwrap();
    let database = client.database(&name);
    let killer = Killer { notes: database.collection("notes") };
    let processor = Processor::new(client, Arc::new(killer), ProcessorSettings::default());
    let document = DocumentRef::by_id(database.collection::<Document>("orders").namespace(), "o-1");
    let stop = tokio_util::sync::CancellationToken::new();
    let ordering = document_outbox::DeliveryOrder::Ordered;
    processor.process(&document, ordering, &stop).await.unwrap();
}

/// A message that kills its process records no failure. The dispatcher recognises the message by
/// the number of its claims, then claims it alone, and finally records it as dead.
#[tokio::test]
async fn a_message_that_kills_its_process_dies() {
    let test = TestDatabase::create().await;
    let mut order = Order::new("o-1");
    for amount in [12, 13, 14] {
        order.add(amount);
    }
    let orders = test.store(&InlineDispatcher::off(&test.client));
    assert!(matches!(orders.insert(order).await.unwrap(), Inserted::Applied(..)));
    let mut crashes = 0;
    loop {
        // This update makes every message due again, as if the claims of the killed process had expired.
        let due = doc! { "$set": { "outbox.$[e].available_at": DateTime::from_millis(0) } };
        let living = vec![doc! { "e.id": { "$exists": true }, "e.dead_at": null }];
        test.orders().update_one(doc! { "_id": "o-1" }, due).array_filters(living).await.unwrap();
        let status = tokio::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "crash::a_worker_process_that_a_message_kills"])
            .env("OUTBOX_TEST_KILLER_DATABASE", test.database.name())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .status()
            .await
            .unwrap();
        if status.success() {
            break;
        }
        crashes += 1;
        assert!(crashes < 20, "it never ends");
        let claims: Vec<_> =
            test.outbox("o-1").await.iter().map(|entry| entry.get_i32("claims").unwrap_or(0)).collect();
        assert!(claims.last() <= Some(&5), "the neighbour is no longer claimed with it: {claims:?}");
    }
    assert_eq!(crashes, 8);
    let outbox = test.outbox("o-1").await;
    assert_eq!(outbox.len(), 1);
    assert_eq!(outbox[0].get_str("dead_reason"), Ok("crashed"));
    assert_eq!(outbox[0].get_document("payload"), Ok(&doc! { "amount": 13i64 }));
    let mut noted =
        test.database.collection::<Document>("notes").find(doc! {}).sort(doc! { "amount": 1 }).await.unwrap();
    let mut amounts = Vec::new();
    while noted.advance().await.unwrap() {
        amounts.push(noted.deserialize_current().unwrap().get_i64("amount").unwrap());
    }
    assert_eq!(amounts, [12, 14]);
    test.drop().await;
}
