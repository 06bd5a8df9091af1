//! A rescuer. It stands by until it takes the stream's lease, and then owns the stream for a term.
//!
//! The rescuer imitates `rescuer/src/leadership/`. The real rescuer's [`Watch`] decides which rescuer takes a lease and which
//! gives it up.

use outbox_rescuer::internal::{Ability, AbleStandby, Next, Seen, Watch};

use super::rescuer_term::{Term, TermStep};
use crate::{
    actor::{Actor, Blow, Name},
    broken::Broken,
    faults::crash::CRASH,
    world::{Lease, OWNERSHIP_LEASE, Tick, World, at, instant, ticks},
};

/// A rescuer.
#[derive(Debug, Clone, Default, Hash)]
pub struct Rescuer {
    watch: Watch,
    /// When the rescuer last read the lease while standing by.
    read_at: Option<Tick>,
    term: Option<Term>,
    /// The tick at which the rescuer is started.
    from: Tick,
}

/// The steps of a rescuer.
#[derive(Debug)]
pub enum RescuerStep {
    /// Reads the lease, and then either takes it or waits.
    StandBy,
    Own(TermStep),
    /// Gives up the stream, because the lease has expired by the rescuer's own clock.
    StepBack,
    Renew,
    /// Gives up the stream in favour of a rescuer that can send commands.
    Yield,
}

impl Rescuer {
    /// Creates a rescuer that is started at this tick.
    pub fn from(tick: Tick) -> Self {
        Self { from: tick, ..Self::default() }
    }

    fn stand_by(&mut self, me: Name, world: &mut World) {
        self.read_at = Some(world.now);
        let ability = ability(me, world);
        let seen = seen(&world.state_database.lease, world.now);
        let next =
            self.watch.next(seen.as_ref(), &owner(me), ticks(OWNERSHIP_LEASE), ability, instant(world.now));

        let state = &mut world.state_database;
        match next {
            Next::Take { .. } => {
                let floor = state.position.map_or(0, |position| position.epoch);
                state.lease.epoch = state.lease.epoch.max(floor) + 1;
                state.lease.owner = Some(me);
                state.lease.until = Some(world.now + OWNERSHIP_LEASE);
                state.lease.able = state.lease.able.filter(|(able, _)| *able != me);
                self.watch = Watch::default();
                self.term = Some(Term::new(state.lease.epoch, world.now));
            }
            Next::Wait { .. } if ability == Ability::Able => {
                state.lease.able = Some((me, world.now + OWNERSHIP_LEASE));
            }
            Next::Wait { .. } => {}
        }
    }

    fn step_back(&mut self) {
        self.term = None;
        self.watch = Watch::default();
    }

    fn renew(&mut self, me: Name, world: &mut World) {
        let Some(term) = &mut self.term else { return };
        let lease = &mut world.state_database.lease;
        if lease.owner != Some(me) || lease.epoch != term.epoch {
            self.step_back();
            return;
        }

        lease.until = Some(world.now + OWNERSHIP_LEASE);
        term.renewed = world.now;
        term.until = world.now + OWNERSHIP_LEASE;
    }

    /// Whether the owner should give up the stream in favour of another rescuer.
    fn yields(&self, term: &Term, me: Name, world: &World) -> bool {
        let Some(seen) = seen(&world.state_database.lease, world.now) else { return false };
        let held = ticks(world.now - term.taken);
        let (lasts, now) = (ticks(OWNERSHIP_LEASE), instant(world.now));
        let mut watch = self.watch.clone();
        watch.yields_to(&seen, &owner(me), lasts, held, ability(me, world), now).is_some()
    }
}

impl Actor for Rescuer {
    type Step = RescuerStep;

    fn steps(&self, me: Name, world: &World) -> Vec<RescuerStep> {
        let Some(term) = &self.term else {
            return if self.read_at == Some(world.now) || world.now < self.from {
                Vec::new()
            } else {
                vec![RescuerStep::StandBy]
            };
        };
        if term.until <= world.now {
            return vec![RescuerStep::StepBack];
        }
        if self.yields(term, me, world) {
            return vec![RescuerStep::Yield];
        }

        let mut steps: Vec<RescuerStep> = term.steps(me, world).into_iter().map(RescuerStep::Own).collect();
        if term.renewed < world.now {
            steps.push(RescuerStep::Renew);
        }
        steps
    }

    fn take(&mut self, step: RescuerStep, me: Name, world: &mut World) {
        match step {
            RescuerStep::StandBy => self.stand_by(me, world),
            RescuerStep::StepBack => self.step_back(),
            RescuerStep::Renew => self.renew(me, world),
            RescuerStep::Yield => {
                world.state_database.lease.until = None;
                // The rescuer stands by again, as if it had just read the lease.
                self.read_at = Some(world.now);
                self.step_back();
            }
            RescuerStep::Own(step) => {
                if let Some(term) = &mut self.term
                    && !term.take(step, world)
                {
                    self.step_back();
                }
            }
        }
    }

    fn uses_broker(&self) -> bool {
        true
    }

    fn strike(&mut self, blow: Blow, _: Name, _: &mut World) -> bool {
        if blow != CRASH || self.term.is_none() {
            return false;
        }
        *self = Self::default();
        true
    }
}

fn owner(name: Name) -> String {
    format!("rescuer/{name}")
}

fn ability(me: Name, world: &World) -> Ability {
    let is_able = world.broker.reaches(me) || world.is_broken(Broken::OwnerWithoutBroker);
    if is_able { Ability::Able } else { Ability::Unable }
}

/// Converts a lease to the type that the real rescuer reads.
fn seen(lease: &Lease, now: Tick) -> Option<Seen> {
    let left = |until: Tick| ticks(until.saturating_sub(now));
    Some(Seen {
        owner: owner(lease.owner?),
        epoch: lease.epoch.into(),
        until: lease.until.map(at),
        left: lease.until.map_or(ticks(0), left),
        lasts: Some(ticks(OWNERSHIP_LEASE)),
        able: lease.able.map(|(name, until)| AbleStandby {
            owner: owner(name),
            until: at(until),
            left: left(until),
        }),
    })
}
