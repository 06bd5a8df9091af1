//! A worker of a dispatcher. The worker takes a command, works on the document, and acknowledges the command.

use std::time::Duration;

use outbox_dispatcher::{
    DispatcherSettings,
    internal::{CommandState, Decision, PassOutcome, Policy},
};

use super::courier::{Courier, End};
use crate::{
    actor::{Actor, Blow, Name},
    faults::{answer_lost::ANSWER_LOST, crash::CRASH},
    world::{CLAIM_LEASE, Command, World, at},
};

/// A worker.
#[derive(Debug, Clone, Default, Hash)]
pub struct Worker {
    /// The number of the last claim.
    number: u8,
    work: Option<Work>,
}

#[derive(Debug, Clone, Hash)]
struct Work {
    command: Command,
    courier: Courier,
}

/// The steps of a worker.
#[derive(Debug)]
pub enum WorkerStep {
    Take,
    Work,
    /// Decides from the result of the pass what happens to the command.
    Decide,
}

impl Worker {
    fn decide(&mut self, command: Command, end: End, world: &mut World) {
        let outcome = match end {
            End::Failed => PassOutcome::Failed(std::io::Error::other("no answer").into()),
            end => PassOutcome::Ended(end.processed()),
        };
        let (kept, unavailable) = (Duration::ZERO, Duration::ZERO);
        let state = CommandState { now: at(world.now), kept, unavailable, stopping: false };
        let decision = Policy::new(&DispatcherSettings::new([])).decide(outcome, state);

        match decision {
            Decision::Finish(_) | Decision::Leave(_) => {}
            Decision::Hold(..) | Decision::Await(_) | Decision::Retry(..) => {
                let courier = Courier::new(command.document, CLAIM_LEASE, true);
                self.work = Some(Work { command, courier });
            }
            Decision::PutBack(_) | Decision::GiveBack => world.broker.requeue(command),
        }
    }
}

impl Actor for Worker {
    type Step = WorkerStep;

    fn steps(&self, me: Name, world: &World) -> Vec<WorkerStep> {
        let can_reach = world.broker.reaches(me);
        match &self.work {
            None if can_reach && !world.broker.commands.is_empty() => vec![WorkerStep::Take],
            // The pass had no connection to the broker, so the worker waits until there is one.
            Some(Work { courier, .. }) if courier.end() == Some(End::Unavailable) && !can_reach => Vec::new(),
            Some(Work { courier, .. }) if courier.end().is_some() => vec![WorkerStep::Decide],
            Some(Work { courier, .. }) if courier.can_go(me, world) => vec![WorkerStep::Work],
            None | Some(_) => Vec::new(),
        }
    }

    fn take(&mut self, step: WorkerStep, me: Name, world: &mut World) {
        match (step, self.work.take()) {
            (WorkerStep::Take, None) => {
                let command = world.broker.commands.remove(0);
                let courier = Courier::new(command.document, CLAIM_LEASE, true);
                self.work = Some(Work { command, courier });
            }
            (WorkerStep::Work, Some(mut work)) => {
                self.number += u8::from(work.courier.claims());
                work.courier.go(me, self.number, world);
                self.work = Some(work);
            }
            (WorkerStep::Decide, Some(work)) => match work.courier.end() {
                Some(end) => self.decide(work.command, end, world),
                None => self.work = Some(work),
            },
            (_, work) => self.work = work,
        }
    }

    fn uses_broker(&self) -> bool {
        true
    }

    fn strike(&mut self, blow: Blow, me: Name, world: &mut World) -> bool {
        match (blow, &mut self.work) {
            (CRASH, Some(work)) => {
                world.broker.requeue(work.command);
                world.mongo.forget(me);
                world.doubt_all();
                self.work = None;
                true
            }
            (ANSWER_LOST, Some(work)) => work.courier.loses_answer(me, world),
            _ => false,
        }
    }
}
