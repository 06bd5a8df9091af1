//! Tests a daemon's process and settings from a user's point of view.

#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

#[cfg(unix)]
mod process;
mod settings;
