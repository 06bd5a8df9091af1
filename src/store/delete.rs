//! Deletes an aggregate that has no undelivered messages.

use super::{
    Store,
    error::Error,
    loaded::Loaded,
    lookups::Found,
    outcome::Deleted,
    write::{Condition, filter_of},
};
use crate::{
    aggregate::Aggregate,
    mongo::{Delete, WriteOutcome, deadline::until_deadline},
};

impl<T: Aggregate> Store<T> {
    /// Deletes an aggregate that has no undelivered messages and whose document no one has saved since the load.
    ///
    /// # Errors
    /// [`Error`], if the aggregate was not deleted.
    pub async fn delete(&self, loaded: &Loaded<T>) -> Result<Deleted, Error> {
        self.observe("delete", self.delete_in_steps(loaded)).await
    }

    async fn delete_in_steps(&self, loaded: &Loaded<T>) -> Result<Deleted, Error> {
        // Clear delivered messages first, so that they don't prevent the delete.
        until_deadline(self.inline.flush_document(&loaded.document)).await;

        let filter = filter_of(loaded, &Condition::EmptyOutbox)?;
        match self.mongo.delete(Delete { namespace: self.namespace.clone(), filter }).await {
            WriteOutcome::Done => return Ok(Deleted::Done),
            WriteOutcome::Unknown(error) => return Ok(Deleted::Unknown(error)),
            WriteOutcome::Failed(error) => return Err(Error::of_write(&loaded.document, error, 0)),
            WriteOutcome::Missed => {}
        }

        Ok(match self.look_again(loaded).await? {
            Found::Same => Deleted::Undelivered,
            Found::Changed => Deleted::Conflict,
            Found::Gone => Deleted::Gone,
        })
    }
}
