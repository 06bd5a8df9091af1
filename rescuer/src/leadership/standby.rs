//! Standing by: who waits for whom, and who takes a lease.
//!
//! | the lease | this rescuer | does |
//! |---|---|---|
//! | another's, and lasts | can send commands | waits, and says in the lease that it stands by |
//! | another's, and lasts | can't | waits |
//! | another's, dated ahead, but not renewed for as long as it lasts | | as if it were over |
//! | over, given back, or its own of before | can send commands | takes it |
//! | the same | can't, and one that can stands by | leaves it to that one |
//! | the same | can't, and nobody is known who can | takes it: much of an owner's work needs no broker |
//!
//! So a rescuer without a broker takes a stream from nobody who has one, and where the broker is away for all of them, one owns the
//! stream, keeps its position within the oplog, counts, and is ready to send.

use std::time::{Duration, Instant};

use mongodb::{bson::DateTime, error::Error};

use crate::{
    RescueEvent, classify,
    leadership::lease::{Able, Held, Seen},
    leadership::term::{Stream, with_grace},
    send::commands::Pauses,
};

const TAKING: &str = "take the stream's lease";
/// How often those who stand by look while a lease lasts.
const LOOKS: u32 = 15;
const SHORTEST_LOOK: Duration = Duration::from_millis(50);
const LONGEST_LOOK: Duration = Duration::from_secs(1);

/// Often, so that a lease that is given back is noticed at once.
pub(crate) fn pause_between_looks(lasts: Duration) -> Duration {
    (lasts / LOOKS).clamp(SHORTEST_LOOK, LONGEST_LOOK)
}

/// What was seen of a lease so far, by the clock of this process alone.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    lease: Unchanged,
    able: Unchanged,
}

/// A date, and when it was first seen.
#[derive(Debug, Default)]
struct Unchanged(Option<(DateTime, Instant)>);

/// What to do about a lease.
#[derive(Debug, PartialEq)]
pub(crate) enum Next {
    /// Take it; one that still has the date `stale` is over.
    Take { stale: Option<DateTime> },
    /// Another has it, or is to have it.
    Wait { owner: String, left: Duration },
}

impl Unchanged {
    /// For how long it has been the same.
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
    /// Decides; `me` has leases that last `lasts`.
    fn next(&mut self, seen: Option<&Seen>, me: &str, lasts: Duration, is_able: bool, now: Instant) -> Next {
        let Some(seen) = seen else {
            return Next::Take { stale: None };
        };
        let unchanged = self.lease.since(seen.until, now);
        let able = self.able_other(seen, me, lasts, now);
        let mut stale = None;
        if seen.owner != me && !seen.left.is_zero() {
            // All rescuers of a name have the same settings, so one that says nothing has a lease like this one's.
            let left = seen.lasts.unwrap_or(lasts).saturating_sub(unchanged);
            if !left.is_zero() {
                return Next::Wait { owner: seen.owner.clone(), left: left.min(seen.left) };
            }
            stale = seen.until;
        }

        match able {
            Some(able) if !is_able => Next::Wait { owner: able.owner.clone(), left: Duration::ZERO },
            _ => Next::Take { stale },
        }
    }

    /// Another that stands by and can send commands. One that has stopped renewing that says nothing any more.
    pub(crate) fn able_other<'a>(
        &mut self,
        seen: &'a Seen,
        me: &str,
        lasts: Duration,
        now: Instant,
    ) -> Option<&'a Able> {
        let unchanged = self.able.since(seen.able.as_ref().map(|able| able.until), now);
        let other = seen.able.as_ref().filter(|able| able.owner != me)?;
        (!other.left.is_zero() && unchanged < lasts).then_some(other)
    }
}

/// What one look came to.
enum Look {
    Taken(Held),
    Wait { owner: String, epoch: i64, left: Duration },
    Stopped,
}

impl Stream {
    /// Waits until the lease can be taken, and takes it; `None` when stopped before.
    pub(crate) async fn stand_by(&self) -> Option<Held> {
        let (mut pauses, mut watch) = (Pauses::new(), Watch::default());
        let mut known = None;
        let mut announced = None;
        while !self.stop.is_cancelled() {
            let is_able = self.shared.is_able();
            self.report.able(is_able);
            let (owner, epoch, left) = match self.look_or_take(&mut watch, is_able).await {
                Ok(Look::Taken(held)) => {
                    self.report.healed(TAKING);
                    return Some(held);
                }
                Ok(Look::Wait { owner, epoch, left }) => (owner, epoch, left),
                Ok(Look::Stopped) => break,
                Err(error) => {
                    self.report.trouble(TAKING, &classify::explain(&error, classify::of(&error)));
                    pauses.pause(&self.stop).await;
                    continue;
                }
            };

            pauses = Pauses::new();
            self.report.healed(TAKING);
            self.report.standing_by(Some((&owner, epoch, Instant::now() + left)));
            let seen = Some((owner.clone(), epoch));
            if known != seen {
                known = seen;
                let stream = self.plan.name.clone();
                tracing::info!(stream, owner, epoch, "standing by");
                self.report.emit(RescueEvent::StandingBy { stream, owner });
            }
            self.announce(is_able, &mut announced).await;

            let mut pause = pause_between_looks(self.lease.lasts());
            if !left.is_zero() {
                pause = pause.min(left);
            }
            self.stop.run_until_cancelled(tokio::time::sleep(pause)).await;
        }

        if announced.is_some() {
            let last = self.shared.settings.last_write();
            let _ = with_grace(&self.stop, last, self.lease.withdraw()).await;
        }
        None
    }

    async fn look_or_take(&self, watch: &mut Watch, is_able: bool) -> Result<Look, Error> {
        loop {
            let Some(seen) = self.stop.run_until_cancelled(self.lease.look()).await else {
                return Ok(Look::Stopped);
            };
            let (seen, lasts) = (seen?, self.lease.lasts());
            let stale = match watch.next(seen.as_ref(), &self.shared.owner, lasts, is_able, Instant::now()) {
                Next::Take { stale } => stale,
                Next::Wait { owner, left } => {
                    let epoch = seen.map_or(0, |seen| seen.epoch);
                    return Ok(Look::Wait { owner, epoch, left });
                }
            };

            // Above the position's too, whatever became of the lease, or the position could not be written.
            let Some(floor) = self.stop.run_until_cancelled(self.positions.epoch()).await else {
                return Ok(Look::Stopped);
            };
            if let Some(stale) = stale {
                let stream = &self.plan.name;
                tracing::info!(stream, until = %stale, "the lease is dated ahead and isn't renewed; it is over");
            }
            let (floor, last) = (floor?, self.shared.settings.last_write());
            let Some(taken) = with_grace(&self.stop, last, self.lease.take(floor, stale)).await else {
                // It may be taken all the same.
                let _ = with_grace(&self.stop, last, self.lease.release_any()).await;
                return Ok(Look::Stopped);
            };
            if let Some(held) = taken? {
                return Ok(Look::Taken(held));
            }
        }
    }

    /// Says that this one is able, again and again, or takes it back once it no longer is.
    async fn announce(&self, is_able: bool, announced: &mut Option<Instant>) {
        let due = announced.is_none_or(|last| last.elapsed() >= self.lease.lasts() / 3);
        let written = if is_able && due {
            *announced = Some(Instant::now());
            self.stop.run_until_cancelled(self.lease.announce()).await
        } else if !is_able && announced.take().is_some() {
            self.stop.run_until_cancelled(self.lease.withdraw()).await
        } else {
            return;
        };
        if let Some(Err(error)) = written {
            tracing::debug!(
                error = classify::text(&error),
                "the lease does not say whether this one is able"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(15);
    const HALF_AN_HOUR: Duration = Duration::from_secs(1800);

    fn seen(left: Duration) -> Seen {
        let until = (!left.is_zero()).then_some(DateTime::from_millis(7));
        Seen { owner: "other/1".into(), epoch: 3, until, left, lasts: None, able: None }
    }

    fn with_able(seen: Seen, owner: &str) -> Seen {
        let able = Able { owner: owner.into(), until: DateTime::from_millis(9), left: LEASE };
        Seen { able: Some(able), ..seen }
    }

    fn next(watch: &mut Watch, seen: &Seen, is_able: bool, after: Duration) -> Next {
        watch.next(Some(seen), "me/1", LEASE, is_able, Instant::now() + after)
    }

    fn is_taken(next: &Next) -> bool {
        matches!(next, Next::Take { .. })
    }

    #[test]
    fn a_lease_that_lasts_is_waited_for() {
        let mut watch = Watch::default();
        let left = Duration::from_secs(4);
        let waits = Next::Wait { owner: "other/1".into(), left };
        assert_eq!(next(&mut watch, &seen(left), true, Duration::ZERO), waits);
        assert!(is_taken(&next(&mut watch, &seen(Duration::ZERO), true, Duration::ZERO)));
        let mine = Seen { owner: "me/1".into(), ..seen(left) };
        assert!(is_taken(&next(&mut watch, &mine, true, Duration::ZERO)));
    }

    #[test]
    fn a_lease_dated_far_ahead_is_over_unless_it_is_renewed() {
        let mut watch = Watch::default();
        let dead = seen(HALF_AN_HOUR);
        assert!(!is_taken(&next(&mut watch, &dead, true, Duration::ZERO)));
        assert!(!is_taken(&next(&mut watch, &dead, true, LEASE - Duration::from_secs(1))));
        let renewed = Seen { until: Some(DateTime::from_millis(8)), ..seen(HALF_AN_HOUR) };
        assert!(!is_taken(&next(&mut watch, &renewed, true, LEASE)), "its owner lives");
        let stale = renewed.until;
        assert_eq!(
            next(&mut watch, &renewed, true, LEASE * 2 + Duration::from_secs(1)),
            Next::Take { stale }
        );
    }

    #[test]
    fn a_longer_lease_of_another_is_respected() {
        let mut watch = Watch::default();
        let long = Seen { lasts: Some(LEASE * 4), ..seen(LEASE * 4) };
        assert!(!is_taken(&next(&mut watch, &long, true, Duration::ZERO)));
        assert!(!is_taken(&next(&mut watch, &long, true, LEASE * 3)));
        assert!(is_taken(&next(&mut watch, &long, true, LEASE * 5)));
    }

    #[test]
    fn who_cannot_send_leaves_a_lease_to_one_who_can() {
        let mut watch = Watch::default();
        let over = seen(Duration::ZERO);
        assert!(is_taken(&next(&mut watch, &over, false, Duration::ZERO)), "nobody is known who can");
        let other = with_able(over.clone(), "other/2");
        assert!(!is_taken(&next(&mut watch, &other, false, Duration::ZERO)));
        assert!(is_taken(&next(&mut watch, &other, true, Duration::ZERO)));
        // It died, or its date is of a clock that was set back.
        assert!(is_taken(&next(&mut watch, &other, false, LEASE + Duration::from_secs(1))));

        let own = with_able(over, "me/1");
        assert!(is_taken(&next(&mut Watch::default(), &own, false, Duration::ZERO)), "its own of before");
    }
}
