//! Renews a lease three times during its duration, until the owner's last work has finished.
//!
//! # When commands can't be sent
//! An owner that can't send commands still reads the stream, counts the backlog and renews the lease, so it
//! continues to report everything for which it needs no broker. But such an owner gives up the stream at once
//! to a standby that can send commands, provided that the owner has had the stream for at least one lease
//! duration. So with an unstable broker the stream changes hands at most once per lease duration.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{
    ability::Broker,
    lease::{Lease, Renewed},
    standby::pause_between_reads,
    term::Term,
    watch::{Watch, may_yield},
};

/// Reports of a failure use this text as the end of the sentence "could not …".
const RENEWING: &str = "renew the lease";

/// Renews the lease of one term.
pub(crate) struct Renewal {
    lease: Lease,
    term: Arc<Term>,
    broker: Arc<Broker>,
    watch: Watch,
}

impl Renewal {
    pub(crate) fn new(lease: Lease, term: Arc<Term>, broker: Arc<Broker>) -> Self {
        Self { lease, term, broker, watch: Watch::default() }
    }

    /// Renews the lease until `done` is cancelled. Makes the owner step back if the lease can't be
    /// renewed, or if a standby can send commands and the owner can't send any.
    pub(crate) async fn keep(mut self, done: CancellationToken) {
        let pause = self.lease.lasts() / 3;
        let mut renew_at = Instant::now() + pause;
        loop {
            let next = renew_at.min(self.term.held.until());
            let step = next.saturating_duration_since(Instant::now());
            let step = step.min(pause_between_reads(self.lease.lasts()));
            if done.run_until_cancelled(tokio::time::sleep(step)).await.is_none() {
                return;
            }
            if !self.term.held.lasts() {
                // Because the lease is over, this call ends the term, unless the term has already
                // ended.
                self.term.is_over();
                return;
            }

            if let Some(able) = self.better_placed().await {
                let reason = format!("this rescuer can't send commands, and the standby {able} can");
                return self.term.step_back(&reason);
            }

            if Instant::now() >= renew_at {
                renew_at = Instant::now() + pause;
                if self.renew().await == Renewed::Lost {
                    let reason = "another rescuer has taken the lease, or the lease was deleted";
                    return self.term.step_back(reason);
                }
            }
        }
    }

    /// A standby that can send commands, if this owner can't send any and has had the stream for
    /// long enough.
    async fn better_placed(&mut self) -> Option<String> {
        let ability = self.broker.ability();
        self.term.report.ability(ability);
        let (me, lasts) = (self.lease.owner(), self.lease.lasts());
        if !may_yield(ability, self.term.held.age(), lasts) {
            return None;
        }

        let seen = timeout(self.left(), self.lease.read()).await.ok()?.ok()??;
        let held = self.term.held.age();
        let able = self.watch.yields_to(&seen, me, lasts, held, ability, Instant::now())?;
        Some(able.owner.clone())
    }

    async fn renew(&self) -> Renewed {
        let asked = Instant::now();

        match timeout(self.left(), self.lease.renew(self.term.held.epoch)).await {
            Ok(Ok(Renewed::Done)) => {
                let until = asked + self.lease.lasts();
                self.term.held.extend(until);
                self.term.report.renewed(until);
                self.term.report.healed(RENEWING);
            }
            Ok(Ok(Renewed::Lost)) => return Renewed::Lost,
            Ok(Err(error)) => self.term.trouble(RENEWING, &error),
            // There is no time left: the next iteration finds that the lease is over.
            Err(_) => {}
        }
        Renewed::Done
    }

    /// The remaining time of the lease.
    fn left(&self) -> Duration {
        self.term.held.until().saturating_duration_since(Instant::now())
    }
}
