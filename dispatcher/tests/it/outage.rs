//! Tests a worker whose broker fails. Each test has its own broker, and runs alone.

use document_outbox::dispatch::Processed;

use crate::{
    private_broker::PrivateBroker,
    scene::{Scene, eager_amqp, until},
    support::{self, Recorder},
};

/// RabbitMQ closes the channel (406) of a consumer that holds a command for too long.
#[tokio::test]
async fn a_closed_channels_command_is_delivered_again() {
    let broker = PrivateBroker::start().await;
    let impatient = "application:set_env(rabbit, consumer_timeout, 500),
                     application:set_env(rabbit, channel_tick_interval, 200).";
    broker.rabbitmqctl(&["eval", impatient]).await;
    let scene = Scene::on(&broker.uri).await;
    scene.place("held", [1]).await;
    let recorder = Recorder::held();
    let mut worker = scene.start_at(recorder.clone(), eager_amqp(&broker.uri));
    scene.command("held").await;
    recorder.wait_tried(1).await;
    let closed = until(&worker.running, |status| status.consumer.rebuilds >= 1).await;
    let said = closed.consumer.last_error.unwrap_or_default();
    assert!(said.contains("timeout") || said.contains("406"), "{said}");
    recorder.let_through(2);
    scene.goes_on(&mut worker, "after").await;
    scene.test.wait_until("held", support::is_empty).await;
    assert_eq!(
        recorder.delivered().len(),
        2,
        "each message arrived once, although the command was delivered again"
    );
    worker.running.stop().await;
    scene.strike().await;
}

/// While the destination is unavailable, no attempt is counted. The commands come from a healthy broker; only
/// the broker of the destination raises an alarm.
#[tokio::test]
async fn a_command_is_kept_during_an_alarm() {
    let scene = Scene::set().await;
    let broker = PrivateBroker::start().await;
    let mut worker = scene.start(scene.rabbitmq(&broker.uri).await);
    scene.goes_on(&mut worker, "before").await;
    broker.raise_alarm().await;
    scene.place("kept", [1]).await;
    scene.command("kept").await;
    let kept = until(&worker.running, |status| !status.delivery_available && status.kept == 1).await;
    assert_eq!(kept.not_ready, ["the destination of messages is unavailable"]);
    broker.lift_alarm().await;
    assert_eq!(worker.finished().await, Processed::Done);
    assert!(scene.is_cleared("kept").await);
    scene.goes_on(&mut worker, "after").await;
    worker.running.stop().await;
    scene.strike().await;
}
