//! Returns the fields of a document that a projection asks for.
//!
//! A projection names top-level fields, or calculates a field with an expression. Any other projection is refused.

use mongodb::bson::{Bson, DateTime, Document};

use super::{expression::Scope, filter::is_true, refused::Refused};

const ID: &str = "_id";

/// Returns the fields that the projection asks for: those of the document in their order, and then the calculated ones.
pub(super) fn projected(
    projection: &Document,
    document: &Document,
    now: DateTime,
) -> Result<Document, Refused> {
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
            && let Some(value) = Scope::of(document, now).value(expression)?
        {
            found.insert(name, value);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use mongodb::bson::doc;

    use super::*;
    use crate::encoding::codec;

    const NOW: DateTime = DateTime::from_millis(0);

    #[test]
    fn named_fields_are_returned_with_the_id() {
        let document = doc! { "_id": 1, "etag": 2, "outbox": [] };
        assert_eq!(projected(&doc! { "etag": 1 }, &document, NOW).unwrap(), doc! { "_id": 1, "etag": 2 });
        assert_eq!(
            projected(&doc! { "_id": 0, "outbox": 1, "x": 1 }, &document, NOW).unwrap(),
            doc! { "outbox": [] }
        );
        for (projection, named) in [(doc! { "etag": 0 }, "`etag`"), (doc! { "a.b": 1 }, "`a.b`")] {
            assert!(projected(&projection, &document, NOW).unwrap_err().to_string().contains(named));
        }
    }

    #[test]
    fn the_size_of_a_document_is_calculated() {
        let held = doc! { "$cond": [{ "$isArray": "$outbox" }, { "$size": "$outbox" }, 0] };
        let projection = doc! { "_id": 0, "held": held, "bytes": { "$bsonSize": "$$ROOT" } };
        let measured = |document: &Document| projected(&projection, document, NOW).unwrap();
        let full = doc! { "_id": 1, "outbox": [1, 2] };
        let bytes = i32::try_from(codec::encode(&full).unwrap().as_bytes().len()).unwrap();
        assert_eq!(measured(&full), doc! { "held": 2, "bytes": bytes });
        assert_eq!(measured(&doc! { "_id": 1 }).get_i32("held"), Ok(0));
        let refused = projected(&doc! { "a": { "$concat": ["a"] } }, &full, NOW).unwrap_err();
        assert!(refused.to_string().contains("`$concat`"));
    }
}
