//! The place of a value in a document.

use std::fmt;

/// The element keys that an aggregate declares: pairs of an array's path and the key field of its elements.
pub(crate) type Keys = &'static [(&'static str, &'static str)];

/// The path of a value: field names joined by dots. An array element has the path of its array.
pub(crate) struct FieldPath<'a> {
    parent: Option<&'a FieldPath<'a>>,
    name: &'a str,
    keys: Keys,
}

impl<'a> FieldPath<'a> {
    pub(crate) fn of(name: &'a str, keys: Keys) -> Self {
        Self { parent: None, name, keys }
    }

    pub(super) fn then(&'a self, name: &'a str) -> Self {
        Self { parent: Some(self), name, keys: self.keys }
    }

    /// The declared key of the elements at this path.
    pub(super) fn key(&self) -> Option<&'static str> {
        if self.keys.is_empty() {
            return None;
        }
        let path = self.to_string();
        self.keys.iter().find(|(of, _)| *of == path).map(|(_, key)| *key)
    }
}

impl fmt::Display for FieldPath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            write!(f, "{parent}.")?;
        }
        f.write_str(self.name)
    }
}
