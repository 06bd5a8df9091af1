//! How a receiver works.

use std::{fmt, time::Duration};

use crate::{
    InboxLimits,
    amqp::{ExchangeKind, ExchangeSpec, QueueSpec, Topology, TopologyMode},
    deliver::MESSAGES_EXCHANGE,
};

/// What happens to a message whose type has no function here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum UnknownTypes {
    /// It goes to the dead-letter queue, with the reason `unknown_type`.
    #[default]
    DeadLetter,
    /// It is rejected: the broker passes it on by the arguments of the queue, without a reason. With a queue that the receiver
    /// declared, it is in the dead-letter queue.
    Reject,
    /// It is acknowledged and counted, and is gone from this queue. For a queue that is bound to more than it needs. A message can't
    /// be left in a queue: it would take the place of another, and come again.
    Ignore,
}

/// What happens to the later messages of a key while an earlier one waits in the delay queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum DelayedOrder {
    /// They follow it there, and are handled after it.
    #[default]
    Follow,
    /// They are handled before it.
    GiveUp,
}

/// The settings of a [`Receiver`](super::Receiver): [`new`](Self::new) has the defaults, [`with`](Self::with) changes them.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ReceiverSettings {
    /// The queue. It is a quorum queue if the receiver declares it.
    pub queue: String,
    /// The queue of messages that can't be handled. Default: the queue's name with `.dead`.
    pub dead_letter_queue: String,
    /// The queue in which messages wait for a later try. Default: the queue's name with `.delayed`.
    pub delay_queue: String,
    /// The exchange that the queue is bound to. Default: `outbox.messages`.
    pub exchange: String,
    /// The routing keys of the bindings. Default: the types that have a function.
    pub bindings: Option<Vec<String>>,
    /// Whether the exchange, the three queues and the bindings are declared, verified, or left alone. Default: declared.
    pub topology: TopologyMode,
    /// After this many deliveries without an answer, as when a message kills its process, the broker dead-letters a message.
    /// Default: 20, as in RabbitMQ 4.
    pub delivery_limit: u32,
    /// Declares the queue for one consumer at a time, so that order holds across processes. Default: false.
    pub single_active_consumer: bool,
    /// Default: dead-lettered.
    pub unknown_types: UnknownTypes,
    /// The most messages that are taken and not yet settled. Default: 256.
    pub prefetch: u16,
    /// The bytes of bodies that these messages should not exceed together: the prefetch is lowered once large messages arrive.
    /// Messages that are on their way by then are taken too. Default: 64 MiB.
    pub prefetch_bytes: usize,
    /// The most messages that are handled at a time. Default: 32.
    pub concurrency: usize,
    /// The time for one call of a function; then it is aborted and counts as failed. Default: 60 s.
    pub time_limit: Duration,
    /// Upper bound of the first pause before a message is tried again in place; doubles with each. Default: 100 ms.
    pub retry_min: Duration,
    /// Upper bound of every such pause. Default: 5 s.
    pub retry_max: Duration,
    /// How long a message is tried in place. Then it waits in the delay queue. Default: 30 s.
    pub retry_within: Duration,
    /// The most messages held by keys that are tried again in place, those that wait for their turn included. Beyond that, a message
    /// that fails goes to the delay queue at once. Default: 128.
    pub retry_held: usize,
    /// How long a message waits in the delay queue. Default: 1 min.
    pub delay: Duration,
    /// How many times a message waits there, until it is dead. Default: 10.
    pub delays: u32,
    /// Default: they follow.
    pub delayed_order: DelayedOrder,
    /// How much an aggregate's inbox remembers. Its age must cover all tries of a message. Default: 256 messages, 7 days.
    pub inbox: InboxLimits,
    /// How long a stop may take: messages that are being handled are finished, the others return to the queue. Default: 25 s.
    pub grace: Duration,
}

impl ReceiverSettings {
    /// The longest [`retry_within`](Self::retry_within): half of RabbitMQ's default `consumer_timeout`.
    pub const RETRY_AT_MOST: Duration = Duration::from_mins(15);

    /// The defaults for a queue of this name.
    pub fn new(queue: impl Into<String>) -> Self {
        let queue = queue.into();
        Self {
            dead_letter_queue: format!("{queue}.dead"),
            delay_queue: format!("{queue}.delayed"),
            queue,
            exchange: MESSAGES_EXCHANGE.into(),
            bindings: None,
            topology: TopologyMode::default(),
            delivery_limit: 20,
            single_active_consumer: false,
            unknown_types: UnknownTypes::default(),
            prefetch: 256,
            prefetch_bytes: 64 << 20,
            concurrency: 32,
            time_limit: Duration::from_mins(1),
            retry_min: Duration::from_millis(100),
            retry_max: Duration::from_secs(5),
            retry_within: Duration::from_secs(30),
            retry_held: 128,
            delay: Duration::from_mins(1),
            delays: 10,
            delayed_order: DelayedOrder::default(),
            inbox: InboxLimits::default(),
            grace: Duration::from_secs(25),
        }
    }

    /// Changes some of them: `ReceiverSettings::new("stock").with(|settings| settings.prefetch = 64)`.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    /// The longest time from the first try of a message that always fails until it is dead, not counting the calls themselves and
    /// the time in the queue.
    pub fn longest_schedule(&self) -> Duration {
        self.retry_within * (self.delays + 1) + self.delay * self.delays
    }

    /// Checks every setting by itself and together with the others.
    ///
    /// # Errors
    /// Every setting that keeps a receiver from working, or that could never take effect.
    pub fn validate(&self) -> Result<(), InvalidReceiver> {
        let names = [&self.queue, &self.dead_letter_queue, &self.delay_queue];
        let mut problems = Vec::new();
        let mut add_if = |is_wrong: bool, problem: &str| {
            if is_wrong {
                problems.push(problem.to_owned());
            }
        };

        add_if(
            names.iter().any(|name| name.is_empty()),
            "queue, dead_letter_queue and delay_queue need a name",
        );
        let is_shared = names[0] == names[1] || names[0] == names[2] || names[1] == names[2];
        add_if(is_shared, "queue, dead_letter_queue and delay_queue must have different names");
        add_if(self.concurrency == 0, "concurrency is 0; allow at least one message at a time");
        add_if(
            usize::from(self.prefetch) < self.concurrency,
            "prefetch must not be less than concurrency, or some of it is never used",
        );
        add_if(self.prefetch_bytes == 0, "prefetch_bytes is 0; allow at least the size of one message");
        add_if(self.delivery_limit == 0, "delivery_limit is 0; allow at least one delivery");
        add_if(self.time_limit.is_zero(), "time_limit is 0, so that every message would fail");
        add_if(self.delay.is_zero(), "delay is 0, so that a failing message would be tried without a pause");
        add_if(
            self.retry_min.is_zero(),
            "retry_min is 0, so that a failing message would be tried without a pause",
        );
        add_if(
            self.retry_within > Self::RETRY_AT_MOST,
            &format!(
                "retry_within is above {:?}; the broker ends a consumer that keeps a message for too long",
                Self::RETRY_AT_MOST
            ),
        );
        add_if(
            self.inbox.age < self.longest_schedule(),
            &format!(
                "inbox.age must be at least {:?}, the longest time until a failing message is dead, or a repeat of it \
                 could count as new",
                self.longest_schedule()
            ),
        );
        if problems.is_empty() { Ok(()) } else { Err(InvalidReceiver(problems)) }
    }

    /// The exchange, the three queues, and the bindings for these types.
    pub(super) fn topology(&self, types: &[&'static str]) -> Topology {
        let keys = match &self.bindings {
            Some(keys) => keys.clone(),
            None => types.iter().map(|name| (*name).to_owned()).collect(),
        };
        let queue = QueueSpec {
            name: self.queue.clone(),
            quorum: true,
            delivery_limit: Some(self.delivery_limit),
            bind: keys.into_iter().map(|key| (self.exchange.clone(), key)).collect(),
            dead_letter_to: Some(self.dead_letter_queue.clone()),
            single_active_consumer: self.single_active_consumer,
        };
        let dead = QueueSpec { name: self.dead_letter_queue.clone(), quorum: true, ..QueueSpec::default() };
        let delayed = QueueSpec {
            name: self.delay_queue.clone(),
            quorum: true,
            dead_letter_to: Some(self.queue.clone()),
            ..QueueSpec::default()
        };
        let exchange = ExchangeSpec { name: self.exchange.clone(), kind: ExchangeKind::Topic };
        Topology { exchanges: vec![exchange], queues: vec![dead, queue, delayed], mode: self.topology }
    }
}

/// Why a receiver can't be built: every problem, in a sentence each.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct InvalidReceiver(pub Vec<String>);

impl fmt::Display for InvalidReceiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_settings_are_valid() {
        assert_eq!(ReceiverSettings::new("stock").validate(), Ok(()));
    }

    #[test]
    fn every_problem_is_reported_in_a_sentence() {
        type Change = fn(&mut ReceiverSettings);
        let changes: [(Change, &str); 10] = [
            (|it| it.queue.clear(), "need a name"),
            (|it| it.delay_queue = "stock".into(), "different names"),
            (|it| it.concurrency = 0, "concurrency"),
            (|it| it.prefetch = 31, "prefetch"),
            (|it| it.prefetch_bytes = 0, "prefetch_bytes"),
            (|it| it.delivery_limit = 0, "delivery_limit"),
            (|it| it.delay = Duration::ZERO, "delay"),
            (|it| it.retry_within = Duration::from_mins(16), "retry_within"),
            (|it| it.inbox.age = Duration::from_mins(15), "inbox.age"),
            (|it| it.time_limit = Duration::ZERO, "time_limit"),
        ];
        for (change, about) in changes {
            let InvalidReceiver(problems) =
                ReceiverSettings::new("stock").with(change).validate().unwrap_err();
            assert_eq!(problems.len(), 1, "{problems:?}");
            assert!(problems[0].contains(about), "{problems:?}");
        }
        let both = ReceiverSettings::new("stock").with(|it| (it.concurrency, it.prefetch_bytes) = (0, 0));
        assert_eq!(both.validate().unwrap_err().0.len(), 2);
    }

    #[test]
    fn the_queue_is_bound_to_types_or_to_given_keys() {
        let bound = |settings: &ReceiverSettings| settings.topology(&["a.b", "c"]).queues[1].bind.clone();
        let settings = ReceiverSettings::new("stock");
        let to = |key: &str| ("outbox.messages".to_owned(), key.to_owned());
        assert_eq!(bound(&settings), [to("a.b"), to("c")]);
        let settings = settings.with(|it| it.bindings = Some(vec!["#".into()]));
        assert_eq!(bound(&settings), [to("#")]);
    }
}
