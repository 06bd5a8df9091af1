//! Tests the overview.

use document_outbox::amqp::AmqpSettings;
use lapin::{
    Connection, ConnectionProperties,
    options::QueueDeclareOptions,
    types::{AMQPValue, FieldTable},
};
use mongodb::bson::{DateTime, Timestamp, doc};
use outbox_operate::{
    MessageState,
    status::{CommandQueueState, Status},
    streams::OplogWindow,
};

use crate::scene::{Scene, entry};

fn count(status: &Status, message_type: Option<&str>, state: MessageState) -> i64 {
    let of = |count: &&outbox_operate::status::Count| {
        count.message_type.as_deref() == message_type && count.state == state
    };
    status.counts.iter().filter(of).map(|count| count.messages).sum()
}

#[tokio::test]
async fn messages_are_counted_by_type_and_state() {
    let scene = Scene::new().await;
    scene.with_every_state().await;
    let status = scene.operator.status().await.unwrap();
    for (message_type, state, messages) in [
        (Some("order.placed"), MessageState::Due, 2),
        (Some("order.paid"), MessageState::Due, 1),
        (Some("order.placed"), MessageState::Claimed, 1),
        (Some("order.placed"), MessageState::Retrying, 1),
        (Some("order.reminded"), MessageState::Scheduled, 1),
        (Some("order.paid"), MessageState::Dead, 1),
        (Some("order.paid"), MessageState::Unreadable, 1),
        (None, MessageState::Unreadable, 2),
    ] {
        assert_eq!(count(&status, message_type, state), messages, "{message_type:?} {state}");
    }
    assert_eq!(status.oldest_due(), Some(scene.at(-30)));
    let fullest = &status.fullest[0];
    assert_eq!((fullest.document.as_str(), fullest.elements), ("mixed", 3));
    assert!(status.left_out.is_empty());
    assert!(matches!(status.oplog, OplogWindow::Covers { .. }), "{:?}", status.oplog);
    assert_eq!(status.commands, None);
    scene.drop().await;
}

#[tokio::test]
async fn past_dates_are_due_whatever_the_fields() {
    let scene = Scene::new().await;
    let past = |extra: mongodb::bson::Document| {
        let mut fields = doc! { "created_at": scene.at(-9), "available_at": scene.at(-1) };
        fields.extend(extra);
        entry("order.placed", fields)
    };
    let expired = past(doc! { "claimed_by": "worker/1" });
    scene.insert("o-1", vec![past(doc! {}), expired, past(doc! { "attempts": 3 })]).await;
    let status = scene.operator.status().await.unwrap();
    assert_eq!(count(&status, Some("order.placed"), MessageState::Due), 3, "{:?}", status.counts);
    scene.drop().await;
}

#[tokio::test]
async fn a_collection_without_index_is_not_counted() {
    let scene = Scene::without_indexes().await;
    scene.with_every_state().await;
    let status = scene.operator.status().await.unwrap();
    assert!(status.counts.is_empty());
    assert_eq!(status.left_out[0].collection, scene.namespace());
    scene.drop().await;
}

#[tokio::test]
async fn streams_have_positions_owners_and_standbys() {
    let scene = Scene::new().await;
    let seconds = u32::try_from(scene.now.timestamp_millis() / 1_000).unwrap() - 20;
    let position = doc! { "_id": "default", "cluster_time": Timestamp { time: seconds, increment: 1 }, "updated_at": scene.now };
    scene.state().collection("positions").insert_one(position).await.unwrap();
    let lease = doc! {
        "_id": { "stream": "default" }, "kind": "stream", "owner": "host/1", "until": scene.at(30), "epoch": 3_i64,
        "able": { "owner": "host/2", "until": scene.at(30) },
    };
    let ended = doc! {
        "_id": { "stream": "default@2s" }, "kind": "stream", "owner": "host/3", "until": scene.at(-1),
        "able": { "owner": "host/4", "until": scene.at(-1) },
    };
    scene.state().collection("leases").insert_many([lease, ended]).await.unwrap();

    let streams = scene.operator.streams().await.unwrap();
    assert_eq!(streams.len(), 2);
    let first = &streams[0];
    assert_eq!((first.stream.as_str(), first.owner.as_deref()), ("default", Some("host/1")));
    assert_eq!(first.position, Some(DateTime::from_millis(i64::from(seconds) * 1_000)));
    assert_eq!(first.standby.as_deref(), Some("host/2"));
    assert!(first.is_owned(scene.now));
    assert!(!streams[1].is_owned(scene.now), "its lease has ended");
    assert_eq!(streams[1].standby, None, "it no longer renews its entry");
    scene.drop().await;
}

#[tokio::test]
async fn waiting_commands_are_counted_without_taking_them() {
    let uri = std::env::var("OUTBOX_RABBITMQ_URI").expect(r#"run `eval "$(scripts/services env)"`"#);
    let connection = Connection::connect(&uri, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let queue = format!("t-{}", uuid::Uuid::now_v7().simple());
    let options =
        QueueDeclareOptions { exclusive: false, auto_delete: false, durable: true, ..Default::default() };
    let scene = Scene::new().await.with(|settings| {
        settings.rabbitmq = Some(AmqpSettings::new(&uri).unwrap());
        settings.commands_queue = queue.clone();
    });

    let state = scene.operator.command_queue().await.unwrap().state;
    assert_eq!(state, CommandQueueState::Missing);
    // After a panic, the broker removes the queue by itself.
    let mut arguments = FieldTable::default();
    arguments.insert("x-expires".into(), AMQPValue::LongInt(600_000));
    channel.queue_declare(queue.as_str().into(), options, arguments).await.unwrap();
    channel.confirm_select(Default::default()).await.unwrap();
    for _ in 0..3 {
        let sent = channel.basic_publish(
            "".into(),
            queue.as_str().into(),
            Default::default(),
            b"{}",
            Default::default(),
        );
        sent.await.unwrap().await.unwrap();
    }
    let state = scene.operator.command_queue().await.unwrap().state;
    channel.queue_delete(queue.as_str().into(), Default::default()).await.unwrap();
    assert_eq!(state, CommandQueueState::Exists { ready: 3, consumers: 0 });
    scene.drop().await;
}
