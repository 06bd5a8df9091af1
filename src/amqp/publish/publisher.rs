//! Publishes in windows, with confirms.
//!
//! # Flow
//!
//! Callers pass their messages to the supervisor and wait. While one window is in flight, the next window is
//! collected. The next window is sent as soon as all confirms of the first window have arrived. So a single message is
//! sent without delay and a thousand callers share round trips, and no timer is needed.
//!
//! # What happens on a failure
//!
//! - If RabbitMQ closes the channel because of one message (a routing key that the user has no permission to write to,
//!   a body over RabbitMQ's limit, a missing exchange), a new channel is opened on the same connection and the topology
//!   is applied to it. The messages of the window that have no answer are published again, each on a channel without
//!   other messages, so that only the refused message fails. From then on, similar messages are also published on
//!   channels without other messages.
//! - If RabbitMQ closes the connection because of one message, the unanswered messages are also published again one by
//!   one, while a new connection is made.
//! - If the connection ends for another reason, messages in flight without a definite answer are reported as
//!   unavailable and possibly sent, and waiting messages as not sent. A new connection is made.
//! - If the confirms do not arrive in time, messages without a confirm are reported as unavailable and possibly sent,
//!   and a new connection is made, unless the broker has blocked publishing. In that case the connection is kept until
//!   the alarm is over, because the broker would not announce the alarm on a new connection.
//! - While there is no connection, every message is reported as unavailable at once. Publishing resumes when a
//!   connection, its channel and the topology are ready; no message is used as a probe.
//! - If a message is unroutable although the topology binds a queue for it, the topology is declared again and the
//!   message is published again.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::{
    sync::{mpsc, watch},
    time::{Instant, timeout_at},
};

use crate::amqp::{
    connection::Plan,
    publish::{
        backlog::{Backlog, PublishRequest},
        closing::Closing,
        publication::{Limits, Publication, Published},
        quarantine::Quarantine,
        refusals::Refusals,
        supervisor::{FRAME_MAX, PublishSupervisor},
    },
    settings::AmqpSettings,
    state::{Board, State, States},
    supervise::supervise,
    topology::Topology,
};

/// Publishes messages and returns the outcome of each. Clones share one connection, which is closed when the last clone
/// is dropped.
#[derive(Clone, Debug)]
pub struct Publisher {
    requests: mpsc::UnboundedSender<PublishRequest>,
    states: States,
    closing: Closing,
    settings: Arc<AmqpSettings>,
    /// The maximum frame size of the current connection.
    frame_max: Arc<AtomicUsize>,
}

impl Publisher {
    /// Starts connecting in the background and returns at once.
    ///
    /// # Panics
    /// Panics outside a Tokio runtime.
    #[must_use]
    pub fn start(settings: AmqpSettings, topology: Topology) -> Self {
        let frame_max = Arc::new(AtomicUsize::new(FRAME_MAX));
        let shared = Arc::new(settings.clone());
        let plan = Arc::new(Plan { settings, topology, role: "publisher" });
        let board = Board::new(plan.name());
        let states = board.states();
        let (requests, inbox) = mpsc::unbounded_channel();
        let (broken, breaks) = mpsc::unbounded_channel();
        let closing = Closing::default();
        let refusals = Arc::new(Refusals::default());

        // The quarantine has its own connection, so that a refused message doesn't end the publisher's main connection.
        let apart = Arc::new(Plan { role: "suspects", ..(*plan).clone() });
        let supervisor = PublishSupervisor {
            quarantine: Quarantine::start(apart, refusals.clone(), broken),
            plan,
            inbox,
            board,
            frame_max: frame_max.clone(),
            refusals,
            breaks,
            closing: closing.clone(),
            backlog: Backlog::default(),
            abandoned: false,
        };
        tokio::spawn(supervise(supervisor));
        Self { requests, states, closing, settings: shared, frame_max }
    }

    /// Publishes messages and returns an answer for each, in order.
    ///
    /// Never fails and never waits for a connection. Waits for the window in flight and for its own window, at most
    /// [`confirm_timeout`](AmqpSettings::confirm_timeout) for each; the wait is longer only for messages that RabbitMQ
    /// may refuse by closing the channel. The messages of one call are sent in order, but a failed message does not
    /// block later ones. If a message causes the channel to be closed, the other messages may overtake each other. If
    /// this future is dropped, messages that have not been sent yet are not published.
    pub async fn publish(&self, publications: Vec<Publication>) -> Vec<Published> {
        self.publish_until(publications, None).await
    }

    /// Like [`publish`](Self::publish), but returns no later than the deadline. Messages without an answer by then may
    /// have been sent.
    pub async fn publish_until(
        &self,
        publications: Vec<Publication>,
        deadline: Option<Instant>,
    ) -> Vec<Published> {
        let state = self.states.now();
        if state != State::Ready {
            let unavailable = Published::Unavailable { reason: state.to_string(), maybe_sent: false };
            return vec![unavailable; publications.len()];
        }

        let limits =
            Limits { body: self.settings.max_message_bytes, frame: self.frame_max.load(Ordering::Relaxed) };
        let mut answers = Vec::with_capacity(publications.len());
        let mut sound = Vec::with_capacity(publications.len());
        for publication in publications {
            let refused = publication.flaw(limits).map(|reason| Published::Refused { reason });
            if refused.is_none() {
                sound.push(publication);
            }
            answers.push(refused);
        }

        let mut published = self.hand_over(sound, deadline).await.into_iter();
        let mut answered = Vec::with_capacity(answers.len());
        for answer in answers {
            let answer = answer.or_else(|| published.next().flatten());
            answered.push(answer.unwrap_or_else(|| Published::Unavailable {
                reason: "no confirm arrived in time".to_owned(),
                maybe_sent: true,
            }));
        }
        answered
    }

    async fn hand_over(
        &self,
        publications: Vec<Publication>,
        deadline: Option<Instant>,
    ) -> Vec<Option<Published>> {
        if publications.is_empty() {
            return Vec::new();
        }
        let (request, answers) = PublishRequest::new(publications);
        if let Err(mpsc::error::SendError(request)) = self.requests.send(request) {
            request.decline(&State::Closed.to_string());
        }

        match deadline {
            // Answers that have arrived by the deadline count, even if others are missing.
            Some(deadline) => drop(timeout_at(deadline, answers.complete()).await),
            None => answers.complete().await,
        }
        answers.take()
    }

    /// Whether a message published now would be sent.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.states.is_ready()
    }

    /// Waits until the publisher is ready. Returns false if it can no longer become ready, which is the case after
    /// [`close`](Self::close).
    pub async fn ready(&self) -> bool {
        self.states.ready().await
    }

    /// Returns a receiver of the state and of every later change.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<State> {
        self.states.subscribe()
    }

    /// Publishes the messages that are already queued, then closes the connection for all clones.
    ///
    /// Completes within seven seconds, whatever the broker does: it waits up to five seconds for confirms and up to two
    /// for the connection to close. Messages that are not confirmed by then may have been sent.
    pub async fn close(&self) {
        self.closing.ask();
        self.states.closed().await;
    }
}
