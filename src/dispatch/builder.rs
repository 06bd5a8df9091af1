//! Builds an inline dispatcher.

use std::{sync::Arc, time::Duration};

use mongodb::Client;

use crate::{
    command::sender::CommandSender,
    deliver::{Answer, Deliver, Envelope, Outcome, late::LateDeliverer},
    dispatch::{
        deliveries::Deliveries,
        inline::{InlineDispatcher, Mode},
        processor::Processor,
        retry::RetryPolicy,
        seats::Seats,
        settings::{ProcessorSettings, STATE_DATABASE},
    },
    mongo::Backend,
    stored::memory::Memory,
};

/// Builds an [`InlineDispatcher`].
#[derive(Debug)]
#[must_use]
pub struct InlineBuilder {
    backend: Backend,
    mode: Mode,
    capacity: usize,
    hand_off: Option<CommandSender>,
    defer_clears: Duration,
    settings: ProcessorSettings,
}

impl InlineDispatcher {
    /// Returns a builder of an inline dispatcher that works through this client.
    pub fn builder(client: &Client) -> InlineBuilder {
        Self::builder_on(Backend::Server(client.clone()))
    }

    /// Returns a builder of an inline dispatcher that works on this database.
    pub(crate) fn builder_on(backend: Backend) -> InlineBuilder {
        InlineBuilder {
            backend,
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

    /// Creates an inline dispatcher that does not deliver, for a process that only saves. The messages of this process
    /// are left to the rescuer. All of them are stored for the broker, because this dispatcher has no handlers. If some
    /// messages are for handlers, use [`Mode::Off`] with the same deliverer as in the processes that deliver.
    pub fn off(client: &Client) -> Self {
        Self::builder(client).mode(Mode::Off).deliver_to(NoDelivery)
    }
}

impl InlineBuilder {
    /// Sets when messages are delivered. Default [`Mode::Background`].
    pub fn mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    /// Sets the maximum number of saves whose messages are in delivery at once. Default 1,024.
    pub fn capacity(mut self, capacity: usize) -> Self {
        self.capacity = capacity;
        self
    }

    /// Limits the memory for messages in delivery, in bytes. The outboxes that are read for delivery may take up the
    /// same amount of memory again. If the messages of a save don't fit, the rescuer delivers them. Default 64 MiB.
    pub fn memory_bytes(mut self, bytes: usize) -> Self {
        self.settings.memory_bytes = bytes;
        self
    }

    /// Limits the number of messages that are published and not yet cleared; further deliveries wait. If the process is
    /// killed, at most this many messages are repeated, plus the delivered messages that
    /// [`defer_clears`](Self::defer_clears) leaves in their documents. Default 1,024.
    pub fn max_repeats(mut self, messages: usize) -> Self {
        self.settings.max_repeats = messages;
        self
    }

    /// Sets how long a claim lasts. Choose a time shorter than the rescuer's delay. Default 10 s.
    pub fn inline_lease(mut self, lease: Duration) -> Self {
        self.settings.claim_lease = lease;
        self
    }

    /// Sets how failures are retried.
    pub fn retry(mut self, retry: RetryPolicy) -> Self {
        self.settings.retry = retry;
        self
    }

    /// Sets the prefix of every claim's value. Operators see this prefix in stored entries. Default: the process id.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.settings.name = name.into();
        self
    }

    /// Sends a command to the workers for each document whose delivery failed, so that a worker continues the delivery
    /// at once. Without this setting, the rescuer's sweep finds the document later.
    #[cfg(feature = "rabbitmq")]
    pub fn hand_off(mut self, commands: CommandSender) -> Self {
        self.hand_off = Some(commands);
        self
    }

    /// Sets whether concurrent saves are sent to MongoDB together, in one command with a statement for each save.
    /// Sending saves together multiplies the throughput under load, and doesn't change the outcome of any save. A
    /// single save is always sent alone. Default on.
    pub fn group_commit(mut self, on: bool) -> Self {
        self.settings.group_commit = on;
        self
    }

    /// Sets how long a delivered message may stay in its document, at most a quarter of the lease. The next save of
    /// that document removes the message without a separate write; messages of documents that are not saved in time are
    /// cleared together. Default zero: each message is cleared at once, and in [`Mode::Await`] a save returns after the
    /// clear.
    ///
    /// The price is repeats: messages that are still in their documents when the process dies, or ends without
    /// [`close`](InlineDispatcher::close), are delivered again. To other processes these messages also appear
    /// undelivered. So if another process sends later messages from the same document, the later messages wait until
    /// these messages are cleared.
    pub fn defer_clears(mut self, time: Duration) -> Self {
        self.defer_clears = time;
        self
    }

    /// Sets the name of the library's own database. The services must use the same name. Default `document_outbox`.
    pub fn state_database(mut self, name: impl Into<String>) -> Self {
        self.settings.state_database = name.into();
        self
    }

    /// Starts the inline dispatcher. Must be called inside a tokio runtime. Makes no connection by itself.
    pub fn deliver_to(self, deliver: impl Deliver) -> InlineDispatcher {
        self.deliver_to_shared(Arc::new(deliver))
    }

    /// Starts the inline dispatcher with a deliverer that needs it. Functions that receive messages in this process need
    /// stores, and the stores need the inline dispatcher, so that the messages of the receiving aggregates are delivered
    /// too. `make` gets the inline dispatcher before it can deliver, and must not save anything. Must be called inside a
    /// tokio runtime.
    ///
    /// ```no_run
    /// # use document_outbox::{Aggregate, InlineDispatcher, Outbox, Store};
    /// # use document_outbox::deliver::{Handlers, HandlersError};
    /// # #[derive(serde::Serialize, serde::Deserialize, Aggregate)]
    /// # struct Stock { #[serde(rename = "_id")] sku: String, #[serde(skip)] outbox: Outbox }
    /// # fn receiving(stocks: &Store<Stock>) -> document_outbox::receive::Subscriptions { todo!() }
    /// # fn example(client: &mongodb::Client) -> Result<InlineDispatcher, HandlersError> {
    /// let collection = client.database("shop").collection::<Stock>("stocks");
    /// InlineDispatcher::builder(client).deliver_to_with(|inline| {
    ///     let stocks = Store::<Stock>::new(collection, inline);
    ///     Handlers::builder().subscriptions("stock", receiving(&stocks)).build()
    /// })
    /// # }
    /// ```
    ///
    /// The inline dispatcher and its deliverer then keep each other, so both stay in memory until the process ends.
    ///
    /// # Errors
    /// The error of `make`.
    pub fn deliver_to_with<D: Deliver, E>(
        self,
        make: impl FnOnce(&InlineDispatcher) -> Result<D, E>,
    ) -> Result<InlineDispatcher, E> {
        let late = LateDeliverer::default();
        let inline = self.deliver_to(late.clone());
        late.set(make(&inline)?);
        Ok(inline)
    }

    /// Starts the inline dispatcher with a shared deliverer.
    pub fn deliver_to_shared(self, deliver: Arc<dyn Deliver>) -> InlineDispatcher {
        let seats = Seats::new(self.capacity, Memory::of(self.settings.memory_bytes));
        let processor =
            Processor::inline(self.backend, deliver, self.settings, self.capacity, self.defer_clears);

        InlineDispatcher::start(self.mode, seats, Deliveries::new(processor, self.hand_off))
    }
}

/// A deliverer for a process that does not deliver.
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
