//! The leadership term of one owner: from taking a stream's lease until the lease is lost, given up
//! or released.
//!
//! A term holds the state that the stream and the sweep share: the plan, the lease, the reports,
//! the stop, the settings and the connection. When the term ends, all of its work ends with
//! [`Halt`].

use std::{sync::Arc, time::Duration};

use mongodb::{bson::DateTime, error::Error};
use tokio_util::sync::CancellationToken;

use super::lease::Held;
use crate::{
    classify,
    halt::{self, Halt, Run},
    mongo::Mongo,
    observe::{event::RescueEvent, reporter::Reporter},
    pauses::Pauses,
    settings::Settings,
    watch_plan::Plan,
};

pub(crate) struct Term {
    pub(crate) plan: Plan,
    pub(crate) held: Held,
    pub(crate) report: Arc<Reporter>,
    pub(crate) stop: CancellationToken,
    pub(crate) settings: Arc<Settings>,
    pub(crate) mongo: Mongo,
}

impl Term {
    /// Whether no new work may begin, because a stop was requested or the lease is over. This is
    /// checked before anything is queued or saved, because a process that was paused resumes its
    /// code before any of its timers has fired.
    pub(crate) fn is_over(&self) -> bool {
        if !self.stop.is_cancelled() && !self.held.lasts() {
            self.step_back("the lease ended before it could be renewed, or this process was paused");
        }
        self.stop.is_cancelled()
    }

    /// Halts if the term is over.
    pub(crate) fn check(&self) -> Run<()> {
        if self.is_over() { Err(Halt) } else { Ok(()) }
    }

    /// Ends the term. Another rescuer can then continue the stream at once, and this rescuer can do so later.
    pub(crate) fn step_back(&self, reason: &str) {
        if self.stop.is_cancelled() {
            return;
        }
        let (stream, epoch) = (self.plan.name.clone(), self.held.epoch);
        tracing::warn!(stream, epoch, reason, "no longer the owner of the stream; standing by");
        self.stop.cancel();
        self.report.emit(RescueEvent::SteppedBack { stream, epoch, reason: reason.into() });
    }

    /// Runs the work until it ends or the term is stopped.
    pub(crate) async fn unless_stopped<T>(&self, work: impl Future<Output = T>) -> Run<T> {
        halt::unless_stopped(&self.stop, work).await
    }

    pub(crate) async fn sleep(&self, time: Duration) -> Run<()> {
        halt::sleep(&self.stop, time).await
    }

    /// Server time.
    pub(crate) async fn now(&self) -> Run<DateTime> {
        self.insist("ask MongoDB for its time", || self.mongo.now()).await
    }

    /// Repeats `attempt` until it succeeds, with pauses. Failures are reported as a problem of this
    /// stream: `doing` completes the sentence "could not …".
    pub(crate) async fn insist<T, F>(&self, doing: &str, mut attempt: impl FnMut() -> F) -> Run<T>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let mut pauses = Pauses::new();
        let mut failed = false;

        loop {
            self.check()?;
            match self.unless_stopped(attempt()).await? {
                Ok(done) => {
                    if failed {
                        self.report.healed(doing);
                    }
                    return Ok(done);
                }
                Err(error) => {
                    failed = true;
                    self.trouble(doing, &error);
                    pauses.pause(&self.stop).await;
                }
            }
        }
    }

    /// Reports a failure that will be retried, with advice in case waiting doesn't help.
    pub(crate) fn trouble(&self, doing: &str, error: &Error) {
        self.report.trouble(doing, &classify::explain(error, classify::of(error)));
    }
}
