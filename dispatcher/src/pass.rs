//! Runs a pass over a document, in which the processor reads, claims, delivers and settles. The number of
//! concurrent passes is bounded.

use std::{panic::AssertUnwindSafe, pin::pin, time::Duration};

use document_outbox::{
    DeliveryOrder, DocumentRef,
    dispatch::{Processed, Processor},
};
use futures::FutureExt;
use mongodb::error::Error;
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep_until},
};

use crate::stops::Stops;

/// How a pass ended.
#[derive(Debug)]
pub enum PassOutcome {
    /// The pass ran to its end, or was interrupted by a stop or by its time limit.
    Ended(Processed),
    /// A request to MongoDB failed.
    Failed(Error),
    /// A handler or the library panicked.
    Panicked,
}

/// Runs the passes of a worker.
pub(crate) struct Passes {
    processor: Processor,
    concurrency: usize,
    slots: Semaphore,
    stops: Stops,
}

impl Passes {
    /// Allows at most `concurrency` passes at a time.
    pub(crate) fn new(processor: Processor, concurrency: usize, stops: Stops) -> Self {
        Self { processor, concurrency, slots: Semaphore::new(concurrency), stops }
    }

    pub(crate) fn concurrency(&self) -> usize {
        self.concurrency
    }

    /// The number of running passes.
    pub(crate) fn in_flight(&self) -> usize {
        self.concurrency.saturating_sub(self.slots.available_permits())
    }

    /// Runs one pass, which starts no further message after `longest`. Returns `None` if the worker stops
    /// before the pass begins.
    pub(crate) async fn run(
        &self,
        document: &DocumentRef,
        order: DeliveryOrder,
        longest: Duration,
    ) -> Option<PassOutcome> {
        let deadline = Instant::now() + longest;
        let _slot = tokio::select! {
            slot = self.slots.acquire() => slot.ok()?,
            () = self.stops.intake.cancelled() => return None,
            () = sleep_until(deadline) => return Some(PassOutcome::Ended(Processed::Interrupted)),
        };

        // A panic in a handler or in this library must only affect one command, not the worker.
        let stop = self.stops.release.child_token();
        let process = AssertUnwindSafe(self.processor.process(document, order, &stop)).catch_unwind();
        let mut process = pin!(process);
        let ended = tokio::select! {
            ended = &mut process => ended,
            () = sleep_until(deadline) => {
                stop.cancel();
                process.await
            }
        };

        Some(match ended {
            Ok(Ok(processed)) => PassOutcome::Ended(processed),
            Ok(Err(error)) => PassOutcome::Failed(error),
            Err(_panic) => {
                tracing::error!(%document, "processing the document panicked; this is a defect");
                PassOutcome::Panicked
            }
        })
    }
}
