//! Rules of the design that can be broken on purpose. When a rule is broken, the checker must find a counterexample; otherwise
//! the model would prove nothing.

/// A rule that is broken in a scenario.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Broken {
    /// A message is cleared as soon as it is published, before the broker has answered.
    ClearBeforeConfirm,
    /// The position moves past a change as soon as the change is read.
    PositionSavedOnRead,
    /// A clear writes the whole outbox as it was read earlier, without the delivered messages. Such a clear also removes messages
    /// that were saved after the read.
    ClearByReplacing,
    /// A message is published before the majority has its claim. The claim may be part of the save that created the message.
    DispatchBeforeMajority,
    /// There is no sweep.
    NoSweep,
    /// A message counts as delivered when the broker acknowledges it, even if the broker also returned it.
    AnyAckAccepted,
    /// An owner that can't send commands keeps its stream, and a rescuer that can't send commands takes a stream.
    OwnerWithoutBroker,
    /// If the server's answer to a save is lost, the save is reported as refused, although it may have been executed.
    UnknownIsRefusal,
    /// A save is reported as refused when the server refuses the second try, although the answer to the first try is lost and the
    /// server may have executed the first try.
    DoubtForgotten,
    /// A sweep ignores all entries without a date, including those for which a command was already queued.
    UndatedForgotten,
    /// The change stream shows no change when a message dies.
    DeathHidden,
    /// After a start from a saved position there is only one full sweep. Entries that are younger than the delay at that time are
    /// missed, because no second full sweep finds them later.
    SweptOnce,
    /// A receiver does not remember which messages it has received.
    NoInbox,
}
