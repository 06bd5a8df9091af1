//! Consumes messages with acknowledgements.

mod arrivals;
mod consumer;
mod delivery;
mod supervisor;
mod watchdog;

pub use consumer::Consumer;
pub use delivery::Delivery;
