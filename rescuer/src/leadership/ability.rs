//! Whether commands get through, judged by the connection and by the results of the last commands.
//!
//! A living connection is not enough: a broker can refuse every command, because a privilege is missing, a
//! queue isn't bound or is full. A rescuer to which that happens for a while counts as one that cannot send
//! commands. A standby sends none, so it can't find out when that has passed: after a minute it counts as
//! able again, and takes over when the owner is not able.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use crate::commands::{Ability, Commands};

/// After this long without a confirmed command, failures count.
const FAILING_FOR: Duration = Duration::from_secs(10);
/// After this long without a failure, they no longer do.
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

    /// A window was answered: how many commands were confirmed, and how many may be confirmed by a retry.
    pub(crate) fn note(&self, confirmed: usize, failed: usize) {
        self.confirms.note(confirmed, failed);
    }
}

/// The results of recent commands.
#[derive(Debug, Default)]
struct Confirms(Mutex<Option<Failures>>);

/// Failures without a confirm between them.
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
