//! Limits warnings that can occur thousands of times a second: the first warning is logged at once. Later warnings are
//! logged at intervals, each with the number of warnings since the last log line.

use std::{collections::HashMap, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

/// The minimum time between two log lines of the same kind.
const PAUSE: Duration = Duration::from_secs(10);

/// Counts warnings that are not logged. There are only a few fixed kinds.
#[derive(Debug, Default)]
pub struct Repeats(Mutex<HashMap<&'static str, Repeated>>);

#[derive(Debug)]
struct Repeated {
    logged: Instant,
    since: u64,
}

impl Repeats {
    /// Counts a warning. If the warning must be logged, returns the number of warnings of its kind since the last log
    /// line, including this warning.
    pub fn count(&self, kind: &'static str) -> Option<u64> {
        let now = Instant::now();
        let mut kinds = self.0.lock();
        let Some(repeated) = kinds.get_mut(kind) else {
            kinds.insert(kind, Repeated { logged: now, since: 0 });
            return Some(1);
        };

        repeated.since += 1;
        if now - repeated.logged < PAUSE {
            return None;
        }
        repeated.logged = now;
        Some(std::mem::take(&mut repeated.since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn repeats_are_counted_and_logged_once_in_ten_seconds() {
        let repeats = Repeats::default();
        assert_eq!(repeats.count("a"), Some(1));
        for _ in 0..1_000 {
            assert_eq!(repeats.count("a"), None);
        }
        assert_eq!(repeats.count("b"), Some(1), "another kind");
        tokio::time::advance(PAUSE).await;
        assert_eq!(repeats.count("a"), Some(1_001));
        assert_eq!(repeats.count("a"), None);
    }
}
