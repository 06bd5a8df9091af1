//! Decides which standby takes a lease and which ones keep waiting.
//!
//! | the lease | this rescuer | what this rescuer does |
//! |---|---|---|
//! | belongs to another rescuer, and lasts | can send commands | waits, and announces itself in the lease |
//! | belongs to another rescuer, and lasts | can't send commands | waits |
//! | belongs to another rescuer, and lasts by its date, but was not renewed for its whole duration | with or without a broker | treats the lease as over |
//! | is over, released, or an earlier lease of this rescuer | can send commands | takes the lease |
//! | is over, released, or an earlier lease of this rescuer | can't send commands, but another standby can | leaves the lease to that standby |
//! | is over, released, or an earlier lease of this rescuer | can't send commands, and knows of no standby that can | takes the lease: much of an owner's work needs no broker |
//!
//! So a rescuer without a broker never takes a stream from one that has a broker. If the broker is
//! unavailable to all rescuers, one of them owns the stream, keeps its position within the oplog,
//! counts the backlog, and is ready to send.

use std::time::{Duration, Instant};

use mongodb::bson::DateTime;
use tokio_util::sync::CancellationToken;

use super::{
    ability::Broker,
    lease::{Held, Lease},
    watch::{Next, Watch},
};
use crate::{
    classify,
    commands::Ability,
    halt::{self, Halt, Interrupted, Run, with_grace},
    observe::{event::RescueEvent, reporter::Reporter},
    pauses::Pauses,
};

/// Reports of a failure use this text as the end of the sentence "could not …".
const TAKING: &str = "take the stream's lease";
/// The number of times that a standby reads the lease during its duration.
const READS: u32 = 15;
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The pause between two reads, short enough that a standby soon notices a released lease.
pub(crate) fn pause_between_reads(lasts: Duration) -> Duration {
    (lasts / READS).clamp(SHORTEST_PAUSE, LONGEST_PAUSE)
}

/// A rescuer that waits until it can take a stream's lease.
pub(crate) struct Standby<'a> {
    lease: &'a Lease,
    broker: &'a Broker,
    report: &'a Reporter,
    stop: &'a CancellationToken,
    /// How long an unfinished write may take after a stop is requested.
    last_write: Duration,
    watch: Watch,
    /// The current owner and its epoch.
    known: Option<(String, i64)>,
    /// When this standby last announced that it can send commands.
    announced: Option<Instant>,
}

/// The result of reading the lease once.
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

    /// Waits until the lease can be taken, and then takes it.
    pub(crate) async fn wait(mut self) -> Run<Held> {
        let held = self.wait_or_halt().await;
        if held.is_err() && self.announced.is_some() {
            // If the announcement isn't withdrawn, it expires by itself.
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

    /// Reads the lease, and takes it if this rescuer should.
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
            // If another rescuer was faster, its lease is read.
            if let Some(held) = self.take(floor, stale).await? {
                return Ok(Attempt::Taken(held));
            }
        }
    }

    async fn take(&self, floor: i64, stale: Option<DateTime>) -> Result<Option<Held>, Interrupted> {
        let taking = self.lease.take(floor, stale);
        let Ok(taken) = with_grace(self.stop, self.last_write, taking).await else {
            // The failed request may nevertheless have taken the lease.
            let _ = with_grace(self.stop, self.last_write, self.lease.release_any()).await;
            return Err(Interrupted::Halted);
        };
        Ok(taken?)
    }

    /// Reports which rescuer owns the stream.
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

    /// The time until the next read of the lease. This read takes place no later than the time at
    /// which the lease may end.
    fn pause(&self, left: Duration) -> Duration {
        let pause = pause_between_reads(self.lease.lasts());
        if left.is_zero() { pause } else { pause.min(left) }
    }

    /// Announces repeatedly that this standby can send commands, or withdraws the announcement once
    /// it no longer can.
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
                "could not record in the lease whether this standby can send commands"
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
