//! The paths of an update, and the array filters that they use.

use std::{cmp::Ordering, collections::BTreeMap};

use mongodb::bson::{Bson, Document};

use super::{
    filter::{check, index_of, matches},
    refused::{BAD_VALUE, EMPTY_FIELD_NAME, FAILED_TO_PARSE, Refused},
};

/// A part of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// A field, or the index of an element.
    Field(String),
    /// `$[]`: every element.
    Every,
    /// `$[identifier]`: the elements that an array filter selects.
    Selected(String),
}

impl Step {
    fn name(&self) -> String {
        match self {
            Self::Field(name) => name.clone(),
            Self::Every => "$[]".into(),
            Self::Selected(identifier) => format!("$[{identifier}]"),
        }
    }
}

/// Splits a path into its parts.
pub(super) fn steps(path: &str) -> Result<Vec<Step>, Refused> {
    let mut steps = Vec::new();
    for part in path.split('.') {
        steps.push(match part {
            "" => {
                let text = format!("the update path '{path}' contains an empty field name");
                return Err(Refused::new(EMPTY_FIELD_NAME, text));
            }
            "$" => return Err(Refused::not_interpreted("the positional operator `$` in an update")),
            "$[]" => Step::Every,
            part => match part.strip_prefix("$[").and_then(|rest| rest.strip_suffix(']')) {
                Some(identifier) => Step::Selected(identifier.to_owned()),
                None => Step::Field(part.to_owned()),
            },
        });
    }
    Ok(steps)
}

/// Joins the parts of a path.
pub(super) fn text_of(path: &[Step]) -> String {
    let names: Vec<_> = path.iter().map(Step::name).collect();
    names.join(".")
}

/// The order in which a server applies the fields of an update: by name, and indexes by number.
pub(super) fn in_order(one: &[Step], other: &[Step]) -> Ordering {
    for (step, other_step) in one.iter().zip(other) {
        let (name, other_name) = (step.name(), other_step.name());
        let order = match (index_of(&name), index_of(&other_name)) {
            (Some(index), Some(other_index)) => index.cmp(&other_index),
            _ => name.cmp(&other_name),
        };
        if order != Ordering::Equal {
            return order;
        }
    }
    one.len().cmp(&other.len())
}

/// The filters of array elements, by the identifier that paths use.
#[derive(Debug)]
pub(super) struct ArrayFilters(BTreeMap<String, Document>);

impl ArrayFilters {
    /// Names each filter by the first part of its paths.
    pub(super) fn of(filters: &[Document]) -> Result<Self, Refused> {
        let mut named = BTreeMap::new();
        for filter in filters {
            let identifier = identifier_of(filter)?;
            check(filter)?;
            if named.insert(identifier.to_owned(), filter.clone()).is_some() {
                let text =
                    format!("Found multiple array filters with the same top-level field name {identifier}");
                return Err(Refused::new(FAILED_TO_PARSE, text));
            }
        }
        Ok(Self(named))
    }

    /// A server refuses array filters that no path uses, and paths whose array filter is missing.
    pub(super) fn check_use<'a>(&self, paths: impl Iterator<Item = &'a Vec<Step>>) -> Result<(), Refused> {
        let mut unused: Vec<&String> = self.0.keys().collect();
        for step in paths.flatten() {
            let Step::Selected(identifier) = step else { continue };
            if !self.0.contains_key(identifier) {
                let text = format!("No array filter found for identifier '{identifier}'");
                return Err(Refused::new(BAD_VALUE, text));
            }
            unused.retain(|named| *named != identifier);
        }
        match unused.first() {
            None => Ok(()),
            Some(unused) => {
                let text = format!("The array filter for identifier '{unused}' was not used in the update");
                Err(Refused::new(FAILED_TO_PARSE, text))
            }
        }
    }

    /// Returns the paths of all values that a path selects in a document. Their parts are names of fields and indexes.
    pub(super) fn selected(&self, document: &Bson, path: &[Step]) -> Result<Vec<Vec<String>>, Refused> {
        let mut selected = Vec::new();
        self.select(Some(document), path, &[], &mut selected)?;
        Ok(selected)
    }

    fn select(
        &self,
        value: Option<&Bson>,
        path: &[Step],
        before: &[String],
        selected: &mut Vec<Vec<String>>,
    ) -> Result<(), Refused> {
        let Some((step, rest)) = path.split_first() else {
            selected.push(before.to_vec());
            return Ok(());
        };
        let after = |name: String| [before, &[name]].concat();
        if let Step::Field(name) = step {
            let child = match value {
                Some(Bson::Document(fields)) => fields.get(name),
                Some(Bson::Array(elements)) => index_of(name).and_then(|index| elements.get(index)),
                _ => None,
            };
            return self.select(child, rest, &after(name.clone()), selected);
        }

        for (index, element) in elements_of(value, before)?.iter().enumerate() {
            let is_selected = match step {
                Step::Selected(identifier) => self.selects(identifier, element),
                Step::Every | Step::Field(_) => true,
            };
            if is_selected {
                self.select(Some(element), rest, &after(index.to_string()), selected)?;
            }
        }
        Ok(())
    }

    /// Whether the filter with this identifier selects an element.
    fn selects(&self, identifier: &str, element: &Bson) -> bool {
        let Some(filter) = self.0.get(identifier) else { return false };
        matches(filter, &Document::from_iter([(identifier.to_owned(), element.clone())]))
    }
}

/// The elements of the array at a path.
fn elements_of<'a>(value: Option<&'a Bson>, path: &[String]) -> Result<&'a Vec<Bson>, Refused> {
    let path = path.join(".");
    let text = match value {
        Some(Bson::Array(elements)) => return Ok(elements),
        Some(other) => format!("Cannot apply array updates to non-array element {path}: {other}"),
        None => {
            format!("The path '{path}' must exist in the document in order to apply array updates.")
        }
    };
    Err(Refused::new(BAD_VALUE, text))
}

fn identifier_of(filter: &Document) -> Result<&str, Refused> {
    let mut identifier: Option<&str> = None;
    for path in filter.keys() {
        if path.starts_with('$') {
            return Err(Refused::not_interpreted(format_args!("`{path}` in an array filter")));
        }
        let first = path.split('.').next().unwrap_or_default();
        if identifier.is_some_and(|known| known != first) {
            let text = "Error parsing array filter :: Expected a single top-level field name";
            return Err(Refused::new(FAILED_TO_PARSE, text));
        }
        identifier = Some(first);
    }
    let text = "Cannot use an expression without a top-level field name in arrayFilters";
    identifier.ok_or_else(|| Refused::new(FAILED_TO_PARSE, text))
}
