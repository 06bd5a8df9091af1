//! Tests the AsyncAPI document of an application's messages: against the official schema of AsyncAPI 3.0, and against
//! messages as they are published.

use std::collections::HashMap;

use crate::support::{Order, Recorder, TestDatabase};
use document_outbox::{
    InlineDispatcher, Message, Mode,
    amqp::Publication,
    asyncapi::{AsyncApi, Protocol},
    deliver::{
        PayloadFormat,
        cloudevents::{AttributePrefix, publication},
    },
};
use mongodb::bson::oid::ObjectId;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

#[derive(Serialize, Deserialize, schemars::JsonSchema)]
struct Line {
    sku: String,
    quantity: u32,
    note: Option<String>,
}

#[derive(Serialize, Deserialize, schemars::JsonSchema, Message)]
#[message(type = "order.placed", alias = "OrderPlaced", schema = "https://example.test/placed.json")]
struct OrderPlaced {
    order: String,
    lines: Vec<Line>,
    prices: HashMap<u32, f64>,
    #[schemars(with = "String")]
    customer: ObjectId,
    #[serde(rename = "placedBy", skip_serializing_if = "Option::is_none")]
    placed_by: Option<uuid::Uuid>,
}

#[derive(Serialize, Deserialize, schemars::JsonSchema, Message)]
#[message(prefix = "payment")]
enum Payment {
    Arrived { order: String, line: Line },
    Failed(String),
}

/// A type whose name has characters that keys of the document can't have.
#[derive(Serialize, Deserialize, Message)]
#[message(type = "odd: type/1")]
struct Odd(i64);

fn placed() -> OrderPlaced {
    let line = Line { sku: "a".into(), quantity: 2, note: None };
    OrderPlaced {
        order: "o-1".into(),
        lines: vec![line],
        prices: HashMap::from([(7, 1.5)]),
        customer: ObjectId::new(),
        placed_by: Some(uuid::Uuid::now_v7()),
    }
}

fn arrived() -> Payment {
    let line = Line { sku: "a".into(), quantity: 2, note: Some("n".into()) };
    Payment::Arrived { order: "o-1".into(), line }
}

fn described() -> AsyncApi {
    AsyncApi::new("Orders", "1.0.0")
        .description("Takes *orders*.")
        .server("production", "rabbitmq.example:5671", Protocol::Amqps)
        .exchange("shop.messages")
}

#[track_caller]
fn assert_valid(schema: &Value, instance: &Value) {
    let validator = jsonschema::validator_for(schema).expect("the schema is valid");
    let errors: Vec<_> =
        validator.iter_errors(instance).map(|error| format!("{}: {error}", error.instance_path())).collect();
    assert!(errors.is_empty(), "{errors:#?}\n{instance:#}");
}

/// The official schema, from the npm package `@asyncapi/specs`.
fn official_schema() -> Value {
    serde_json::from_str(include_str!("../fixtures/asyncapi-3.0.0/schema.json")).unwrap()
}

#[test]
fn a_document_is_valid_asyncapi() {
    let documents = [
        AsyncApi::new("Nothing", "0").document(),
        described().sends::<Odd>().receives::<OrderPlaced>("orders: all").document(),
        described()
            .attribute_prefix(AttributePrefix::Underscore)
            .sends_with_schema::<OrderPlaced>()
            .sends_with_schema::<Payment>()
            .receives_with_schema::<Payment>("orders.payments")
            .receives::<OrderPlaced>("orders.payments")
            .document(),
    ];
    for document in documents {
        assert_valid(&official_schema(), &document);
        assert_references_lead_somewhere(&document, &document);
    }
}

fn assert_references_lead_somewhere(document: &Value, part: &Value) {
    match part {
        Value::Object(fields) => {
            if let Some(Value::String(reference)) = fields.get("$ref") {
                let path = reference.strip_prefix('#').unwrap();
                assert!(document.pointer(path).is_some(), "{reference}\n{document:#}");
            }
            fields.values().for_each(|field| assert_references_lead_somewhere(document, field));
        }
        Value::Array(items) => items.iter().for_each(|item| assert_references_lead_somewhere(document, item)),
        _ => {}
    }
}

#[test]
fn channels_name_exchanges_routing_keys_and_queues() {
    let document = described().sends::<Payment>().sends::<Odd>().receives::<OrderPlaced>("orders").document();
    let channels = &document["channels"];
    assert_eq!(channels["payment.arrived"]["address"], "payment.arrived");
    assert_eq!(channels["payment.failed"]["bindings"]["amqp"]["exchange"]["name"], "shop.messages");
    assert_eq!(channels["odd_x3a__x20_type_x2f_1"]["address"], "odd: type/1");
    assert_eq!(channels["queue.orders"]["bindings"]["amqp"]["queue"]["name"], "orders");

    let operations = &document["operations"];
    assert_eq!(operations["send.payment.failed"]["action"], "send");
    assert_eq!(
        operations["receive.orders"]["messages"],
        json!([{ "$ref": "#/channels/queue.orders/messages/order.placed" }])
    );
    let message = &document["components"]["messages"]["order.placed"];
    assert_eq!(message["description"], "Former names: `OrderPlaced`.");
    assert_eq!(
        message["headers"]["properties"]["cloudEvents:dataschema"]["const"],
        "https://example.test/placed.json"
    );
}

/// Sends these messages, and returns them as they are published.
async fn published(prefix: AttributePrefix) -> Vec<Publication> {
    let test = TestDatabase::create().await;
    let recorder = Recorder::default();
    let inline = InlineDispatcher::builder(&test.client).mode(Mode::Await).deliver_to(recorder.clone());
    let mut order = Order::new("o-1");
    order.outbox.send(placed()).header("tenant", "north");
    order.outbox.send(arrived());
    order.outbox.send(Payment::Failed("declined".into()));
    test.store(&inline).insert(order).await.unwrap().applied().unwrap();
    let envelopes = recorder.wait_delivered(3).await;
    test.drop().await;
    let publications =
        envelopes.iter().map(|envelope| publication(envelope, "shop.messages", PayloadFormat::Json, prefix));
    publications.collect::<Result<_, _>>().unwrap()
}

#[tokio::test]
async fn a_published_message_fits_its_description() {
    for prefix in [AttributePrefix::Colon, AttributePrefix::Underscore] {
        let document = described()
            .attribute_prefix(prefix)
            .sends_with_schema::<OrderPlaced>()
            .sends_with_schema::<Payment>()
            .document();
        let messages = published(prefix).await;
        assert_eq!(messages.len(), 3);
        for message in messages {
            assert_eq!(document["channels"][&message.routing_key]["address"], *message.routing_key);
            let described = &document["components"]["messages"][&message.routing_key];
            let headers: HashMap<_, _> = message.headers.into_iter().collect();
            assert_valid(&described["headers"], &json!(headers));

            // The payload's schema refers to the components of the document.
            let mut schema = described["payload"].clone();
            schema["components"] = document["components"].clone();
            let body: Value = serde_json::from_slice(&message.body).unwrap();
            assert_valid(&schema, &body);
            let validator = jsonschema::validator_for(&schema).unwrap();
            assert!(!validator.is_valid(&json!({ "order": 1 })), "{schema:#}");
        }
    }
}
