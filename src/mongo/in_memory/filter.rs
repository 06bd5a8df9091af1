//! Decides whether a filter matches a document, as a MongoDB server does.
//!
//! Only the operators that the library sends, and the common ones of filters that an application sends, are
//! interpreted. Any other operator is refused by its name when a filter is [checked](check), before any document is
//! read.

use std::cmp::Ordering;

use mongodb::bson::{Bson, Document};

use super::{
    compare::{compare, equal, is_same_type},
    refused::{BAD_VALUE, Refused},
};

const LOGICAL: [&str; 3] = ["$and", "$or", "$nor"];
/// The field of an element that an `$all` with several `$elemMatch` names.
const ELEM_MATCH: &str = "$elemMatch";

/// Checks that every part of a filter is interpreted and has the right form.
pub(super) fn check(filter: &Document) -> Result<(), Refused> {
    for (name, operand) in filter {
        if LOGICAL.contains(&name.as_str()) {
            for filter in documents(operand)? {
                check(filter)?;
            }
        } else if name.starts_with('$') {
            return Err(not_interpreted(name));
        } else {
            check_condition(operand)?;
        }
    }
    Ok(())
}

/// Checks a condition, which is a value or a document of operators.
pub(super) fn check_condition(condition: &Bson) -> Result<(), Refused> {
    let Some(operators) = operators_of(condition) else { return check_value(condition) };
    for (operator, operand) in operators {
        match operator.as_str() {
            "$eq" | "$ne" => check_value(operand)?,
            "$in" | "$nin" => array(operand)?.iter().try_for_each(check_value)?,
            "$gt" | "$gte" | "$lt" | "$lte" | "$exists" => {}
            "$not" => match operators_of(operand) {
                Some(_) => check_condition(operand)?,
                None => return Err(Refused::new(BAD_VALUE, "$not needs a regex or a document")),
            },
            "$size" => check_size(operand)?,
            ELEM_MATCH => check_element(operand)?,
            "$all" => {
                for wanted in array(operand)? {
                    element_filter(wanted).map_or_else(|| check_value(wanted), check_element)?;
                }
            }
            other => return Err(not_interpreted(other)),
        }
    }
    Ok(())
}

fn check_element(operand: &Bson) -> Result<(), Refused> {
    let Some(filter) = operand.as_document() else {
        return Err(Refused::new(BAD_VALUE, "$elemMatch needs an Object"));
    };
    if is_condition(filter) { check_condition(operand) } else { check(filter) }
}

fn check_value(value: &Bson) -> Result<(), Refused> {
    if matches!(value, Bson::RegularExpression(_)) {
        return Err(Refused::not_interpreted("a regular expression in a filter"));
    }
    Ok(())
}

fn check_size(operand: &Bson) -> Result<(), Refused> {
    match operand {
        Bson::Int32(0..) | Bson::Int64(0..) => Ok(()),
        Bson::Double(number) if *number >= 0.0 && number.fract() == 0.0 => Ok(()),
        other => {
            Err(Refused::new(BAD_VALUE, format!("Expected a non-negative whole number in: $size: {other}")))
        }
    }
}

fn not_interpreted(operator: &str) -> Refused {
    Refused::not_interpreted(format_args!("`{operator}` in a filter"))
}

fn documents(operand: &Bson) -> Result<Vec<&Document>, Refused> {
    let documents: Option<Vec<&Document>> = array(operand)?.iter().map(Bson::as_document).collect();
    match documents {
        Some(documents) if !documents.is_empty() => Ok(documents),
        _ => Err(Refused::new(BAD_VALUE, "$and/$or/$nor entries need to be full objects")),
    }
}

fn array(operand: &Bson) -> Result<&Vec<Bson>, Refused> {
    operand.as_array().ok_or_else(|| Refused::new(BAD_VALUE, "the operator needs an array"))
}

/// The operators of a condition. `None` if the condition is a value.
pub(super) fn operators_of(condition: &Bson) -> Option<&Document> {
    let operators = condition.as_document()?;
    operators.keys().next()?.starts_with('$').then_some(operators)
}

/// Whether the operand of an `$elemMatch` is a condition on values, and not a filter on sub-documents.
fn is_condition(operand: &Document) -> bool {
    let first = operand.keys().next();
    first.is_some_and(|name| name.starts_with('$') && !LOGICAL.contains(&name.as_str()))
}

/// The filter of an `$elemMatch` that is an element of an `$all`.
fn element_filter(wanted: &Bson) -> Option<&Bson> {
    wanted.as_document()?.get(ELEM_MATCH)
}

/// A value at the end of a path. `None` if the path leads to no value in this branch.
#[derive(Clone, Copy)]
struct Leaf<'a> {
    value: Option<&'a Bson>,
    /// Whether a condition on the value also applies to the elements of an array. It doesn't if the path ends with the
    /// index of the value.
    is_spread: bool,
}

/// Whether the filter matches the document. The filter must have been checked.
pub(super) fn matches(filter: &Document, document: &Document) -> bool {
    filter.iter().all(|(name, operand)| match name.as_str() {
        "$and" => filters(operand).all(|filter| matches(filter, document)),
        "$or" => filters(operand).any(|filter| matches(filter, document)),
        "$nor" => !filters(operand).any(|filter| matches(filter, document)),
        path => {
            let path: Vec<&str> = path.split('.').collect();
            let mut leaves = Vec::new();
            leaves_of(document, &path, &mut leaves);
            meets(operand, &leaves)
        }
    })
}

fn filters(operand: &Bson) -> impl Iterator<Item = &Document> {
    values(operand).iter().filter_map(Bson::as_document)
}

fn values(operand: &Bson) -> &[Bson] {
    operand.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// Follows a path through sub-documents, and through the elements of arrays.
fn leaves_of<'a>(document: &'a Document, path: &[&str], leaves: &mut Vec<Leaf<'a>>) {
    let [field, rest @ ..] = path else { return };
    match (document.get(*field), rest) {
        (Some(Bson::Document(inner)), [_, ..]) => leaves_of(inner, rest, leaves),
        (Some(Bson::Array(elements)), [_, ..]) => leaves_in(elements, rest, leaves),
        (value, []) => leaves.push(Leaf { value, is_spread: true }),
        (Some(_) | None, [_, ..]) => leaves.push(Leaf { value: None, is_spread: true }),
    }
}

/// Follows a path into every sub-document of an array, and into the element with the path's index.
fn leaves_in<'a>(elements: &'a [Bson], path: &[&str], leaves: &mut Vec<Leaf<'a>>) {
    let [field, rest @ ..] = path else { return };
    for (index, element) in elements.iter().enumerate() {
        if let Bson::Document(inner) = element {
            leaves_of(inner, path, leaves);
        }
        if index_of(field) != Some(index) {
            continue;
        }
        match (element, rest) {
            (_, []) => leaves.push(Leaf { value: Some(element), is_spread: false }),
            (Bson::Document(inner), _) => leaves_of(inner, rest, leaves),
            (Bson::Array(inner), _) => leaves_in(inner, rest, leaves),
            _ => {}
        }
    }
}

/// The index that a part of a path names, if it is one.
pub(super) fn index_of(part: &str) -> Option<usize> {
    if part.len() > 1 && part.starts_with('0') {
        return None;
    }
    part.parse().ok()
}

/// Whether the values meet the condition.
fn meets(condition: &Bson, leaves: &[Leaf<'_>]) -> bool {
    match operators_of(condition) {
        None => is_equal(condition, leaves),
        Some(operators) => operators.iter().all(|(operator, operand)| is_met(operator, operand, leaves)),
    }
}

fn is_met(operator: &str, operand: &Bson, leaves: &[Leaf<'_>]) -> bool {
    match operator {
        "$eq" => is_equal(operand, leaves),
        "$ne" => !is_equal(operand, leaves),
        "$in" => values(operand).iter().any(|wanted| is_equal(wanted, leaves)),
        "$nin" => !values(operand).iter().any(|wanted| is_equal(wanted, leaves)),
        "$gt" => is_ordered(operand, leaves, Ordering::is_gt),
        "$gte" => is_ordered(operand, leaves, Ordering::is_ge),
        "$lt" => is_ordered(operand, leaves, Ordering::is_lt),
        "$lte" => is_ordered(operand, leaves, Ordering::is_le),
        "$exists" => leaves.iter().any(|leaf| leaf.value.is_some()) == is_true(operand),
        "$not" => !meets(operand, leaves),
        "$size" => arrays(leaves).any(|array| is_size(array.len(), operand)),
        ELEM_MATCH => has_element(operand, leaves),
        "$all" => !values(operand).is_empty() && values(operand).iter().all(|wanted| has(wanted, leaves)),
        // The check has refused every other operator.
        _ => false,
    }
}

/// The values that a condition applies to: the values themselves, and the elements of arrays.
fn spread<'a>(leaves: &[Leaf<'a>]) -> Vec<Option<&'a Bson>> {
    let mut values = Vec::new();
    for leaf in leaves {
        if leaf.is_spread
            && let Some(Bson::Array(elements)) = leaf.value
        {
            values.extend(elements.iter().map(Some));
        }
        values.push(leaf.value);
    }
    values
}

fn is_equal(wanted: &Bson, leaves: &[Leaf<'_>]) -> bool {
    spread(leaves).into_iter().any(|value| match value {
        Some(value) => equal(value, wanted),
        None => *wanted == Bson::Null,
    })
}

fn is_ordered(bound: &Bson, leaves: &[Leaf<'_>], is_wanted: fn(Ordering) -> bool) -> bool {
    spread(leaves).into_iter().any(|value| {
        let value = value.unwrap_or(&Bson::Null);
        is_same_type(value, bound) && is_wanted(compare(value, bound))
    })
}

/// Whether an operand such as the one of `$exists` is true. A server accepts any number.
pub(super) fn is_true(operand: &Bson) -> bool {
    match operand {
        Bson::Boolean(value) => *value,
        Bson::Null | Bson::Undefined => false,
        number => !equal(number, &Bson::Int32(0)),
    }
}

fn arrays<'a>(leaves: &[Leaf<'a>]) -> impl Iterator<Item = &'a Vec<Bson>> {
    leaves.iter().filter_map(|leaf| leaf.value?.as_array())
}

fn is_size(length: usize, operand: &Bson) -> bool {
    i64::try_from(length).is_ok_and(|length| equal(&Bson::Int64(length), operand))
}

fn has(wanted: &Bson, leaves: &[Leaf<'_>]) -> bool {
    match element_filter(wanted) {
        Some(filter) => has_element(filter, leaves),
        None => is_equal(wanted, leaves),
    }
}

fn has_element(operand: &Bson, leaves: &[Leaf<'_>]) -> bool {
    let Some(filter) = operand.as_document() else { return false };
    arrays(leaves).flatten().any(|element| {
        if is_condition(filter) {
            return meets(operand, &[Leaf { value: Some(element), is_spread: false }]);
        }
        match element {
            Bson::Document(document) => matches(filter, document),
            // An array counts as a document whose fields are named by the indexes.
            Bson::Array(elements) => {
                let fields = elements.iter().enumerate();
                let fields = fields.map(|(index, value)| (index.to_string(), value.clone()));
                matches(filter, &fields.collect())
            }
            _ => false,
        }
    })
}

#[cfg(test)]
mod tests {
    use mongodb::bson::{DateTime, Regex, doc};

    use super::*;

    fn is_match(filter: Document, document: &Document) -> bool {
        check(&filter).unwrap();
        matches(&filter, document)
    }

    #[test]
    fn a_null_matches_an_absent_field() {
        let document = doc! { "a": null, "b": [], "c": [{ "d": 1 }, {}] };
        assert!(is_match(doc! { "a": null, "x": null, "c.d": null }, &document));
        assert!(is_match(doc! { "x": { "$in": [null, 1] }, "a": { "$exists": true } }, &document));
        assert!(!is_match(doc! { "b": null }, &document));
        assert!(is_match(doc! { "x": { "$exists": false }, "b": { "$not": { "$gt": 1 } } }, &document));
    }

    #[test]
    fn a_path_enters_arrays_by_element_and_by_index() {
        let document = doc! { "outbox": [{ "id": 1 }, { "id": 2, "keys": ["a", "b"] }] };
        assert!(is_match(
            doc! { "outbox.id": 2, "outbox.1.id": 2, "outbox.2": { "$exists": false } },
            &document
        ));
        assert!(!is_match(doc! { "outbox.0.id": 2 }, &document));
        assert!(is_match(doc! { "outbox.keys": ["a", "b"], "outbox.1.keys": "b" }, &document));
        assert!(is_match(doc! { "outbox": { "$size": 2 }, "outbox.1.keys.0": "a" }, &document));
    }

    #[test]
    fn one_element_must_meet_the_whole_condition() {
        let now = DateTime::from_millis(10);
        let document = doc! { "outbox": [{ "id": 1, "at": now }, { "id": 2 }, [{ "id": 3 }], 4] };
        let element = |filter: Document| is_match(doc! { "outbox": { "$elemMatch": filter } }, &document);
        assert!(element(doc! { "id": 1, "at": { "$gte": now } }) && !element(doc! { "id": 2, "at": now }));
        assert!(element(doc! { "id": 2, "$or": [{ "at": null }, { "at": 5 }] }));
        assert!(!element(doc! { "id": 3 }) && element(doc! { "0.id": 3 }) && element(doc! { "$gt": 3 }));
        let all =
            |filters: [Document; 2]| is_match(doc! { "outbox": { "$all": filters.to_vec() } }, &document);
        let of = |id: i32| doc! { "$elemMatch": { "id": id } };
        assert!(all([of(1), of(2)]) && !all([of(1), of(7)]));
    }

    #[test]
    fn only_values_of_one_type_are_compared() {
        let document = doc! { "at": DateTime::from_millis(10), "n": 5 };
        assert!(is_match(doc! { "at": { "$gt": DateTime::from_millis(9) }, "n": { "$lt": 5.5 } }, &document));
        assert!(
            !is_match(doc! { "at": { "$gt": 1 } }, &document)
                && !is_match(doc! { "n": { "$lt": "6" } }, &document)
        );
        assert!(is_match(
            doc! { "$nor": [{ "n": 4 }, { "at": { "$lte": 1 } }], "$and": [{ "n": { "$ne": 4 } }] },
            &document
        ));
    }

    #[test]
    fn an_unknown_operator_is_refused_by_name() {
        let regex = Regex { pattern: "a".into(), options: "".into() };
        for (filter, named) in [
            (doc! { "$expr": true }, "`$expr`"),
            (doc! { "a": { "$type": "string" } }, "`$type`"),
            (doc! { "a": { "$elemMatch": { "b": { "$mod": [2, 0] } } } }, "`$mod`"),
            (doc! { "a": Bson::RegularExpression(regex) }, "regular expression"),
        ] {
            let refused = check(&filter).unwrap_err().to_string();
            assert!(refused.contains(named) && refused.contains("real MongoDB"), "{refused}");
        }
    }
}
