//! What the broker's answer to a message means for that message.

use crate::{amqp::Published, deliver::Outcome};

/// Returns the outcome of a message from the broker's answer. The caller decides whether an unroutable message of this
/// type counts as delivered.
pub fn outcome(published: Published, message_type: &str, exchange: &str) -> Outcome {
    match published {
        Published::Confirmed => Outcome::Delivered,
        Published::Unroutable { code, text } => Outcome::Unroutable(format!(
            "unroutable: no queue is bound for `{message_type}` at exchange `{exchange}` ({code} {text})"
        )),
        Published::Nacked => Outcome::Transient(format!(
            "RabbitMQ refused `{message_type}`: a queue bound to exchange `{exchange}` is full, or it cannot be written to"
        )),
        Published::Rejected { reason } => {
            Outcome::Transient(format!("RabbitMQ refused `{message_type}`: {reason}"))
        }
        Published::Refused { reason } => Outcome::Permanent(reason),
        Published::Unavailable { reason, .. } => Outcome::Unavailable(reason),
    }
}
