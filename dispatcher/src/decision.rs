//! Decides, in one pure function, what to do with a command after a pass over its document.
//!
//! | the pass | the command |
//! |---|---|
//! | no message is left, the document is gone, or all remaining messages are for other deliverers or blocked by a dead message | is finished |
//! | the first message is held until a time within `hold_within` | is kept until then |
//! | no destination is available | is kept until one is available, for `available_within` in total |
//! | a temporary error of MongoDB | is kept for a growing pause |
//! | MongoDB is unreachable, or this user lacks the privilege | is requeued for another worker |
//! | a permanent error (validation) | is left to the sweep |
//! | the first message is held for longer, or the command was kept for `keep_within` in total | is left to the sweep |
//! | interrupted by a stop | is returned to the broker |

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use document_outbox::{
    dispatch::Processed,
    internal::{
        Hold,
        error_codes::{self, Verdict},
        until,
    },
};
use mongodb::{bson::DateTime, error::Error};

use crate::{
    event::Left,
    mongodb_errors::{UNAUTHORISED, is_unreachable},
    pass::PassOutcome,
    settings::DispatcherSettings,
};

/// The minimum pause before another pass, which prevents a hot loop.
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
/// The first of the growing pauses after errors of MongoDB.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(10);

/// What to do with a command next.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// This worker has no more work for the command.
    Finish(Processed),
    /// Run another pass after this time, if there is room to keep the command.
    Hold(Duration, Hold),
    /// Run another pass once the destination is available, or after this time if that comes first.
    Await(Duration),
    /// Run another pass after this time.
    Retry(Duration, Left),
    /// Leave the messages to the sweep.
    Leave(Left),
    /// Requeue the command, because another worker may be able to process it.
    PutBack(Unable),
    /// Return the command to the broker, because the worker stops.
    GiveBack,
}

/// Why this worker cannot process a command that another worker may be able to process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unable {
    /// The command is from another cluster.
    OtherCluster,
    /// MongoDB denies this user access to the collection. Contains the error.
    Refused(String),
    /// No MongoDB server is usable. Contains the reason.
    Away(String),
    /// Too many commands are already waiting.
    Full(Left),
}

impl Unable {
    /// The kind of the reason. Repeated warnings are counted by kind.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::OtherCluster => "other_cluster",
            Self::Refused(_) => "not_allowed",
            Self::Away(_) => "away",
            Self::Full(_) => "full",
        }
    }
}

impl From<Unable> for Left {
    fn from(unable: Unable) -> Self {
        match unable {
            Unable::OtherCluster => Self::OtherCluster,
            Unable::Refused(error) | Unable::Away(error) => Self::MongoDb(error),
            Unable::Full(why) => why,
        }
    }
}

/// The facts about a command on which a decision depends, in addition to the last pass.
#[derive(Debug, Clone, Copy)]
pub struct CommandState {
    /// Server time.
    pub now: DateTime,
    /// How long the command has been kept.
    pub kept: Duration,
    /// The part of the time in `kept` during which the destination was unavailable.
    pub unavailable: Duration,
    /// Whether the worker is stopping.
    pub stopping: bool,
}

/// Decides about one command, and remembers how long the next pause after an error is.
#[derive(Debug)]
pub struct Policy {
    hold_within: Duration,
    available_within: Duration,
    keep_within: Duration,
    pauses: ExponentialBackoff,
}

impl Policy {
    /// A policy with the bounds of these settings.
    pub fn new(settings: &DispatcherSettings) -> Self {
        let pauses = ExponentialBuilder::default()
            .with_min_delay(FIRST_RETRY)
            .with_max_delay(LAST_RETRY)
            .with_jitter()
            .without_max_times();

        Self {
            hold_within: settings.hold_within,
            available_within: settings.available_within,
            keep_within: settings.keep_within,
            pauses: pauses.build(),
        }
    }

    /// Decides from the outcome of the last pass.
    pub fn decide(&mut self, outcome: PassOutcome, state: CommandState) -> Decision {
        let left = self.keep_within.saturating_sub(state.kept);
        match outcome {
            PassOutcome::Ended(processed) => self.after_a_pass(processed, state, left),
            PassOutcome::Failed(error) => self.after_an_error(&error, left),
            PassOutcome::Panicked => Decision::Leave(Left::Panicked),
        }
    }

    /// Decides after a pass that returned a result; `left` is how much longer the command may be kept.
    fn after_a_pass(&self, processed: Processed, state: CommandState, left: Duration) -> Decision {
        match processed {
            Processed::Done | Processed::Gone => Decision::Finish(processed),
            Processed::Interrupted if state.stopping => Decision::GiveBack,
            Processed::Interrupted => Decision::Leave(Left::TookTooLong),
            Processed::Unavailable => {
                let wait = left.min(self.available_within.saturating_sub(state.unavailable));
                if wait.is_zero() { Decision::Leave(Left::Unavailable) } else { Decision::Await(wait) }
            }
            Processed::Held(hold) => {
                // If the hold has no time at which it ends, the entry is for other deliverers, or is blocked
                // until an operator acts.
                let Some(wait) = wait_for(hold, state.now) else {
                    return Decision::Finish(processed);
                };

                let pause = wait.max(SHORTEST_PAUSE);
                if wait <= self.hold_within && pause <= left {
                    Decision::Hold(pause, hold)
                } else {
                    Decision::Leave(Left::Held(hold))
                }
            }
        }
    }

    fn after_an_error(&mut self, error: &Error, left: Duration) -> Decision {
        let described = error_codes::describe(error);

        // An unreachable MongoDB and a missing privilege don't depend on the document: another worker may
        // reach MongoDB or have the privilege.
        if is_unreachable(error) {
            return Decision::PutBack(Unable::Away(described));
        }
        if error_codes::code(error) == Some(UNAUTHORISED) {
            return Decision::PutBack(Unable::Refused(described));
        }

        let why = Left::MongoDb(described);
        let pause = self.pauses.next().filter(|pause| *pause <= left);
        match pause {
            Some(pause) if error_codes::verdict(error) != Verdict::Refused => Decision::Retry(pause, why),
            _ => Decision::Leave(why),
        }
    }
}

/// The time until a hold ends by itself; `None` if it never does.
fn wait_for(hold: Hold, now: DateTime) -> Option<Duration> {
    match hold {
        Hold::Claimed(at) | Hold::Retrying(at) | Hold::Scheduled(at) => Some(until(now, at)),
        Hold::NotMine | Hold::Dead => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_000_000;

    fn settings() -> DispatcherSettings {
        DispatcherSettings::new(["shop.*".parse().unwrap()])
    }

    fn fresh() -> CommandState {
        CommandState {
            now: DateTime::from_millis(NOW),
            kept: Duration::ZERO,
            unavailable: Duration::ZERO,
            stopping: false,
        }
    }

    fn next(processed: Processed, state: CommandState) -> Decision {
        Policy::new(&settings()).decide(PassOutcome::Ended(processed), state)
    }

    fn retrying(millis: i64) -> Hold {
        Hold::Retrying(DateTime::from_millis(NOW + millis))
    }

    fn network() -> Error {
        std::io::Error::other("connection reset").into()
    }

    #[test]
    fn what_leaves_nothing_for_this_worker_finishes_the_command() {
        let held = [Hold::NotMine, Hold::Dead].map(Processed::Held);
        for processed in [Processed::Done, Processed::Gone].into_iter().chain(held) {
            assert_eq!(next(processed, fresh()), Decision::Finish(processed));
        }
    }

    #[test]
    fn a_head_due_soon_is_waited_for() {
        let soon = next(Processed::Held(retrying(5_000)), fresh());
        assert_eq!(soon, Decision::Hold(Duration::from_secs(5), retrying(5_000)));
        let late = next(Processed::Held(retrying(5_001)), fresh());
        assert_eq!(late, Decision::Leave(Left::Held(retrying(5_001))));
    }

    #[test]
    fn a_head_due_at_once_has_a_pause() {
        let again = next(Processed::Held(Hold::Claimed(DateTime::from_millis(NOW))), fresh());
        assert!(matches!(again, Decision::Hold(SHORTEST_PAUSE, _)), "{again:?}");
    }

    #[test]
    fn no_command_is_kept_too_long() {
        let old = CommandState { kept: Duration::from_secs(298), ..fresh() };
        assert_eq!(next(Processed::Held(retrying(3_000)), old), Decision::Leave(Left::Held(retrying(3_000))));
        assert_eq!(next(Processed::Unavailable, old), Decision::Await(Duration::from_secs(2)));
        assert_eq!(next(Processed::Interrupted, fresh()), Decision::Leave(Left::TookTooLong));
    }

    #[test]
    fn an_unavailable_broker_is_waited_for_a_minute() {
        assert_eq!(next(Processed::Unavailable, fresh()), Decision::Await(Duration::from_mins(1)));
        let waited = CommandState { unavailable: Duration::from_mins(1), ..fresh() };
        assert_eq!(next(Processed::Unavailable, waited), Decision::Leave(Left::Unavailable));
    }

    #[test]
    fn a_stop_gives_the_command_back() {
        let stopping = CommandState { stopping: true, ..fresh() };
        assert_eq!(next(Processed::Interrupted, stopping), Decision::GiveBack);
    }

    #[test]
    fn a_transient_error_is_retried_until_time_is_up() {
        let mut policy = Policy::new(&settings());
        let mut kept = Duration::ZERO;
        let mut tries = 0;
        loop {
            let state = CommandState { kept, ..fresh() };
            match policy.decide(PassOutcome::Failed(network()), state) {
                Decision::Retry(pause, Left::MongoDb(_)) => kept += pause,
                Decision::Leave(Left::MongoDb(_)) => break,
                other => panic!("{other:?}"),
            }
            tries += 1;
        }
        assert!((15..60).contains(&tries), "{tries} tries");
        assert!(kept > Duration::from_secs(270) && kept <= Duration::from_mins(5), "{kept:?}");
    }
}
