//! What the broker's answer to a message means for that message.

use crate::{amqp::Published, deliver::Outcome};

/// The meaning of the broker's answer for a message, unless an unroutable one of its type is accepted.
pub fn outcome(published: Published, message_type: &str, exchange: &str) -> Outcome {
    match published {
        Published::Confirmed => Outcome::Delivered,
        Published::Unroutable { code, text } => Outcome::Unroutable(format!(
            "unroutable: no queue is bound for `{message_type}` at exchange `{exchange}` ({code} {text})"
        )),
        Published::Nacked => Outcome::Transient(format!(
            "RabbitMQ refused `{message_type}`: a queue bound to exchange `{exchange}` is full or cannot be written"
        )),
        Published::Rejected { reason } => {
            Outcome::Transient(format!("RabbitMQ refused `{message_type}`: {reason}"))
        }
        Published::Refused { reason } => Outcome::Permanent(reason),
        Published::Unavailable { reason, .. } => Outcome::Unavailable(reason),
    }
}
