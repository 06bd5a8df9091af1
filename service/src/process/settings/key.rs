//! A key: one row of a daemon's table of settings.

use std::{ops::RangeInclusive, time::Duration};

use strum::VariantNames;

use super::uri::Scheme;

/// Checks a text. The error is a sentence that starts with a verb: "is longer than 255 bytes; shorten it".
pub type Check = fn(&str) -> Result<(), String>;

/// One setting: its name, meaning, accepted values and default.
#[derive(Clone, Debug)]
pub struct Key {
    name: &'static str,
    help: &'static str,
    kind: Kind,
    default: Option<&'static str>,
    fallback_env: Option<&'static str>,
}

impl Key {
    /// Creates a required key. `name` is in snake case; `help` is a sentence or two.
    #[must_use]
    pub fn new(name: &'static str, kind: Kind, help: &'static str) -> Self {
        Self { name, help, kind, default: None, fallback_env: None }
    }

    /// Makes the key optional. An empty default also allows empty values.
    #[must_use]
    pub fn with_default(mut self, default: &'static str) -> Self {
        self.default = Some(default);
        self
    }

    /// Names an environment variable that does not begin with `OUTBOX_`. The variable is read if no flag,
    /// `OUTBOX_` variable or file sets the key.
    #[must_use]
    pub fn with_fallback_env(mut self, variable: &'static str) -> Self {
        self.fallback_env = Some(variable);
        self
    }

    /// The name in the file: `shutdown_grace`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The name in the environment: `OUTBOX_SHUTDOWN_GRACE`.
    #[must_use]
    pub fn env(&self) -> String {
        format!("OUTBOX_{}", self.name.to_ascii_uppercase())
    }

    /// The name on the command line: `--shutdown-grace`.
    #[must_use]
    pub fn flag(&self) -> String {
        format!("--{}", self.long())
    }

    /// The meaning of the setting.
    #[must_use]
    pub fn help(&self) -> &'static str {
        self.help
    }

    /// The kind of value that the setting takes.
    #[must_use]
    pub fn kind(&self) -> &Kind {
        &self.kind
    }

    /// The default; `None` for a required key.
    #[must_use]
    pub fn default(&self) -> Option<&'static str> {
        self.default
    }

    /// The variable named with [`Key::with_fallback_env`].
    #[must_use]
    pub fn fallback_env(&self) -> Option<&'static str> {
        self.fallback_env
    }

    pub(super) fn long(&self) -> String {
        self.name.replace('_', "-")
    }
}

/// The kinds of values.
#[derive(Clone, Debug)]
pub enum Kind {
    /// A URI that holds a secret.
    Uri(Scheme),
    /// A duration with its unit: `250ms`, `15s`, `1h`. Bounds are inclusive.
    Duration(RangeInclusive<Duration>),
    /// A whole number. Bounds are inclusive.
    Integer(RangeInclusive<u64>),
    /// `true` or `false`; the bare flag means `true`.
    Boolean,
    /// One of these names; see [`Kind::choice`].
    Choice(&'static [&'static str]),
    /// A text that passes the check.
    Text(Check),
    /// A list of texts, separated by commas or as a TOML array. Each item must pass the check.
    List(Check),
    /// Patterns of namespaces, separated by commas or as a TOML array; see
    /// [`NamespacePattern`](crate::NamespacePattern).
    Namespaces,
}

impl Kind {
    /// The kind of a setting whose value is the name of one of the variants of `T`.
    #[must_use]
    pub fn choice<T: VariantNames>() -> Self {
        Self::Choice(T::VARIANTS)
    }

    pub(super) fn is_list(&self) -> bool {
        matches!(self, Self::List(_) | Self::Namespaces)
    }

    pub(super) fn noun(&self) -> &'static str {
        match self {
            Self::Uri(_) => "URI",
            Self::Duration(_) => "duration",
            Self::Integer(_) => "number",
            Self::Boolean => "true or false",
            Self::Choice(_) => "choice",
            Self::Text(_) => "text",
            Self::List(_) => "list",
            Self::Namespaces => "list of namespaces",
        }
    }

    /// The accepted values with their bounds, as in "a duration from 1s to 1h". `None` for a text, whose
    /// help describes the accepted values.
    pub(super) fn takes(&self) -> Option<String> {
        let print = humantime::format_duration;
        let takes = match self {
            Self::Uri(scheme) => format!("a URI: {}", scheme.prefixes().join(" or ")),
            Self::Duration(bounds) => {
                format!("a duration from {} to {}", print(*bounds.start()), print(*bounds.end()))
            }
            Self::Integer(bounds) => format!("a whole number from {} to {}", bounds.start(), bounds.end()),
            Self::Boolean => "true or false".into(),
            Self::Choice(names) => format!("one of {}", names.join(", ")),
            Self::Text(_) => return None,
            Self::List(_) => "a list of texts".into(),
            Self::Namespaces => {
                "a list of namespaces: database.collection, or database.* for all of a database".into()
            }
        };
        Some(takes)
    }

    /// An accepted text, as an example for keys without a default.
    pub(super) fn example(&self) -> &'static str {
        match self {
            Self::Uri(scheme) => scheme.example(),
            Self::Duration(_) => "1s",
            Self::Integer(_) => "1",
            Self::Boolean => "true",
            Self::Choice(names) => names.first().copied().unwrap_or_default(),
            Self::Text(_) => "text",
            Self::List(_) => "one,two",
            Self::Namespaces => "shop.orders,shop.stock",
        }
    }
}

/// A check that accepts any text.
#[expect(clippy::unnecessary_wraps, reason = "a Check, as others are")]
pub(super) fn accept_any(_: &str) -> Result<(), String> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_one_name_in_three_spellings() {
        let key = Key::new("shutdown_grace", Kind::Boolean, "");
        assert_eq!(
            (key.name(), key.env().as_str(), key.flag().as_str()),
            ("shutdown_grace", "OUTBOX_SHUTDOWN_GRACE", "--shutdown-grace")
        );
    }
}
