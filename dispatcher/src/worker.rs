//! Processes a command from its delivery to its settlement.

use std::{
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use document_outbox::{
    DocumentRef,
    amqp::Delivery,
    command::{ProcessDocumentMessages, Reason},
    dispatch::{Processed, Processor},
    internal::{DocumentLock, DocumentLocks, Hold, Repeats},
    observe::Events,
};
use mongodb::bson::DateTime;
use tokio::sync::{Semaphore, broadcast};

use crate::{
    ability::{Ability, Useless},
    admission::admit,
    cluster::{Cluster, Origin},
    decision::{CommandState, Decision, Policy, Unable},
    event::{DispatcherEvent, Left},
    metrics,
    pass::Passes,
    put_back::{self, Prefetch, Waiting},
    rate::Limiter,
    reach,
    settings::DispatcherSettings,
    stops::Stops,
};

/// The pause after a wait for a destination. It doubles each time the destination is still unavailable,
/// for example when one of several destinations is available and another is not.
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// The state that all commands of a worker share.
pub(crate) struct Worker {
    processor: Processor,
    limiter: Option<Arc<Limiter>>,
    settings: DispatcherSettings,
    events: Events<DispatcherEvent>,
    turns: DocumentLocks,
    passes: Passes,
    /// Room for commands that are kept until a message of their document is due, or until a failed pass is
    /// retried.
    holds: Semaphore,
    /// The number of commands that are kept, for any reason.
    kept: AtomicUsize,
    /// The maximum number of unsettled commands that this worker can process.
    prefetch: u16,
    /// Commands that will be requeued after a pause.
    put_back: Waiting,
    cluster: Cluster,
    ability: Ability,
    repeats: Repeats,
    stops: Stops,
}

/// The answer to the broker about a command.
enum Settlement {
    Acknowledge(DispatcherEvent),
    PutBack(Unable),
    GiveBack,
}

/// How long a command has waited for a destination, and how long the next pause is.
struct DestinationWait {
    waited: Duration,
    pause: Duration,
}

impl Worker {
    pub(crate) fn new(processor: Processor, settings: DispatcherSettings) -> Self {
        let stops = Stops::default();
        let concurrency = settings.concurrency_at_rate().min(Semaphore::MAX_PERMITS);
        let prefetch = settings.prefetch_at_rate();

        // The processor asks the limiter right before each claim.
        let limiter =
            settings.rate.map(|rate| Arc::new(Limiter::new(rate, concurrency, stops.intake.clone())));
        let processor = match &limiter {
            Some(limiter) => processor.paced(limiter.clone()),
            None => processor,
        };

        Self {
            limiter,
            events: Events::default(),
            turns: DocumentLocks::default(),
            passes: Passes::new(processor.clone(), concurrency, stops.clone()),
            holds: Semaphore::new(usize::from(prefetch / 2)),
            kept: AtomicUsize::new(0),
            prefetch,
            put_back: Waiting::default(),
            cluster: Cluster::new(processor.state_database()),
            ability: Ability::new(),
            repeats: Repeats::default(),
            processor,
            stops,
            settings,
        }
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<DispatcherEvent> {
        self.events.subscribe()
    }

    pub(crate) fn settings(&self) -> &DispatcherSettings {
        &self.settings
    }

    pub(crate) fn stops(&self) -> &Stops {
        &self.stops
    }

    pub(crate) fn ability(&self) -> &Ability {
        &self.ability
    }

    /// The current maximum number of unsettled commands. Commands that wait to be requeued take no room
    /// from others.
    pub(crate) fn prefetch_now(&self) -> u16 {
        let room = u16::try_from(self.put_back.room()).unwrap_or(u16::MAX);
        self.prefetch.saturating_add(room)
    }

    pub(crate) fn prefetch(&self) -> u16 {
        self.prefetch
    }

    /// The number of commands that wait to be requeued.
    pub(crate) fn to_put_back(&self) -> usize {
        self.put_back.count()
    }

    /// Checks repeatedly whether MongoDB can be reached.
    pub(crate) async fn watch_mongodb(&self) {
        reach::watch(self.processor.client(), &self.cluster, &self.ability).await;
    }

    pub(crate) fn delivery_available(&self) -> bool {
        self.processor.deliverer().is_available()
    }

    pub(crate) fn concurrency(&self) -> usize {
        self.passes.concurrency()
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.passes.in_flight()
    }

    pub(crate) fn kept(&self) -> usize {
        self.kept.load(Ordering::Relaxed)
    }

    pub(crate) fn throttled(&self) -> Duration {
        match &self.limiter {
            Some(limiter) => limiter.throttled(),
            None => Duration::ZERO,
        }
    }

    /// Counts and emits an event about a command. `reason` is why the command was sent; it is `None` for a
    /// refused command.
    fn announce(&self, event: DispatcherEvent, reason: Option<Reason>) {
        metrics::event(&event, reason);
        self.events.emit(event);
    }

    /// Processes a delivery until it is settled.
    pub(crate) async fn handle(self: Arc<Self>, delivery: Delivery) {
        let taken = Instant::now();

        // Any user with permission to publish to the exchange can write anything there.
        let admitted = admit(delivery.message_type.as_deref(), &delivery.body, &self.settings.watch);
        let ProcessDocumentMessages { document, reason, cluster } = match admitted {
            Ok(command) => command,
            Err(refusal) => {
                if let Some(count) = self.repeats.count("refused") {
                    tracing::warn!(%refusal, bytes = delivery.body.len(), count, "a command was refused");
                }
                delivery.reject().await;
                return self.announce(DispatcherEvent::Refused { refusal }, None);
            }
        };
        self.announce(DispatcherEvent::Taken { document: document.clone(), reason }, Some(reason));

        let settlement = match self.cluster.home_of(cluster).await {
            Origin::OtherCluster => Settlement::PutBack(Unable::OtherCluster),
            Origin::ThisCluster => self.work_on(&document, taken).await,
            Origin::Unknown => elsewhere_if_gone(self.work_on(&document, taken).await),
        };

        match settlement {
            // A command can't be acknowledged once its connection is lost. This is harmless: when
            // the broker redelivers the command, its messages are already gone.
            Settlement::Acknowledge(event) => {
                if matches!(event, DispatcherEvent::Finished { .. }) {
                    self.ability.useful();
                }
                delivery.ack().await;
                self.announce(event, Some(reason));
            }
            Settlement::PutBack(unable) => self.put_back(delivery, document, reason, unable).await,
            Settlement::GiveBack => {
                delivery.requeue().await;
                self.announce(DispatcherEvent::GivenBack { document }, Some(reason));
            }
        }
    }

    /// Leaves a command to another worker, by requeueing it after a pause.
    async fn put_back(&self, mut delivery: Delivery, document: DocumentRef, reason: Reason, unable: Unable) {
        // A worker that gets only commands that it cannot process must stop taking commands.
        match &unable {
            Unable::OtherCluster => self.ability.useless(Useless::OtherCluster),
            Unable::Refused(_) => self.ability.useless(Useless::Refused),
            Unable::Away(reason) => reach::note_unreachable(&self.ability, reason),
            Unable::Full(_) => {}
        }

        let kind = unable.kind();
        let why = Left::from(unable);
        if let Some(count) = self.repeats.count(kind) {
            tracing::warn!(%document, ?why, count, "this worker cannot process a command; the command is requeued");
        }

        // The command may be megabytes long, and is no longer needed.
        delivery.body = Vec::new();

        // The prefetch grows by one for the command while the command waits.
        if self.put_back.begin() == Prefetch::Changes {
            self.ability.notify();
        }
        tokio::select! {
            () = tokio::time::sleep(put_back::pause(delivery.delivery_count)) => {}
            () = self.stops.intake.cancelled() => {}
        }
        delivery.requeue().await;
        if self.put_back.end() == Prefetch::Changes {
            self.ability.notify();
        }

        self.announce(DispatcherEvent::PutBack { document, why }, Some(reason));
    }

    /// Processes the document of a command that was taken at `taken`, until the command can be settled.
    async fn work_on(&self, document: &DocumentRef, taken: Instant) -> Settlement {
        let _turn = match self.wait_for_turn(document, taken).await {
            Ok(turn) => turn,
            Err(settlement) => return settlement,
        };

        let mut policy = Policy::new(&self.settings);
        let mut wait = DestinationWait { waited: Duration::ZERO, pause: SHORTEST_PAUSE };

        // A pass skips messages that failed or are not due yet. Each decision says either how the command
        // ends, or how long to wait before the next pass, since another command for the document may not
        // arrive soon.
        loop {
            let kept = self.settings.keep_within.saturating_sub(taken.elapsed());
            let order = self.settings.order_of(&document.namespace);
            let Some(outcome) = self.passes.run(document, order, kept).await else {
                return Settlement::GiveBack;
            };

            let state = CommandState {
                now: self.processor.clock().now().await.unwrap_or_else(|_unasked| DateTime::now()),
                kept: taken.elapsed(),
                unavailable: wait.waited,
                stopping: self.stops.intake.is_cancelled(),
            };

            let waited = match policy.decide(outcome, state) {
                Decision::Finish(processed) => {
                    let document = document.clone();
                    return Settlement::Acknowledge(DispatcherEvent::Finished { document, processed });
                }
                Decision::Leave(why) => return self.leave(document, why),
                Decision::PutBack(unable) => return Settlement::PutBack(unable),
                Decision::GiveBack => return Settlement::GiveBack,
                Decision::Hold(pause, hold) => self.hold(document, pause, hold).await,
                Decision::Retry(pause, why) => self.retry(document, pause, why).await,
                Decision::Await(longest) => self.await_destination(document, longest, &mut wait).await,
            };

            // A wait may end early, by a stop, or because the command has been kept for too long.
            if let ControlFlow::Break(settlement) = waited {
                return settlement;
            }
        }
    }

    /// Waits for the exclusive right to work on the document. If the command doesn't get this right, the returned
    /// error is the command's settlement.
    async fn wait_for_turn(
        &self,
        document: &DocumentRef,
        taken: Instant,
    ) -> Result<DocumentLock, Settlement> {
        let longest = self.settings.keep_within.saturating_sub(taken.elapsed());
        let turn = tokio::select! {
            turn = self.turns.join(document) => turn,
            () = self.stops.intake.cancelled() => return Err(Settlement::GiveBack),
            () = tokio::time::sleep(longest) => return Err(self.leave(document, Left::TookTooLong)),
        };

        turn.ok_or_else(|| Settlement::Acknowledge(DispatcherEvent::Coalesced { document: document.clone() }))
    }

    /// Keeps the command until the first message of its document is due.
    async fn hold(&self, document: &DocumentRef, pause: Duration, hold: Hold) -> ControlFlow<Settlement> {
        let Ok(_room) = self.holds.try_acquire() else {
            return ControlFlow::Break(self.leave(document, Left::Held(hold)));
        };
        self.keep(document, Left::Held(hold), tokio::time::sleep(pause)).await
    }

    /// Keeps the command for a pause after an error. Then the next pass begins.
    async fn retry(&self, document: &DocumentRef, pause: Duration, why: Left) -> ControlFlow<Settlement> {
        // The number of commands kept after errors is bounded, because commands for a failing collection must
        // not take all the room.
        let Ok(_room) = self.holds.try_acquire() else {
            return ControlFlow::Break(Settlement::PutBack(Unable::Full(why)));
        };
        if let Some(count) = self.repeats.count("retry") {
            tracing::warn!(%document, ?why, count, "the document could not be processed; retrying");
        }
        self.keep(document, why, tokio::time::sleep(pause)).await
    }

    /// Keeps the command until the destination is available, or until `longest` has passed. The next pass
    /// finds out whether the destination is available.
    async fn await_destination(
        &self,
        document: &DocumentRef,
        longest: Duration,
        wait: &mut DestinationWait,
    ) -> ControlFlow<Settlement> {
        let began = Instant::now();
        let pause = wait.pause.min(longest);
        let available = async {
            let _ = tokio::time::timeout(longest, self.processor.deliverer().available()).await;
            tokio::time::sleep(pause).await;
        };
        self.keep(document, Left::Unavailable, available).await?;

        wait.pause = (wait.pause * 2).min(LONGEST_PAUSE);
        wait.waited += began.elapsed();
        ControlFlow::Continue(())
    }

    /// Waits while holding the command, but stops waiting when the worker stops.
    async fn keep(
        &self,
        document: &DocumentRef,
        why: Left,
        wait: impl Future<Output = ()>,
    ) -> ControlFlow<Settlement> {
        self.events.emit(DispatcherEvent::Kept { document: document.clone(), why });

        self.kept.fetch_add(1, Ordering::Relaxed);
        let waited = self.stops.intake.run_until_cancelled(wait).await;
        self.kept.fetch_sub(1, Ordering::Relaxed);

        match waited {
            Some(()) => ControlFlow::Continue(()),
            None => ControlFlow::Break(Settlement::GiveBack),
        }
    }

    /// Leaves the document's messages to the sweep.
    fn leave(&self, document: &DocumentRef, why: Left) -> Settlement {
        if !matches!(why, Left::MongoDb(_)) {
            tracing::debug!(%document, ?why, "the document's messages are left to the sweep");
        } else if let Some(count) = self.repeats.count("left") {
            tracing::warn!(%document, ?why, count, "the document could not be processed; leaving it to the sweep");
        }

        Settlement::Acknowledge(DispatcherEvent::LeftToSweep { document: document.clone(), why })
    }
}

/// Corrects the settlement of a command in a cluster without a collection of positions, which has no UUID by
/// which to recognise its own commands. If the command's document does not exist here, the command is from
/// another cluster.
fn elsewhere_if_gone(settlement: Settlement) -> Settlement {
    match settlement {
        Settlement::Acknowledge(DispatcherEvent::Finished { processed: Processed::Gone, .. }) => {
            Settlement::PutBack(Unable::OtherCluster)
        }
        other => other,
    }
}
