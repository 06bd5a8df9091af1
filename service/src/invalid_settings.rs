//! The problems that keep a rescuer or a dispatcher from working with its settings, all reported at once.

use std::fmt;

/// A problem with the settings, and how to correct it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SettingsProblem {
    /// The settings that cause the problem. The first of them is the subject of `sentence`.
    pub settings: Vec<&'static str>,
    /// The problem and its correction. The sentence continues from the name of the setting: "must not be
    /// …".
    pub sentence: String,
}

impl fmt::Display for SettingsProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.settings.first().unwrap_or(&"a setting"), self.sentence)
    }
}

/// All problems that keep a program from working with its settings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InvalidSettings(pub Vec<SettingsProblem>);

impl std::error::Error for InvalidSettings {}

impl fmt::Display for InvalidSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sentences: Vec<String> = self.0.iter().map(SettingsProblem::to_string).collect();
        f.write_str(&sentences.join("; "))
    }
}

impl InvalidSettings {
    /// Adds a problem with these settings.
    pub fn add(&mut self, settings: &[&'static str], sentence: impl Into<String>) {
        self.0.push(SettingsProblem { settings: settings.to_vec(), sentence: sentence.into() });
    }

    /// Adds a problem if `is_one` is true.
    pub fn add_if(&mut self, is_one: bool, settings: &[&'static str], sentence: &str) {
        if is_one {
            self.add(settings, sentence);
        }
    }

    /// Returns `Ok` if there are no problems.
    ///
    /// # Errors
    /// Returns the problems, if there are any.
    pub fn into_result(self) -> Result<(), Self> {
        if self.0.is_empty() { Ok(()) } else { Err(self) }
    }
}
