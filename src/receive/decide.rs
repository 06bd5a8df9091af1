//! What to do after a message was handled, or failed: a pure function of the outcome and of what happened before.

use std::time::Duration;

use crate::{RetryPolicy, deliver::HandlerError, receive::settings::ReceiverSettings};

/// The outcome of one call for a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Handled {
    /// Its effect is durable; of an aggregate, the majority has the save.
    Applied(Option<InboxFigures>),
    /// The aggregate had received it before.
    Repeated,
    Transient(String),
    Permanent(String),
    Undecodable(String),
    /// Something it needs is unavailable, so that other messages would fail too.
    Unavailable(String),
}

impl From<HandlerError> for Handled {
    fn from(error: HandlerError) -> Self {
        match error {
            HandlerError::Transient(reason) => Self::Transient(reason),
            HandlerError::Permanent(reason) => Self::Permanent(reason),
            HandlerError::Unavailable(reason) => Self::Unavailable(reason),
        }
    }
}

impl Handled {
    /// Of a function that has no inbox.
    pub(super) fn from_result(result: Result<(), HandlerError>) -> Self {
        match result {
            Ok(()) => Self::Applied(None),
            Err(error) => error.into(),
        }
    }

    /// Its name as a failure.
    pub(super) fn error_type(&self) -> Option<&'static str> {
        match self {
            Self::Applied(_) | Self::Repeated => None,
            Self::Transient(_) => Some("transient"),
            Self::Permanent(_) => Some("permanent"),
            Self::Undecodable(_) => Some("undecodable"),
            Self::Unavailable(_) => Some("unavailable"),
        }
    }
}

/// An aggregate's inbox after it received a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct InboxFigures {
    pub(super) remembered: usize,
    pub(super) forgotten: usize,
}

/// What happened to a message before.
#[derive(Debug, Clone, Copy)]
pub(super) struct Progress {
    /// Failed tries in place, this one included.
    pub(super) tries: u32,
    /// Since the first of them.
    pub(super) tried_for: Duration,
    /// How many times it waited in the delay queue.
    pub(super) delays: u32,
    /// Whether its key may be held for another try.
    pub(super) room: RetryRoom,
}

/// Whether more messages may be held by keys that are tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RetryRoom {
    Left,
    Full,
}

/// Why a message is dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::IntoStaticStr, strum::VariantArray)]
#[strum(serialize_all = "snake_case")]
#[non_exhaustive]
pub enum DeadCause {
    /// Its function reported that it can never succeed.
    Permanent,
    /// Its body doesn't fit its type, or it has no id and is for an aggregate.
    Undecodable,
    /// It failed for as long as the settings allow.
    AttemptsExhausted,
    /// Its type has no function here.
    UnknownType,
}

impl DeadCause {
    /// The word for it in headers and metrics.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ReceiveStep {
    Acknowledge,
    /// Try again in place after this pause, which holds the message's key.
    RetryAfter(Duration, String),
    /// Put it into the delay queue.
    Delay(String),
    DeadLetter(DeadCause, String),
    /// Take no messages, and try this one again after this pause.
    AwaitDependency(Duration, String),
}

/// Whether a message that goes to the delay queue has failed itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Delays {
    OneMore,
    AsBefore,
}

/// Whether to continue with a message after a pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum After {
    Continue,
    GiveUp,
}

/// Decides what to do after a call with this outcome.
pub(super) fn next_step(handled: Handled, progress: Progress, settings: &ReceiverSettings) -> ReceiveStep {
    match handled {
        Handled::Applied(_) | Handled::Repeated => ReceiveStep::Acknowledge,
        Handled::Permanent(reason) => ReceiveStep::DeadLetter(DeadCause::Permanent, reason),
        Handled::Undecodable(reason) => ReceiveStep::DeadLetter(DeadCause::Undecodable, reason),
        Handled::Unavailable(reason) => ReceiveStep::AwaitDependency(pause(progress.tries, settings), reason),
        Handled::Transient(reason) => {
            let pause = pause(progress.tries, settings);
            let in_time = progress.tried_for + pause <= settings.retry_within;
            if in_time && progress.room == RetryRoom::Left {
                ReceiveStep::RetryAfter(pause, reason)
            } else if progress.delays < settings.delays {
                ReceiveStep::Delay(reason)
            } else if in_time {
                // It is dead only after its time is over, however many others are held.
                ReceiveStep::RetryAfter(pause, reason)
            } else {
                ReceiveStep::DeadLetter(DeadCause::AttemptsExhausted, reason)
            }
        }
    }
}

/// The pause after this many failed tries: full jitter, up to a bound that doubles.
pub(super) fn pause(tries: u32, settings: &ReceiverSettings) -> Duration {
    let policy = RetryPolicy::default().with(|retry| {
        retry.backoff_min = settings.retry_min;
        retry.backoff_max = settings.retry_max;
    });
    policy.backoff(tries)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> ReceiverSettings {
        ReceiverSettings::new("q").with(|settings| settings.delays = 2)
    }

    fn after(tried_for: u64, delays: u32, room: RetryRoom) -> ReceiveStep {
        let progress = Progress { tries: 1, tried_for: Duration::from_secs(tried_for), delays, room };
        next_step(Handled::Transient("no".into()), progress, &settings())
    }

    #[test]
    fn a_transient_failure_is_retried_then_delayed_then_dead() {
        assert!(matches!(after(0, 0, RetryRoom::Left), ReceiveStep::RetryAfter(..)));
        assert_eq!(after(31, 0, RetryRoom::Left), ReceiveStep::Delay("no".into()));
        assert_eq!(after(31, 1, RetryRoom::Left), ReceiveStep::Delay("no".into()));
        assert_eq!(
            after(31, 2, RetryRoom::Left),
            ReceiveStep::DeadLetter(DeadCause::AttemptsExhausted, "no".into())
        );
    }

    #[test]
    fn without_room_it_is_delayed_at_once_and_never_dead_early() {
        assert_eq!(after(0, 0, RetryRoom::Full), ReceiveStep::Delay("no".into()));
        assert!(matches!(after(0, 2, RetryRoom::Full), ReceiveStep::RetryAfter(..)));
        assert!(matches!(after(31, 2, RetryRoom::Full), ReceiveStep::DeadLetter(..)));
    }

    #[test]
    fn an_unavailable_dependency_never_costs_a_message() {
        let progress =
            Progress { tries: 1000, tried_for: Duration::from_hours(9), delays: 9, room: RetryRoom::Full };
        let step = next_step(Handled::Unavailable("down".into()), progress, &settings());
        assert!(matches!(step, ReceiveStep::AwaitDependency(..)), "{step:?}");
    }

    #[test]
    fn a_hopeless_message_dies_at_its_first_try() {
        let progress = Progress { tries: 1, tried_for: Duration::ZERO, delays: 0, room: RetryRoom::Left };
        for (handled, cause) in [
            (Handled::Permanent("no".into()), DeadCause::Permanent),
            (Handled::Undecodable("no".into()), DeadCause::Undecodable),
        ] {
            let step = next_step(handled, progress, &settings());
            assert_eq!(step, ReceiveStep::DeadLetter(cause, "no".into()));
        }
    }
}
