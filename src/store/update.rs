//! Loads, changes and saves an aggregate in one call, and starts over if another process saved the aggregate between
//! the load and the save.

use std::{borrow::Borrow, convert::Infallible, time::Duration};

use serde::Serialize;

use super::{
    Store,
    error::Error,
    identity::id_of,
    loaded::Loaded,
    outcome::{Receipt, Saved, Updated},
};
use crate::{aggregate::Aggregate, stored::document_ref::DocumentRef};

/// Number of attempts that [`Store::update`] makes before it gives up on a document that other writers keep changing.
const TRIES: u32 = 32;
/// The upper bound of the pause after a conflict, because another process's save may wait that long for the majority.
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

impl<T: Aggregate> Store<T> {
    /// Loads an aggregate, changes it and saves it. Starts over if another process saved the aggregate between the load
    /// and the save.
    ///
    /// The closure may run several times, each time on a freshly loaded aggregate, so it should only change that
    /// aggregate. The id may be given in any borrowed form, as for [`load`](Store::load).
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Contended`], [`Error::Unknown`] (load the document before you repeat the update),
    /// or any other [`Error`].
    pub async fn update<Q, R>(
        &self,
        id: &Q,
        mut change: impl FnMut(&mut T) -> R,
    ) -> Result<Updated<T, R>, Error>
    where
        T::Id: Borrow<Q>,
        Q: Serialize + Sync + ?Sized,
    {
        match self.try_update(id, |value| Ok::<R, Infallible>(change(value))).await? {
            Ok(updated) => Ok(updated),
            Err(never) => match never {},
        }
    }

    /// Like [`update`](Store::update), but the closure can return an error; in this case the aggregate is not saved.
    ///
    /// # Errors
    /// The outer error is the store's, and the inner error is the closure's: `orders.try_update(&id,
    /// Order::pay).await??`.
    pub async fn try_update<Q, R, E>(
        &self,
        id: &Q,
        mut change: impl FnMut(&mut T) -> Result<R, E>,
    ) -> Result<Result<Updated<T, R>, E>, Error>
    where
        T::Id: Borrow<Q>,
        Q: Serialize + Sync + ?Sized,
    {
        for tries in 0..TRIES {
            let mut document = self.existing(id).await?;
            let value = match change(&mut document.value) {
                Ok(value) => value,
                Err(refusal) => return Ok(Err(refusal)),
            };

            if let Some(receipt) = self.save_or_pause(&mut document, tries).await? {
                return Ok(Ok(Updated { value, document, receipt }));
            }
        }
        Err(Error::Contended { document: self.named(id)?, tries: TRIES })
    }

    /// Like [`try_update`](Store::try_update), but with an async closure, which takes the aggregate and returns it.
    ///
    /// ```
    /// # use document_outbox::{Aggregate, Loaded, Store};
    /// # async fn price_of(_: &str) -> Result<i64, std::io::Error> { Ok(1) }
    /// # #[derive(serde::Serialize, serde::Deserialize, Aggregate)]
    /// # struct Order {
    /// #     #[serde(rename = "_id")] id: String, sku: String, price: i64, #[serde(skip)] outbox: document_outbox::Outbox,
    /// # }
    /// # async fn run(orders: Store<Order>) -> Result<(), Box<dyn std::error::Error>> {
    /// let quote = |mut order: Loaded<Order>| async move {
    ///     order.price = price_of(&order.sku).await?;
    ///     Ok::<_, std::io::Error>(order)
    /// };
    /// orders.update_async("o-1", quote).await??;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// The closure may run several times, and any effects that it has outside the aggregate are then repeated.
    ///
    /// # Errors
    /// The outer error is the store's, and the inner error is the closure's.
    pub async fn update_async<Q, F, E>(
        &self,
        id: &Q,
        mut change: impl FnMut(Loaded<T>) -> F,
    ) -> Result<Result<Updated<T, ()>, E>, Error>
    where
        T::Id: Borrow<Q>,
        Q: Serialize + Sync + ?Sized,
        F: Future<Output = Result<Loaded<T>, E>>,
    {
        for tries in 0..TRIES {
            let loaded = self.existing(id).await?;
            let mut document = match change(loaded).await {
                Ok(document) => document,
                Err(refusal) => return Ok(Err(refusal)),
            };

            if let Some(receipt) = self.save_or_pause(&mut document, tries).await? {
                return Ok(Ok(Updated { value: (), document, receipt }));
            }
        }
        Err(Error::Contended { document: self.named(id)?, tries: TRIES })
    }

    async fn existing<Q>(&self, id: &Q) -> Result<Loaded<T>, Error>
    where
        T::Id: Borrow<Q>,
        Q: Serialize + Sync + ?Sized,
    {
        match self.load(id).await? {
            Some(loaded) => Ok(loaded),
            None => Err(Error::NotFound { document: self.named(id)? }),
        }
    }

    /// Saves the aggregate. After a conflict, pauses and returns `None`.
    async fn save_or_pause(
        &self,
        loaded: &mut Loaded<T>,
        tries: u32,
    ) -> Result<Option<Option<Receipt>>, Error> {
        match self.save(loaded).await? {
            Saved::Applied(receipt) => Ok(Some(Some(receipt))),
            Saved::Unchanged => Ok(Some(None)),
            Saved::Gone => Err(Error::NotFound { document: loaded.document.clone() }),
            Saved::Unknown(source) => Err(Error::Unknown { document: loaded.document.clone(), source }),
            Saved::Conflict => {
                self.pause_after_conflict(tries).await;
                Ok(None)
            }
        }
    }

    /// Pauses after this many conflicts, before another try.
    pub(crate) async fn pause_after_conflict(&self, tries: u32) {
        self.mongo.pause(pause_after(tries)).await;
    }

    fn named<Q: Serialize + ?Sized>(&self, id: &Q) -> Result<DocumentRef, Error> {
        Ok(DocumentRef::by_id(self.namespace.clone(), id_of(id)?))
    }
}

/// The pause after this many conflicts, chosen at random between zero and a limit that doubles (full jitter).
fn pause_after(tries: u32) -> Duration {
    let longest = Duration::from_millis(2 << tries.min(10)).min(LONGEST_PAUSE);
    longest.mul_f64(fastrand::f64())
}
