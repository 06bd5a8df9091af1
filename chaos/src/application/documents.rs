//! The documents and messages that the applications save.

use document_outbox::{Aggregate, DeliveryOrder, Message, Outbox};
use serde::{Deserialize, Serialize};

/// A document that stores the ids of all messages it ever sent in a field outside its outbox. The harness reads from this field
/// which messages should have arrived.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SavedDocument<const ORDER: u8> {
    #[serde(rename = "_id")]
    pub(super) id: String,
    /// The ids of all messages that the document ever sent, in order.
    pub(super) sent: Vec<String>,
    #[serde(skip)]
    pub(super) outbox: Outbox,
}

pub(super) const ORDERED: u8 = 0;
pub(super) const UNORDERED: u8 = 1;
pub(super) const DEAD_BLOCKS: u8 = 2;

impl<const ORDER: u8> Aggregate for SavedDocument<ORDER> {
    type Id = String;

    const ORDERING: DeliveryOrder = match ORDER {
        UNORDERED => DeliveryOrder::Unordered,
        DEAD_BLOCKS => DeliveryOrder::DeadBlocks,
        _ => DeliveryOrder::Ordered,
    };

    fn id(&self) -> &String {
        &self.id
    }

    fn outbox(&mut self) -> &mut Outbox {
        &mut self.outbox
    }
}

/// The message that a document sends.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Happened {
    document: String,
    number: usize,
    filler: String,
}

impl Message for Happened {
    const TYPE: &'static str = "chaos.happened";
}

impl<const ORDER: u8> SavedDocument<ORDER> {
    pub(super) fn new(id: &str) -> Self {
        Self { id: id.to_owned(), sent: Vec::new(), outbox: Outbox::default() }
    }

    /// Sends one or two messages, some of them with a larger body, and returns their ids.
    pub(super) fn send_some(&mut self) -> Vec<String> {
        let count = if fastrand::u8(0..4) == 0 { 2 } else { 1 };
        let mut ids = Vec::with_capacity(count);
        for _ in 0..count {
            let filler = "x".repeat(if fastrand::u8(0..4) == 0 { fastrand::usize(2_000..8_000) } else { 20 });
            let happened = Happened { document: self.id.clone(), number: self.sent.len(), filler };
            let id = self.outbox.send(happened).id().to_string();
            self.sent.push(id.clone());
            ids.push(id);
        }
        ids
    }
}
