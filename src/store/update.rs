//! Loads, changes and saves in one, and repeats if another process was faster.

use std::{convert::Infallible, time::Duration};

use super::{
    Store,
    error::Error,
    identity::id_of,
    outcome::{Saved, Updated},
};
use crate::{aggregate::Aggregate, stored::document_ref::DocumentRef};

/// How often [`Store::update`] tries before it gives up on a document that others keep changing.
const TRIES: u32 = 32;
/// After this many tries the pause stops growing: a quarter of a second, because the other save may wait for
/// its majority that long.
const LONGEST_AFTER: u32 = 7;

impl<T: Aggregate> Store<T> {
    /// Loads an aggregate, changes it and saves it; again from the start if another process saved in between.
    ///
    /// The closure may run several times, each time on a fresh aggregate; it should only change it.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Contended`], [`Error::Unknown`] (load the document before you repeat
    /// it), or any other [`Error`].
    pub async fn update<R>(
        &self,
        id: &T::Id,
        mut change: impl FnMut(&mut T) -> R,
    ) -> Result<Updated<T, R>, Error> {
        match self.try_update(id, |value| Ok::<R, Infallible>(change(value))).await? {
            Ok(updated) => Ok(updated),
            Err(never) => match never {},
        }
    }

    /// Like [`update`](Store::update), with a closure that can refuse; then there is no save.
    ///
    /// # Errors
    /// The outer error is the store's, the inner one the closure's: `orders.try_update(&id, Order::pay).await??`.
    pub async fn try_update<R, E>(
        &self,
        id: &T::Id,
        mut change: impl FnMut(&mut T) -> Result<R, E>,
    ) -> Result<Result<Updated<T, R>, E>, Error> {
        for tries in 0..TRIES {
            let Some(mut document) = self.load(id).await? else {
                return Err(Error::NotFound { document: self.named(id)? });
            };
            let value = match change(&mut document.value) {
                Ok(value) => value,
                Err(refusal) => return Ok(Err(refusal)),
            };

            let receipt = match self.save(&mut document).await? {
                Saved::Applied(receipt) => Some(receipt),
                Saved::Unchanged => None,
                Saved::Unknown(source) => {
                    return Err(Error::Unknown { document: self.named(id)?, source });
                }
                Saved::Gone => return Err(Error::NotFound { document: self.named(id)? }),
                Saved::Conflict => {
                    tokio::time::sleep(pause(tries)).await;
                    continue;
                }
            };
            return Ok(Ok(Updated { value, document, receipt }));
        }
        Err(Error::Contended { document: self.named(id)?, tries: TRIES })
    }

    fn named(&self, id: &T::Id) -> Result<DocumentRef, Error> {
        Ok(DocumentRef::by_id(self.namespace.clone(), id_of(id)?))
    }
}

/// How long to wait after this many conflicts: full jitter, up to a bound that doubles.
fn pause(tries: u32) -> Duration {
    let longest = Duration::from_millis(2 << tries.min(LONGEST_AFTER));
    longest.mul_f64(fastrand::f64())
}
