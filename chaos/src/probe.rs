//! Watches the MongoDB set and the machine. The probe's connections to MongoDB do not pass through links, so faults of links
//! don't affect these connections.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use mongodb::{
    bson::{Document, doc},
    options::WriteConcern,
};
use parking_lot::Mutex;
use tokio::{
    task::JoinSet,
    time::{interval, sleep, timeout},
};

use crate::servers::Set;

/// How often the probe makes a majority write (`PROBE`), and how often the probe asks the members which of them is primary
/// (`LOOK`).
const PROBE: Duration = Duration::from_millis(250);
const LOOK: Duration = Duration::from_millis(300);
/// A majority write that takes longer than this counts as slow.
const SLOW: Duration = Duration::from_millis(500);
/// A write that takes longer than this counts as not answered.
const GIVEN_UP: Duration = Duration::from_secs(15);
/// The length of the sleep with which the probe checks that this process runs on time.
const TICK: Duration = Duration::from_millis(50);
/// If the sleep of length `TICK` ends later than planned by more than this duration, the machine counts as overloaded.
const STALL: Duration = Duration::from_millis(300);

/// Watches in the background until this value is dropped.
pub(crate) struct Probe {
    seen: Arc<Mutex<Sightings>>,
    _tasks: JoinSet<()>,
}

/// The observations of a probe.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sightings {
    /// When each majority write began, and when the write was done; `None` if no answer came in time.
    writes: Vec<(Instant, Option<Instant>)>,
    /// Each primary that the probe saw: the time, and a text that names the member and its election.
    primaries: Vec<(Instant, String)>,
    stalls: Vec<(Instant, Instant)>,
}

impl Probe {
    pub(crate) fn start(set: Arc<Set>) -> Self {
        let seen: Arc<Mutex<Sightings>> = Arc::default();
        let mut tasks = JoinSet::new();
        tasks.spawn(probe_majority(set.clone(), seen.clone()));
        tasks.spawn(watch_primary(set, seen.clone()));
        tasks.spawn(watch_machine(seen.clone()));
        Self { seen, _tasks: tasks }
    }

    pub(crate) fn sightings(&self) -> Sightings {
        self.seen.lock().clone()
    }
}

async fn probe_majority(set: Arc<Set>, seen: Arc<Mutex<Sightings>>) {
    let probes = set.database("chaos_probe").collection::<Document>("probes");
    let mut due = interval(PROBE);
    loop {
        due.tick().await;
        let (seen, probes) = (seen.clone(), probes.clone());
        tokio::spawn(async move {
            let begun = Instant::now();
            let written = probes.insert_one(doc! { "of": "probe" }).write_concern(WriteConcern::majority());
            let is_done = matches!(timeout(GIVEN_UP, written).await, Ok(Ok(_)));
            seen.lock().writes.push((begun, is_done.then(Instant::now)));
        });
    }
}

async fn watch_primary(set: Arc<Set>, seen: Arc<Mutex<Sightings>>) {
    loop {
        sleep(LOOK).await;
        for member in 0..set.members.len() {
            let Ok(Ok(hello)) = timeout(LOOK * 5, set.on(member, doc! { "hello": 1 })).await else {
                continue;
            };
            if hello.get_bool("isWritablePrimary").unwrap_or(false) {
                let election = hello.get("electionId").map(ToString::to_string).unwrap_or_default();
                let primary = format!("{} {election}", set.members[member]);
                let mut seen = seen.lock();
                if seen.primaries.last().is_none_or(|(_, last)| *last != primary) {
                    seen.primaries.push((Instant::now(), primary));
                }
            }
        }
    }
}

async fn watch_machine(seen: Arc<Mutex<Sightings>>) {
    loop {
        let begun = Instant::now();
        sleep(TICK).await;
        if begun.elapsed() > TICK + STALL {
            seen.lock().stalls.push((begun, Instant::now()));
        }
    }
}

impl Sightings {
    /// Whether the probe saw a new primary, or a new election of the same primary, between `from` and `until` or right after
    /// `until`.
    pub(crate) fn primary_changed(&self, from: Instant, until: Instant) -> bool {
        // The first element is the primary at the start of the run, not a change. The probe sees a change a little after the
        // election.
        let until = until + LOOK * 6;
        self.primaries.iter().skip(1).any(|(at, _)| (from..=until).contains(at))
    }

    /// Whether a majority write was slow or the machine was overloaded between `from` and `until`.
    pub(crate) fn was_slow(&self, from: Instant, until: Instant) -> bool {
        let overlaps = |begun: Instant, done: Instant| begun <= until && done >= from;
        let is_late = |(begun, done): &(Instant, Option<Instant>)| {
            let done = done.unwrap_or(*begun + GIVEN_UP);
            done.saturating_duration_since(*begun) > SLOW && overlaps(*begun, done)
        };
        let is_stall = |(begun, ended): &(Instant, Instant)| overlaps(*begun, *ended);
        self.writes.iter().any(is_late) || self.stalls.iter().any(is_stall)
    }

    /// Whether a majority write that began at `from` or later was done at most `within` after `from`.
    pub(crate) fn majority_answered(&self, from: Instant, within: Duration) -> bool {
        let is_answer = |(begun, done): &(Instant, Option<Instant>)| {
            *begun >= from && done.is_some_and(|done| done <= from + within)
        };
        self.writes.iter().any(is_answer)
    }
}
