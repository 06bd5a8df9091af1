//! One term of an owner: from taking a stream's lease until it is lost, given up or released.
//!
//! A term is the state that stream and sweep share: the plan, the lease, the reports, the stop, the settings
//! and the connection. All work of a term ends with it, by [`Halt`].

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
    /// Whether no new work may begin, because of a stop or because the lease is over. Checked before anything
    /// is queued or saved, because a process that was paused continues before any of its timers has run.
    pub(crate) fn is_over(&self) -> bool {
        if !self.stop.is_cancelled() && !self.held.lasts() {
            self.step_back("its lease ended before it could be renewed, or this process was paused");
        }
        self.stop.is_cancelled()
    }

    /// Halts if the term is over.
    pub(crate) fn check(&self) -> Run<()> {
        if self.is_over() { Err(Halt) } else { Ok(()) }
    }

    /// Stops both halves of this stream, so that another rescuer continues, or this one later.
    pub(crate) fn step_back(&self, reason: &str) {
        if self.stop.is_cancelled() {
            return;
        }
        let (stream, epoch) = (self.plan.name.clone(), self.held.epoch);
        tracing::warn!(stream, epoch, reason, "no longer the owner of the stream; standing by");
        self.stop.cancel();
        self.report.emit(RescueEvent::SteppedBack { stream, epoch, reason: reason.into() });
    }

    /// Does the work, unless a stop comes first.
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

    /// Repeats it until it succeeds, with pauses. While it fails, it is reported as a problem of this stream:
    /// `doing` completes the sentence "could not …".
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

    /// Reports that something fails and will be retried, with advice if waiting doesn't help.
    pub(crate) fn trouble(&self, doing: &str, error: &Error) {
        self.report.trouble(doing, &classify::explain(error, classify::of(error)));
    }
}
