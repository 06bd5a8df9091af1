//! Where commands go: the seam between a rescuer and the broker.

use std::time::Duration;

use async_trait::async_trait;
use backon::{BackoffBuilder, ExponentialBuilder};
use document_outbox::{
    CommandSender, DocumentRef, SendFailure,
    amqp::Publisher,
    command::{ProcessDocumentMessages, Reason},
};
use mongodb::bson::DateTime;
use tokio_util::sync::CancellationToken;

use crate::{
    judge::verdict::{Head, Moment},
    leadership::term::Context,
    observe::event::RescueEvent,
    observe::unsendable,
    send::read_whole,
};

/// Sends commands and learns what became of each.
#[async_trait]
pub trait Commands: Send + Sync {
    /// Sends a window of commands and answers for each in its place: `Ok` once the broker has confirmed it.
    async fn send(&self, commands: Vec<ProcessDocumentMessages>) -> Vec<Result<(), SendFailure>>;

    /// Waits until a command sent now has a chance. May return early; may be dropped.
    async fn ready(&self);

    /// Whether a command sent now has a chance, as far as that is known without sending one. A rescuer that can't send
    /// leaves its streams to one that can.
    fn is_ready(&self) -> bool {
        true
    }
}

/// Commands by way of RabbitMQ.
#[derive(Debug, Clone)]
pub struct BrokerCommands {
    publisher: Publisher,
    sender: CommandSender,
}

impl BrokerCommands {
    /// Sends to `exchange` through `publisher`, which was started with [`CommandSender::topology`] or on a broker that has
    /// it.
    pub fn new(publisher: Publisher, exchange: impl Into<String>) -> Self {
        let sender = CommandSender::new(publisher.clone(), exchange);
        Self { publisher, sender }
    }
}

#[async_trait]
impl Commands for BrokerCommands {
    async fn send(&self, commands: Vec<ProcessDocumentMessages>) -> Vec<Result<(), SendFailure>> {
        self.sender.send(commands).await
    }

    async fn ready(&self) {
        // False means closed for good; the next send then says so.
        self.publisher.ready().await;
    }

    fn is_ready(&self) -> bool {
        self.publisher.is_ready()
    }
}

/// A document that wants a command, in the state in which it was found.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    pub(crate) document: DocumentRef,
    pub(crate) head: Head,
    /// Since when it was due for rescue, where that can be told.
    pub(crate) due: Option<DateTime>,
    /// When it was found.
    pub(crate) moment: Moment,
    /// Whether what was read of it doesn't say enough.
    pub(crate) is_unsure: bool,
}

/// What one window came to.
#[derive(Debug, Default)]
pub(crate) struct Sent {
    /// How many are with the broker.
    pub(crate) confirmed: usize,
    /// Those that may be confirmed when tried again.
    pub(crate) failed: Vec<Wanted>,
}

const SENDING: &str = "send commands";

/// Sends one window, remembers what was confirmed, and announces what became of each.
pub(crate) async fn send(context: &Context, wanted: Vec<Wanted>, reason: Reason) -> Sent {
    let mut sent = Sent::default();
    if wanted.is_empty() {
        return sent;
    }
    if context.is_over() {
        sent.failed = wanted;
        return sent;
    }
    let wanted = read_whole::confirm(context, wanted).await;
    if wanted.is_empty() {
        return sent;
    }
    let cluster = context.positions.cluster();
    let command =
        |wanted: &Wanted| ProcessDocumentMessages::new(wanted.document.clone(), reason).of_cluster(cluster);
    let sending = context.commands.send(wanted.iter().map(command).collect());
    // A stop doesn't wait for confirms that may never come. What was sent all the same is a command too many.
    let Some(answers) = context.stop.run_until_cancelled(sending).await else {
        sent.failed = wanted;
        return sent;
    };
    let mut answers = answers.into_iter();
    let mut first_failure = None;
    for wanted in wanted {
        let unanswered = || Err(SendFailure::Unavailable("there was no answer for it".into()));
        match answers.next().unwrap_or_else(unanswered) {
            Ok(()) => {
                tracing::debug!(document = %wanted.document, %reason, "queued");
                context.queued().note(&wanted.document, &wanted.head, std::time::Instant::now());
                if let Some(due) = wanted.due {
                    context.report.rescued(reason, due);
                }
                context.report.emit(RescueEvent::Queued { document: wanted.document, reason });
                sent.confirmed += 1;
            }
            Err(failure) if failure.is_transient() => {
                first_failure.get_or_insert(failure);
                sent.failed.push(wanted);
            }
            Err(failure) => {
                context.queued().note_unsendable(&wanted.document, &wanted.head, std::time::Instant::now());
                let (document, reason) = (wanted.document, failure.to_string());
                if context.report.unsendable(&document, &reason) {
                    let document_name = unsendable::name(&document);
                    tracing::error!(document = document_name, %failure, "no command can be sent for this document");
                    context.report.emit(RescueEvent::Unsendable { document, reason });
                }
            }
        }
    }
    context.sending.note(sent.confirmed, sent.failed.len());
    if sent.confirmed > 0 {
        context.report.healed(SENDING);
    }
    if let Some(failure) = first_failure {
        let count = sent.failed.len();
        context.report.trouble(SENDING, &format!("{failure} ({count} were not confirmed)"));
        context.report.emit(RescueEvent::CommandsFailed { count, error: failure.to_string() });
    }
    sent
}

/// Sends until every command is confirmed, or can never be, and returns how many were; `None` when told to stop before.
pub(crate) async fn send_all(context: &Context, wanted: Vec<Wanted>, reason: Reason) -> Option<usize> {
    let (mut pauses, mut left, mut confirmed) = (Pauses::new(), wanted, 0);
    while !left.is_empty() {
        if context.is_over() {
            return None;
        }
        let sent = send(context, left, reason).await;
        confirmed += sent.confirmed;
        if sent.confirmed > 0 {
            context.report.page_moved();
        }
        left = sent.failed;
        if !left.is_empty() {
            pauses.pause(&context.stop).await;
            context.stop.run_until_cancelled(context.commands.ready()).await;
        }
    }
    Some(confirmed)
}

/// Growing, jittered pauses between tries, from 100 ms to 10 s.
pub(crate) struct Pauses(Box<dyn Iterator<Item = Duration> + Send>);

impl Pauses {
    pub(crate) fn new() -> Self {
        let delays = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(100))
            .with_max_delay(LONGEST_PAUSE / 2)
            .with_jitter()
            .without_max_times();
        Self(Box::new(delays.build()))
    }

    pub(crate) fn next(&mut self) -> Duration {
        self.0.next().unwrap_or(LONGEST_PAUSE)
    }

    /// Waits for the next pause, or until stopped.
    pub(crate) async fn pause(&mut self, stop: &CancellationToken) {
        stop.run_until_cancelled(tokio::time::sleep(self.next())).await;
    }
}

const LONGEST_PAUSE: Duration = Duration::from_secs(10);
