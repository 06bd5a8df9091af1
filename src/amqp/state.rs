//! The state of a supervisor's connection.

use std::fmt;

use tokio::sync::watch;

/// The connection state of a [`Publisher`](super::Publisher) or a [`Consumer`](super::Consumer).
///
/// `Display` writes the state as a readable sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// The first connection is being made.
    Connecting,
    /// Connected, and the topology has been applied.
    Ready,
    /// Connected, but the consumer is paused, see [`Consumer::pause`](super::Consumer::pause).
    Paused,
    /// The broker accepts no messages because of a memory or disk alarm. Once the alarm is over, the broker accepts
    /// messages again without intervention.
    Blocked {
        /// The broker's text.
        reason: String,
    },
    /// There is no connection; the supervisor is trying to open a new one.
    Disconnected {
        /// The reason, as a sentence.
        reason: String,
    },
    /// The broker answers, but refuses the login or the topology. Connecting is retried, but a person must fix the
    /// cause.
    Misconfigured {
        /// The reason and what to do, as a sentence.
        reason: String,
    },
    /// Closed for good, by [`close`](super::Publisher::close) or because the last owner or the supervisor is gone.
    Closed,
}

impl State {
    fn is_trouble(&self) -> bool {
        matches!(self, Self::Blocked { .. } | Self::Disconnected { .. } | Self::Misconfigured { .. })
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connecting => f.write_str("connecting to RabbitMQ"),
            Self::Ready => f.write_str("connected to RabbitMQ"),
            Self::Paused => f.write_str("connected to RabbitMQ, but paused"),
            Self::Blocked { reason } => {
                write!(f, "RabbitMQ accepts no messages because of an alarm: {reason}")
            }
            Self::Disconnected { reason } => write!(f, "not connected to RabbitMQ: {reason}"),
            Self::Misconfigured { reason } => write!(f, "RabbitMQ needs attention: {reason}"),
            Self::Closed => f.write_str(
                "the connection to RabbitMQ is closed, on request or because its runtime has ended",
            ),
        }
    }
}

/// The place where a supervisor posts its state. Others can watch the state, and each change of it is logged once.
pub(super) struct Board {
    name: String,
    sender: watch::Sender<State>,
}

impl Board {
    pub(super) fn new(name: String) -> Self {
        Self { name, sender: watch::Sender::new(State::Connecting) }
    }

    pub(super) fn states(&self) -> States {
        States(self.sender.subscribe())
    }

    pub(super) fn state(&self) -> State {
        self.sender.borrow().clone()
    }

    /// Only the supervisor posts, so the state can't change between the read and the write.
    pub(super) fn post(&self, state: State) {
        if *self.sender.borrow() == state {
            return;
        }

        if state.is_trouble() {
            tracing::warn!(connection = %self.name, "{state}");
        } else {
            tracing::info!(connection = %self.name, "{state}");
        }
        self.sender.send_replace(state);
    }
}

impl Drop for Board {
    /// Post the end here, so that no task keeps waiting even if the supervisor panicked.
    fn drop(&mut self) {
        self.post(State::Closed);
    }
}

/// A view of a supervisor's state for its owners.
#[derive(Clone, Debug)]
pub(super) struct States(watch::Receiver<State>);

impl States {
    pub(super) fn now(&self) -> State {
        self.0.borrow().clone()
    }

    pub(super) fn is_ready(&self) -> bool {
        *self.0.borrow() == State::Ready
    }

    /// Waits until the state is ready. Returns false if it can no longer become ready.
    pub(super) async fn ready(&self) -> bool {
        let mut states = self.0.clone();
        let settled = states.wait_for(|state| matches!(state, State::Ready | State::Closed)).await;
        settled.is_ok_and(|state| *state == State::Ready)
    }

    /// Waits until the supervisor has ended.
    pub(super) async fn closed(&self) {
        // An error also means that the supervisor has ended.
        let _ = self.0.clone().wait_for(|state| *state == State::Closed).await;
    }

    /// Returns a receiver of the state and of every later change.
    pub(super) fn subscribe(&self) -> watch::Receiver<State> {
        let mut states = self.0.clone();
        states.mark_unchanged();
        states
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_supervisor_that_panics_leaves_no_caller_waiting() {
        let board = Board::new("test".into());
        let states = board.states();
        let supervisor = tokio::spawn(async move {
            board.post(State::Ready);
            assert_ne!(board.state(), State::Ready, "on purpose");
        });
        states.closed().await;
        assert!(supervisor.await.is_err_and(|error| error.is_panic()));
        assert_eq!(states.now(), State::Closed);
        assert!(!states.ready().await);
    }
}
