//! Converts the texts of settings to a daemon's own settings.

use std::{collections::BTreeMap, fmt, path::PathBuf, str::FromStr, time::Duration};

use super::{
    key::Key,
    problem::{Problem, Problems},
    resolve::{Entry, Resolved, Text, spelled},
    uri::Uri,
    value::Value,
};
use crate::NamespacePattern;

/// Returns the values of a table of keys, and collects their problems.
///
/// Every key is validated when the reader is created, even if the key is never read. For a key with a
/// problem, a getter returns a placeholder. [`Reader::finish`] then returns the problems instead of the
/// settings, so no placeholder is ever used.
pub struct Reader<'a> {
    resolved: &'a Resolved,
    values: BTreeMap<&'static str, Value>,
    problems: Vec<Problem>,
}

impl<'a> Reader<'a> {
    /// Validates every key.
    #[must_use]
    pub fn new(resolved: &'a Resolved) -> Self {
        let mut reader = Self { resolved, values: BTreeMap::new(), problems: resolved.problems.clone() };
        for Entry { key, text } in &resolved.entries {
            match text {
                Text::Found(text, origin) => match Value::of(key, text) {
                    Ok(value) => {
                        reader.values.insert(key.name(), value);
                    }
                    Err(sentences) => {
                        for sentence in sentences {
                            reader.problems.push(Problem::new(spelled(key, origin), sentence));
                        }
                    }
                },
                // If a source could not be read, it may have contained this key, so the key is not
                // reported as missing.
                Text::Absent if !resolved.incomplete => reader.problems.push(missing(key)),
                Text::Absent | Text::Unusable => {}
            }
        }

        reader
    }

    /// The URI under `name`.
    pub fn uri(&mut self, name: &'static str) -> Uri {
        let value = self.get(name, |value| match value {
            Value::Uri(uri) => Some(uri.clone()),
            _ => None,
        });
        value.unwrap_or_else(Uri::absent)
    }

    /// The duration under `name`.
    pub fn duration(&mut self, name: &'static str) -> Duration {
        let value = self.get(name, |value| match value {
            Value::Duration(duration) => Some(*duration),
            _ => None,
        });
        value.unwrap_or_default()
    }

    /// The whole number under `name`, in any integer type that can hold every value within the key's
    /// bounds.
    pub fn integer<T: TryFrom<u64> + Default>(&mut self, name: &'static str) -> T {
        let value = self.get(name, |value| match value {
            Value::Integer(number) => T::try_from(*number).ok(),
            _ => None,
        });
        value.unwrap_or_default()
    }

    /// The boolean under `name`.
    pub fn boolean(&mut self, name: &'static str) -> bool {
        let value = self.get(name, |value| match value {
            Value::Boolean(boolean) => Some(*boolean),
            _ => None,
        });
        value.unwrap_or_default()
    }

    /// The choice under `name`.
    pub fn choice<T: FromStr + Default>(&mut self, name: &'static str) -> T {
        let value = self.get(name, |value| match value {
            Value::Choice(chosen) => chosen.parse().ok(),
            _ => None,
        });
        value.unwrap_or_default()
    }

    /// The text under `name`.
    pub fn string(&mut self, name: &'static str) -> String {
        let value = self.get(name, |value| match value {
            Value::Text(text) => Some(text.clone()),
            _ => None,
        });
        value.unwrap_or_default()
    }

    /// The path under `name`; `None` if it is empty.
    pub fn path(&mut self, name: &'static str) -> Option<PathBuf> {
        Some(self.string(name)).filter(|path| !path.is_empty()).map(PathBuf::from)
    }

    /// The texts under `name`.
    pub fn strings(&mut self, name: &'static str) -> Vec<String> {
        let value = self.get(name, |value| match value {
            Value::List(texts) => Some(texts.clone()),
            _ => None,
        });
        value.unwrap_or_default()
    }

    /// The patterns of namespaces under `name`.
    pub fn namespaces(&mut self, name: &'static str) -> Vec<NamespacePattern> {
        let value = self.get(name, |value| match value {
            Value::Namespaces(patterns) => Some(patterns.clone()),
            _ => None,
        });
        value.unwrap_or_default()
    }

    /// Reports that the values of `keys` don't go together, or that a single value breaks one of the
    /// daemon's rules.
    ///
    /// The problem is attached to the first of `keys`, and the sentence continues from there: "must be
    /// shorter than delay (15s); shorten it". The problem is dropped if any of `keys` has no valid value,
    /// because a problem was already reported for that key.
    pub fn problem(&mut self, keys: &[&'static str], sentence: impl Into<String>) {
        let unknown = keys.iter().copied().find(|name| self.entry(name).is_none());
        if let Some(name) = unknown {
            return self.defect(name);
        }
        let Some(first) = keys.first().and_then(|name| self.entry(name)) else {
            return;
        };
        if let Text::Found(_, origin) = &first.text
            && keys.iter().all(|name| self.values.contains_key(name))
        {
            self.problems.push(Problem::new(spelled(&first.key, origin), sentence));
        }
    }

    /// Returns `settings` if there are no problems.
    ///
    /// # Errors
    /// Returns all problems at once.
    pub fn finish<T>(self, settings: T) -> Result<T, Problems> {
        if self.problems.is_empty() { Ok(settings) } else { Err(Problems(self.problems)) }
    }

    fn entry(&self, name: &str) -> Option<&'a Entry> {
        self.resolved.entries.iter().find(|entry| entry.key.name() == name)
    }

    /// The value; `None` if the key already has a problem. If the caller expects another kind than the
    /// table declares, this is reported as a problem.
    fn get<T>(&mut self, name: &'static str, take: impl FnOnce(&Value) -> Option<T>) -> Option<T> {
        let taken = match self.values.get(name) {
            Some(value) => take(value),
            None if self.entry(name).is_some() => return None,
            None => None,
        };
        if taken.is_none() {
            self.defect(name);
        }
        taken
    }

    /// Reports that the program reads a key as another kind than its table declares. Any test that
    /// reads the settings finds this defect.
    fn defect(&mut self, name: &str) {
        let kind = self.entry(name).map_or("nothing", |entry| entry.key.kind().noun());
        let sentence = format!(
            "is declared as {kind} but read as another kind; this is a defect of the program, please report it"
        );
        self.problems.push(Problem::new(name, sentence));
    }
}

impl fmt::Debug for Reader<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader")
            .field("settings", &self.resolved.summary())
            .field("problems", &self.problems)
            .finish_non_exhaustive()
    }
}

fn missing(key: &Key) -> Problem {
    let sentence = format!(
        "is missing; set {} in the environment, {} on the command line, or {} in the file that --config names",
        key.env(),
        key.flag(),
        key.name()
    );
    Problem::new(key.name(), sentence)
}
