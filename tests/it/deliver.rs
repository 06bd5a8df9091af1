//! Tests the deliverers of the library, namely RabbitMQ on a real broker, handlers and the router, and the
//! webhook example.
//!
//! The tests need `eval "$(scripts/services env)"`. Each test uses its own names and deletes everything that it
//! created.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use document_outbox::{
    CommandSender, DocumentRef, Message, SendFailure,
    amqp::{AmqpSettings, Publisher, State, TopologyMode},
    command::{COMMAND_TYPE, COMMANDS_ROUTING_KEY, ProcessDocumentMessages, Reason},
    deliver::{
        Answer, Deliver, Envelope, HANDLERS, HandlerError, HandlerKey, Handlers, HandlersError, Outcome,
        PayloadFormat, RabbitMq, RabbitMqSettings, Router,
        conformance::{self, Harness, envelope},
    },
};
use futures::FutureExt;
use lapin::{
    message::BasicGetMessage,
    options::{
        BasicGetOptions, ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
    },
    types::{AMQPValue, FieldTable},
};
use mongodb::{
    Namespace,
    bson::{
        Binary, Bson, DateTime, Decimal128, JavaScriptCodeWithScope, Timestamp, doc, oid::ObjectId,
        spec::BinarySubtype,
    },
};
use serde::{Deserialize, Serialize};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, oneshot},
    task::{AbortHandle, JoinHandle},
};
use uuid::Uuid;

use crate::network::Network;

#[path = "../support/webhook.rs"]
mod webhook;

// --- shared by all tests
// ---------------------------------------------------------------------------------------

const LONG: Duration = Duration::from_secs(60);

/// Limits the time of `work`, so that a test fails with a message instead of hanging.
async fn soon<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, work).await.unwrap_or_else(|_| panic!("{what}: not within {LONG:?}"))
}

fn broker_uri() -> String {
    std::env::var("OUTBOX_RABBITMQ_URI").unwrap_or_else(|_| {
        panic!(r#"no OUTBOX_RABBITMQ_URI: run `scripts/services up`, then `eval "$(scripts/services env)"`"#)
    })
}

/// The exchange of one test and the queues bound to it, with a separate connection to inspect them.
struct Scene {
    id: String,
    outside: lapin::Channel,
    _connection: lapin::Connection,
    queues: Mutex<Vec<String>>,
}

/// Runs a test and deletes its leftovers, even if it failed.
async fn scene(play: impl AsyncFnOnce(&Scene)) {
    let connection = lapin::Connection::connect(&broker_uri(), Default::default()).await.unwrap();
    let scene = Scene {
        id: format!("test-deliver-{}", Uuid::now_v7()),
        outside: connection.create_channel().await.unwrap(),
        _connection: connection,
        queues: Mutex::default(),
    };
    let played = AssertUnwindSafe(soon("the test", play(&scene))).catch_unwind().await;
    let queues = std::mem::take(&mut *scene.queues.lock().unwrap());
    for queue in queues {
        let options = QueueDeleteOptions::default();
        scene.outside.queue_delete(queue.into(), options).await.unwrap();
    }
    let options = ExchangeDeleteOptions::default();
    scene.outside.exchange_delete(scene.id.clone().into(), options).await.unwrap();
    if let Err(panic) = played {
        std::panic::resume_unwind(panic);
    }
}

impl Scene {
    fn settings(&self) -> RabbitMqSettings {
        self.settings_at(&broker_uri())
    }

    fn settings_at(&self, uri: &str) -> RabbitMqSettings {
        let mut settings = RabbitMqSettings::new(uri).unwrap();
        settings.amqp.connection_name = self.id.clone();
        settings.amqp.reconnect_max = Duration::from_millis(200);
        settings.exchange = self.id.clone();
        settings
    }

    /// Connects, so that the exchange exists.
    async fn rabbit(&self) -> RabbitMq {
        self.rabbit_with(self.settings()).await
    }

    async fn rabbit_with(&self, settings: RabbitMqSettings) -> RabbitMq {
        let rabbit = RabbitMq::start(settings);
        soon("the broker", rabbit.available()).await;
        assert!(rabbit.is_available());
        rabbit
    }

    /// Creates a queue for messages of one type.
    async fn bind(&self, message_type: &str) -> String {
        self.bind_with(message_type, FieldTable::default()).await
    }

    async fn bind_with(&self, message_type: &str, arguments: FieldTable) -> String {
        let queue = format!("{}-{message_type}", self.id);
        let options = QueueDeclareOptions { durable: true, ..Default::default() };
        self.outside.queue_declare(queue.clone().into(), options, arguments).await.unwrap();
        self.queues.lock().unwrap().push(queue.clone());
        let (exchange, key) = (self.id.clone().into(), message_type.into());
        let options = QueueBindOptions::default();
        self.outside
            .queue_bind(queue.clone().into(), exchange, key, options, FieldTable::default())
            .await
            .unwrap();
        queue
    }

    async fn get(&self, queue: &str) -> Option<BasicGetMessage> {
        let options = BasicGetOptions { no_ack: true };
        self.outside.basic_get(queue.into(), options).await.unwrap()
    }

    /// Takes all messages out of a queue and returns their ids.
    async fn ids(&self, queue: &str) -> Vec<Uuid> {
        let mut ids = Vec::new();
        while let Some(message) = self.get(queue).await {
            let id = message.properties.message_id().clone().unwrap();
            ids.push(Uuid::parse_str(id.as_str()).unwrap());
        }
        ids
    }
}

async fn outcome(deliverer: &impl Deliver, envelope: Envelope) -> Outcome {
    answer(deliverer, envelope).await.outcome
}

async fn answer(deliverer: &impl Deliver, envelope: Envelope) -> Answer {
    let answers = deliverer.deliver(&[envelope]).await;
    assert_eq!(answers.len(), 1);
    answers.into_iter().next().unwrap()
}

#[track_caller]
fn transient(outcome: Outcome) -> String {
    match outcome {
        Outcome::Transient(text) => text,
        other => panic!("not transient: {other:?}"),
    }
}

#[track_caller]
fn permanent(outcome: Outcome) -> String {
    match outcome {
        Outcome::Permanent(text) => text,
        other => panic!("not permanent: {other:?}"),
    }
}

// --- RabbitMQ --------------------------------------------------------------------------------------------------------

/// A message is published in the binary mode of CloudEvents 1.0, as the table of `deliver::cloudevents`
/// shows.
#[tokio::test]
async fn a_message_is_encoded_exactly_as_documented() {
    scene(async |scene| {
        let rabbit = scene.rabbit().await;
        let queue = scene.bind("order.placed").await;
        let mut sent = envelope("order.placed", doc! { "order": "o-1", "total": 3i64 });
        sent.document =
            DocumentRef::by_id(Namespace::new("shop", "orders"), ObjectId::from_bytes([0xab; 12]));
        sent.created_at = Some(DateTime::from_millis(1_700_000_000_120));
        let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        sent.headers =
            [("traceparent", trace), ("dataschema", "https://example.test/s.json"), ("tenant", "north")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into();
        let id = sent.id.to_string();

        assert_eq!(outcome(&rabbit, sent).await, Outcome::Delivered);

        let message = scene.get(&queue).await.unwrap();
        assert_eq!(message.exchange.as_str(), scene.id);
        assert_eq!(message.routing_key.as_str(), "order.placed");
        assert_eq!(String::from_utf8_lossy(&message.data), r#"{"order":"o-1","total":3}"#);
        let properties = &message.properties;
        let text = |value: &Option<lapin::types::ShortString>| value.as_ref().map(ToString::to_string);
        assert_eq!(text(properties.content_type()).as_deref(), Some("application/json"));
        assert_eq!(text(properties.message_id()), Some(id.clone()));
        assert_eq!(text(properties.kind()).as_deref(), Some("order.placed"));
        assert_eq!(*properties.delivery_mode(), Some(2), "persistent");
        assert_eq!(*properties.timestamp(), Some(1_700_000_000));
        let headers: BTreeMap<String, String> = properties
            .headers()
            .as_ref()
            .unwrap()
            .inner()
            .iter()
            .map(|(name, value)| match value {
                AMQPValue::LongString(text) => (name.to_string(), text.to_string()),
                other => panic!("{name} is {other:?}, not a string"),
            })
            .collect();
        let expected = [
            ("cloudEvents:dataschema", "https://example.test/s.json"),
            ("cloudEvents:id", &id),
            ("cloudEvents:source", "/shop/orders"),
            ("cloudEvents:specversion", "1.0"),
            ("cloudEvents:subject", "abababababababababababab"),
            ("cloudEvents:time", "2023-11-14T22:13:20.120Z"),
            ("cloudEvents:type", "order.placed"),
            ("tenant", "north"),
            ("traceparent", trace),
        ];
        assert_eq!(headers, expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
    })
    .await;
}

/// The body is plain JSON, as the table of `deliver::json` shows, or extended JSON if the settings choose
/// it.
#[tokio::test]
async fn every_bson_type_arrives_as_the_table_says() {
    let binary = |subtype, bytes: &[u8]| Bson::Binary(Binary { subtype, bytes: bytes.to_vec() });
    let payload = doc! {
        "double": 1.5, "whole": 2.0, "nan": f64::NAN, "string": "☃", "document": { "a": [1, {}] },
        "bytes": binary(BinarySubtype::Generic, &[1, 2, 3]),
        "uuid": mongodb::bson::Uuid::from_bytes([0x11; 16]),
        "old_uuid": binary(BinarySubtype::UuidOld, &[0; 16]),
        "undefined": Bson::Undefined, "id": ObjectId::from_bytes([0xcd; 12]), "yes": true,
        "date": DateTime::from_millis(1), "null": Bson::Null,
        "regex": serde_json::from_str::<Bson>(r#"{"$regularExpression":{"pattern":"a","options":"i"}}"#).unwrap(),
        "code": Bson::JavaScriptCode("f".into()), "symbol": Bson::Symbol("s".into()),
        "scope": Bson::JavaScriptCodeWithScope(JavaScriptCodeWithScope { code: "g".into(), scope: doc! { "n": 1i64 } }),
        "int": 1i32, "timestamp": Bson::Timestamp(Timestamp { time: 1, increment: 2 }), "long": i64::MIN,
        "decimal": Bson::Decimal128("0.10".parse::<Decimal128>().unwrap()),
        "min": Bson::MinKey, "max": Bson::MaxKey,
    };
    let plain = concat!(
        r#"{"double":1.5,"whole":2.0,"nan":"NaN","string":"☃","document":{"a":[1,{}]},"bytes":"AQID","#,
        r#""uuid":"11111111-1111-1111-1111-111111111111","old_uuid":"AAAAAAAAAAAAAAAAAAAAAA==","undefined":null,"#,
        r#""id":"cdcdcdcdcdcdcdcdcdcdcdcd","yes":true,"date":"1970-01-01T00:00:00.001Z","null":null,"#,
        r#""regex":{"$regularExpression":{"pattern":"a","options":"i"}},"code":"f","symbol":"s","#,
        r#""scope":{"$code":"g","$scope":{"n":1}},"int":1,"timestamp":{"$timestamp":{"t":1,"i":2}},"#,
        r#""long":-9223372036854775808,"decimal":"0.10","min":{"$minKey":1},"max":{"$maxKey":1}}"#,
    );
    scene(async |scene| {
        let rabbit = scene.rabbit().await;
        let queue = scene.bind("all.types").await;
        assert_eq!(outcome(&rabbit, envelope("all.types", payload.clone())).await, Outcome::Delivered);
        let message = scene.get(&queue).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&message.data), plain);

        let mut settings = scene.settings();
        settings.payload = PayloadFormat::CanonicalExtendedJson;
        let rabbit = scene.rabbit_with(settings).await;
        assert_eq!(outcome(&rabbit, envelope("all.types", payload.clone())).await, Outcome::Delivered);
        let message = scene.get(&queue).await.unwrap();
        let mut back: Bson = serde_json::from_slice(&message.data).unwrap();
        let nan = back.as_document_mut().unwrap().insert("nan", 0.0);
        assert!(nan.unwrap().as_f64().unwrap().is_nan());
        let mut sent = payload;
        sent.insert("nan", 0.0);
        assert_eq!(back, Bson::Document(sent));
    })
    .await;
}

/// P2: a message leaves an outbox only by a confirmed delivery. P8: an unroutable message is reported.
#[tokio::test]
async fn an_unroutable_message_fails_alone_until_bound() {
    scene(async |scene| {
        let rabbit = scene.rabbit().await;
        let bound = scene.bind("bound").await;
        let window = ["bound", "lonely", "bound"].map(|message_type| envelope(message_type, 1));

        let answers = rabbit.deliver(&window).await;
        assert_eq!(answers[0].outcome, Outcome::Delivered);
        assert_eq!(answers[2].outcome, Outcome::Delivered);
        let Outcome::Unroutable(text) = &answers[1].outcome else { panic!("{:?}", answers[1]) };
        assert!(text.contains("no queue is bound for `lonely`") && text.contains(&scene.id), "{text}");
        assert_eq!(scene.ids(&bound).await, [window[0].id, window[2].id]);

        let lonely = scene.bind("lonely").await;
        assert_eq!(outcome(&rabbit, window[1].clone()).await, Outcome::Delivered);
        assert_eq!(scene.ids(&lonely).await, [window[1].id]);
    })
    .await;
}

/// An unroutable message counts as failed, unless its type is in `unroutable_ok`.
#[tokio::test]
async fn only_declared_types_may_be_unroutable() {
    scene(async |scene| {
        let mut settings = scene.settings();
        settings.unroutable_ok = ["audit".to_owned()].into();
        let rabbit = scene.rabbit_with(settings).await;
        let answers = rabbit.deliver(&[envelope("audit", 1), envelope("order", 1)]).await;
        assert_eq!(answers[0].outcome, Outcome::Delivered);
        assert!(matches!(answers[1].outcome, Outcome::Unroutable(_)), "{:?}", answers[1]);
    })
    .await;
}

#[tokio::test]
async fn a_full_queue_that_rejects_is_transient() {
    scene(async |scene| {
        let rabbit = scene.rabbit().await;
        let mut arguments = FieldTable::default();
        arguments.insert("x-max-length".into(), AMQPValue::LongInt(0));
        arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
        scene.bind_with("full", arguments).await;
        // Classic queues accept one message over the limit before they reject.
        let outcomes = [(); 5].map(|()| envelope("full", 1));
        let answers = rabbit.deliver(&outcomes).await;
        let text = transient(answers[4].outcome.clone());
        assert!(text.contains("RabbitMQ refused `full`"), "{text}");
    })
    .await;
}

/// P3 (d): if the broker refuses a message for one of several queues, the other queues get one copy with each attempt.
#[tokio::test]
async fn a_rejecting_queue_doubles_messages_once_per_attempt() {
    scene(async |scene| {
        let rabbit = scene.rabbit().await;
        let healthy = scene.bind("order.#").await;
        let mut full = FieldTable::default();
        full.insert("x-max-length".into(), AMQPValue::LongInt(0));
        full.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
        scene.bind_with("order.*", full).await;
        // Classic queues accept one message over the limit before they reject.
        while outcome(&rabbit, envelope("order.first", 1)).await == Outcome::Delivered {}
        scene.ids(&healthy).await;

        let mut message = envelope("order.paid", 1);
        for attempts in 0..3 {
            message.attempts = attempts;
            for _quick_try in 0..3 {
                let text = transient(outcome(&rabbit, message.clone()).await);
                assert!(text.contains("RabbitMQ refused `order.paid`"), "{text}");
            }
            assert_eq!(scene.ids(&healthy).await, [message.id]);
        }
    })
    .await;
}

/// A message that can never be published is dead at once.
#[tokio::test]
async fn unpublishable_messages_fail_permanently_and_alone() {
    scene(async |scene| {
        let rabbit = scene.rabbit().await;
        let queue = scene.bind("fine").await;
        let nested = (0..201).fold(Bson::Null, |inner, _| Bson::Array(vec![inner]));
        let mut carbon_copy = envelope("fine", 1);
        carbon_copy.headers.insert("CC".into(), "elsewhere".into());
        let window = [
            envelope("x".repeat(256), 1),
            envelope("fine", 1),
            envelope("fine", nested),
            carbon_copy,
            envelope("fine", "x".repeat(17 * 1024 * 1024)),
            envelope("fine", 2),
        ];
        let answers = rabbit.deliver(&window).await;
        for (place, told) in [(0, "256 bytes"), (2, "200 levels"), (3, "CC"), (4, "max_message_bytes")] {
            let text = permanent(answers[place].outcome.clone());
            assert!(text.contains(told), "{told}: {text}");
        }
        assert_eq!(scene.ids(&queue).await, [window[1].id, window[5].id]);
    })
    .await;
}

/// P2: no attempt is counted while the broker is unavailable, so no outage kills a message.
#[tokio::test]
async fn a_missing_broker_counts_no_attempt() {
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let rabbit = RabbitMq::start(RabbitMqSettings::new(&format!("amqp://u:s3cret@{nobody}/%2f")).unwrap());
    let mut states = rabbit.subscribe();
    let disconnected = |state: &State| matches!(state, State::Disconnected { .. });
    soon("a first refusal", states.wait_for(disconnected)).await.unwrap();
    assert!(!rabbit.is_available());
    for answer in rabbit.deliver(&[envelope("a", 1), envelope("b", 1)]).await {
        match answer.outcome {
            Outcome::Unavailable(text) => assert!(!text.contains("s3cret"), "{text}"),
            other => panic!("{other:?}"),
        }
    }
    rabbit.close().await;
    assert!(!rabbit.is_available());
}

/// A dispatcher receives the command from a quorum queue with a delivery limit, bound to a direct, durable exchange.
#[tokio::test]
async fn messages_and_hand_offs_share_one_connection() {
    scene(async |scene| {
        let network = Network::to(&broker_uri());
        let mut settings = scene.settings_at(&network.uri());
        let commands = format!("{}-commands", scene.id);
        scene.queues.lock().unwrap().push(commands.clone());
        (settings.commands_exchange, settings.commands_queue) = (commands.clone(), commands.clone());

        let (rabbit, sender) = RabbitMq::start_with_hand_off(settings);
        soon("the broker", rabbit.available()).await;
        scene.bind("order.placed").await;
        let delivered = rabbit.deliver(&[envelope("order.placed", doc! { "order": "o-1" })]).await;
        assert_eq!(delivered[0].outcome, Outcome::Delivered);

        let document = DocumentRef::by_id(Namespace::new("shop", "orders"), "o-1");
        let command = ProcessDocumentMessages::new(document, Reason::Handoff);
        assert_eq!(sender.send(vec![command.clone()]).await, [Ok(())]);
        let sent = scene.get(&commands).await.unwrap();
        assert_eq!(ProcessDocumentMessages::from_json(&sent.data), Ok(command));
        assert_eq!(network.connections(), 1);

        scene.outside.exchange_delete(commands.into(), ExchangeDeleteOptions::default()).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn commands_fail_unless_the_topology_has_a_queue() {
    let command = |id: Bson| {
        let document = DocumentRef::by_id(Namespace::new("shop", "orders"), id);
        ProcessDocumentMessages::new(document, Reason::Sweep)
    };
    scene(async |scene| {
        let settings = AmqpSettings::new(&broker_uri()).unwrap().named(&scene.id);
        scene.queues.lock().unwrap().push(scene.id.clone());
        let topology = |mode| CommandSender::topology(&scene.id, &scene.id, mode);
        let publisher = Publisher::start(settings.clone(), topology(TopologyMode::Declare));
        assert!(soon("the broker", publisher.ready()).await);
        let sender = CommandSender::new(publisher, &scene.id);

        let sent = sender
            .send(vec![command("o-1".into()), command("x".repeat(16 << 20).into()), command(7i64.into())])
            .await;
        assert_eq!((&sent[0], &sent[2]), (&Ok(()), &Ok(())));
        assert!(matches!(sent[1], Err(SendFailure::Refused(_))), "{sent:?}");
        for id in [Bson::from("o-1"), Bson::from(7i64)] {
            let message = scene.get(&scene.id).await.unwrap();
            assert_eq!(ProcessDocumentMessages::from_json(&message.data), Ok(command(id)));
            assert_eq!(message.routing_key.as_str(), COMMANDS_ROUTING_KEY);
            assert_eq!(message.properties.kind().as_ref().unwrap().as_str(), COMMAND_TYPE);
            assert_eq!(*message.properties.delivery_mode(), Some(2), "persistent");
            assert_eq!(message.properties.content_type().as_ref().unwrap().as_str(), "application/json");
            assert!(Uuid::parse_str(message.properties.message_id().as_ref().unwrap().as_str()).is_ok());
        }

        let options = QueueDeleteOptions::default();
        scene.outside.queue_delete(scene.id.clone().into(), options).await.unwrap();
        let elsewhere = Publisher::start(settings, topology(TopologyMode::Off));
        assert!(soon("the broker", elsewhere.ready()).await);
        let sent = CommandSender::new(elsewhere, &scene.id).send(vec![command(1.into())]).await;
        assert!(matches!(sent[0], Err(SendFailure::Unroutable { .. })), "{sent:?}");
        let sent = sender.send(vec![command(1.into())]).await;
        assert_eq!(sent, [Ok(())], "the queue is declared again");
        assert!(sender.send(vec![]).await.is_empty());
    })
    .await;
}

// --- handlers --------------------------------------------------------------------------------------------------------

#[derive(Serialize, Deserialize, Debug, PartialEq)]
struct Placed {
    order: String,
}

impl Message for Placed {
    const TYPE: &'static str = "order.placed";
    const ALIASES: &'static [&'static str] = &["OrderPlaced"];
}

fn placed() -> Envelope {
    let mut envelope = envelope(Placed::TYPE, doc! { "order": "o-1" });
    envelope.via = Some(HANDLERS.to_owned());
    envelope
}

/// Counts handler calls by key.
#[derive(Clone, Default)]
struct Calls(Arc<Mutex<Vec<&'static str>>>);

impl Calls {
    fn note(&self, key: &'static str) {
        self.0.lock().unwrap().push(key);
    }

    fn of(&self, key: &str) -> usize {
        self.0.lock().unwrap().iter().filter(|called| **called == key).count()
    }

    /// Creates a handler that counts its calls and then behaves as the test requires.
    fn then(
        &self,
        key: &'static str,
        end: impl Fn() -> Result<(), HandlerError> + Clone + Send + Sync + 'static,
    ) -> impl Fn(Placed, Arc<Envelope>) -> std::future::Ready<Result<(), HandlerError>> + Send + Sync + 'static
    {
        let calls = self.clone();
        move |_, _| {
            calls.note(key);
            std::future::ready(end())
        }
    }
}

/// A type can have several handlers. If one of them fails, the others still run, and they are not called
/// again, because `delivered_to` records their keys.
#[tokio::test]
async fn a_failing_handler_neither_stops_nor_repeats_others() {
    let calls = Calls::default();
    let handlers = Handlers::builder()
        .on("fails", calls.then("fails", || Err(HandlerError::transient("no such luck"))))
        .on("panics", calls.then("panics", || panic!("on purpose")))
        .on("works", calls.then("works", || Ok(())))
        .build()
        .unwrap();
    let mut message = placed();
    for tries in 1..=3 {
        let answer = answer(&handlers, message.clone()).await;
        let text = transient(answer.outcome);
        assert!(text.contains("handler `fails`: no such luck"), "{text}");
        assert!(text.contains("handler `panics`: panicked"), "{text}");
        assert_eq!(answer.delivered_to, ["works"]);
        assert_eq!((calls.of("fails"), calls.of("panics"), calls.of("works")), (tries, tries, 1));
        message.delivered_to = answer.delivered_to;
    }
}

/// A handler that names a former key doesn't get messages again that it received under the former key.
#[tokio::test]
async fn a_renamed_handler_does_not_repeat_its_work() {
    let calls = Calls::default();
    let handlers = Handlers::builder()
        .on(HandlerKey::new("billing").formerly("invoice"), calls.then("billing", || Ok(())))
        .on("mail", calls.then("mail", || Ok(())))
        .build()
        .unwrap();
    let mut message = placed();
    message.delivered_to = vec!["invoice".into(), "gone".into()];
    let answer = answer(&handlers, message).await;
    assert_eq!(answer.outcome, Outcome::Delivered);
    assert_eq!(answer.delivered_to, ["invoice", "gone", "mail"]);
    assert_eq!((calls.of("billing"), calls.of("mail")), (0, 1));
}

#[tokio::test]
async fn handlers_sharing_a_key_are_refused_naming_it() {
    let calls = Calls::default();
    let ok = |key| calls.then(key, || Ok(()));
    let duplicate = |first: HandlerKey, second: HandlerKey| {
        Handlers::builder().on(first, ok("a")).on(second, ok("b")).build().unwrap_err()
    };
    let expected = HandlersError::DuplicateKey("billing".into());
    assert_eq!(duplicate("billing".into(), "billing".into()), expected);
    assert_eq!(duplicate("billing".into(), HandlerKey::new("mail").formerly("billing")), expected);
    assert!(expected.to_string().contains("`billing`"));
    let empty = Handlers::builder().on("", ok("a")).build().unwrap_err();
    assert_eq!(empty, HandlersError::EmptyKey("order.placed"));
}

/// Entries and deliveries with a former name of a message type are decoded as that type.
#[tokio::test]
async fn a_former_type_name_still_finds_its_handler() {
    let (seen, mut received) = mpsc::unbounded_channel();
    let handlers = Handlers::builder()
        .on("seen", move |message: Placed, delivery: Arc<Envelope>| {
            seen.send((message, delivery.id)).unwrap();
            async { Ok(()) }
        })
        .build()
        .unwrap();
    let mut message = placed();
    message.message_type = "OrderPlaced".into();
    let id = message.id;
    assert_eq!(outcome(&handlers, message).await, Outcome::Delivered);
    assert_eq!(received.recv().await, Some((Placed { order: "o-1".into() }, id)));
    assert_eq!(handlers.via("OrderPlaced"), Some(HANDLERS));
    assert_eq!(handlers.via("order.paid"), None);
    assert!(handlers.serves(Some(HANDLERS)) && !handlers.serves(None));
}

/// P2: the delivery of a message that no handler receives fails visibly.
#[tokio::test]
async fn an_unhandled_message_fails_visibly() {
    let handlers = Handlers::builder().build().unwrap();
    let text = transient(outcome(&handlers, placed()).await);
    assert!(text.contains("no handler for type `order.placed`"), "{text}");
}

#[tokio::test]
async fn a_permanent_failure_waits_for_other_handlers() {
    let calls = Calls::default();
    let permanent_one = || Err(HandlerError::permanent("never"));
    let alone = Handlers::builder()
        .on("works", calls.then("works", || Ok(())))
        .on("never", calls.then("never", permanent_one))
        .build()
        .unwrap();
    assert_eq!(permanent(outcome(&alone, placed()).await), "handler `never`: never");
    let beside = Handlers::builder()
        .on("never", calls.then("never", permanent_one))
        .on("later", calls.then("later", || Err(HandlerError::transient("later"))))
        .build()
        .unwrap();
    let text = transient(outcome(&beside, placed()).await);
    assert_eq!(text, "handler `never`: never; handler `later`: later");
}

/// The error text gives the reason, and contains neither the payload nor a secret.
#[tokio::test]
async fn an_undecodable_payload_fails_permanently_without_being_quoted() {
    let calls = Calls::default();
    let handlers = Handlers::builder().on("works", calls.then("works", || Ok(()))).build().unwrap();
    for (payload, told) in [
        (doc! { "s3cret": "s3cret" }.into(), "missing field `order`"),
        (doc! { "order": { "s3cret, expected s3cret": 1 } }.into(), "expected a string"),
        (Bson::from("s3cret"), "expected struct Placed"),
        ((0..1000).fold(Bson::Null, |inner, _| Bson::Array(vec![inner])), "200 levels"),
    ] {
        let mut message = placed();
        message.payload = payload;
        let text = permanent(outcome(&handlers, message).await);
        assert!(text.contains("handler `works`") && text.contains(told), "{text}");
        assert!(!text.contains("s3cret"), "{text}");
    }
    assert_eq!(calls.of("works"), 0);
}

#[tokio::test]
async fn an_error_from_a_handler_is_transient_with_cause() {
    #[derive(Debug, thiserror::Error)]
    #[error("the mail was not sent")]
    struct Unsent(#[source] std::num::ParseIntError);
    let handlers = Handlers::builder()
        .on("mail", |message: Placed, _| async move {
            message.order.parse::<i32>().map_err(Unsent)?;
            Ok(())
        })
        .build()
        .unwrap();
    let text = transient(outcome(&handlers, placed()).await);
    assert_eq!(text, "handler `mail`: the mail was not sent: invalid digit found in string");
}

#[tokio::test]
async fn cut_errors_still_name_every_handler() {
    let calls = Calls::default();
    let long = || Err(HandlerError::transient("☃".repeat(1000)));
    let handlers = Handlers::builder()
        .on("first", calls.then("first", long))
        .on("second", calls.then("second", long))
        .build()
        .unwrap();
    let text = transient(outcome(&handlers, placed()).await);
    assert!(text.contains("`first`") && text.contains("`second`") && text.len() < 1024, "{}", text.len());
}

#[tokio::test]
async fn dropping_a_delivery_aborts_its_handlers() {
    let (started, mut has_started) = mpsc::unbounded_channel();
    let handlers = Handlers::builder()
        .on("waits", move |_: Placed, _| {
            let started = started.clone();
            async move {
                let (alive, dead) = oneshot::channel::<()>();
                started.send(dead).unwrap();
                let () = std::future::pending().await;
                drop(alive);
                Ok(())
            }
        })
        .build()
        .unwrap();
    let delivery = tokio::spawn(async move { handlers.deliver(&[placed(), placed()]).await });
    let dead = [has_started.recv().await.unwrap(), has_started.recv().await.unwrap()];
    delivery.abort();
    for dead in dead {
        assert!(soon("the handler's end", dead).await.is_err());
    }
}

// --- the router ------------------------------------------------------------------------------------------------------

/// A deliverer that delivers and records every message.
#[derive(Clone, Default)]
struct Memory(Arc<Mutex<Vec<Uuid>>>);

#[async_trait]
impl Deliver for Memory {
    async fn deliver(&self, window: &[Envelope]) -> Vec<Answer> {
        self.0.lock().unwrap().extend(window.iter().map(|envelope| envelope.id));
        window.iter().map(|_| Outcome::Delivered.into()).collect()
    }
}

/// A deliverer that is always unavailable.
struct Away;

#[async_trait]
impl Deliver for Away {
    async fn deliver(&self, window: &[Envelope]) -> Vec<Answer> {
        window.iter().map(|_| Outcome::Unavailable("away".into()).into()).collect()
    }

    fn is_available(&self) -> bool {
        false
    }

    async fn available(&self) {
        std::future::pending().await
    }
}

fn via(via: Option<&str>) -> Envelope {
    let mut envelope = envelope("any", 1);
    envelope.via = via.map(str::to_owned);
    envelope
}

/// The type of a message decides its destination when the message is saved. The stored `via` decides when
/// the message is delivered.
#[tokio::test]
async fn the_destination_is_decided_once_at_save() {
    let (broker, hook) = (Memory::default(), Memory::default());
    let handlers = Handlers::builder().on("key", |_: Placed, _| async { Ok(()) }).build().unwrap();
    let router = Router::new(broker.clone()).handlers(handlers).route("hook", hook.clone(), ["invoice.sent"]);
    assert_eq!(router.via("order.placed"), Some(HANDLERS));
    assert_eq!(router.via("invoice.sent"), Some("hook"));
    assert_eq!(router.via("anything.else"), None);

    // This message was stored before the type had a handler, so it still goes to the broker.
    let mut earlier = placed();
    earlier.via = None;
    let window = [via(Some("hook")), placed(), earlier, via(None), via(Some("hook"))];
    let answers = router.deliver(&window).await;
    assert!(answers.iter().all(|answer| answer.outcome == Outcome::Delivered));
    assert_eq!(answers[1].delivered_to, ["key"]);
    assert_eq!(*broker.0.lock().unwrap(), [window[2].id, window[3].id]);
    assert_eq!(*hook.0.lock().unwrap(), [window[0].id, window[4].id]);
}

/// A message whose `via` no route serves is left in its document, and never goes to another destination.
#[tokio::test]
async fn a_message_for_an_unknown_route_is_not_delivered() {
    let broker = Memory::default();
    let router = Router::new(broker.clone());
    assert!(router.serves(None) && !router.serves(Some("hook")));
    let text = transient(outcome(&router, via(Some("hook"))).await);
    assert!(text.contains("no route for messages with via `hook`"), "{text}");
    assert!(broker.0.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_broker_outage_spares_the_other_destinations() {
    let router = Router::new(Away).route("hook", Memory::default(), ["any"]);
    assert!(router.is_available());
    soon("availability", router.available()).await;
    let answers = router.deliver(&[via(None), via(Some("hook"))]).await;
    assert_eq!(answers[0].outcome, Outcome::Unavailable("away".into()));
    assert_eq!(answers[1].outcome, Outcome::Delivered);
    assert!(!Router::new(Away).route("hook", Away, ["any"]).is_available());
}

// --- conformance -----------------------------------------------------------------------------------------------------

/// A proxy between a deliverer and its server. The test can cut the connection.
struct Proxy {
    address: SocketAddr,
    server: String,
    running: Mutex<Option<JoinHandle<()>>>,
}

impl Proxy {
    async fn start(server: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let running = Mutex::new(Some(tokio::spawn(relay(listener, server.clone()))));
        Self { address, server, running }
    }

    async fn cut(&self) {
        let running = self.running.lock().unwrap().take().unwrap();
        running.abort();
        let _ = running.await;
    }

    async fn mend(&self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        *self.running.lock().unwrap() = Some(tokio::spawn(relay(listener, self.server.clone())));
    }
}

/// The proxy's task. Aborting it ends all connections.
async fn relay(listener: TcpListener, server: String) {
    struct AbortAll(Vec<AbortHandle>);
    impl Drop for AbortAll {
        fn drop(&mut self) {
            self.0.iter().for_each(AbortHandle::abort);
        }
    }
    let mut connections = AbortAll(Vec::new());
    while let Ok((mut near, _)) = listener.accept().await {
        let server = server.clone();
        let connection = tokio::spawn(async move {
            if let Ok(mut far) = TcpStream::connect(server).await {
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            }
        });
        connections.0.push(connection.abort_handle());
    }
}

struct RabbitHarness<'a> {
    scene: &'a Scene,
    rabbit: RabbitMq,
    proxy: Proxy,
    queue: String,
    arrived: Mutex<Vec<Uuid>>,
}

impl<'a> RabbitHarness<'a> {
    async fn start(scene: &'a Scene) -> Self {
        let uri = broker_uri();
        let (front, rest) = uri.split_once('@').unwrap();
        let (server, vhost) = rest.split_once('/').unwrap_or((rest, "%2f"));
        let proxy = Proxy::start(server.to_owned()).await;
        let uri = format!("{front}@{}/{vhost}", proxy.address);
        let rabbit = scene.rabbit_with(scene.settings_at(&uri)).await;
        let queue = scene.bind("accepted").await;
        Self { scene, rabbit, proxy, queue, arrived: Mutex::default() }
    }
}

#[async_trait]
impl Harness for RabbitHarness<'_> {
    fn deliverer(&self) -> &dyn Deliver {
        &self.rabbit
    }

    fn accepted(&self) -> Envelope {
        envelope("accepted", doc! { "order": "o-1" })
    }

    fn rejected(&self) -> Option<Envelope> {
        Some(envelope("unbound", doc! { "order": "o-1" }))
    }

    async fn arrived(&self) -> Vec<Uuid> {
        let ids = self.scene.ids(&self.queue).await;
        let mut arrived = self.arrived.lock().unwrap();
        arrived.extend(ids);
        arrived.clone()
    }

    async fn cut_off(&self) -> bool {
        self.proxy.cut().await;
        let mut states = self.rabbit.subscribe();
        states.wait_for(|state| *state != State::Ready).await.unwrap();
        true
    }

    async fn restore(&self) {
        self.proxy.mend().await;
    }
}

struct Refused;

impl Serialize for Refused {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_unit()
    }
}

impl<'de> Deserialize<'de> for Refused {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        serde::de::IgnoredAny::deserialize(deserializer).map(|_| Self)
    }
}

impl Message for Refused {
    const TYPE: &'static str = "order.refused";
}

/// Handlers that record their messages, and one handler that refuses its messages.
fn remembering(arrived: &Memory) -> Handlers {
    let arrived = arrived.clone();
    Handlers::builder()
        .on("remember", move |_: Placed, delivery: Arc<Envelope>| {
            arrived.0.lock().unwrap().push(delivery.id);
            async { Ok(()) }
        })
        .on("refuse", |_: Refused, _| async { Err(HandlerError::permanent("not wanted")) })
        .build()
        .unwrap()
}

fn refused() -> Envelope {
    let mut envelope = envelope(Refused::TYPE, doc! { "order": "o-1" });
    envelope.via = Some(HANDLERS.to_owned());
    envelope
}

struct HandlersHarness {
    handlers: Handlers,
    arrived: Memory,
}

#[async_trait]
impl Harness for HandlersHarness {
    fn deliverer(&self) -> &dyn Deliver {
        &self.handlers
    }

    fn accepted(&self) -> Envelope {
        placed()
    }

    fn rejected(&self) -> Option<Envelope> {
        Some(refused())
    }

    async fn arrived(&self) -> Vec<Uuid> {
        self.arrived.0.lock().unwrap().clone()
    }
}

/// A harness for the router. Its messages alternate between the two routes.
struct RouterHarness<'a> {
    router: Router,
    broker: RabbitHarness<'a>,
    handled: Memory,
    turn: AtomicUsize,
}

#[async_trait]
impl Harness for RouterHarness<'_> {
    fn deliverer(&self) -> &dyn Deliver {
        &self.router
    }

    fn accepted(&self) -> Envelope {
        match self.turn.fetch_add(1, Ordering::Relaxed) % 2 {
            0 => placed(),
            _ => self.broker.accepted(),
        }
    }

    fn rejected(&self) -> Option<Envelope> {
        match self.turn.fetch_add(1, Ordering::Relaxed) % 2 {
            0 => Some(refused()),
            _ => self.broker.rejected(),
        }
    }

    async fn arrived(&self) -> Vec<Uuid> {
        let mut arrived = self.broker.arrived().await;
        arrived.extend(self.handled.0.lock().unwrap().iter());
        arrived
    }
}

struct WebhookHarness {
    webhook: webhook::Webhook,
    taken: mpsc::UnboundedSender<String>,
    ids: Mutex<(mpsc::UnboundedReceiver<String>, Vec<Uuid>)>,
    receiver: Mutex<Option<JoinHandle<()>>>,
}

impl WebhookHarness {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let webhook = webhook::Webhook { receiver: listener.local_addr().unwrap() };
        let (taken, ids) = mpsc::unbounded_channel();
        let receiver = Mutex::new(Some(webhook::receive(listener, taken.clone())));
        Self { webhook, taken, ids: Mutex::new((ids, Vec::new())), receiver }
    }
}

#[async_trait]
impl Harness for WebhookHarness {
    fn deliverer(&self) -> &dyn Deliver {
        &self.webhook
    }

    fn accepted(&self) -> Envelope {
        envelope("order.placed", doc! { "order": "o-1" })
    }

    fn rejected(&self) -> Option<Envelope> {
        Some(envelope("order.refused", doc! { "order": "o-1" }))
    }

    async fn arrived(&self) -> Vec<Uuid> {
        let (receiver, arrived) = &mut *self.ids.lock().unwrap();
        while let Ok(id) = receiver.try_recv() {
            arrived.push(Uuid::parse_str(&id).unwrap());
        }
        arrived.clone()
    }

    async fn cut_off(&self) -> bool {
        let receiver = self.receiver.lock().unwrap().take().unwrap();
        receiver.abort();
        let _ = receiver.await;
        true
    }

    async fn restore(&self) {
        let listener = TcpListener::bind(self.webhook.receiver).await.unwrap();
        *self.receiver.lock().unwrap() = Some(webhook::receive(listener, self.taken.clone()));
    }
}

#[tokio::test]
async fn rabbitmq_keeps_the_promises_of_a_deliverer() {
    scene(async |scene| conformance::check(&RabbitHarness::start(scene).await).await).await;
}

#[tokio::test]
async fn handlers_keep_the_promises_of_a_deliverer() {
    let arrived = Memory::default();
    let handlers = remembering(&arrived);
    soon("the suite", conformance::check(&HandlersHarness { handlers, arrived })).await;
}

#[tokio::test]
async fn a_router_keeps_the_promises_of_a_deliverer() {
    scene(async |scene| {
        let broker = RabbitHarness::start(scene).await;
        let handled = Memory::default();
        let router = Router::new(broker.rabbit.clone()).handlers(remembering(&handled));
        let turn = AtomicUsize::new(0);
        conformance::check(&RouterHarness { router, broker, handled, turn }).await;
    })
    .await;
}

#[tokio::test]
async fn the_webhook_example_keeps_the_promises_of_a_deliverer() {
    soon("the suite", conformance::check(&WebhookHarness::start().await)).await;
}

/// A flaw that a deliverer can have.
#[derive(Clone, Copy, Debug)]
enum Flaw {
    None,
    AnswersTooFew,
    AnswersInReverse,
    ClaimsDelivered,
    ClaimsRejected,
    FailsTogether,
    RefusesRepeats,
    Panics,
    Hangs,
    Quotes,
    SaysNothing,
    ChargesForOutages,
    NeverRecovers,
    LeaksWhenDropped,
    ServesEverything,
}

/// A deliverer with one flaw, over a receiver that rejects `bad`.
struct Flawed {
    flaw: Flaw,
    memory: Memory,
    cut: Mutex<bool>,
    under_way: AtomicUsize,
}

#[async_trait]
impl Deliver for Flawed {
    async fn deliver(&self, window: &[Envelope]) -> Vec<Answer> {
        let odd = |envelope: &Envelope| envelope.payload != Bson::from(1);
        let away = || match self.flaw {
            Flaw::ChargesForOutages => Outcome::Transient("away".into()),
            _ => Outcome::Unavailable("away".into()),
        };
        if *self.cut.lock().unwrap() {
            return window.iter().map(|_| away().into()).collect();
        }
        if matches!(self.flaw, Flaw::LeaksWhenDropped) {
            if self.under_way.fetch_add(1, Ordering::Relaxed) > 8 {
                return window.iter().map(|_| Outcome::Transient("busy".into()).into()).collect();
            }
            tokio::task::yield_now().await;
            self.under_way.fetch_sub(1, Ordering::Relaxed);
        }
        if matches!(self.flaw, Flaw::Panics) && window.iter().any(odd) {
            panic!("what a payload");
        }
        if matches!(self.flaw, Flaw::Hangs) && window.len() > 40 {
            std::future::pending().await
        }
        let rejected = |envelope: &Envelope| match self.flaw {
            Flaw::ClaimsRejected => false,
            Flaw::FailsTogether => window.iter().any(|envelope| envelope.message_type == "bad"),
            Flaw::RefusesRepeats => envelope.message_type == "bad" || envelope.attempts > 0,
            Flaw::Quotes | Flaw::SaysNothing => envelope.message_type == "bad" || odd(envelope),
            _ => envelope.message_type == "bad",
        };
        let reason = |envelope: &Envelope| match self.flaw {
            Flaw::Quotes => format!("not {}", envelope.payload),
            Flaw::SaysNothing => " ".to_owned(),
            _ => "not wanted".to_owned(),
        };
        let one = |envelope: &Envelope| match rejected(envelope) {
            true => Answer::from(Outcome::Transient(reason(envelope))),
            false => Outcome::Delivered.into(),
        };
        if !matches!(self.flaw, Flaw::ClaimsDelivered) {
            let taken = window.iter().filter(|envelope| envelope.message_type != "bad");
            self.memory.0.lock().unwrap().extend(taken.map(|envelope| envelope.id));
        }
        let mut answers: Vec<_> = window.iter().map(one).collect();
        match self.flaw {
            Flaw::AnswersTooFew => drop(answers.pop()),
            Flaw::AnswersInReverse => answers.reverse(),
            _ => {}
        }
        answers
    }

    fn serves(&self, via: Option<&str>) -> bool {
        via.is_none() || matches!(self.flaw, Flaw::ServesEverything)
    }
}

#[async_trait]
impl Harness for Flawed {
    fn deliverer(&self) -> &dyn Deliver {
        self
    }

    fn accepted(&self) -> Envelope {
        envelope("good", 1)
    }

    fn rejected(&self) -> Option<Envelope> {
        Some(envelope("bad", 1))
    }

    async fn arrived(&self) -> Vec<Uuid> {
        self.memory.0.lock().unwrap().clone()
    }

    async fn cut_off(&self) -> bool {
        *self.cut.lock().unwrap() = true;
        true
    }

    async fn restore(&self) {
        *self.cut.lock().unwrap() = matches!(self.flaw, Flaw::NeverRecovers);
    }
}

/// Returns the suite's complaint about a deliverer with this flaw, or `None` if the deliverer passes.
async fn verdict(flaw: Flaw) -> Option<String> {
    let flawed =
        Flawed { flaw, memory: Memory::default(), cut: Mutex::default(), under_way: AtomicUsize::default() };
    let checked = AssertUnwindSafe(conformance::check(&flawed)).catch_unwind().await;
    checked.err().map(|panic| *panic.downcast::<String>().unwrap())
}

/// `conformance::check` tests the guarantees of the trait `Deliver`.
#[tokio::test(start_paused = true)]
async fn the_suite_finds_exactly_the_flawed_deliverers() {
    assert_eq!(verdict(Flaw::None).await, None);
    for (flaw, guarantee) in [
        (Flaw::AnswersTooFew, "one answer per message"),
        (Flaw::AnswersInReverse, "answers keep the window's order"),
        (Flaw::ClaimsDelivered, "`Delivered` only if the receiver has the message"),
        (Flaw::ClaimsRejected, "answers keep the window's order"),
        (Flaw::FailsTogether, "answers keep the window's order"),
        (Flaw::RefusesRepeats, "a message can be delivered again"),
        (Flaw::Panics, "the deliverer does not panic"),
        (Flaw::Hangs, "the deliverer does not wait forever"),
        (Flaw::Quotes, "error texts give the reason"),
        (Flaw::SaysNothing, "error texts give the reason"),
        (Flaw::NeverRecovers, "the deliverer becomes available again"),
        (Flaw::LeaksWhenDropped, "the deliverer is usable after a delivery was dropped halfway"),
        (Flaw::ChargesForOutages, "no attempt is counted while the deliverer is unavailable"),
        (Flaw::ServesEverything, "the deliverer serves the `via`"),
    ] {
        let verdict = verdict(flaw).await.unwrap_or_else(|| panic!("{flaw:?} goes unnoticed"));
        assert!(verdict.starts_with(guarantee), "{flaw:?}: {verdict}");
    }
}
