//! Settings: flags override the environment, which overrides the file. All settings are validated before
//! anything is connected.
//!
//! # Names
//! A [`Key`] has one name in three spellings: `shutdown_grace` is `shutdown_grace` in the TOML file that `--config`
//! names, `OUTBOX_SHUTDOWN_GRACE` in the environment, and `--shutdown-grace` on the command line.
//!
//! # Flow
//! [`resolve`] finds the text of each key in a table, and the text's source. [`Reader`] parses every text
//! according to the [`Kind`] of its key and returns typed values; [`Reader::finish`] returns the settings,
//! or all [`Problems`] at once.
//!
//! # Rules
//! - An environment variable that is set but empty counts as not set. White space around a value is dropped.
//! - An empty flag or file value is refused, except where the key's default is empty.
//! - An unknown flag or file key is a problem. An unknown `OUTBOX_` variable causes a warning if
//!   its name resembles a known one, and is ignored otherwise, because several programs share one
//!   environment.
//!
//! # Before it runs
//! `config check` prints the effective settings and all problems, `config sample` prints a file with every
//! key, and `config schema` prints the file's JSON Schema. Sample and schema are generated from the table
//! of keys.
//!
//! # Secrets
//! The password of a [`Uri`] appears in no output of this module: problems don't quote values that could
//! be a URI, and the summary, `Debug` and `--help` show URIs redacted or not at all.

mod file;
mod flags;
mod key;
mod problem;
mod program;
mod reader;
mod resolve;
mod sample;
mod schema;
mod sources;
mod uri;
mod value;

pub use key::{Check, Key, Kind};
pub use problem::{Problem, Problems};
pub use program::Program;
pub use reader::Reader;
pub use resolve::{Resolution, Resolved, resolve};
pub use sources::Sources;
pub(crate) use uri::is_harmless;
pub use uri::{Scheme, Uri};
