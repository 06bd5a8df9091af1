//! Records the traffic of the links: every published message with RabbitMQ's answer, and the channels and connections that RabbitMQ
//! closed.

use std::{collections::HashMap, sync::Arc, time::Instant};

use parking_lot::Mutex;
use uuid::Uuid;

/// The traffic of all links of a run. All clones share one record.
#[derive(Clone, Default)]
pub(crate) struct Traffic(Arc<Mutex<Seen>>);

#[derive(Default)]
struct Seen {
    publishes: HashMap<Uuid, Vec<Publish>>,
    /// Channels and connections that RabbitMQ closed: for each, the time, the process and the reply code.
    closed: Vec<(Instant, String, u16)>,
    /// Connections that RabbitMQ notified of an alarm: for each, the time and the process.
    blocked: Vec<(Instant, String)>,
    /// Connections that ended for any reason: for each, the time and the process.
    ended: Vec<(Instant, String)>,
}

/// One publish of a message to RabbitMQ.
#[derive(Debug, Clone)]
pub(crate) struct Publish {
    pub(crate) process: String,
    pub(crate) at: Instant,
    pub(crate) answer: Answer,
    /// The number that the harness gave to the connection of this publish.
    pub(crate) connection: u64,
}

/// RabbitMQ's answer to a publish, or `None` if no answer has passed through the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    None,
    Confirmed(Instant),
    Refused(Instant),
    /// RabbitMQ returned the message, because no queue was bound.
    Returned(Instant),
}

impl Traffic {
    pub(super) fn published(&self, id: Uuid, process: &str, connection: u64) {
        let publish =
            Publish { process: process.to_owned(), at: Instant::now(), answer: Answer::None, connection };
        self.0.lock().publishes.entry(id).or_default().push(publish);
    }

    /// Notes the answer to the latest publish of this message over this connection. RabbitMQ confirms a returned message too, right
    /// after the return; only the first answer counts.
    pub(super) fn answered(&self, id: Uuid, connection: u64, answer: Answer) {
        let mut seen = self.0.lock();
        let publishes = seen.publishes.entry(id).or_default();
        let of_connection = publishes.iter_mut().rev().find(|publish| publish.connection == connection);
        if let Some(publish) = of_connection
            && publish.answer == Answer::None
        {
            publish.answer = answer;
        }
    }

    pub(super) fn closed_by_broker(&self, process: &str, code: u16) {
        self.0.lock().closed.push((Instant::now(), process.to_owned(), code));
    }

    pub(super) fn was_blocked(&self, process: &str) {
        self.0.lock().blocked.push((Instant::now(), process.to_owned()));
    }

    pub(super) fn connection_ended(&self, process: &str) {
        self.0.lock().ended.push((Instant::now(), process.to_owned()));
    }

    /// Returns all publishes of a message, in the order of time.
    pub(crate) fn publishes(&self, id: Uuid) -> Vec<Publish> {
        self.0.lock().publishes.get(&id).cloned().unwrap_or_default()
    }

    /// Returns how many channels and connections RabbitMQ closed since `since` with one of these reply codes: those of `process`,
    /// or those of all processes if there is no `process`.
    pub(crate) fn closings(&self, since: Instant, process: Option<&str>, codes: &[u16]) -> usize {
        let seen = self.0.lock();
        let is_meant = |(at, of, code): &&(Instant, String, u16)| {
            *at >= since && process.is_none_or(|process| process == of) && codes.contains(code)
        };
        seen.closed.iter().filter(is_meant).count()
    }

    /// Whether RabbitMQ closed a channel or connection of this process between `from` and `until`.
    pub(crate) fn was_closed(&self, process: &str, from: Instant, until: Instant) -> bool {
        let seen = self.0.lock();
        seen.closed.iter().any(|(at, of, _)| of == process && (from..=until).contains(at))
    }

    /// Whether an AMQP connection of this process ended between `from` and `until`.
    pub(crate) fn lost_connection(&self, process: &str, from: Instant, until: Instant) -> bool {
        let seen = self.0.lock();
        seen.ended.iter().any(|(at, of)| of == process && (from..=until).contains(at))
    }

    /// Returns how many connections RabbitMQ notified of an alarm since `since`.
    pub(crate) fn blocked(&self, since: Instant) -> usize {
        self.0.lock().blocked.iter().filter(|(at, _)| *at >= since).count()
    }

    /// Returns how many publishes RabbitMQ returned because no queue was bound.
    pub(crate) fn returned(&self) -> usize {
        let seen = self.0.lock();
        let is_returned = |publish: &&Publish| matches!(publish.answer, Answer::Returned(_));
        seen.publishes.values().flatten().filter(is_returned).count()
    }
}
