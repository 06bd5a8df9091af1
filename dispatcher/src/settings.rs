//! The settings of a dispatcher, and their problems.

use std::time::Duration;

use document_outbox::{
    DeliveryOrder,
    amqp::{ExchangeKind, ExchangeSpec, QueueSpec, Topology, TopologyMode},
    command::{COMMANDS_DELIVERY_LIMIT, COMMANDS_EXCHANGE, COMMANDS_QUEUE, COMMANDS_ROUTING_KEY},
};
use mongodb::Namespace;
use outbox_service::{InvalidPattern, InvalidSettings, NamespacePattern};

use crate::rate::Rate;

/// The settings of a [`Dispatcher`](crate::Dispatcher). [`new`](Self::new) gives the defaults, and
/// [`with`](Self::with) changes them.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct DispatcherSettings {
    /// The collections whose commands are taken. Commands for other collections are rejected.
    pub watch: Vec<NamespacePattern>,
    /// The watched collections whose messages may be delivered out of order within a document. Default:
    /// none.
    pub unordered: Vec<NamespacePattern>,
    /// The watched collections in which a dead message blocks the later messages of its document. Default:
    /// none.
    pub dead_blocks: Vec<NamespacePattern>,
    /// The exchange of commands. Default: `outbox.commands`.
    pub commands_exchange: String,
    /// The queue from which commands are consumed. Default: `outbox.process-document-messages`.
    pub commands_queue: String,
    /// Whether exchange, queue and binding are declared, only verified, or used without a check.
    /// Default: declared.
    pub topology: TopologyMode,
    /// The maximum number of documents processed at a time. With a `rate`, the maximum is at most the number of
    /// messages that the rate allows in 50 ms, or 32 if that is more. The default of 256 suits RabbitMQ, because
    /// concurrently processed documents share their commands to MongoDB.
    pub concurrency: usize,
    /// The maximum number of messages that this worker delivers per second. Default: no limit.
    pub rate: Option<Rate>,
    /// The maximum number of commands that are taken and not yet settled: commands in processing, commands
    /// that wait for their document, and commands that are kept. Must be at least `concurrency`. With a
    /// `rate`, the maximum is at most half of the number of messages that the rate allows within
    /// `keep_within`. Commands that this worker cannot process and will requeue are not counted. Default:
    /// 512.
    pub prefetch: u16,
    /// A command is kept if its document can be processed within this time. At most half of
    /// `prefetch` is used for commands that are kept for this reason. Default: 5 s.
    pub hold_within: Duration,
    /// The total time that a command is kept while the destination is unavailable. Default: 60 s.
    pub available_within: Duration,
    /// The total time that a command is kept, for any reason. After this time, no further message of its
    /// document is started. The sum of this time and the longest delivery, which lasts as long as its claim,
    /// must be below the broker's `consumer_timeout` (30 min). Default: 5 min; at most
    /// [`KEEP_AT_MOST`](Self::KEEP_AT_MOST).
    pub keep_within: Duration,
    /// How long a stop may take. Unfinished work continues for four fifths of this time; then claims are
    /// released. Default: 25 s.
    pub grace: Duration,
}

impl DispatcherSettings {
    /// The maximum of [`keep_within`](Self::keep_within): half of RabbitMQ's default `consumer_timeout`.
    pub const KEEP_AT_MOST: Duration = Duration::from_mins(15);

    /// The default settings for collections given as text, such as `shop.orders,stock.*`.
    ///
    /// # Errors
    /// Returns the error of the first pattern that is invalid.
    pub fn watching(patterns: &str) -> Result<Self, InvalidPattern> {
        Ok(Self::new(NamespacePattern::list(patterns)?))
    }

    /// The default settings for these collections.
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
            available_within: Duration::from_mins(1),
            keep_within: Duration::from_mins(5),
            grace: Duration::from_secs(25),
        }
    }

    /// Changes settings, as in `DispatcherSettings::new(watch).with(|settings| settings.prefetch = 256)`.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    /// Checks every setting alone and together with the others.
    ///
    /// # Errors
    /// Returns every problem that keeps a dispatcher from working, and every setting that could never take
    /// effect.
    pub fn validate(&self) -> Result<(), InvalidSettings> {
        let mut problems = InvalidSettings::default();
        problems.add_if(
            self.watch.is_empty(),
            &["watch"],
            "is empty; name the collections whose commands this worker takes",
        );
        problems.add_if(
            self.concurrency == 0,
            &["concurrency"],
            "is 0; allow at least one document at a time",
        );
        problems.add_if(
            usize::from(self.prefetch) < self.concurrency,
            &["prefetch", "concurrency"],
            "must not be less than concurrency; otherwise a part of the concurrency is never used",
        );
        // Without an order, no message can block another.
        problems.add_if(
            NamespacePattern::any_overlap(&self.dead_blocks, &self.unordered),
            &["dead_blocks", "unordered"],
            "names collections that are also in unordered; without an order no message can block another, \
             so remove them from one of the two settings",
        );
        problems.add_if(
            self.keep_within > Self::KEEP_AT_MOST,
            &["keep_within"],
            &format!(
                "is above {:?}; shorten it, because the broker ends a consumer that keeps a command too long",
                Self::KEEP_AT_MOST
            ),
        );
        problems.into_result()
    }

    /// The number of documents processed at a time. With a rate the number is small, so that only a small
    /// burst is sent at once after a stall of MongoDB or the broker.
    pub(crate) fn concurrency_at_rate(&self) -> usize {
        match self.rate {
            Some(rate) => self.concurrency.min(rate.documents_at_a_time()),
            None => self.concurrency,
        }
    }

    /// The prefetch. With a rate, the prefetch is at most half of the number of messages that can be
    /// delivered while a command is kept. Further commands would be released undelivered, all at the same
    /// moment.
    pub(crate) fn prefetch_at_rate(&self) -> u16 {
        let Some(rate) = self.rate else { return self.prefetch };
        let messages = self.keep_within.as_millis() * u128::from(rate.messages()) / 2_000;
        let messages = u16::try_from(messages).unwrap_or(u16::MAX);
        self.prefetch.min(messages).max(1)
    }

    /// The delivery order within a document of this collection.
    pub(crate) fn order_of(&self, namespace: &Namespace) -> DeliveryOrder {
        let Namespace { db, coll } = namespace;
        if NamespacePattern::any_matches(&self.unordered, db, coll) {
            DeliveryOrder::Unordered
        } else if NamespacePattern::any_matches(&self.dead_blocks, db, coll) {
            DeliveryOrder::DeadBlocks
        } else {
            DeliveryOrder::Ordered
        }
    }

    /// The commands exchange, and the queue bound to it.
    pub(crate) fn topology(&self) -> Topology {
        let exchange = ExchangeSpec { name: self.commands_exchange.clone(), kind: ExchangeKind::Direct };
        let queue = QueueSpec {
            name: self.commands_queue.clone(),
            quorum: true,
            delivery_limit: Some(COMMANDS_DELIVERY_LIMIT),
            bind: vec![(self.commands_exchange.clone(), COMMANDS_ROUTING_KEY.into())],
            ..QueueSpec::default()
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
        all[3].keep_within = Duration::from_mins(30);
        all[4].unordered = all[4].watch.clone();
        all[4].dead_blocks = vec!["shop.payments".parse().unwrap()];
        for (settings, key) in
            all.iter().zip(["watch", "concurrency", "prefetch", "keep_within", "dead_blocks"])
        {
            let problems = settings.validate().unwrap_err();
            assert_eq!(problems.0.len(), 1, "{problems:?}");
            assert!(problems.to_string().starts_with(key), "{problems}");
        }
    }

    #[test]
    fn every_problem_is_reported_at_once() {
        let settings = DispatcherSettings { watch: Vec::new(), concurrency: 0, ..settings() };
        let error = settings.validate().unwrap_err().to_string();
        assert!(error.starts_with("watch is empty") && error.contains("; concurrency is 0"), "{error}");
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
        assert_eq!(slow.prefetch_at_rate(), 1, "it still takes some");
    }

    #[test]
    fn order_is_kept_as_the_patterns_say() {
        let mut settings = settings();
        settings.unordered = vec!["shop.stock".parse().unwrap()];
        settings.dead_blocks = vec!["shop.payments".parse().unwrap()];
        let order = |collection| settings.order_of(&Namespace::new("shop", collection));
        assert_eq!(order("orders"), DeliveryOrder::Ordered);
        assert_eq!(order("stock"), DeliveryOrder::Unordered);
        assert_eq!(order("payments"), DeliveryOrder::DeadBlocks);
    }
}
