//! Whether commands get through, by what became of the last ones.
//!
//! A living connection is not enough: a broker can refuse every command, for a privilege that is missing, a queue that isn't
//! bound or one that is full. A rescuer to which that happens for a while counts as one that cannot send commands. One that stands
//! by sends none, so it can't find out when that has passed: after a minute it counts as able again, and is tried when the
//! owner isn't.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// After this long without a confirmed command, failures count.
const FAILING_FOR: Duration = Duration::from_secs(10);
/// After this long without a failure, they no longer do.
const FORGIVEN: Duration = Duration::from_secs(60);

/// What became of the commands that were sent lately.
#[derive(Debug, Default)]
pub(crate) struct Sending(Mutex<Option<Failures>>);

#[derive(Debug, Clone, Copy)]
struct Failures {
    first: Instant,
    last: Instant,
}

impl Sending {
    /// A window is through, with so many commands confirmed and so many that may be when tried again.
    pub(crate) fn note(&self, confirmed: usize, failed: usize) {
        let mut failures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if confirmed > 0 {
            *failures = None;
        } else if failed > 0 {
            let now = Instant::now();
            let known = failures.filter(|failures| now.duration_since(failures.last) < FORGIVEN);
            let first = known.map_or(now, |failures| failures.first);
            *failures = Some(Failures { first, last: now });
        }
    }

    pub(crate) fn fails(&self) -> bool {
        let failures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        failures.is_some_and(|Failures { first, last }| {
            last.duration_since(first) >= FAILING_FOR && last.elapsed() < FORGIVEN
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failing(first: u64, last: u64) -> Sending {
        let ago = |seconds| Instant::now().checked_sub(Duration::from_secs(seconds)).unwrap();
        Sending(Mutex::new(Some(Failures { first: ago(first), last: ago(last) })))
    }

    #[test]
    fn failures_count_after_a_while_and_until_a_confirm() {
        let sending = Sending::default();
        sending.note(0, 5);
        assert!(!sending.fails(), "a moment is no evidence");

        let sending = failing(11, 5);
        sending.note(0, 1);
        assert!(sending.fails());
        sending.note(1, 1);
        assert!(!sending.fails());
    }

    #[test]
    fn failures_are_forgiven_after_a_minute() {
        assert!(failing(200, 59).fails());
        let sending = failing(200, 61);
        assert!(!sending.fails());
        sending.note(0, 1);
        assert!(!sending.fails(), "it begins from the start");
    }
}
