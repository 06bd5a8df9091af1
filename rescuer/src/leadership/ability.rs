//! Judges whether commands get through, from the state of the connection and the results of recent
//! commands.
//!
//! A live connection is not enough: a broker can refuse every command, because a privilege is
//! missing, or a queue is full or not bound. A rescuer whose commands keep failing for a while
//! counts as unable to send commands. A standby sends no commands, so it can't notice when the
//! failures end: a minute after the last failure it counts as able again, and takes over the stream
//! if the owner is unable to send.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use crate::commands::{Ability, Commands};

/// A process counts as unable to send once commands have failed for this long and none was
/// confirmed in between.
const FAILING_FOR: Duration = Duration::from_secs(10);
/// A process counts as able to send again when this time has passed since its last failed command.
const FORGIVEN: Duration = Duration::from_mins(1);

/// The connection to the broker, which all streams of a process share.
pub(crate) struct Broker {
    pub(crate) commands: Arc<dyn Commands>,
    confirms: Confirms,
}

impl Broker {
    pub(crate) fn new(commands: Arc<dyn Commands>) -> Self {
        Self { commands, confirms: Confirms::default() }
    }

    /// Whether this process can send commands now.
    pub(crate) fn ability(&self) -> Ability {
        if self.commands.is_ready() && !self.confirms.fail() { Ability::Able } else { Ability::Unable }
    }

    /// Records the results of one window of commands: the number of confirmed commands, and of
    /// failed commands that a retry may confirm.
    pub(crate) fn note(&self, confirmed: usize, failed: usize) {
        self.confirms.note(confirmed, failed);
    }
}

/// The results of recent commands.
#[derive(Debug, Default)]
struct Confirms(Mutex<Option<Failures>>);

/// Failures since the last confirm.
#[derive(Debug, Clone, Copy)]
struct Failures {
    first: Instant,
    last: Instant,
}

impl Confirms {
    fn note(&self, confirmed: usize, failed: usize) {
        let mut failures = self.0.lock();
        if confirmed > 0 {
            *failures = None;
        } else if failed > 0 {
            let now = Instant::now();
            let first = match *failures {
                Some(known) if now.duration_since(known.last) < FORGIVEN => known.first,
                _ => now,
            };
            *failures = Some(Failures { first, last: now });
        }
    }

    fn fail(&self) -> bool {
        let Some(Failures { first, last }) = *self.0.lock() else {
            return false;
        };
        last.duration_since(first) >= FAILING_FOR && last.elapsed() < FORGIVEN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failing(first: u64, last: u64) -> Confirms {
        let ago = |seconds| Instant::now().checked_sub(Duration::from_secs(seconds)).unwrap();
        Confirms(Mutex::new(Some(Failures { first: ago(first), last: ago(last) })))
    }

    #[test]
    fn failures_count_after_a_while_and_until_a_confirm() {
        let confirms = Confirms::default();
        confirms.note(0, 5);
        assert!(!confirms.fail(), "one moment proves too little");

        let confirms = failing(11, 5);
        confirms.note(0, 1);
        assert!(confirms.fail());
        confirms.note(1, 1);
        assert!(!confirms.fail());
    }

    #[test]
    fn failures_are_forgiven_after_a_minute() {
        assert!(failing(200, 59).fail());
        let confirms = failing(200, 61);
        assert!(!confirms.fail());
        confirms.note(0, 1);
        assert!(!confirms.fail(), "it begins from the start");
    }
}
