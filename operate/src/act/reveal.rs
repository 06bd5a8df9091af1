//! Records that somebody reads a payload.

use super::{
    Act, ActOutcome, Target,
    audit::{Author, Operation, new_id},
};
use crate::{Operator, error::OperateError, find::FoundMessage, list::Row};

impl Operator {
    /// Records that a payload is about to be shown completely. Without the record it must not be shown.
    pub async fn record_reveal(&self, found: &FoundMessage, author: Author) -> Result<(), OperateError> {
        let now = self.now().await?;
        let Some(slot) = found.outbox.get(found.index) else { return Ok(()) };
        let operation = Operation {
            id: new_id(),
            act: Act::Reveal,
            author,
            mongodb_user: self.mongodb_user().await?,
            query: None,
        };
        let shown = Row::of(&found.document, found.index + 1, slot, now);
        let target = Target { document: found.document.clone(), shown };
        let intent = new_id();
        let outcome = operation.outcome(intent, &ActOutcome::Done, now);
        self.record(&[operation.intent(intent, &target, now), outcome]).await
    }
}
