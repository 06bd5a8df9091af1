//! Problems of the settings, in sentences for the user.

use std::fmt;

/// A problem to correct.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The key in the form that the user gave: `--delay`, `OUTBOX_DELAY`, `outbox.toml:delay`.
    pub key: String,
    /// The problem and its correction.
    pub sentence: String,
}

impl Problem {
    pub(super) fn new(key: impl Into<String>, sentence: impl Into<String>) -> Self {
        Self { key: key.into(), sentence: sentence.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.sentence)
    }
}

/// All problems, one line each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl std::error::Error for Problems {}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            1 => f.write_str("The settings have a problem:")?,
            count => write!(f, "The settings have {count} problems:")?,
        }
        self.0.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_problems_are_listed_one_a_line() {
        let problems = Problems(vec![Problem::new("--delay", "is bad."), Problem::new("watch", "is worse.")]);
        assert_eq!(
            problems.to_string(),
            "The settings have 2 problems:\n  --delay: is bad.\n  watch: is worse."
        );
    }
}
