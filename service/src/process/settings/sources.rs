//! The sources of settings.

use std::{collections::BTreeMap, env, ffi::OsString, fmt, fs, io, path::Path};

use super::{key::Key, problem::Problem};

/// The command line, the environment, and a function that reads a file. All are plain values, so that
/// tests can provide their own.
#[derive(Clone)]
pub struct Sources {
    /// The arguments, without the program's own name.
    pub args: Vec<OsString>,
    /// The environment's variables.
    pub env: Vec<(OsString, OsString)>,
    /// Reads the file that `--config` names.
    pub read_file: fn(&Path) -> io::Result<String>,
}

impl Sources {
    /// The sources of this process.
    #[must_use]
    pub fn of_process() -> Self {
        Self {
            args: env::args_os().skip(1).collect(),
            env: env::vars_os().collect(),
            read_file: |path| fs::read_to_string(path),
        }
    }
}

/// Shows no content, because any part of it could be a secret.
impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sources")
            .field("args", &self.args.len())
            .field("env", &self.env.len())
            .finish_non_exhaustive()
    }
}

/// The source of a key's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    Flag,
    Env,
    File { path: String },
    FallbackEnv,
    Default,
}

/// The settings that one source provides.
#[derive(Default)]
pub(super) struct Given {
    /// The text of each key that the source sets; `None` if it sets the key in an unusable way, which is
    /// reported as a problem.
    pub(super) texts: BTreeMap<&'static str, Option<String>>,
    pub(super) problems: Vec<Problem>,
    /// Whether the source could not be read completely, so that a missing key may have been set in the
    /// unread part.
    pub(super) incomplete: bool,
}

impl Given {
    pub(super) fn set(&mut self, key: &Key, text: impl Into<String>) {
        self.texts.insert(key.name(), Some(text.into()));
    }

    /// Reports that the source sets `key` in an unusable way; `spelled` is the key as the source
    /// spells it.
    pub(super) fn refuse(&mut self, key: &Key, spelled: impl Into<String>, sentence: impl Into<String>) {
        self.texts.insert(key.name(), None);
        self.problems.push(Problem::new(spelled, sentence));
    }
}
