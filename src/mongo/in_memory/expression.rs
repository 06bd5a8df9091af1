//! Evaluates an aggregation expression, as a MongoDB server does.
//!
//! Only the operators that the library sends are interpreted. Any other operator is refused by its name.

use std::cmp::Ordering;

use mongodb::bson::{Bson, DateTime, Document};

use super::{
    compare::{compare, equal},
    filter::is_true,
    refused::Refused,
};
use crate::encoding::codec;

/// The variables of an expression.
pub(super) struct Scope<'a> {
    /// `$$ROOT`, whose fields are also read by paths with one dollar sign.
    root: &'a Document,
    /// `$$NOW`.
    now: DateTime,
    /// The variable of the innermost `$filter` or `$map`.
    element: Option<(&'a str, &'a Bson)>,
}

impl<'a> Scope<'a> {
    pub(super) fn of(root: &'a Document, now: DateTime) -> Self {
        Self { root, now, element: None }
    }

    fn with(&self, name: &'a str, element: &'a Bson) -> Self {
        Self { root: self.root, now: self.now, element: Some((name, element)) }
    }

    /// Returns the value of an expression. `None` if the expression is an absent field.
    pub(super) fn value(&self, expression: &Bson) -> Result<Option<Bson>, Refused> {
        match expression {
            Bson::String(text) => match text.strip_prefix('$') {
                Some(path) => self.at(path),
                None => Ok(Some(expression.clone())),
            },
            Bson::Array(elements) => {
                let mut values = Vec::with_capacity(elements.len());
                for element in elements {
                    values.push(self.value(element)?.unwrap_or(Bson::Null));
                }
                Ok(Some(Bson::Array(values)))
            }
            Bson::Document(document) => match document.iter().next() {
                Some((operator, operand)) if operator.starts_with('$') && document.len() == 1 => {
                    self.calculated(operator, operand)
                }
                _ => Ok(Some(Bson::Document(self.document(document)?))),
            },
            constant => Ok(Some(constant.clone())),
        }
    }

    /// Whether an expression is true.
    pub(super) fn is_true(&self, expression: &Bson) -> Result<bool, Refused> {
        Ok(self.value(expression)?.is_some_and(|value| is_true(&value)))
    }

    /// A document whose fields are expressions.
    fn document(&self, fields: &Document) -> Result<Document, Refused> {
        let mut document = Document::new();
        for (name, expression) in fields {
            if name.starts_with('$') {
                return Err(not_interpreted(name));
            }
            if let Some(value) = self.value(expression)? {
                document.insert(name, value);
            }
        }
        Ok(document)
    }

    /// The value at a path, which begins with the name of a variable or of a field.
    fn at(&self, path: &str) -> Result<Option<Bson>, Refused> {
        let Some(variable) = path.strip_prefix('$') else {
            return Ok(field(self.root, path));
        };
        let (name, rest) = match variable.split_once('.') {
            Some((name, rest)) => (name, Some(rest)),
            None => (variable, None),
        };
        let value = match (name, self.element) {
            ("ROOT", _) => Bson::Document(self.root.clone()),
            ("NOW", _) => Bson::DateTime(self.now),
            (name, Some((known, element))) if name == known => element.clone(),
            _ => return Err(not_interpreted(&format!("$${name}"))),
        };
        Ok(match rest {
            Some(rest) => value_in(&value, rest),
            None => Some(value),
        })
    }

    fn calculated(&self, operator: &str, operand: &Bson) -> Result<Option<Bson>, Refused> {
        let value = match (operator, operand) {
            ("$literal", value) => value.clone(),
            ("$not", Bson::Array(one)) if one.len() == 1 => (!self.is_true(&one[0])?).into(),
            ("$eq", operand) => self.compares(operand, Ordering::is_eq)?.into(),
            ("$lt", operand) => self.compares(operand, Ordering::is_lt)?.into(),
            ("$lte", operand) => self.compares(operand, Ordering::is_le)?.into(),
            ("$gt", operand) => self.compares(operand, Ordering::is_gt)?.into(),
            ("$gte", operand) => self.compares(operand, Ordering::is_ge)?.into(),
            ("$in", operand) => {
                let (wanted, list) = self.pair(operand)?;
                array(operator, list)?.iter().any(|value| equal(value, &wanted)).into()
            }
            ("$isArray", operand) => matches!(self.value(operand)?, Some(Bson::Array(_))).into(),
            ("$size", operand) => count(array(operator, self.value(operand)?.unwrap_or(Bson::Null))?.len()),
            ("$bsonSize", operand) => match self.value(operand)? {
                Some(Bson::Document(document)) => {
                    count(codec::encode(&document).map_or(0, |raw| raw.as_bytes().len()))
                }
                _ => return Err(Refused::not_interpreted("`$bsonSize` of a value that is not a document")),
            },
            ("$cond", Bson::Array(branches)) => match branches.as_slice() {
                [condition, then, otherwise] => {
                    let chosen = if self.is_true(condition)? { then } else { otherwise };
                    return self.value(chosen);
                }
                _ => return Err(not_interpreted(operator)),
            },
            ("$switch", Bson::Document(parts)) => return self.switch(parts),
            ("$filter" | "$map", Bson::Document(parts)) => return self.each(operator, parts),
            ("$mergeObjects", Bson::Array(parts)) => self.merged(parts)?.into(),
            ("$concatArrays", Bson::Array(parts)) => {
                let mut all = Vec::new();
                for part in parts {
                    // A server returns null if a part is null or absent.
                    match self.value(part)? {
                        None | Some(Bson::Null) => return Ok(Some(Bson::Null)),
                        Some(part) => all.extend(array(operator, part)?),
                    }
                }
                Bson::Array(all)
            }
            (other, _) => return Err(not_interpreted(other)),
        };
        Ok(Some(value))
    }

    fn pair(&self, operand: &Bson) -> Result<(Bson, Bson), Refused> {
        match operand.as_array().map(Vec::as_slice) {
            // An absent field is less than every value, as an undefined value is.
            Some([one, other]) => Ok((
                self.value(one)?.unwrap_or(Bson::Undefined),
                self.value(other)?.unwrap_or(Bson::Undefined),
            )),
            _ => Err(Refused::not_interpreted("a comparison that does not have two operands")),
        }
    }

    fn compares(&self, operand: &Bson, is_wanted: fn(Ordering) -> bool) -> Result<bool, Refused> {
        let (one, other) = self.pair(operand)?;
        Ok(is_wanted(compare(&one, &other)))
    }

    fn switch(&self, parts: &Document) -> Result<Option<Bson>, Refused> {
        for branch in parts.get_array("branches").into_iter().flatten() {
            let branch = branch.as_document().and_then(|branch| branch.get("case").zip(branch.get("then")));
            let Some((case, then)) = branch else { return Err(not_interpreted("$switch")) };
            if self.is_true(case)? {
                return self.value(then);
            }
        }
        match parts.get("default") {
            Some(default) => self.value(default),
            None => Err(Refused::not_interpreted("`$switch` without a default")),
        }
    }

    /// Evaluates `$filter` and `$map`.
    fn each(&self, operator: &str, parts: &Document) -> Result<Option<Bson>, Refused> {
        let (Some(input), Ok(name)) = (parts.get("input"), parts.get_str("as")) else {
            return Err(not_interpreted(operator));
        };
        let input = match self.value(input)? {
            None | Some(Bson::Null) => return Ok(Some(Bson::Null)),
            Some(input) => array(operator, input)?,
        };

        let mut elements = Vec::with_capacity(input.len());
        for element in input {
            let scope = self.with(name, &element);
            match (parts.get("cond"), parts.get("in")) {
                (Some(condition), None) if parts.len() == 3 => {
                    if scope.is_true(condition)? {
                        elements.push(element);
                    }
                }
                (None, Some(result)) if parts.len() == 3 => {
                    elements.push(scope.value(result)?.unwrap_or(Bson::Null));
                }
                _ => return Err(not_interpreted(operator)),
            }
        }
        Ok(Some(Bson::Array(elements)))
    }

    fn merged(&self, parts: &[Bson]) -> Result<Document, Refused> {
        let mut merged = Document::new();
        for part in parts {
            match self.value(part)? {
                None | Some(Bson::Null) => {}
                Some(Bson::Document(part)) => merged.extend(part),
                Some(_) => {
                    return Err(Refused::not_interpreted(
                        "`$mergeObjects` of a value that is not a document",
                    ));
                }
            }
        }
        Ok(merged)
    }
}

/// The value at a path in a value. In an array, the path is followed in every sub-document.
fn value_in(value: &Bson, path: &str) -> Option<Bson> {
    match value {
        Bson::Document(document) => field(document, path),
        Bson::Array(elements) => {
            let values = elements.iter().filter_map(|element| match element {
                Bson::Document(_) | Bson::Array(_) => value_in(element, path),
                _ => None,
            });
            Some(Bson::Array(values.collect()))
        }
        _ => None,
    }
}

fn field(document: &Document, path: &str) -> Option<Bson> {
    match path.split_once('.') {
        Some((name, rest)) => value_in(document.get(name)?, rest),
        None => document.get(path).cloned(),
    }
}

fn array(operator: &str, value: Bson) -> Result<Vec<Bson>, Refused> {
    match value {
        Bson::Array(elements) => Ok(elements),
        other => {
            Err(Refused::not_interpreted(format_args!("`{operator}` of {other}, which is not an array")))
        }
    }
}

fn not_interpreted(operator: &str) -> Refused {
    Refused::not_interpreted(format_args!("the expression `{operator}`"))
}

fn count(number: usize) -> Bson {
    Bson::Int32(i32::try_from(number).unwrap_or(i32::MAX))
}

#[cfg(test)]
mod tests {
    use mongodb::bson::doc;

    use super::*;

    const NOW: DateTime = DateTime::from_millis(10);

    fn value(document: &Document, expression: impl Into<Bson>) -> Option<Bson> {
        Scope::of(document, NOW).value(&expression.into()).unwrap()
    }

    #[test]
    fn elements_are_filtered_changed_and_appended() {
        let document = doc! { "outbox": [{ "id": 1, "n": 1 }, { "id": 2 }, 3] };
        let leaves = doc! { "$in": ["$$entry.id", { "$literal": [1] }] };
        let staying = doc! { "$filter": { "input": "$outbox", "as": "entry", "cond": { "$not": [leaves] } } };
        assert_eq!(
            value(&document, staying.clone()),
            Some(Bson::Array(vec![doc! { "id": 2 }.into(), 3.into()]))
        );

        let case = doc! { "case": { "$eq": ["$$entry.id", 2] }, "then": { "$mergeObjects": ["$$entry", { "at": NOW }] } };
        let changed = doc! { "$switch": { "branches": [case], "default": "$$entry" } };
        let changed = doc! { "$map": { "input": staying, "as": "entry", "in": changed } };
        let all = doc! { "$concatArrays": [changed, { "$literal": ["$new"] }] };
        let expected = Bson::Array(vec![doc! { "id": 2, "at": NOW }.into(), 3.into(), "$new".into()]);
        assert_eq!(value(&document, all), Some(expected));
        assert_eq!(value(&doc! {}, staying_of_nothing()), Some(Bson::Null));
    }

    fn staying_of_nothing() -> Document {
        doc! { "$filter": { "input": "$outbox", "as": "entry", "cond": true } }
    }

    #[test]
    fn variables_and_sizes_are_compared() {
        let document = doc! { "_id": 1, "outbox": [1, 2] };
        let held = doc! { "$cond": [{ "$isArray": "$outbox" }, { "$size": "$outbox" }, 0] };
        assert_eq!(value(&document, held.clone()), Some(Bson::Int32(2)));
        assert_eq!(value(&doc! {}, held), Some(Bson::Int32(0)));
        let later = DateTime::from_millis(11);
        assert_eq!(value(&document, doc! { "$lt": ["$$NOW", later] }), Some(Bson::Boolean(true)));
        assert_eq!(
            value(&document, doc! { "$gte": [{ "$bsonSize": "$$ROOT" }, 1_000_i64] }),
            Some(false.into())
        );
        assert_eq!(value(&document, "$none"), None);
    }

    #[test]
    fn an_unknown_expression_is_refused_by_name() {
        for (expression, named) in
            [(doc! { "$concat": ["a"] }, "`$concat`"), (doc! { "$eq": ["$$me", 1] }, "`$$me`")]
        {
            let refused = Scope::of(&doc! {}, NOW).value(&expression.into()).unwrap_err().to_string();
            assert!(refused.contains(named) && refused.contains("real MongoDB"), "{refused}");
        }
    }
}
