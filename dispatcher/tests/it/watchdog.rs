//! A failing consumer is detected and rebuilt, and commands continue to be processed.

use std::time::Duration;

use lapin::options::QueueDeleteOptions;

use crate::{
    network::Network,
    scene::{Scene, Worker, eager_amqp, quick_retry, until},
    support::{LONG, Recorder},
};

#[tokio::test]
async fn a_silent_connection_is_replaced() {
    let scene = Scene::set().await;
    let network = Network::to(&scene.broker);
    let mut amqp = eager_amqp(&network.uri());
    amqp.consumer_check = Duration::from_millis(50);
    amqp.connect_timeout = Duration::from_secs(1);
    amqp.heartbeat = LONG * 10; // the heartbeat would also notice the failure, but much later
    let mut worker = scene.start_at(Recorder::default(), amqp);
    scene.goes_on(&mut worker, "before").await;
    network.swallow(true);
    let lost = until(&worker.running, |status| status.consumer.state != "ready").await;
    assert_eq!(lost.not_ready.len(), 1, "{lost:?}");
    // While the network is cut, the broker can't learn that the old connection was closed, and still delivers
    // to the old consumer.
    network.cut();
    network.swallow(false);
    scene.goes_on(&mut worker, "after").await;
    assert!(worker.running.status().snapshot().consumer.rebuilds >= 1);
    network.cut();
    worker.running.stop().await;
    scene.strike().await;
}

#[tokio::test]
async fn a_deleted_queue_is_declared_again() {
    let scene = Scene::set().await;
    let mut worker = scene.start_at(Recorder::default(), eager_amqp(&scene.broker));
    scene.goes_on(&mut worker, "before").await;
    scene.outside.queue_delete(scene.name.clone().into(), QueueDeleteOptions::default()).await.unwrap();
    let rebuilt = until(&worker.running, |status| status.consumer.rebuilds == 1).await;
    assert!(rebuilt.consumer.last_error.is_some());
    scene.goes_on(&mut worker, "after").await;
    worker.running.stop().await;
    scene.strike().await;
}

/// A stop ends within the grace period even if the broker no longer answers any request, including
/// the one that cancels the subscription.
#[tokio::test]
async fn a_silent_broker_does_not_hold_a_stop_up() {
    let scene = Scene::set().await;
    let network = Network::to(&scene.broker);
    let mut amqp = eager_amqp(&network.uri());
    amqp.connect_timeout = LONG * 2;
    amqp.heartbeat = LONG * 10;
    let mut settings = scene.settings();
    settings.grace = Duration::from_secs(1);
    let worker = Worker::start(scene.processor(Recorder::default(), quick_retry()), amqp, settings);
    assert!(worker.running.ready().await);
    network.swallow(true);
    tokio::time::timeout(LONG, worker.running.stop()).await.expect("it stops");
    network.cut();
    scene.strike().await;
}
