//! A supervisor's report on its connection.

use std::fmt;

use tokio::sync::watch;

/// The state of a [`Publisher`](super::Publisher) or a [`Consumer`](super::Consumer) towards the broker.
///
/// `Display` is a sentence for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// The first connection is being made.
    Connecting,
    /// Connected, and the topology is in place.
    Ready,
    /// Connected, but it takes no messages: see [`Consumer::pause`](super::Consumer::pause).
    Paused,
    /// The broker takes no messages because of a memory or disk alarm. Ends by itself.
    Blocked {
        /// In the broker's words.
        reason: String,
    },
    /// There is no connection; another one is being tried.
    Disconnected {
        /// Why, in a sentence.
        reason: String,
    },
    /// The broker answers, but refuses the login or the topology; retried, but a person must act.
    Misconfigured {
        /// Why, and what to do, in a sentence.
        reason: String,
    },
    /// Closed by [`close`](super::Publisher::close), or because its last owner or its supervisor is gone. Final.
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
            Self::Paused => f.write_str("connected to RabbitMQ, but it takes no messages"),
            Self::Blocked { reason } => write!(f, "RabbitMQ takes no messages because of an alarm: {reason}"),
            Self::Disconnected { reason } => write!(f, "not connected to RabbitMQ: {reason}"),
            Self::Misconfigured { reason } => write!(f, "RabbitMQ needs attention: {reason}"),
            Self::Closed => f.write_str(
                "the connection to RabbitMQ is closed, on request or because its runtime has ended",
            ),
        }
    }
}

/// Where a supervisor posts its state: watched by others, logged once per change.
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

    /// Only the supervisor posts, so there is no change between the read and the write.
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
    /// Even if its supervisor panicked, no task waits for it any more.
    fn drop(&mut self) {
        self.post(State::Closed);
    }
}

/// The owners' view of a supervisor's state. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct States(watch::Receiver<State>);

impl States {
    pub(super) fn now(&self) -> State {
        self.0.borrow().clone()
    }

    pub(super) fn is_ready(&self) -> bool {
        *self.0.borrow() == State::Ready
    }

    /// Waits until the state is ready; false once that is no longer possible.
    pub(super) async fn ready(&self) -> bool {
        let mut states = self.0.clone();
        let settled = states.wait_for(|state| matches!(state, State::Ready | State::Closed)).await;
        settled.is_ok_and(|state| *state == State::Ready)
    }

    /// Waits until the supervisor has ended.
    pub(super) async fn closed(&self) {
        // An error means that the supervisor has ended, as awaited.
        let _ = self.0.clone().wait_for(|state| *state == State::Closed).await;
    }

    /// The state, and every change of it from now on.
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
