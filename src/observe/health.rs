//! The health of an inline dispatcher or a worker, for use in the process's own health endpoint.
//!
//! ```no_run
//! # fn example(inline: document_outbox::InlineDispatcher) -> serde_json::Result<()> {
//! let health = inline.health(); // kept by the endpoint
//! let body = serde_json::to_string(&health.snapshot())?;
//! # Ok(()) }
//! ```

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use mongodb::bson::DateTime;
use parking_lot::{Mutex, MutexGuard};
use serde::{Serialize, Serializer};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::{
    deliver::{Deliver, json::rfc3339},
    observe::{event::Shed, metrics::Metrics},
};

/// Minimum interval between two warnings about messages left to the rescuer, for each reason.
const WARN_EVERY: Duration = Duration::from_mins(1);
/// The pause between two checks of a deliverer that says it is available but isn't.
const BREATH: Duration = Duration::from_millis(500);

/// Reports the state of a dispatcher. Clones report on the same dispatcher. A handle doesn't keep the dispatcher alive
/// and sends no queries.
#[derive(Clone)]
pub struct Health {
    vitals: Arc<HealthRecord>,
}

impl fmt::Debug for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Health").field(&self.snapshot()).finish()
    }
}

impl Health {
    pub(crate) fn of(vitals: &Arc<HealthRecord>) -> Self {
        Self { vitals: vitals.clone() }
    }

    /// Returns the current state.
    pub fn snapshot(&self) -> Snapshot {
        let vitals = &self.vitals;
        let state = vitals.lock();
        Snapshot {
            in_flight: vitals.in_flight.load(Ordering::Relaxed),
            capacity: vitals.capacity,
            circuit_open_since: state.circuit_open_since,
            shed: vitals.shed.load(Ordering::Relaxed),
            last_error: state.last_error.clone(),
            draining: vitals.draining.load(Ordering::Relaxed),
        }
    }
}

/// The state at one moment. Times are by this machine's clock, written as RFC 3339.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Snapshot {
    /// Number of documents in delivery.
    pub in_flight: usize,
    /// Maximum number of documents in delivery. `None` for a worker, whose caller sets the limit.
    pub capacity: Option<usize>,
    /// The time since which deliveries have been waiting for the destination (the broker). This time is updated only
    /// when there is a message to deliver.
    #[serde(serialize_with = "as_text")]
    pub circuit_open_since: Option<SystemTime>,
    /// Number of messages that were left to the rescuer since the start.
    pub shed: u64,
    /// The last failure, however long ago it was.
    pub last_error: Option<LastError>,
    /// Whether an inline dispatcher is closing. Always false for a worker, because only its caller knows whether it is
    /// closing.
    pub draining: bool,
}

/// A failure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct LastError {
    /// The time of the failure.
    #[serde(serialize_with = "as_text")]
    pub at: Option<SystemTime>,
    /// The error text from the deliverer, the handler or MongoDB. MongoDB's own text about a write is left out.
    /// Contains no payload.
    pub error: String,
}

#[expect(clippy::ref_option, reason = "serde calls it with a reference to the field")]
fn as_text<S: Serializer>(time: &Option<SystemTime>, serializer: S) -> Result<S::Ok, S::Error> {
    time.map(DateTime::from_system_time).and_then(rfc3339).serialize(serializer)
}

/// The state of a processor.
pub(crate) struct HealthRecord {
    metrics: Arc<Metrics>,
    capacity: Option<usize>,
    in_flight: AtomicUsize,
    shed: AtomicU64,
    draining: AtomicBool,
    state: Mutex<HealthState>,
}

#[derive(Default)]
struct HealthState {
    circuit_open_since: Option<SystemTime>,
    last_error: Option<LastError>,
    /// Warnings, by label value of the reason.
    shed: HashMap<&'static str, Warning>,
}

/// The time of the last logged warning about messages left to the rescuer, and the number of messages since then.
#[derive(Default)]
struct Warning {
    at: Option<Instant>,
    messages: usize,
}

/// A document in delivery. The document counts as in delivery until this value is dropped.
pub(crate) struct InFlight(Arc<HealthRecord>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.0.metrics.in_flight.decrement(1);
    }
}

impl HealthRecord {
    pub(crate) fn new(metrics: Arc<Metrics>, capacity: Option<usize>) -> Arc<Self> {
        Arc::new(Self {
            metrics,
            capacity,
            in_flight: AtomicUsize::new(0),
            shed: AtomicU64::new(0),
            draining: AtomicBool::new(false),
            state: Mutex::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, HealthState> {
        self.state.lock()
    }

    pub(crate) fn enter(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        self.metrics.in_flight.increment(1);
        InFlight(self.clone())
    }

    /// Counts messages that are left to the rescuer, and logs a warning at most once a minute for each
    /// reason.
    pub(crate) fn shed(&self, messages: usize, reason: Shed) {
        self.shed.fetch_add(u64::try_from(messages).unwrap_or(u64::MAX), Ordering::Relaxed);

        let mut state = self.lock();
        let warning = state.shed.entry(reason.as_str()).or_default();
        warning.messages += messages;

        if warning.at.is_none_or(|at| at.elapsed() >= WARN_EVERY) {
            tracing::warn!(
                reason = reason.as_str(),
                messages = warning.messages,
                "messages are not delivered inline; the rescuer will deliver them later"
            );
            *warning = Warning { at: Some(Instant::now()), messages: 0 };
        }
    }

    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    pub(crate) fn failed(&self, error: &str) {
        let error = LastError { at: Some(SystemTime::now()), error: error.into() };
        self.lock().last_error = Some(error);
    }

    /// Records that the destination is unavailable, and starts waiting until it is available again. `gone` is cancelled
    /// when the last clone of the processor is dropped.
    pub(crate) fn circuit_opened(self: &Arc<Self>, deliver: &Arc<dyn Deliver>, gone: CancellationToken) {
        {
            let mut state = self.lock();
            if state.circuit_open_since.is_some() {
                return;
            }
            state.circuit_open_since = Some(SystemTime::now());
            self.metrics.circuit_open.set(1);
        }

        let circuit = OpenCircuit(self.clone());
        let deliver = Arc::downgrade(deliver);
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move {
                gone.run_until_cancelled(back(deliver)).await;
                drop(circuit);
            });
        }
    }
}

/// Marks the destination as unavailable until this value is dropped, which also happens when the runtime ends.
struct OpenCircuit(Arc<HealthRecord>);

impl Drop for OpenCircuit {
    fn drop(&mut self) {
        self.0.lock().circuit_open_since = None;
        self.0.metrics.circuit_open.set(0);
    }
}

/// Waits until the deliverer is available, or dropped.
async fn back(deliver: Weak<dyn Deliver>) {
    while let Some(deliver) = deliver.upgrade() {
        deliver.available().await;
        if deliver.is_available() {
            break;
        }
        drop(deliver);
        tokio::time::sleep(BREATH).await;
    }
}
