//! Sends commands, one window at a time, until the broker has confirmed every command.

use std::{sync::Arc, time::Instant};

use document_outbox::{
    SendFailure,
    command::{ProcessDocumentMessages, Reason},
};
use parking_lot::{Mutex, MutexGuard};

use super::{read_whole, recently_queued::RecentlyQueued};
use crate::{
    halt::Run,
    judge::inspect::{Inspector, Wanted},
    leadership::{ability::Broker, term::Term},
    lineage::Lineage,
    observe::event::RescueEvent,
    pauses::Pauses,
};

/// Reports of a failure use this text as the end of the sentence "could not …".
const SENDING: &str = "send commands";

/// Sends commands for one leadership term, and remembers their documents.
pub(crate) struct Sender {
    term: Arc<Term>,
    inspector: Arc<Inspector>,
    broker: Arc<Broker>,
    lineage: Lineage,
    queued: Mutex<RecentlyQueued>,
}

/// The result of one window of commands.
#[derive(Debug, Default)]
pub(crate) struct Sent {
    /// The number of commands that the broker confirmed.
    pub(crate) confirmed: usize,
    /// The documents whose commands may be confirmed by a retry.
    pub(crate) failed: Vec<Wanted>,
    first_failure: Option<SendFailure>,
}

impl Sender {
    pub(crate) fn new(
        term: Arc<Term>,
        inspector: Arc<Inspector>,
        broker: Arc<Broker>,
        lineage: Lineage,
        queued: RecentlyQueued,
    ) -> Self {
        Self { term, inspector, broker, lineage, queued: Mutex::new(queued) }
    }

    /// The recently queued documents.
    pub(crate) fn queued(&self) -> MutexGuard<'_, RecentlyQueued> {
        self.queued.lock()
    }

    /// Waits until commands can probably be sent.
    pub(crate) async fn ready(&self) -> Run<()> {
        self.term.unless_stopped(self.broker.commands.ready()).await
    }

    /// Sends until every command is either confirmed or can never be confirmed. Returns the number of
    /// confirmed commands.
    pub(crate) async fn send_all(&self, wanted: Vec<Wanted>, reason: Reason) -> Run<usize> {
        let (mut pauses, mut left, mut confirmed) = (Pauses::new(), wanted, 0);
        while !left.is_empty() {
            let sent = self.send(left, reason).await?;
            confirmed += sent.confirmed;
            if sent.confirmed > 0 {
                self.term.report.page_moved();
            }

            left = sent.failed;
            if !left.is_empty() {
                pauses.pause(&self.term.stop).await;
                self.ready().await?;
            }
        }
        Ok(confirmed)
    }

    /// Sends one window, remembers the documents whose commands were confirmed, and reports the result for
    /// each document.
    pub(crate) async fn send(&self, wanted: Vec<Wanted>, reason: Reason) -> Run<Sent> {
        if wanted.is_empty() {
            return Ok(Sent::default());
        }
        self.term.check()?;

        let wanted = read_whole::confirm(&self.term, &self.inspector, &self.queued, wanted).await;
        if wanted.is_empty() {
            return Ok(Sent::default());
        }

        let cluster = self.lineage.cluster();
        let mut commands = Vec::with_capacity(wanted.len());
        for wanted in &wanted {
            commands.push(ProcessDocumentMessages::new(wanted.document.clone(), reason).of_cluster(cluster));
        }
        // A stop doesn't wait for confirms that may never come. A command that was sent without a
        // confirm will be sent again after the next start, which is harmless.
        let answers = self.term.unless_stopped(self.broker.commands.send(commands)).await?;

        let mut sent = Sent::default();
        let mut answers = answers.into_iter();
        for wanted in wanted {
            let unanswered = || Err(SendFailure::Unavailable("the broker did not answer".into()));
            let answer = answers.next().unwrap_or_else(unanswered);
            self.settle(wanted, answer, reason, &mut sent);
        }
        self.report(&sent);
        Ok(sent)
    }

    /// Remembers and reports the broker's answer to one command.
    fn settle(&self, wanted: Wanted, answer: Result<(), SendFailure>, reason: Reason, sent: &mut Sent) {
        match answer {
            Ok(()) => {
                tracing::debug!(document = %wanted.document, %reason, "queued");
                self.queued().note(&wanted.document, &wanted.head, Instant::now());
                if let Some(due) = wanted.due {
                    self.term.report.rescued(reason, due);
                }
                self.term.report.emit(RescueEvent::Queued { document: wanted.document, reason });
                sent.confirmed += 1;
            }
            Err(failure) if failure.is_transient() => {
                sent.first_failure.get_or_insert(failure);
                sent.failed.push(wanted);
            }
            Err(failure) => {
                self.queued().note_unsendable(&wanted.document, &wanted.head, Instant::now());
                self.term.report.unsendable(wanted.document, failure.to_string());
            }
        }
    }

    fn report(&self, sent: &Sent) {
        self.broker.note(sent.confirmed, sent.failed.len());
        if sent.confirmed > 0 {
            self.term.report.healed(SENDING);
        }

        if let Some(failure) = &sent.first_failure {
            let count = sent.failed.len();
            self.term.report.trouble(SENDING, &format!("{failure} ({count} were not confirmed)"));
            self.term.report.emit(RescueEvent::CommandsFailed { count, error: failure.to_string() });
        }
    }
}
