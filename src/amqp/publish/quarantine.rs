//! Publishes messages that may make RabbitMQ close their channel, each on a channel without other messages.
//!
//! # Flow
//!
//! RabbitMQ refuses some messages by closing the channel, or even the connection. RabbitMQ reports the kind of refusal
//! but not which message it refused, and earlier messages on that channel get no answer. So this module publishes all
//! unanswered messages of the window, and also messages that are similar to a recently refused message ([`Refusals`]).
//! All of these messages share one connection, which is opened when needed and closed when unused for a while. The
//! connection has a few channels, which are reused while they stay open. If a channel is closed, the only message on
//! it was the cause; if the connection is closed, the cause is known if only one message was on it.
//!
//! # Guarantees
//!
//! A message that was first published together with others is published again here at most once.
//!
//! # Caveats
//!
//! Messages of the same window may overtake each other here.

use std::{collections::VecDeque, pin::Pin, slice, sync::Arc, time::Duration};

use futures::{StreamExt, stream::FuturesUnordered};
use lapin::{Channel, Connection};
use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{sleep, timeout},
};

use crate::amqp::{
    connection::{Plan, close},
    publish::{
        backlog::Item,
        flight::{Failure, WindowOutcome, fly},
        publication::Published,
        refusals::{Refusals, Subject},
        window::judge,
    },
    trouble::{Cause, Trouble},
};

/// Maximum number of channels in use at the same time. With this many channels, publishing a thousand messages takes
/// less than a second.
const ABREAST: usize = 16;
/// The connection is closed after it was unused for this long.
const IDLE: Duration = Duration::from_secs(10);

/// A message that may be refused.
pub(super) struct Suspect {
    pub(super) item: Item,
    /// Whether the message may end the whole connection and must be the only one on it.
    pub(super) alone: bool,
}

/// The task that publishes suspects. Dropping this value ends the task; messages without an answer are then
/// reported as possibly sent.
pub(super) struct Quarantine {
    suspects: mpsc::UnboundedSender<Suspect>,
    task: JoinHandle<()>,
}

impl Quarantine {
    /// Starts the task. `broken` receives the failure of each exchange of the topology that accepts no messages at all.
    pub(super) fn start(
        plan: Arc<Plan>,
        refusals: Arc<Refusals>,
        broken: mpsc::UnboundedSender<Trouble>,
    ) -> Self {
        let (suspects, inbox) = mpsc::unbounded_channel();
        let ward = QuarantineTask {
            plan,
            refusals,
            broken,
            inbox,
            waiting: VecDeque::new(),
            connection: None,
            channels: Vec::new(),
            trials: FuturesUnordered::new(),
            alone: false,
        };
        Self { suspects, task: tokio::spawn(ward.run()) }
    }

    pub(super) fn put(&self, suspect: Suspect) {
        // On an error the suspect is dropped, which answers its caller.
        let _ = self.suspects.send(suspect);
    }

    /// Finishes the messages in the quarantine, within the time `patience`.
    pub(super) async fn finish(&mut self, patience: Duration) {
        let (nobody, _) = mpsc::unbounded_channel();
        self.suspects = nobody;
        let _ = timeout(patience, &mut self.task).await;
    }
}

impl Drop for Quarantine {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct QuarantineTask {
    plan: Arc<Plan>,
    refusals: Arc<Refusals>,
    broken: mpsc::UnboundedSender<Trouble>,
    inbox: mpsc::UnboundedReceiver<Suspect>,
    waiting: VecDeque<Suspect>,
    connection: Option<Arc<Connection>>,
    /// The open channels that are not in use.
    channels: Vec<Channel>,
    trials: FuturesUnordered<Pin<Box<dyn Future<Output = Trial> + Send>>>,
    /// Whether the running trial must be the only one on the connection.
    alone: bool,
}

/// The result of publishing one message.
struct Trial {
    suspect: Suspect,
    channel: Option<Channel>,
    outcome: WindowOutcome,
}

impl QuarantineTask {
    async fn run(mut self) {
        let mut open = true;
        loop {
            self.begin_trials().await;
            if !open && self.trials.is_empty() && self.waiting.is_empty() {
                break;
            }
            let idle = self.connection.is_some() && self.trials.is_empty();

            tokio::select! {
                suspect = self.inbox.recv(), if open => match suspect {
                    Some(suspect) => self.waiting.push_back(suspect),
                    None => open = false,
                },
                Some(trial) = self.trials.next() => self.conclude(trial),
                () = sleep(IDLE), if idle => self.hang_up().await,
            }
        }
        self.hang_up().await;
    }

    /// Begins trials until the maximum number is running.
    async fn begin_trials(&mut self) {
        while let Some(suspect) = self.waiting.front() {
            let room = match self.connection.as_ref().map(|connection| connection.configuration()) {
                Some(negotiated) => ABREAST.min(usize::from(negotiated.channel_max())),
                None => ABREAST,
            };
            let full = if suspect.alone { 1 } else { room };
            if self.alone || self.trials.len() >= full {
                return;
            }
            let Some(suspect) = self.waiting.pop_front() else {
                return;
            };
            if suspect.item.is_abandoned() {
                continue;
            }
            if let Some(answer) = self.refusals.fresh(&suspect.item.publication) {
                self.answer(suspect, answer);
                continue;
            }

            match self.connection().await {
                Ok(connection) => {
                    self.alone = suspect.alone;
                    let (plan, channel) = (self.plan.clone(), self.channels.pop());
                    self.trials.push(Box::pin(attempt(plan, connection, channel, suspect)));
                }
                Err(trouble) => {
                    let reason = trouble.to_string();
                    suspect.item.settle(Published::Unavailable { reason: reason.clone(), maybe_sent: true });
                    self.give_up(&reason);
                }
            }
        }
    }

    async fn connection(&mut self) -> Result<Arc<Connection>, Trouble> {
        if let Some(connection) = self.connection.take_if(|connection| !connection.status().connected()) {
            drop(connection);
            self.channels.clear();
        }
        if let Some(connection) = &self.connection {
            return Ok(connection.clone());
        }

        let connection = Arc::new(self.plan.connect().await?);
        Ok(self.connection.insert(connection).clone())
    }

    fn conclude(&mut self, trial: Trial) {
        let Trial { suspect, channel, outcome } = trial;
        let publication = &suspect.item.publication;
        let was_alone = std::mem::take(&mut self.alone);

        let Some(failure) = &outcome.failure else {
            let ids = [publication.message_id.as_str()];
            let verdict = judge(&ids, &outcome.answers, &outcome.returns, "RabbitMQ gave no usable answer");
            self.refusals.lift(publication);
            self.channels.extend(channel);
            return suspect.item.settle(verdict.into_iter().next().unwrap_or(Published::Nacked));
        };
        match failure.cause {
            Cause::Channel(code) => self.refused(suspect, code, &failure.reason),
            Cause::Connection(code) => {
                self.forget_connection();
                if was_alone {
                    return self.refused(suspect, code, &failure.reason);
                }
                self.waiting.push_front(Suspect { alone: true, ..suspect });
            }
            Cause::Lost => {
                let reason = failure.reason.clone();
                self.forget_connection();
                suspect.item.settle(Published::Unavailable { reason: reason.clone(), maybe_sent: true });
                self.give_up(&reason);
            }
        }
    }

    fn refused(&self, suspect: Suspect, code: u16, said: &str) {
        let publication = &suspect.item.publication;
        let subject = Subject::of(publication, code, said);
        let answer = self.refusals.note(&subject, publication, said);
        self.answer(suspect, answer);
    }

    fn answer(&self, suspect: Suspect, answer: Published) {
        // A whole exchange is unavailable. If the topology contains this exchange, the publisher can't be used without
        // it.
        if let Published::Unavailable { reason, .. } = &answer
            && self.plan.topology.has_exchange(&suspect.item.publication.exchange)
        {
            let _ = self.broken.send(Trouble::Misconfigured(reason.clone()));
        }
        suspect.item.settle(answer);
    }

    /// Answers all waiting messages as unavailable. There is no connection for them now, but they may have been sent
    /// earlier.
    fn give_up(&mut self, reason: &str) {
        for suspect in std::mem::take(&mut self.waiting) {
            let reason = reason.to_owned();
            suspect.item.settle(Published::Unavailable { reason, maybe_sent: true });
        }
    }

    fn forget_connection(&mut self) {
        self.channels.clear();
        self.connection = None;
    }

    async fn hang_up(&mut self) {
        self.channels.clear();
        if let Some(connection) = self.connection.take() {
            close(&connection).await;
        }
    }
}

/// Publishes one message on a channel without other messages.
async fn attempt(
    plan: Arc<Plan>,
    connection: Arc<Connection>,
    channel: Option<Channel>,
    suspect: Suspect,
) -> Trial {
    let channel = match channel.filter(|channel| channel.status().connected()) {
        Some(channel) => Ok(channel),
        None => plan.confirming_channel(&connection).await,
    };
    match channel {
        Ok(channel) => {
            let outcome = fly(&channel, slice::from_ref(&suspect.item), &plan.settings).await;
            Trial { suspect, channel: Some(channel), outcome }
        }
        Err(trouble) => {
            let outcome = WindowOutcome::nothing(1, Failure::lost(trouble.to_string()));
            Trial { suspect, channel: None, outcome }
        }
    }
}
