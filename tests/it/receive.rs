//! Tests that receive messages from a real RabbitMQ into functions and aggregates on a real MongoDB.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use document_outbox::{
    amqp::TopologyMode,
    deliver::HandlerError,
    receive::{
        DeadCause, DelayedOrder, InvalidReceiver, Receiver, ReceiverEvent, ReceiverSettings, Subscriptions,
        UnknownTypes,
    },
};
use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable},
};
use mongodb::bson::doc;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};
use uuid::Uuid;

use crate::{
    flow::soon,
    receiving::{Scene, Stock, StockRequested, Working, cloud_event, id_of},
};

fn is_applied(event: &ReceiverEvent) -> bool {
    matches!(event, ReceiverEvent::Applied(_))
}

/// The quantities that a function has handled, in order.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<i64>>>);

impl Seen {
    fn note(&self, quantity: i64) {
        self.0.lock().push(quantity);
    }

    fn all(&self) -> Vec<i64> {
        self.0.lock().clone()
    }
}

#[tokio::test]
async fn an_aggregate_is_made_then_loaded_and_applies_once() {
    let scene = Scene::begin().await;
    let mut receiver = scene.start(scene.stocks_receiving(), scene.settings()).await;
    let first = scene.request("a", 3).await;
    scene.request("a", 4).await;
    receiver.applied(2).await;
    scene.request_as(first, "a", 3).await;
    let repeated = receiver.wait("the repeat", |event| matches!(event, ReceiverEvent::Repeated(_))).await;
    assert_eq!(id_of(&repeated), Some(first));

    let stock = scene.stock("a").await.unwrap();
    assert_eq!((stock.available, stock.taken, stock.inbox.len()), (-7, vec![3, 4], 2));
    receiver.stop().await;
    assert_eq!(scene.ready_in(&scene.queue()).await, 0);
    scene.end().await;
}

#[tokio::test]
async fn concurrent_messages_of_one_aggregate_are_all_applied() {
    let scene = Scene::begin().await;
    let mut receiver = scene.start(scene.stocks_receiving(), scene.settings()).await;
    for nth in 0..40 {
        // Each message has a separate subject, and so a separate key, so that the messages are handled in any order.
        let body = serde_json::to_vec(&StockRequested { sku: "a".into(), quantity: 1 }).unwrap();
        let event = cloud_event(Uuid::now_v7(), "stock.requested", &nth.to_string());
        scene.publish(event, "stock.requested", &body).await;
    }
    receiver.applied(40).await;
    assert_eq!(scene.stock("a").await.unwrap().available, -40);
    receiver.stop().await;
    scene.end().await;
}

#[tokio::test]
async fn hopeless_messages_reach_the_dead_letter_queue_with_reasons() {
    let scene = Scene::begin().await;
    let refuse = |_: &mut Stock, _: &StockRequested| Err(HandlerError::permanent("discontinued"));
    let key = |request: &StockRequested| request.sku.clone();
    let functions = Subscriptions::new().into_aggregate(&scene.stocks, key, Stock::new, refuse);
    let mut receiver = scene.start(functions, scene.settings()).await;

    let permanent = scene.request("a", 1).await;
    let secret = br#"{"sku":"a","quantity":"s3cret"}"#;
    let undecodable = Uuid::now_v7();
    scene.publish(cloud_event(undecodable, "stock.requested", "b"), "stock.requested", secret).await;
    let csv = cloud_event(Uuid::now_v7(), "stock.requested", "c").with_content_type("text/csv".into());
    scene.publish(csv, "stock.requested", b"a,1").await;
    let anonymous = BasicProperties::default();
    let body = serde_json::to_vec(&StockRequested { sku: "a".into(), quantity: 1 }).unwrap();
    scene.publish(anonymous, "stock.requested", &body).await;
    let mut causes = Vec::new();
    for _ in 0..4 {
        let event = receiver.wait("a death", |event| matches!(event, ReceiverEvent::Died { .. })).await;
        let ReceiverEvent::Died { cause, .. } = event else { unreachable!() };
        causes.push(cause);
    }
    assert_eq!(causes.iter().filter(|cause| **cause == DeadCause::Undecodable).count(), 3, "{causes:?}");
    receiver.stop().await;

    let dead = scene.dead().await;
    assert_eq!(dead.len(), 4);
    let of = |id: Uuid| dead.iter().find(|it| it.message_id.as_deref() == Some(&id.to_string())).unwrap();
    let (permanent, undecodable) = (of(permanent), of(undecodable));
    assert_eq!(permanent.headers["outbox-dead-reason"], "permanent");
    assert_eq!(permanent.headers["outbox-dead-error"], "discontinued");
    assert_eq!(permanent.headers["outbox-routing-key"], "stock.requested");
    assert_eq!(permanent.headers["outbox-dead-queue"], scene.queue());
    assert_eq!(permanent.headers["cloudEvents:subject"], "a", "the sender's headers are kept");
    assert_eq!(undecodable.headers["outbox-dead-reason"], "undecodable");
    assert_eq!(undecodable.body, secret);
    let errors: Vec<_> = dead.iter().map(|it| it.headers["outbox-dead-error"].as_str()).collect();
    assert!(errors.iter().all(|error| !error.contains("s3cret")), "{errors:?}");
    assert!(errors.iter().any(|error| error.contains("expected i64")), "{errors:?}");
    assert!(errors.iter().any(|error| error.contains("text/csv")), "{errors:?}");
    assert!(errors.iter().any(|error| error.contains("no id")), "{errors:?}");
    assert!(scene.stock("a").await.is_none(), "it was not saved");
    scene.end().await;
}

#[tokio::test]
async fn a_transient_failure_holds_only_its_key() {
    let scene = Scene::begin().await;
    let (seen, broken) = (Seen::default(), Arc::new(AtomicBool::new(true)));
    let functions = {
        let (seen, broken) = (seen.clone(), broken.clone());
        Subscriptions::new().on(move |request: StockRequested, _| {
            let fails = request.sku == "a" && broken.load(Ordering::SeqCst);
            if !fails {
                seen.note(request.quantity);
            }
            async move { if fails { Err(HandlerError::transient("not yet")) } else { Ok(()) } }
        })
    };
    let mut receiver = scene.start(functions, scene.settings()).await;
    scene.request("a", 1).await;
    scene.request("a", 2).await;
    receiver.wait("a retry", |event| matches!(event, ReceiverEvent::Retried { .. })).await;
    scene.request("b", 3).await;
    // A message without a subject blocks no other message and waits for none.
    let body = serde_json::to_vec(&StockRequested { sku: "c".into(), quantity: 4 }).unwrap();
    scene.publish(BasicProperties::default(), "stock.requested", &body).await;
    receiver.applied(2).await;
    let mut others = seen.all();
    others.sort_unstable();
    assert_eq!(others, [3, 4]);
    assert_eq!(receiver.running.status().snapshot().held, 2);

    broken.store(false, Ordering::SeqCst);
    receiver.applied(2).await;
    assert_eq!(seen.all()[2..], [1, 2], "in their order");
    receiver.stop().await;
    scene.end().await;
}

/// A failing message that the receiver must not keep any longer goes to the delay queue. Later messages with the same
/// key also go to the delay queue, and messages with other keys are handled meanwhile.
#[tokio::test]
async fn messages_beyond_the_bound_wait_in_the_delay_queue() {
    let scene = Scene::begin().await;
    let (seen, broken) = (Seen::default(), Arc::new(AtomicBool::new(true)));
    let functions = {
        let (seen, broken) = (seen.clone(), broken.clone());
        Subscriptions::new().on(move |request: StockRequested, message| {
            assert_eq!(message.routing_key, "stock.requested", "also after a delay");
            let fails = request.quantity == 1 && broken.load(Ordering::SeqCst);
            if !fails {
                seen.note(request.quantity);
            }
            async move { if fails { Err(HandlerError::transient("not yet")) } else { Ok(()) } }
        })
    };
    let settings = scene.settings().with(|settings| settings.retry_within = Duration::ZERO);
    let mut receiver = scene.start(functions, settings).await;
    let first = scene.request("a", 1).await;
    let second = scene.request("a", 2).await;
    scene.request("b", 3).await;
    let delayed = |id| move |event: &ReceiverEvent| matches!(event, ReceiverEvent::Delayed { message, .. } if message.id == Some(id));
    receiver.wait("the first message to be delayed", delayed(first)).await;
    receiver.wait("the second to follow", delayed(second)).await;
    receiver.wait("the first message to be delayed again", delayed(first)).await;
    assert_eq!(seen.all(), [3]);

    broken.store(false, Ordering::SeqCst);
    receiver.applied(2).await;
    assert_eq!(seen.all(), [3, 1, 2]);
    receiver.stop().await;
    assert_eq!(scene.ready_in(&format!("{}.delayed", scene.queue())).await, 0);
    scene.end().await;
}

#[tokio::test]
async fn later_messages_overtake_a_delayed_one_if_order_is_given_up() {
    let scene = Scene::begin().await;
    let seen = Seen::default();
    let functions = {
        let seen = seen.clone();
        Subscriptions::new().on(move |request: StockRequested, message| {
            let fails = request.quantity == 1 && message.delays == 0;
            if !fails {
                seen.note(request.quantity);
            }
            async move { if fails { Err(HandlerError::transient("not yet")) } else { Ok(()) } }
        })
    };
    let settings = scene.settings().with(|settings| {
        settings.retry_within = Duration::ZERO;
        settings.delayed_order = DelayedOrder::GiveUp;
    });
    let mut receiver = scene.start(functions, settings).await;
    scene.request("a", 1).await;
    scene.request("a", 2).await;
    receiver.applied(2).await;
    assert_eq!(seen.all(), [2, 1]);
    receiver.stop().await;
    scene.end().await;
}

#[tokio::test]
async fn a_message_that_always_fails_is_dead_after_its_delays() {
    let scene = Scene::begin().await;
    let functions = Subscriptions::new()
        .on(|_: StockRequested, _| async { Err(HandlerError::transient("no such luck")) });
    let settings = scene.settings().with(|settings| {
        settings.retry_within = Duration::ZERO;
        settings.delay = Duration::from_millis(50);
        settings.delays = 2;
    });
    let mut receiver = scene.start(functions, settings).await;
    let id = scene.request("a", 1).await;
    receiver.wait("its death", |event| matches!(event, ReceiverEvent::Died { .. })).await;
    receiver.stop().await;
    let dead = scene.dead().await;
    assert_eq!(dead.len(), 1);
    assert_eq!(dead[0].message_id, Some(id.to_string()));
    assert_eq!(dead[0].headers["outbox-dead-reason"], "attempts_exhausted");
    assert_eq!(dead[0].headers["outbox-delays"], "2");

    // A copy that an operator publishes starts without earlier failures.
    let seen = Arc::new(AtomicUsize::new(usize::MAX));
    let functions = {
        let seen = seen.clone();
        Subscriptions::new().on(move |_: StockRequested, message| {
            seen.store(message.delays as usize, Ordering::SeqCst);
            assert!(!message.headers.keys().any(|name| name.starts_with("outbox-")), "{:?}", message.headers);
            async { Ok(()) }
        })
    };
    let mut receiver = scene.start(functions, scene.settings()).await;
    let mut headers = FieldTable::default();
    for (name, value) in &dead[0].headers {
        headers.insert(name.as_str().into(), AMQPValue::LongString(value.as_str().into()));
    }
    let replayed = BasicProperties::default().with_headers(headers);
    scene.publish(replayed, "stock.requested", &dead[0].body).await;
    receiver.applied(1).await;
    assert_eq!(seen.load(Ordering::SeqCst), 0);
    receiver.stop().await;
    scene.end().await;
}

#[tokio::test]
async fn unknown_types_are_dead_rejected_or_ignored_by_choice() {
    for (choice, dead_letters, reason) in [
        (UnknownTypes::DeadLetter, 1, Some("unknown_type")),
        (UnknownTypes::Reject, 1, None),
        (UnknownTypes::Ignore, 0, None),
    ] {
        let scene = Scene::begin().await;
        let settings = scene.settings().with(|settings| {
            settings.unknown_types = choice;
            settings.bindings = Some(vec!["#".into()]);
        });
        let mut receiver = scene.start(scene.stocks_receiving(), settings).await;
        scene.publish(BasicProperties::default(), "other.type", b"{}").await;
        receiver
            .wait("the end of the unknown message", |event| match choice {
                UnknownTypes::DeadLetter => {
                    matches!(event, ReceiverEvent::Died { cause: DeadCause::UnknownType, .. })
                }
                UnknownTypes::Reject => matches!(event, ReceiverEvent::Rejected(_)),
                _ => matches!(event, ReceiverEvent::Ignored(_)),
            })
            .await;
        receiver.stop().await;

        let mut dead = scene.dead().await;
        // The broker itself moves a rejected message to the dead-letter queue.
        let passed_on = async {
            while dead.len() < dead_letters {
                dead = scene.dead().await;
            }
        };
        soon("the dead letter", passed_on).await;
        assert_eq!(dead.len(), dead_letters, "{choice:?}");
        let given = dead.first().and_then(|it| it.headers.get("outbox-dead-reason").map(String::as_str));
        assert_eq!(given, reason, "{choice:?}");
        scene.end().await;
    }
}

#[tokio::test]
async fn an_unavailable_dependency_stops_the_intake_and_costs_nothing() {
    let scene = Scene::begin().await;
    let (down, tries) = (Arc::new(AtomicBool::new(true)), watch::Sender::new(0));
    let functions = {
        let (down, tries) = (down.clone(), tries.clone());
        Subscriptions::new().on(move |_: StockRequested, _| {
            tries.send_modify(|tries| *tries += 1);
            let down = down.load(Ordering::SeqCst);
            async move { if down { Err(HandlerError::unavailable("the mail server is down")) } else { Ok(()) } }
        })
    };
    // With these limits, a message that counted as failed would be dead at once.
    let settings = scene.settings().with(|settings| {
        settings.retry_within = Duration::ZERO;
        settings.delays = 0;
    });
    let mut receiver = scene.start(functions, settings).await;
    let status = receiver.running.status();
    scene.request("a", 1).await;
    receiver.wait("the outage", |event| matches!(event, ReceiverEvent::Unavailable { .. })).await;
    let mut seen = tries.subscribe();
    soon("more tries", seen.wait_for(|tries| *tries >= 5)).await.unwrap();
    let snapshot = status.snapshot();
    assert_eq!(snapshot.unavailable.as_deref(), Some("the mail server is down"));
    assert!(snapshot.not_ready[0].contains("the mail server is down"), "{snapshot:?}");

    // The receiver has cancelled its consumer, so a new message stays in the queue.
    let paused = async {
        while status.snapshot().consumer.unwrap() != document_outbox::amqp::State::Paused.to_string() {
            tokio::task::yield_now().await;
        }
    };
    soon("the consumer to pause", paused).await;
    scene.request("b", 2).await;
    assert_eq!(scene.ready_in(&scene.queue()).await, 1);

    down.store(false, Ordering::SeqCst);
    receiver.applied(2).await;
    assert!(scene.dead().await.is_empty());
    receiver.stop().await;
    scene.end().await;
}

#[tokio::test]
async fn foreign_messages_are_known_by_property_header_or_routing_key() {
    let scene = Scene::begin().await;
    let (sender, mut seen) = tokio::sync::mpsc::unbounded_channel();
    let functions = Subscriptions::new().on(move |request: StockRequested, message| {
        sender.send((request.quantity, message.id, message.subject.clone(), message.time)).unwrap();
        async { Ok(()) }
    });
    let settings = scene.settings().with(|settings| settings.bindings = Some(vec!["#".into()]));
    let receiver = scene.start(functions, settings).await;
    let body = |quantity: i64| serde_json::to_vec(&StockRequested { sku: "a".into(), quantity }).unwrap();
    let mut next = async || soon("a message", seen.recv()).await.unwrap();

    let by_property =
        BasicProperties::default().with_type("stock.requested".into()).with_timestamp(1_700_000_000);
    scene.publish(by_property, "x", &body(1)).await;
    let (quantity, id, _, time) = next().await;
    assert_eq!((quantity, id, time.map(|time| time.timestamp_millis())), (1, None, Some(1_700_000_000_000)));

    let mut headers = FieldTable::default();
    headers.insert("type".into(), AMQPValue::LongString("stock.asked".into()));
    let by_header = BasicProperties::default().with_headers(headers).with_message_id("order 7".into());
    scene.publish(by_header.clone(), "x", &body(2)).await;
    let (quantity, id, ..) = next().await;
    assert_eq!(quantity, 2, "an alias of the type");
    scene.publish(by_header, "x", &body(2)).await;
    assert!(id.is_some());
    assert_eq!(next().await.1, id, "the same UUID each time");

    scene.publish(BasicProperties::default(), "stock.requested", &body(3)).await;
    assert_eq!(next().await.0, 3);

    let mut headers = FieldTable::default();
    for (name, value) in [
        ("id", "7"),
        ("type", "stock.requested"),
        ("source", "/till"),
        ("subject", "s"),
        ("time", "2024-02-29T12:00:00.5Z"),
    ] {
        headers.insert(format!("cloudEvents_{name}").into(), AMQPValue::LongString(value.into()));
    }
    scene.publish(BasicProperties::default().with_headers(headers), "x", &body(4)).await;
    let (quantity, id, subject, time) = next().await;
    assert_eq!((quantity, subject.as_deref()), (4, Some("s")));
    assert_eq!(id.unwrap().get_version_num(), 5);
    assert_eq!(time.unwrap().timestamp_millis() % 1000, 500);
    receiver.stop().await;
    scene.end().await;
}

#[tokio::test]
async fn a_body_in_extended_json_is_decoded() {
    #[derive(serde::Serialize, serde::Deserialize, document_outbox::Message)]
    #[message(type = "stock.counted")]
    struct StockCounted {
        at: mongodb::bson::DateTime,
        by: Uuid,
    }
    let scene = Scene::begin().await;
    let (sender, mut seen) = tokio::sync::mpsc::unbounded_channel();
    let functions = Subscriptions::new().on(move |counted: StockCounted, _| {
        sender.send((counted.at.timestamp_millis(), counted.by)).unwrap();
        async { Ok(()) }
    });
    let receiver = scene.start(functions, scene.settings()).await;
    let body = br#"{"at":{"$date":{"$numberLong":"7"}},"by":{"$binary":{"base64":"EREREREREREREREREREREQ==","subType":"04"}}}"#;
    scene.publish(BasicProperties::default(), "stock.counted", body).await;
    let (at, by) = soon("the message", seen.recv()).await.unwrap();
    assert_eq!((at, by), (7, Uuid::from_bytes([0x11; 16])));
    receiver.stop().await;
    scene.end().await;
}

#[tokio::test]
async fn a_stop_finishes_the_message_in_progress_and_returns_others() {
    let scene = Scene::begin().await;
    let (began, gate) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let functions = {
        let (began, gate) = (began.clone(), gate.clone());
        Subscriptions::new().on(move |_: StockRequested, _| {
            let (began, gate) = (began.clone(), gate.clone());
            async move {
                began.add_permits(1);
                gate.acquire().await?.forget();
                Ok(())
            }
        })
    };
    let settings = scene.settings().with(|settings| settings.concurrency = 1);
    let mut receiver = scene.start(functions, settings).await;
    scene.request("a", 1).await;
    soon("the first to begin", began.acquire()).await.unwrap().forget();
    scene.request("b", 2).await;
    scene.request("c", 3).await;
    for _ in 0..3 {
        receiver.wait("all to be taken", |event| matches!(event, ReceiverEvent::Taken(_))).await;
    }
    let mut events = receiver.events;
    let stopping = tokio::spawn(receiver.running.stop());
    for _ in 0..2 {
        let returned = |event: &ReceiverEvent| matches!(event, ReceiverEvent::Returned(_)).then_some(());
        events.wait("the others to return", returned).await;
    }
    // The other messages are in the queue again while the first message is still being handled.
    let returned = async { while scene.ready_in(&scene.queue()).await < 2 {} };
    soon("the queue to have the other messages", returned).await;
    gate.add_permits(1);
    soon("the end", stopping).await.unwrap();
    assert!(events.rest().iter().any(is_applied));
    assert_eq!(scene.ready_in(&scene.queue()).await, 2, "the first was acknowledged");
    scene.end().await;
}

#[tokio::test]
async fn a_stop_abandons_a_message_that_takes_too_long() {
    let scene = Scene::begin().await;
    let began = Arc::new(Semaphore::new(0));
    let functions = {
        let began = began.clone();
        Subscriptions::new().on(move |_: StockRequested, _| {
            began.add_permits(1);
            std::future::pending()
        })
    };
    let settings = scene.settings().with(|settings| settings.grace = Duration::from_millis(500));
    let receiver = scene.start(functions, settings).await;
    scene.request("a", 1).await;
    soon("the call", began.acquire()).await.unwrap().forget();
    let Working { running, mut events } = receiver;
    soon("the end", running.stop()).await;
    assert!(events.rest().iter().any(|event| matches!(event, ReceiverEvent::Returned(_))));
    let returned = async { while scene.ready_in(&scene.queue()).await < 1 {} };
    soon("the message to return", returned).await;
    scene.end().await;
}

/// Once the sizes are known, the receiver takes only as many messages as fit into the limit of bytes.
#[tokio::test]
async fn the_bytes_held_are_bounded() {
    const MESSAGE: usize = 64 << 10;
    let scene = Scene::begin().await;
    let gate = Arc::new(Semaphore::new(0));
    let functions = {
        let gate = gate.clone();
        Subscriptions::new().on(move |_: StockRequested, _| {
            let gate = gate.clone();
            async move {
                gate.acquire().await?.forget();
                Ok(())
            }
        })
    };
    let settings = scene.settings().with(|settings| settings.prefetch_bytes = 4 * MESSAGE);
    let body = serde_json::to_vec(&StockRequested { sku: "x".repeat(MESSAGE - 100), quantity: 1 }).unwrap();
    let mut receiver = scene.start(functions, settings).await;
    let status = receiver.running.status();
    // One message arrives before the others, so that the receiver knows its size.
    scene.publish(BasicProperties::default(), "stock.requested", &body).await;
    receiver.wait("the first", |event| matches!(event, ReceiverEvent::Taken(_))).await;
    gate.add_permits(1);
    receiver.applied(1).await;
    scene.wait_for_prefetch(4).await;
    for _ in 0..39 {
        scene.publish(BasicProperties::default(), "stock.requested", &body).await;
    }
    let mut most = 0;
    for _ in 0..39 {
        receiver.wait("the next", |event| matches!(event, ReceiverEvent::Taken(_))).await;
        most = most.max(status.snapshot().held_bytes);
        gate.add_permits(1);
    }
    assert!(most <= 4 * MESSAGE, "{most}");
    receiver.stop().await;
    scene.end().await;
}

#[tokio::test]
async fn a_panicking_function_is_a_transient_failure() {
    let scene = Scene::begin().await;
    let calls = Arc::new(AtomicUsize::new(0));
    let functions = {
        let calls = calls.clone();
        Subscriptions::new().on(move |_: StockRequested, _| {
            let first = calls.fetch_add(1, Ordering::SeqCst) == 0;
            async move {
                assert!(!first, "on purpose");
                Ok(())
            }
        })
    };
    let mut receiver = scene.start(functions, scene.settings()).await;
    scene.request("a", 1).await;
    let retried = receiver.wait("the retry", |event| matches!(event, ReceiverEvent::Retried { .. })).await;
    assert!(format!("{retried:?}").contains("panicked"), "{retried:?}");
    receiver.applied(1).await;
    assert_eq!(calls.load(Ordering::SeqCst), 2);
    receiver.stop().await;
    scene.end().await;
}

#[tokio::test]
async fn a_missing_queue_is_reported_when_only_verified() {
    let scene = Scene::begin().await;
    let settings = scene.settings().with(|settings| settings.topology = TopologyMode::Verify);
    let receiver = Receiver::new(scene.flow.amqp("receiver"), scene.stocks_receiving(), settings).unwrap();
    let status = receiver.status();
    assert!(status.snapshot().not_ready[0].contains("not been started"));
    let running = receiver.start();
    let missing = async {
        while !status.snapshot().not_ready.iter().any(|why| why.contains("does not exist")) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    soon("the report", missing).await;
    running.stop().await;

    // Once the queue exists, the same settings work.
    let declared = scene.start(scene.stocks_receiving(), scene.settings()).await;
    declared.stop().await;
    let settings = scene.settings().with(|settings| settings.topology = TopologyMode::Verify);
    let mut receiver = scene.start(scene.stocks_receiving(), settings).await;
    scene.request("a", 1).await;
    receiver.applied(1).await;
    receiver.stop().await;
    scene.end().await;
}

#[tokio::test]
async fn a_type_with_two_functions_is_refused() {
    let scene = Scene::begin().await;
    let twice = scene.stocks_receiving().on(|_: StockRequested, _| async { Ok(()) });
    let settings = ReceiverSettings::new("q").with(|settings| settings.concurrency = 0);
    let InvalidReceiver(problems) = Receiver::new(scene.flow.amqp("receiver"), twice, settings).unwrap_err();
    assert!(problems[0].contains("concurrency"), "{problems:?}");
    assert!(problems[1].contains("`stock.requested` has two functions"), "{problems:?}");
    let nothing =
        Receiver::new(scene.flow.amqp("receiver"), Subscriptions::new(), ReceiverSettings::new("q"));
    assert!(nothing.unwrap_err().to_string().contains("no function"));
    scene.flow.end().await;
}

/// When the active consumer is gone, another consumer takes over, and the order is kept.
#[tokio::test]
async fn one_consumer_at_a_time_keeps_order_across_receivers() {
    let scene = Scene::begin().await;
    let settings = || scene.settings().with(|settings| settings.single_active_consumer = true);
    let mut first = scene.start(scene.stocks_receiving(), settings()).await;
    let mut second = scene.start(scene.stocks_receiving(), settings()).await;
    for quantity in 1..=20 {
        scene.request("a", quantity).await;
    }
    first.applied(20).await;
    assert!(second.events.rest().is_empty(), "it stands by");
    first.stop().await;
    for quantity in 21..=40 {
        scene.request("a", quantity).await;
    }
    second.applied(20).await;
    let stock = scene.stock("a").await.unwrap();
    assert_eq!(stock.taken, (1..=40).collect::<Vec<_>>());
    second.stop().await;
    scene.end().await;
}

#[tokio::test]
async fn a_repeat_after_eviction_has_its_effect_again() {
    let scene = Scene::begin().await;
    let settings = scene.settings().with(|settings| settings.inbox.count = 1);
    let mut receiver = scene.start(scene.stocks_receiving(), settings).await;
    let first = scene.request("a", 1).await;
    scene.request("a", 1).await;
    receiver.applied(2).await;
    scene.request_as(first, "a", 1).await;
    receiver.applied(1).await;
    assert_eq!(scene.stock("a").await.unwrap().available, -3);
    receiver.stop().await;
    let stored = scene.stocks.collection().clone_with_type::<mongodb::bson::Document>();
    let stored = stored.find_one(doc! { "_id": "a" }).await.unwrap().unwrap();
    assert_eq!(stored.get_array("inbox").unwrap().len(), 1);
    scene.end().await;
}

/// The receiver process that the next tests kill. Without the environment variables that those tests set,
/// this test does nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_process_to_be_killed() {
    let Ok(name) = std::env::var(KILLED) else { return };
    let mongodb = std::env::var(KILLED_MONGODB).unwrap();
    let client = mongodb::Client::with_uri_str(&mongodb).await.unwrap();
    let inline = document_outbox::InlineDispatcher::off(&client);
    let stocks = client.database(&name).collection::<mongodb::bson::Document>("stocks");
    let stocks = document_outbox::Store::<Stock>::new(stocks, &inline);
    let key = |request: &StockRequested| request.sku.clone();
    let take = |stock: &mut Stock, request: &StockRequested| {
        if request.quantity == POISON {
            return Err(HandlerError::permanent("poisoned"));
        }
        stock.take(request);
        Ok(())
    };
    let functions = Subscriptions::new().into_aggregate(&stocks, key, Stock::new, take);
    let settings = ReceiverSettings::new(format!("{name}.stock")).with(|settings| {
        settings.exchange = format!("{name}.messages");
        // A message may be delivered again after each of a hundred kills, which would exceed the default delivery limit.
        settings.delivery_limit = 1_000;
        settings.inbox.count = 10_000;
    });
    let amqp = document_outbox::amqp::AmqpSettings::new(&crate::support::uri("OUTBOX_RABBITMQ_URI")).unwrap();
    let receiver = Receiver::new(amqp, functions, settings).unwrap().start();
    receiver.ready().await;
    println!("ready");
    std::future::pending::<()>().await;
}

const KILLED: &str = "OUTBOX_TEST_KILLED_RECEIVER";
const KILLED_MONGODB: &str = "OUTBOX_TEST_KILLED_RECEIVER_MONGODB";
const POISON: i64 = -1;

/// A receiver that runs in a separate process.
struct ReceiverProcess(tokio::process::Child);

impl ReceiverProcess {
    /// Starts the process and returns once it receives messages.
    async fn start(database: &str, mongodb: &str) -> Self {
        use tokio::io::AsyncBufReadExt;
        let mut child = tokio::process::Command::new(std::env::current_exe().unwrap())
            .args(["receive::a_receiver_process_to_be_killed", "--exact", "--nocapture"])
            .env(KILLED, database)
            .env(KILLED_MONGODB, mongodb)
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = tokio::io::BufReader::new(child.stdout.take().unwrap()).lines();
        let ready = async {
            while let Some(line) = lines.next_line().await.unwrap() {
                if line.contains("ready") {
                    return;
                }
            }
            panic!("the receiver ended");
        };
        soon("the receiver to be ready", ready).await;
        Self(child)
    }

    async fn kill(mut self) {
        self.0.kill().await.unwrap();
    }
}

/// The number of messages that had an effect in any aggregate, and the sum of their quantities.
async fn effects(scene: &Scene) -> (usize, i64) {
    let stocks = scene.stocks.collection().clone_with_type::<mongodb::bson::Document>();
    let mut all = stocks.find(doc! {}).await.unwrap();
    let (mut messages, mut sum) = (0, 0);
    while all.advance().await.unwrap() {
        let stock = all.deserialize_current().unwrap();
        messages += stock.get_array("taken").unwrap().len();
        sum -= stock.get_i64("available").unwrap();
    }
    (messages, sum)
}

/// Sends messages without end while a receiver is killed repeatedly. Each message must have its effect exactly once, and the
/// dead-letter queue must hold only the poisoned messages.
async fn kill_under_load(kills: usize) {
    const SKUS: i64 = 20;
    let scene = Arc::new(Scene::begin().await);
    // The process declares the queue, so that the first message has a queue.
    let first = ReceiverProcess::start(scene.flow.name(), &crate::support::uri("OUTBOX_MONGODB_URI")).await;
    let (stop, sent) = (Arc::new(AtomicBool::new(false)), watch::Sender::new((0usize, 0i64, Vec::new())));
    let sending = {
        let (scene, stop, sent) = (scene.clone(), stop.clone(), sent.clone());
        tokio::spawn(async move {
            for nth in 1i64.. {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let sku = format!("s-{}", nth % SKUS);
                if nth % 50 == 0 {
                    let id = scene.request(&sku, POISON).await;
                    sent.send_modify(|sent| sent.2.push(id));
                } else {
                    scene.request(&sku, nth).await;
                    sent.send_modify(|sent| (sent.0, sent.1) = (sent.0 + 1, sent.1 + nth));
                }
            }
        })
    };

    let mut process = first;
    for kill in 0..kills {
        let mut progress = sent.subscribe();
        let wanted = progress.borrow().0 + 20 + kill % 7;
        soon("more messages", progress.wait_for(|sent| sent.0 >= wanted)).await.unwrap();
        process.kill().await;
        process = ReceiverProcess::start(scene.flow.name(), &crate::support::uri("OUTBOX_MONGODB_URI")).await;
    }
    stop.store(true, Ordering::SeqCst);
    sending.await.unwrap();
    let (messages, sum, mut poisoned) = sent.borrow().clone();
    let arrived = async {
        while effects(&scene).await.0 < messages {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    soon("every effect", arrived).await;
    let drained = async {
        loop {
            let (ready, dead) = (
                scene.ready_in(&scene.queue()).await,
                scene.ready_in(&format!("{}.dead", scene.queue())).await,
            );
            if ready == 0 && dead as usize >= poisoned.len() {
                return;
            }
        }
    };
    soon("the poisoned ones", drained).await;
    process.kill().await;
    assert_eq!(effects(&scene).await, (messages, sum), "each effect once");

    // A kill between the confirm and the acknowledgement leaves two copies of a dead message.
    let mut dead: Vec<_> = scene.dead().await.into_iter().map(|dead| dead.message_id.unwrap()).collect();
    dead.sort();
    dead.dedup();
    poisoned.sort();
    assert_eq!(dead, poisoned.iter().map(Uuid::to_string).collect::<Vec<_>>());
    println!("{kills} kills: {messages} effects, {} dead", poisoned.len());
    Arc::into_inner(scene).unwrap().end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_receiver_applies_every_message_once() {
    kill_under_load(20).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "stress: run by scripts/stress"]
async fn stress_a_receiver_killed_a_hundred_times_applies_once() {
    kill_under_load(100).await;
}

/// A CloudEvent from a Python program that doesn't use this project reaches a function.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "stress: run by scripts/stress, since it installs a Python client"]
async fn stress_a_cloud_event_from_python_reaches_a_function() {
    let scene = Scene::begin().await;
    let mut receiver = scene.start(scene.stocks_receiving(), scene.settings()).await;
    let services = std::env::var("OUTBOX_TEST_SERVICES_DIR").unwrap();
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let clients = std::process::Command::new(root.join("scripts/demo_lib/clients")).arg(&services).status();
    assert!(clients.unwrap().success());
    let program = r#"
import json, os, pika, sys
uri, exchange = sys.argv[1:]
with pika.BlockingConnection(pika.URLParameters(uri)) as connection:
    channel = connection.channel()
    channel.confirm_delivery()
    attributes = {"specversion": "1.0", "id": "till-7", "source": "/till", "type": "stock.requested", "subject": "a"}
    headers = {f"cloudEvents:{name}": value for name, value in attributes.items()}
    properties = pika.BasicProperties(content_type="application/json", headers=headers, delivery_mode=2)
    body = json.dumps({"sku": "a", "quantity": 2})
    for _ in range(2):
        channel.basic_publish(exchange, "stock.requested", body, properties, mandatory=True)
"#;
    let published = tokio::process::Command::new("python3")
        .args(["-c", program, &scene.flow.broker, &scene.flow.messages()])
        .env("PYTHONPATH", format!("{services}/python"))
        .status();
    assert!(soon("the program", published).await.unwrap().success());
    receiver.wait("the repeat", |event| matches!(event, ReceiverEvent::Repeated(_))).await;
    assert_eq!(scene.stock("a").await.unwrap().available, -2);
    receiver.stop().await;
    scene.end().await;
}

/// A Python program that doesn't use this project reads a message that an aggregate sent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "stress: run by scripts/stress, since it installs a Python client"]
async fn stress_a_python_program_reads_what_an_aggregate_sends() {
    let scene = Scene::begin().await;
    let inline = document_outbox::InlineDispatcher::builder(&scene.flow.test.client);
    let inline = inline.deliver_to(scene.flow.rabbitmq("sender").await);
    let stocks = scene.flow.test.database.collection::<mongodb::bson::Document>("stocks");
    let stocks = document_outbox::Store::<Stock>::new(stocks, &inline);
    let mut shelf = Stock::new("shelf".into());
    shelf.outbox.send(StockRequested { sku: "tea \u{2603}".into(), quantity: 2 }).header("tenant", "north");
    let (_shelf, receipt) = stocks.insert(shelf).await.unwrap().applied().unwrap();

    let services = std::env::var("OUTBOX_TEST_SERVICES_DIR").unwrap();
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let clients = std::process::Command::new(root.join("scripts/demo_lib/clients")).arg(&services).status();
    assert!(clients.unwrap().success());
    let program = r#"
import json, pika, sys
uri, queue = sys.argv[1:]
with pika.BlockingConnection(pika.URLParameters(uri)) as connection:
    for method, properties, body in connection.channel().consume(queue):
        print(json.dumps({"headers": properties.headers, "id": properties.message_id, "body": json.loads(body)}))
        break
"#;
    let read = tokio::process::Command::new("python3")
        .args(["-c", program, &scene.flow.broker, &scene.flow.queue()])
        .env("PYTHONPATH", format!("{services}/python"))
        .kill_on_drop(true)
        .output();
    let read = soon("the program", read).await.unwrap();
    let read: serde_json::Value = serde_json::from_slice(&read.stdout).unwrap();
    let id = receipt.messages[0].to_string();
    assert_eq!(read["body"], serde_json::json!({ "sku": "tea \u{2603}", "quantity": 2 }));
    assert_eq!((read["id"].as_str(), read["headers"]["cloudEvents:id"].as_str()), (Some(&*id), Some(&*id)));
    assert_eq!(read["headers"]["cloudEvents:type"], "stock.requested");
    assert_eq!(read["headers"]["cloudEvents:subject"], "shelf");
    assert_eq!(read["headers"]["tenant"], "north");
    inline.close(Duration::from_secs(10)).await;
    scene.end().await;
}

/// The tests in this module set a fail point of MongoDB.
mod fail_point {
    use mongodb::{
        Client,
        event::{EventHandler, command::CommandEvent},
        options::ClientOptions,
    };

    use super::*;
    use crate::support::uri;

    /// After a save without a clear answer, the receiver reads the document and doesn't acknowledge the message yet.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn an_unknown_save_is_read_again_before_any_answer() {
        let scene = Scene::begin().await;
        let name = format!("unsure-{}", Uuid::now_v7().simple());
        let mut options = ClientOptions::parse(uri("OUTBOX_MONGODB_URI")).await.unwrap();
        options.app_name = Some(name.clone());
        let reads = watch::Sender::new(0);
        let counted = reads.clone();
        options.command_event_handler = Some(EventHandler::callback(move |event: CommandEvent| {
            if let CommandEvent::Started(started) = event
                && started.command_name == "find"
            {
                counted.send_modify(|reads| *reads += 1);
            }
        }));
        let client = Client::with_options(options).unwrap();
        let inline = document_outbox::InlineDispatcher::off(&client);
        let stocks = client.database(scene.flow.name()).collection::<mongodb::bson::Document>("stocks");
        let stocks = document_outbox::Store::<Stock>::new(stocks, &inline);
        let key = |request: &StockRequested| request.sku.clone();
        let functions = Subscriptions::new().into_aggregate(&stocks, key, Stock::new, Stock::take);
        let mut receiver = scene.start(functions, scene.settings()).await;
        scene.request("a", 1).await;
        receiver.applied(1).await;

        let admin = client.database("admin");
        let data = doc! { "failCommands": ["update"], "appName": &name, "closeConnection": true };
        let fail = doc! { "configureFailPoint": "failCommand", "mode": "alwaysOn", "data": data };
        admin.run_command(fail).await.unwrap();
        let mut seen = reads.subscribe();
        let before = *seen.borrow_and_update();
        scene.request("a", 2).await;
        let again = seen.wait_for(|reads| *reads >= before + 2);
        let read_again = tokio::time::timeout(Duration::from_mins(2), again).await.is_ok();
        let off = doc! { "configureFailPoint": "failCommand", "mode": "off" };
        admin.run_command(off).await.unwrap();
        assert!(read_again, "the document is read again");
        receiver.applied(1).await;
        assert_eq!(scene.stock("a").await.unwrap().taken, [1, 2]);
        receiver.stop().await;
        scene.end().await;
    }
}

/// The tests in this module stop, block or slow down a server.
mod outage {
    use super::*;
    use crate::{
        flow::Flow, majority::StalledReplication, private_broker::PrivateBroker, support::TestDatabase,
    };

    const RS3: &str = "OUTBOX_TEST_MONGODB_RS3_URI";

    /// A message is acknowledged only after the majority has the save of its effect: a receiver that is killed before
    /// that gets the message again, and applies it once.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_message_is_acknowledged_after_the_majority_has_it() {
        let flow = Flow::of(TestDatabase::on(RS3).await, &crate::support::uri("OUTBOX_RABBITMQ_URI"));
        flow.declare().await;
        let scene = Scene::of(flow).await;
        let process = ReceiverProcess::start(scene.flow.name(), &crate::support::uri(RS3)).await;
        let warm = scene.request("warm", 1).await;
        let stocks = scene.stocks.collection().clone_with_type::<mongodb::bson::Document>();
        let written =
            async |sku: &str| while stocks.find_one(doc! { "_id": sku }).await.unwrap().is_none() {};
        soon("the first", written("warm")).await;

        let stalled = StalledReplication::begin().await;
        let id = scene.request("a", 1).await;
        // The primary has the save, and the majority doesn't.
        soon("the save", written("a")).await;
        // Each call of `unacknowledged` takes about a second, in which a premature acknowledgement would
        // arrive.
        for _ in 0..2 {
            assert_eq!(scene.unacknowledged().await, 1);
        }
        process.kill().await;
        let returned = async { while scene.ready_in(&scene.queue()).await < 1 {} };
        soon("the message to return", returned).await;
        drop(stalled);

        let mut receiver = scene.start(scene.stocks_receiving(), scene.killed_settings()).await;
        let ended =
            |event: &ReceiverEvent| matches!(event, ReceiverEvent::Applied(_) | ReceiverEvent::Repeated(_));
        let event = loop {
            let event = receiver.wait("the message again", ended).await;
            if id_of(&event) != Some(warm) {
                break event;
            }
        };
        assert_eq!(id_of(&event), Some(id));
        let stock = scene.stock("a").await.unwrap();
        assert_eq!((stock.available, stock.taken), (-1, vec![1]));
        receiver.stop().await;
        scene.end().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_broker_restart_loses_and_repeats_no_effect() {
        let broker = PrivateBroker::start().await;
        let scene = Scene::of(Flow::on(&broker.uri).await).await;
        let mut receiver = scene.start(scene.stocks_receiving(), scene.settings()).await;
        for quantity in 1..=50 {
            scene.request("a", quantity).await;
        }
        receiver.applied(10).await;
        broker.stop().await;
        broker.start_again().await;
        let all = async {
            while scene.stock("a").await.is_none_or(|stock| stock.taken.len() < 50) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        soon("every effect", all).await;
        let stock = scene.stock("a").await.unwrap();
        assert_eq!(stock.taken, (1..=50).collect::<Vec<_>>(), "in their order");
        assert!(soon("the connection", receiver.running.ready()).await);
        receiver.stop().await;
        let flow = scene.flow;
        let scene = Scene::of(flow).await;
        scene.end().await;
    }
}
