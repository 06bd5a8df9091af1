//! Decides which rescuer may take a lease and which one gives it up, based only on observations of the lease.

use std::time::{Duration, Instant};

use mongodb::bson::DateTime;

use super::lease::{AbleStandby, Seen};
use crate::commands::Ability;

/// The observations of a lease, measured by the clock of this process alone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Watch {
    lease: Unchanged,
    able: Unchanged,
}

/// A lease's date, and when this process first saw that date.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct Unchanged(Option<(DateTime, Instant)>);

/// What to do about a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Take the lease.
    Take {
        /// If set, a lease with this date counts as expired, although it still lasts by the server's clock.
        stale: Option<DateTime>,
    },
    /// Another rescuer has the lease, or should take it.
    Wait {
        /// The other rescuer.
        owner: String,
        /// The maximum time that the other rescuer's lease still lasts.
        left: Duration,
    },
}

impl Unchanged {
    /// How long the date has been unchanged.
    fn since(&mut self, date: Option<DateTime>, now: Instant) -> Duration {
        let Some(date) = date else {
            self.0 = None;
            return Duration::ZERO;
        };
        match self.0 {
            Some((known, first)) if known == date => now.saturating_duration_since(first),
            _ => {
                self.0 = Some((date, now));
                Duration::ZERO
            }
        }
    }
}

impl Watch {
    /// Decides whether to take a lease. This rescuer has the name `me`, and its leases last `lasts`.
    pub fn next(
        &mut self,
        seen: Option<&Seen>,
        me: &str,
        lasts: Duration,
        ability: Ability,
        now: Instant,
    ) -> Next {
        let Some(seen) = seen else {
            return Next::Take { stale: None };
        };
        let unchanged = self.lease.since(seen.until, now);
        let able = self.able_other(seen, me, lasts, now);

        let mut stale = None;
        if seen.owner != me && !seen.left.is_zero() {
            // All rescuers with the same name have the same settings, so a lease that records no duration is
            // assumed to last as long as the leases of this rescuer.
            let left = seen.lasts.unwrap_or(lasts).saturating_sub(unchanged);
            if !left.is_zero() {
                return Next::Wait { owner: seen.owner.clone(), left: left.min(seen.left) };
            }
            stale = seen.until;
        }

        match able {
            Some(able) if ability == Ability::Unable => {
                Next::Wait { owner: able.owner.clone(), left: Duration::ZERO }
            }
            _ => Next::Take { stale },
        }
    }

    /// The standby to which an owner gives up its stream; `None` if the owner keeps the stream. An owner that
    /// can't send commands gives up the stream to a standby that can, but only after it has owned the stream
    /// for a whole lease duration: otherwise an unstable broker would make the stream change hands too often.
    /// `held` is the time for which the owner has owned the stream.
    pub fn yields_to<'a>(
        &mut self,
        seen: &'a Seen,
        me: &str,
        lasts: Duration,
        held: Duration,
        ability: Ability,
        now: Instant,
    ) -> Option<&'a AbleStandby> {
        if !may_yield(ability, held, lasts) {
            return None;
        }
        self.able_other(seen, me, lasts, now)
    }

    /// Another standby that can send commands. Announcements that are no longer renewed are ignored.
    fn able_other<'a>(
        &mut self,
        seen: &'a Seen,
        me: &str,
        lasts: Duration,
        now: Instant,
    ) -> Option<&'a AbleStandby> {
        let unchanged = self.able.since(seen.able.as_ref().map(|able| able.until), now);
        let other = seen.able.as_ref().filter(|able| able.owner != me)?;

        let is_there = !other.left.is_zero() && unchanged < lasts;
        is_there.then_some(other)
    }
}

/// Whether an owner that has owned its stream for `held` should check for a standby that can send commands.
pub fn may_yield(ability: Ability, held: Duration, lasts: Duration) -> bool {
    ability == Ability::Unable && held >= lasts
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(15);
    const HALF_AN_HOUR: Duration = Duration::from_mins(30);

    fn seen(left: Duration) -> Seen {
        let until = (!left.is_zero()).then_some(DateTime::from_millis(7));
        Seen { owner: "other/1".into(), epoch: 3, until, left, lasts: None, able: None }
    }

    fn with_able(seen: Seen, owner: &str) -> Seen {
        let able = AbleStandby { owner: owner.into(), until: DateTime::from_millis(9), left: LEASE };
        Seen { able: Some(able), ..seen }
    }

    fn next(watch: &mut Watch, seen: &Seen, ability: Ability, after: Duration) -> Next {
        watch.next(Some(seen), "me/1", LEASE, ability, Instant::now() + after)
    }

    fn is_taken(next: &Next) -> bool {
        matches!(next, Next::Take { .. })
    }

    #[test]
    fn a_lease_that_lasts_is_waited_for() {
        let mut watch = Watch::default();
        let left = Duration::from_secs(4);
        let waits = Next::Wait { owner: "other/1".into(), left };
        assert_eq!(next(&mut watch, &seen(left), Ability::Able, Duration::ZERO), waits);
        assert!(is_taken(&next(&mut watch, &seen(Duration::ZERO), Ability::Able, Duration::ZERO)));
        let mine = Seen { owner: "me/1".into(), ..seen(left) };
        assert!(is_taken(&next(&mut watch, &mine, Ability::Able, Duration::ZERO)));
    }

    #[test]
    fn a_lease_dated_far_ahead_ends_unless_renewed() {
        let mut watch = Watch::default();
        let dead = seen(HALF_AN_HOUR);
        assert!(!is_taken(&next(&mut watch, &dead, Ability::Able, Duration::ZERO)));
        assert!(!is_taken(&next(
            &mut watch,
            &dead,
            Ability::Able,
            LEASE.checked_sub(Duration::from_secs(1)).unwrap()
        )));
        let renewed = Seen { until: Some(DateTime::from_millis(8)), ..seen(HALF_AN_HOUR) };
        assert!(!is_taken(&next(&mut watch, &renewed, Ability::Able, LEASE)), "its owner lives");
        let stale = renewed.until;
        assert_eq!(
            next(&mut watch, &renewed, Ability::Able, LEASE * 2 + Duration::from_secs(1)),
            Next::Take { stale }
        );
    }

    #[test]
    fn a_longer_lease_of_another_is_respected() {
        let mut watch = Watch::default();
        let long = Seen { lasts: Some(LEASE * 4), ..seen(LEASE * 4) };
        assert!(!is_taken(&next(&mut watch, &long, Ability::Able, Duration::ZERO)));
        assert!(!is_taken(&next(&mut watch, &long, Ability::Able, LEASE * 3)));
        assert!(is_taken(&next(&mut watch, &long, Ability::Able, LEASE * 5)));
    }

    #[test]
    fn a_lease_is_left_to_one_that_can_send() {
        let mut watch = Watch::default();
        let over = seen(Duration::ZERO);
        assert!(
            is_taken(&next(&mut watch, &over, Ability::Unable, Duration::ZERO)),
            "no other rescuer is known to be able"
        );
        let other = with_able(over.clone(), "other/2");
        assert!(!is_taken(&next(&mut watch, &other, Ability::Unable, Duration::ZERO)));
        assert!(is_taken(&next(&mut watch, &other, Ability::Able, Duration::ZERO)));
        // The owner died, or a clock was set back after the owner wrote this date.
        assert!(is_taken(&next(&mut watch, &other, Ability::Unable, LEASE + Duration::from_secs(1))));

        let own = with_able(over, "me/1");
        assert!(
            is_taken(&next(&mut Watch::default(), &own, Ability::Unable, Duration::ZERO)),
            "its earlier one"
        );
    }
}
