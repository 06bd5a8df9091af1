//! Publishing in windows, with confirms.
//!
//! # Flow
//!
//! Callers pass their messages to the supervisor and wait. While one window is in flight, the next one is
//! collected; when all confirms of the first have arrived, the next is sent at once. So a single message does
//! not wait, and a thousand callers share round trips, without a timer.
//!
//! # What happens when it fails
//!
//! - RabbitMQ closes the channel because of one message (a routing key that the user may not write to, a body
//!   over its limit, an exchange that isn't there): a fresh channel is made on the same connection and the
//!   topology applied to it. The messages of the window without an answer are published again, each on a
//!   channel that carries no other, so that only the refused one fails. From then on messages of its kind are
//!   published that way.
//! - RabbitMQ closes the connection because of one message: the same, and a new connection is made meanwhile.
//! - The connection ends otherwise: messages without a definite answer are unavailable and may have been
//!   sent, waiting ones were not; a new connection is made.
//! - The confirms do not come in time: the same. If the broker is blocked, the connection is kept, because a
//!   new one would not get the alarm, and it is replaced once the alarm is over.
//! - There is no connection: everything is unavailable at once. This ends when a connection with its channel
//!   and topology is made; no message is used as a probe.
//! - A message is unroutable although the topology binds a queue for it: the topology is declared again, and
//!   the message is published again.

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

/// Publishes messages and returns the outcome of each. Clones share one connection, which ends with the last.
#[derive(Clone, Debug)]
pub struct Publisher {
    requests: mpsc::UnboundedSender<PublishRequest>,
    states: States,
    closing: Closing,
    settings: Arc<AmqpSettings>,
    /// The longest frame of the current connection.
    frame_max: Arc<AtomicUsize>,
}

impl Publisher {
    /// Starts connecting in the background and returns at once.
    ///
    /// # Panics
    /// Outside a Tokio runtime.
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

        // It has its own connections, so that a refused message doesn't end this one.
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

    /// Publishes, and returns an answer for each message, in order.
    ///
    /// Never fails and never waits for a connection. Waits for the window before, and for this one, each at
    /// most [`confirm_timeout`](AmqpSettings::confirm_timeout); longer only for messages that RabbitMQ may
    /// refuse by closing the channel. Messages of one call are sent in their order, but a failed one does not
    /// block those behind it, and if a channel was closed because of one of them, the others may overtake
    /// each other. If this future is dropped, messages that were not sent yet are not published.
    pub async fn publish(&self, publications: Vec<Publication>) -> Vec<Published> {
        self.publish_until(publications, None).await
    }

    /// Like [`publish`](Self::publish), and answers at the deadline for all messages: those without an answer by then may
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
            // Even if some answers are missing by then, the others count.
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

    /// Waits until ready. False once that is no longer possible, after [`close`](Self::close).
    pub async fn ready(&self) -> bool {
        self.states.ready().await
    }

    /// The state, and every change of it from now on.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<State> {
        self.states.subscribe()
    }

    /// Publishes the messages that it already has, then closes the connection, for all clones.
    ///
    /// Ends within seven seconds, whatever the broker does: messages that it has not confirmed after five may
    /// have been sent, and it waits two for the close of the connection.
    pub async fn close(&self) {
        self.closing.ask();
        self.states.closed().await;
    }
}
