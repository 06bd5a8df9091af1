//! One message to publish, and its outcome.

use std::{fmt, time::Duration};

pub(in crate::amqp) const SHORT_STRING: usize = 255;
/// The headers for sender-selected distribution. RabbitMQ closes the channel if their values are not lists of strings.
const ROUTING_HEADERS: [&str; 2] = ["CC", "BCC"];
static NONE: String = String::new();

/// One message to publish. It is always persistent and mandatory.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Publication {
    /// The exchange. The empty name means the default exchange, which routes by queue name.
    pub exchange: String,
    /// The routing key.
    pub routing_key: String,
    /// Identifies the message within its window, so it should be unique. If two messages have the same id, the second
    /// waits for the next window.
    pub message_id: String,
    /// The AMQP property `type`.
    pub message_type: Option<String>,
    /// The MIME type of the body, such as `application/json`.
    pub content_type: String,
    /// The headers, sent as long strings in this order. If two headers have the same name, the last one wins.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
    /// The AMQP timestamp, in seconds since the Unix epoch.
    pub timestamp: Option<u64>,
    /// The time after which the broker drops a message that no consumer has taken. `None` means never.
    pub expiration: Option<Duration>,
}

/// The outcome of one [`Publication`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Published {
    /// The broker has put the message into at least one queue.
    Confirmed,
    /// The broker has no queue for the message, and returned the message.
    Unroutable {
        /// The broker's reply code, usually 312.
        code: u16,
        /// The broker's reply text, usually `NO_ROUTE`.
        text: String,
    },
    /// The broker refused the message, for example because a full queue rejects messages.
    Nacked,
    /// The broker refused the message by closing the channel or the connection, for example because the user has no
    /// permission to write to this routing key. No queue has the message. The broker may accept it once the cause is
    /// removed.
    Rejected {
        /// The broker's reply code and text.
        reason: String,
    },
    /// The message can never be published in its present form. If possible, the publisher decides this before sending,
    /// because the broker would close the channel or connection that all messages share. Only the broker can decide
    /// whether a body exceeds the broker's own limit.
    Refused {
        /// The reason, as a sentence.
        reason: String,
    },
    /// The broker is unavailable, which is not the message's fault.
    Unavailable {
        /// The reason, as a sentence.
        reason: String,
        /// Whether the broker may have received the message anyway.
        maybe_sent: bool,
    },
}

/// The broker's limits, as far as known.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) body: usize,
    pub(super) frame: usize,
}

impl Publication {
    /// The approximate size of the message in bytes, which limits the size of a window.
    pub(super) fn weight(&self) -> usize {
        self.body.len() + self.header_frame()
    }

    /// Returns the reason why this message can never be published, or `None` if there is no such reason.
    pub(super) fn flaw(&self, limits: Limits) -> Option<String> {
        let shorts = [
            ("exchange", self.exchange.as_str()),
            ("routing key", &self.routing_key),
            ("message id", &self.message_id),
            ("message type", self.message_type.as_deref().unwrap_or_default()),
            ("content type", &self.content_type),
        ];
        let names = self.headers.iter().map(|(name, _)| ("name of a header", name.as_str()));
        for (what, value) in shorts.into_iter().chain(names) {
            if value.len() > SHORT_STRING {
                return Some(format!(
                    "the {what} has {} bytes, but AMQP allows at most {SHORT_STRING}",
                    value.len()
                ));
            }
        }
        if let Some((name, _)) =
            self.headers.iter().find(|(name, _)| ROUTING_HEADERS.contains(&name.as_str()))
        {
            return Some(format!(
                "rename the header {name}: RabbitMQ treats a header of that name as a list of routing keys"
            ));
        }
        let header_frame = self.header_frame();
        if header_frame > limits.frame {
            return Some(format!(
                "the headers need a frame of {header_frame} bytes, but the broker allows at most {}",
                limits.frame
            ));
        }
        if self.body.len() > limits.body {
            return Some(format!(
                "the body has {} bytes, but at most {} are allowed (max_message_bytes)",
                self.body.len(),
                limits.body
            ));
        }
        None
    }

    /// The size of the content header frame (AMQP 0-9-1 specification, 2.3.5 and 4.2.6). Unlike a body, a header frame
    /// can't be split, and the connection is closed if it exceeds the negotiated size.
    fn header_frame(&self) -> usize {
        const FRAME: usize = 8;
        const CLASS_WEIGHT_SIZE_FLAGS: usize = 14;
        const TABLE_LENGTH_DELIVERY_MODE_TIMESTAMP: usize = 4 + 1 + 8;
        const LONGEST_APP_ID: usize = 1 + SHORT_STRING;
        const LONGEST_EXPIRATION: usize = 1 + 39; // digits of a `u128`

        let headers: usize = self.headers.iter().map(|(name, value)| 1 + name.len() + 5 + value.len()).sum();
        let properties = [&self.content_type, &self.message_id, self.message_type.as_ref().unwrap_or(&NONE)];
        let properties: usize = properties.into_iter().map(|value| 1 + value.len()).sum();

        FRAME
            + LONGEST_APP_ID
            + LONGEST_EXPIRATION
            + CLASS_WEIGHT_SIZE_FLAGS
            + TABLE_LENGTH_DELIVERY_MODE_TIMESTAMP
            + headers
            + properties
    }
}

impl fmt::Debug for Publication {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publication")
            .field("exchange", &self.exchange)
            .field("routing_key", &self.routing_key)
            .field("message_id", &self.message_id)
            .field("message_type", &self.message_type)
            .field("body_bytes", &self.body.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { body: 1000, frame: 4096 };

    fn publication() -> Publication {
        Publication { message_id: "m".into(), content_type: "text/plain".into(), ..Publication::default() }
    }

    #[test]
    fn publications_that_would_close_the_channel_are_refused() {
        let long = "x".repeat(256);
        let header = |name: &str, value: &str| Publication {
            headers: vec![(name.to_owned(), value.to_owned())],
            ..publication()
        };
        for (publication, told) in [
            (Publication { exchange: long.clone(), ..publication() }, "exchange"),
            (Publication { routing_key: long.clone(), ..publication() }, "routing key"),
            (Publication { message_id: long.clone(), ..publication() }, "message id"),
            (Publication { message_type: Some(long.clone()), ..publication() }, "message type"),
            (Publication { content_type: long.clone(), ..publication() }, "content type"),
            (Publication { body: vec![0; 1001], ..publication() }, "body"),
            (header(&long, ""), "header"),
            (header("CC", "other"), "CC"),
            (header("note", &"x".repeat(4096)), "frame"),
        ] {
            let flaw = publication.flaw(LIMITS).unwrap_or_default();
            assert!(flaw.contains(told), "{told}: {flaw:?}");
        }
    }

    #[test]
    fn a_publication_at_the_limits_is_accepted() {
        let fits = Publication {
            routing_key: "x".repeat(255),
            body: vec![0; 1000],
            headers: vec![("cc".into(), "y".into())],
            ..publication()
        };
        assert_eq!(fits.flaw(LIMITS), None);
    }

    #[test]
    fn debug_shows_no_body_and_no_headers() {
        let publication = Publication {
            body: b"s3cret".to_vec(),
            headers: vec![("token".into(), "s3cret".into())],
            ..publication()
        };
        assert!(!format!("{publication:?}").contains("s3cret"));
    }
}
