//! The work of an owner during one term: it reads the stream with a delay, and sweeps.
//!
//! The work imitates `rescuer/src/stream/` and `rescuer/src/sweep/`. The real rescuer's own functions decide where the stream
//! begins, which changes form a page, how far the position may move, whether a document needs a command, and whether a command
//! for the document was queued recently.

use document_outbox::{DocumentRef, internal::read_outbox};
use mongodb::{
    Namespace,
    bson::{Bson, Timestamp},
};
use outbox_rescuer::internal::{
    Admission, FoundPosition, Head, Here, InHand, LowWater, Moment, Page, RecentlyQueued, Start, fill_page,
    judge, start,
};

use crate::{
    actor::Name,
    broken::Broken,
    world::{
        Change, DELAY, OWNERSHIP_LEASE, REQUEUE_PAUSE, Tick, World, at, due_now, instant, slots, ticks,
        undated,
    },
};

/// The maximum number of changes on one page.
const PAGE: usize = 2;
/// The number of documents that the sweep remembers.
const REMEMBERED: usize = 100;
const PIPELINE: &str = "p";

/// One term of an owner.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Term {
    pub epoch: u8,
    pub taken: Tick,
    /// The end of the lease by the owner's own clock.
    pub until: Tick,
    pub renewed: Tick,
    has_begun: bool,
    /// The oplog time of the last change that the owner has read.
    read: u8,
    page: Option<LookedUp>,
    low_water: LowWater<u8>,
    swept: Option<Tick>,
    /// The full sweeps that are still to come: for each, the tick from which it is due.
    full: Vec<Tick>,
    queued: Vec<Queued>,
}

/// A page of changes whose documents the owner has read.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct LookedUp {
    wanted: Vec<(usize, Head)>,
    mark: u8,
}

/// A document for which the broker has confirmed a command.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Queued {
    document: usize,
    head: Head,
    at: Tick,
}

/// The steps of an owner.
#[derive(Debug, Clone, Copy)]
pub enum TermStep {
    Begin,
    LookUp,
    Send,
    SavePosition,
    Sweep,
}

impl Term {
    pub fn new(epoch: u8, now: Tick) -> Self {
        Self {
            epoch,
            taken: now,
            until: now + OWNERSHIP_LEASE,
            renewed: now,
            has_begun: false,
            read: 0,
            page: None,
            low_water: LowWater::default(),
            swept: None,
            full: Vec::new(),
            queued: Vec::new(),
        }
    }

    pub fn steps(&self, me: Name, world: &World) -> Vec<TermStep> {
        if !self.has_begun {
            return vec![TermStep::Begin];
        }

        let can_send = world.broker.reaches(me);
        let mut steps = Vec::new();
        if self.page.is_some() && can_send {
            steps.push(TermStep::Send);
        }
        if self.page.is_none() && self.next(world).is_some_and(|change| is_old(change, world.now)) {
            steps.push(TermStep::LookUp);
        }
        if self.low_water.is_unsaved() {
            steps.push(TermStep::SavePosition);
        }
        if self.swept != Some(world.now) && can_send && !world.is_broken(Broken::NoSweep) {
            steps.push(TermStep::Sweep);
        }
        steps
    }

    /// Takes a step. Returns false if the step ends the term.
    pub fn take(&mut self, step: TermStep, world: &mut World) -> bool {
        match step {
            TermStep::Begin => return self.begin(world),
            TermStep::LookUp => self.look_up(world),
            TermStep::Send => self.send(world),
            TermStep::Sweep => self.sweep(world),
            TermStep::SavePosition => {
                if let Some(mark) = self.low_water.take() {
                    return world.state_database.save(mark, self.epoch);
                }
            }
        }
        true
    }

    fn next<'a>(&self, world: &'a World) -> Option<&'a Change> {
        world.mongo.majority.changes.iter().find(|change| change.time > self.read)
    }

    /// Begins to read the stream at the saved position, or at the present time if the saved position is unusable. Plans one full
    /// sweep for the present time, and another one for the time when the delay has passed.
    fn begin(&mut self, world: &mut World) -> bool {
        self.has_begun = true;
        self.full = vec![world.now, world.now + DELAY];

        let found = world.state_database.position.filter(|position| position.is_of_use);
        let stored = found.map(|position| FoundPosition {
            token: None,
            cluster_time: Some(Bson::Timestamp(timestamp(position.behind))),
            pipeline: Some(PIPELINE.into()),
            lineage: None,
        });
        let here = Here { pipeline: PIPELINE.into(), lineage: None, time: timestamp(u8::MAX) };
        self.read = match start(stored, &here) {
            Start::Resume(mark) => {
                if world.is_broken(Broken::SweptOnce) {
                    self.full.pop();
                }
                mark.cluster_time.map_or(0, |time| u8::try_from(time.time).unwrap_or(0))
            }
            Start::Fresh | Start::Lost(_) | Start::Asked(_) | Start::PipelineChanged(_) => world.mongo.time,
        };
        world.ledger.dealt_with = world.ledger.dealt_with.max(self.read);
        world.state_database.take(self.read, self.epoch)
    }

    /// Reads a page of changes, and then the documents of these changes.
    fn look_up(&mut self, world: &World) {
        let now = world.now;
        let mut changes =
            world.mongo.majority.changes.iter().filter(|change| change.time > self.read).cloned();
        let Some(first) = changes.next() else { return };
        let next = || changes.next().map(InHand::Change);
        let Page { changes, mark, .. } =
            fill_page(first, PAGE, |change: &Change| change.time, next, |change| is_old(change, now));

        let moment = Moment::following(at(now), ticks(DELAY));
        let mut wanted = Vec::new();
        for change in changes {
            let is_there = wanted.iter().any(|(document, _)| *document == change.document);
            if let Some(head) = head(change.document, moment, world)
                && !is_there
            {
                wanted.push((change.document, head));
            }
        }

        self.read = mark;
        if world.is_broken(Broken::PositionSavedOnRead) {
            self.low_water.reach(mark);
        }
        self.page = Some(LookedUp { wanted, mark });
    }

    /// Sends the commands for the documents of a page. The broker confirms all of them.
    fn send(&mut self, world: &mut World) {
        let Some(LookedUp { wanted, mark }) = self.page.take() else { return };
        for (document, head) in wanted {
            self.queue(document, head, world);
        }
        world.ledger.dealt_with = world.ledger.dealt_with.max(mark);
        self.low_water.reach(mark);
    }

    fn queue(&mut self, document: usize, head: Head, world: &mut World) {
        world.broker.queue(document, world.now);
        self.queued.retain(|known| known.document != document || known.head == head);
        self.queued.push(Queued { document, head, at: world.now });
    }

    /// Executes one round of the sweep.
    fn sweep(&mut self, world: &mut World) {
        self.swept = Some(world.now);
        let is_full = self.full.iter().any(|from| *from <= world.now);
        self.full.retain(|from| *from > world.now);
        let reads_undated = is_full || self.waits_undated(world);

        let moment = Moment::sweeping(at(world.now), ticks(DELAY));
        let mut found_undated = false;
        for document in 0..world.mongo.primary.documents.len() {
            let outbox = &world.mongo.primary.documents[document].outbox;
            let has_undated = undated(outbox);
            found_undated |= has_undated;
            let is_read = due_now(outbox, world.now) || reads_undated && has_undated;
            if !is_read {
                continue;
            }
            if let Some(head) = head(document, moment, world)
                && self.memory().admit(&name(document), &head, instant(world.now)) == Admission::Queue
            {
                self.queue(document, head, world);
            }
        }
        if reads_undated && !found_undated {
            self.queued.retain(|known| !known.head.is_undated());
        }
    }

    fn waits_undated(&self, world: &World) -> bool {
        !world.is_broken(Broken::UndatedForgotten) && self.memory().undated(&namespace()).is_some()
    }

    /// Converts the field `queued` to the record of recently queued documents that the real rescuer keeps.
    fn memory(&self) -> RecentlyQueued {
        let mut memory = RecentlyQueued::beginning(instant(0), REMEMBERED, ticks(REQUEUE_PAUSE));
        for Queued { document, head, at } in &self.queued {
            memory.note(&name(*document), head, instant(*at));
        }
        memory
    }
}

fn is_old(change: &Change, now: Tick) -> bool {
    change.at + DELAY <= now
}

/// Returns what the real rescuer finds in the outbox if the document needs a command.
fn head(document: usize, moment: Moment, world: &World) -> Option<Head> {
    let outbox = &world.mongo.primary.documents[document].outbox;
    let read = read_outbox(None).map(|_| slots(outbox));
    judge(read, world.ordering(document), moment).work
}

fn timestamp(time: u8) -> Timestamp {
    Timestamp { time: time.into(), increment: 1 }
}

fn namespace() -> Namespace {
    Namespace::new("shop", "orders")
}

fn name(document: usize) -> DocumentRef {
    DocumentRef::by_id(namespace(), i64::try_from(document).unwrap_or(0))
}
