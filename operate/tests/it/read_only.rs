//! Tests that the operations only read.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use mongodb::{
    Client, Namespace,
    bson::{Document, doc},
    event::{EventHandler, command::CommandEvent},
    options::{ClientOptions, ServerAddress},
};
use outbox_operate::{
    OperateError, Operator, OperatorSettings, Query, ReadFrom,
    advise::Times,
    list::{ListRequest, Scan},
    redact::Redaction,
};

use crate::scene::{Scene, id_of};

async fn hash(scene: &Scene) -> Document {
    let mut hash = scene.database.run_command(doc! { "dbHash": 1 }).await.unwrap();
    hash.get_document_mut("collections").unwrap().clone()
}

#[tokio::test]
async fn no_operation_writes_anything() {
    let scene = Scene::new().await;
    scene.with_every_state().await;
    let stored = scene.dead("permanent", "no");
    let id = id_of(&stored);
    scene.insert("shown", vec![stored]).await;
    let before = hash(&scene).await;

    let operator = &scene.operator;
    let query = Query::default();
    operator.status().await.unwrap();
    for scan in [Scan::Never, Scan::Allowed] {
        let request = ListRequest { query: query.clone(), limit: 3, after: None, scan };
        operator.list(request).await.unwrap();
    }
    let found = operator.find_message(id, &query, Scan::Never).await.unwrap().remove(0);
    operator.show(&found, &Redaction::default()).await.unwrap();
    operator.explain(&found).await.unwrap();
    operator.documents(scene.namespace(), "mixed").await.unwrap();
    operator.groups(&query).await.unwrap();
    operator.doctor().await.unwrap();
    operator.advise(Duration::from_secs(60), Times::default()).await.unwrap();

    assert_eq!(hash(&scene).await, before);
    let databases = scene.client.list_database_names().await.unwrap();
    assert!(!databases.contains(&scene.state().name().to_owned()), "no state database was created");
    scene.drop().await;
}

/// The ports of the members that answer `find`.
async fn ports_that_answer(read_from: ReadFrom) -> (BTreeSet<u16>, u16) {
    let uri =
        std::env::var("OUTBOX_TEST_MONGODB_RS3_URI").expect(r#"run `scripts/services up --replicas 3`"#);
    let ports = Arc::new(Mutex::new(BTreeSet::new()));
    let seen = ports.clone();
    let mut options = ClientOptions::parse(uri).await.unwrap();
    options.command_event_handler = Some(EventHandler::callback(move |event: CommandEvent| {
        if let CommandEvent::Started(started) = event
            && started.command_name == "find"
            && let ServerAddress::Tcp { port: Some(port), .. } = started.connection.address
        {
            seen.lock().unwrap().insert(port);
        }
    }));
    let client = Client::with_options(options).unwrap();
    let settings = OperatorSettings::new(vec!["no_such_database.*".parse().unwrap()])
        .with(|settings| settings.read_from = read_from);
    let operator = Operator::new(client.clone(), settings);
    operator.documents(Namespace::new("no_such_database", "orders"), "o-1").await.unwrap();

    let hello = client.database("admin").run_command(doc! { "hello": 1 }).await.unwrap();
    let primary = hello.get_str("primary").unwrap().rsplit(':').next().unwrap().parse().unwrap();
    let ports = ports.lock().unwrap().clone();
    (ports, primary)
}

#[tokio::test]
async fn a_secondary_answers_when_asked_to() {
    let (answered, primary) = ports_that_answer(ReadFrom::Primary).await;
    assert_eq!(answered, [primary].into());
    let (answered, primary) = ports_that_answer(ReadFrom::Secondary).await;
    assert!(!answered.is_empty() && !answered.contains(&primary), "{answered:?}, {primary}");
}

#[tokio::test]
async fn a_collection_that_is_not_watched_is_refused() {
    let scene = Scene::new().await;
    let other = mongodb::Namespace::new("elsewhere", "orders");
    let refused = scene.operator.documents(other, "o-1").await.unwrap_err();
    assert!(matches!(refused, OperateError::Argument(_)) && refused.to_string().contains("not watched"));
    let query: Query = "collection:elsewhere.*".parse().unwrap();
    let request = ListRequest { query, limit: 3, after: None, scan: Scan::Never };
    assert!(matches!(scene.operator.list(request).await.unwrap_err(), OperateError::Argument(_)));
    scene.drop().await;
}
