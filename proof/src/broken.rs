//! Rules of the design that can be broken on purpose. For each, the checker must find a counterexample; otherwise the model
//! would prove nothing.

/// A rule that is broken in a scenario.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Broken {
    /// A message is cleared once it is published, whatever the broker answers.
    ClearBeforeConfirm,
    /// The position moves past a change as soon as the change is read.
    PositionSavedOnRead,
    /// A clear replaces the whole outbox with the outbox as it was read, minus the delivered messages.
    ClearByReplacing,
    /// A message is published before the majority has the claim, or the save that created the message with a claim.
    DispatchBeforeMajority,
    /// There is no sweep.
    NoSweep,
    /// An acknowledgement counts even if the broker returned the message.
    AnyAckAccepted,
    /// An owner that can't send commands keeps its stream, and a rescuer that can't send commands takes a stream.
    OwnerWithoutBroker,
    /// A save without a clear answer is reported as refused.
    UnknownIsRefusal,
    /// A refusal is reported as final, although an earlier try of the same write has no answer.
    DoubtForgotten,
    /// A sweep ignores entries without a date, even those for which a command was already queued.
    UndatedForgotten,
    /// The change stream doesn't show that a message has died.
    DeathHidden,
    /// After a start from a saved position there is one full sweep, and no second one when its entries are old enough.
    SweptOnce,
    /// Received messages are not remembered.
    NoInbox,
}
