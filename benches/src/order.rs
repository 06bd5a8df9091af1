//! The documents and messages of the measurements: an order of a chosen size, and a message of about 200 bytes.

use document_outbox::{Aggregate, Message, Outbox};
use mongodb::bson::{DateTime, Uuid};
use serde::{Deserialize, Serialize};

/// The aggregate. Every save changes one of its fields.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Order {
    #[serde(rename = "_id")]
    pub(crate) id: String,
    pub(crate) total: i64,
    pub(crate) lines: Vec<Line>,
    #[serde(skip)]
    pub(crate) outbox: Outbox,
}

/// A line of an order, about 100 bytes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Line {
    sku: String,
    name: String,
    quantity: i32,
    price: i64,
}

/// The message, about 200 bytes of JSON.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Changed {
    pub(crate) order: String,
    pub(crate) total: i64,
    /// The time at which the message should have been sent, in µs since the suite started.
    pub(crate) at: i64,
    note: String,
}

impl Message for Changed {
    const TYPE: &'static str = "order.changed";
}

impl Aggregate for Order {
    type Id = String;
    fn id(&self) -> &String {
        &self.id
    }
    fn outbox(&mut self) -> &mut Outbox {
        &mut self.outbox
    }
}

impl Order {
    /// Creates an order of about `bytes` bytes.
    pub(crate) fn new(id: String, bytes: usize) -> Self {
        let line = |n: usize| Line {
            sku: format!("SKU-{n:08}"),
            name: "a thing that somebody has ordered".into(),
            quantity: 1,
            price: 1_999,
        };
        let lines = (0..bytes.saturating_sub(60) / BYTES_OF_A_LINE).map(line).collect();
        Self { id, total: 0, lines, outbox: Outbox::default() }
    }

    /// Changes the order without sending messages through an outbox.
    pub(crate) fn change(&mut self, at: i64) -> Changed {
        self.total += 1;
        Changed { order: self.id.clone(), total: self.total, at, note: "n".repeat(120) }
    }

    /// Changes the order and sends `messages` messages.
    pub(crate) fn send(&mut self, at: i64, messages: usize) {
        let message = self.change(at);
        for _ in 0..messages {
            self.outbox.send(message.clone());
        }
    }
}

const BYTES_OF_A_LINE: usize = 107;

/// The document with its messages, as the library stores it. The raw write writes the same bytes.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Stored {
    #[serde(rename = "_id")]
    pub(crate) id: String,
    pub(crate) total: i64,
    lines: Vec<Line>,
    etag: Uuid,
    outbox: Vec<StoredEntry>,
}

#[derive(Debug, Clone, Serialize)]
struct StoredEntry {
    id: Uuid,
    #[serde(rename = "type")]
    message_type: &'static str,
    payload: Changed,
    created_at: DateTime,
    available_at: DateTime,
    claimed_by: String,
}

impl Stored {
    pub(crate) fn new(mut order: Order, messages: usize) -> Self {
        let payload = order.change(0);
        let entry = || StoredEntry {
            id: Uuid::from_bytes(uuid::Uuid::now_v7().into_bytes()),
            message_type: Changed::TYPE,
            payload: payload.clone(),
            created_at: DateTime::now(),
            available_at: DateTime::now(),
            claimed_by: format!("pid-10000/{}", uuid::Uuid::new_v4()),
        };
        let outbox = (0..messages).map(|_| entry()).collect();
        Self { id: order.id, total: order.total, lines: order.lines, etag: Uuid::new(), outbox }
    }

    /// Changes the document. The server would skip a write without changes and answer several times as fast.
    pub(crate) fn change(&mut self) {
        self.total += 1;
        self.etag = Uuid::new();
    }
}
