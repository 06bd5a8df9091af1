//! The state of a worker, for probes and operators.

use std::{fmt, sync::Arc};

use serde::Serialize;

use crate::{
    consumer::{ConsumerHistory, ConsumerSnapshot},
    worker::Worker,
};

/// Gives the state of a worker. Clones refer to the same worker, even before its start and after its end.
#[derive(Clone)]
pub struct Status {
    worker: Arc<Worker>,
    consumer: Arc<ConsumerHistory>,
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Status").field(&self.snapshot()).finish()
    }
}

/// The state of a worker at one moment.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Snapshot {
    /// The state of the consumer of commands.
    pub consumer: ConsumerSnapshot,
    /// Whether the destination is available, as far as the deliverer knows. If not, commands are kept for
    /// a while.
    pub delivery_available: bool,
    /// The number of documents being processed.
    pub in_flight: usize,
    /// The maximum number of documents processed at a time.
    pub concurrency: usize,
    /// The number of commands that are kept because they wait for a due time, for a destination, or for
    /// MongoDB.
    pub kept: usize,
    /// The maximum number of unsettled commands: those in processing, waiting or kept.
    pub prefetch: u16,
    /// The number of commands that this worker cannot process and will requeue.
    pub to_put_back: usize,
    /// Why no commands are taken, as a sentence: MongoDB is unreachable, or this worker cannot process the
    /// commands. Absent while commands are taken.
    pub unable: Option<String>,
    /// The maximum number of messages per second; absent if there is no limit.
    pub rate: Option<String>,
    /// The total time that deliveries have waited because of the rate.
    pub throttled_seconds: f64,
    /// Whether the worker is stopping.
    pub stopping: bool,
    /// Why the worker is not ready, in sentences; empty if it is ready.
    pub not_ready: Vec<String>,
}

impl Status {
    pub(crate) fn new(worker: Arc<Worker>, consumer: Arc<ConsumerHistory>) -> Self {
        Self { worker, consumer }
    }

    /// The current state. Queries neither MongoDB nor the broker.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let worker = &self.worker;
        let mut snapshot = Snapshot {
            consumer: self.consumer.snapshot(),
            delivery_available: worker.delivery_available(),
            in_flight: worker.in_flight(),
            concurrency: worker.concurrency(),
            kept: worker.kept(),
            prefetch: worker.prefetch(),
            to_put_back: worker.to_put_back(),
            unable: worker.ability().why_unable(),
            rate: worker.settings().rate.map(|rate| rate.to_string()),
            throttled_seconds: worker.throttled().as_secs_f64(),
            stopping: worker.stops().intake.is_cancelled(),
            not_ready: Vec::new(),
        };

        snapshot.not_ready = snapshot.why_not_ready();
        snapshot
    }
}

impl Snapshot {
    fn why_not_ready(&self) -> Vec<String> {
        let ConsumerSnapshot { state, last_error, .. } = &self.consumer;
        let mut reasons = Vec::new();

        // A consumer that is only paused is healthy. The reason why this worker takes no commands
        // follows below.
        match (*state, last_error) {
            ("ready" | "paused", _) => {}
            ("disconnected" | "misconfigured" | "blocked", Some(error)) => {
                reasons.push(format!("commands are not being consumed: {error}"));
            }
            _ => reasons.push(format!("commands are not being consumed: the consumer is {state}")),
        }
        match &self.unable {
            Some(why) if *state != "idle" => reasons.push(format!("no commands are taken: {why}")),
            _ if *state == "paused" => {
                reasons.push("commands are not being consumed: the consumer is paused".into());
            }
            _ => {}
        }

        if !self.delivery_available {
            reasons.push("the destination of messages is unavailable".into());
        }
        if self.stopping {
            reasons.push("the dispatcher is stopping".into());
        }
        reasons
    }
}
