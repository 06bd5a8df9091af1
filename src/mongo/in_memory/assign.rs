//! Applies one operation of an update to the value at a path.

use mongodb::bson::{Bson, Document};

use super::{
    filter::index_of,
    operation::{Edit, Operation},
    refused::{PATH_NOT_VIABLE, Refused},
};

/// The largest number of nulls that a server adds to an array to reach an index.
const MOST_NULLS: usize = 1_500_000;

/// Applies the operation to the value at the path, whose parts are names of fields and indexes.
pub(super) fn apply(parent: &mut Bson, path: &[String], operation: &Operation) -> Result<(), Refused> {
    let [name, rest @ ..] = path else { return Ok(()) };
    match parent {
        Bson::Document(fields) => in_document(fields, name, rest, operation),
        Bson::Array(elements) => in_array(elements, name, rest, operation),
        _ if operation.ignores_dead_ends() => Ok(()),
        other => {
            let text = format!("Cannot create field '{name}' in element {other}");
            Err(Refused::new(PATH_NOT_VIABLE, text))
        }
    }
}

fn in_document(
    fields: &mut Document,
    name: &str,
    rest: &[String],
    operation: &Operation,
) -> Result<(), Refused> {
    if rest.is_empty() {
        match operation.edit(fields.get(name))? {
            Edit::Keep => {}
            Edit::Set(value) => _ = fields.insert(name, value),
            Edit::Remove => _ = fields.remove(name),
        }
        return Ok(());
    }

    if let Some(inner) = fields.get_mut(name) {
        return apply(inner, rest, operation);
    }
    if operation.creates() {
        fields.insert(name, created(rest, operation)?);
    }
    Ok(())
}

/// Builds the value that an operation creates, with the sub-documents that the path needs.
fn created(rest: &[String], operation: &Operation) -> Result<Bson, Refused> {
    if rest.is_empty() {
        return Ok(match operation.edit(None)? {
            Edit::Set(value) => value,
            Edit::Keep | Edit::Remove => Bson::Null,
        });
    }
    let mut document = Bson::Document(Document::new());
    apply(&mut document, rest, operation)?;
    Ok(document)
}

/// Applies the operation to the element with an index.
fn in_array(
    elements: &mut Vec<Bson>,
    name: &str,
    rest: &[String],
    operation: &Operation,
) -> Result<(), Refused> {
    let Some(index) = index_of(name) else {
        if operation.ignores_dead_ends() {
            return Ok(());
        }
        let text = format!("Cannot create field '{name}' in an element that is an array");
        return Err(Refused::new(PATH_NOT_VIABLE, text));
    };

    if let Some(element) = elements.get_mut(index) {
        if !rest.is_empty() {
            return apply(element, rest, operation);
        }
        match operation.edit(Some(element))? {
            Edit::Keep => {}
            Edit::Set(value) => *element = value,
            // An element that is unset stays in the array, as a null.
            Edit::Remove => *element = Bson::Null,
        }
        return Ok(());
    }

    if !operation.creates() {
        return Ok(());
    }
    if index - elements.len() > MOST_NULLS {
        return Err(Refused::new(PATH_NOT_VIABLE, "the update would add too many nulls to an array"));
    }
    let new = created(rest, operation)?;
    elements.resize(index, Bson::Null);
    elements.push(new);
    Ok(())
}
