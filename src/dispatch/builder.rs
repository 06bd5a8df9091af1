//! Setting up an inline dispatcher.

use std::{sync::Arc, time::Duration};

use mongodb::Client;

use crate::{
    command::sender::CommandSender,
    deliver::{Answer, Deliver, Envelope, Outcome},
    dispatch::{
        deliveries::Deliveries,
        inline::{InlineDispatcher, Mode},
        processor::Processor,
        retry::RetryPolicy,
        seats::Seats,
        settings::{ProcessorSettings, STATE_DATABASE},
    },
    stored::memory::Memory,
};

/// Sets up an [`InlineDispatcher`].
#[derive(Debug)]
#[must_use]
pub struct InlineBuilder {
    client: Client,
    mode: Mode,
    capacity: usize,
    hand_off: Option<CommandSender>,
    defer_clears: Duration,
    settings: ProcessorSettings,
}

impl InlineDispatcher {
    /// Sets up an inline dispatcher for the documents that this client reaches.
    pub fn builder(client: &Client) -> InlineBuilder {
        InlineBuilder {
            client: client.clone(),
            mode: Mode::default(),
            capacity: 1_024,
            hand_off: None,
            defer_clears: Duration::ZERO,
            settings: ProcessorSettings {
                claim_lease: Duration::from_secs(10),
                counts_claims: false,
                max_repeats: 1_024,
                state_database: STATE_DATABASE.into(),
                ..ProcessorSettings::default()
            },
        }
    }

    /// An inline dispatcher that does not deliver, for a process that only saves: the rescuer delivers. It
    /// has no handlers: its messages are for the broker. If some are for handlers, use [`Mode::Off`] with the
    /// deliverer that the delivering processes have.
    pub fn off(client: &Client) -> Self {
        Self::builder(client).mode(Mode::Off).deliver_to(NoDelivery)
    }
}

impl InlineBuilder {
    /// When messages are delivered. Default [`Mode::Background`].
    pub fn mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    /// How many saves' messages may be in delivery at once. Default 1,024.
    pub fn capacity(mut self, capacity: usize) -> Self {
        self.capacity = capacity;
        self
    }

    /// How many bytes of memory the messages in delivery may take; the outboxes that are read for delivery
    /// may take as many again. A save without room leaves its messages to the rescuer, as it does without a
    /// seat. Default 64 MiB.
    pub fn memory_bytes(mut self, bytes: usize) -> Self {
        self.settings.memory_bytes = bytes;
        self
    }

    /// How many messages may be published and not yet cleared: at most that many are repeated when the
    /// process is killed, plus those that [`defer_clears`](Self::defer_clears) keeps. Deliveries wait beyond
    /// that. Default 1,024.
    pub fn max_repeats(mut self, messages: usize) -> Self {
        self.settings.max_repeats = messages;
        self
    }

    /// How long a claim lasts; choose it shorter than the rescuer's delay. Default 10 s.
    pub fn inline_lease(mut self, lease: Duration) -> Self {
        self.settings.claim_lease = lease;
        self
    }

    /// How failures are retried.
    pub fn retry(mut self, retry: RetryPolicy) -> Self {
        self.settings.retry = retry;
        self
    }

    /// The prefix of every claim's value, shown to operators. Default: the process id.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.settings.name = name.into();
        self
    }

    /// Where to send a document whose delivery failed, so that a worker continues at once. Otherwise the
    /// sweep finds it.
    #[cfg(feature = "rabbitmq")]
    pub fn hand_off(mut self, commands: CommandSender) -> Self {
        self.hand_off = Some(commands);
        self
    }

    /// Whether concurrent saves go to MongoDB together, as one command with a statement each: several times
    /// the throughput under load, and the same answers. A single save is sent alone either way. Default on.
    pub fn group_commit(mut self, on: bool) -> Self {
        self.settings.group_commit = on;
        self
    }

    /// How long a message that was delivered may stay in its document: at most a quarter of the lease. The
    /// next save of that document removes it without a separate write; messages of documents that are not
    /// saved in time are cleared together. Default zero: each is cleared at once, and in [`Mode::Await`] a
    /// save returns when that is done.
    ///
    /// The price is repeats: the remaining messages are delivered again when the process dies, or ends
    /// without [`close`](InlineDispatcher::close). And to other processes they appear undelivered: messages
    /// that those send from the same document wait for them.
    pub fn defer_clears(mut self, time: Duration) -> Self {
        self.defer_clears = time;
        self
    }

    /// The library's own database, the same as for the services. Default `document_outbox`.
    pub fn state_database(mut self, name: impl Into<String>) -> Self {
        self.settings.state_database = name.into();
        self
    }

    /// Starts it. Must be called inside a tokio runtime; makes no connection by itself.
    pub fn deliver_to(self, deliver: impl Deliver) -> InlineDispatcher {
        self.deliver_to_shared(Arc::new(deliver))
    }

    /// Starts it with a deliverer that others use too.
    pub fn deliver_to_shared(self, deliver: Arc<dyn Deliver>) -> InlineDispatcher {
        let seats = Seats::new(self.capacity, Memory::of(self.settings.memory_bytes));
        let processor =
            Processor::inline(self.client, deliver, self.settings, self.capacity, self.defer_clears);

        InlineDispatcher::start(self.mode, seats, Deliveries::new(processor, self.hand_off))
    }
}

/// The deliverer of a process that does not deliver.
struct NoDelivery;

#[async_trait::async_trait]
impl Deliver for NoDelivery {
    async fn deliver(&self, window: &[Envelope]) -> Vec<Answer> {
        let elsewhere = || Outcome::Unavailable("this process delivers no messages".into());
        window.iter().map(|_| elsewhere().into()).collect()
    }

    fn serves(&self, _via: Option<&str>) -> bool {
        false
    }

    fn is_available(&self) -> bool {
        false
    }
}
