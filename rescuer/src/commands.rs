//! Where commands go: the seam between a rescuer and the broker.

use std::time::Duration;

use async_trait::async_trait;
use backon::{BackoffBuilder, ExponentialBuilder};
use document_outbox::command::ProcessDocumentMessages;
use tokio_util::sync::CancellationToken;

use crate::{context::Context, event::RescueEvent};

/// Sends commands and learns what became of each.
#[async_trait]
pub trait Commands: Send + Sync {
    /// Sends a window of commands and answers for each in its place: `Ok` once the broker has confirmed it.
    async fn send(&self, commands: Vec<ProcessDocumentMessages>) -> Vec<Result<(), SendFailure>>;

    /// Waits until a command sent now has a chance. May return early; must be safe to drop.
    async fn ready(&self);
}

/// Why a command was not confirmed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SendFailure {
    /// It may be confirmed when tried again.
    #[error("{0}")]
    Later(String),
    /// It can never be sent as it is.
    #[error("{0}")]
    Never(String),
}

/// What one window came to.
#[derive(Debug, Default)]
pub(crate) struct Sent {
    pub(crate) confirmed: Vec<ProcessDocumentMessages>,
    pub(crate) failed: Vec<ProcessDocumentMessages>,
}

/// Sends one window, and announces what became of it.
pub(crate) async fn send(context: &Context, commands: Vec<ProcessDocumentMessages>) -> Sent {
    let mut sent = Sent::default();
    if commands.is_empty() {
        return sent;
    }
    let mut answers = context.commands.send(commands.clone()).await.into_iter();
    let mut first_error = None;
    for command in commands {
        let lost = || Err(SendFailure::Later("there was no answer for it".into()));
        match answers.next().unwrap_or_else(lost) {
            Ok(()) => {
                tracing::debug!(document = %command.document, reason = %command.reason, "queued");
                context.events.emit(RescueEvent::Queued {
                    document: command.document.clone(),
                    reason: command.reason,
                });
                sent.confirmed.push(command);
            }
            Err(SendFailure::Later(error)) => {
                first_error.get_or_insert(error);
                sent.failed.push(command);
            }
            Err(SendFailure::Never(reason)) => {
                tracing::error!(document = %command.document, reason, "no command can be sent for this document");
                let document = command.document;
                context.events.emit(RescueEvent::Unsendable { document, reason });
            }
        }
    }
    if let Some(error) = first_error {
        let count = sent.failed.len();
        tracing::warn!(count, error, "commands were not confirmed; they are sent again");
        context.events.emit(RescueEvent::CommandsFailed { count, error });
    }
    sent
}

/// Sends until every command is confirmed, or can never be, and returns how many were; `None` when told to stop before.
pub(crate) async fn confirm_all(context: &Context, commands: Vec<ProcessDocumentMessages>) -> Option<usize> {
    let (mut pauses, mut left, mut confirmed) = (Pauses::new(), commands, 0);
    while !left.is_empty() {
        if context.stop.is_cancelled() {
            return None;
        }
        let sent = send(context, left).await;
        confirmed += sent.confirmed.len();
        context.note_queued(&sent.confirmed);
        left = sent.failed;
        if !left.is_empty() {
            pauses.pause(&context.stop).await;
            let until_ready = context.commands.ready();
            context.stop.run_until_cancelled(until_ready).await;
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

    /// Waits for the next pause, or until told to stop.
    pub(crate) async fn pause(&mut self, stop: &CancellationToken) {
        let pause = self.0.next().unwrap_or(LONGEST_PAUSE);
        stop.run_until_cancelled(tokio::time::sleep(pause)).await;
    }
}

const LONGEST_PAUSE: Duration = Duration::from_secs(10);
