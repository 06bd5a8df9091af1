//! One command, from its delivery to its settlement.

use std::{
    panic::AssertUnwindSafe,
    pin::pin,
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
    internal::Turns,
    observe::Events,
};
use futures::FutureExt;
use mongodb::bson::DateTime;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::{
    DispatcherEvent, DispatcherSettings, Left,
    ability::{Ability, Useless},
    admission::admit,
    cluster::{Belongs, Cluster},
    decision::{Decision, Known, Next, Pass, Unable},
    metrics,
    put_back::{self, Waiting},
    rate::Limiter,
    reach,
    repeats::Repeats,
};

/// The pause after a wait for a way to deliver. It doubles each time there turns out to be none all the same, as where one of
/// several ways is there and another is not.
const BREATH: Duration = Duration::from_millis(50);
const LONGEST_BREATH: Duration = Duration::from_secs(10);

/// What all commands of a worker share.
pub(crate) struct Work {
    processor: Processor,
    limiter: Option<Arc<Limiter>>,
    settings: DispatcherSettings,
    events: Events<DispatcherEvent>,
    turns: Turns,
    /// How many documents may be processed at a time, and the places for them.
    concurrency: usize,
    slots: Semaphore,
    /// Commands kept for a document that is due in a moment.
    holds: Semaphore,
    /// Commands that wait for whatever reason.
    kept: AtomicUsize,
    /// At most this many commands are in hand that this worker can work on.
    prefetch: u16,
    /// Commands that are put back after a pause.
    put_back: Waiting,
    cluster: Cluster,
    ability: Ability,
    repeats: Repeats,
    stops: Stops,
}

/// The two steps of a stop.
#[derive(Default)]
pub(crate) struct Stops {
    /// No command is taken, none is kept, nothing waits for the rate.
    pub(crate) intake: CancellationToken,
    /// Claims are given back.
    pub(crate) release: CancellationToken,
}

/// How the work on a command ended.
enum End {
    Acknowledge(DispatcherEvent),
    PutBack(Unable),
    GiveBack,
}

impl Work {
    pub(crate) fn new(processor: Processor, settings: DispatcherSettings) -> Self {
        let stops = Stops::default();
        let concurrency = match settings.rate {
            None => settings.concurrency.min(Semaphore::MAX_PERMITS),
            Some(rate) => settings.concurrency.min(rate.abreast()),
        };
        let limiter =
            settings.rate.map(|rate| Arc::new(Limiter::new(rate, concurrency, stops.intake.clone())));
        let processor = match &limiter {
            Some(limiter) => processor.paced(limiter.clone()),
            None => processor,
        };
        let prefetch = settings.prefetch_at_rate();
        Self {
            limiter,
            events: Events::default(),
            turns: Turns::default(),
            concurrency,
            slots: Semaphore::new(concurrency),
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

    pub(crate) fn events(&self) -> &Events<DispatcherEvent> {
        &self.events
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

    /// How many unsettled commands the consumer may hold now: those that wait to be put back take no room from others.
    pub(crate) fn prefetch_now(&self) -> u16 {
        let room = u16::try_from(self.put_back.room()).unwrap_or(u16::MAX);
        self.prefetch.saturating_add(room)
    }

    pub(crate) fn prefetch(&self) -> u16 {
        self.prefetch
    }

    /// How many commands wait to be put back.
    pub(crate) fn to_put_back(&self) -> usize {
        self.put_back.count()
    }

    /// Asks for ever whether MongoDB can be reached.
    pub(crate) async fn watch_mongodb(&self) {
        reach::watch(self.processor.client(), &self.cluster, &self.ability).await;
    }

    pub(crate) fn delivery_available(&self) -> bool {
        self.processor.deliverer().is_available()
    }

    pub(crate) fn concurrency(&self) -> usize {
        self.concurrency
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.concurrency.saturating_sub(self.slots.available_permits())
    }

    pub(crate) fn kept(&self) -> usize {
        self.kept.load(Ordering::Relaxed)
    }

    pub(crate) fn throttled(&self) -> Duration {
        self.limiter.as_ref().map_or(Duration::ZERO, |limiter| limiter.throttled())
    }

    fn tell(&self, event: DispatcherEvent, reason: Option<Reason>) {
        metrics::event(&event, reason);
        self.events.emit(event);
    }

    pub(crate) async fn handle(self: Arc<Self>, delivery: Delivery) {
        let taken = Instant::now();
        let admitted = admit(delivery.message_type.as_deref(), &delivery.body, &self.settings.watch);
        let ProcessDocumentMessages { document, reason, cluster } = match admitted {
            Ok(command) => command,
            Err(refusal) => {
                if let Some(count) = self.repeats.count("refused") {
                    tracing::warn!(%refusal, bytes = delivery.body.len(), count, "a command was refused");
                }
                delivery.reject().await;
                return self.tell(DispatcherEvent::Refused { refusal }, None);
            }
        };
        self.tell(DispatcherEvent::Taken { document: document.clone(), reason }, Some(reason));

        let end = match self.cluster.belongs(cluster).await {
            Belongs::Elsewhere => End::PutBack(Unable::OtherCluster),
            Belongs::Here => self.see_through(&document, taken).await,
            Belongs::Perhaps => match self.see_through(&document, taken).await {
                End::Acknowledge(DispatcherEvent::Finished { processed: Processed::Gone, .. }) => {
                    End::PutBack(Unable::OtherCluster)
                }
                end => end,
            },
        };
        match end {
            // Without its connection a command can't be acknowledged: it comes again, and finds nothing left.
            End::Acknowledge(event) => {
                if matches!(event, DispatcherEvent::Finished { .. }) {
                    self.ability.useful();
                }
                delivery.ack().await;
                self.tell(event, Some(reason));
            }
            End::PutBack(unable) => self.put_back(delivery, document, reason, unable).await,
            End::GiveBack => {
                delivery.requeue().await;
                self.tell(DispatcherEvent::GivenBack { document }, Some(reason));
            }
        }
    }

    /// Leaves a command to another worker, after a pause.
    async fn put_back(&self, mut delivery: Delivery, document: DocumentRef, reason: Reason, unable: Unable) {
        let (kind, useless) = match &unable {
            Unable::OtherCluster => ("other_cluster", Some(Useless::OtherCluster)),
            Unable::Refused(_) => ("not_allowed", Some(Useless::Refused)),
            Unable::Away(_) => ("away", None),
            Unable::Full(_) => ("full", None),
        };
        if let Some(useless) = useless {
            self.ability.useless(useless);
        }
        if let Unable::Away(reason) = &unable {
            reach::note(&self.ability, reason.clone());
        }
        let why = Left::from(unable);
        if let Some(count) = self.repeats.count(kind) {
            tracing::warn!(%document, ?why, count, "this worker can do nothing about a command; it is put back");
        }

        // Megabytes, perhaps, and of no more use.
        delivery.body = Vec::new();
        if self.put_back.begin() {
            self.ability.notify();
        }
        tokio::select! {
            () = tokio::time::sleep(put_back::pause(delivery.delivery_count)) => {}
            () = self.stops.intake.cancelled() => {}
        }
        delivery.requeue().await;
        if self.put_back.end() {
            self.ability.notify();
        }
        self.tell(DispatcherEvent::PutBack { document, why }, Some(reason));
    }

    /// Works on a document until the command for it, which was taken then, is done with.
    async fn see_through(&self, document: &DocumentRef, taken: Instant) -> End {
        let longest = self.settings.keep_within.saturating_sub(taken.elapsed());
        let turn = tokio::select! {
            turn = self.turns.join(document) => turn,
            () = self.stops.intake.cancelled() => return End::GiveBack,
            () = tokio::time::sleep(longest) => return self.leave(document.clone(), Left::TookTooLong),
        };
        let Some(_turn) = turn else {
            return End::Acknowledge(DispatcherEvent::Coalesced { document: document.clone() });
        };
        let mut unavailable = Duration::ZERO;
        let mut breath = BREATH;
        let mut decision = Decision::new(&self.settings);
        loop {
            let Some(pass) = self.pass(document, taken).await else {
                return End::GiveBack;
            };
            let known = Known {
                now: self.processor.clock().now().await.unwrap_or_else(|_unasked| DateTime::now()),
                kept: taken.elapsed(),
                unavailable,
                stopping: self.stops.intake.is_cancelled(),
            };
            let document = document.clone();
            match decision.next(pass, known) {
                Next::Finish(processed) => {
                    return End::Acknowledge(DispatcherEvent::Finished { document, processed });
                }
                Next::Leave(why) => return self.leave(document, why),
                Next::PutBack(unable) => return End::PutBack(unable),
                Next::GiveBack => return End::GiveBack,
                Next::Hold(wait, hold) => {
                    let Ok(_room) = self.holds.try_acquire() else {
                        return self.leave(document, Left::Held(hold));
                    };
                    if !self.keep(document, Left::Held(hold), tokio::time::sleep(wait)).await {
                        return End::GiveBack;
                    }
                }
                Next::Retry(pause, why) => {
                    // Only so many wait: one collection in trouble must not take the place of all others.
                    let Ok(_room) = self.holds.try_acquire() else {
                        return End::PutBack(Unable::Full(why));
                    };
                    if let Some(count) = self.repeats.count("retry") {
                        tracing::warn!(%document, ?why, count, "the document could not be processed; it is tried again");
                    }
                    if !self.keep(document, why, tokio::time::sleep(pause)).await {
                        return End::GiveBack;
                    }
                }
                Next::Await(longest) => {
                    let waited = Instant::now();
                    let way = async {
                        // Whether it is there or the time is up, the next pass will tell.
                        let _ = tokio::time::timeout(longest, self.processor.deliverer().available()).await;
                        tokio::time::sleep(breath.min(longest)).await;
                    };
                    if !self.keep(document, Left::Unavailable, way).await {
                        return End::GiveBack;
                    }
                    breath = (breath * 2).min(LONGEST_BREATH);
                    unavailable += waited.elapsed();
                }
            }
        }
    }

    /// One pass over the document, in a slot; none when the worker stops before it begins.
    async fn pass(&self, document: &DocumentRef, taken: Instant) -> Option<Pass> {
        let left = || self.settings.keep_within.saturating_sub(taken.elapsed());
        let _slot = tokio::select! {
            slot = self.slots.acquire() => slot.ok()?,
            () = self.stops.intake.cancelled() => return None,
            () = tokio::time::sleep(left()) => return Some(Pass::Ended(Processed::Interrupted)),
        };
        let stop = self.stops.release.child_token();
        let ordering = self.settings.ordering(&document.namespace);
        let process = AssertUnwindSafe(self.processor.process(document, ordering, &stop)).catch_unwind();
        let mut process = pin!(process);
        let ended = tokio::select! {
            ended = &mut process => ended,
            () = tokio::time::sleep(left()) => {
                stop.cancel();
                process.await
            }
        };
        Some(match ended {
            Ok(Ok(processed)) => Pass::Ended(processed),
            Ok(Err(error)) => Pass::Failed(error),
            Err(_panic) => {
                tracing::error!(%document, "processing the document panicked; this is a defect");
                Pass::Panicked
            }
        })
    }

    /// Waits with the command in hand; false when the worker stops meanwhile.
    async fn keep(&self, document: DocumentRef, why: Left, wait: impl Future<Output = ()>) -> bool {
        self.events.emit(DispatcherEvent::Kept { document, why });
        self.kept.fetch_add(1, Ordering::Relaxed);
        let waited = tokio::select! {
            () = wait => true,
            () = self.stops.intake.cancelled() => false,
        };
        self.kept.fetch_sub(1, Ordering::Relaxed);
        waited
    }

    fn leave(&self, document: DocumentRef, why: Left) -> End {
        match why {
            Left::MongoDb(_) => {
                if let Some(count) = self.repeats.count("left") {
                    tracing::warn!(%document, ?why, count, "the document could not be processed; it is left to the sweep");
                }
            }
            _ => tracing::debug!(%document, ?why, "left to the sweep"),
        }
        End::Acknowledge(DispatcherEvent::LeftToSweep { document, why })
    }
}
