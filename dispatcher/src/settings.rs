//! How a dispatcher works.

use std::time::Duration;

use document_outbox::{
    DeliveryOrder,
    amqp::{ExchangeKind, ExchangeSpec, QueueSpec, Topology, TopologyMode},
    command::{COMMANDS_DELIVERY_LIMIT, COMMANDS_EXCHANGE, COMMANDS_QUEUE, COMMANDS_ROUTING_KEY},
};
use mongodb::Namespace;
use outbox_service::NamespacePattern;

use crate::Rate;

/// How a [`Dispatcher`](crate::Dispatcher) works.
#[derive(Debug, Clone, PartialEq)]
pub struct DispatcherSettings {
    /// The collections whose commands are taken; commands for others are rejected.
    pub watch: Vec<NamespacePattern>,
    /// The collections among them whose messages need no order within a document. Default none.
    pub unordered: Vec<NamespacePattern>,
    /// The collections among them where a dead message holds back the later ones of its document. Default none.
    pub dead_blocks: Vec<NamespacePattern>,
    /// The exchange of commands. Default `outbox.commands`.
    pub commands_exchange: String,
    /// The queue that commands are consumed from. Default `outbox.process-document-messages`.
    pub commands_queue: String,
    /// Whether exchange, queue and binding are made, looked for, or left alone. Default made.
    pub topology: TopologyMode,
    /// At most this many documents are processed at a time. Default 256: with RabbitMQ, those processed side by side share
    /// their commands to MongoDB. With a `rate`, no more than a twentieth of it, or 32.
    pub concurrency: usize,
    /// At most this many messages a second are delivered, by this worker. Default as many as it can.
    pub rate: Option<Rate>,
    /// At most this many commands are taken and not yet settled: those processed, those that wait for their document, and
    /// those kept for a moment. At least `concurrency`. With a `rate`, no more than half of what it lets through within
    /// `keep_within`. Commands that this worker can do nothing about, which wait to be put back, are not counted. Default 512.
    pub prefetch: u16,
    /// A command is kept while what holds its document back ends within this time; at most half of `prefetch` wait
    /// like that. Default 5 s.
    pub hold_within: Duration,
    /// A command is kept while there is no way to deliver, for this long in all. Default 60 s.
    pub available_within: Duration,
    /// A command is kept for this long in all, whatever it waits for. Then no further message of its document is begun. With a
    /// delivery that takes the whole claim added, it must stay below the broker's `consumer_timeout` (30 min).
    /// Default 5 min, at most [`KEEP_AT_MOST`](Self::KEEP_AT_MOST).
    pub keep_within: Duration,
    /// How long a stop may take. For four fifths of it what is in hand goes on; then claims are given back. Default 25 s.
    pub grace: Duration,
}

/// Settings that can't work, in a sentence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSettings {
    /// No command could be taken.
    #[error("watch is empty: name the collections whose commands are to be taken")]
    NothingWatched,
    /// No document could be processed.
    #[error("concurrency is 0: allow at least one document at a time")]
    NoConcurrency,
    /// Some of the concurrency could never be used.
    #[error(
        "prefetch ({prefetch}) is less than concurrency ({concurrency}): raise the one or lower the other"
    )]
    PrefetchTooSmall {
        /// The prefetch.
        prefetch: u16,
        /// The concurrency.
        concurrency: usize,
    },
    /// Where there is no order, nothing can block.
    #[error("dead_blocks names collections that are in unordered too: drop one of them")]
    Contradiction,
    /// The broker would end the consumer.
    #[error(
        "keep_within is above {:?}: the broker ends a consumer that keeps a command for too long",
        DispatcherSettings::KEEP_AT_MOST
    )]
    KeptTooLong,
}

impl DispatcherSettings {
    /// The longest [`keep_within`](Self::keep_within): half of RabbitMQ's default `consumer_timeout`.
    pub const KEEP_AT_MOST: Duration = Duration::from_secs(15 * 60);

    /// The defaults for these collections.
    pub fn new(watch: impl IntoIterator<Item = NamespacePattern>) -> Self {
        Self {
            watch: watch.into_iter().collect(),
            unordered: Vec::new(),
            dead_blocks: Vec::new(),
            commands_exchange: COMMANDS_EXCHANGE.into(),
            commands_queue: COMMANDS_QUEUE.into(),
            topology: TopologyMode::default(),
            concurrency: 256,
            rate: None,
            prefetch: 512,
            hold_within: Duration::from_secs(5),
            available_within: Duration::from_secs(60),
            keep_within: Duration::from_secs(300),
            grace: Duration::from_secs(25),
        }
    }

    pub(crate) fn validate(&self) -> Result<(), InvalidSettings> {
        let (prefetch, concurrency) = (self.prefetch, self.concurrency);
        if self.watch.is_empty() {
            Err(InvalidSettings::NothingWatched)
        } else if concurrency == 0 {
            Err(InvalidSettings::NoConcurrency)
        } else if usize::from(prefetch) < concurrency {
            Err(InvalidSettings::PrefetchTooSmall { prefetch, concurrency })
        } else if self.contradicts_itself() {
            Err(InvalidSettings::Contradiction)
        } else if self.keep_within > Self::KEEP_AT_MOST {
            Err(InvalidSettings::KeptTooLong)
        } else {
            Ok(())
        }
    }

    /// The prefetch, and with a rate no more than half of what can be worked off while a command is kept: the rest would be let
    /// go undelivered, all at the same moment.
    pub(crate) fn prefetch_at_rate(&self) -> u16 {
        let Some(rate) = self.rate else { return self.prefetch };
        let messages = self.keep_within.as_secs_f64() * f64::from(rate.messages()) / 2.0;
        // As floats go, beyond the range is its end.
        self.prefetch.min(messages as u16).max(1)
    }

    /// Whether a collection is said both to keep an order and to keep none.
    pub fn contradicts_itself(&self) -> bool {
        NamespacePattern::any_overlap(&self.dead_blocks, &self.unordered)
    }

    pub(crate) fn ordering(&self, namespace: &Namespace) -> DeliveryOrder {
        let among = |patterns| NamespacePattern::any_matches(patterns, &namespace.db, &namespace.coll);
        if among(&self.unordered) {
            DeliveryOrder::Unordered
        } else if among(&self.dead_blocks) {
            DeliveryOrder::DeadBlocks
        } else {
            DeliveryOrder::Ordered
        }
    }

    /// The commands exchange and the queue bound to it.
    pub(crate) fn topology(&self) -> Topology {
        let exchange = ExchangeSpec { name: self.commands_exchange.clone(), kind: ExchangeKind::Direct };
        let queue = QueueSpec {
            name: self.commands_queue.clone(),
            quorum: true,
            delivery_limit: Some(COMMANDS_DELIVERY_LIMIT),
            bind: vec![(self.commands_exchange.clone(), COMMANDS_ROUTING_KEY.into())],
        };
        Topology { exchanges: vec![exchange], queues: vec![queue], mode: self.topology }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> DispatcherSettings {
        DispatcherSettings::new(["shop.*".parse().unwrap()])
    }

    #[test]
    fn the_default_settings_are_valid() {
        assert_eq!(settings().validate(), Ok(()));
    }

    #[test]
    fn what_cannot_work_is_refused_in_a_sentence() {
        let mut all = [settings(), settings(), settings(), settings(), settings()];
        all[0].watch.clear();
        all[1].concurrency = 0;
        all[2].prefetch = 255;
        all[3].keep_within = Duration::from_secs(1800);
        all[4].unordered = all[4].watch.clone();
        all[4].dead_blocks = vec!["shop.payments".parse().unwrap()];
        let told = all.map(|settings| settings.validate().unwrap_err().to_string());
        for (sentence, key) in
            told.iter().zip(["watch", "concurrency", "prefetch", "keep_within", "dead_blocks"])
        {
            assert!(sentence.starts_with(key), "{sentence}");
        }
    }

    #[test]
    fn the_prefetch_shrinks_with_the_rate() {
        let at = |rate: Option<u32>| {
            let rate = rate.map(|rate| Rate::per_second(rate).unwrap());
            DispatcherSettings { rate, ..settings() }.prefetch_at_rate()
        };
        assert_eq!((at(None), at(Some(500)), at(Some(1))), (512, 512, 150));
        let short = DispatcherSettings { keep_within: Duration::from_secs(1), ..settings() };
        let slow = DispatcherSettings { rate: Some(Rate::per_second(1).unwrap()), ..short };
        assert_eq!(slow.prefetch_at_rate(), 1, "it takes some all the same");
    }

    #[test]
    fn order_is_kept_as_the_patterns_say() {
        let mut settings = settings();
        settings.unordered = vec!["shop.stock".parse().unwrap()];
        settings.dead_blocks = vec!["shop.payments".parse().unwrap()];
        let ordering = |collection| settings.ordering(&Namespace::new("shop", collection));
        assert_eq!(ordering("orders"), DeliveryOrder::Ordered);
        assert_eq!(ordering("stock"), DeliveryOrder::Unordered);
        assert_eq!(ordering("payments"), DeliveryOrder::DeadBlocks);
    }
}
