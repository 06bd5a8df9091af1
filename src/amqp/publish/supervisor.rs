//! The task behind a [`Publisher`](super::Publisher), which connects, publishes window after window, and starts again
//! after a failure.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval, timeout},
};

use crate::amqp::{
    connection::{ConnectionEvent, Link, Plan},
    publish::{
        backlog::{Backlog, Item, PublishRequest},
        closing::Closing,
        flight::{Failure, WindowOutcome, fly},
        publication::{Publication, Published},
        quarantine::{Quarantine, Suspect},
        refusals::{Refusals, Subject, longest_body},
        window::judge,
    },
    state::{Board, State},
    supervise::{End, Pauses, Supervised},
    topology::TopologyMode,
    trouble::{Cause, Trouble},
};

/// A window is full at this many messages or bytes. These limits are high enough to hide the round trip, and low enough
/// for the confirms to arrive well within their timeout.
const WINDOW_MESSAGES: usize = 1000;
const WINDOW_BYTES: usize = 8 * 1024 * 1024;
/// RabbitMQ's default maximum frame size, used until the first connection has negotiated a frame size.
pub(super) const FRAME_MAX: usize = 131_072;
/// If a closed channel ended its connection too, messages wait this long for a new connection.
const RENEWAL: Duration = Duration::from_secs(1);
/// The interval at which an idle connection is checked, because the client does not report every end of a connection.
const PULSE: Duration = Duration::from_secs(1);

pub(super) struct PublishSupervisor {
    pub(super) plan: Arc<Plan>,
    pub(super) inbox: mpsc::UnboundedReceiver<PublishRequest>,
    pub(super) board: Board,
    pub(super) frame_max: Arc<AtomicUsize>,
    pub(super) refusals: Arc<Refusals>,
    pub(super) quarantine: Quarantine,
    /// Failures of exchanges of the topology that accept no messages, as found by the quarantine.
    pub(super) breaks: mpsc::UnboundedReceiver<Trouble>,
    pub(super) closing: Closing,
    pub(super) backlog: Backlog,
    /// Whether a window was given up while the broker was blocked. Its confirms may still arrive, so no other window
    /// may use the same channel.
    pub(super) abandoned: bool,
}

impl Supervised for PublishSupervisor {
    fn board(&self) -> &Board {
        &self.board
    }

    fn pauses(&self) -> Pauses {
        Pauses::new(self.plan.settings.reconnect_min, self.plan.settings.reconnect_max)
    }

    fn open(&self) -> impl Future<Output = Result<Link, Trouble>> + Send + 'static {
        open(self.plan.clone(), self.frame_max.clone())
    }

    /// Declines every request while `work` runs.
    async fn meanwhile<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        tokio::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return Some(done),
                () = self.closing.asked() => return None,
                request = self.inbox.recv() => match request {
                    Some(request) => request.decline(&self.board.state().to_string()),
                    None => return None,
                },
            }
        }
    }

    /// Publishes window after window until the connection is lost or no longer needed.
    async fn serve(&mut self, link: &mut Link) -> End {
        self.refusals.forget_limits();
        self.board.post(State::Ready);
        self.abandoned = false;

        let mut pulse = interval(PULSE);
        pulse.set_missed_tick_behavior(MissedTickBehavior::Delay);
        if link.connection.status().blocked() {
            self.board.post(State::Blocked { reason: "noticed while connecting".to_owned() });
        }

        loop {
            // Check for a close before reading the inbox, so that all requests from before the close are already in
            // the inbox.
            let closing = self.closing.is_asked();
            self.gather().await;
            if closing && self.backlog.is_empty() {
                return End::Asked;
            }
            if let Ok(trouble) = self.breaks.try_recv() {
                return End::Lost(trouble);
            }
            let done = if self.backlog.is_empty() {
                self.idle(link, &mut pulse).await
            } else {
                self.publish(link).await
            };
            if let Err(end) = done {
                return end;
            }
        }
    }

    fn lost(&mut self, trouble: Trouble) {
        let state = State::from(trouble);
        let reported = state.to_string();
        self.board.post(state);
        self.backlog.decline(&reported);
    }

    async fn finish(&mut self) {
        self.backlog.decline(&State::Closed.to_string());
        self.quarantine.finish(self.closing.left()).await;
    }

    fn ended(&mut self) {
        self.inbox.close();
        while let Ok(request) = self.inbox.try_recv() {
            request.decline(&State::Closed.to_string());
        }
    }
}

impl PublishSupervisor {
    /// Waits for work.
    async fn idle(&mut self, link: &mut Link, pulse: &mut tokio::time::Interval) -> Result<(), End> {
        tokio::select! {
            biased;
            weather = link.event() => self.note(weather)?,
            Some(trouble) = self.breaks.recv() => return Err(End::Lost(trouble)),
            request = self.inbox.recv() => match request {
                Some(request) => self.take(request),
                None => return Err(End::Asked),
            },
            () = self.closing.asked() => return Ok(()),
            _ = pulse.tick() => {}
        }

        if !link.connection.status().connected() {
            return Err(End::lost("the connection ended"));
        }
        if !link.channel.status().connected() {
            self.replace_channel(link).await?;
        }
        Ok(())
    }

    /// Takes waiting messages from the inbox, up to a full window. If any messages wait, lets other ready callers run
    /// first. Otherwise, when several callers are woken together, the first caller would get a window of its own.
    async fn gather(&mut self) {
        loop {
            let had = self.backlog.len();
            if had > 0 {
                tokio::task::yield_now().await;
            }
            while self.backlog.len() < WINDOW_MESSAGES
                && let Ok(request) = self.inbox.try_recv()
            {
                self.take(request);
            }
            if self.backlog.len() == had || self.backlog.len() >= WINDOW_MESSAGES {
                return;
            }
        }
    }

    fn take(&mut self, request: PublishRequest) {
        if self.blocked() {
            request.decline(&self.board.state().to_string());
        } else {
            self.backlog.add(request);
        }
    }

    fn blocked(&self) -> bool {
        matches!(self.board.state(), State::Blocked { .. })
    }

    /// Updates the state after a notice from the broker. Returns an error if the connection is lost.
    fn note(&self, weather: ConnectionEvent) -> Result<(), End> {
        match weather {
            ConnectionEvent::Blocked(reason) => self.board.post(State::Blocked { reason }),
            ConnectionEvent::Unblocked if self.abandoned => {
                return Err(End::lost("the connection is replaced after a RabbitMQ alarm"));
            }
            ConnectionEvent::Unblocked => self.board.post(State::Ready),
            // The messages on the closed channel get their own errors.
            ConnectionEvent::ChannelClosed(_) => {}
            ConnectionEvent::Lost(reason) => return Err(End::lost(reason)),
        }
        Ok(())
    }

    /// Takes the next window. Messages that may make RabbitMQ close the channel are left out and published separately.
    fn next_window(&mut self) -> Vec<Item> {
        let mut window = Vec::new();
        for item in self.backlog.window(WINDOW_MESSAGES, WINDOW_BYTES) {
            if self.refusals.suspects(&item.publication) {
                self.quarantine.put(Suspect { item, alone: false });
            } else {
                window.push(item);
            }
        }
        window
    }

    /// Publishes one window and answers all its messages. Returns an error if the connection must be given up.
    async fn publish(&mut self, link: &mut Link) -> Result<(), End> {
        let items = self.next_window();
        if items.is_empty() {
            return Ok(());
        }
        let outcome = self.fly(link, &items).await;
        let Some(failure) = &outcome.failure else {
            let left = self.settle(items, &outcome);
            return self.declare_for(left.unrouted, link).await;
        };
        match failure.cause {
            Cause::Channel(_) if !self.blocked() => {
                self.learn_limit(&failure.reason, &items);
                let left = self.settle(items, &outcome);
                self.replace_channel_for(left.undecided, link, &failure.reason).await?;
                self.declare_for(left.unrouted, link).await
            }
            Cause::Connection(_) => {
                let trouble = Trouble::Unreachable(failure.reason.clone());
                self.lost(trouble.clone());
                for item in self.settle(items, &outcome).undecided {
                    self.quarantine.put(Suspect { item, alone: true });
                }
                Err(End::Lost(trouble))
            }
            Cause::Channel(_) | Cause::Lost => self.give_up(items, &outcome, failure, link),
        }
    }

    /// Publishes a window and waits for its confirms, until the wait must end.
    async fn fly(&self, link: &mut Link, items: &[Item]) -> WindowOutcome {
        let channel = link.channel.clone();
        let flight = fly(&channel, items, &self.plan.settings);
        let overdue = self.closing.overdue_for(items);
        tokio::pin!(flight, overdue);
        loop {
            tokio::select! {
                biased;
                outcome = &mut flight => return outcome,
                weather = link.event() => if let Err(End::Lost(trouble)) = self.note(weather) {
                    // Confirms normally fail by themselves when the connection ends; this limit covers a confirm that
                    // does not fail.
                    let late = |_| WindowOutcome::nothing(items.len(), Failure::lost(trouble.to_string()));
                    return timeout(PULSE, &mut flight).await.unwrap_or_else(late);
                },
                () = &mut overdue => {
                    let reason = "the publisher was closed before the confirms came";
                    return WindowOutcome::nothing(items.len(), Failure::lost(reason));
                }
            }
        }
    }

    /// Answers the messages of a window that got no answers, and all messages waiting behind that window.
    fn give_up(
        &mut self,
        items: Vec<Item>,
        outcome: &WindowOutcome,
        failure: &Failure,
        link: &mut Link,
    ) -> Result<(), End> {
        let trouble = Trouble::Unreachable(failure.reason.clone());
        self.abandoned = self.blocked() && link.alive();

        // Post the state before answering, so that a caller that gets the failure already sees the publisher as not
        // ready.
        if self.abandoned {
            self.backlog.decline(&self.board.state().to_string());
        } else {
            self.lost(trouble.clone());
        }
        for item in self.settle(items, outcome).undecided {
            item.settle(Published::Unavailable { reason: failure.reason.clone(), maybe_sent: true });
        }
        if self.abandoned { Ok(()) } else { Err(End::Lost(trouble)) }
    }

    /// Gives the callers the answers of a window. Returns the messages that have no answer yet.
    fn settle(&self, items: Vec<Item>, outcome: &WindowOutcome) -> Left {
        let ids: Vec<&str> = items.iter().map(|item| item.publication.message_id.as_str()).collect();
        let reason = match &outcome.failure {
            Some(failure) => &failure.reason,
            None => "RabbitMQ gave no usable answer",
        };
        let verdicts = judge(&ids, &outcome.answers, &outcome.returns, reason);
        let declares = self.plan.topology.mode == TopologyMode::Declare;
        let mut left = Left::default();

        for (item, verdict) in items.into_iter().zip(verdicts) {
            let Publication { exchange, routing_key, .. } = &item.publication;
            match verdict {
                Published::Unavailable { .. } if outcome.failure.is_some() => left.undecided.push(item),
                Published::Unroutable { .. }
                    if declares && self.plan.topology.routes(exchange, routing_key) =>
                {
                    left.unrouted.push((item, verdict));
                }
                verdict => item.settle(verdict),
            }
        }
        left
    }

    /// If RabbitMQ's error names a size limit, refuses the messages that exceed this limit.
    fn learn_limit(&self, said: &str, items: &[Item]) {
        let Some(limit) = longest_body(said) else {
            return;
        };
        if let Some(item) = items.iter().find(|item| item.publication.body.len() > limit) {
            self.refusals.note(&Subject::Longer(limit), &item.publication, said);
        }
    }

    /// Continues with a new channel, and publishes the unanswered messages of the closed channel separately.
    async fn replace_channel_for(
        &mut self,
        undecided: Vec<Item>,
        link: &mut Link,
        reason: &str,
    ) -> Result<(), End> {
        // Apply the topology first, so that a deleted exchange exists again when its messages are published.
        let replaced = self.replace_channel(link).await;
        if let Err(End::Lost(trouble)) = &replaced {
            self.lost(trouble.clone());
        }
        let reason = match &replaced {
            Err(End::Lost(trouble)) => format!("{reason}; then {trouble}"),
            _ => reason.to_owned(),
        };
        for item in undecided {
            if replaced.is_ok() {
                self.quarantine.put(Suspect { item, alone: false });
            } else {
                item.settle(Published::Unavailable { reason: reason.clone(), maybe_sent: true });
            }
        }
        replaced
    }

    async fn replace_channel(&self, link: &mut Link) -> Result<(), End> {
        let replacing = async {
            let replaced = publishing_channel(&self.plan, &link.connection).await;
            match replaced {
                Ok(channel) => {
                    link.channel = channel;
                    Ok(())
                }
                Err(trouble @ Trouble::Misconfigured(_)) => Err(trouble),
                // The broker ends the connection if the client sent more on the closed channel. Then another
                // connection is opened at once, so that no message has to be declined.
                Err(trouble) => {
                    let opening = timeout(RENEWAL, open(self.plan.clone(), self.frame_max.clone())).await;
                    *link = opening.unwrap_or(Err(trouble))?;
                    self.refusals.forget_limits();
                    Ok(())
                }
            }
        };
        tokio::select! {
            replaced = replacing => replaced.map_err(End::Lost),
            () = self.closing.overdue() => Err(End::Asked),
        }
    }

    /// Declares the topology again, because these messages were unroutable although the topology binds queues for them,
    /// and then publishes the messages again.
    async fn declare_for(&mut self, unrouted: Vec<(Item, Published)>, link: &mut Link) -> Result<(), End> {
        if unrouted.is_empty() {
            return Ok(());
        }
        tracing::warn!(
            count = unrouted.len(),
            "messages were unroutable although the topology binds queues for them; declaring the topology again"
        );
        let declared = tokio::select! {
            declared = self.plan.declare_again(&link.connection) => declared.map_err(End::Lost),
            () = self.closing.overdue() => Err(End::Asked),
        };

        if let Err(End::Lost(trouble)) = &declared {
            self.lost(trouble.clone());
        }
        for (item, verdict) in unrouted {
            match &declared {
                Ok(()) => self.quarantine.put(Suspect { item, alone: false }),
                Err(_) => item.settle(verdict),
            }
        }
        declared
    }
}

/// Messages of a window that have no answer yet.
#[derive(Default)]
struct Left {
    undecided: Vec<Item>,
    /// Messages that were unroutable although the topology binds queues for them.
    unrouted: Vec<(Item, Published)>,
}

async fn open(plan: Arc<Plan>, frame_max: Arc<AtomicUsize>) -> Result<Link, Trouble> {
    let link = plan.open().await?;
    plan.confirms(&link.channel).await?;
    let negotiated = usize::try_from(link.connection.configuration().frame_max()).unwrap_or(FRAME_MAX);
    frame_max.store(negotiated, Ordering::Relaxed);
    Ok(link)
}

/// Opens a channel with confirms, after the topology was applied.
async fn publishing_channel(plan: &Plan, connection: &lapin::Connection) -> Result<lapin::Channel, Trouble> {
    let channel = plan.channel(connection).await?;
    plan.confirms(&channel).await?;
    Ok(channel)
}
