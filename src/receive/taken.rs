//! A message that was taken from the queue and is not settled.

use std::sync::Arc;

use tokio::time::Instant;

use crate::{
    amqp::Delivery,
    receive::{
        event::MessageName,
        intake::{MessageIntake, PrefetchRoom},
        message::ReceivedMessage,
    },
};

/// A message, and the right to settle it. If this value is dropped, the broker delivers the message again.
pub(super) struct TakenMessage {
    pub(super) delivery: Delivery,
    pub(super) message: Arc<ReceivedMessage>,
    pub(super) key: Option<String>,
    pub(super) name: MessageName,
    held: HeldBytes,
}

/// The bytes of a message, which are counted as held until this value is dropped.
struct HeldBytes {
    intake: Arc<MessageIntake>,
    bytes: usize,
}

impl TakenMessage {
    pub(super) fn read(mut delivery: Delivery, intake: &Arc<MessageIntake>) -> (Self, PrefetchRoom) {
        let message = ReceivedMessage::read(&mut delivery);
        let bytes = message.body.len();
        let room = intake.took(bytes, Instant::now());
        let taken = Self {
            delivery,
            key: message.key(),
            name: MessageName {
                id: message.id,
                message_type: message.message_type.clone(),
                subject: message.subject.clone(),
            },
            message: Arc::new(message),
            held: HeldBytes { intake: intake.clone(), bytes },
        };
        (taken, room)
    }

    /// Acknowledges the message. If the connection is lost, the broker delivers the message again.
    pub(super) async fn ack(self) -> MessageName {
        let Self { delivery, name, held, .. } = self;
        delivery.ack().await;
        drop(held);
        name
    }

    /// Rejects the message without requeueing it.
    pub(super) async fn reject(self) -> MessageName {
        let Self { delivery, name, held, .. } = self;
        delivery.reject().await;
        drop(held);
        name
    }

    /// The id by which the order of the key is kept. A message without an id has no place in that order.
    pub(super) fn id(&self) -> Option<String> {
        self.message.id.map(|id| id.to_string())
    }
}

impl Drop for HeldBytes {
    fn drop(&mut self) {
        self.intake.released(self.bytes);
    }
}
