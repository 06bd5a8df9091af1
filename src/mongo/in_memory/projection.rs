//! Returns the fields of a document that a projection asks for.
//!
//! A projection names top-level fields, or calculates a field with one of the few expressions that the library uses to
//! measure a document. Any other projection is refused.

use mongodb::bson::{Bson, Document};

use super::{filter::is_true, refused::Refused};
use crate::encoding::codec;

const ID: &str = "_id";

/// Returns the fields that the projection asks for: those of the document in their order, and then the calculated ones.
pub(super) fn projected(projection: &Document, document: &Document) -> Result<Document, Refused> {
    for (name, wanted) in projection {
        let is_left_out = !matches!(wanted, Bson::Document(_)) && !is_true(wanted);
        if name.contains('.') || is_left_out && name != ID {
            return Err(Refused::not_interpreted(format_args!("the projection of `{name}`")));
        }
    }

    let mut found = Document::new();
    for (name, value) in document {
        let is_wanted = match projection.get(name) {
            None => name == ID,
            Some(Bson::Document(_)) => false,
            Some(wanted) => is_true(wanted),
        };
        if is_wanted {
            found.insert(name, value.clone());
        }
    }
    for (name, expression) in projection {
        if let Bson::Document(_) = expression
            && let Some(value) = calculated(expression, document)?
        {
            found.insert(name, value);
        }
    }
    Ok(found)
}

/// The value of an expression. `None` if the expression is an absent field.
fn calculated(expression: &Bson, document: &Document) -> Result<Option<Bson>, Refused> {
    let operators = match expression {
        Bson::String(path) => return field(path, document),
        Bson::Document(operators) => operators,
        constant => return Ok(Some(constant.clone())),
    };
    let mut operators = operators.iter();
    let (Some((operator, operand)), None) = (operators.next(), operators.next()) else {
        return Err(Refused::not_interpreted("an expression without exactly one operator"));
    };

    match (operator.as_str(), operand) {
        ("$cond", Bson::Array(branches)) => match branches.as_slice() {
            [condition, then, otherwise] => {
                let is_met = calculated(condition, document)?.is_some_and(|value| is_true(&value));
                calculated(if is_met { then } else { otherwise }, document)
            }
            _ => Err(Refused::not_interpreted("`$cond` without three branches")),
        },
        ("$isArray", operand) => {
            let is_array = matches!(calculated(operand, document)?, Some(Bson::Array(_)));
            Ok(Some(Bson::Boolean(is_array)))
        }
        ("$size", operand) => match calculated(operand, document)? {
            Some(Bson::Array(elements)) => Ok(Some(count(elements.len()))),
            _ => Err(Refused::not_interpreted("`$size` of a value that is not an array")),
        },
        ("$bsonSize", operand) => match calculated(operand, document)? {
            Some(Bson::Document(document)) => {
                let bytes = codec::encode(&document).map_or(0, |raw| raw.as_bytes().len());
                Ok(Some(count(bytes)))
            }
            _ => Err(Refused::not_interpreted("`$bsonSize` of a value that is not a document")),
        },
        (other, _) => Err(Refused::not_interpreted(format_args!("the expression `{other}`"))),
    }
}

fn field(path: &str, document: &Document) -> Result<Option<Bson>, Refused> {
    match path.strip_prefix('$') {
        Some("$ROOT") => Ok(Some(Bson::Document(document.clone()))),
        Some(name) if !name.contains(['$', '.']) => Ok(document.get(name).cloned()),
        Some(_) => Err(Refused::not_interpreted(format_args!("the expression `{path}`"))),
        None => Ok(Some(Bson::String(path.to_owned()))),
    }
}

fn count(number: usize) -> Bson {
    Bson::Int32(i32::try_from(number).unwrap_or(i32::MAX))
}

#[cfg(test)]
mod tests {
    use mongodb::bson::doc;

    use super::*;

    #[test]
    fn named_fields_are_returned_with_the_id() {
        let document = doc! { "_id": 1, "etag": 2, "outbox": [] };
        assert_eq!(projected(&doc! { "etag": 1 }, &document).unwrap(), doc! { "_id": 1, "etag": 2 });
        assert_eq!(
            projected(&doc! { "_id": 0, "outbox": 1, "x": 1 }, &document).unwrap(),
            doc! { "outbox": [] }
        );
        for (projection, named) in [(doc! { "etag": 0 }, "`etag`"), (doc! { "a.b": 1 }, "`a.b`")] {
            assert!(projected(&projection, &document).unwrap_err().to_string().contains(named));
        }
    }

    #[test]
    fn the_size_of_a_document_is_calculated() {
        let held = doc! { "$cond": [{ "$isArray": "$outbox" }, { "$size": "$outbox" }, 0] };
        let projection = doc! { "_id": 0, "held": held, "bytes": { "$bsonSize": "$$ROOT" } };
        let measured = |document: &Document| projected(&projection, document).unwrap();
        let full = doc! { "_id": 1, "outbox": [1, 2] };
        let bytes = i32::try_from(codec::encode(&full).unwrap().as_bytes().len()).unwrap();
        assert_eq!(measured(&full), doc! { "held": 2, "bytes": bytes });
        assert_eq!(measured(&doc! { "_id": 1 }).get_i32("held"), Ok(0));
        let refused = projected(&doc! { "a": { "$concat": ["a"] } }, &full).unwrap_err();
        assert!(refused.to_string().contains("`$concat`"));
    }
}
