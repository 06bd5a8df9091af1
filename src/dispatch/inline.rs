//! The inline dispatcher: delivery right after the save, by the process that saved.
//!
//! # Flow
//! A save first asks for a *seat*. With a seat, and where the save's own filter proves the outbox empty, the new entries
//! are *born claimed*: written with the claim that delivers them, and published without another write. In every other
//! case they are born unclaimed, and the inline dispatcher claims them like anyone else. Without a seat (full, the
//! broker away, shutting down, switched off) the message waits in the document for the rescuer.
//!
//! # Guarantees
//! A save never fails because of delivery. Seats bound what is in flight; nothing queues without one.

use std::{fmt, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures::FutureExt;
use mongodb::{
    Client,
    bson::{DateTime, Uuid},
    error::Error as DriverError,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    time::{Instant, timeout, timeout_at},
};
use tokio_util::{
    sync::CancellationToken,
    task::{TaskTracker, task_tracker::TaskTrackerToken},
};
use tracing::{Instrument, Span};

use crate::{
    aggregate::outbox::PendingMessage,
    command::{ProcessDocumentMessages, Reason, sender::CommandSender},
    deliver::{Answer, Deliver, Envelope, Outcome, deadline},
    dispatch::{
        claim::{Claim, Claimer},
        deferred_clears::Linger,
        document_locks::Turns,
        processor::{Disposition, Processed, Processor, ProcessorSettings, STATE_DATABASE},
        retry::RetryPolicy,
    },
    mongo::{Mongo, StoredOutbox, clock::ServerClock, error_codes, runtime},
    observe::{
        event::{Event, Events, Shed},
        health::{Health, InFlight},
        metrics::{Metrics, Path},
        trace,
    },
    stored::{
        deliverable::{DeliveryOrder, Hold, hold},
        document_ref::DocumentRef,
        entry::{Entry, Slot},
        memory::{Memory, Room},
    },
};

/// The first wait for another's claim to end; it grows to [`CLAIM_WAIT_MAX`].
const CLAIM_WAIT: Duration = Duration::from_millis(5);
const CLAIM_WAIT_MAX: Duration = Duration::from_millis(100);

/// The part of the grace in which closing gives back what is held, and the longest that this takes.
const GIVING_BACK: f64 = 0.2;
const GIVING_BACK_MAX: Duration = Duration::from_secs(2);
/// What closing takes at least to give back what is held, with a shorter grace too.
const CLOSE_MIN: Duration = Duration::from_secs(2);
/// Longer than any save takes that somebody polls: the server's time, a look, and two writes. A save that has not ended by
/// then has been forgotten.
const SAVE_MAX: Duration = Duration::from_secs(120);
/// How long a flush waits for MongoDB.
const FLUSH_MAX: Duration = Duration::from_secs(30);

/// When messages are delivered, seen from the save.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// The save returns when it is durable; delivery goes on in the background.
    #[default]
    Background,
    /// The save returns once each message was tried, and says what became of it. One that waits for others of its document for
    /// longer than half of a lease answers [`Disposition::Waiting`], and is delivered in the background. A handler's own save
    /// waits for no delivery; but a handler should not wait for a *task* that saves, whose save is not known to be the handler's.
    Await,
    /// Nothing is delivered from here; the rescuer finds it.
    Off,
}

/// What the inline dispatcher made of a save's messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dispatch {
    /// The save had no messages.
    Nothing,
    /// They are on their way.
    Background,
    /// Each was tried, in the order sent.
    Settled(Vec<(uuid::Uuid, Disposition)>),
    /// The rescuer delivers them.
    Skipped(Shed),
    /// None of them is due yet: the rescuer delivers them when they are.
    Scheduled,
    /// Switched off: the rescuer delivers them.
    Off,
}

/// Sets up an [`InlineDispatcher`].
#[derive(Debug)]
#[must_use]
pub struct InlineBuilder {
    client: Client,
    mode: Mode,
    capacity: usize,
    handoff: Option<CommandSender>,
    clear_within: Duration,
    settings: ProcessorSettings,
}

impl InlineBuilder {
    /// When messages are delivered. Default [`Mode::Background`].
    pub fn mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    /// How many saves' messages may be in delivery at once. Default 1,024.
    pub fn capacity(mut self, capacity: usize) -> Self {
        self.capacity = capacity;
        self
    }

    /// How many bytes the messages in delivery may take in memory, and as many the outboxes that are read to deliver what is in
    /// them. A save that finds no room leaves its messages to the rescuer, as it does without a seat. Default 64 MiB.
    pub fn memory_bytes(mut self, bytes: usize) -> Self {
        self.settings.memory_bytes = bytes;
        self
    }

    /// How many messages may be published and not yet cleared: so many at most are repeated when the process is killed, and
    /// those that [`clear_within`](Self::clear_within) lets stay. Deliveries wait beyond that. Default 1,024.
    pub fn max_repeats(mut self, messages: usize) -> Self {
        self.settings.max_repeats = messages;
        self
    }

    /// How long a claim holds; shorter than the rescuer's delay. Default 10 s.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.settings.lease = lease;
        self
    }

    /// What is done about failures.
    pub fn retry(mut self, retry: RetryPolicy) -> Self {
        self.settings.retry = retry;
        self
    }

    /// Begins the value of every claim, shown to operators. Default: the process id.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.settings.name = name.into();
        self
    }

    /// Where to send a document whose delivery failed, so that a worker goes on at once. Without, the sweep finds it.
    pub fn hand_off(mut self, commands: CommandSender) -> Self {
        self.handoff = Some(commands);
        self
    }

    /// Whether concurrent saves go to MongoDB together, as one command with a statement each: several times the throughput
    /// under load, and the same answers. A save that comes alone is sent alone either way. Default on.
    pub fn group_commit(mut self, on: bool) -> Self {
        self.settings.group_commit = on;
        self
    }

    /// How long a message that was delivered may stay in its document: at most a quarter of the lease. The next save of that
    /// document takes it out meanwhile, without a write of its own; those that nobody saves in time are cleared together. Default
    /// zero: each is cleared at once, and in [`Mode::Await`] a save returns when that is done.
    ///
    /// It costs repeats: what stays is delivered again when the process dies, or ends without [`close`](InlineDispatcher::close). And to
    /// other processes it looks undelivered: what they send from the same document waits for it.
    pub fn clear_within(mut self, time: Duration) -> Self {
        self.clear_within = time;
        self
    }

    /// The library's own database, as the services have it. Default `document_outbox`.
    pub fn state_database(mut self, name: impl Into<String>) -> Self {
        self.settings.state_database = name.into();
        self
    }

    /// Starts it. Must be called inside a tokio runtime; connects to nothing by itself.
    pub fn deliver_to(self, deliver: impl Deliver) -> InlineDispatcher {
        self.deliver_to_shared(Arc::new(deliver))
    }

    /// Starts it with a deliverer that others use too.
    pub fn deliver_to_shared(self, deliver: Arc<dyn Deliver>) -> InlineDispatcher {
        let clock = ServerClock::new(self.client.clone());
        let memory = Memory::of(self.settings.memory_bytes);
        InlineDispatcher {
            shared: Arc::new(Shared {
                processor: Processor::inline(
                    self.client,
                    clock,
                    deliver,
                    self.settings,
                    self.capacity,
                    self.clear_within,
                ),
                mode: self.mode,
                seats: Arc::new(Semaphore::new(self.capacity.min(Semaphore::MAX_PERMITS))),
                memory,
                turns: Turns::default(),
                saves: TaskTracker::new(),
                tasks: TaskTracker::new(),
                handoff: self.handoff,
                closing: CancellationToken::new(),
                stop: CancellationToken::new(),
            }),
        }
    }
}

/// The inline dispatcher of a process, shared by its stores. Clones are the same dispatcher.
#[derive(Clone)]
pub struct InlineDispatcher {
    shared: Arc<Shared>,
}

impl fmt::Debug for InlineDispatcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InlineDispatcher").field("mode", &self.shared.mode).finish_non_exhaustive()
    }
}

struct Shared {
    processor: Processor,
    mode: Mode,
    seats: Arc<Semaphore>,
    /// What the messages of all seats may weigh.
    memory: Memory,
    turns: Turns,
    /// Saves whose messages are not in delivery yet.
    saves: TaskTracker,
    /// Deliveries.
    tasks: TaskTracker,
    handoff: Option<CommandSender>,
    /// No new work is taken.
    closing: CancellationToken,
    /// What is held is given back.
    stop: CancellationToken,
}

/// The right to deliver one save's messages.
pub(crate) struct Seat {
    permit: OwnedSemaphorePermit,
    room: Room,
    in_flight: InFlight,
    /// Closing waits for the save, until it has handed its messages over.
    save: TaskTrackerToken,
}

/// What is to be delivered.
pub(crate) enum Work {
    /// Entries that were saved with this claim.
    BornClaimed(Claim),
    /// Whatever is deliverable.
    Unclaimed(DocumentRef),
}

impl Work {
    fn document(&self) -> &DocumentRef {
        match self {
            Self::BornClaimed(claim) => &claim.document,
            Self::Unclaimed(document) => document,
        }
    }
}

impl InlineDispatcher {
    /// Sets up an inline dispatcher for the documents that this client reaches.
    pub fn builder(client: &Client) -> InlineBuilder {
        InlineBuilder {
            client: client.clone(),
            mode: Mode::default(),
            capacity: 1_024,
            handoff: None,
            clear_within: Duration::ZERO,
            settings: ProcessorSettings {
                lease: Duration::from_secs(10),
                counts_claims: false,
                max_repeats: 1_024,
                state_database: STATE_DATABASE.into(),
                ..ProcessorSettings::default()
            },
        }
    }

    /// An inline dispatcher that delivers nothing, for a process that only saves: the rescuer delivers. It knows of no
    /// handlers: its messages are for the broker. Where some are for handlers, use [`Mode::Off`] with the deliverer that
    /// the delivering processes have.
    pub fn off(client: &Client) -> Self {
        Self::builder(client).mode(Mode::Off).deliver_to(Elsewhere)
    }

    /// What happens to messages delivered from here, from now on.
    pub fn events(&self) -> &Events<Event> {
        self.shared.processor.events()
    }

    /// How it stands, for as long as the process runs: for a health endpoint of your own.
    pub fn health(&self) -> Health {
        self.shared.processor.health()
    }

    /// Stops taking work, and waits for what is in flight. Stores go on saving; their messages wait for the rescuer.
    ///
    /// It returns when everything has ended, and at the end of `grace` in any case, whatever is in the way: a save in a future
    /// that nobody polls, a MongoDB or a broker that is away. With a grace below 2 s it may take 2 s. For most of the grace
    /// deliveries continue; in its last fifth, at most 2 s, messages whose delivery was not begun are given back. What
    /// is not given back by then is delivered by others once its claim has ended. `Duration::MAX` waits for as long as
    /// deliveries take, which their leases bound.
    pub async fn close(&self, grace: Duration) {
        let shared = &self.shared;
        let began = Instant::now();
        shared.closing.cancel();
        shared.processor.vitals().drain();
        shared.saves.close();
        shared.tasks.close();

        let mut ended = std::pin::pin!(shared.ended());
        if let Some(end) = began.checked_add(grace) {
            let giving_back = grace.mul_f64(GIVING_BACK).min(GIVING_BACK_MAX);
            if timeout_at(end - giving_back, &mut ended).await.is_ok() {
                return;
            }
            shared.stop.cancel();
            let end = end.max(began + CLOSE_MIN);
            if timeout_at(end, ended).await.is_err() {
                tracing::warn!(
                    saves = shared.saves.len(),
                    deliveries = shared.tasks.len(),
                    "the grace period ended before all saves and deliveries had; messages that are still claimed are \
                     delivered again once their claims have ended"
                );
            }
        } else {
            ended.await;
        }
    }

    /// Clears what was delivered and stays in its document now, as [`clear_within`](InlineBuilder::clear_within) has it, and
    /// waits for that, at most 30 s; not for deliveries under way. [`close`](Self::close) does so too.
    pub async fn flush(&self) {
        let Some(linger) = self.linger() else { return };
        if timeout(FLUSH_MAX, linger.flush_all()).await.is_err() {
            tracing::warn!(
                "delivered messages were not cleared within {} s; those left are delivered again",
                FLUSH_MAX.as_secs()
            );
        }
    }

    /// The door to MongoDB that stores and their inline dispatcher share.
    pub(crate) fn mongo(&self) -> &Mongo {
        &self.shared.processor.mongo
    }

    pub(crate) fn claimer(&self) -> &Claimer {
        self.shared.processor.claimer()
    }

    /// Who can deliver messages of this type.
    pub(crate) fn via(&self, message_type: &str) -> Option<&str> {
        self.shared.processor.deliverer().via(message_type)
    }

    /// A seat for a save of which this many messages are due, with room for those that it brings along; or what to report
    /// because there is none.
    pub(crate) fn seat_for(&self, due: usize, messages: &[PendingMessage]) -> Result<Seat, Dispatch> {
        let shared = &self.shared;
        if shared.mode == Mode::Off {
            return Err(Dispatch::Off);
        }
        if due == 0 {
            return Err(Dispatch::Scheduled);
        }
        // Before the question: closing waits for every save that was not told of it.
        let save = shared.saves.token();
        if shared.closing.is_cancelled() {
            return Err(Dispatch::Skipped(Shed::Stopped));
        }
        if !shared.processor.is_available() {
            return Err(Dispatch::Skipped(Shed::Unavailable));
        }
        let permit = shared.seats.clone().try_acquire_owned();
        let permit = permit.map_err(|_full| Dispatch::Skipped(Shed::Full))?;
        let weight = messages.iter().map(PendingMessage::weight).sum();
        let room = shared.memory.try_reserve(weight).ok_or(Dispatch::Skipped(Shed::Full))?;
        let in_flight = shared.processor.vitals().enter();
        Ok(Seat { permit, room, in_flight, save })
    }

    /// Reports what there is instead of a delivery, where it is worth a report.
    pub(crate) fn left(&self, document: &DocumentRef, due: usize, why: &Dispatch) {
        if let Dispatch::Skipped(reason) = *why {
            self.shared.left(document, due, reason);
        }
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        self.shared.processor.metrics()
    }

    /// Whether a delivery of messages of this document is under way.
    pub(crate) fn works_on(&self, document: &DocumentRef) -> bool {
        self.shared.turns.is_taken(document)
    }

    /// Where delivered messages wait for the next save of their document.
    pub(crate) fn linger(&self) -> Option<&Linger> {
        self.shared.processor.linger()
    }

    /// Whether messages with this `via` can be delivered from here.
    pub(crate) fn serves(&self, via: Option<&str>) -> bool {
        self.shared.processor.deliverer().serves(via)
    }

    /// Delivers a save's messages, by the mode.
    pub(crate) async fn dispatch(
        &self,
        seat: Seat,
        work: Work,
        ids: Vec<Uuid>,
        ordering: DeliveryOrder,
    ) -> Dispatch {
        let shared = self.shared.clone();
        // A handler that saves is itself part of a delivery; were it to wait for the next one, the two could wait for
        // each other.
        let awaited = shared.mode == Mode::Await && deadline().is_none();
        let waiting = || ids.iter().map(|id| (as_uuid(*id), Disposition::Waiting)).collect();
        let (begin, begun) = oneshot::channel();
        let span = trace::dispatch(work.document(), Path::Inline);
        let document = work.document().clone();
        let unfinished = Unfinished { shared: Some(self.shared.clone()), document, messages: ids.len() };

        // A task of its own: a caller that goes away must not take the delivery with it.
        let Seat { permit, room, in_flight, save } = seat;
        let of = ids.clone();
        let delivery = async move {
            let delivery = shared.deliver(work, &of, ordering, awaited.then_some(begin));
            let delivered = AssertUnwindSafe(delivery).catch_unwind().await;
            unfinished.ended(delivered.is_ok());
            drop((permit, room, in_flight));
            delivered.ok()
        };
        let mut task = self.shared.tasks.spawn(delivery.instrument(span));
        drop(save);
        if !awaited {
            return Dispatch::Background;
        }

        // The turn of its document may never come before this returns: a handler that has its save made by another task waits
        // for that task, and is what the save waits for.
        let patience = self.shared.processor.claimer().lease / 2;
        tokio::select! {
            settled = &mut task => {
                return Dispatch::Settled(settled.ok().flatten().unwrap_or_else(waiting));
            }
            begun = timeout(patience, begun) => {
                if begun.is_err() {
                    return Dispatch::Settled(waiting());
                }
            }
        }
        Dispatch::Settled(task.await.ok().flatten().unwrap_or_else(waiting))
    }
}

/// A delivery that has not come to its end. One that is dropped, with the runtime that it runs on, or that panics, leaves its
/// messages to the rescuer: that is not silent.
struct Unfinished {
    /// None once it has come to its end.
    shared: Option<Arc<Shared>>,
    document: DocumentRef,
    messages: usize,
}

impl Unfinished {
    fn ended(mut self, whole: bool) {
        if let Some(shared) = self.shared.take()
            && !whole
        {
            let why = "a delivery panicked; what was claimed is delivered again once its claim has ended";
            tracing::error!(document = %self.document, messages = self.messages, why);
            shared.processor.vitals().failed(why);
        }
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let Some(shared) = self.shared.take() else { return };
        tracing::warn!(
            document = %self.document,
            messages = self.messages,
            "the runtime ended before a delivery had: close the inline dispatcher before; what was not cleared is \
             delivered again"
        );
        shared.left(&self.document, self.messages, Shed::Stopped);
    }
}

impl Shared {
    /// Waits until saves and deliveries have ended and nothing stays that was delivered.
    async fn ended(&self) {
        let linger = self.processor.linger();
        if let Some(linger) = linger {
            linger.close();
        }
        let flush = async {
            if let Some(linger) = linger {
                linger.flush_all().await;
            }
        };
        let handed_over = async {
            if timeout(SAVE_MAX, self.saves.wait()).await.is_err() {
                tracing::debug!(saves = self.saves.len(), "saves that nobody finishes are not waited for");
            }
            self.tasks.wait().await;
        };
        tokio::join!(flush, handed_over);
        // What saves have given back since.
        if let Some(linger) = linger {
            linger.flush_all().await;
        }
    }

    /// Reports messages that are left to the rescuer.
    fn left(&self, document: &DocumentRef, count: usize, reason: Shed) {
        tracing::debug!(%document, reason = reason.as_str(), "not delivered inline; left to the rescuer");
        self.processor.vitals().shed(count, reason);
        self.processor.emit(Event::Skipped { document: document.clone(), count, reason });
    }

    /// Delivers; what `begun` gets says that nobody before it is waited for any more. With it, what became of each message.
    async fn deliver(
        &self,
        work: Work,
        ids: &[Uuid],
        ordering: DeliveryOrder,
        begun: Option<oneshot::Sender<()>>,
    ) -> Vec<(uuid::Uuid, Disposition)> {
        let document = work.document().clone();
        let awaited = begun.is_some();
        let mut known = Vec::new();
        let done = match work {
            Work::BornClaimed(claim) => {
                if let Some(begun) = begun {
                    let _ = begun.send(());
                }
                self.deliver_claimed(&claim, ordering, &mut known).await
            }
            Work::Unclaimed(document) => {
                self.deliver_unclaimed(&document, ids.len(), ordering, begun, &mut known).await
            }
        };

        if let Err(error) = done {
            let error = error_codes::describe(&runtime::explain(error));
            tracing::warn!(%document, error, "inline delivery broke off; the rescuer continues");
            self.processor.vitals().failed(&error);
            trace::failed(&Span::current(), "interrupted");
        }
        if known.iter().any(|(_, disposition)| matches!(disposition, Disposition::Retrying { .. })) {
            self.stop.run_until_cancelled(self.hand_off(&document)).await;
        }
        if awaited { self.look(&document, ids, &known).await } else { Vec::new() }
    }

    async fn deliver_claimed(
        &self,
        claim: &Claim,
        ordering: DeliveryOrder,
        known: &mut Dispositions,
    ) -> Result<(), DriverError> {
        // It waits for nobody: whoever is before it has cleared its entries, or this save's filter had not matched.
        let _turn = self.turns.beside(&claim.document);
        let pass = self.processor.deliver_claim(claim, ordering, &self.stop, true).await;
        known.extend(pass.dispositions);
        pass.trouble.map_or(Ok(()), Err)
    }

    async fn deliver_unclaimed(
        &self,
        document: &DocumentRef,
        messages: usize,
        ordering: DeliveryOrder,
        begun: Option<oneshot::Sender<()>>,
        known: &mut Dispositions,
    ) -> Result<(), DriverError> {
        let turn = async {
            match &begun {
                Some(_) => self.turns.queue(document).await,
                None => self.turns.join(document).await,
            }
        };
        let _turn = match self.stop.run_until_cancelled(turn).await {
            Some(Some(turn)) => turn,
            // Whoever waits for the turn already does this one's work too.
            Some(None) => return Ok(()),
            None => {
                self.left(document, messages, Shed::Stopped);
                return Ok(());
            }
        };
        if let Some(begun) = begun {
            // Nobody may wait for it any more.
            let _ = begun.send(());
        }
        if let Some(linger) = self.processor.linger() {
            self.stop.run_until_cancelled(linger.flush(document)).await;
        }

        let (mut wait, mut waited) = (CLAIM_WAIT, Duration::ZERO);
        loop {
            match self.processor.process_into(document, ordering, &self.stop, known).await? {
                // Another process delivers what stands before; it will be done in moments, or has died.
                Processed::Held(Hold::Claimed(_)) if waited < self.processor.claimer().lease => {
                    self.stop.run_until_cancelled(tokio::time::sleep(wait)).await;
                    waited += wait;
                    wait = (wait * 2).min(CLAIM_WAIT_MAX);
                }
                Processed::Interrupted if known.is_empty() => {
                    self.left(document, messages, Shed::Stopped);
                    return Ok(());
                }
                Processed::Unavailable if known.is_empty() => {
                    self.left(document, messages, Shed::Unavailable);
                    return Ok(());
                }
                _ => return Ok(()),
            }
        }
    }

    /// What became of messages: as this process knows, else read off the document.
    async fn look(
        &self,
        document: &DocumentRef,
        ids: &[Uuid],
        known: &Dispositions,
    ) -> Vec<(uuid::Uuid, Disposition)> {
        let mut read = None;
        let mut settled = Vec::with_capacity(ids.len());
        for id in ids {
            let known = known.iter().rev().find(|(of, _)| of == id);
            let disposition = match known {
                Some((_, disposition)) => disposition.clone(),
                None => {
                    if read.is_none() {
                        read = Some(self.processor.read(document).await);
                    }
                    let now = self.processor.clock().carried_on().unwrap_or_else(DateTime::now);
                    match &read {
                        Some(Ok(StoredOutbox::Entries { slots, .. })) => disposition(slots, *id, now),
                        Some(Ok(StoredOutbox::Gone)) => Disposition::Cleared,
                        _ => Disposition::Waiting,
                    }
                }
            };
            settled.push((as_uuid(*id), disposition));
        }
        settled
    }

    /// Tells the workers that a failed delivery is theirs now. A command that fails is no loss: the sweep finds it.
    async fn hand_off(&self, document: &DocumentRef) {
        let Some(commands) = &self.handoff else { return };
        let command = ProcessDocumentMessages::new(document.clone(), Reason::Handoff);
        match commands.send(vec![command]).await.pop() {
            Some(Ok(())) => self.processor.emit(Event::HandedOff { document: document.clone() }),
            Some(Err(error)) => {
                tracing::debug!(%document, error = error.to_string(), "the hand-off was not sent; the sweep will find it")
            }
            None => {}
        }
    }
}

type Dispositions = Vec<(Uuid, Disposition)>;

/// What an outbox says of a message. While elements of it cannot be read, one that is not found may be among them.
fn disposition(slots: &[Slot], id: Uuid, now: DateTime) -> Disposition {
    let error = |entry: &Entry| entry.last_error.clone().unwrap_or_default();
    match slots.iter().filter_map(Slot::entry).find(|entry| entry.id == id) {
        Some(entry) if entry.dead.is_some() => Disposition::Dead { error: error(entry) },
        Some(entry) if entry.attempts > 0 => Disposition::Retrying { error: error(entry) },
        Some(entry) if matches!(hold(entry, now), Some(Hold::Scheduled(_))) => Disposition::Scheduled,
        Some(_) => Disposition::Waiting,
        None if slots.iter().any(|slot| slot.entry().is_none()) => Disposition::Waiting,
        None => Disposition::Cleared,
    }
}

fn as_uuid(id: Uuid) -> uuid::Uuid {
    uuid::Uuid::from_bytes(id.bytes())
}

/// The deliverer of a process that delivers nothing.
struct Elsewhere;

#[async_trait::async_trait]
impl Deliver for Elsewhere {
    async fn deliver(&self, window: &[Envelope]) -> Vec<Answer> {
        window
            .iter()
            .map(|_| Outcome::Unavailable("nothing is delivered from this process".into()).into())
            .collect()
    }

    fn serves(&self, _via: Option<&str>) -> bool {
        false
    }

    fn is_available(&self) -> bool {
        false
    }
}
