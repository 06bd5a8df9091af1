//! Decides where a stream begins, and how it continues when its position is lost.
//!
//! ```text
//!  saved position   is            start reading         full sweep
//!  ──────────────   ───────────   ───────────────────   ──────────
//!  none             first start   now, saved first      yes, twice
//!  of this filter   resumed       behind it             yes, twice
//!  of another       changed       at its time           yes, twice
//!  any, `start_at`  asked         at that time          yes, twice
//!  unusable, lost   lost          sweep: now            yes, twice, after the new position is saved
//!                                 latest: now           no
//!                                 fail: not at all      no
//! ```
//! The new position is always saved before the sweep begins: the stream shows messages that are saved after
//! that, and the sweep finds messages that were saved earlier. Messages that were saved shortly before the
//! first sweep are too young for it, and if they have no date, no regular sweep would find them soon. So
//! there is a second full sweep, one delay later.

use std::sync::Arc;

use mongodb::bson::Timestamp;
use tokio::sync::mpsc;

use super::{
    follow::Follower,
    page::PageChecker,
    position::{Mark, Positions, Saved, Start},
    reader::{Loss, Reader},
};
use crate::{
    error::RescuerError,
    halt::{Halt, Interrupted, Run},
    judge::inspect::Inspector,
    leadership::term::Term,
    observe::event::{RescueEvent, StartedFrom},
    pauses::Pauses,
    send::sender::Sender,
    settings::OnHistoryLost,
    sweep::{catalogue::Catalogue, full_sweep::FullSweep},
};

/// The change stream of one leadership term.
pub(crate) struct ChangeStream {
    pub(crate) term: Arc<Term>,
    pub(crate) positions: Positions,
    pub(crate) sender: Arc<Sender>,
    pub(crate) inspector: Arc<Inspector>,
    pub(crate) catalogue: Arc<Catalogue>,
    pub(crate) full_sweep: Arc<FullSweep>,
    /// The start time that an operator set; if there is one, the saved position is not used.
    pub(crate) start_at: Option<Timestamp>,
}

/// A place to read from, which has been saved as the position.
#[derive(Debug)]
pub(crate) struct StartPoint {
    pub(crate) mark: Mark,
    pub(crate) from: StartedFrom,
}

type MayFail<T> = Result<T, Interrupted<RescuerError>>;

impl ChangeStream {
    /// Decides where to begin reading in this term.
    pub(crate) async fn begin(&self) -> MayFail<StartPoint> {
        let start = match self.start_at {
            Some(time) => Start::Asked(time),
            None => self.term.insist("read the position", || self.positions.load()).await?,
        };
        self.take_up(start).await
    }

    /// Derives the start from the position that was found, and saves the start if it is new.
    async fn take_up(&self, start: Start) -> MayFail<StartPoint> {
        let (mark, from) = match start {
            Start::Resume(mark) => (mark, StartedFrom::Position),
            Start::PipelineChanged(time) => {
                tracing::info!(
                    "the watched collections have changed, so the rescuer reads again from the time of the saved \
                     position, and sweeps everything"
                );
                (Mark::at(time), StartedFrom::ChangedPatterns)
            }
            Start::Asked(time) => {
                let seconds = time.time;
                tracing::warn!(
                    seconds,
                    "the rescuer reads from the time in start_at and ignores the saved position; remove start_at \
                     afterwards"
                );
                (Mark::at(time), StartedFrom::Asked)
            }
            Start::Fresh => (self.now().await?, StartedFrom::Now),
            Start::Lost(reason) => return self.begin_without(reason, None).await,
        };

        self.save(&mark).await?;
        Ok(StartPoint { mark, from })
    }

    /// Follows the stream. If the position is lost, starts over as the settings require. Ends with a stop
    /// or a failure.
    pub(crate) async fn keep_following(&self, mut begun: StartPoint) -> MayFail<()> {
        let mut pauses = Pauses::new();
        loop {
            let Loss { reason, code, worked } = self.follow(begun).await?;

            // Counts losses without progress between them, because the pause grows with the number
            // of such losses.
            if worked {
                pauses = Pauses::new();
            }
            pauses.pause(&self.term.stop).await;
            begun = self.begin_without(reason, code).await?;
        }
    }

    /// Follows the stream from a mark until the position is lost.
    async fn follow(&self, begun: StartPoint) -> MayFail<Loss> {
        let (out, items) = mpsc::channel(self.term.settings.page_size);
        let StartPoint { mark, from } = begun;
        let reader = Reader::new(self.term.clone(), self.full_sweep.clone(), out, mark, from);
        let reading = tokio::spawn(reader.run());

        let checker = PageChecker::new(
            self.term.clone(),
            self.sender.clone(),
            self.inspector.clone(),
            self.catalogue.clone(),
            self.full_sweep.clone(),
        );
        // When the follower ends, the reader notices that its items are no longer taken, and ends too.
        Follower::new(self.term.clone(), self.positions.clone(), checker, items).run().await;

        match reading.await {
            Ok(Ok(loss)) => Ok(loss),
            Err(error) if error.is_panic() => {
                Err(RescuerError::Panicked("the task that reads the change stream").into())
            }
            Ok(Err(Halt)) | Err(_) => Err(Interrupted::Halted),
        }
    }

    /// Begins without a usable position, as the settings require.
    async fn begin_without(&self, reason: String, code: Option<i32>) -> MayFail<StartPoint> {
        let policy = self.term.settings.on_history_lost;
        tracing::warn!(reason, code, ?policy, "the stream's position is LOST");
        self.term.report.emit(RescueEvent::PositionLost { reason: reason.clone(), code });
        self.catalogue.doubt();
        if policy == OnHistoryLost::Fail {
            let stream = self.term.plan.name.clone();
            return Err(RescuerError::PositionLost { stream, reason }.into());
        }

        // The position is saved before the sweep is requested: the stream shows messages that are saved after
        // that, and the sweep finds messages that were saved earlier.
        let mark = self.now().await?;
        self.save(&mark).await?;
        if policy == OnHistoryLost::Sweep {
            self.full_sweep.request_twice();
        }
        Ok(StartPoint { mark, from: StartedFrom::AfterLoss })
    }

    /// The server's current time as a mark.
    async fn now(&self) -> Run<Mark> {
        let ask = || self.term.mongo.operation_time();
        Ok(Mark::at(self.term.insist("ask MongoDB for its operation time", ask).await?))
    }

    async fn save(&self, mark: &Mark) -> Run<()> {
        let now = self.term.now().await?;
        let save = || self.positions.take(mark, self.term.held.epoch, now);
        match self.term.insist("save the position", save).await? {
            Saved::Done => {
                self.term.report.position(mark.cluster_time);
                Ok(())
            }
            Saved::Fenced => {
                self.term.step_back("another rescuer has saved a position");
                Err(Halt)
            }
        }
    }
}
