//! Finds the text of each key, and the text's source.

use std::{
    ffi::{OsStr, OsString},
    fmt::{self, Write as _},
    path::Path,
};

use super::{
    file,
    flags::{self, Parsed, Task},
    key::{Key, Kind, accept_any},
    problem::Problem,
    program::Program,
    sample::{literal, sample},
    schema::schema,
    sources::{Given, Origin, Sources},
    uri::Uri,
    value::Value,
};
use crate::{NamespacePattern, quote::shown, suggestion::did_you_mean};

/// The sources are printed in one column to the right of the lines. A line that is longer than this does not
/// move the column.
const ALIGNED: usize = 60;

/// The result of [`resolve`].
#[derive(Debug)]
pub enum Resolution {
    /// The program should run.
    Run(Resolved),
    /// The user asked for the effective settings: print [`Resolved::effective`] and all problems, then
    /// exit.
    Check(Resolved),
    /// The user asked for other output: print this, then exit.
    Print(String),
}

/// The table of keys, with the text of each key. The texts have not been validated yet.
pub struct Resolved {
    pub(super) entries: Vec<Entry>,
    pub(super) problems: Vec<Problem>,
    pub(super) incomplete: bool,
    warnings: Vec<String>,
}

/// A key and its value.
pub(super) struct Entry {
    pub(super) key: Key,
    pub(super) text: Text,
}

pub(super) enum Text {
    Found(String, Origin),
    /// The text was given in an invalid way, which is already reported as a problem.
    Unusable,
    Absent,
}

/// Looks up each of `keys` in `sources`: flags override the environment, which overrides the file, which
/// overrides the defaults. The path of the file is looked up in the same way (`--config`,
/// `OUTBOX_CONFIG`). Problems are kept for [`Reader`](super::reader::Reader).
pub fn resolve(program: &Program, keys: &[Key], sources: &Sources) -> Resolution {
    let config =
        Key::new("config", Kind::Text(accept_any), "The TOML file to read settings from.").with_default("");
    let mut all = vec![config.clone()];
    all.extend_from_slice(keys);

    let mut asked = Given::default();
    let (task, args) = flags::task(&sources.args, &mut asked);
    let flags = match flags::parse(program, &all, &args) {
        Parsed::Given(given) => given,
        Parsed::Print(text) => return Resolution::Print(text),
    };
    match task {
        Task::Serve | Task::Check => {}
        Task::Sample => return Resolution::Print(sample(program, keys)),
        Task::Schema => return Resolution::Print(schema(program, keys)),
    }

    // The file's path is itself a setting, which every source except the file can provide.
    let mut given = AllGiven { flags, env: environment(&all, &sources.env), ..AllGiven::default() };
    let config_text = given.take(&config, &sources.env);
    if let Text::Found(path, origin) = &config_text
        && !path.is_empty()
    {
        given.file = read_file(path, &spelled(&config, origin), keys, sources);
        given.path.clone_from(path);
    }

    let mut entries = vec![Entry { key: config, text: config_text }];
    for key in keys {
        entries.push(Entry { key: key.clone(), text: given.take(key, &sources.env) });
    }

    let AllGiven { flags, env, file, .. } = given;
    let resolved = Resolved {
        entries,
        incomplete: asked.incomplete || flags.incomplete || file.incomplete,
        problems: [asked.problems, flags.problems, env.problems, file.problems].concat(),
        warnings: unknown_variables(&all, &sources.env),
    };
    match task {
        Task::Check => Resolution::Check(resolved),
        _ => Resolution::Run(resolved),
    }
}

/// The values from each source, and the file's path.
#[derive(Default)]
struct AllGiven {
    flags: Given,
    env: Given,
    file: Given,
    path: String,
}

impl AllGiven {
    /// The text of a key, from the first source that provides it.
    fn take(&mut self, key: &Key, variables: &[(OsString, OsString)]) -> Text {
        let name = key.name();
        if let Some(text) = self.flags.texts.remove(name) {
            return found(text, Origin::Flag);
        }
        if let Some(text) = self.env.texts.remove(name) {
            return found(text, Origin::Env);
        }
        if let Some(text) = self.file.texts.remove(name) {
            return found(text, Origin::File { path: self.path.clone() });
        }

        let fallback = key.fallback_env().and_then(|variable| lookup(variables, variable));
        match (fallback, key.default()) {
            (Some(Ok(text)), _) => found(Some(text.to_owned()), Origin::FallbackEnv),
            (_, Some(default)) => found(Some(default.to_owned()), Origin::Default),
            (_, None) => Text::Absent,
        }
    }
}

fn found(text: Option<String>, origin: Origin) -> Text {
    match text {
        Some(text) => Text::Found(text.trim().to_owned(), origin),
        None => Text::Unusable,
    }
}

fn environment(keys: &[Key], variables: &[(OsString, OsString)]) -> Given {
    let mut given = Given::default();
    for key in keys {
        match lookup(variables, &key.env()) {
            Some(Ok(text)) => given.set(key, text),
            Some(Err(())) => given.refuse(key, key.env(), "is not UTF-8; write it in UTF-8"),
            None => {}
        }
    }
    given
}

/// Returns `None` for a missing or empty variable, and `Err` for one that is not UTF-8.
fn lookup<'a>(variables: &'a [(OsString, OsString)], name: &str) -> Option<Result<&'a str, ()>> {
    let (_, value) = variables.iter().find(|(variable, _)| variable == OsStr::new(name))?;
    match value.to_str().map(str::trim) {
        Some("") => None,
        Some(text) => Some(Ok(text)),
        None => Some(Err(())),
    }
}

fn read_file(path: &str, spelled: &str, keys: &[Key], sources: &Sources) -> Given {
    match (sources.read_file)(Path::new(path)) {
        Ok(text) => file::parse(path, &text, keys),
        Err(error) => {
            let sentence = format!("{} can't be read: {error}; correct the path", shown(path));
            let problems = vec![Problem::new(spelled, sentence)];
            Given { problems, incomplete: true, ..Given::default() }
        }
    }
}

/// The key in the form that its source uses.
pub(super) fn spelled(key: &Key, origin: &Origin) -> String {
    match origin {
        Origin::Flag => key.flag(),
        Origin::Env => key.env(),
        Origin::File { path } => format!("{path}:{}", key.name()),
        Origin::FallbackEnv => key.fallback_env().unwrap_or_default().into(),
        Origin::Default => format!("{} (default)", key.name()),
    }
}

/// Warns about unknown variables whose names resemble a variable of this program. Other unknown
/// variables are ignored, because programs share the environment.
fn unknown_variables(keys: &[Key], variables: &[(OsString, OsString)]) -> Vec<String> {
    let known: Vec<String> = keys.iter().map(Key::env).collect();
    let mut warnings = Vec::new();
    for (name, _) in variables {
        let Some(name) = name.to_str() else { continue };
        if !name.starts_with("OUTBOX_") || known.iter().any(|known| known == name) {
            continue;
        }

        let hint = did_you_mean(name, known.iter().map(String::as_str));
        if !hint.is_empty() {
            warnings.push(format!("{name} is ignored: it is not a setting of this program{hint}"));
        }
    }

    warnings.sort_unstable();
    warnings
}

impl Resolved {
    /// Warnings, which don't stop the program: for example, about an unknown `OUTBOX_` variable
    /// whose name resembles a variable of this program.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Every setting on one line without secrets, as in `delay=15s watch=shop.* (OUTBOX_WATCH)`. A value
    /// without a source is the default.
    pub fn summary(&self) -> String {
        let shown: Vec<String> = self.entries.iter().filter_map(Entry::summary).collect();
        shown.join(" ")
    }

    /// Every setting that has a usable value, each as a line of the file followed by its source, without
    /// secrets.
    pub fn effective(&self) -> String {
        let lines: Vec<_> = self.entries.iter().filter_map(Entry::effective).collect();

        // Long lines would move the sources of all other lines too far to the right.
        let widths = lines.iter().map(|(line, _)| line.chars().count());
        let width = widths.filter(|width| *width <= ALIGNED).max().unwrap_or_default();

        let mut text = String::new();
        for (line, origin) in &lines {
            // Writing to a string can't fail.
            let _ = writeln!(text, "{line:width$}  # {origin}");
        }
        text
    }
}

impl Entry {
    fn summary(&self) -> Option<String> {
        let Text::Found(text, origin) = &self.text else {
            return None;
        };

        let name = self.key.name();
        let text = match Value::parse(text, self.key.kind()) {
            Ok(Value::Uri(uri)) => Uri::to_string(&uri),
            Ok(value) if may_hold_a_secret(&value, text) => shown(text),
            Ok(Value::Namespaces(patterns)) => written(&patterns),
            Ok(_) if text.contains(char::is_whitespace) => shown(text),
            Ok(_) => text.clone(),
            Err(_) if text.is_empty() => return None,
            Err(_) => "?".into(),
        };

        match origin {
            _ if text.is_empty() => None,
            Origin::Default => Some(format!("{name}={text}")),
            Origin::File { path } => Some(format!("{name}={text} ({path})")),
            _ => Some(format!("{name}={text} ({})", spelled(&self.key, origin))),
        }
    }

    /// Returns the key's line of the file, and the source of its value.
    fn effective(&self) -> Option<(String, String)> {
        let Text::Found(text, origin) = &self.text else {
            return None;
        };
        let value = match Value::of(&self.key, text).ok()? {
            // `config` is not a setting of the file.
            _ if self.key.name() == "config" => return None,
            Value::Uri(uri) => literal(self.key.kind(), &uri.to_string()),
            value if may_hold_a_secret(&value, text) => literal(self.key.kind(), "***"),
            _ => literal(self.key.kind(), text),
        };
        let origin = match origin {
            Origin::Default => "default".into(),
            Origin::File { path } => path.clone(),
            _ => spelled(&self.key, origin),
        };
        Some((format!("{} = {value}", self.key.name()), origin))
    }
}

/// Whether a value could be a URI that was given to the wrong key.
fn may_hold_a_secret(value: &Value, text: &str) -> bool {
    let could_be_a_uri = |text: &str| text.contains("//") || text.contains('@');
    match value {
        // The `@` in front of a delay is not part of the names.
        Value::Namespaces(patterns) => patterns.iter().any(|pattern| {
            could_be_a_uri(pattern.database().as_str()) || could_be_a_uri(pattern.collection().as_str())
        }),
        _ => could_be_a_uri(text),
    }
}

/// Patterns with commas between them.
fn written(patterns: &[NamespacePattern]) -> String {
    let patterns: Vec<String> = patterns.iter().map(NamespacePattern::to_string).collect();
    patterns.join(",")
}

impl fmt::Debug for Resolved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolved")
            .field("settings", &self.summary())
            .field("problems", &self.problems)
            .field("warnings", &self.warnings)
            .finish_non_exhaustive()
    }
}
