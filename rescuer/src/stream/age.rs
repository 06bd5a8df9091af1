//! Decides when a change is old enough, by its date and by how long this process has held it.
//!
//! A change is dated by the server that made it, and its age is judged by the server's current
//! time. If that server's clock was set back, or a member with a slower clock became primary, the
//! dates of earlier changes lie in the future. So a change that this process has held for `delay`
//! counts as old enough, regardless of its date. The first such change also shows by how much, at
//! least, the earlier clock was ahead, so later changes with dates in the future needn't wait as
//! long.

use std::time::{Duration, Instant};

use document_outbox::internal::{later, until};
use mongodb::bson::DateTime;

use super::change::Filled;

/// The required age of changes, and the known offset of the clock that dated them.
#[derive(Debug)]
pub(crate) struct Age {
    delay: Duration,
    /// The clock that dated the latest changes was ahead of the server's present clock by at least
    /// this much.
    ahead: Duration,
}

impl Age {
    pub(crate) fn new(delay: Duration) -> Self {
        Self { delay, ahead: Duration::ZERO }
    }

    /// The time at which a change is old enough according to its date.
    pub(crate) fn due(&self, change: &Filled) -> DateTime {
        later(change.at, self.delay)
    }

    /// The time until a change is old enough; zero once it is.
    pub(crate) fn wait(&self, change: &Filled, now: DateTime) -> Duration {
        let mut by_date = until(now, self.due(change));
        // Only a date in the future proves that the clock was ahead.
        if change.at > now {
            by_date = by_date.saturating_sub(self.ahead);
        }
        let in_hand = Instant::now().saturating_duration_since(change.read);
        by_date.min(self.delay.saturating_sub(in_hand))
    }

    /// Learns the clock's offset from a change that is old enough.
    pub(crate) fn learn(&mut self, change: &Filled, now: DateTime) {
        self.ahead = until(now, self.due(change));
    }
}

#[cfg(test)]
mod tests {
    use document_outbox::DocumentRef;
    use mongodb::Namespace;

    use super::*;
    use crate::stream::position::Mark;

    const DELAY: Duration = Duration::from_secs(10);
    const HOUR: i64 = 3_600_000;

    fn change(at: i64, in_hand: u64) -> Filled {
        let read = Instant::now().checked_sub(Duration::from_secs(in_hand)).unwrap();
        let document = DocumentRef::by_id(Namespace::new("shop", "orders"), 1);
        let mark = Mark { token: None, cluster_time: None };
        Filled { document, at: DateTime::from_millis(at), read, mark }
    }

    #[test]
    fn a_change_waits_for_its_date_or_holding_time() {
        let (age, now) = (Age::new(DELAY), DateTime::from_millis(HOUR));
        assert_eq!(age.wait(&change(HOUR - 10_000, 0), now), Duration::ZERO, "dated long ago");
        assert_eq!(age.wait(&change(HOUR - 4_000, 1), now), Duration::from_secs(6));
        assert_eq!(age.wait(&change(2 * HOUR, 10), now), Duration::ZERO, "held for long");
        let wait = age.wait(&change(2 * HOUR, 3), now);
        assert!(wait <= Duration::from_secs(7) && wait > Duration::from_secs(6), "{wait:?}");
    }

    #[test]
    fn changes_behind_one_of_a_fast_clock_follow_it() {
        let (mut age, now) = (Age::new(DELAY), DateTime::from_millis(HOUR));
        age.learn(&change(2 * HOUR, 10), now);
        assert_eq!(age.wait(&change(2 * HOUR, 0), now), Duration::ZERO, "of the same moment");
        assert_eq!(age.wait(&change(2 * HOUR + 4_000, 0), now), Duration::from_secs(4));
        // The clock is correct again: a present date proves nothing about the earlier clock.
        assert_eq!(age.wait(&change(HOUR - 4_000, 0), now), Duration::from_secs(6));
    }

    #[test]
    fn a_change_due_by_date_shows_no_fast_clock() {
        let (mut age, now) = (Age::new(DELAY), DateTime::from_millis(HOUR));
        age.learn(&change(2 * HOUR, 10), now);
        age.learn(&change(HOUR - 20_000, 0), now);
        assert_eq!(age.wait(&change(HOUR + 1, 0), now).as_secs(), 9);
    }
}
