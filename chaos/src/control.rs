//! Engines broken on purpose, which a storm must find.

use clap::ValueEnum;

/// What is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Control {
    /// Messages leave their document before RabbitMQ has confirmed them.
    ClearBeforeConfirm,
    /// The rescuer has its stream, and no sweep.
    NoSweep,
    /// There is no rescuer.
    NoRescuer,
}
