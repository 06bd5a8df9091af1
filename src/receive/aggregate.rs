//! Receives a message into an aggregate: loads or makes the aggregate, applies the message once, saves the aggregate,
//! and starts over after a conflict.
//!
//! # Guarantees
//! - A message is reported as applied, or as a repeat, only after the majority has the save that recorded the message: saves
//!   wait for the majority, and the inbox is read with read concern majority.
//! - A save without a clear answer is followed by a read. If the aggregate that was read has no record of the message,
//!   the message is applied again. If the first save still takes effect later, the second save fails with a conflict.

use std::sync::Arc;

use uuid::Uuid;

use crate::{
    Error, InboxLimits, ReceivingAggregate, Store,
    deliver::{HandlerError, handlers::without_values},
    mongo::error_codes::describe,
    receive::handled::{Handled, InboxFigures},
    store::{Inserted, Saved},
};

/// Maximum number of times that an aggregate is loaded and saved for one call.
const TRIES: u32 = 20;

/// An aggregate that receives messages, with the closures for finding, making and changing the aggregate.
pub(super) struct IntoAggregate<T, K, N, A> {
    pub(super) store: Store<T>,
    pub(super) key: K,
    pub(super) make: N,
    pub(super) apply: A,
}

/// The result of a closure that changes an aggregate, which is either nothing or a `Result` without a value.
pub trait Applies {
    /// Returns `Ok` if the aggregate should be saved.
    ///
    /// # Errors
    /// An error with the reason why the aggregate must not be saved.
    fn applied(self) -> Result<(), HandlerError>;
}

impl Applies for () {
    fn applied(self) -> Result<(), HandlerError> {
        Ok(())
    }
}

impl<E: Into<HandlerError>> Applies for Result<(), E> {
    fn applied(self) -> Result<(), HandlerError> {
        self.map_err(Into::into)
    }
}

/// The result of one try.
enum Attempt {
    Ended(Handled),
    /// Try again: another writer was faster, or no clear answer arrived.
    Again(&'static str),
}

/// Receives a message into its aggregate.
pub(super) async fn receive<M, T, K, N, A, R>(
    into: Arc<IntoAggregate<T, K, N, A>>,
    id: Option<Uuid>,
    message: M,
    limits: InboxLimits,
) -> Handled
where
    M: Send + Sync,
    T: ReceivingAggregate,
    K: Fn(&M) -> T::Id + Send + Sync,
    N: Fn(T::Id) -> T + Send + Sync,
    A: Fn(&mut T, &M) -> R + Send + Sync,
    R: Applies,
{
    let Some(id) = id else {
        return Handled::Undecodable("the message has no id, so a repeat could not be recognised".into());
    };

    let mut why = "";
    for tries in 0..TRIES {
        match attempt(&into, id, &message, limits).await {
            Ok(Attempt::Ended(handled)) => return handled,
            Ok(Attempt::Again(reason)) => why = reason,
            Err(error) => return of_store(&error),
        }
        into.store.pause_after_conflict(tries).await;
    }
    Handled::Transient(format!("the aggregate could not be saved {TRIES} times in a row: {why}"))
}

async fn attempt<M, T, K, N, A, R>(
    into: &IntoAggregate<T, K, N, A>,
    id: Uuid,
    message: &M,
    limits: InboxLimits,
) -> Result<Attempt, Error>
where
    T: ReceivingAggregate,
    K: Fn(&M) -> T::Id,
    N: Fn(T::Id) -> T,
    A: Fn(&mut T, &M) -> R,
    R: Applies,
{
    let key = (into.key)(message);
    let Some(mut aggregate) = into.store.load(&key).await? else {
        let mut aggregate = (into.make)(key);
        let figures = match change(&mut aggregate, into, id, message, limits) {
            Ok(figures) => figures,
            Err(handled) => return Ok(Attempt::Ended(handled)),
        };
        return Ok(match into.store.insert(aggregate).await? {
            Inserted::Applied(..) => Attempt::Ended(Handled::Applied(Some(figures))),
            Inserted::Exists(_) => Attempt::Again("another writer inserted the aggregate"),
            Inserted::Unknown(..) => Attempt::Again("no clear answer arrived"),
        });
    };

    let figures = match change(&mut *aggregate, into, id, message, limits) {
        Ok(figures) => figures,
        Err(handled) => return Ok(Attempt::Ended(handled)),
    };
    Ok(match into.store.save(&mut aggregate).await? {
        Saved::Applied(_) | Saved::Unchanged => Attempt::Ended(Handled::Applied(Some(figures))),
        Saved::Conflict => Attempt::Again("other writers changed the aggregate"),
        Saved::Gone => Attempt::Again("the aggregate was deleted"),
        Saved::Unknown(_) => Attempt::Again("no clear answer arrived"),
    })
}

/// Records the message and applies it. Returns an error if nothing should be saved.
fn change<M, T, K, N, A, R>(
    aggregate: &mut T,
    into: &IntoAggregate<T, K, N, A>,
    id: Uuid,
    message: &M,
    limits: InboxLimits,
) -> Result<InboxFigures, Handled>
where
    T: ReceivingAggregate,
    A: Fn(&mut T, &M) -> R,
    R: Applies,
{
    let Some(forgotten) = aggregate.inbox().receive_counting(limits, id) else {
        return Err(Handled::Repeated);
    };
    (into.apply)(aggregate, message).applied().map_err(Handled::from)?;
    Ok(InboxFigures { remembered: aggregate.inbox().len(), forgotten })
}

/// The outcome of a message after an error of the store. The error is not the message's fault if the error may
/// disappear by itself, by a change in the deployment, or by the work of an operator.
fn of_store(error: &Error) -> Handled {
    let text = without_content(error);
    match error {
        Error::Unavailable(_) => Handled::Unavailable(text),
        Error::Encode { .. }
        | Error::MessageTooLarge { .. }
        | Error::NestedTooDeep { .. }
        | Error::MessageType { .. }
        | Error::DocumentTooLarge { .. }
        | Error::FieldName { .. }
        | Error::IdChanged { .. }
        | Error::NoId { .. }
        | Error::IdMismatch { .. } => Handled::Permanent(text),
        _ => Handled::Transient(text),
    }
}

/// The text of an error, without the values of the document or the message.
fn without_content(error: &Error) -> String {
    match error {
        Error::Unavailable(source) | Error::Refused(source) => format!("{error}: {}", describe(source)),
        Error::Decode { document, reason } => {
            format!("{document} cannot be decoded: {}", without_values(reason))
        }
        Error::Unreadable { document, reason } => {
            format!("{document} could not be decoded again, so it was not saved: {}", without_values(reason))
        }
        Error::Encode { what, reason } => format!("{what} cannot be encoded: {}", without_values(reason)),
        _ => error.to_string(),
    }
}
