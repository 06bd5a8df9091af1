//! Builds a test kit.

use std::{sync::Arc, time::Duration};

use mongodb::bson::DateTime;

use super::{
    kit::{Kit, KitParts},
    recorder::Recorder,
};
use crate::{
    dispatch::{InlineDispatcher, Mode, Processor, ProcessorSettings, RetryPolicy},
    mongo::{
        Backend,
        in_memory::{InMemory, time::ManualTime},
    },
};

/// Builds a [`Kit`].
#[derive(Debug, Clone)]
#[must_use]
pub struct KitBuilder {
    mode: Mode,
    retry: RetryPolicy,
    inline_lease: Duration,
    defer_clears: Duration,
    start: DateTime,
    most_deliveries: usize,
}

impl Default for Kit {
    fn default() -> Self {
        Self::new()
    }
}

impl Kit {
    /// Creates a kit with an empty database, in which a save returns after its messages were delivered.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    #[must_use]
    pub fn new() -> Self {
        Self::builder().build()
    }

    /// Returns a builder, for other settings.
    pub fn builder() -> KitBuilder {
        KitBuilder::new()
    }
}

impl KitBuilder {
    fn new() -> Self {
        Self {
            mode: Mode::Await,
            retry: RetryPolicy::default().with(|retry| retry.quick_tries = 0),
            inline_lease: Duration::from_secs(10),
            defer_clears: Duration::ZERO,
            start: DateTime::now(),
            most_deliveries: 1_000,
        }
    }

    /// Sets when a save delivers its messages. Default [`Mode::Await`], so that the messages are delivered when the
    /// save returns. With [`Mode::Off`] they wait for [`until_quiet`](Kit::until_quiet), as if the process had died
    /// after the save.
    pub fn mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    /// Sets how failures are retried. Default: the default of [`RetryPolicy`] without quick retries, so that one
    /// failure is one attempt. Quick retries follow without a pause.
    pub fn retry(mut self, retry: RetryPolicy) -> Self {
        self.retry = retry;
        self
    }

    /// Sets how long the claim of a save lasts. Default 10 s.
    pub fn inline_lease(mut self, lease: Duration) -> Self {
        self.inline_lease = lease;
        self
    }

    /// Sets how long a delivered message may stay in its document, by this machine's clock. Default zero. See
    /// [`InlineBuilder::defer_clears`](crate::dispatch::InlineBuilder::defer_clears).
    pub fn defer_clears(mut self, time: Duration) -> Self {
        self.defer_clears = time;
        self
    }

    /// Sets the time of the database at the start. Default: this machine's time.
    pub fn starting_at(mut self, start: impl Into<DateTime>) -> Self {
        self.start = start.into();
        self
    }

    /// Sets the number of deliveries after which [`until_quiet`](Kit::until_quiet) gives up. Default 1,000.
    pub fn most_deliveries(mut self, deliveries: usize) -> Self {
        self.most_deliveries = deliveries;
        self
    }

    /// Creates the kit.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    #[must_use]
    pub fn build(self) -> Kit {
        let database = match InMemory::new(ManualTime::starting_at(self.start)) {
            Ok(database) => database,
            Err(error) => panic!("the driver refuses a client without servers: {error}"),
        };

        let recorder = Recorder::new();
        let inline = InlineDispatcher::builder_on(Backend::InMemory(database.clone()))
            .mode(self.mode)
            .retry(self.retry.clone())
            .inline_lease(self.inline_lease)
            .defer_clears(self.defer_clears)
            .deliver_to(recorder.clone());
        let settings = ProcessorSettings::default().with(|settings| settings.retry = self.retry);
        let backend = Backend::InMemory(database.clone());
        let worker = Processor::worker(backend, Arc::new(recorder.clone()), settings);
        Kit::of(KitParts { database, recorder, inline, worker, most_deliveries: self.most_deliveries })
    }
}
