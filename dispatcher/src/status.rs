//! How a worker stands, for probes and people.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use document_outbox::amqp::State;
use mongodb::bson::DateTime;
use serde::Serialize;
use tokio::sync::watch;

use crate::{metrics, work::Work};

/// Tells how a worker stands. Clones tell of the same worker, before it is started and after it has stopped.
#[derive(Clone)]
pub struct Status {
    work: Arc<Work>,
    consumer: Arc<Standing>,
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Status").field(&self.snapshot()).finish()
    }
}

/// How a worker stood at one moment.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Snapshot {
    /// The consumer of commands.
    pub consumer: ConsumerSnapshot,
    /// Whether there is a way to deliver, as far as the deliverer knows. Without one, commands are kept for a while.
    pub delivery_available: bool,
    /// Documents being processed.
    pub in_flight: usize,
    /// The most of them at a time.
    pub concurrency: usize,
    /// Commands kept in hand that wait: for something to be due, for a way to deliver, for MongoDB.
    pub kept: usize,
    /// The most commands in hand, processed, waiting and kept.
    pub prefetch: u16,
    /// Commands that this worker can do nothing about, and which wait to be put back.
    pub to_put_back: usize,
    /// Why no commands are taken, in a sentence: MongoDB is away, or the commands are of no use here. Absent while they are.
    pub unable: Option<String>,
    /// Messages a second at most; absent where there is no limit.
    pub rate: Option<String>,
    /// How long deliveries have waited for the rate, all added up.
    pub throttled_seconds: f64,
    /// Whether it was told to stop.
    pub stopping: bool,
    /// Why it is not ready, in sentences; ready when empty.
    pub not_ready: Vec<String>,
}

/// How the consumer of commands stood.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ConsumerSnapshot {
    /// `idle` before the start, then `connecting`, `ready`, `paused`, `blocked`, `disconnected`, `misconfigured` or `closed`.
    pub state: &'static str,
    /// Since when, in RFC 3339, by the clock of this process.
    pub since: String,
    /// How often it was subscribed again after the first time.
    pub rebuilds: u64,
    /// What last went wrong, in a sentence.
    pub last_error: Option<String>,
}

impl Status {
    pub(crate) fn new(work: Arc<Work>, consumer: Arc<Standing>) -> Self {
        Self { work, consumer }
    }

    /// How it stands now. Asks neither MongoDB nor the broker.
    pub fn snapshot(&self) -> Snapshot {
        let work = &self.work;
        let settings = work.settings();
        let mut snapshot = Snapshot {
            consumer: self.consumer.snapshot(),
            delivery_available: work.delivery_available(),
            in_flight: work.in_flight(),
            concurrency: work.concurrency(),
            kept: work.kept(),
            prefetch: work.prefetch(),
            to_put_back: work.to_put_back(),
            unable: work.ability().why_unable(),
            rate: settings.rate.map(|rate| rate.to_string()),
            throttled_seconds: work.throttled().as_secs_f64(),
            stopping: work.stops().intake.is_cancelled(),
            not_ready: Vec::new(),
        };
        snapshot.not_ready = snapshot.why_not_ready();
        snapshot
    }
}

impl Snapshot {
    fn why_not_ready(&self) -> Vec<String> {
        let ConsumerSnapshot { state, last_error, .. } = &self.consumer;
        let consuming = match (*state, last_error) {
            ("ready" | "paused", _) => None,
            ("disconnected" | "misconfigured" | "blocked", Some(error)) => {
                Some(format!("commands are not being consumed: {error}"))
            }
            _ => Some(format!("commands are not being consumed: the consumer is {state}")),
        };
        let unable = match (*state, &self.unable) {
            ("idle", _) | (_, None) => None,
            (_, Some(why)) => Some(format!("no commands are taken: {why}")),
        };
        let paused = "commands are not being consumed: the consumer is paused";
        let unable = unable.or_else(|| (*state == "paused").then(|| paused.to_owned()));
        let delivering = (!self.delivery_available).then(|| "there is no way to deliver messages".to_owned());
        let stopping = self.stopping.then(|| "the dispatcher is stopping".to_owned());
        consuming.into_iter().chain(unable).chain(delivering).chain(stopping).collect()
    }
}

/// How the consumer stands, and has stood.
pub(crate) struct Standing {
    now: Mutex<Now>,
}

struct Now {
    state: &'static str,
    since: DateTime,
    subscribed: u64,
    last_error: Option<String>,
}

impl Standing {
    pub(crate) fn new() -> Self {
        let now = Now { state: "idle", since: DateTime::now(), subscribed: 0, last_error: None };
        Self { now: Mutex::new(now) }
    }

    /// Notes how the consumer stands until it stands no more.
    pub(crate) async fn follow(&self, mut states: watch::Receiver<State>) {
        loop {
            let state = states.borrow_and_update().clone();
            self.note(&state);
            if state == State::Closed || states.changed().await.is_err() {
                return;
            }
        }
    }

    fn note(&self, state: &State) {
        let mut now = self.lock();
        let name = name(state);
        // What lies between two looks is not seen. So a consumer that is ready at both was made anew.
        let before = std::mem::replace(&mut now.state, name);
        if before != name || name == "ready" {
            now.since = DateTime::now();
        }
        match state {
            // After a pause it is the same connection.
            State::Ready if before == "paused" && now.subscribed > 0 => {}
            State::Ready => {
                now.subscribed += 1;
                if now.subscribed > 1 {
                    metrics::consumer_rebuilt();
                }
            }
            State::Blocked { .. } | State::Disconnected { .. } | State::Misconfigured { .. } => {
                now.last_error = Some(state.to_string());
            }
            State::Connecting | State::Paused | State::Closed => {}
        }
        metrics::consumer_ready(*state == State::Ready);
    }

    fn snapshot(&self) -> ConsumerSnapshot {
        let now = self.lock();
        ConsumerSnapshot {
            state: now.state,
            since: now.since.try_to_rfc3339_string().unwrap_or_default(),
            rebuilds: now.subscribed.saturating_sub(1),
            last_error: now.last_error.clone(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn name(state: &State) -> &'static str {
    match state {
        State::Connecting => "connecting",
        State::Ready => "ready",
        State::Paused => "paused",
        State::Blocked { .. } => "blocked",
        State::Disconnected { .. } => "disconnected",
        State::Misconfigured { .. } => "misconfigured",
        State::Closed => "closed",
    }
}
