//! Records the current and earlier states of the consumer of commands.

use document_outbox::amqp::State;
use mongodb::bson::DateTime;
use parking_lot::{Mutex, MutexGuard};
use serde::Serialize;
use tokio::sync::watch;

use crate::metrics;

/// The state of the consumer of commands at one moment.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ConsumerSnapshot {
    /// `idle` before the start, then `connecting`, `ready`, `paused`, `blocked`, `disconnected`, `misconfigured` or `closed`.
    pub state: &'static str,
    /// When the state began, in RFC 3339, by the clock of this process.
    pub since: String,
    /// The number of subscriptions after the first one.
    pub rebuilds: u64,
    /// The last error, as a sentence.
    pub last_error: Option<String>,
}

/// The current and earlier states of the consumer.
pub(crate) struct ConsumerHistory {
    standing: Mutex<Standing>,
}

struct Standing {
    state: &'static str,
    since: DateTime,
    subscribed: u64,
    last_error: Option<String>,
}

impl ConsumerHistory {
    pub(crate) fn new() -> Self {
        let standing = Standing { state: "idle", since: DateTime::now(), subscribed: 0, last_error: None };
        Self { standing: Mutex::new(standing) }
    }

    /// Records every state of the consumer until it is closed.
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
        let mut standing = self.lock();
        let name = name(state);

        // This loop reads a state only after a change, and may miss states that last only briefly. So if the
        // consumer is ready at two consecutive readings, it was rebuilt between these readings.
        let before = std::mem::replace(&mut standing.state, name);
        if before != name || name == "ready" {
            standing.since = DateTime::now();
        }

        match state {
            // A consumer continues on the same connection after a pause, so it was not rebuilt.
            State::Ready if before == "paused" && standing.subscribed > 0 => {}
            State::Ready => {
                standing.subscribed += 1;
                if standing.subscribed > 1 {
                    metrics::consumer_rebuilt();
                }
            }
            State::Blocked { .. } | State::Disconnected { .. } | State::Misconfigured { .. } => {
                standing.last_error = Some(state.to_string());
            }
            State::Connecting | State::Paused | State::Closed => {}
        }

        metrics::consumer_ready(*state == State::Ready);
    }

    pub(crate) fn snapshot(&self) -> ConsumerSnapshot {
        let standing = self.lock();
        ConsumerSnapshot {
            state: standing.state,
            since: standing.since.try_to_rfc3339_string().unwrap_or_default(),
            rebuilds: standing.subscribed.saturating_sub(1),
            last_error: standing.last_error.clone(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock()
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
