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
                lease: Duration::from_secs(10),
                counts_claims: false,
                max_repeats: 1_024,
                state_database: STATE_DATABASE.into(),
                ..ProcessorSettings::default()
            },
        }
    }

    /// An inline dispatcher that delivers nothing, for a process that only saves: the rescuer delivers. It knows of no
    /// handlers: its messages are for the broker. Where some are for handlers, use [`Mode::Off`] with the deliverer that
    /// the delivering processes have.
    pub fn off(client: &Client) -> Self {
        Self::builder(client).mode(Mode::Off).deliver_to(Elsewhere)
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

    /// How many bytes the messages in delivery may take in memory, and as many the outboxes that are read to deliver what is in
    /// them. A save that finds no room leaves its messages to the rescuer, as it does without a seat. Default 64 MiB.
    pub fn memory_bytes(mut self, bytes: usize) -> Self {
        self.settings.memory_bytes = bytes;
        self
    }

    /// How many messages may be published and not yet cleared: so many at most are repeated when the process is killed, and
    /// those that [`defer_clears`](Self::defer_clears) lets stay. Deliveries wait beyond that. Default 1,024.
    pub fn max_repeats(mut self, messages: usize) -> Self {
        self.settings.max_repeats = messages;
        self
    }

    /// How long a claim holds; shorter than the rescuer's delay. Default 10 s.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.settings.lease = lease;
        self
    }

    /// What is done about failures.
    pub fn retry(mut self, retry: RetryPolicy) -> Self {
        self.settings.retry = retry;
        self
    }

    /// Begins the value of every claim, shown to operators. Default: the process id.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.settings.name = name.into();
        self
    }

    /// Where to send a document whose delivery failed, so that a worker continues at once. Without, the sweep finds it.
    #[cfg(feature = "rabbitmq")]
    pub fn hand_off(mut self, commands: CommandSender) -> Self {
        self.hand_off = Some(commands);
        self
    }

    /// Whether concurrent saves go to MongoDB together, as one command with a statement each: several times the throughput
    /// under load, and the same answers. A save that comes alone is sent alone either way. Default on.
    pub fn group_commit(mut self, on: bool) -> Self {
        self.settings.group_commit = on;
        self
    }

    /// How long a message that was delivered may stay in its document: at most a quarter of the lease. The next save of that
    /// document takes it out meanwhile, without a write of its own; those that nobody saves in time are cleared together. Default
    /// zero: each is cleared at once, and in [`Mode::Await`] a save returns when that is done.
    ///
    /// It costs repeats: what stays is delivered again when the process dies, or ends without [`close`](InlineDispatcher::close). And to
    /// other processes it looks undelivered: what they send from the same document waits for it.
    pub fn defer_clears(mut self, time: Duration) -> Self {
        self.defer_clears = time;
        self
    }

    /// The library's own database, as the services have it. Default `document_outbox`.
    pub fn state_database(mut self, name: impl Into<String>) -> Self {
        self.settings.state_database = name.into();
        self
    }

    /// Starts it. Must be called inside a tokio runtime; connects to nothing by itself.
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

/// The deliverer of a process that delivers nothing.
struct Elsewhere;

#[async_trait::async_trait]
impl Deliver for Elsewhere {
    async fn deliver(&self, window: &[Envelope]) -> Vec<Answer> {
        let elsewhere = || Outcome::Unavailable("nothing is delivered from this process".into());
        window.iter().map(|_| elsewhere().into()).collect()
    }

    fn serves(&self, _via: Option<&str>) -> bool {
        false
    }

    fn is_available(&self) -> bool {
        false
    }
}
