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

use std::{sync::Arc, time::Duration};

use mongodb::{
    Client,
    bson::{DateTime, Uuid},
    error::Error as DriverError,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};
use tokio_util::{
    sync::CancellationToken,
    task::{TaskTracker, task_tracker::TaskTrackerToken},
};
use tracing::{Instrument, Span};

use crate::{
    CommandSender, DocumentRef, RetryPolicy,
    claim::{Claim, Claimer},
    clock::ServerClock,
    codes,
    command::{ProcessDocumentMessages, Reason},
    deliver::{Answer, Deliver, Envelope, Outcome, deadline},
    deliverable::{Hold, Ordering, hold},
    entry::{Entry, Slot},
    event::{Event, Events, Shed},
    group::Statement,
    health::{Health, InFlight},
    linger::Linger,
    metrics::{Metrics, Path},
    process::{Disposition, Processed, Processor, ProcessorSettings, STATE_DATABASE},
    trace,
    turns::Turns,
    write,
};

/// The first wait for another's claim to end; it grows to [`CLAIM_WAIT_MAX`].
const CLAIM_WAIT: Duration = Duration::from_millis(5);
const CLAIM_WAIT_MAX: Duration = Duration::from_millis(100);

/// What closing gives to the last clears at least.
const CLEAR_GRACE: Duration = Duration::from_secs(1);

/// When messages are delivered, seen from the save.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// The save returns when it is durable; delivery goes on in the background.
    #[default]
    Background,
    /// The save returns once each message was tried, and says what became of it.
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

/// Sets up an [`Inline`].
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
    /// It costs repeats: what stays is delivered again when the process dies, or ends without [`close`](Inline::close). And to
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
    pub fn deliver_to(self, deliver: impl Deliver) -> Inline {
        self.deliver_to_shared(Arc::new(deliver))
    }

    /// Starts it with a deliverer that others use too.
    pub fn deliver_to_shared(self, deliver: Arc<dyn Deliver>) -> Inline {
        let clock = ServerClock::new(self.client.clone());
        Inline {
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
                turns: Turns::default(),
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
pub struct Inline {
    shared: Arc<Shared>,
}

struct Shared {
    processor: Processor,
    mode: Mode,
    seats: Arc<Semaphore>,
    turns: Turns,
    tasks: TaskTracker,
    handoff: Option<CommandSender>,
    /// No new work is taken.
    closing: CancellationToken,
    /// What is held is given back.
    stop: CancellationToken,
}

/// The right to deliver one save's messages.
pub(crate) struct Seat {
    _permit: OwnedSemaphorePermit,
    _in_flight: InFlight,
    /// Closing waits for it.
    _token: TaskTrackerToken,
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

impl Inline {
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

    /// Stops taking work, and waits for what is in flight: as long as `grace`, then what is held is given back.
    /// Stores go on saving; their messages wait for the rescuer.
    pub async fn close(&self, grace: Duration) {
        self.shared.closing.cancel();
        self.shared.processor.vitals().drain();
        self.shared.tasks.close();
        let deadline = Instant::now() + grace;
        if timeout_at(deadline, self.shared.tasks.wait()).await.is_err() {
            self.shared.stop.cancel();
            self.shared.tasks.wait().await;
        }
        let deadline = deadline.max(Instant::now() + CLEAR_GRACE);
        if timeout_at(deadline, self.flush()).await.is_err() {
            tracing::warn!("not all delivered messages were cleared; those left will be delivered again");
        }
    }

    /// Clears what was delivered and stays in its document, as [`clear_within`](InlineBuilder::clear_within) has it, and waits for
    /// that, but not for deliveries under way. [`close`](Self::close) does so too.
    pub async fn flush(&self) {
        if let Some(linger) = self.linger() {
            linger.flush_all().await;
        }
    }

    pub(crate) async fn now(&self) -> Result<DateTime, mongodb::error::Error> {
        self.shared.processor.clock().now().await
    }

    pub(crate) fn claimer(&self) -> &Claimer {
        self.shared.processor.claimer()
    }

    /// Sends a save's update.
    pub(crate) async fn write(&self, statement: Statement) -> write::Answer {
        self.shared.processor.claimer().writes.update(statement).await
    }

    /// Who can deliver messages of this type.
    pub(crate) fn via(&self, message_type: &str) -> Option<&str> {
        self.shared.processor.deliverer().via(message_type)
    }

    /// A seat for so many messages that are due, or what to report for want of one.
    pub(crate) fn seat_for(&self, due: usize) -> Result<Seat, Dispatch> {
        let shared = &self.shared;
        if shared.mode == Mode::Off {
            return Err(Dispatch::Off);
        }
        if due == 0 {
            return Err(Dispatch::Scheduled);
        }
        if shared.closing.is_cancelled() {
            return Err(Dispatch::Skipped(Shed::Stopped));
        }
        if !shared.processor.is_available() {
            return Err(Dispatch::Skipped(Shed::Unavailable));
        }
        let permit = shared.seats.clone().try_acquire_owned();
        let permit = permit.map_err(|_full| Dispatch::Skipped(Shed::Full))?;
        let in_flight = shared.processor.vitals().enter();
        Ok(Seat { _permit: permit, _in_flight: in_flight, _token: shared.tasks.token() })
    }

    /// Reports what there is instead of a delivery, where it is worth a report.
    pub(crate) fn left(&self, document: &DocumentRef, due: usize, why: &Dispatch) {
        if let Dispatch::Skipped(reason) = *why {
            tracing::debug!(%document, reason = reason.as_str(), "not delivered inline; left to the rescuer");
            self.shared.processor.vitals().shed(due);
            let document = document.clone();
            self.shared.processor.emit(Event::Skipped { document, count: due, reason });
        }
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        self.shared.processor.metrics()
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
        ordering: Ordering,
    ) -> Dispatch {
        let shared = self.shared.clone();
        // A handler that saves is itself part of a delivery; were it to wait for the next one, the two could wait for
        // each other.
        let awaited = shared.mode == Mode::Await && deadline().is_none();
        let waiting = ids.iter().map(|id| (as_uuid(*id), Disposition::Waiting)).collect();
        let span = trace::dispatch(work.document(), Path::Inline);
        // A task of its own: a caller that goes away must not take the delivery with it.
        let delivery = async move {
            let _seat = seat;
            shared.deliver(work, &ids, ordering, awaited).await
        };
        let task = self.shared.tasks.spawn(delivery.instrument(span));
        match awaited {
            false => Dispatch::Background,
            true => Dispatch::Settled(task.await.unwrap_or(waiting)),
        }
    }
}

impl Shared {
    async fn deliver(
        &self,
        work: Work,
        ids: &[Uuid],
        ordering: Ordering,
        awaited: bool,
    ) -> Vec<(uuid::Uuid, Disposition)> {
        let document = work.document().clone();
        let mut known = Vec::new();
        let done = match work {
            Work::BornClaimed(claim) => self.deliver_claimed(&claim, ordering, &mut known).await,
            Work::Unclaimed(document) => {
                self.deliver_unclaimed(&document, ordering, awaited, &mut known).await
            }
        };
        if let Err(error) = done {
            tracing::warn!(%document, %error, "inline delivery broke off; the rescuer goes on");
            self.processor.vitals().failed(&codes::describe(&error));
            trace::failed(&Span::current(), "interrupted");
        }
        if known.iter().any(|(_, disposition)| matches!(disposition, Disposition::Retrying { .. })) {
            self.hand_off(&document).await;
        }
        match awaited {
            true => self.look(&document, ids, &known).await,
            false => Vec::new(),
        }
    }

    async fn deliver_claimed(
        &self,
        claim: &Claim,
        ordering: Ordering,
        known: &mut Dispositions,
    ) -> Result<(), DriverError> {
        // It waits for nobody: whoever is before it has cleared its entries, or this save's filter had not matched.
        let _turn = self.turns.beside(&claim.document);
        let pass = self.processor.deliver_claim(claim, ordering, &self.stop, true).await?;
        known.extend(pass.dispositions);
        Ok(())
    }

    async fn deliver_unclaimed(
        &self,
        document: &DocumentRef,
        ordering: Ordering,
        awaited: bool,
        known: &mut Dispositions,
    ) -> Result<(), DriverError> {
        let turn = match awaited {
            true => self.turns.queue(document).await,
            false => self.turns.join(document).await,
        };
        let Some(_turn) = turn else { return Ok(()) };
        if let Some(linger) = self.processor.linger() {
            linger.flush(document).await;
        }
        let (mut wait, mut waited) = (CLAIM_WAIT, Duration::ZERO);
        loop {
            match self.processor.process_into(document, ordering, &self.stop, known).await? {
                // Another process delivers what stands before; it will be done in moments, or has died.
                Processed::Held(Hold::Claimed(_)) if waited < self.processor.claimer().lease => {
                    tokio::select! {
                        () = tokio::time::sleep(wait) => {}
                        () = self.stop.cancelled() => return Ok(()),
                    }
                    waited += wait;
                    wait = (wait * 2).min(CLAIM_WAIT_MAX);
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
        let known = |id: Uuid| {
            known.iter().rev().find(|(of, _)| *of == id).map(|(_, disposition)| disposition.clone())
        };
        let unknown = ids.iter().any(|id| known(*id).is_none());
        let read = match unknown {
            true => self.processor.read(document).await,
            false => Ok(None),
        };
        let now = self.processor.clock().now().await.unwrap_or_else(|_unasked| DateTime::now());
        let read = |id: Uuid| match &read {
            Ok(Some(Ok(slots))) => disposition(slots, id, now),
            Ok(None) => Disposition::Cleared,
            Ok(Some(Err(_))) | Err(_) => Disposition::Waiting,
        };
        ids.iter().map(|id| (as_uuid(*id), known(*id).unwrap_or_else(|| read(*id)))).collect()
    }

    /// Tells the workers that a failed delivery is theirs now. A command that fails is no loss: the sweep finds it.
    async fn hand_off(&self, document: &DocumentRef) {
        let Some(commands) = &self.handoff else { return };
        let command = ProcessDocumentMessages::new(document.clone(), Reason::Handoff);
        match commands.send(vec![command]).await.pop() {
            Some(Ok(())) => self.processor.emit(Event::HandedOff { document: document.clone() }),
            Some(Err(error)) => {
                tracing::debug!(%document, %error, "the hand-off was not sent; the sweep will find it")
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
