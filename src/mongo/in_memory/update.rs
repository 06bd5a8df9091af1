//! Applies an update to a document, as a MongoDB server does.
//!
//! Only the operators that the library sends, and the common ones of updates that an application sends, are
//! interpreted. Any other operator is refused by its name.
//!
//! The fields of an update are applied in the order of their names, whatever their order in the update, as a server
//! has done since version 5.0. So new fields are stored in that order.

use mongodb::bson::{Bson, DateTime, Document};

use super::{
    assign::apply,
    compare::equal,
    filter::operators_of,
    operation::{Operation, operators},
    path::{ArrayFilters, Step, in_order, steps, text_of},
    pipeline::piped,
    refused::{CONFLICTING_OPERATORS, FAILED_TO_PARSE, IMMUTABLE_FIELD, Refused},
};

/// The operation on one path.
struct FieldUpdate {
    path: Vec<Step>,
    operation: Operation,
}

/// A checked update.
pub(super) enum Updates {
    Operators(OperatorUpdates),
    Pipeline { stages: Vec<Bson>, now: DateTime },
}

/// A checked update that is made of operators.
pub(super) struct OperatorUpdates {
    fields: Vec<FieldUpdate>,
    /// The fields to rename, with their new names.
    renames: Vec<(String, String)>,
    array_filters: ArrayFilters,
}

/// The kind of document that an update applies to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Updating {
    Stored,
    /// A new document, which an upsert inserts.
    New,
}

impl Updates {
    /// Checks an update, which is a document of operators or an array of stages.
    pub(super) fn check(
        update: &Bson,
        array_filters: &[Document],
        now: DateTime,
        updating: Updating,
    ) -> Result<Self, Refused> {
        match update {
            Bson::Document(operators) => {
                OperatorUpdates::check(operators, array_filters, now, updating).map(Self::Operators)
            }
            Bson::Array(stages) if array_filters.is_empty() => {
                Ok(Self::Pipeline { stages: stages.clone(), now })
            }
            _ => {
                let text = "an update is a document, or a pipeline without array filters";
                Err(Refused::new(FAILED_TO_PARSE, text))
            }
        }
    }

    /// Returns the document as the update leaves it.
    pub(super) fn apply_to(&self, document: &Document) -> Result<Document, Refused> {
        let after = match self {
            Self::Operators(operators) => operators.apply_to(document)?,
            Self::Pipeline { stages, now } => piped(document, stages, *now)?,
        };
        check_id(document, &after)?;
        Ok(after)
    }
}

impl OperatorUpdates {
    /// Checks that every part of an update is interpreted and has the right form.
    fn check(
        update: &Document,
        array_filters: &[Document],
        now: DateTime,
        updating: Updating,
    ) -> Result<Self, Refused> {
        let (mut fields, mut renames) = (Vec::new(), Vec::new());
        for (operator, operands) in operators(update)? {
            for (path, operand) in operands {
                match operator.as_str() {
                    "$rename" => renames.push(rename(path, operand)?),
                    "$setOnInsert" if updating == Updating::Stored => {}
                    "$setOnInsert" => fields.push(FieldUpdate::of("$set", path, operand, now)?),
                    operator => fields.push(FieldUpdate::of(operator, path, operand, now)?),
                }
            }
        }

        let array_filters = ArrayFilters::of(array_filters)?;
        array_filters.check_use(fields.iter().map(|update| &update.path))?;
        check_conflicts(&fields, &renames)?;
        Ok(Self { fields, renames, array_filters })
    }

    fn apply_to(&self, document: &Document) -> Result<Document, Refused> {
        let mut fields: Vec<(Vec<Step>, &Operation)> = Vec::new();
        fields.extend(self.fields.iter().map(|field| (field.path.clone(), &field.operation)));
        let renames = self.renames_in(document);
        fields.extend(renames.iter().map(|field| (field.path.clone(), &field.operation)));
        fields.sort_by(|(one, _), (other, _)| in_order(one, other));

        let before = Bson::Document(document.clone());
        let mut after = before.clone();
        for (path, operation) in fields {
            // Select elements of the document as it was, because another operation may have changed a field that an
            // array filter requires.
            for names in self.array_filters.selected(&before, &path)? {
                apply(&mut after, &names, operation)?;
            }
        }
        match after {
            Bson::Document(after) => Ok(after),
            _ => Ok(document.clone()),
        }
    }

    /// The operations that rename the fields of a document.
    fn renames_in(&self, document: &Document) -> Vec<FieldUpdate> {
        let mut updates = Vec::new();
        for (from, to) in &self.renames {
            let Some(value) = document.get(from) else { continue };
            let set = Operation::Set(value.clone());
            for (name, operation) in [(from, Operation::Unset), (to, set)] {
                updates.push(FieldUpdate { path: vec![Step::Field(name.clone())], operation });
            }
        }
        updates
    }
}

fn check_id(before: &Document, after: &Document) -> Result<(), Refused> {
    let is_changed = match (before.get("_id"), after.get("_id")) {
        (Some(before), Some(after)) => !equal(before, after),
        (before, _) => before.is_some(),
    };
    if is_changed {
        let text = "Performing an update on the path '_id' would modify the immutable field '_id'";
        return Err(Refused::new(IMMUTABLE_FIELD, text));
    }
    Ok(())
}

impl FieldUpdate {
    fn of(operator: &str, path: &str, operand: &Bson, now: DateTime) -> Result<Self, Refused> {
        Ok(Self { path: steps(path)?, operation: Operation::of(operator, operand, now)? })
    }
}

/// Returns the old and the new name of a top-level field. A rename inside sub-documents is left to a real server.
fn rename(path: &str, operand: &Bson) -> Result<(String, String), Refused> {
    let to = operand.as_str().unwrap_or_default();
    if path.contains('.') || to.contains('.') || to.is_empty() {
        return Err(Refused::not_interpreted("`$rename` of a field that is not at the top level"));
    }
    Ok((path.to_owned(), to.to_owned()))
}

/// A server refuses an update that writes a field twice, a field and a part of it, or both a field and selected elements
/// of the same value.
fn check_conflicts(fields: &[FieldUpdate], renames: &[(String, String)]) -> Result<(), Refused> {
    let mut paths: Vec<Vec<Step>> = fields.iter().map(|update| update.path.clone()).collect();
    for (from, to) in renames {
        paths.extend([from, to].map(|name| vec![Step::Field(name.clone())]));
    }

    for (place, path) in paths.iter().enumerate() {
        if paths[..place].iter().any(|other| conflicts(path, other)) {
            let text = format!("Updating the path '{}' would create a conflict", text_of(path));
            return Err(Refused::new(CONFLICTING_OPERATORS, text));
        }
    }
    Ok(())
}

fn conflicts(one: &[Step], other: &[Step]) -> bool {
    match one.iter().zip(other).find(|(step, other_step)| step != other_step) {
        // One of the paths is the beginning of the other.
        None => true,
        Some((step, other_step)) => matches!(step, Step::Field(_)) != matches!(other_step, Step::Field(_)),
    }
}

/// The document that an upsert inserts, before its update is applied: the fields that the filter requires to be equal
/// to a value.
pub(super) fn new_document(filter: &Document) -> Document {
    let mut new = Document::new();
    for (name, condition) in filter {
        let value = match operators_of(condition) {
            None => Some(condition),
            Some(operators) => operators.get("$eq"),
        };
        if let Some(value) = value
            && !name.starts_with('$')
        {
            new.insert(name, value.clone());
        }
    }
    new
}

#[cfg(test)]
mod tests {
    use mongodb::bson::doc;

    use super::*;

    const NOW: DateTime = DateTime::from_millis(1_000);

    fn updated(
        document: &Document,
        update: &Document,
        array_filters: &[Document],
        now: DateTime,
        updating: Updating,
    ) -> Result<Document, Refused> {
        let update = Bson::Document(update.clone());
        Updates::check(&update, array_filters, now, updating)?.apply_to(document)
    }

    fn after(document: &Document, update: Document) -> Document {
        updated(document, &update, &[], NOW, Updating::Stored).unwrap()
    }

    fn refusal(update: Document, array_filters: &[Document]) -> String {
        let document = doc! { "_id": 1, "a": 1, "list": [1, 2], "outbox": [{ "id": 1 }] };
        updated(&document, &update, array_filters, NOW, Updating::Stored).unwrap_err().to_string()
    }

    #[test]
    fn new_fields_are_stored_in_the_order_of_names() {
        let update =
            doc! { "$set": { "c": 1, "b.z": 1, "b.a": 1 }, "$inc": { "a": 2_i64 }, "$unset": { "old": "" } };
        let stored = after(&doc! { "_id": 1, "old": 1, "kept": 1 }, update);
        assert_eq!(
            stored.to_string(),
            doc! { "_id": 1, "kept": 1, "a": 2_i64, "b": { "a": 1, "z": 1 }, "c": 1 }.to_string()
        );
    }

    #[test]
    fn arrays_are_appended_to_and_pulled_from() {
        let document =
            doc! { "_id": 1, "outbox": [{ "id": 1, "by": "p" }, { "id": 2 }, 3], "list": [1, 5, 9] };
        let pulled = after(&document, doc! { "$pull": { "outbox": { "id": { "$in": [1, 2] }, "by": "p" } } });
        assert_eq!(pulled.get_array("outbox").unwrap(), &vec![doc! { "id": 2 }.into(), Bson::Int32(3)]);
        let pushed = after(&document, doc! { "$push": { "new": { "$each": [1, 2] }, "list": 4 } });
        assert_eq!((pushed.get_array("new").unwrap().len(), pushed.get_array("list").unwrap().len()), (2, 4));
        let set = after(&document, doc! { "$addToSet": { "list": { "$each": [5_i64, 7, 7] } } });
        assert_eq!(set.get_array("list").unwrap(), &[1, 5, 9, 7].map(Bson::Int32).to_vec());
        let less = after(&document, doc! { "$pull": { "list": { "$gt": 4 } }, "$pop": { "outbox": -1 } });
        assert_eq!((less.get_array("list").unwrap().len(), less.get_array("outbox").unwrap().len()), (1, 2));
    }

    #[test]
    fn array_filters_select_the_elements_to_change() {
        let document = doc! { "_id": 1, "outbox": [{ "id": 1, "claims": 1 }, { "id": 2 }, [{ "id": 1 }]] };
        let update = doc! { "$set": { "outbox.$[e].by": "p" }, "$inc": { "outbox.$[e].claims": 1 } };
        let by_id = |ids: [i32; 1]| {
            updated(&document, &update, &[doc! { "e.id": { "$in": ids.to_vec() } }], NOW, Updating::Stored)
        };
        let stored = by_id([2]).unwrap();
        let expected = doc! { "_id": 1, "outbox": [{ "id": 1, "claims": 1 }, { "id": 2, "by": "p", "claims": 1 }, [{ "id": 1 }]] };
        assert_eq!(stored, expected);
        // The claim that the filter requires is removed by the same update.
        let release = doc! { "$unset": { "outbox.$[e].by": "" }, "$set": { "outbox.$[e].error": "x" } };
        let held = doc! { "_id": 1, "outbox": [{ "by": "p" }, { "by": "q" }] };
        let released = updated(&held, &release, &[doc! { "e.by": "p" }], NOW, Updating::Stored).unwrap();
        assert_eq!(released, doc! { "_id": 1, "outbox": [{ "error": "x" }, { "by": "q" }] });
        // The filter also selects the inner array, which has no field to set.
        assert!(by_id([1]).unwrap_err().to_string().contains("Cannot create field 'by'"));
        let every = after(&document, doc! { "$unset": { "outbox.0": "" } });
        assert_eq!(every.get_array("outbox").unwrap()[0], Bson::Null);
    }

    #[test]
    fn numbers_keep_their_type_while_they_fit() {
        let document = doc! { "_id": 1, "short": 1, "long": 1_i64, "full": i32::MAX, "half": 0.5 };
        let update = doc! { "$inc": { "short": 1, "long": 1, "full": 1, "half": 1 }, "$max": { "at": 3 } };
        let expected =
            doc! { "_id": 1, "short": 2, "long": 2_i64, "full": 2_147_483_648_i64, "half": 1.5, "at": 3 };
        assert_eq!(after(&document, update), expected);
        let update =
            doc! { "$mul": { "short": 4, "new": 2 }, "$min": { "long": 0 }, "$currentDate": { "now": true } };
        let expected =
            doc! { "_id": 1, "short": 4, "long": 0, "full": i32::MAX, "half": 0.5, "new": 0, "now": NOW };
        assert_eq!(after(&document, update), expected);
    }

    #[test]
    fn an_update_that_a_server_refuses_is_refused() {
        for (update, named) in [
            (doc! { "$set": { "a": 1, "a.b": 2 } }, "conflict"),
            (doc! { "$set": { "a.b": 2 } }, "Cannot create field 'b'"),
            (doc! { "$push": { "a": 2 } }, "array"),
            (doc! { "$inc": { "list": 2 } }, "non-numeric"),
            (doc! { "$set": { "_id": 2 } }, "_id"),
            (doc! { "$set": { "none.$[].a": 2 } }, "must exist"),
            (doc! { "$set": { "a.$[].a": 2 } }, "non-array"),
            (doc! { "$set": { "outbox.$[e].a": 2 } }, "No array filter"),
            (doc! { "a": 2 }, "`a`"),
        ] {
            let refused = refusal(update, &[]);
            assert!(refused.contains(named), "{refused}");
        }
        assert!(refusal(doc! { "$set": { "b": 1 } }, &[doc! { "e.id": 1 }]).contains("was not used"));
    }

    #[test]
    fn an_operator_only_a_server_knows_is_refused() {
        for (update, named) in [
            (doc! { "$bit": { "a": { "and": 1 } } }, "`$bit`"),
            (doc! { "$push": { "list": { "$each": [1], "$slice": 2 } } }, "`$slice` of `$push`"),
            (doc! { "$set": { "list.$": 2 } }, "positional"),
            (doc! { "$rename": { "a.b": "c" } }, "`$rename`"),
        ] {
            let refused = refusal(update, &[]);
            assert!(refused.contains(named) && refused.contains("real MongoDB"), "{refused}");
        }
    }
}
