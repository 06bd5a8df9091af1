//! Decides when a failed delivery is retried, and when its message is dead.

use std::time::Duration;

/// How failed deliveries are retried.
///
/// A failed delivery is first retried quickly a few times, for failures that last only milliseconds. If the quick
/// retries fail too, one *attempt* is counted, and the entry waits for an exponential backoff with full jitter. After
/// `max_attempts` the entry is dead: it stays in the document, is shown to operators, and is not retried automatically.
/// If the broker is unavailable, no attempt is counted.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct RetryPolicy {
    /// Number of attempts after which an entry is dead. Default 10.
    pub max_attempts: u32,
    /// Upper bound of the first backoff. The bound doubles with every attempt. Default 1 s.
    pub backoff_min: Duration,
    /// Upper bound of every backoff. Default 5 min.
    pub backoff_max: Duration,
    /// Number of quick retries before an attempt is counted. Default 2.
    pub quick_tries: usize,
    /// The wait before the first quick retry. The wait doubles each time. Default 20 ms.
    pub quick_wait: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            max_attempts: 10,
            backoff_min: Duration::from_secs(1),
            backoff_max: Duration::from_mins(5),
            quick_tries: 2,
            quick_wait: Duration::from_millis(20),
        }
    }
}

impl RetryPolicy {
    /// Changes some of the fields: `RetryPolicy::default().with(|retry| retry.max_attempts = 3)`.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    /// The longest possible wait after this many failed attempts.
    pub fn backoff_ceiling(&self, attempts: u32) -> Duration {
        let doublings = attempts.saturating_sub(1).min(31);
        self.backoff_min.saturating_mul(1u32 << doublings).min(self.backoff_max)
    }

    /// Draws a random wait between zero and the ceiling (full jitter), but at least a tenth of the ceiling, so that
    /// failures never loop without a delay.
    pub fn backoff(&self, attempts: u32) -> Duration {
        self.backoff_ceiling(attempts).mul_f64(0.1 + 0.9 * fastrand::f64())
    }

    /// The longest time that can pass until an entry is dead if every delivery fails, not counting the time that the
    /// deliveries themselves take.
    pub fn longest_schedule(&self) -> Duration {
        (1..self.max_attempts).map(|attempts| self.backoff_ceiling(attempts)).sum()
    }

    pub(crate) fn quick(&self) -> backon::ExponentialBuilder {
        backon::ExponentialBuilder::default()
            .with_min_delay(self.quick_wait)
            .with_factor(2.0)
            .with_jitter()
            .with_max_times(self.quick_tries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_backoff_doubles_between_its_two_bounds() {
        let policy = RetryPolicy::default();
        let ceilings: Vec<_> = [1, 2, 3, 9, 10, 1000].map(|n| policy.backoff_ceiling(n).as_secs()).into();
        assert_eq!(ceilings, [1, 2, 4, 256, 300, 300]);
        for attempts in 1..50 {
            let ceiling = policy.backoff_ceiling(attempts);
            let drawn = policy.backoff(attempts);
            assert!(drawn <= ceiling && drawn >= ceiling / 10, "{drawn:?} of {ceiling:?}");
        }
    }
}
