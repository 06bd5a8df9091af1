//! The place of a value in a document.

use std::fmt;

/// Keys of elements that an aggregate declares: a path, and the field of the elements there.
pub(crate) type Keys = &'static [(&'static str, &'static str)];

/// The place of a value: names of fields, with dots. An element of an array has the array's path.
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

    /// The declared key of the elements here.
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
