//! Executes an act on its messages.

use document_outbox::{
    DocumentRef,
    internal::error_codes::{self, Verdict},
};
use mongodb::bson::{DateTime, Document, Uuid, doc};

use super::{
    Act, ActOutcome, ActRequest, ActSum, Acted, Target,
    audit::{Author, Operation, new_id, outcome},
    concern::majority,
    transition::transition,
};
use crate::{Operator, error::OperateError, lease};

/// The number of intents that are written at a time. If the tool dies, at most that many lack an outcome.
const CHUNK: usize = 50;
/// The number of failures in a row after which the rest is left.
const MOST_FAILURES: usize = 5;

/// The result of an intent that was not tried.
pub(super) const NOT_DONE: &str = "not_done";

/// The part of an act that is under way.
struct Chunk {
    acted: Vec<Acted>,
    left: usize,
    /// What ended the act.
    error: Option<OperateError>,
}

impl ActSum {
    pub(super) fn new(operation: Uuid) -> Self {
        Self { operation, done: 0, changed: 0, failed: 0, left: 0, error: None }
    }

    pub(super) fn add(&mut self, outcome: &ActOutcome) {
        match outcome {
            ActOutcome::Done => self.done += 1,
            ActOutcome::Changed => self.changed += 1,
            ActOutcome::Failed(_) | ActOutcome::Unknown(_) => self.failed += 1,
        }
    }
}

impl Operator {
    /// Executes an act on the messages that meet its query. `report` is called for each message.
    ///
    /// # Errors
    /// An error if no message was tried. If something fails later, as the audit trail, the act does not continue, and
    /// the error is in the sum.
    pub async fn execute(
        &self,
        request: &ActRequest,
        author: Author,
        mut report: impl FnMut(&Acted),
    ) -> Result<ActSum, OperateError> {
        if author.reason.trim().is_empty() {
            return Err(OperateError::Argument("an act needs a reason".to_owned()));
        }
        let selection = self.select(request).await?;
        if selection.is_above_ceiling {
            return Err(OperateError::Forbidden(format!(
                "more than {} messages match, so none was changed; narrow the query, or raise the ceiling",
                request.ceiling
            )));
        }
        let count = selection.targets.len();
        if let Some(expected) = request.expected.filter(|expected| *expected != count) {
            return Err(OperateError::Forbidden(format!(
                "{count} messages match, and {expected} were expected, so none was changed; preview again"
            )));
        }

        let operation = Operation {
            id: new_id(),
            act: request.act,
            author,
            mongodb_user: self.mongodb_user().await?,
            query: Some(request.query.to_string()),
        };
        let mut sum = ActSum::new(operation.id);
        let mut failures = 0;
        for chunk in selection.targets.chunks(CHUNK) {
            if failures >= MOST_FAILURES || sum.error.is_some() {
                sum.left += chunk.len();
                continue;
            }
            let has_acted = sum.done + sum.changed + sum.failed > 0;
            let Chunk { acted, left, error } = self.act_on(&operation, chunk, &mut failures).await;
            match error {
                Some(error) if !has_acted && acted.is_empty() => return Err(error),
                error => sum.error = error.map(|error| error.to_string()),
            }
            sum.left += left;
            for acted in acted {
                sum.add(&acted.outcome);
                report(&acted);
            }
        }
        Ok(sum)
    }

    /// Acts on a few messages, in their order: intents, acts, outcomes. An intent that is not tried gets an outcome, too,
    /// because the trail must not suggest that it may have been done.
    async fn act_on(&self, operation: &Operation, targets: &[Target], failures: &mut usize) -> Chunk {
        let mut chunk = Chunk { acted: Vec::new(), left: 0, error: None };
        let ids: Vec<Uuid> = targets.iter().map(|_| new_id()).collect();
        let mut now = match self.intend(operation, targets, &ids).await {
            Ok(now) => now,
            Err(error) => {
                return Chunk { left: targets.len(), error: Some(error), ..chunk };
            }
        };

        let mut outcomes = Vec::new();
        for (target, intent) in targets.iter().zip(ids) {
            match self.now().await {
                Ok(read) => now = read,
                Err(error) => chunk.error = Some(error),
            }
            if chunk.error.is_some() || *failures >= MOST_FAILURES {
                let why = "it was left, because the acts before it failed";
                outcomes.push(outcome(operation.id, intent, NOT_DONE, Some(why), now));
                chunk.left += 1;
                continue;
            }
            let result = self.act_on_one(operation, target, now).await;
            *failures = if result.detail().is_some() { *failures + 1 } else { 0 };
            outcomes.push(operation.outcome(intent, &result, now));
            chunk.acted.push(Acted { shown: target.shown.clone(), outcome: result });
        }

        if let Err(error) = self.record(&outcomes).await {
            chunk.error = Some(error);
        }
        chunk
    }

    /// Records intents, and returns their time.
    async fn intend(
        &self,
        operation: &Operation,
        targets: &[Target],
        ids: &[Uuid],
    ) -> Result<DateTime, OperateError> {
        let now = self.now().await?;
        let intents: Vec<Document> =
            targets.iter().zip(ids).map(|(target, id)| operation.intent(*id, target, now)).collect();
        self.record(&intents).await?;
        Ok(now)
    }

    async fn act_on_one(&self, operation: &Operation, target: &Target, now: DateTime) -> ActOutcome {
        if target.document.filter() == doc! { "_id": [] } {
            return ActOutcome::Failed("the `_id` of its document can't be used in a query".to_owned());
        }
        let by = &operation.author.name;
        let Some(transition) = transition(operation.act, &target.shown, by, now) else {
            return ActOutcome::Failed("this act does not take such a message".to_owned());
        };
        match self.lease_against(operation.act, target, now).await {
            Ok(None) => {}
            Ok(Some(why)) => return ActOutcome::Failed(why),
            Err(error) => return ActOutcome::Failed(error.to_string()),
        }
        if operation.act == Act::Discard {
            match self.keep(target, operation, now).await {
                Ok(None) => {}
                Ok(Some(outcome)) => return outcome,
                Err(error) => return ActOutcome::Failed(error.to_string()),
            }
        }

        let mut filter = target.document.filter();
        filter.insert("outbox", doc! { "$elemMatch": transition.element });
        self.update(&target.document, filter, transition.update, transition.array_filter).await
    }

    /// Why a message must not be killed or replayed because of the lease of its document: the lease's holder may deliver
    /// the message, and a state that the lease keeps would overrule the act.
    async fn lease_against(
        &self,
        act: Act,
        target: &Target,
        now: DateTime,
    ) -> Result<Option<String>, OperateError> {
        if !matches!(act, Act::Kill | Act::Replay) {
            return Ok(None);
        }
        let Some(lease) = self.oversized(&target.document).await? else { return Ok(None) };
        if !lease.is_held(now) && !target.shown.id.is_some_and(|id| lease.keeps(id)) {
            return Ok(None);
        }
        Ok(Some(format!(
            "its document has no room for a claim, and a lease has the state of its messages; see docs/operations.md,              \"{}\"",
            lease::RUNBOOK
        )))
    }

    /// Updates one document, acknowledged by the majority.
    pub(super) async fn update(
        &self,
        document: &DocumentRef,
        filter: Document,
        update: Document,
        array_filter: Option<Document>,
    ) -> ActOutcome {
        let namespace = &document.namespace;
        let collection = self.client.database(&namespace.db).collection::<Document>(&namespace.coll);
        let mut action = collection.update_one(filter, update).write_concern(majority());
        if let Some(array_filter) = array_filter {
            action = action.array_filters(vec![array_filter]);
        }

        match action.await {
            Ok(result) if result.matched_count == 0 => ActOutcome::Changed,
            Ok(_) => ActOutcome::Done,
            Err(error) => {
                let said = error_codes::describe(&error);
                match error_codes::verdict(&error) {
                    Verdict::Unknown => ActOutcome::Unknown(said),
                    Verdict::NotSent | Verdict::Duplicate | Verdict::TooLarge | Verdict::Refused => {
                        ActOutcome::Failed(said)
                    }
                }
            }
        }
    }
}
