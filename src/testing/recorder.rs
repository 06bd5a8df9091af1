//! A deliverer that records its messages and fails when a test asks for it.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, OnceLock},
};

use async_trait::async_trait;
use parking_lot::{Mutex, MutexGuard};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use crate::{
    aggregate::message::Message,
    deliver::{Answer, Deliver, Envelope, Outcome},
};

/// One try to deliver a message, with its outcome.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct RecordedDelivery {
    /// The message.
    pub envelope: Envelope,
    /// The outcome of the try.
    pub outcome: Outcome,
}

/// A deliverer that records its messages and fails when a test asks for it. Clones share the records.
///
/// Messages that a deliverer of the application serves, such as [`Handlers`](crate::deliver::Handlers), are passed on
/// to that deliverer. All other messages count as delivered to the broker. A recorder also works with an inline
/// dispatcher on a real server.
#[derive(Clone, Default)]
pub struct Recorder {
    shared: Arc<SharedRecords>,
}

struct SharedRecords {
    application: OnceLock<Arc<dyn Deliver>>,
    records: Mutex<Records>,
    /// Number of tries, including those whose records were removed.
    tries: watch::Sender<usize>,
    available: watch::Sender<bool>,
}

#[derive(Default)]
struct Records {
    deliveries: Vec<RecordedDelivery>,
    /// The outcomes of tries that must fail, by the number of the try.
    failures: BTreeMap<usize, Outcome>,
    /// The outcome of every try, if all must fail.
    failing: Option<Outcome>,
    /// Number of tries that have begun.
    begun: usize,
}

impl Default for SharedRecords {
    fn default() -> Self {
        Self {
            application: OnceLock::new(),
            records: Mutex::default(),
            tries: watch::Sender::new(0),
            available: watch::Sender::new(true),
        }
    }
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder").field("tries", &self.tries()).finish_non_exhaustive()
    }
}

impl Recorder {
    /// Creates a recorder without records.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Passes messages on to a deliverer of the application, if that deliverer serves them. Call it before the first
    /// save, because the deliverer decides which `via` is stored with a message.
    ///
    /// # Panics
    /// If messages are already passed on to a deliverer. Combine several with a [`Router`](crate::deliver::Router).
    pub fn deliver_to(&self, deliver: impl Deliver) {
        let is_first = self.shared.application.set(Arc::new(deliver)).is_ok();
        assert!(
            is_first,
            "the recorder already passes messages on; combine several deliverers with a `Router`"
        );
    }

    /// Every try so far, in order, with its outcome.
    #[must_use]
    pub fn deliveries(&self) -> Vec<RecordedDelivery> {
        self.records().deliveries.clone()
    }

    /// The messages that were delivered, in order. A message that was delivered twice occurs twice.
    #[must_use]
    pub fn delivered(&self) -> Vec<Envelope> {
        let records = self.records();
        let delivered = records.deliveries.iter().filter(|delivery| delivery.outcome == Outcome::Delivered);
        delivered.map(|delivery| delivery.envelope.clone()).collect()
    }

    /// The types of the messages that were delivered, in order.
    #[must_use]
    pub fn types(&self) -> Vec<String> {
        self.delivered().into_iter().map(|envelope| envelope.message_type).collect()
    }

    /// The delivered messages of one type, in order.
    ///
    /// # Panics
    /// If a message of this type can't be decoded.
    #[must_use]
    pub fn messages<M: Message + DeserializeOwned>(&self) -> Vec<M> {
        let mut messages = Vec::new();
        for envelope in self.delivered() {
            if M::is_named(&envelope.message_type) {
                match envelope.decode() {
                    Ok(message) => messages.push(message),
                    Err(error) => panic!("a message of the type `{}`: {error}", envelope.message_type),
                }
            }
        }
        messages
    }

    /// Removes all records.
    pub fn forget(&self) {
        self.records().deliveries.clear();
    }

    /// Makes the n-th try from now fail with this outcome; 1 is the next one. The message doesn't reach a deliverer of
    /// the application.
    pub fn fail_nth(&self, n: usize, outcome: Outcome) {
        let mut records = self.records();
        let number = records.begun + n.max(1);
        records.failures.insert(number, outcome);
    }

    /// Makes every try fail with this outcome, until [`succeed`](Self::succeed) is called.
    pub fn fail_all(&self, outcome: Outcome) {
        self.records().failing = Some(outcome);
    }

    /// Removes every failure that was asked for.
    pub fn succeed(&self) {
        let mut records = self.records();
        records.failing = None;
        records.failures.clear();
    }

    /// Makes the destination available or unavailable. No message is claimed for an unavailable destination.
    pub fn set_available(&self, is_available: bool) {
        self.shared.available.send_replace(is_available);
    }

    /// Number of tries so far.
    pub(super) fn tries(&self) -> usize {
        *self.shared.tries.borrow()
    }

    /// Waits until there were this many tries.
    pub(super) async fn reach(&self, tries: usize) {
        let mut seen = self.shared.tries.subscribe();
        // The sender lives as long as this recorder.
        drop(seen.wait_for(|seen| *seen >= tries).await);
    }

    fn records(&self) -> MutexGuard<'_, Records> {
        self.shared.records.lock()
    }

    fn application(&self) -> Option<&Arc<dyn Deliver>> {
        self.shared.application.get()
    }

    /// Counts the tries of a window, and returns the failures that were asked for.
    fn begin(&self, window: &[Envelope]) -> Vec<Option<Answer>> {
        let mut records = self.records();
        let mut answers = Vec::with_capacity(window.len());
        for _envelope in window {
            records.begun += 1;
            let number = records.begun;
            let failure = records.failures.remove(&number).or_else(|| records.failing.clone());
            answers.push(failure.map(Answer::from));
        }
        answers
    }

    /// Delivers the messages of a window that have no answer yet.
    async fn deliver_unanswered(&self, window: &[Envelope], answers: &mut [Option<Answer>]) {
        let Some(application) = self.application() else { return };
        let mut places = Vec::new();
        let mut part = Vec::new();
        for (place, envelope) in window.iter().enumerate() {
            if answers[place].is_none() && application.serves(envelope.via.as_deref()) {
                places.push(place);
                part.push(envelope.clone());
            }
        }
        if part.is_empty() {
            return;
        }

        let mut answered = application.deliver(&part).await.into_iter();
        for place in places {
            let missing =
                || Outcome::Transient("the deliverer did not answer for every message".into()).into();
            answers[place] = Some(answered.next().unwrap_or_else(missing));
        }
    }
}

#[async_trait]
impl Deliver for Recorder {
    async fn deliver(&self, window: &[Envelope]) -> Vec<Answer> {
        let mut answers = self.begin(window);
        self.deliver_unanswered(window, &mut answers).await;

        let accepted = || Answer::from(Outcome::Delivered);
        let answers: Vec<Answer> =
            answers.into_iter().map(|answer| answer.unwrap_or_else(accepted)).collect();
        for (envelope, answer) in window.iter().zip(&answers) {
            let recorded = RecordedDelivery { envelope: envelope.clone(), outcome: answer.outcome.clone() };
            self.records().deliveries.push(recorded);
        }
        self.shared.tries.send_modify(|tries| *tries += window.len());
        answers
    }

    fn via(&self, message_type: &str) -> Option<&str> {
        self.application()?.via(message_type)
    }

    fn serves(&self, via: Option<&str>) -> bool {
        via.is_none() || self.application().is_some_and(|application| application.serves(via))
    }

    fn is_available(&self) -> bool {
        *self.shared.available.borrow()
            && self.application().is_none_or(|application| application.is_available())
    }

    async fn available(&self) {
        // The sender lives as long as this recorder.
        drop(self.shared.available.subscribe().wait_for(|available| *available).await);
        if let Some(application) = self.application() {
            application.available().await;
        }
    }
}
