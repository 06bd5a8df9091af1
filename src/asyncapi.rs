//! Describes an application's messages as an [AsyncAPI] 3.0 document.
//!
//! ```
//! # use document_outbox::{Message, asyncapi::AsyncApi};
//! # #[derive(serde::Serialize, serde::Deserialize, Message)]
//! # #[message(type = "order.paid")]
//! # struct OrderPaid { order: String }
//! # #[derive(serde::Serialize, serde::Deserialize, Message)]
//! # #[message(type = "payment.arrived")]
//! # struct PaymentArrived { order: String }
//! let document = AsyncApi::new("Orders", "1.0.0")
//!     .sends::<OrderPaid>()
//!     .receives::<PaymentArrived>("orders.payments")
//!     .document();
//! assert_eq!(document["channels"]["order.paid"]["address"], "order.paid");
//! println!("{document:#}"); // JSON
//! ```
//!
//! The document has a channel for each type of message that the application sends, with the exchange and the routing key,
//! and a channel for each queue that it receives from. Each message has the headers of CloudEvents in binary mode, as
//! [`cloudevents`](crate::deliver::cloudevents) writes them.
//!
//! With the feature `schemars`, `sends_with_schema` and `receives_with_schema` also describe the payloads.
//!
//! [AsyncAPI]: https://www.asyncapi.com/docs/reference/specification/v3.0.0

use std::{collections::BTreeMap, fmt::Write};

use serde_json::{Map, Value, json};

use crate::{
    aggregate::message::Message,
    deliver::{MESSAGES_EXCHANGE, cloudevents::AttributePrefix},
};

/// The version of the bindings for AMQP 0-9-1.
const BINDING_VERSION: &str = "0.3.0";

/// Collects the messages that an application sends and receives, and writes the document.
#[derive(Debug)]
pub struct AsyncApi {
    info: Map<String, Value>,
    servers: Map<String, Value>,
    exchange: String,
    prefix: AttributePrefix,
    sent: Vec<Described>,
    /// The messages that are received from each queue.
    received: BTreeMap<String, Vec<Described>>,
    #[cfg(feature = "schemars")]
    schemas: schemars::SchemaGenerator,
}

/// One type of message.
#[derive(Debug, Clone)]
struct Described {
    message_type: &'static str,
    /// The former names of the Rust type.
    aliases: &'static [&'static str],
    dataschema: Option<&'static str>,
    payload: Option<Value>,
}

impl AsyncApi {
    /// Begins the document of an application with this title and version.
    #[must_use]
    pub fn new(title: impl Into<String>, version: impl Into<String>) -> Self {
        let mut info = Map::new();
        info.insert("title".into(), title.into().into());
        info.insert("version".into(), version.into().into());
        Self {
            info,
            servers: Map::new(),
            exchange: MESSAGES_EXCHANGE.to_owned(),
            prefix: AttributePrefix::default(),
            sent: Vec::new(),
            received: BTreeMap::new(),
            #[cfg(feature = "schemars")]
            schemas: schema::generator(),
        }
    }

    /// Describes the application, in Markdown.
    #[must_use]
    pub fn description(mut self, text: impl Into<String>) -> Self {
        self.info.insert("description".into(), text.into().into());
        self
    }

    /// Names a broker. `host` is its name with the port, such as `rabbitmq.example:5671`, without a user and a password.
    #[must_use]
    pub fn server(mut self, name: impl Into<String>, host: impl Into<String>, protocol: Protocol) -> Self {
        let server =
            json!({ "host": host.into(), "protocol": protocol.as_str(), "protocolVersion": "0.9.1" });
        self.servers.insert(name.into(), server);
        self
    }

    /// The exchange that messages are published to, as in
    /// [`RabbitMqSettings::exchange`](crate::deliver::RabbitMqSettings::exchange). Default: `outbox.messages`.
    #[must_use]
    pub fn exchange(mut self, name: impl Into<String>) -> Self {
        self.exchange = name.into();
        self
    }

    /// The prefix of the CloudEvents headers, as in
    /// [`RabbitMqSettings::attribute_prefix`](crate::deliver::RabbitMqSettings::attribute_prefix).
    #[must_use]
    pub fn attribute_prefix(mut self, prefix: AttributePrefix) -> Self {
        self.prefix = prefix;
        self
    }

    /// Adds the messages of a Rust type that the application sends.
    #[must_use]
    pub fn sends<M: Message>(mut self) -> Self {
        self.sent.extend(described::<M>(None));
        self
    }

    /// Adds the messages of a Rust type that the application receives from this queue.
    #[must_use]
    pub fn receives<M: Message>(mut self, queue: impl Into<String>) -> Self {
        self.received.entry(queue.into()).or_default().extend(described::<M>(None));
        self
    }

    /// Writes the document.
    #[must_use]
    pub fn document(self) -> Value {
        let mut parts = Parts::default();
        for message in &self.sent {
            self.add_sent(message, &mut parts);
        }
        for (queue, messages) in &self.received {
            self.add_queue(queue, messages, &mut parts);
        }

        let mut components = Map::new();
        components.insert("messages".into(), parts.messages.into());
        #[cfg(feature = "schemars")]
        schema::add_definitions(self.schemas, &mut components);

        let mut document = Map::new();
        document.insert("asyncapi".into(), "3.0.0".into());
        document.insert("info".into(), self.info.into());
        document.insert("defaultContentType".into(), "application/json".into());
        if !self.servers.is_empty() {
            document.insert("servers".into(), self.servers.into());
        }
        document.insert("channels".into(), parts.channels.into());
        document.insert("operations".into(), parts.operations.into());
        document.insert("components".into(), components.into());
        document.into()
    }

    fn add_sent(&self, message: &Described, parts: &mut Parts) {
        let key = self.add_message(message, parts);
        let exchange = json!({ "name": self.exchange, "type": "topic", "durable": true, "autoDelete": false, "vhost": "/" });
        let channel = json!({
            "address": message.message_type,
            "messages": { &key: reference(&["components", "messages", &key]) },
            "bindings": { "amqp": { "is": "routingKey", "exchange": exchange, "bindingVersion": BINDING_VERSION } },
        });
        parts.channels.insert(key.clone(), channel);

        let operation = json!({
            "action": "send",
            "channel": reference(&["channels", &key]),
            "messages": [reference(&["channels", &key, "messages", &key])],
            "bindings": { "amqp": {
                "deliveryMode": 2, "mandatory": true, "timestamp": true, "bindingVersion": BINDING_VERSION,
            } },
        });
        parts.operations.insert(format!("send.{key}"), operation);
    }

    fn add_queue(&self, queue: &str, messages: &[Described], parts: &mut Parts) {
        let channel_key = format!("queue.{}", key_of(queue));
        let (mut of_channel, mut of_operation) = (Map::new(), Vec::new());
        for message in messages {
            let key = self.add_message(message, parts);
            of_operation.push(reference(&["channels", &channel_key, "messages", &key]));
            of_channel.insert(key.clone(), reference(&["components", "messages", &key]));
        }

        let properties =
            json!({ "name": queue, "durable": true, "exclusive": false, "autoDelete": false, "vhost": "/" });
        let channel = json!({
            "address": queue,
            "messages": of_channel,
            "bindings": { "amqp": { "is": "queue", "queue": properties, "bindingVersion": BINDING_VERSION } },
        });
        parts.channels.insert(channel_key.clone(), channel);

        let operation = json!({
            "action": "receive",
            "channel": reference(&["channels", &channel_key]),
            "messages": of_operation,
            "bindings": { "amqp": { "ack": true, "bindingVersion": BINDING_VERSION } },
        });
        parts.operations.insert(format!("receive.{}", key_of(queue)), operation);
    }

    /// Adds a message, and returns its name in the document. A message that is described twice keeps the description
    /// with a payload.
    fn add_message(&self, message: &Described, parts: &mut Parts) -> String {
        let key = key_of(message.message_type);
        let has_payload = parts.messages.get(&key).is_some_and(|there| there.get("payload").is_some());
        if !has_payload {
            parts.messages.insert(key.clone(), self.message(message));
        }
        key
    }

    fn message(&self, message: &Described) -> Value {
        let mut described = Map::new();
        described.insert("name".into(), message.message_type.into());
        if !message.aliases.is_empty() {
            let names = message.aliases.join("`, `");
            described.insert("description".into(), format!("Former names: `{names}`.").into());
        }
        described.insert("contentType".into(), "application/json".into());
        described.insert("headers".into(), self.headers(message));
        if let Some(payload) = &message.payload {
            described.insert("payload".into(), payload.clone());
        }
        let bindings =
            json!({ "amqp": { "messageType": message.message_type, "bindingVersion": BINDING_VERSION } });
        described.insert("bindings".into(), bindings);
        described.into()
    }

    /// The schema of the CloudEvents headers. A message can have further headers, all of which are strings.
    fn headers(&self, message: &Described) -> Value {
        let name = |attribute: &str| [self.prefix.as_str(), attribute].concat();
        let mut properties = Map::new();
        let mut required = Vec::new();
        for (attribute, schema) in [
            ("specversion", json!({ "type": "string", "const": "1.0" })),
            ("id", json!({ "type": "string", "format": "uuid" })),
            ("type", json!({ "type": "string", "const": message.message_type })),
            ("source", json!({ "type": "string", "format": "uri-reference" })),
        ] {
            required.push(Value::from(name(attribute)));
            properties.insert(name(attribute), schema);
        }

        properties.insert(name("subject"), json!({ "type": "string" }));
        properties.insert(name("time"), json!({ "type": "string", "format": "date-time" }));
        if let Some(dataschema) = message.dataschema {
            properties.insert(name("dataschema"), json!({ "type": "string", "const": dataschema }));
        }
        json!({
            "type": "object",
            "properties": properties,
            "required": required,
            "additionalProperties": { "type": "string" },
        })
    }
}

/// How a broker is connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "lowercase")]
#[non_exhaustive]
pub enum Protocol {
    /// AMQP without encryption.
    Amqp,
    /// AMQP over TLS.
    Amqps,
}

impl Protocol {
    /// The name of the protocol in the document.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// The parts of the document that messages are added to.
#[derive(Default)]
struct Parts {
    channels: Map<String, Value>,
    operations: Map<String, Value>,
    messages: Map<String, Value>,
}

/// Describes every type that messages of a Rust type can have.
fn described<M: Message>(payload: Option<&Value>) -> Vec<Described> {
    let mut messages = Vec::with_capacity(M::TYPES.len());
    for message_type in M::TYPES {
        messages.push(Described {
            message_type,
            aliases: M::ALIASES,
            dataschema: M::SCHEMA,
            payload: payload.cloned(),
        });
    }
    messages
}

/// Returns a name as a key of the document, in which only letters, digits, dots, dashes and underscores are allowed.
/// Each other character is written as its number, such as `_x20_` for a space, so that different names have different
/// keys.
fn key_of(name: &str) -> String {
    let mut key = String::with_capacity(name.len());
    let mut characters = name.chars().peekable();
    while let Some(character) = characters.next() {
        let is_allowed = match character {
            // An underscore before an `x` could be mistaken for the beginning of a number.
            '_' => characters.peek() != Some(&'x'),
            other => other.is_ascii_alphanumeric() || other == '.' || other == '-',
        };
        if is_allowed {
            key.push(character);
        } else {
            // Writing to a string can't fail.
            let _ = write!(key, "_x{:x}_", u32::from(character));
        }
    }
    key
}

/// A reference to a part of the document.
fn reference(path: &[&str]) -> Value {
    json!({ "$ref": format!("#/{}", path.join("/")) })
}

#[cfg(feature = "schemars")]
mod schema {
    //! The schemas of payloads.

    use schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings};
    use serde_json::{Map, Value};

    use super::{AsyncApi, described};
    use crate::aggregate::message::Message;

    /// AsyncAPI's own schemas are a superset of this draft of JSON Schema. The schemas describe what serde writes.
    pub(super) fn generator() -> SchemaGenerator {
        let mut settings = SchemaSettings::draft07().for_serialize();
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
        settings.into_generator()
    }

    /// Adds the schemas that payloads refer to.
    pub(super) fn add_definitions(mut generator: SchemaGenerator, components: &mut Map<String, Value>) {
        let definitions = generator.take_definitions(true);
        if !definitions.is_empty() {
            components.insert("schemas".into(), definitions.into());
        }
    }

    impl AsyncApi {
        /// Adds the messages of a Rust type that the application sends, with the schema of their payload.
        ///
        /// The schema is that of the JSON that serde writes. [The body](crate::deliver::json) differs from it only for
        /// bytes, BSON's own types and numbers that are not finite: name the type that is on the wire, for example with
        /// `#[schemars(with = "String")]` for an `ObjectId`.
        #[must_use]
        pub fn sends_with_schema<M: Message + JsonSchema>(mut self) -> Self {
            let payload = Value::from(self.schemas.subschema_for::<M>());
            self.sent.extend(described::<M>(Some(&payload)));
            self
        }

        /// Adds the messages of a Rust type that the application receives from this queue, with the schema of their
        /// payload, as [`sends_with_schema`](Self::sends_with_schema) does.
        #[must_use]
        pub fn receives_with_schema<M: Message + JsonSchema>(mut self, queue: impl Into<String>) -> Self {
            let payload = Value::from(self.schemas.subschema_for::<M>());
            self.received.entry(queue.into()).or_default().extend(described::<M>(Some(&payload)));
            self
        }
    }
}
