//! Holds the state of a daemon, from which requests for probes and status are answered.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::RwLock;
use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;

use crate::process::settings::Program;

/// The time between two heartbeats.
const BEAT: Duration = Duration::from_secs(1);
/// The time without a heartbeat after which the runtime counts as stuck. A busy machine delays a task for
/// less.
const STUCK_MS: u64 = 10_000;

/// Reports the state of a daemon. The methods are called on the thread that answers HTTP, so they must
/// return at once, from memory.
pub trait Report: Send + Sync {
    /// The reasons why the daemon can't work now, one sentence each; empty if the daemon can work.
    fn not_ready(&self) -> Vec<String>;

    /// The daemon's state for people and scripts: a JSON object whose fields become part of `/status`. It
    /// contains no message and no secret.
    fn status(&self) -> Value;
}

/// Connects a daemon to its probes. Clones share the state.
#[derive(Clone)]
pub struct Probes(Arc<Inner>);

impl fmt::Debug for Probes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Probes").field("program", &self.0.program.name).finish_non_exhaustive()
    }
}

struct Inner {
    program: Program,
    stop: CancellationToken,
    report: RwLock<Option<Box<dyn Report>>>,
    started: Instant,
    /// When the runtime last ran a task, in milliseconds since `started`.
    last_beat: AtomicU64,
}

impl Probes {
    pub(crate) fn new(program: Program, stop: CancellationToken) -> Self {
        let (started, last_beat) = (Instant::now(), AtomicU64::new(0));
        Self(Arc::new(Inner { program, stop, report: RwLock::default(), started, last_beat }))
    }

    /// Uses `report` from now on. Until this call, the probes report that the daemon is starting
    /// and not ready.
    pub fn report(&self, report: impl Report + 'static) {
        *self.0.report.write() = Some(Box::new(report));
    }

    /// Records heartbeats, which show that the runtime executes tasks.
    pub(crate) async fn beat(self) {
        let mut ticks = tokio::time::interval(BEAT);
        loop {
            ticks.tick().await;
            self.0.last_beat.store(self.age_ms(), Ordering::Relaxed);
        }
    }

    /// Whether the runtime is not stuck.
    pub(crate) fn is_alive(&self) -> bool {
        self.is_alive_at(self.age_ms())
    }

    fn is_alive_at(&self, now: u64) -> bool {
        now.saturating_sub(self.0.last_beat.load(Ordering::Relaxed)) < STUCK_MS
    }

    fn age_ms(&self) -> u64 {
        u64::try_from(self.0.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Why the daemon is not ready; empty if it is ready.
    pub(crate) fn not_ready(&self) -> Vec<String> {
        if self.0.stop.is_cancelled() {
            return vec!["stopping".into()];
        }

        match &*self.0.report.read() {
            Some(report) => report.not_ready(),
            None => vec!["starting".into()],
        }
    }

    pub(crate) fn status(&self) -> Value {
        let not_ready = self.not_ready();
        let mut status = Map::new();
        status.insert("service".into(), json!(self.0.program.name));
        status.insert("version".into(), json!(self.0.program.version));
        status.insert("uptime_seconds".into(), json!(self.0.started.elapsed().as_secs()));
        status.insert("ready".into(), json!(not_ready.is_empty()));
        status.insert("not_ready".into(), json!(not_ready));

        // The daemon's own fields follow, and can't replace the fields above.
        let report = self.0.report.read();
        if let Some(Value::Object(own)) = report.as_deref().map(Report::status) {
            for (name, value) in own {
                status.entry(name).or_insert(value);
            }
        }
        Value::Object(status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Half;

    impl Report for Half {
        fn not_ready(&self) -> Vec<String> {
            vec!["the broker is gone".into()]
        }

        fn status(&self) -> Value {
            json!({ "streams": 2, "ready": true })
        }
    }

    fn probes() -> Probes {
        Probes::new(Program { name: "outbox-test", version: "1.2.3", about: "" }, CancellationToken::new())
    }

    #[test]
    fn a_daemon_is_starting_until_it_reports() {
        let probes = probes();
        assert_eq!(probes.not_ready(), ["starting"]);
        probes.report(Half);
        assert_eq!(probes.not_ready(), ["the broker is gone"]);
        probes.0.stop.cancel();
        assert_eq!(probes.not_ready(), ["stopping"]);
    }

    #[test]
    fn the_status_has_common_and_own_fields() {
        let probes = probes();
        probes.report(Half);
        let status = probes.status();
        assert_eq!((&status["service"], &status["version"]), (&json!("outbox-test"), &json!("1.2.3")));
        assert_eq!((&status["ready"], &status["streams"]), (&json!(false), &json!(2)), "{status}");
    }

    #[test]
    fn a_runtime_is_alive_while_its_heart_beats() {
        let probes = probes();
        probes.0.last_beat.store(5_000, Ordering::Relaxed);
        assert!(probes.is_alive_at(5_000 + STUCK_MS - 1));
        assert!(!probes.is_alive_at(5_000 + STUCK_MS));
    }
}
