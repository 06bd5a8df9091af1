//! Applies an update that is a pipeline.

use mongodb::bson::{Bson, DateTime, Document};

use super::{expression::Scope, refused::Refused};

/// Returns the document as the stages leave it.
pub(super) fn piped(document: &Document, stages: &[Bson], now: DateTime) -> Result<Document, Refused> {
    let before = document;
    let mut document = document.clone();
    for stage in stages {
        let stage = stage.as_document().filter(|stage| stage.len() == 1);
        let Some((name, operand)) = stage.and_then(|stage| stage.iter().next()) else {
            return Err(Refused::not_interpreted("a stage that does not have exactly one name"));
        };
        document = match (name.as_str(), operand) {
            ("$unset", Bson::String(field)) => without(document, &[field])?,
            ("$unset", Bson::Array(fields)) => {
                let fields: Vec<&str> = fields.iter().filter_map(Bson::as_str).collect();
                without(document, &fields)?
            }
            ("$set", Bson::Document(fields)) => with(&document, fields, now)?,
            (other, _) => {
                return Err(Refused::not_interpreted(format_args!("the stage `{other}` of an update")));
            }
        };
    }
    Ok(in_order_of(before, document))
}

/// Moves the fields that the document had before to their old places. A field that one stage removes and another sets
/// keeps its place on a server.
fn in_order_of(before: &Document, mut after: Document) -> Document {
    let mut ordered = Document::new();
    for name in before.keys() {
        if let Some(value) = after.remove(name) {
            ordered.insert(name, value);
        }
    }
    ordered.extend(after);
    ordered
}

fn without(mut document: Document, fields: &[impl AsRef<str>]) -> Result<Document, Refused> {
    for field in fields {
        document.remove(top_level(field.as_ref())?);
    }
    Ok(document)
}

/// Every expression sees the document as it was before the stage.
fn with(document: &Document, fields: &Document, now: DateTime) -> Result<Document, Refused> {
    let mut after = document.clone();
    for (field, expression) in fields {
        // A server merges such a document into the stored one.
        if let Bson::Document(fields) = expression
            && !fields.keys().next().is_some_and(|name| name.starts_with('$'))
        {
            return Err(Refused::not_interpreted(format_args!(
                "the sub-document `{field}` in a pipeline without `$literal`"
            )));
        }
        match Scope::of(document, now).value(expression)? {
            Some(value) => after.insert(top_level(field)?, value),
            None => after.remove(top_level(field)?),
        };
    }
    Ok(after)
}

fn top_level(field: &str) -> Result<&str, Refused> {
    if field.contains('.') {
        return Err(Refused::not_interpreted(format_args!("the path `{field}` in a pipeline")));
    }
    Ok(field)
}

#[cfg(test)]
mod tests {
    use mongodb::bson::doc;

    use super::*;

    const NOW: DateTime = DateTime::from_millis(10);

    #[test]
    fn stages_follow_one_another() {
        let document = doc! { "_id": 1, "a": 1, "b": 2, "c": 3 };
        let set = doc! { "$set": { "z": "$b", "b": { "$literal": { "x": "$a" } }, "y": "$c" } };
        let stages = [doc! { "$unset": ["a", "c"] }.into(), set.into()];
        let expected = doc! { "_id": 1, "b": { "x": "$a" }, "z": 2 };
        assert_eq!(piped(&document, &stages, NOW).unwrap().to_string(), expected.to_string());
    }

    #[test]
    fn an_unknown_stage_is_refused_by_name() {
        for (stage, named) in [
            (doc! { "$replaceWith": "$a" }, "`$replaceWith`"),
            (doc! { "$set": { "a.b": 1 } }, "`a.b`"),
            (doc! { "$set": { "a": { "b": 1 } } }, "`$literal`"),
        ] {
            let refused = piped(&doc! { "_id": 1 }, &[stage.into()], NOW).unwrap_err().to_string();
            assert!(refused.contains(named) && refused.contains("real MongoDB"), "{refused}");
        }
    }
}
