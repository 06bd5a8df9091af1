//! Ways to break the design on purpose: each must make the checker find a counterexample, or the model proves nothing.

/// One rule that is not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Broken {
    /// A message is cleared once it is published, whatever the broker says of it.
    ClearBeforeConfirm,
    /// The position moves behind a change as soon as it is read.
    PositionSavedOnRead,
    /// A clear writes the whole outbox as it was read, without what was delivered.
    ClearByReplacing,
    /// A message is published before the majority has its claim, or the save that it was born claimed with.
    DispatchBeforeMajority,
    /// There is no sweep.
    NoSweep,
    /// An acknowledgement counts even if the broker returned the message.
    AnyAckAccepted,
    /// An owner that can't send commands keeps its stream, and a rescuer that can't takes one.
    OwnerWithoutBroker,
    /// A save without a clean answer is taken for one that was refused.
    UnknownIsRefusal,
    /// A refusal is believed although an earlier try of the same write has no answer.
    DoubtForgotten,
    /// A sweep reads no entries without a date, also where one was queued.
    UndatedForgotten,
    /// The stream doesn't show that a message has died.
    DeathHidden,
    /// Behind a saved position, everything is swept once, and not again when it is old enough.
    SweptOnce,
    /// What is received is not remembered.
    NoInbox,
}
