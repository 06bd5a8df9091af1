//! In these tests a fail point makes MongoDB refuse commands. MongoDB has only one fail point of each kind,
//! so the tests run one after another.

use document_outbox::{
    DocumentRef,
    command::{ProcessDocumentMessages, Reason},
    dispatch::Processed,
};
use mongodb::{
    Client,
    bson::{Bson, Document, Uuid, doc},
    options::ClientOptions,
};
use outbox_dispatcher::Left;

use crate::{
    scene::{Scene, put_back},
    support::{Recorder, uri},
};

/// If a privilege is missing for one collection, the commands for that collection are left to other workers, and
/// other collections continue.
#[tokio::test]
async fn a_refused_collection_stops_no_other() {
    let scene = Scene::set().await;
    let mut options = ClientOptions::parse(uri("OUTBOX_MONGODB_URI")).await.unwrap();
    options.app_name = Some(scene.name.clone());
    let client = Client::with_options(options).unwrap();
    let stock = scene.test.database.collection::<Document>("stock");
    let entry = doc! { "id": Uuid::new(), "type": "order.added", "payload": { "amount": 2i64 } };
    stock.insert_one(doc! { "_id": "s-1", "outbox": [entry] }).await.unwrap();
    scene.place("o-1", [1]).await;
    let data = doc! {
        "failCommands": ["find"], "errorCode": 13, "appName": &scene.name,
        "namespace": stock.namespace().to_string(),
    };
    let admin = scene.test.client.database("admin");
    let fail = |mode: Bson| doc! { "configureFailPoint": "failCommand", "mode": mode, "data": data.clone() };
    admin.run_command(fail("alwaysOn".into())).await.unwrap();

    let recorder = Recorder::default();
    let mut worker = scene.start_by(client, "document_outbox", recorder.clone());
    let refused = DocumentRef::by_id(stock.namespace(), "s-1");
    let command = ProcessDocumentMessages::new(refused, Reason::Sweep);
    assert_eq!(scene.commands.send(vec![command]).await, [Ok(())]);
    assert!(matches!(put_back(&mut worker).await, Left::MongoDb(_)));
    scene.command("o-1").await;
    assert_eq!(worker.finished().await, Processed::Done);
    assert!(worker.running.is_ready());

    admin.run_command(doc! { "configureFailPoint": "failCommand", "mode": "off" }).await.unwrap();
    assert_eq!(worker.finished().await, Processed::Done);
    assert_eq!(recorder.amounts(), [1, 2]);
    worker.running.stop().await;
    scene.strike().await;
}
