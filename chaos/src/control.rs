//! Ways to break the engine on purpose; a storm must find each of them.

use clap::ValueEnum;

/// How the engine is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Control {
    /// Messages leave their document before RabbitMQ has confirmed them.
    ClearBeforeConfirm,
    /// The rescuer reads its stream, but never sweeps.
    NoSweep,
    /// No rescuer runs.
    NoRescuer,
}
