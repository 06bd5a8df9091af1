//! What a program says of itself.

/// What `--help` and `--version` say of a program.
#[derive(Clone, Copy, Debug)]
pub struct Program {
    /// The binary's name: `outbox-rescuer`.
    pub name: &'static str,
    /// Its version: `env!("CARGO_PKG_VERSION")`.
    pub version: &'static str,
    /// What it does, in a sentence.
    pub about: &'static str,
}
