//! A consumer that goes wrong is noticed and made anew, and commands go on being processed.

use super::{network::Network, private_broker::PrivateBroker, status::until, *};

impl Scene {
    fn amqp(&self, broker: &str) -> AmqpSettings {
        let mut amqp = AmqpSettings::new(broker).unwrap();
        amqp.reconnect_min = Duration::from_millis(20);
        amqp.reconnect_max = Duration::from_millis(400);
        amqp
    }

    fn start_at(&self, deliver: impl Deliver, amqp: AmqpSettings) -> Worker {
        Worker::start(self.processor(deliver, quick_retry()), amqp, self.settings())
    }

    /// A new document's message comes through.
    async fn goes_on(&self, worker: &mut Worker, id: &str) {
        self.place(id, [1]).await;
        self.command(id).await;
        let mine = self.document(id);
        let finished = |event: &DispatcherEvent| match event {
            DispatcherEvent::Finished { document, processed } if *document == mine => Some(*processed),
            _ => None,
        };
        assert_eq!(worker.wait(finished).await, Processed::Done);
        assert!(self.is_cleared(id).await);
    }
}

#[tokio::test]
async fn a_dispatcher_whose_connection_fell_silent_connects_anew_and_goes_on() {
    let scene = Scene::set().await;
    let network = Network::to(&scene.broker);
    let mut amqp = scene.amqp(&network.uri());
    amqp.consumer_check = Duration::from_millis(50);
    amqp.connect_timeout = Duration::from_secs(1);
    amqp.heartbeat = LONG * 10; // which would notice too, much later
    let mut worker = scene.start_at(Recorder::default(), amqp);
    scene.goes_on(&mut worker, "before").await;
    network.swallow(true);
    let lost = until(&worker.running, |status| status.consumer.state != "ready").await;
    assert_eq!(lost.not_ready.len(), 1, "{lost:?}");
    // TCP would bring the goodbye of the old connection some day. Swallowed, it leaves the broker a consumer to deliver to.
    network.cut();
    network.swallow(false);
    scene.goes_on(&mut worker, "after").await;
    assert!(worker.running.status().snapshot().consumer.rebuilds >= 1);
    network.cut();
    worker.running.stop().await;
    scene.strike().await;
}

#[tokio::test]
async fn a_dispatcher_whose_queue_is_deleted_makes_it_again_and_goes_on() {
    let scene = Scene::set().await;
    let mut worker = scene.start_at(Recorder::default(), scene.amqp(&scene.broker));
    scene.goes_on(&mut worker, "before").await;
    scene.outside.queue_delete(scene.name.clone().into(), QueueDeleteOptions::default()).await.unwrap();
    let rebuilt = until(&worker.running, |status| status.consumer.rebuilds == 1).await;
    assert!(rebuilt.consumer.last_error.is_some());
    scene.goes_on(&mut worker, "after").await;
    worker.running.stop().await;
    scene.strike().await;
}

/// RabbitMQ closes the channel (406) of a consumer that holds a command for too long.
#[tokio::test]
async fn outage_of_a_channel_that_the_broker_closes_is_noticed_and_the_command_comes_again() {
    let broker = PrivateBroker::start().await;
    let impatient = "application:set_env(rabbit, consumer_timeout, 500),
                     application:set_env(rabbit, channel_tick_interval, 200).";
    broker.rabbitmqctl(&["eval", impatient]).await;
    let scene = Scene::on(&broker.uri).await;
    scene.place("held", [1]).await;
    let recorder = Recorder::held();
    let mut worker = scene.start_at(recorder.clone(), scene.amqp(&broker.uri));
    scene.command("held").await;
    recorder.wait_tried(1).await;
    let closed = until(&worker.running, |status| status.consumer.rebuilds >= 1).await;
    let said = closed.consumer.last_error.unwrap_or_default();
    assert!(said.contains("timeout") || said.contains("406"), "{said}");
    recorder.let_through(2);
    scene.goes_on(&mut worker, "after").await;
    scene.test.wait_until("held", support::is_empty).await;
    assert_eq!(recorder.delivered().len(), 2, "each once, though the command came again");
    worker.running.stop().await;
    scene.strike().await;
}

/// *Unavailable is not an attempt.* The commands come from a broker that is well, so that what is noticed is the other's alarm.
#[tokio::test]
async fn outage_by_an_alarm_is_noticed_and_the_command_kept_until_it_ends() {
    let scene = Scene::set().await;
    let broker = PrivateBroker::start().await;
    let mut worker = scene.start(scene.rabbitmq(&broker.uri).await);
    scene.goes_on(&mut worker, "before").await;
    broker.raise_alarm().await;
    scene.place("kept", [1]).await;
    scene.command("kept").await;
    let kept = until(&worker.running, |status| !status.delivery_available && status.kept == 1).await;
    assert_eq!(kept.not_ready, ["there is no way to deliver messages"]);
    broker.lift_alarm().await;
    assert_eq!(worker.finished().await, Processed::Done);
    assert!(scene.is_cleared("kept").await);
    scene.goes_on(&mut worker, "after").await;
    worker.running.stop().await;
    scene.strike().await;
}

/// A stop ends within its grace, though the broker answers nothing more: not to the end of the subscription either.
#[tokio::test]
async fn a_silent_broker_does_not_hold_a_stop_up() {
    let scene = Scene::set().await;
    let network = Network::to(&scene.broker);
    let mut amqp = scene.amqp(&network.uri());
    amqp.connect_timeout = LONG * 2;
    amqp.heartbeat = LONG * 10;
    let settings = DispatcherSettings { grace: Duration::from_secs(1), ..scene.settings() };
    let worker = Worker::start(scene.processor(Recorder::default(), quick_retry()), amqp, settings);
    assert!(worker.running.ready().await);
    network.swallow(true);
    tokio::time::timeout(LONG, worker.running.stop()).await.expect("it stops");
    network.cut();
    scene.strike().await;
}
