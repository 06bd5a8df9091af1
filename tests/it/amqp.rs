//! Tests publishing and consuming on a real RabbitMQ, including failures.
//!
//! The tests need `eval "$(scripts/services env)"`. Each test uses its own names, and deletes the queues and exchanges
//! with these names.

use std::{
    collections::BTreeMap,
    io::Write,
    net::TcpListener,
    panic::AssertUnwindSafe,
    time::{Duration, Instant},
};

use crate::network::Network;
use crate::private_broker::PrivateBroker;
use crate::restricted::{RestrictedUser, rabbitmqctl};
use document_outbox::amqp::{
    AmqpSettings, Consumer, Delivery, ExchangeKind, ExchangeSpec, Publication, Published, Publisher,
    QueueSpec, State, Topology, TopologyMode,
};
use futures::{FutureExt, future::join_all};
use lapin::{
    ConnectionProperties,
    options::{
        BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeDeleteOptions,
        QueueDeclareOptions, QueueDeleteOptions, QueuePurgeOptions,
    },
    types::{AMQPValue, FieldTable},
};
use uuid::Uuid;

// --- shared by all tests
// ---------------------------------------------------------------------------------------

const LONG: Duration = Duration::from_secs(60);

/// Limits the time of `work`, so that a test fails with a message instead of hanging.
async fn soon<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, work).await.unwrap_or_else(|_| panic!("{what}: not within {LONG:?}"))
}

fn env(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!(r#"{name} is not set: run `scripts/services up`, then `eval "$(scripts/services env)"`"#)
    })
}

fn broker_uri() -> String {
    env("OUTBOX_RABBITMQ_URI")
}

/// An exchange and a queue with names that only one test uses, and a plain connection to inspect them.
struct Scene {
    id: String,
    uri: String,
    outside: lapin::Channel,
    _connection: lapin::Connection,
}

/// Runs a test and cleans up, even if it failed.
async fn scene(play: impl AsyncFnOnce(&Scene)) {
    scene_at(broker_uri(), play).await;
}

/// Runs a test on the broker at this URI and cleans up.
async fn scene_at(uri: String, play: impl AsyncFnOnce(&Scene)) {
    let connection = lapin::Connection::connect(&uri, ConnectionProperties::default()).await.unwrap();
    let outside = connection.create_channel().await.unwrap();
    let scene =
        Scene { id: format!("test-amqp-{}", Uuid::new_v4().simple()), uri, outside, _connection: connection };
    let played = AssertUnwindSafe(play(&scene)).catch_unwind().await;
    scene.delete_queue().await;
    scene.delete_exchange().await;
    if let Err(panic) = played {
        std::panic::resume_unwind(panic);
    }
}

impl Scene {
    fn settings(&self) -> AmqpSettings {
        self.settings_at(&self.uri)
    }

    fn settings_at(&self, uri: &str) -> AmqpSettings {
        let mut settings = AmqpSettings::new(uri).unwrap().named(&self.id);
        settings.reconnect_min = Duration::from_millis(20);
        settings.reconnect_max = Duration::from_millis(400);
        settings
    }

    fn topology(&self) -> Topology {
        let bind = vec![(self.id.clone(), "routed".to_owned())];
        Topology {
            exchanges: vec![ExchangeSpec { name: self.id.clone(), kind: ExchangeKind::Topic }],
            queues: vec![QueueSpec { name: self.id.clone(), quorum: true, bind, ..QueueSpec::default() }],
            mode: TopologyMode::Declare,
        }
    }

    fn verified(&self) -> Topology {
        Topology { mode: TopologyMode::Verify, ..self.topology() }
    }

    async fn publisher(&self) -> Publisher {
        self.publisher_with(self.settings()).await
    }

    async fn publisher_with(&self, settings: AmqpSettings) -> Publisher {
        let publisher = Publisher::start(settings, self.topology());
        assert!(publisher.ready().await);
        publisher
    }

    fn consume(&self, settings: AmqpSettings, prefetch: u16) -> Consumer {
        Consumer::start(settings, self.topology(), self.id.clone(), prefetch, "a-test".to_owned())
    }

    async fn consumer(&self, prefetch: u16) -> Consumer {
        let consumer = self.consume(self.settings(), prefetch);
        assert!(consumer.ready().await);
        consumer
    }

    fn message(&self, id: &str, routing_key: &str) -> Publication {
        Publication {
            exchange: self.id.clone(),
            routing_key: routing_key.to_owned(),
            message_id: id.to_owned(),
            content_type: "text/plain".to_owned(),
            body: id.as_bytes().to_vec(),
            ..Publication::default()
        }
    }

    fn routed(&self, id: &str) -> Publication {
        self.message(id, "routed")
    }

    async fn declare_queue(&self, arguments: FieldTable) {
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        self.outside.queue_declare(self.id.as_str().into(), options, arguments).await.unwrap();
    }

    async fn delete_queue(&self) {
        self.outside.queue_delete(self.id.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    }

    async fn delete_exchange(&self) {
        self.outside
            .exchange_delete(self.id.as_str().into(), ExchangeDeleteOptions::default())
            .await
            .unwrap();
    }

    /// Takes all messages out of the queue, and returns the number of times that each id occurred.
    async fn counts(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        let options = BasicGetOptions { no_ack: true };
        while let Some(message) = self.outside.basic_get(self.id.as_str().into(), options).await.unwrap() {
            let id = message.properties.message_id().clone().unwrap();
            *counts.entry(id.to_string()).or_default() += 1;
        }
        counts
    }

    async fn unbind(&self) {
        let names = (self.id.as_str().into(), self.id.as_str().into());
        self.outside.queue_unbind(names.0, names.1, "routed".into(), FieldTable::default()).await.unwrap();
    }

    async fn purge(&self) -> u32 {
        self.outside.queue_purge(self.id.as_str().into(), QueuePurgeOptions::default()).await.unwrap()
    }

    /// Waits until the broker has processed every acknowledgement.
    async fn until_nothing_is_unacknowledged(&self) {
        let name = self.id.clone();
        let asking = move || loop {
            let queues = rabbitmqctl(&["-q", "list_queues", "name", "messages_unacknowledged"]);
            let line = queues.lines().find(|line| line.split_whitespace().next() == Some(name.as_str()));
            if line.expect("our queue is listed").ends_with("\t0") {
                return;
            }
        };
        let asked = tokio::task::spawn_blocking(asking);
        tokio::time::timeout(LONG, asked).await.expect("everything is acknowledged").unwrap();
    }

    /// Closes the connection of this test that has this role, as an operator would.
    async fn close_connection(&self, role: &str) {
        let name = format!("{}/{role}", self.id);
        let closing = move || {
            let connections = rabbitmqctl(&["-q", "list_connections", "pid", "client_properties"]);
            let line =
                connections.lines().find(|line| line.contains(&name)).expect("our connection is listed");
            let pid = line.split_whitespace().next().unwrap();
            rabbitmqctl(&["-q", "close_connection", pid, "closed by a test"]);
        };
        tokio::task::spawn_blocking(closing).await.unwrap();
    }
}

/// Publishes one message repeatedly until it is confirmed, each time only after the publisher reports that it
/// is ready.
async fn until_confirmed(publisher: &Publisher, publication: &Publication) {
    loop {
        assert!(publisher.ready().await);
        match &publisher.publish(vec![publication.clone()]).await[..] {
            [Published::Confirmed] => return,
            [Published::Unavailable { .. }] => {}
            other => panic!("{other:?}"),
        }
    }
}

async fn until_state(
    mut states: tokio::sync::watch::Receiver<State>,
    wanted: impl Fn(&State) -> bool,
) -> State {
    soon("the state", states.wait_for(|state| wanted(state))).await.unwrap().clone()
}

fn unroutable(published: &Published) -> bool {
    matches!(published, Published::Unroutable { code: 312, .. })
}

fn unavailable(published: &Published, sent: bool) -> bool {
    matches!(published, Published::Unavailable { maybe_sent, .. } if *maybe_sent == sent)
}

async fn next(consumer: &Consumer) -> Delivery {
    soon("a delivery", consumer.next()).await.expect("the consumer was closed")
}

// --- publishing ------------------------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread")]
async fn each_window_singles_out_its_unroutable_message() {
    scene(async |scene| {
        let publisher = scene.publisher().await;
        for round in 0..200_usize {
            let lost = round * 7 % 20;
            let key = |index| if index == lost { "nowhere" } else { "routed" };
            let window =
                (0..20).map(|index| scene.message(&format!("{round}-{index}"), key(index))).collect();
            let published = publisher.publish(window).await;
            for (index, published) in published.iter().enumerate() {
                if index == lost {
                    assert!(unroutable(published), "round {round}, message {index}: {published:?}");
                } else {
                    assert_eq!(
                        *published,
                        Published::Confirmed,
                        "round {round}, message {index} (lost: {lost})"
                    );
                }
            }
        }
        assert_eq!(scene.purge().await, 200 * 19);
    })
    .await;
}

/// The client attaches a returned message to the confirm that completes next. With a classic queue and a full
/// window, one acknowledgement of the broker covers many messages, and most returned messages are attached to
/// the confirm of another message.
#[tokio::test(flavor = "multi_thread")]
async fn returned_messages_are_matched_despite_foreign_confirms() {
    scene(async |scene| {
        let mut topology = scene.topology();
        topology.queues[0].quorum = false;
        let publisher = Publisher::start(scene.settings(), topology);
        assert!(publisher.ready().await);
        for round in 0..20_usize {
            let lost = |index: usize| (index + round).is_multiple_of(7);
            let key = |index| if lost(index) { "nowhere" } else { "routed" };
            let window =
                (0..1000).map(|index| scene.message(&format!("{round}-{index}"), key(index))).collect();
            for (index, published) in publisher.publish(window).await.iter().enumerate() {
                assert_eq!(
                    unroutable(published),
                    lost(index),
                    "round {round}, message {index}: {published:?}"
                );
                assert!(lost(index) || *published == Published::Confirmed, "{published:?}");
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_is_full_and_rejects_gives_nacked() {
    scene(async |scene| {
        let mut full = FieldTable::default();
        full.insert("x-max-length".into(), AMQPValue::LongInt(0));
        full.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
        scene.declare_queue(full).await;
        let publisher = Publisher::start(scene.settings(), Topology::default());
        assert!(publisher.ready().await);
        let to_the_queue =
            Publication { exchange: String::new(), routing_key: scene.id.clone(), ..scene.routed("1") };
        assert_eq!(publisher.publish(vec![to_the_queue]).await, [Published::Nacked]);
        assert!(publisher.is_ready());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_call_publishes_every_message_of_one_id() {
    scene(async |scene| {
        let publisher = scene.publisher().await;
        let published = publisher.publish(vec![scene.routed("same"); 3]).await;
        assert_eq!(published, vec![Published::Confirmed; 3]);
        let mixed = vec![scene.routed("same"), scene.message("same", "nowhere"), scene.routed("same")];
        let published = publisher.publish(mixed).await;
        assert_eq!(published[0], Published::Confirmed);
        assert!(unroutable(&published[1]), "{published:?}");
        assert_eq!(published[2], Published::Confirmed);
        assert_eq!(scene.purge().await, 5);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unpublishable_messages_are_refused_without_disturbing_neighbours() {
    scene(async |scene| {
        let mut settings = scene.settings();
        settings.max_message_bytes = 1000;
        let publisher = scene.publisher_with(settings).await;
        let states = publisher.subscribe();
        let header = |name: &str, bytes| Publication {
            headers: vec![(name.to_owned(), "x".repeat(bytes))],
            ..scene.routed("header")
        };
        let published = publisher
            .publish(vec![
                scene.routed("1"),
                scene.message("2", &"k".repeat(256)),
                Publication { body: vec![0; 1001], ..scene.routed("3") },
                header("CC", 1),
                header("big", 200_000),
                header("fits", 130_000),
                scene.routed("7"),
            ])
            .await;
        let refused: Vec<_> = published.iter().map(|one| matches!(one, Published::Refused { .. })).collect();
        assert_eq!(refused, [false, true, true, true, true, false, false], "{published:?}");
        for index in [0, 5, 6] {
            assert_eq!(published[index], Published::Confirmed, "{index}");
        }
        assert!(!states.has_changed().unwrap(), "the connection was lost: {:?}", *states.borrow());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_named_cc_really_ends_the_channel() {
    scene(async |scene| {
        let channel = scene._connection.create_channel().await.unwrap();
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        let mut headers = FieldTable::default();
        headers.insert("CC".into(), AMQPValue::LongString("somewhere".into()));
        let properties = lapin::BasicProperties::default().with_headers(headers);
        let options = BasicPublishOptions::default();
        let sent = channel.basic_publish("".into(), scene.id.as_str().into(), options, b"", properties).await;
        let error = sent.unwrap().await.unwrap_err();
        assert!(error.to_string().contains("PRECONDITION_FAILED"), "{error}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_exchange_is_redeclared_within_the_call() {
    scene(async |scene| {
        let publisher = scene.publisher().await;
        let states = publisher.subscribe();
        assert_eq!(publisher.publish(vec![scene.routed("1")]).await, [Published::Confirmed]);
        scene.delete_exchange().await;
        let published = publisher.publish(vec![scene.routed("2"), scene.routed("3")]).await;
        assert_eq!(published, vec![Published::Confirmed; 2]);
        assert!(!states.has_changed().unwrap(), "the connection was lost: {:?}", *states.borrow());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exchange_that_remains_missing_causes_no_hot_loop() {
    scene(async |scene| {
        let settings = || {
            let mut settings = scene.settings();
            settings.reconnect_min = Duration::from_millis(20);
            // With this maximum, no connection lasts long enough to make the pauses short again, on any machine.
            settings.reconnect_max = LONG;
            settings
        };
        let publisher =
            Publisher::start(settings(), Topology { mode: TopologyMode::Off, ..scene.topology() });
        let begin = Instant::now();
        for _ in 0..5 {
            assert!(publisher.ready().await);
            let states = publisher.subscribe();
            let published = publisher.publish(vec![scene.routed("1")]).await;
            assert!(unavailable(&published[0], false), "{published:?}");
            assert!(format!("{published:?}").contains("NOT_FOUND"), "{published:?}");
            let state = until_state(states, |state| *state != State::Ready).await;
            assert!(matches!(state, State::Misconfigured { .. }), "{state}");
        }
        assert!(publisher.ready().await);
        // The steps are 20, 40, 80, 160 and 320 ms. Because of the jitter, each pause is at least half of its step.
        assert!(begin.elapsed() >= Duration::from_millis(310), "{:?}", begin.elapsed());
        scene.publisher().await;
        until_confirmed(&publisher, &scene.routed("2")).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_absent_exchange_costs_other_exchanges_nothing() {
    scene(async |scene| {
        let publisher = scene.publisher().await;
        let states = publisher.subscribe();
        let astray = |id: &str| Publication { exchange: format!("{}-absent", scene.id), ..scene.routed(id) };
        for round in 0..5 {
            let ids: Vec<_> = (0..20).map(|index| format!("{round}-{index}")).collect();
            let window = ids.iter().enumerate().map(|(index, id)| match index % 2 {
                0 => scene.routed(id),
                _ => astray(id),
            });
            let published = publisher.publish(window.collect()).await;
            for (index, published) in published.iter().enumerate() {
                match index % 2 {
                    0 => assert_eq!(*published, Published::Confirmed),
                    _ => assert!(unavailable(published, false), "{published:?}"),
                }
            }
        }
        assert!(scene.counts().await.values().all(|count| *count <= 2));
        assert!(!states.has_changed().unwrap(), "the connection was lost: {:?}", *states.borrow());
    })
    .await;
}

/// Creates a user who has permission to publish to the scene's exchange only with routing keys that match `pattern`.
async fn user_of(scene: &Scene, pattern: &str) -> RestrictedUser {
    let user = RestrictedUser::create(&scene.id, &scene.uri).await;
    user.may_write(&scene.id, pattern).await;
    user
}

fn rejected(published: &Published, key: &str) -> bool {
    let said = format!("access to topic '{key}'");
    matches!(published, Published::Rejected { reason } if reason.contains(&said))
}

/// Returns a topology with a queue that takes every routing key of the scene's exchange.
fn everything(scene: &Scene) -> Topology {
    let mut topology = scene.topology();
    topology.queues[0].bind = vec![(scene.id.clone(), "#".to_owned())];
    topology
}

/// P6: if one message is refused, the messages published together with it are repeated at most once.
#[tokio::test(flavor = "multi_thread")]
async fn a_forbidden_routing_key_fails_by_itself() {
    scene(async |scene| {
        let user = user_of(scene, r"^order\\.").await;
        let publisher = Publisher::start(scene.settings_at(user.uri()), everything(scene));
        assert!(publisher.ready().await);
        let states = publisher.subscribe();

        for round in 0..3 {
            let calls = (0..100).map(|index| {
                let key = if index % 2 == 0 { "order.paid" } else { "invoice.sent" };
                let message = scene.message(&format!("{round}-{index}"), key);
                let publisher = publisher.clone();
                tokio::spawn(async move { publisher.publish(vec![message]).await.remove(0) })
            });
            for (index, published) in join_all(calls).await.into_iter().enumerate() {
                let published = published.unwrap();
                match index % 2 {
                    0 => assert_eq!(published, Published::Confirmed, "{index}"),
                    _ => assert!(rejected(&published, "invoice.sent"), "{index}: {published:?}"),
                }
            }
        }
        let counts = scene.counts().await;
        assert_eq!(counts.len(), 150, "{counts:?}");
        assert!(counts.values().all(|count| *count <= 2), "{counts:?}");
        // Only the messages published together with the first forbidden message were repeated. From then on,
        // forbidden messages are published separately.
        assert!(counts.iter().all(|(id, count)| *count == 1 || id.starts_with("0-")), "{counts:?}");
        assert!(!states.has_changed().unwrap(), "the connection was lost: {:?}", *states.borrow());
        publisher.close().await;
    })
    .await;
}

/// Each key is new to the publisher, so each key may make the broker close the channel on which a window is
/// published.
#[tokio::test(flavor = "multi_thread")]
async fn twenty_forbidden_keys_repeat_a_neighbour_once_at_most() {
    scene(async |scene| {
        let user = user_of(scene, r"^order\\.").await;
        let publisher = Publisher::start(scene.settings_at(user.uri()), everything(scene));
        assert!(publisher.ready().await);
        let key = |index: usize| match index % 10 {
            3 => format!("invoice.{index}"),
            _ => "order.paid".to_owned(),
        };
        let window = (0..200).map(|index| scene.message(&index.to_string(), &key(index)));
        for (index, published) in publisher.publish(window.collect()).await.iter().enumerate() {
            match index % 10 {
                3 => assert!(rejected(published, &key(index)), "{index}: {published:?}"),
                _ => assert_eq!(*published, Published::Confirmed, "{index}"),
            }
        }
        let counts = scene.counts().await;
        assert_eq!(counts.len(), 180);
        assert!(counts.values().all(|count| *count <= 2), "{counts:?}");
        publisher.close().await;
    })
    .await;
}

/// RabbitMQ checks properties on arrival, and closes the channel because of an invalid one.
#[tokio::test(flavor = "multi_thread")]
async fn a_property_that_rabbitmq_refuses_fails_its_own_message() {
    scene(async |scene| {
        let publisher = scene.publisher().await;
        let states = publisher.subscribe();
        let odd = Publication { expiration: Some(Duration::from_secs(u64::MAX)), ..scene.routed("odd") };
        for _ in 0..2 {
            let window = vec![scene.routed("before"), odd.clone(), scene.routed("behind")];
            let published = publisher.publish(window).await;
            assert!(
                matches!(&published[1], Published::Rejected { reason } if reason.contains("expiration")),
                "{published:?}"
            );
            assert_eq!([&published[0], &published[2]], [&Published::Confirmed; 2]);
        }
        assert!(scene.counts().await.values().all(|count| *count <= 3));
        assert!(!states.has_changed().unwrap(), "the connection was lost: {:?}", *states.borrow());
    })
    .await;
}

/// Some errors end the whole connection, and don't show which message was the cause.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_closed_over_one_message_fails_that_message() {
    scene(async |scene| {
        let network = Network::to(&broker_uri());
        let publisher = scene.publisher_with(scene.settings_at(&network.uri())).await;
        network.poison(b"poisonous");
        for round in 0..2 {
            assert!(publisher.ready().await);
            let window = (0..20).map(|index| match index {
                7 => scene.routed("poisonous"),
                _ => scene.routed(&format!("{round}-{index}")),
            });
            for (index, published) in publisher.publish(window.collect()).await.iter().enumerate() {
                match index {
                    7 => assert!(
                        matches!(published, Published::Rejected { reason } if reason.contains("FRAME_ERROR")),
                        "{published:?}"
                    ),
                    _ => assert_eq!(*published, Published::Confirmed, "{round}-{index}"),
                }
            }
        }
        let counts = scene.counts().await;
        assert_eq!(counts.len(), 38);
        assert!(
            counts.iter().all(|(id, count)| *count <= if id.starts_with("0-") { 2 } else { 1 }),
            "{counts:?}"
        );
        publisher.close().await;
        network.cut();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_permission_given_later_counts_on_the_same_connection() {
    scene(async |scene| {
        let user = user_of(scene, r"^order\\.").await;
        let publisher = Publisher::start(scene.settings_at(user.uri()), everything(scene));
        assert!(publisher.ready().await);
        let states = publisher.subscribe();
        let invoice = scene.message("invoice", "invoice.sent");
        assert!(rejected(&publisher.publish(vec![invoice.clone()]).await[0], "invoice.sent"));
        user.may_write(&scene.id, "^(order|invoice)").await;
        let mut order = 0;
        while publisher.publish(vec![invoice.clone()]).await != [Published::Confirmed] {
            order += 1;
            let order = scene.message(&order.to_string(), "order.paid");
            assert_eq!(publisher.publish(vec![order]).await, [Published::Confirmed]);
        }
        assert!(!states.has_changed().unwrap());
        publisher.close().await;
    })
    .await;
}

/// If a permission is revoked for the whole exchange, no message counts as failed.
#[tokio::test(flavor = "multi_thread")]
async fn a_forbidden_exchange_is_misconfigured_until_allowed() {
    scene(async |scene| {
        let user = user_of(scene, ".*").await;
        let maker = scene.publisher().await;
        let publisher = Publisher::start(scene.settings_at(user.uri()), scene.verified());
        assert!(publisher.ready().await);
        let states = publisher.subscribe();
        user.may_write_to_exchanges("^$").await;
        let published = publisher.publish(vec![scene.routed("1")]).await;
        assert!(matches!(&published[0], Published::Unavailable { .. }), "{published:?}");
        let state = until_state(states, |state| *state != State::Ready).await;
        assert!(matches!(state, State::Misconfigured { .. }), "{state}");
        user.may_write_to_exchanges(".*").await;
        until_confirmed(&publisher, &scene.routed("2")).await;
        publisher.close().await;
        maker.close().await;
    })
    .await;
}

/// If the caller of a publish gives up, it has released its messages, and another process may have delivered these
/// messages.
#[tokio::test(flavor = "multi_thread")]
async fn an_abandoned_call_publishes_no_messages() {
    scene(async |scene| {
        let network = Network::to(&broker_uri());
        let publisher = scene.publisher_with(scene.settings_at(&network.uri())).await;
        // Each message is published in a separate window, and the confirm of the first message is withheld
        // for now.
        let window =
            ["first", "late", "later"].map(|id| Publication { body: vec![0; 5 << 20], ..scene.routed(id) });
        network.hold_after(0);
        let given_up =
            tokio::time::timeout(Duration::from_millis(500), publisher.publish(window.to_vec())).await;
        assert!(given_up.is_err());
        network.release();
        assert_eq!(publisher.publish(vec![scene.routed("last")]).await, [Published::Confirmed]);
        let counts = scene.counts().await;
        assert!(counts.contains_key("last"));
        assert!(!counts.contains_key("late") && !counts.contains_key("later"), "{counts:?}");
        network.cut();
    })
    .await;
}

/// P3: if the confirm of a message doesn't arrive in time, only this message is repeated.
#[tokio::test(flavor = "multi_thread")]
async fn at_the_deadline_the_answers_that_came_count() {
    const CONFIRM: usize = 21; // the size in bytes of a confirm's frame
    scene(async |scene| {
        let network = Network::to(&broker_uri());
        let publisher = scene.publisher_with(scene.settings_at(&network.uri())).await;
        let large = Publication { body: vec![0; 9 << 20], ..scene.routed("large") };
        network.hold_after(CONFIRM);
        let deadline = tokio::time::Instant::now() + Duration::from_secs(2);
        let published = publisher.publish_until(vec![scene.routed("small"), large], Some(deadline)).await;
        assert_eq!(published[0], Published::Confirmed);
        assert!(unavailable(&published[1], true), "{published:?}");
        network.cut();
    })
    .await;
}

async fn closed_by_an_operator(scene: &Scene, publisher: &Publisher) {
    let states = publisher.subscribe();
    scene.close_connection("publisher").await;
    let state = until_state(states, |state| *state != State::Ready).await;
    let reason = "closed by a test";
    assert!(matches!(&state, State::Disconnected { reason: why } if why.contains(reason)), "{state}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_close_makes_publishing_unavailable_briefly() {
    scene(async |scene| {
        // Without a connection, messages are not published, and the publisher doesn't wait for the next
        // connection, which is never made.
        let mut settings = scene.settings();
        (settings.reconnect_min, settings.reconnect_max) = (LONG * 10, LONG * 10);
        let publisher = scene.publisher_with(settings).await;
        closed_by_an_operator(scene, &publisher).await;
        let published = publisher.publish(vec![scene.routed("1"), scene.routed("2")]).await;
        assert!(published.iter().all(|one| unavailable(one, false)), "{published:?}");
        publisher.close().await;

        let publisher = scene.publisher().await;
        closed_by_an_operator(scene, &publisher).await;
        until_confirmed(&publisher, &scene.routed("3")).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_cut_loses_no_confirmed_message() {
    scene(async |scene| {
        let network = Network::to(&broker_uri());
        let publisher = scene.publisher_with(scene.settings_at(&network.uri())).await;
        let mut confirmed = Vec::new();
        for round in 0..10 {
            assert!(publisher.ready().await);
            let ids: Vec<_> = (0..2000).map(|index| format!("{round}-{index}")).collect();
            let window = ids.iter().map(|id| scene.routed(id)).collect();
            // The network is cut at some byte of the confirms, sometimes in the middle of a confirm. Each
            // confirm is a frame of 21 bytes.
            network.cut_after(10 + 50 * round);
            let published = publisher.publish(window).await;
            let kept = ids.into_iter().zip(&published).filter(|(_, one)| **one == Published::Confirmed);
            confirmed.extend(kept.map(|(id, _)| id));
            assert!(
                published
                    .iter()
                    .all(|one| { matches!(one, Published::Confirmed | Published::Unavailable { .. }) })
            );
        }
        println!("{} of 20000 confirmed over 10 cuts", confirmed.len());
        publisher.close().await;
        let consumer = scene.consumer(0).await;
        let mut missing: std::collections::HashSet<_> = confirmed.into_iter().collect();
        while !missing.is_empty() {
            let delivery = next(&consumer).await;
            missing.remove(delivery.message_id.as_deref().unwrap());
            assert!(delivery.ack().await);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_confirms_are_unknown_and_replace_the_connection() {
    scene(async |scene| {
        let network = Network::to(&broker_uri());
        let mut settings = scene.settings_at(&network.uri());
        // Even a busy broker confirms the first message within this time.
        settings.confirm_timeout = Duration::from_secs(5);
        let publisher = scene.publisher_with(settings).await;
        assert_eq!(publisher.publish(vec![scene.routed("1")]).await, [Published::Confirmed]);
        network.swallow(true);
        let published = publisher.publish(vec![scene.routed("2")]).await;
        assert!(unavailable(&published[0], true), "{published:?}");
        assert!(!publisher.is_ready());
        let published = publisher.publish(vec![scene.routed("3")]).await;
        assert!(unavailable(&published[0], false), "{published:?}");
        network.swallow(false);
        until_confirmed(&publisher, &scene.routed("4")).await;
        network.cut();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_broker_is_given_up_and_retried() {
    scene(async |scene| {
        let network = Network::to(&broker_uri());
        network.swallow(true);
        let mut settings = scene.settings_at(&network.uri());
        settings.connect_timeout = Duration::from_millis(200);
        let publisher = Publisher::start(settings, scene.topology());
        let state = until_state(publisher.subscribe(), |state| *state != State::Connecting).await;
        assert!(state.to_string().contains("no answer from 127.0.0.1"), "{state}");
        network.swallow(false);
        until_confirmed(&publisher, &scene.routed("1")).await;
        network.cut();
    })
    .await;
}

/// The peer may be another program, or a hostile one. Invalid bytes from the peer end only the connection to
/// this peer.
#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_talks_nonsense_is_left_and_retried() {
    let nonsense: [&[u8]; 6] = [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        // The header of another version of the protocol.
        b"AMQP\x01\x01\x00\x0a",
        // A frame that claims to have four gigabytes.
        b"\x01\x00\x00\xff\xff\xff\xff\x00\x0a\x00\x0a",
        // `connection.start` whose table claims to have more bytes than its frame.
        b"\x01\x00\x00\x00\x00\x00\x0c\x00\x0a\x00\x0a\x00\x09\x7f\xff\xff\xff\x01a\xce",
        // A frame of a type that does not exist, and a frame without its end.
        b"\x2a\x00\x00\x00\x00\x00\x01\x00\xce",
        b"\x01\x00\x00\x00\x00\x00\x04\x00\x0a\x00\x0a\x00",
    ];
    for bytes in nonsense {
        let peer = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut settings = AmqpSettings::new(&format!("amqp://{}/%2f", peer.local_addr().unwrap())).unwrap();
        settings.connect_timeout = Duration::from_millis(200);
        let (met, mut meetings) = tokio::sync::mpsc::unbounded_channel();
        std::thread::spawn(move || {
            // The peer holds each connection open until the test ends.
            for mut stream in peer.incoming().map_while(Result::ok) {
                let _ = stream.write_all(bytes);
                if met.send(stream).is_err() {
                    return;
                }
            }
        });

        let publisher = Publisher::start(settings, Topology::default());
        let state = until_state(publisher.subscribe(), |state| *state != State::Connecting).await;
        assert!(matches!(state, State::Disconnected { .. }), "{bytes:?}: {state}");
        let published = publisher.publish(vec![Publication::default()]).await;
        assert!(unavailable(&published[0], false), "{bytes:?}: {published:?}");
        let mut streams = Vec::new();
        for _ in 0..2 {
            streams.push(soon("another try", meetings.recv()).await.unwrap());
        }
        soon("the end", publisher.close()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_broker_publishing_answers_at_once() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let settings = AmqpSettings::new(&format!("amqp://{nobody}/%2f")).unwrap();
    let publisher = Publisher::start(settings, Topology::default());
    for _ in 0..2 {
        let published = publisher.publish(vec![Publication::default(), Publication::default()]).await;
        assert!(published.len() == 2 && published.iter().all(|one| unavailable(one, false)), "{published:?}");
        let state = until_state(publisher.subscribe(), |state| *state != State::Connecting).await;
        assert!(matches!(state, State::Disconnected { .. }), "{state}");
    }
    assert_eq!(publisher.publish(Vec::new()).await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_publishes_only_messages_handed_over_before() {
    scene(async |scene| {
        let publisher = scene.publisher().await;
        let calls = (0..50).map(|call| {
            let window = (0..100).map(|index| scene.routed(&format!("{call}-{index}"))).collect();
            let publisher = publisher.clone();
            async move { publisher.publish(window).await }
        });
        let (published, ()) = tokio::join!(join_all(calls), publisher.close());
        assert!(published.iter().flatten().all(|one| *one == Published::Confirmed));
        assert_eq!(scene.purge().await, 5000);
        let late = publisher.publish(vec![scene.routed("late")]).await;
        assert!(unavailable(&late[0], false), "{late:?}");
        assert!(!publisher.ready().await);
        publisher.close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_the_last_clone_ends_the_supervisor() {
    scene(async |scene| {
        let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut unreachable = scene.settings_at(&format!("amqp://{nobody}"));
        unreachable.reconnect_min = LONG * 10;
        unreachable.reconnect_max = LONG * 10;
        for settings in [scene.settings(), unreachable] {
            let publisher = Publisher::start(settings, scene.topology());
            let states = publisher.subscribe();
            until_state(states.clone(), |state| *state != State::Connecting).await;
            let clone = publisher.clone();
            drop(publisher);
            assert_ne!(*states.borrow(), State::Closed);
            drop(clone);
            until_state(states, |state| *state == State::Closed).await;
        }
    })
    .await;
}

// --- topology and settings -------------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread")]
async fn a_conflicting_queue_is_reported_and_heals_when_deleted() {
    scene(async |scene| {
        scene.declare_queue(FieldTable::default()).await;
        let publisher = Publisher::start(scene.settings(), scene.topology());
        let state = until_state(publisher.subscribe(), |state| *state != State::Connecting).await;
        let told = state.to_string();
        assert!(matches!(state, State::Misconfigured { .. }), "{told}");
        assert!(
            told.contains(&scene.id) && told.contains("delete it") && told.contains("x-queue-type"),
            "{told}"
        );
        scene.delete_queue().await;
        until_confirmed(&publisher, &scene.routed("1")).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn verifying_declares_nothing_and_awaits_missing_parts() {
    scene(async |scene| {
        let publisher = Publisher::start(scene.settings(), scene.verified());
        let state = until_state(publisher.subscribe(), |state| *state != State::Connecting).await;
        assert!(
            matches!(&state, State::Misconfigured { reason } if reason.contains("does not exist")),
            "{state}"
        );
        let consumer =
            Consumer::start(scene.settings(), Topology::default(), scene.id.clone(), 1, "a-test".to_owned());
        let state = until_state(consumer.subscribe(), |state| *state != State::Connecting).await;
        assert!(
            matches!(&state, State::Misconfigured { reason } if reason.contains("does not exist")),
            "{state}"
        );
        let maker = scene.publisher().await;
        assert!(publisher.ready().await && consumer.ready().await);
        assert_eq!(publisher.publish(vec![scene.routed("1")]).await, [Published::Confirmed]);
        assert!(next(&consumer).await.ack().await);
        drop(maker);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn login_and_vhost_errors_hide_the_password() {
    scene(async |scene| {
        let broker = crate::network::host(&broker_uri());
        for (uri, told) in [
            (format!("amqp://guest:s3cret@{broker}/%2f"), "check the user"),
            (format!("{}{}", broker_uri().trim_end_matches("%2f"), scene.id), "virtual host"),
        ] {
            let publisher = Publisher::start(scene.settings_at(&uri), Topology::default());
            let state = until_state(publisher.subscribe(), |state| *state != State::Connecting).await;
            let shown = state.to_string();
            assert!(matches!(state, State::Misconfigured { .. }), "{shown}");
            assert!(shown.contains(told) && !shown.contains("s3cret"), "{shown}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_needs_no_provider_installed_by_the_application() {
    scene(async |scene| {
        let uri = format!("amqps://guest:guest@{}", crate::network::host(&broker_uri())); // the broker does not use TLS on this port
        let publisher = Publisher::start(scene.settings_at(&uri), Topology::default());
        let state = until_state(publisher.subscribe(), |state| *state != State::Connecting).await;
        assert!(
            matches!(&state, State::Misconfigured { reason } if reason.contains("doesn't speak TLS")),
            "{state}"
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unroutable_message_redeclares_a_removed_binding() {
    scene(async |scene| {
        let publisher = scene.publisher().await;
        let states = publisher.subscribe();
        scene.unbind().await;
        let window = vec![scene.routed("1"), scene.message("2", "nowhere"), scene.routed("3")];
        let published = publisher.publish(window).await;
        assert_eq!([&published[0], &published[2]], [&Published::Confirmed; 2], "{published:?}");
        assert!(unroutable(&published[1]), "{published:?}");
        scene.delete_queue().await;
        assert_eq!(publisher.publish(vec![scene.routed("4")]).await, [Published::Confirmed]);
        assert_eq!(scene.counts().await.keys().collect::<Vec<_>>(), ["4"]);
        assert!(!states.has_changed().unwrap(), "{:?}", *states.borrow());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_binding_is_declared_again_by_its_consumer() {
    scene(async |scene| {
        let mut settings = scene.settings();
        settings.consumer_check = Duration::from_millis(50);
        let consumer = scene.consume(settings, 1);
        assert!(consumer.ready().await);
        let states = consumer.subscribe();
        scene.unbind().await;
        let publisher = Publisher::start(scene.settings(), Topology::default());
        assert!(publisher.ready().await);
        while unroutable(&publisher.publish(vec![scene.routed("1")]).await[0]) {}
        assert!(next(&consumer).await.ack().await);
        assert!(!states.has_changed().unwrap(), "{:?}", *states.borrow());
    })
    .await;
}

// --- consuming -------------------------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread")]
async fn a_message_arrives_as_it_was_published() {
    scene(async |scene| {
        let publisher = scene.publisher().await;
        let sent = Publication {
            message_type: Some("order.placed".to_owned()),
            content_type: "application/json".to_owned(),
            headers: vec![("cloudEvents:id".into(), "7".into()), ("traceparent".into(), "täst".into())],
            body: vec![7; 300_000],
            timestamp: Some(1_700_000_000),
            ..scene.routed("1")
        };
        assert_eq!(publisher.publish(vec![sent.clone()]).await, [Published::Confirmed]);
        let consumer = scene.consumer(1).await;
        let got = next(&consumer).await;
        assert_eq!(got.body, sent.body);
        assert_eq!(got.message_id.as_deref(), Some("1"));
        assert_eq!(got.message_type, sent.message_type);
        assert_eq!(got.content_type.as_deref(), Some("application/json"));
        assert_eq!(got.headers, sent.headers);
        assert_eq!((got.exchange.as_str(), got.routing_key.as_str()), (scene.id.as_str(), "routed"));
        assert!(!got.redelivered);
        assert!(got.ack().await);
        consumer.close().await;
        assert_eq!(scene.purge().await, 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_requeued_and_dropped_deliveries_come_again() {
    scene(async |scene| {
        let publisher = scene.publisher().await;
        let consumer = scene.consumer(1).await;
        let publish = async |id: &str| {
            assert_eq!(publisher.publish(vec![scene.routed(id)]).await, [Published::Confirmed]);
        };
        publish("1").await;
        assert!(next(&consumer).await.requeue().await);
        let again = next(&consumer).await;
        assert!(again.redelivered);
        drop(again);
        let again = next(&consumer).await;
        assert!(again.redelivered && again.message_id.as_deref() == Some("1"));
        assert!(again.reject().await);
        publish("2").await;
        let second = next(&consumer).await;
        assert_eq!(second.message_id.as_deref(), Some("2"));
        assert!(second.ack().await);
        consumer.close().await;
        assert!(consumer.next().await.is_none());
        assert_eq!(scene.purge().await, 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_close_redelivers_and_voids_old_deliveries() {
    scene(async |scene| {
        let publisher = scene.publisher().await;
        let consumer = scene.consumer(10).await;
        let window = ["held", "waiting"].map(|id| scene.routed(id)).to_vec();
        assert_eq!(publisher.publish(window).await, vec![Published::Confirmed; 2]);
        let held = next(&consumer).await;
        assert_eq!(held.message_id.as_deref(), Some("held"));
        scene.close_connection("consumer").await;
        // Once the consumer has a new connection, the deliveries that it buffered before are stale and must not be
        // returned.
        let mut again = vec![next(&consumer).await, next(&consumer).await];
        assert!(again.iter().all(|delivery| delivery.redelivered), "{again:?}");
        again.sort_by(|a, b| a.message_id.cmp(&b.message_id));
        let ids: Vec<_> = again.iter().map(|delivery| delivery.message_id.clone().unwrap()).collect();
        assert_eq!(ids, ["held", "waiting"]);
        assert!(!held.ack().await, "an acknowledgement got through on a connection that is gone");
        assert!(consumer.is_ready());
        for delivery in again {
            assert!(delivery.ack().await);
        }
        consumer.close().await;
        assert_eq!(scene.purge().await, 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_survives_that_its_queue_is_deleted() {
    scene(async |scene| {
        let consumer = scene.consumer(1).await;
        let publisher = scene.publisher().await;
        let states = consumer.subscribe();
        scene.delete_queue().await;
        until_state(states.clone(), |state| matches!(state, State::Disconnected { .. })).await;
        until_state(states, |state| *state == State::Ready).await;
        until_confirmed(&publisher, &scene.routed("1")).await;
        assert!(next(&consumer).await.ack().await);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silently_dead_consumer_is_replaced() {
    scene(async |scene| {
        let publisher = scene.publisher().await;
        let network = Network::to(&broker_uri());
        let mut settings = scene.settings_at(&network.uri());
        settings.consumer_check = Duration::from_millis(50);
        settings.connect_timeout = Duration::from_millis(500);
        settings.heartbeat = LONG * 10; // the heartbeat would also notice the failure, but much later
        let consumer = scene.consume(settings, 1);
        assert!(consumer.ready().await);
        let states = consumer.subscribe();
        network.swallow(true);
        until_state(states, |state| *state != State::Ready).await;
        // Normally the broker would notice the end of the old connection. Here the network is cut, so the broker does
        // not learn that the connection has ended. So the broker still delivers to the old consumer.
        network.cut();
        network.swallow(false);
        assert_eq!(publisher.publish(vec![scene.routed("1")]).await, [Published::Confirmed]);
        assert!(next(&consumer).await.ack().await);
        network.cut();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_watchdog_spares_idle_and_busy_consumers() {
    scene(async |scene| {
        let publisher = scene.publisher().await;
        let mut settings = scene.settings();
        // The interval is long enough for the next delivery to arrive even on a busy machine.
        settings.consumer_check = Duration::from_secs(1);
        let looks = settings.consumer_check * 3;
        let consumer = scene.consume(settings, 1);
        assert!(consumer.ready().await);
        let states = consumer.subscribe();
        tokio::time::sleep(looks).await;
        let window = (0..200).map(|index| scene.routed(&index.to_string())).collect();
        assert!(publisher.publish(window).await.iter().all(|one| *one == Published::Confirmed));
        for _ in 0..200 {
            let delivery = next(&consumer).await;
            if delivery.message_id.as_deref() == Some("0") {
                tokio::time::sleep(looks).await; // meanwhile one delivery is held and others wait
            }
            assert!(delivery.ack().await);
        }
        assert!(!states.has_changed().unwrap(), "{:?}", *states.borrow());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_requeues_the_rest_and_allows_late_acknowledgements() {
    const MANY: usize = 3000; // enough for every buffer to contain messages when the consumer stops
    scene(async |scene| {
        let publisher = scene.publisher().await;
        let window = (0..MANY).map(|index| scene.routed(&index.to_string())).collect();
        let published = publisher.publish(window).await;
        assert!(published.iter().all(|one| *one == Published::Confirmed));
        let consumer = scene.consumer(0).await;
        let held = next(&consumer).await;
        consumer.stop_taking().await;
        assert!(consumer.next().await.is_none());
        let other = scene.consumer(100).await;
        let mut rest = std::collections::HashSet::new();
        while rest.len() < MANY - 1 {
            let delivery = next(&other).await;
            rest.insert(delivery.message_id.clone());
            assert!(delivery.ack().await);
        }
        assert!(!rest.contains(&held.message_id));
        assert!(held.ack().await);
        // The test waits here, because the last acknowledgements may be lost if the connection is closed at
        // once.
        scene.until_nothing_is_unacknowledged().await;
        consumer.close().await;
        other.close().await;
        assert_eq!(scene.purge().await, 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_does_not_wait_for_an_unpolled_next() {
    scene(async |scene| {
        let consumer = scene.consumer(1).await;
        let mut unpolled = Box::pin(consumer.next()); // like a future that a `select!` leaves behind
        assert!((&mut unpolled).now_or_never().is_none());
        consumer.stop_taking().await;
        assert!(unpolled.await.is_none());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_a_consumer_closes_its_connection() {
    scene(async |scene| {
        let consumer = scene.consumer(1).await;
        let states = consumer.subscribe();
        drop(consumer);
        until_state(states, |state| *state == State::Closed).await;
    })
    .await;
}

// --- how fast --------------------------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread")]
async fn fifty_thousand_messages_of_256_callers_are_each_confirmed() {
    scene(async |scene| {
        let publisher = scene.publisher().await;
        let begin = Instant::now();
        let callers = (0..256).map(|caller| {
            let publisher = publisher.clone();
            let messages: Vec<_> = (caller..50_000)
                .step_by(256)
                .map(|index| Publication { body: vec![b'x'; 512], ..scene.routed(&index.to_string()) })
                .collect();
            tokio::spawn(async move {
                let mut confirmed = 0;
                for message in messages {
                    confirmed +=
                        usize::from(publisher.publish(vec![message]).await == [Published::Confirmed]);
                }
                confirmed
            })
        });
        let confirmed: usize = join_all(callers).await.into_iter().map(Result::unwrap).sum();
        let elapsed = begin.elapsed();
        println!(
            "50000 messages of 512 bytes from 256 callers in {elapsed:?}: {:.0}/s",
            50e3 / elapsed.as_secs_f64()
        );
        assert_eq!(confirmed, 50_000);
        assert_eq!(scene.purge().await, 50_000);
    })
    .await;
}

// --- on a separate broker ----------------------------------------------------------------------------------------

// The following tests change the whole broker.

/// Checks that messages over a limit are refused until the limit is raised and the connection is replaced.
async fn raise_the_limit(least: usize, long: usize, raised: usize) {
    let broker = PrivateBroker::start().await;
    scene_at(broker.uri.clone(), async |scene| {
        let limit = |bytes: usize| format!("application:set_env(rabbit, max_message_size, {bytes}).");
        broker.rabbitmqctl(&["eval", &limit(least)]).await;
        let network = Network::to(&broker.uri);
        let publisher = scene.publisher_with(scene.settings_at(&network.uri())).await;
        let states = publisher.subscribe();
        let of = |bytes, id: &str| Publication { body: vec![0; bytes], ..scene.routed(id) };
        let refused = |published: &Published| {
            matches!(published, Published::Refused { reason } if reason.contains(&least.to_string()))
        };

        for round in 0..2 {
            let window =
                [of(least, "fits"), of(least + 1, "long"), of(10, "small"), of(long, "longer")];
            let published = publisher.publish(window.to_vec()).await;
            assert_eq!(published[0], Published::Confirmed, "{round}");
            assert!(refused(&published[1]), "{round}: {published:?}");
            assert_eq!(published[2], Published::Confirmed, "{round}");
            assert!(refused(&published[3]), "{round}: {published:?}");
        }
        assert!(!states.has_changed().unwrap(), "the connection was lost: {:?}", *states.borrow());
        assert!(scene.counts().await.values().all(|count| *count <= 3));

        broker.rabbitmqctl(&["eval", &limit(raised)]).await;
        network.cut();
        until_state(states, |state| *state != State::Ready).await;
        until_confirmed(&publisher, &of(long, "longer")).await;
        network.cut();
    })
    .await;
}

// --- at large sizes --------------------------------------------------------------------------------------------------

/// A hundred callers publish orders as fast as they can, and one message with a new forbidden routing key is
/// published every 50 ms.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "stress: run by scripts/stress"]
async fn stress_new_forbidden_keys_cost_a_busy_publisher_little() {
    scene(async |scene| {
        let user = user_of(scene, r"^order\\.").await;
        let publisher = Publisher::start(scene.settings_at(user.uri()), everything(scene));
        assert!(publisher.ready().await);
        let end = Instant::now() + Duration::from_secs(5);
        let callers = (0..100).map(|caller| {
            let (publisher, id) = (publisher.clone(), scene.id.clone());
            tokio::spawn(async move {
                let mut published = 0;
                while Instant::now() < end {
                    let message = Publication {
                        exchange: id.clone(),
                        routing_key: "order.paid".to_owned(),
                        message_id: format!("{caller}-{published}"),
                        ..Publication::default()
                    };
                    let confirmed = tokio::time::timeout(LONG, publisher.publish(vec![message])).await;
                    assert_eq!(confirmed.expect("no order is stuck"), [Published::Confirmed]);
                    published += 1;
                }
                published
            })
        });
        let callers: Vec<_> = callers.collect();
        let mut every = tokio::time::interval(Duration::from_millis(50));
        let mut forbidden = 0;
        while Instant::now() < end {
            every.tick().await;
            let key = format!("invoice.{forbidden}");
            forbidden += 1;
            assert!(rejected(&publisher.publish(vec![scene.message(&key, &key)]).await[0], &key));
        }
        let orders: usize = join_all(callers).await.into_iter().map(Result::unwrap).sum();
        assert_eq!(
            publisher.publish(vec![scene.message("last", "order.paid")]).await,
            [Published::Confirmed]
        );
        let consumer = scene.consumer(0).await;
        let mut counts = BTreeMap::<String, usize>::new();
        while !counts.contains_key("last") {
            let delivery = next(&consumer).await;
            *counts.entry(delivery.message_id.clone().unwrap()).or_default() += 1;
            assert!(delivery.ack().await);
        }
        counts.remove("last");
        let repeated = counts.values().filter(|count| **count == 2).count();
        println!("{orders} orders among {forbidden} forbidden keys: {repeated} came twice");
        assert_eq!(counts.len(), orders);
        assert!(counts.values().all(|count| *count <= 2));
        publisher.close().await;
    })
    .await;
}

/// The caller of each message gives up before the confirms of the earlier messages arrive, so the message
/// must stay unpublished.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "stress: run by scripts/stress"]
async fn stress_messages_given_up_behind_late_confirms_stay_unpublished() {
    const WINDOW: usize = 8 << 20;
    const BODY: usize = 200_000;
    scene(async |scene| {
        let network = Network::to(&broker_uri());
        let publisher = scene.publisher_with(scene.settings_at(&network.uri())).await;
        for round in 0..5 {
            network.hold_after(0);
            let calls = (0..200).map(|nth| {
                let message = Publication { body: vec![0; BODY], ..scene.routed(&format!("{round}-{nth}")) };
                let deadline = tokio::time::Instant::now() + Duration::from_secs(3);
                let publisher = publisher.clone();
                tokio::spawn(async move { publisher.publish_until(vec![message], Some(deadline)).await })
            });
            for published in join_all(calls).await {
                assert!(unavailable(&published.unwrap()[0], true));
            }
            network.release();
            until_confirmed(&publisher, &scene.routed(&format!("last-{round}"))).await;
            let counts = scene.counts().await;
            assert!(counts.len() <= 1 + WINDOW / BODY, "{}", counts.len());
        }
        network.cut();
    })
    .await;
}

// --- closing ---------------------------------------------------------------------------------------------------------

// In the following tests, the publisher's time limits are so long that closing must not wait for them.

fn patient(mut settings: AmqpSettings) -> AmqpSettings {
    settings.connect_timeout = LONG * 10;
    settings.confirm_timeout = LONG * 10;
    settings.heartbeat = LONG * 10;
    settings
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_ends_while_the_broker_is_silent() {
    scene(async |scene| {
        let network = Network::to(&broker_uri());
        let publisher = scene.publisher_with(patient(scene.settings_at(&network.uri()))).await;
        network.swallow(true);
        let window = (0..3000).map(|index| scene.routed(&index.to_string())).collect();
        let (published, ()) = tokio::join!(publisher.publish(window), publisher.close());
        assert!(published.iter().all(|one| matches!(one, Published::Unavailable { .. })));
        network.cut();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_ends_while_a_connection_is_being_made() {
    scene(async |scene| {
        let network = Network::to(&broker_uri());
        network.swallow(true);
        let settings = patient(scene.settings_at(&network.uri()));
        let publisher = Publisher::start(settings.clone(), scene.topology());
        publisher.close().await;
        let consumer = scene.consume(settings, 1);
        consumer.stop_taking().await;
        consumer.close().await;
        assert!(consumer.next().await.is_none());
        network.cut();
    })
    .await;
}

/// Closing was requested before the connection was lost.
#[tokio::test(flavor = "multi_thread")]
async fn closing_ends_when_the_connection_is_lost_meanwhile() {
    scene(async |scene| {
        let network = Network::to(&broker_uri());
        let publisher = scene.publisher_with(patient(scene.settings_at(&network.uri()))).await;
        network.hold_after(0);
        let window = vec![scene.routed("1")];
        let (published, (), ()) =
            tokio::join!(publisher.publish(window), publisher.close(), async { network.cut() });
        assert!(matches!(published[0], Published::Unavailable { .. }), "{published:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_stops_while_the_broker_is_silent() {
    scene(async |scene| {
        let publisher = scene.publisher().await;
        let network = Network::to(&broker_uri());
        let mut settings = patient(scene.settings_at(&network.uri()));
        settings.consumer_check = Duration::from_millis(10);
        let consumer = scene.consume(settings, 10);
        assert!(consumer.ready().await);
        let window = (0..5).map(|index| scene.routed(&index.to_string())).collect();
        assert_eq!(publisher.publish(window).await, vec![Published::Confirmed; 5]);
        let held = next(&consumer).await;
        network.swallow(true);
        consumer.stop_taking().await;
        drop(held);
        consumer.close().await;
        network.cut();
    })
    .await;
}

/// These tests stop, block or slow down a server.
mod outage {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn an_alarm_blocks_a_publisher_until_it_ends() {
        let broker = PrivateBroker::start().await;
        scene_at(broker.uri.clone(), async |scene| {
            let mut settings = scene.settings();
            settings.confirm_timeout = Duration::from_millis(500);
            let publisher = scene.publisher_with(settings).await;
            let states = publisher.subscribe();
            broker.raise_alarm().await;
            let published = publisher.publish(vec![scene.routed("1")]).await;
            assert!(unavailable(&published[0], true), "{published:?}");
            assert!(matches!(&*states.borrow(), State::Blocked { .. }), "{:?}", *states.borrow());
            let published = publisher.publish(vec![scene.routed("2")]).await;
            assert!(unavailable(&published[0], false), "answered without trying: {published:?}");
            broker.lift_alarm().await;
            until_confirmed(&publisher, &scene.routed("3")).await;
            // A consumer is never blocked, because it does not publish.
        })
        .await;
    }

    /// The publisher applies a limit only to the connection on which it learned the limit, and the broker
    /// decides about each message above the limit.
    #[tokio::test(flavor = "multi_thread")]
    async fn large_messages_pass_once_the_limit_is_raised() {
        raise_the_limit(1024, 9999, 1 << 20).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    #[ignore = "stress: run by scripts/stress"]
    async fn stress_messages_of_100_kilobytes_pass_with_the_limit() {
        raise_the_limit(64_000, 100_000, 16 << 20).await;
    }

    /// Once the broker's limit was raised, the broker accepts the message without a new connection.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_raised_limit_counts_on_a_living_connection() {
        let broker = PrivateBroker::start().await;
        scene_at(broker.uri.clone(), async |scene| {
            let limit = |bytes: usize| format!("application:set_env(rabbit, max_message_size, {bytes}).");
            broker.rabbitmqctl(&["eval", &limit(1024)]).await;
            let publisher = scene.publisher().await;
            let states = publisher.subscribe();
            let long = Publication { body: vec![0; 9999], ..scene.routed("long") };
            assert!(matches!(publisher.publish(vec![long.clone()]).await[0], Published::Refused { .. }));
            broker.rabbitmqctl(&["eval", &limit(1 << 20)]).await;
            // The broker's previous answer is reused for a second.
            while publisher.publish(vec![long.clone()]).await != [Published::Confirmed] {
                assert_eq!(publisher.publish(vec![scene.routed("small")]).await, [Published::Confirmed]);
            }
            assert!(!states.has_changed().unwrap());
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn publisher_and_consumer_close_during_an_alarm() {
        let broker = PrivateBroker::start().await;
        scene_at(broker.uri.clone(), async |scene| {
            let publisher = scene.publisher_with(patient(scene.settings())).await;
            let consumer = scene.consume(patient(scene.settings()), 1);
            assert!(consumer.ready().await);
            let mut states = publisher.subscribe();
            broker.raise_alarm().await;
            let publishing = tokio::spawn({
                let (publisher, message) = (publisher.clone(), scene.routed("1"));
                async move { publisher.publish(vec![message]).await }
            });
            states.wait_for(|state| matches!(state, State::Blocked { .. })).await.unwrap();
            publisher.close().await;
            assert!(unavailable(&publishing.await.unwrap()[0], true));
            consumer.stop_taking().await;
            consumer.close().await;
            broker.lift_alarm().await;
        })
        .await;
    }
}
