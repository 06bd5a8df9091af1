//! What a daemon's process and its settings do, as users meet them.

#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

#[cfg(unix)]
mod process;
mod settings;
