//! Serves one stream of this process: as a standby until the process owns the stream, then as the
//! owner for a term, then as a standby again.

use std::{sync::Arc, time::Duration};

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::{
    classify,
    error::RescuerError,
    halt::{self, with_grace},
    leadership::{lease::Held, lease::Lease, standby::Standby, term::Term},
    observe::{event::RescueEvent, reporter::Reporter},
    owner::{Owner, SERVING},
    process::Process,
    stream::position::Positions,
    watch_plan::Plan,
};

/// The pause before this process takes a stream again after a term that ended with an error.
const AFTER_ERROR: Duration = Duration::from_mins(1);

/// One stream, whether or not this process owns it.
pub(crate) struct Stream {
    process: Process,
    plan: Plan,
    report: Arc<Reporter>,
    positions: Positions,
    lease: Lease,
    /// The maximum number of documents that the stream's sweep remembers.
    remembers: usize,
    others: OtherStreams,
    stop: CancellationToken,
}

/// Whether this process has other streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OtherStreams {
    None,
    Some,
}

impl Stream {
    /// Makes one stream of this process, which has `of` streams in total.
    pub(crate) fn new(
        process: Process,
        plan: Plan,
        report: Arc<Reporter>,
        of: usize,
        stop: CancellationToken,
    ) -> Self {
        let Process { name, settings, mongo, .. } = &process;
        let lease = Lease::new(mongo, &settings.state_database, &plan.name, name, settings.ownership_lease);
        let positions = Positions::new(mongo, &plan, name);
        let remembers = settings.queued_capacity / of;
        let others = if of == 1 { OtherStreams::None } else { OtherStreams::Some };
        Self { process, plan, report, positions, lease, remembers, others, stop }
    }

    /// Serves the stream until a stop.
    pub(crate) async fn serve(self) -> Result<(), RescuerError> {
        let Process { broker, settings, .. } = &self.process;
        // The start time that an operator set. It replaces the saved position in the first term
        // only.
        let mut start_at = settings.start_at;
        loop {
            let last = settings.last_write();
            let standby = Standby::new(&self.lease, broker, &self.report, &self.stop, last);
            let Ok(held) = standby.wait().await else {
                return Ok(());
            };

            let term = self.begin(held);
            let (lease, positions) = (self.lease.clone(), self.positions.clone());
            let start_at = start_at.take();
            let owner = Owner::new(&self.process, term.clone(), lease, positions, self.remembers, start_at);
            let ended = owner.work().await;
            self.give_back(&term).await;

            match ended {
                Ok(()) => {}
                Err(error) if self.others == OtherStreams::None || error.is_defect() => return Err(error),
                // The other streams of this process continue.
                Err(error) => {
                    self.report.trouble(SERVING, &error.with_source());
                    // The result is not needed: if a stop ended the sleep, the standby notices the
                    // stop by itself.
                    let _ = halt::sleep(&self.stop, AFTER_ERROR).await;
                }
            }
        }
    }

    /// Begins a term.
    fn begin(&self, held: Held) -> Arc<Term> {
        let (stream, epoch) = (self.plan.name.clone(), held.epoch);
        tracing::info!(stream, epoch, owner = %self.process.name, "this process is now the owner of the stream");
        self.report.owned(&self.process.name, epoch, held.until());
        self.report.emit(RescueEvent::Owned { stream, epoch });

        Arc::new(Term {
            plan: self.plan.clone(),
            held,
            report: self.report.clone(),
            stop: self.stop.child_token(),
            settings: self.process.settings.clone(),
            mongo: self.process.mongo.clone(),
        })
    }

    /// Releases the lease, so that another rescuer can continue at once. If the release fails,
    /// another rescuer continues when the lease expires.
    async fn give_back(&self, term: &Term) {
        let release = timeout(self.lease.lasts(), self.lease.release(term.held.epoch));
        let last = self.process.settings.last_write();
        if let Ok(Ok(Err(error))) = with_grace(&self.stop, last, release).await {
            let error = classify::text(&error);
            tracing::debug!(error, "the lease could not be released; it will expire");
        }
    }
}
