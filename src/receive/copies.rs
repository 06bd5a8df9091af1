//! The copies of a message that go to the dead-letter queue and to the delay queue.
//!
//! A copy has the body, the type, the id, the content type and the time. A copy also has those headers that are
//! strings, numbers or booleans, converted to text. A copy lacks other properties, such as `correlation_id`.
//!
//! | header of a dead message | content |
//! |---|---|
//! | `outbox-dead-reason` | `permanent`, `undecodable`, `attempts_exhausted` or `unknown_type` |
//! | `outbox-dead-error` | the error text, at most 1 KiB, without any part of the body |
//! | `outbox-dead-at` | the time of death in RFC 3339, by the clock of the receiver |
//! | `outbox-dead-queue` | the queue that the message was received from |
//! | `outbox-exchange`, `outbox-routing-key` | the address that the message was published to |
//! | `outbox-delays` | the number of times that the message waited in the delay queue |

use std::time::Duration;

use mongodb::bson::DateTime;

use crate::{
    amqp::{Delivery, Publication},
    deliver::{cloudevents::is_of_the_broker, json::rfc3339},
    encoding::one_line::{Keep, one_line},
    receive::{
        decide::DeadCause,
        message::ReceivedMessage,
        read_delivery::{DEAD_AT, DEAD_ERROR, DEAD_QUEUE, DEAD_REASON, DELAYS, OWN, ROUTED_BY, SENT_TO},
    },
};

/// The longest error text in a header, in bytes.
const LONGEST_ERROR: usize = 1024;

/// The copy of a message for its dead-letter queue.
pub(super) fn dead(
    delivery: &Delivery,
    message: &ReceivedMessage,
    queues: (&str, &str),
    cause: DeadCause,
    error: &str,
) -> Publication {
    let (from, to) = queues;
    let mut copy = copy(delivery, message, to, message.delays);
    let error = one_line(&error[..error.floor_char_boundary(LONGEST_ERROR)], Keep::Nothing).into_owned();
    let mut add = |name: &str, value: String| copy.headers.push((name.to_owned(), value));
    add(DEAD_REASON, cause.as_str().to_owned());
    add(DEAD_ERROR, error);
    add(DEAD_AT, rfc3339(DateTime::now()).unwrap_or_default());
    add(DEAD_QUEUE, from.to_owned());
    copy
}

/// The copy of a message for its delay queue. The broker returns the copy after this time.
pub(super) fn delayed(
    delivery: &Delivery,
    message: &ReceivedMessage,
    to: &str,
    delays: u32,
    delay: Duration,
) -> Publication {
    let mut copy = copy(delivery, message, to, delays);
    copy.expiration = Some(delay);
    copy
}

fn copy(delivery: &Delivery, message: &ReceivedMessage, to: &str, delays: u32) -> Publication {
    // RabbitMQ interprets the headers `CC` and `BCC` as lists of routing keys.
    let is_kept =
        |name: &str| !OWN.contains(&name) && !is_of_the_broker(name) && !matches!(name, "CC" | "BCC");
    let mut headers: Vec<(String, String)> =
        delivery.headers.iter().filter(|(name, _)| is_kept(name)).cloned().collect();
    headers.push((SENT_TO.to_owned(), message.exchange.clone()));
    headers.push((ROUTED_BY.to_owned(), message.routing_key.clone()));
    headers.push((DELAYS.to_owned(), delays.to_string()));

    Publication {
        // The default exchange routes by the queue's name.
        exchange: String::new(),
        routing_key: to.to_owned(),
        message_id: delivery.message_id.clone().unwrap_or_else(|| uuid::Uuid::now_v7().to_string()),
        message_type: delivery.message_type.clone(),
        content_type: message.content_type.clone().unwrap_or_default(),
        headers,
        body: message.body.clone(),
        timestamp: delivery.timestamp,
        expiration: None,
    }
}
