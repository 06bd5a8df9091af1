//! What is done about a command once a pass over its document came to its end: one pure function.
//!
//! | the pass | the command |
//! |---|---|
//! | nothing left, document gone, or the rest is for others or behind a dead one | is finished |
//! | held until a time within `hold_within` | is kept for that time |
//! | no way to deliver | is kept until there is, for `available_within` in all |
//! | an error of MongoDB that may pass | is kept for a growing pause |
//! | MongoDB away as a whole, or this user without the right | is put back for another worker |
//! | an error that says "no, now or later" (validation) | is left to the sweep |
//! | held for longer, or kept for `keep_within` in all | is left to the sweep |
//! | broken off by a stop | is given back |

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

use crate::{DispatcherSettings, Left, reach::is_away};

/// The least pause before another pass, so that nothing can make it a hot loop.
const BREATH: Duration = Duration::from_millis(50);
/// The server's code for a command that the user may not send.
const UNAUTHORISED: i32 = 13;

/// How a pass ended.
#[derive(Debug)]
pub(crate) enum Pass {
    Ended(Processed),
    Failed(Error),
    Panicked,
}

/// What is done next.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Next {
    Finish(Processed),
    /// Another pass, this much later, if there is room to keep it.
    Hold(Duration, Hold),
    /// Another pass once there is a way to deliver, which is waited for no longer than this.
    Await(Duration),
    /// Another pass, this much later.
    Retry(Duration, Left),
    Leave(Left),
    /// Another worker may be able to.
    PutBack(Unable),
    GiveBack,
}

/// Why another worker may be able to do what this one cannot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Unable {
    OtherCluster,
    /// MongoDB refuses this user the collection; says how.
    Refused(String),
    /// No server can be worked with; says why.
    Away(String),
    /// Too many wait already.
    Full(Left),
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

/// What is known of a command besides its last pass.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Known {
    /// Server time.
    pub(crate) now: DateTime,
    /// How long the command has been kept.
    pub(crate) kept: Duration,
    /// How much of that there was no way to deliver.
    pub(crate) unavailable: Duration,
    /// Whether the worker stops.
    pub(crate) stopping: bool,
}

/// Decides about one command; remembers how its pauses grow.
pub(crate) struct Decision {
    hold_within: Duration,
    available_within: Duration,
    keep_within: Duration,
    pauses: ExponentialBackoff,
}

impl Decision {
    pub(crate) fn new(settings: &DispatcherSettings) -> Self {
        let pauses = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(100))
            .with_max_delay(Duration::from_secs(10))
            .with_jitter()
            .without_max_times();
        Self {
            hold_within: settings.hold_within,
            available_within: settings.available_within,
            keep_within: settings.keep_within,
            pauses: pauses.build(),
        }
    }

    pub(crate) fn next(&mut self, pass: Pass, known: Known) -> Next {
        let left = self.keep_within.saturating_sub(known.kept);
        match pass {
            Pass::Ended(
                done @ (Processed::Done | Processed::Gone | Processed::Held(Hold::NotMine | Hold::Dead)),
            ) => Next::Finish(done),
            Pass::Ended(Processed::Interrupted) if known.stopping => Next::GiveBack,
            Pass::Ended(Processed::Interrupted) => Next::Leave(Left::TookTooLong),
            Pass::Ended(Processed::Unavailable) => {
                let wait = left.min(self.available_within.saturating_sub(known.unavailable));
                match wait.is_zero() {
                    true => Next::Leave(Left::Unavailable),
                    false => Next::Await(wait),
                }
            }
            Pass::Ended(Processed::Held(hold)) => match due(hold, known.now) {
                Some(wait) if wait <= self.hold_within && wait.max(BREATH) <= left => {
                    Next::Hold(wait.max(BREATH), hold)
                }
                _ => Next::Leave(Left::Held(hold)),
            },
            Pass::Failed(error) if is_away(&error) => {
                Next::PutBack(Unable::Away(error_codes::describe(&error)))
            }
            Pass::Failed(error) if error_codes::code(&error) == Some(UNAUTHORISED) => {
                Next::PutBack(Unable::Refused(error_codes::describe(&error)))
            }
            Pass::Failed(error) => {
                let why = Left::MongoDb(error_codes::describe(&error));
                let pause = self.pauses.next().filter(|pause| *pause <= left);
                match pause {
                    Some(pause) if error_codes::verdict(&error) != Verdict::Refused => {
                        Next::Retry(pause, why)
                    }
                    _ => Next::Leave(why),
                }
            }
            Pass::Panicked => Next::Leave(Left::Panicked),
        }
    }
}

/// How long until a hold ends by itself.
fn due(hold: Hold, now: DateTime) -> Option<Duration> {
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

    fn known() -> Known {
        Known {
            now: DateTime::from_millis(NOW),
            kept: Duration::ZERO,
            unavailable: Duration::ZERO,
            stopping: false,
        }
    }

    fn next(processed: Processed, known: Known) -> Next {
        Decision::new(&settings()).next(Pass::Ended(processed), known)
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
            assert_eq!(next(processed, known()), Next::Finish(processed));
        }
    }

    #[test]
    fn a_head_due_soon_is_waited_for() {
        let soon = next(Processed::Held(retrying(5_000)), known());
        assert_eq!(soon, Next::Hold(Duration::from_secs(5), retrying(5_000)));
        let late = next(Processed::Held(retrying(5_001)), known());
        assert_eq!(late, Next::Leave(Left::Held(retrying(5_001))));
    }

    #[test]
    fn a_head_due_at_once_has_a_pause() {
        let again = next(Processed::Held(Hold::Claimed(DateTime::from_millis(NOW))), known());
        assert!(matches!(again, Next::Hold(BREATH, _)), "{again:?}");
    }

    #[test]
    fn no_command_is_kept_too_long() {
        let old = Known { kept: Duration::from_secs(298), ..known() };
        assert_eq!(next(Processed::Held(retrying(3_000)), old), Next::Leave(Left::Held(retrying(3_000))));
        assert_eq!(next(Processed::Unavailable, old), Next::Await(Duration::from_secs(2)));
        assert_eq!(next(Processed::Interrupted, known()), Next::Leave(Left::TookTooLong));
    }

    #[test]
    fn an_unavailable_broker_is_waited_for_a_minute() {
        assert_eq!(next(Processed::Unavailable, known()), Next::Await(Duration::from_secs(60)));
        let waited = Known { unavailable: Duration::from_secs(60), ..known() };
        assert_eq!(next(Processed::Unavailable, waited), Next::Leave(Left::Unavailable));
    }

    #[test]
    fn a_stop_gives_the_command_back() {
        let stopping = Known { stopping: true, ..known() };
        assert_eq!(next(Processed::Interrupted, stopping), Next::GiveBack);
    }

    #[test]
    fn a_transient_error_is_retried_until_time_is_up() {
        let mut decision = Decision::new(&settings());
        let mut kept = Duration::ZERO;
        let mut tries = 0;
        loop {
            let known = Known { kept, ..known() };
            match decision.next(Pass::Failed(network()), known) {
                Next::Retry(pause, Left::MongoDb(_)) => kept += pause,
                Next::Leave(Left::MongoDb(_)) => break,
                other => panic!("{other:?}"),
            }
            tries += 1;
        }
        assert!((15..60).contains(&tries), "{tries} tries");
        assert!(kept > Duration::from_secs(270) && kept <= Duration::from_secs(300), "{kept:?}");
    }
}
