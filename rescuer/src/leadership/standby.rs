//! Standbys: which rescuer waits for which, and which one takes a lease.
//!
//! | the lease | this rescuer | does |
//! |---|---|---|
//! | another's, and lasts | can send commands | waits, and announces itself in the lease |
//! | another's, and lasts | can't | waits |
//! | another's, dated ahead, but not renewed for as long as it lasts | | as if it were over |
//! | over, released, or its own earlier one | can send commands | takes it |
//! | the same | can't, and a standby can | leaves it to that standby |
//! | the same | can't, and no standby is known that can | takes it: much of an owner's work needs no broker |
//!
//! So a rescuer without a broker never takes a stream from one that has a broker. If the broker is
//! unavailable for all of them, one owns the stream, keeps its position within the oplog, counts, and is
//! ready to send.

use std::time::{Duration, Instant};

use mongodb::bson::DateTime;
use tokio_util::sync::CancellationToken;

use super::{
    ability::Broker,
    lease::{AbleStandby, Held, Lease, Seen},
};
use crate::{
    classify,
    commands::Ability,
    halt::{self, Halt, Interrupted, Run, with_grace},
    observe::{event::RescueEvent, reporter::Reporter},
    pauses::Pauses,
};

/// As it is reported when it fails: "could not …".
const TAKING: &str = "take the stream's lease";
/// How often standbys read a lease while it lasts.
const READS: u32 = 15;
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Often, so that a released lease is noticed at once.
pub(crate) fn pause_between_reads(lasts: Duration) -> Duration {
    (lasts / READS).clamp(SHORTEST_PAUSE, LONGEST_PAUSE)
}

/// The observations of a lease, by the clock of this process alone.
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
    /// Another rescuer has it, or should take it.
    Wait { owner: String, left: Duration },
}

impl Unchanged {
    /// How long it has been unchanged.
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
    fn next(
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
            // All rescuers of a name have the same settings, so a lease without a duration is assumed to last
            // as long as this one's.
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

    /// Another standby that can send commands. An announcement that is no longer renewed doesn't count.
    pub(crate) fn able_other<'a>(
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

/// A rescuer that waits until it can take a stream's lease.
pub(crate) struct Standby<'a> {
    lease: &'a Lease,
    broker: &'a Broker,
    report: &'a Reporter,
    stop: &'a CancellationToken,
    /// How long an unfinished write may take after a stop.
    last_write: Duration,
    watch: Watch,
    /// The current owner, and its term.
    known: Option<(String, i64)>,
    /// When it last announced that it can send commands.
    announced: Option<Instant>,
}

/// The result of one reading of the lease.
enum Attempt {
    Taken(Held),
    Wait { owner: String, epoch: i64, left: Duration },
}

impl<'a> Standby<'a> {
    pub(crate) fn new(
        lease: &'a Lease,
        broker: &'a Broker,
        report: &'a Reporter,
        stop: &'a CancellationToken,
        last_write: Duration,
    ) -> Self {
        let watch = Watch::default();
        Self { lease, broker, report, stop, last_write, watch, known: None, announced: None }
    }

    /// Waits until the lease can be taken, and takes it.
    pub(crate) async fn wait(mut self) -> Run<Held> {
        let held = self.wait_or_halt().await;
        if held.is_err() && self.announced.is_some() {
            // An announcement that remains expires by itself.
            let _ = with_grace(self.stop, self.last_write, self.lease.withdraw()).await;
        }
        held
    }

    async fn wait_or_halt(&mut self) -> Run<Held> {
        let mut pauses = Pauses::new();
        loop {
            if self.stop.is_cancelled() {
                return Err(Halt);
            }
            let ability = self.broker.ability();
            self.report.ability(ability);

            match self.attempt(ability).await {
                Ok(Attempt::Taken(held)) => {
                    self.report.healed(TAKING);
                    return Ok(held);
                }
                Ok(Attempt::Wait { owner, epoch, left }) => {
                    pauses = Pauses::new();
                    self.stand_by(owner, epoch, left);
                    self.announce(ability).await?;
                    halt::sleep(self.stop, self.pause(left)).await?;
                }
                Err(Interrupted::Halted) => return Err(Halt),
                Err(Interrupted::Failed(error)) => {
                    self.report.trouble(TAKING, &classify::explain(&error, classify::of(&error)));
                    pauses.pause(self.stop).await;
                }
            }
        }
    }

    /// Reads the lease, and takes it if it should.
    async fn attempt(&mut self, ability: Ability) -> Result<Attempt, Interrupted> {
        loop {
            let seen = halt::unless_stopped(self.stop, self.lease.read()).await??;
            let (me, lasts) = (self.lease.owner(), self.lease.lasts());
            let stale = match self.watch.next(seen.as_ref(), me, lasts, ability, Instant::now()) {
                Next::Take { stale } => stale,
                Next::Wait { owner, left } => {
                    let epoch = seen.map_or(0, |seen| seen.epoch);
                    return Ok(Attempt::Wait { owner, epoch, left });
                }
            };

            let floor = halt::unless_stopped(self.stop, self.lease.position_epoch()).await??;
            if let Some(stale) = stale {
                let stream = self.lease.stream();
                tracing::info!(stream, until = %stale, "the lease has a date in the future but isn't \
                    renewed; it counts as expired");
            }
            // If another was faster, its lease is read.
            if let Some(held) = self.take(floor, stale).await? {
                return Ok(Attempt::Taken(held));
            }
        }
    }

    async fn take(&self, floor: i64, stale: Option<DateTime>) -> Result<Option<Held>, Interrupted> {
        let taking = self.lease.take(floor, stale);
        let Ok(taken) = with_grace(self.stop, self.last_write, taking).await else {
            // It may have been taken.
            let _ = with_grace(self.stop, self.last_write, self.lease.release_any()).await;
            return Err(Interrupted::Halted);
        };
        Ok(taken?)
    }

    /// Reports who owns the stream.
    fn stand_by(&mut self, owner: String, epoch: i64, left: Duration) {
        self.report.healed(TAKING);
        self.report.standing_by(Some((&owner, epoch, Instant::now() + left)));

        let seen = Some((owner.clone(), epoch));
        if self.known != seen {
            self.known = seen;
            let stream = self.lease.stream().to_owned();
            tracing::info!(stream, owner, epoch, "standing by");
            self.report.emit(RescueEvent::StandingBy { stream, owner });
        }
    }

    /// The time until the lease is read again: no later than its possible end.
    fn pause(&self, left: Duration) -> Duration {
        let pause = pause_between_reads(self.lease.lasts());
        if left.is_zero() { pause } else { pause.min(left) }
    }

    /// Announces repeatedly that this one can send commands, or withdraws that once it no longer can.
    async fn announce(&mut self, ability: Ability) -> Run<()> {
        let written = if ability == Ability::Able && self.announcement_is_due() {
            self.announced = Some(Instant::now());
            halt::unless_stopped(self.stop, self.lease.announce()).await?
        } else if ability == Ability::Unable && self.announced.is_some() {
            self.announced = None;
            halt::unless_stopped(self.stop, self.lease.withdraw()).await?
        } else {
            return Ok(());
        };

        if let Err(error) = written {
            tracing::debug!(
                error = classify::text(&error),
                "the lease does not record whether this standby can send commands"
            );
        }
        Ok(())
    }

    fn announcement_is_due(&self) -> bool {
        match self.announced {
            Some(last) => last.elapsed() >= self.lease.lasts() / 3,
            None => true,
        }
    }
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
            "no standby is known that can"
        );
        let other = with_able(over.clone(), "other/2");
        assert!(!is_taken(&next(&mut watch, &other, Ability::Unable, Duration::ZERO)));
        assert!(is_taken(&next(&mut watch, &other, Ability::Able, Duration::ZERO)));
        // It died, or its date comes from a clock that was set back.
        assert!(is_taken(&next(&mut watch, &other, Ability::Unable, LEASE + Duration::from_secs(1))));

        let own = with_able(over, "me/1");
        assert!(
            is_taken(&next(&mut Watch::default(), &own, Ability::Unable, Duration::ZERO)),
            "its own earlier lease"
        );
    }
}
