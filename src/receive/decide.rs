//! Decides what to do after a message was handled or has failed. The decision is a pure function of the outcome and of the
//! earlier tries.

use std::time::Duration;

use crate::{
    RetryPolicy,
    receive::{handled::Handled, settings::ReceiverSettings},
};

/// The earlier tries of a message.
#[derive(Debug, Clone, Copy)]
pub(super) struct Progress {
    /// The number of failed tries since the receiver took the message, including the latest try.
    pub(super) tries: u32,
    /// The time since the first failed try.
    pub(super) tried_for: Duration,
    /// How many times the message has waited in the delay queue.
    pub(super) delays: u32,
    /// Whether the receiver may hold the message for another try.
    pub(super) room: RetryRoom,
}

/// Whether the receiver may hold another message that has failed, to try the message again.
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
    /// The function reported that the message can never succeed.
    Permanent,
    /// The body doesn't fit the type, or the message is for an aggregate and has no id.
    Undecodable,
    /// The message failed for as long as the settings allow.
    AttemptsExhausted,
    /// No function is registered for the message's type.
    UnknownType,
}

impl DeadCause {
    /// The name of the cause in headers and metrics.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ReceiveStep {
    Acknowledge,
    /// Hold the message and try it again after this pause. Later messages of its key wait meanwhile.
    RetryAfter(Duration, String),
    /// Put the message into the delay queue.
    Delay(String),
    DeadLetter(DeadCause, String),
    /// Take no other messages, and try this message again after this pause.
    AwaitDependency(Duration, String),
}

/// Why a message goes to the delay queue. Either the message has failed, or it follows an earlier message of its key.
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
                // A message is dead only after all of its delays, even if the receiver may hold no more messages for
                // another try.
                ReceiveStep::RetryAfter(pause, reason)
            } else {
                ReceiveStep::DeadLetter(DeadCause::AttemptsExhausted, reason)
            }
        }
    }
}

/// The pause after this many failed tries: random, between a tenth of a bound and the bound, which doubles with each try.
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
