//! Remembers recent refusals in which RabbitMQ closed the channel or the connection.
//!
//! To refuse a single message, RabbitMQ closes the channel that all messages share. Causes are a routing key that the
//! user has no permission to write to, a body over the limit, or a missing exchange. So messages of a refused kind are
//! published separately (see [quarantine](super::quarantine)), where RabbitMQ decides about each of them again.
//! RabbitMQ's last answer is reused for similar messages for a short time, so that a thousand similar messages don't
//! cost a thousand channels.
//!
//! An answer is reused only if RabbitMQ gave it within the last second. If a remembered refusal is outdated, the only
//! cost is that a message is published separately.

use std::{collections::HashMap, time::Duration};

use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

use crate::amqp::publish::publication::{Publication, Published};

/// The time for which an answer of RabbitMQ is reused for similar messages.
const FRESH: Duration = Duration::from_secs(1);
/// The time for which messages of a refused kind are published separately. After that, the next such message may close
/// a shared channel again.
const REMEMBERED: Duration = Duration::from_mins(10);
/// Maximum number of remembered refusals; the oldest is removed first.
const MOST: usize = 1000;

/// The set of messages that a refusal applies to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Subject {
    /// Every message to this exchange.
    Exchange(String),
    /// Every message to this exchange with this routing key.
    Route(String, String),
    /// One message, by its id.
    Message(String),
    /// Every message with a body longer than this.
    Longer(usize),
}

struct Refusal {
    said: String,
    at: Instant,
}

#[derive(Default)]
pub(super) struct Refusals(Mutex<HashMap<Subject, Refusal>>);

impl Subject {
    /// Derives the scope of a refusal from the reply code and text with which RabbitMQ closed the channel. Only this
    /// message was published on that channel.
    pub(super) fn of(publication: &Publication, code: u16, said: &str) -> Self {
        let exchange = publication.exchange.clone();
        match code {
            404 => Self::Exchange(exchange),
            403 if is_about_the_exchange(said) => Self::Exchange(exchange),
            403 => Self::Route(exchange, publication.routing_key.clone()),
            _ => match longest_body(said) {
                Some(limit) if publication.body.len() > limit => Self::Longer(limit),
                _ => Self::Message(publication.message_id.clone()),
            },
        }
    }

    fn answer(&self, publication: &Publication, said: &str) -> Published {
        match self {
            // The refusal is not the message's fault: an operator removed the exchange, or the permission to write to
            // it.
            Self::Exchange(_) => Published::Unavailable { reason: said.to_owned(), maybe_sent: false },
            Self::Route(..) | Self::Message(_) => Published::Rejected { reason: said.to_owned() },
            Self::Longer(limit) => Published::Refused {
                reason: format!(
                    "the body has {} bytes, but RabbitMQ allows at most {limit} (its max_message_size): {said}",
                    publication.body.len()
                ),
            },
        }
    }

    fn covers(&self, publication: &Publication) -> bool {
        match self {
            Self::Exchange(exchange) => *exchange == publication.exchange,
            Self::Route(exchange, key) => {
                *exchange == publication.exchange && *key == publication.routing_key
            }
            Self::Message(id) => *id == publication.message_id,
            Self::Longer(limit) => publication.body.len() > *limit,
        }
    }
}

impl Refusals {
    fn lock(&self) -> MutexGuard<'_, HashMap<Subject, Refusal>> {
        self.0.lock()
    }

    /// Records a refusal and returns the answer for the refused message.
    pub(super) fn note(&self, subject: &Subject, publication: &Publication, said: &str) -> Published {
        let answer = subject.answer(publication, said);
        let at = Instant::now();
        let mut refused = self.lock();

        refused.retain(|_, refusal| at.duration_since(refusal.at) < REMEMBERED);
        if refused.len() >= MOST && !refused.contains_key(subject) {
            let oldest = refused.iter().min_by_key(|(_, refusal)| refusal.at);
            if let Some(oldest) = oldest.map(|(subject, _)| subject.clone()) {
                refused.remove(&oldest);
            }
        }
        let refusal = Refusal { said: said.to_owned(), at };
        let known = refused.insert(subject.clone(), refusal).is_some();
        drop(refused);

        if !known {
            tracing::warn!(
                exchange = publication.exchange,
                routing_key = publication.routing_key,
                said,
                "RabbitMQ closed the channel because of one message; similar messages are now published separately"
            );
        }
        answer
    }

    /// Whether similar messages were refused, so that this message might close a shared channel.
    pub(super) fn suspects(&self, publication: &Publication) -> bool {
        self.lock().keys().any(|subject| subject.covers(publication))
    }

    /// Returns RabbitMQ's answer to a similar message, if it was given within the last second.
    pub(super) fn fresh(&self, publication: &Publication) -> Option<Published> {
        let now = Instant::now();

        for (subject, refusal) in &*self.lock() {
            if subject.covers(publication) && now.duration_since(refusal.at) < FRESH {
                return Some(subject.answer(publication, &refusal.said));
            }
        }
        None
    }

    /// Removes the refusals of similar messages, because RabbitMQ has accepted this message.
    pub(super) fn lift(&self, publication: &Publication) {
        self.lock().retain(|subject, _| !subject.covers(publication));
    }

    /// Removes the recorded size limits, which apply only to the connection they were learned on.
    pub(super) fn forget_limits(&self) {
        self.lock().retain(|subject, _| !matches!(subject, Subject::Longer(_)));
    }
}

/// Whether a 403 applies to every message of the exchange. RabbitMQ has two texts for a 403: `access to exchange 'x' in
/// vhost ..` applies to every message of the exchange, and `access to topic 'k' in exchange 'x' ..` only to one routing
/// key. A routing key can contain any text, so the word that comes first, `exchange` or `topic`, decides.
fn is_about_the_exchange(said: &str) -> bool {
    match (said.find("exchange '"), said.find("topic '")) {
        (Some(exchange), Some(topic)) => exchange < topic,
        (exchange, None) => exchange.is_some(),
        (None, Some(_)) => false,
    }
}

/// Parses the limit from errors such as `message size 17 is larger than configured max size 16`, which close the
/// channel with 406.
pub(super) fn longest_body(said: &str) -> Option<usize> {
    let (_, limit) = said.split_once("larger than configured max size ")?;
    limit.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publication(routing_key: &str) -> Publication {
        Publication {
            exchange: "x".into(),
            routing_key: routing_key.into(),
            message_id: format!("{routing_key}-1"),
            body: vec![0; 17],
            ..Publication::default()
        }
    }

    #[test]
    fn a_refusal_covers_as_much_as_rabbitmq_means() {
        let topic =
            "403 ACCESS_REFUSED - access to topic 'k' in exchange 'x' in vhost '/' refused for user 'u'";
        let exchange = "403 ACCESS_REFUSED - access to exchange 'x' in vhost '/' refused for user 'u'";
        let forged =
            "403 ACCESS_REFUSED - access to topic 'to exchange 'x' in vhost' in exchange 'x' in vhost '/'";
        let long = "406 PRECONDITION_FAILED - message size 17 is larger than configured max size 16";
        let absent = "404 NOT_FOUND - no exchange 'x' in vhost '/'";
        for (code, said, subject) in [
            (403, topic, Subject::Route("x".into(), "k".into())),
            (403, forged, Subject::Route("x".into(), "k".into())),
            (403, exchange, Subject::Exchange("x".into())),
            (404, absent, Subject::Exchange("x".into())),
            (406, long, Subject::Longer(16)),
            (406, "406 PRECONDITION_FAILED - invalid expiration", Subject::Message("k-1".into())),
        ] {
            assert_eq!(Subject::of(&publication("k"), code, said), subject, "{said}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_is_reused_briefly_and_remembered_longer() {
        let (refusals, invoice) = (Refusals::default(), publication("invoice"));
        let subject = Subject::of(&invoice, 403, "access to topic 'invoice' in exchange 'x'");
        let rejected = refusals.note(&subject, &invoice, "no");
        assert_eq!(rejected, Published::Rejected { reason: "no".into() });
        assert!(!refusals.suspects(&publication("order")));
        assert_eq!(refusals.fresh(&invoice), Some(rejected));
        tokio::time::advance(FRESH).await;
        assert_eq!(refusals.fresh(&invoice), None);
        assert!(refusals.suspects(&invoice));
        refusals.lift(&invoice);
        assert!(!refusals.suspects(&invoice));
    }

    #[tokio::test(start_paused = true)]
    async fn a_length_limit_is_forgotten_with_its_connection() {
        let (refusals, message) = (Refusals::default(), publication("k"));
        refusals.note(&Subject::Longer(16), &message, "too long");
        assert!(refusals.suspects(&message));
        refusals.forget_limits();
        assert!(!refusals.suspects(&message));
    }

    #[tokio::test(start_paused = true)]
    async fn the_memory_of_refusals_is_bounded() {
        let refusals = Refusals::default();
        for nth in 0..MOST + 5 {
            let message = publication(&nth.to_string());
            refusals.note(&Subject::Message(message.message_id.clone()), &message, "no");
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        assert_eq!(refusals.lock().len(), MOST);
        assert!(!refusals.suspects(&publication("0")) && refusals.suspects(&publication("1004")));
    }
}
