//! The description of a program.

/// The name, version and purpose that `--help` and `--version` show.
#[derive(Clone, Copy, Debug)]
pub struct Program {
    /// The binary's name: `outbox-rescuer`.
    pub name: &'static str,
    /// The binary's version: `env!("CARGO_PKG_VERSION")`.
    pub version: &'static str,
    /// The binary's purpose, in a sentence.
    pub about: &'static str,
}
