//! What the stream and the sweep of one rescuer share.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use document_outbox::{clock::ServerClock, event::Events};
use mongodb::{
    Client, Collection, Namespace,
    bson::{DateTime, RawDocumentBuf},
    error::Error,
    options::{CollectionOptions, ReadPreference, SelectionCriteria},
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::{
    Commands, RescueEvent, RescuerError, Settings,
    commands::Pauses,
    fault::{self, Fault},
    position::Positions,
    queued::Queued,
};

pub(crate) struct Context {
    pub(crate) client: Client,
    pub(crate) settings: Settings,
    pub(crate) commands: Arc<dyn Commands>,
    pub(crate) events: Events<RescueEvent>,
    pub(crate) clock: ServerClock,
    pub(crate) positions: Positions,
    pub(crate) full_sweep: FullSweep,
    pub(crate) queued: Mutex<Queued>,
    pub(crate) stop: CancellationToken,
}

impl Context {
    pub(crate) fn queued(&self) -> MutexGuard<'_, Queued> {
        self.queued.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A collection to look documents up in: on the primary, which has everything that a change stream has shown.
    pub(crate) fn collection(&self, namespace: &Namespace) -> Collection<RawDocumentBuf> {
        let primary = CollectionOptions::builder()
            .selection_criteria(SelectionCriteria::ReadPreference(ReadPreference::Primary))
            .build();
        self.client.database(&namespace.db).collection_with_options(&namespace.coll, primary)
    }

    /// Server time; `None` when told to stop before it could be asked.
    pub(crate) async fn now(&self) -> Result<Option<DateTime>, RescuerError> {
        self.insist("ask MongoDB for its time", || self.clock.now()).await
    }

    /// Does it until it succeeds, with pauses; `None` when told to stop before.
    ///
    /// # Errors
    /// What trying again doesn't help against.
    pub(crate) async fn insist<T, F>(
        &self,
        doing: &'static str,
        mut attempt: impl FnMut() -> F,
    ) -> Result<Option<T>, RescuerError>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let mut pauses = Pauses::new();
        while !self.stop.is_cancelled() {
            match attempt().await {
                Ok(done) => return Ok(Some(done)),
                Err(source) => match fault::of(&source) {
                    Fault::Fatal(advice) => {
                        return Err(RescuerError::Refused { doing, advice, source });
                    }
                    Fault::Passing | Fault::Lost => {
                        tracing::warn!(error = fault::text(&source), "could not {doing}; trying again");
                        pauses.pause(&self.stop).await;
                    }
                },
            }
        }
        Ok(None)
    }
}

/// The wish for a sweep that also finds what has no date.
#[derive(Debug, Default)]
pub(crate) struct FullSweep {
    wanted: AtomicBool,
    wake: Notify,
}

impl FullSweep {
    /// Wants one now.
    pub(crate) fn request(&self) {
        self.postpone();
        self.wake.notify_one();
    }

    /// Wants one in the next round.
    pub(crate) fn postpone(&self) {
        self.wanted.store(true, Ordering::Release);
    }

    /// Whether one is wanted; from then on it no longer is.
    pub(crate) fn take(&self) -> bool {
        self.wanted.swap(false, Ordering::AcqRel)
    }

    /// Waits for a request.
    pub(crate) async fn requested(&self) {
        self.wake.notified().await;
    }
}
