//! A pass over one document repeats read, claim, deliver and settle until no deliverable message is left.
//!
//! # Flow
//! ```text
//! read outbox ─▶ deliverable? ─▶ claim (majority) ─▶ deliver ─┬─ Delivered ───▶ clear
//!      ▲              │ no                                    ├─ Transient ───▶ fail, or die after the last attempt
//!      └── more ──────┼───────────────────────────────────────├─ Permanent ───▶ die
//!                     ▼                                       └─ Unavailable ─▶ release
//!              why it waits
//! ```
//! The inline dispatcher and the dispatcher worker both make passes, and each of them decides when to make a pass.
//!
//! # Caveats
//! If a claim expires during a delivery, the delivery can't be undone, and the next holder repeats the delivery. The
//! check of the remaining lease before each delivery makes such repeats rare. The receiver's `inbox` makes such
//! repeats harmless.

use std::time::{Duration, Instant};

use mongodb::{
    bson::{DateTime, Uuid},
    error::Error,
};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span};

use crate::{
    dispatch::{
        claim::{Claimed, Recorded},
        claimed_entries::Claim,
        outcome::{Dispositions, Processed},
        processor::Processor,
        settle::DeliveryEnd,
        under_claim::Clearing,
        under_lease::UnderLease,
    },
    mongo::{StoredOutbox, error_codes},
    observe::trace,
    stored::{
        deliverable::{Deliverable, DeliveryOrder, Hold},
        document_ref::DocumentRef,
        entry::{DeadReason, Entry, Slot},
        memory::{Room, weight_of_claim},
    },
};

/// Number of times that a claim is retried at once after another claimer was faster. Then the document is left to that
/// claimer.
const RACES: usize = 5;
/// If a plan of entries to claim waited longer than this for the rate limit, a new plan is made. The document may have
/// changed in that time, and the end of a claim is calculated from the time of its plan.
const STALE: Duration = Duration::from_millis(100);

impl Processor {
    /// Delivers the deliverable messages of a document's outbox until none is left.
    ///
    /// # Errors
    /// An error if MongoDB can't be reached. Claimed messages are released if possible; otherwise they become available
    /// when their claim ends.
    pub async fn process(
        &self,
        document: &DocumentRef,
        ordering: DeliveryOrder,
        stop: &CancellationToken,
    ) -> Result<Processed, Error> {
        let _in_flight = self.vitals().enter();
        let span = trace::dispatch(document, self.path);
        let process = async {
            let processed = self.process_into(document, ordering, stop, &mut Vec::new()).await;
            if let Err(error) = &processed {
                self.vitals().failed(&error_codes::describe(error));
                trace::failed(&Span::current(), "interrupted");
            }
            processed
        };

        process.instrument(span).await
    }

    /// Like [`process`](Self::process), but also records the outcome of each message that was tried.
    pub(crate) async fn process_into(
        &self,
        document: &DocumentRef,
        ordering: DeliveryOrder,
        stop: &CancellationToken,
        dispositions: &mut Dispositions,
    ) -> Result<Processed, Error> {
        let mut pass = Pass {
            processor: self,
            document,
            ordering,
            stop,
            dispositions,
            races: 0,
            has_reported: false,
            permits: 0,
        };

        loop {
            if let NextStep::End(processed) = pass.deliver_one_claim().await? {
                return Ok(processed);
            }
        }
    }
}

/// One pass, with the state that it keeps between reads of the document.
struct Pass<'a> {
    processor: &'a Processor,
    document: &'a DocumentRef,
    ordering: DeliveryOrder,
    stop: &'a CancellationToken,
    /// The outcome of each message that was tried.
    dispositions: &'a mut Dispositions,
    /// Number of claims that were lost to other claimers.
    races: usize,
    /// Whether malformed elements, and messages for other deliverers, have been reported.
    has_reported: bool,
    /// Unused permits of the rate limit.
    permits: usize,
}

/// The step after a claim, or after a read that led to no claim.
enum NextStep {
    End(Processed),
    ReadAgain,
}

/// What to do about an outbox.
enum Choice {
    Claim(Chosen),
    NextStep(NextStep),
}

/// The entries to claim.
struct Chosen {
    ids: Vec<Uuid>,
    rest: Rest,
}

/// The rest of an outbox, without the claimed entries.
#[derive(Clone, Copy)]
struct Rest {
    /// Whether there are deliverable messages that this claim does not include.
    more: bool,
    /// Whether a message can't be delivered yet, or was claimed and released.
    held: bool,
}

impl Pass<'_> {
    /// Reads the document's outbox, claims entries once, and delivers them.
    async fn deliver_one_claim(&mut self) -> Result<NextStep, Error> {
        if self.stop.is_cancelled() {
            return Ok(NextStep::End(Processed::Interrupted));
        }
        if !self.processor.is_available() {
            return Ok(NextStep::End(Processed::Unavailable));
        }

        // The read may wait for memory, and a stop must not wait for the read.
        let Some(read) = self.stop.run_until_cancelled(self.processor.read(self.document)).await else {
            return Ok(NextStep::End(Processed::Interrupted));
        };
        // Ask for the time after the read, because the claim's lease is counted from this time.
        let now = self.processor.mongo.clock().now().await?;
        let (slots, room) = match read? {
            StoredOutbox::Entries { slots, room } => (slots, room),
            StoredOutbox::Gone => return Ok(NextStep::End(Processed::Gone)),
            StoredOutbox::Malformed(reason) => {
                self.processor.report.unreadable(self.document, 1, reason.to_string());
                return Ok(NextStep::End(Processed::Done));
            }
        };

        match self.choose(&slots, now).await? {
            Choice::Claim(chosen) => self.claim_and_deliver(slots, room, &chosen, now).await,
            Choice::NextStep(next) => Ok(next),
        }
    }

    /// Decides which entries of an outbox to claim now, within the rate limit.
    async fn choose(&mut self, slots: &[Slot], now: DateTime) -> Result<Choice, Error> {
        let plan = self.processor.plan(slots, self.ordering, now);
        if !std::mem::replace(&mut self.has_reported, true) {
            self.processor.report.left_alone(self.document, slots, &plan);
        }

        if plan.entries.is_empty() {
            return Ok(Choice::NextStep(match plan.crashed {
                Some(crashed) => self.give_up_crashed(crashed, now).await?,
                None => NextStep::End(plan.held.map_or(Processed::Done, Processed::Held)),
            }));
        }
        self.choose_at_pace(&plan).await
    }

    /// Waits for the rate limit, if there is one, and chooses as many entries as it allows.
    async fn choose_at_pace(&mut self, plan: &Deliverable<'_>) -> Result<Choice, Error> {
        let mut count = plan.entries.len();
        if let Some(pace) = &self.processor.pace {
            let asked = Instant::now();
            if self.permits == 0 {
                let permits = self.stop.run_until_cancelled(pace.permits(count)).await;
                self.permits = permits.unwrap_or(0);
            }
            if self.permits == 0 {
                return Ok(Choice::NextStep(NextStep::End(Processed::Interrupted)));
            }
            if asked.elapsed() > STALE {
                return Ok(Choice::NextStep(NextStep::ReadAgain));
            }
            count = count.min(self.permits);
        }

        let ids = plan.entries[..count].iter().map(|entry| entry.id).collect();
        let rest = Rest { more: plan.more || count < plan.entries.len(), held: plan.held.is_some() };
        Ok(Choice::Claim(Chosen { ids, rest }))
    }

    /// Marks an entry dead because the processes that claimed it kept dying. Has no effect if another process has
    /// changed the entry since it was read.
    async fn give_up_crashed(&mut self, entry: &Entry, now: DateTime) -> Result<NextStep, Error> {
        let died = self.processor.claimer.die_crashed(self.document, entry, now).await?;
        if died == Recorded::Done {
            let error = "earlier claims expired without an outcome";
            self.processor.report.died(self.document, entry, DeadReason::Crashed, error);
        } else {
            self.races += 1;
        }

        if self.races > RACES {
            return Ok(NextStep::End(Processed::Held(Hold::Claimed(now))));
        }
        Ok(NextStep::ReadAgain)
    }

    async fn claim_and_deliver(
        &mut self,
        slots: Vec<Slot>,
        mut room: Room,
        chosen: &Chosen,
        now: DateTime,
    ) -> Result<NextStep, Error> {
        // Don't keep the rest of the outbox in memory.
        let entries = entries_of(slots, &chosen.ids);
        room.shrink_to(weight_of_claim(&entries, Processor::window_bytes(self.ordering)));
        let wanted = entries.len();

        let claim = match self.processor.claimer.claim(self.document, entries, now).await? {
            Claimed::Held(claim) if !claim.entries.is_empty() => claim,
            Claimed::Held(_) | Claimed::Lost if self.races < RACES => {
                self.races += 1;
                return Ok(NextStep::ReadAgain);
            }
            Claimed::Held(_) | Claimed::Lost => {
                return Ok(NextStep::End(Processed::Held(Hold::Claimed(now))));
            }
            Claimed::NoRoom => {
                drop(room);
                return self.deliver_under_lease().await;
            }
        };
        self.permits = 0;

        self.deliver_under_claim(&claim, wanted, chosen.rest).await
    }

    async fn deliver_under_claim(
        &mut self,
        claim: &Claim,
        wanted: usize,
        mut rest: Rest,
    ) -> Result<NextStep, Error> {
        let end = self.processor.deliver_claim(claim, self.ordering, self.stop, Clearing::AtOnce).await;
        rest.held |= end.cut_short || claim.entries.len() < wanted;
        self.after(end, rest)
    }

    async fn deliver_under_lease(&mut self) -> Result<NextStep, Error> {
        match self.processor.deliver_under_lease(self.document, self.ordering, self.stop).await? {
            UnderLease::Left(processed) => Ok(NextStep::End(processed)),
            UnderLease::Tried(end) => {
                self.permits = 0;
                self.after(end, Rest { more: true, held: false })
            }
        }
    }

    /// Decides the next step after a delivery, from its result and the rest of the outbox.
    fn after(&mut self, end: DeliveryEnd, rest: Rest) -> Result<NextStep, Error> {
        self.dispositions.extend(end.dispositions);
        if let Some(error) = end.trouble {
            return Err(error);
        }

        Ok(match end.stopped {
            // In an unordered document, a message that waits for its retry doesn't block other messages.
            Some(Processed::Held(Hold::Retrying(_)))
                if rest.more && self.ordering == DeliveryOrder::Unordered =>
            {
                NextStep::ReadAgain
            }
            Some(processed) => NextStep::End(processed),
            None if rest.more || rest.held => NextStep::ReadAgain,
            None => NextStep::End(Processed::Done),
        })
    }
}

/// The entries with these ids, in their order.
fn entries_of(slots: Vec<Slot>, ids: &[Uuid]) -> Vec<Entry> {
    let mut entries = Vec::with_capacity(ids.len());
    for slot in slots {
        if let Slot::Entry(entry) = slot
            && ids.contains(&entry.id)
        {
            entries.push(*entry);
        }
    }
    entries
}
