//! When a change is old enough: by its date, and by how long this process has had it in hand.
//!
//! A change is dated by the server that made it, and its age is judged by the server's present time. Where that clock was set
//! back, or another member with an earlier one became primary, the dates of the changes before lie ahead. Whatever they say, a
//! change that this process has had in hand for `delay` is that old. And the first such change shows how far ahead that clock
//! was, at least: those behind it with dates that are still to come needn't each wait for as long.

use std::time::{Duration, Instant};

use document_outbox::internal::{later, until};
use mongodb::bson::DateTime;

use super::change::Filled;

/// How old changes have to be, and what is known of the clock that dated them.
#[derive(Debug)]
pub(crate) struct Age {
    delay: Duration,
    /// How far ahead of the present clock the one was that dated the latest changes, at least.
    ahead: Duration,
}

impl Age {
    pub(crate) fn new(delay: Duration) -> Self {
        Self { delay, ahead: Duration::ZERO }
    }

    /// From when on a change is old enough by its date.
    pub(crate) fn due(&self, change: &Filled) -> DateTime {
        later(change.at, self.delay)
    }

    /// How long until a change is old enough; zero once it is.
    pub(crate) fn wait(&self, change: &Filled, now: DateTime) -> Duration {
        let mut by_date = until(now, self.due(change));
        // Only of a date that is still to come is it known that its clock was ahead.
        if change.at > now {
            by_date = by_date.saturating_sub(self.ahead);
        }
        let in_hand = Instant::now().saturating_duration_since(change.read);
        by_date.min(self.delay.saturating_sub(in_hand))
    }

    /// Learns from a change that is old enough.
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
    fn a_change_waits_for_date_or_time_in_hand() {
        let (age, now) = (Age::new(DELAY), DateTime::from_millis(HOUR));
        assert_eq!(age.wait(&change(HOUR - 10_000, 0), now), Duration::ZERO, "dated long ago");
        assert_eq!(age.wait(&change(HOUR - 4_000, 1), now), Duration::from_secs(6));
        assert_eq!(age.wait(&change(2 * HOUR, 10), now), Duration::ZERO, "long in hand");
        let wait = age.wait(&change(2 * HOUR, 3), now);
        assert!(wait <= Duration::from_secs(7) && wait > Duration::from_secs(6), "{wait:?}");
    }

    #[test]
    fn changes_behind_one_of_a_fast_clock_follow_it() {
        let (mut age, now) = (Age::new(DELAY), DateTime::from_millis(HOUR));
        age.learn(&change(2 * HOUR, 10), now);
        assert_eq!(age.wait(&change(2 * HOUR, 0), now), Duration::ZERO, "of the same moment");
        assert_eq!(age.wait(&change(2 * HOUR + 4_000, 0), now), Duration::from_secs(4));
        // The clock is right again: such a date says nothing about the earlier clock.
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
