//! The real rescuer on a real MongoDB; commands are recorded in place of a broker, but for one test.
//!
//! Needs `eval "$(scripts/services env)"`.

mod broker;
mod faults;
mod position;
mod stream;
mod support;
mod sweep;
