//! The settings of a receiver.

use std::{fmt, time::Duration};

use crate::{
    InboxLimits,
    amqp::{ExchangeKind, ExchangeSpec, QueueSpec, Topology, TopologyMode},
    deliver::MESSAGES_EXCHANGE,
};

/// What happens to a message for whose type this receiver has no function.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum UnknownTypes {
    /// The message goes to the dead-letter queue, with the reason `unknown_type`.
    #[default]
    DeadLetter,
    /// The message is rejected. The queue's arguments decide what the broker does with the message; no reason is
    /// added. If the receiver declared the queue, the broker moves the message to the dead-letter queue.
    Reject,
    /// The message is counted and acknowledged, which removes it from the queue. Use this setting if the queue's
    /// bindings select more types than needed. A consumer can't leave a message in its queue: the message would count
    /// towards the prefetch, or return at once.
    Ignore,
}

/// What happens to the later messages of a key while an earlier message waits in the delay queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum DelayedOrder {
    /// The later messages also go to the delay queue, and are handled after the earlier message.
    #[default]
    Follow,
    /// The later messages are handled before the earlier message.
    GiveUp,
}

/// The settings of a [`Receiver`](super::Receiver): [`new`](Self::new) has the defaults, [`with`](Self::with) changes them.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ReceiverSettings {
    /// The queue that messages are received from. A queue that the receiver declares is a quorum queue.
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
    /// The number of times that the broker delivers a message without getting an answer, for example because the
    /// message kills its process. After that many deliveries, the broker dead-letters the message. Default: 20, as in
    /// RabbitMQ 4.
    pub delivery_limit: u32,
    /// Declares the queue for one consumer at a time, so that order holds across processes. Default: false.
    pub single_active_consumer: bool,
    /// What happens to messages of unknown types. Default: such messages go to the dead-letter queue.
    pub unknown_types: UnknownTypes,
    /// The maximum number of messages that are taken and not yet settled. Default: 256.
    pub prefetch: u16,
    /// The maximum total size of the bodies of messages that are taken and not yet settled. When large messages arrive,
    /// the prefetch is lowered; messages that the broker sent before the change are still taken. Default: 64 MiB.
    pub prefetch_bytes: usize,
    /// The maximum number of messages that are handled at the same time. Default: 32.
    pub concurrency: usize,
    /// The time limit for one call of a function. After this time the call is aborted and counts as failed.
    /// Default: 60 s.
    pub time_limit: Duration,
    /// Upper bound of the first pause before a message that the receiver holds is tried again. The bound doubles with
    /// each try. Default: 100 ms.
    pub retry_min: Duration,
    /// Upper bound of every pause before a message that the receiver holds is tried again. Default: 5 s.
    pub retry_max: Duration,
    /// How long the receiver holds a failing message and tries it again, before the message goes to the delay queue.
    /// Default: 30 s.
    pub retry_within: Duration,
    /// The maximum number of messages that the receiver holds because of failures: the failed messages that are tried
    /// again, and later messages of their keys. While this many messages are held, another message that fails goes to
    /// the delay queue at once. Default: 128.
    pub retry_held: usize,
    /// How long a message stays in the delay queue. Default: 1 min.
    pub delay: Duration,
    /// How many times a failing message is put into the delay queue before it is dead. Default: 10.
    pub delays: u32,
    /// What happens to later messages of a key while an earlier one is delayed. Default: the later messages follow the
    /// earlier one.
    pub delayed_order: DelayedOrder,
    /// How many messages an aggregate's inbox remembers, and for how long. The inbox must remember a message longer
    /// than all tries of the message take. Default: 256 messages, 7 days.
    pub inbox: InboxLimits,
    /// The maximum time that a stop takes. Messages that are being handled are finished, and other messages return to
    /// the queue. Default: 25 s.
    pub grace: Duration,
}

impl ReceiverSettings {
    /// The longest [`retry_within`](Self::retry_within): half of RabbitMQ's default `consumer_timeout`.
    pub const RETRY_AT_MOST: Duration = Duration::from_mins(15);

    /// Returns the defaults for a queue of this name.
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

    /// Changes some of the settings: `ReceiverSettings::new("stock").with(|settings| settings.prefetch = 64)`.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    /// The longest time that a message which always fails takes from its first try until it is dead-lettered. The durations
    /// of the calls and the time in the receiver's queue are not included.
    pub fn longest_schedule(&self) -> Duration {
        self.retry_within * (self.delays + 1) + self.delay * self.delays
    }

    /// Checks every setting by itself and together with the others.
    ///
    /// # Errors
    /// Lists every setting that would keep a receiver from working, or that could never take effect.
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
            "prefetch is less than concurrency, which could then never be reached",
        );
        add_if(self.prefetch_bytes == 0, "prefetch_bytes is 0; allow at least the size of one message");
        add_if(self.delivery_limit == 0, "delivery_limit is 0; allow at least one delivery");
        add_if(self.time_limit.is_zero(), "time_limit is 0, so every message would fail");
        add_if(self.delay.is_zero(), "delay is 0, so a failing message would be tried without a pause");
        add_if(
            self.retry_min.is_zero(),
            "retry_min is 0, so a failing message would be tried without a pause",
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
                "inbox.age must be at least {:?}, the longest time until a failing message is \
                 dead-lettered; otherwise a repeat could count as new",
                self.longest_schedule()
            ),
        );
        if problems.is_empty() { Ok(()) } else { Err(InvalidReceiver(problems)) }
    }

    /// The exchange, the three queues, and the bindings for the types that have a function.
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

/// The reasons why a receiver can't be built, one sentence for each problem.
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
