//! Hides parts of payloads before they are shown.
//!
//! For each pattern of message types there is a list of JSON pointers ([RFC 6901]), which name the hidden values. In a
//! pointer, `*` means each element of an array and each field of an object. The values of a type that no pattern
//! matches are all hidden; only their structure and types are shown.
//!
//! [RFC 6901]: https://www.rfc-editor.org/rfc/rfc6901

use mongodb::bson::{Bson, Document};
use outbox_service::Glob;

/// Whether hidden values are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Reveal {
    /// Hidden values are replaced by a description of their type.
    #[default]
    Hidden,
    /// Everything is shown.
    Everything,
}

/// The rules for hiding.
#[derive(Debug, Clone, Default)]
pub struct Redaction {
    rules: Vec<(Glob, Vec<Pointer>)>,
    reveal: Reveal,
}

/// The steps from a payload to a value.
type Pointer = Vec<String>;

impl Redaction {
    /// Creates the rules. The first pattern that matches a type applies.
    ///
    /// # Errors
    /// A sentence about the first pointer that has a wrong form.
    pub fn new<'a>(
        rules: impl IntoIterator<Item = (&'a str, &'a [String])>,
        reveal: Reveal,
    ) -> Result<Self, String> {
        let mut read = Vec::new();
        for (types, pointers) in rules {
            let pointers = pointers.iter().map(|text| pointer(text)).collect::<Result<_, _>>()?;
            read.push((Glob::new(types), pointers));
        }
        Ok(Self { rules: read, reveal })
    }

    /// Whether payloads are shown completely.
    pub fn reveal(&self) -> Reveal {
        self.reveal
    }

    /// The payload of a message of this type, with the hidden values replaced.
    pub fn payload(&self, message_type: &str, payload: &Bson) -> Bson {
        if self.reveal == Reveal::Everything {
            return payload.clone();
        }
        let Some((_, pointers)) = self.rules.iter().find(|(types, _)| types.matches(message_type)) else {
            return hide_all(payload);
        };

        let mut shown = payload.clone();
        for pointer in pointers {
            hide(&mut shown, pointer);
        }
        shown
    }
}

fn pointer(text: &str) -> Result<Pointer, String> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let Some(steps) = text.strip_prefix('/') else {
        return Err(format!("{text:?} is not a JSON pointer; begin it with a slash, as in /customer/email"));
    };
    Ok(steps.split('/').map(|step| step.replace("~1", "/").replace("~0", "~")).collect())
}

/// Hides the value that a pointer names, if there is one.
fn hide(value: &mut Bson, pointer: &[String]) {
    let Some((step, rest)) = pointer.split_first() else {
        *value = hide_all(value);
        return;
    };
    match value {
        Bson::Document(document) if step == "*" => {
            document.iter_mut().for_each(|(_, value)| hide(value, rest));
        }
        Bson::Document(document) => {
            if let Some(value) = document.get_mut(step) {
                hide(value, rest);
            }
        }
        Bson::Array(items) if step == "*" => items.iter_mut().for_each(|item| hide(item, rest)),
        Bson::Array(items) => {
            if let Some(item) = step.parse::<usize>().ok().and_then(|index| items.get_mut(index)) {
                hide(item, rest);
            }
        }
        _ => {}
    }
}

/// The structure of a value, with its leaves replaced.
fn hide_all(value: &Bson) -> Bson {
    match value {
        Bson::Document(document) => {
            let fields = document.iter().map(|(name, value)| (name.clone(), hide_all(value)));
            Bson::Document(fields.collect::<Document>())
        }
        Bson::Array(items) => Bson::Array(items.iter().map(hide_all).collect()),
        Bson::Null => Bson::Null,
        leaf => Bson::String(format!("<{}>", kind(leaf))),
    }
}

fn kind(value: &Bson) -> String {
    match value {
        Bson::String(text) => format!("string of {} characters", text.chars().count()),
        Bson::Int32(_) | Bson::Int64(_) | Bson::Double(_) | Bson::Decimal128(_) => "number".to_owned(),
        Bson::Boolean(_) => "boolean".to_owned(),
        Bson::DateTime(_) => "date".to_owned(),
        Bson::ObjectId(_) => "ObjectId".to_owned(),
        Bson::Binary(binary) => format!("{} bytes", binary.bytes.len()),
        _ => "value".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use mongodb::bson::doc;

    use super::*;

    fn payload() -> Bson {
        doc! {
            "order": "o-1",
            "customer": { "email": "a@b.example", "vip": true },
            "lines": [{ "sku": "x", "price": 3 }, { "sku": "y", "price": 4 }],
        }
        .into()
    }

    fn redaction(types: &str, pointers: &[&str], reveal: Reveal) -> Redaction {
        let pointers: Vec<String> = pointers.iter().map(ToString::to_string).collect();
        Redaction::new([(types, &pointers[..])], reveal).unwrap()
    }

    #[test]
    fn a_type_without_rules_shows_only_its_structure() {
        let shown = Redaction::default().payload("order.placed", &payload());
        let text = shown.to_string();
        assert!(!text.contains("b.example") && !text.contains("o-1") && !text.contains("true"), "{text}");
        let customer = shown.as_document().unwrap().get_document("customer").unwrap();
        assert_eq!(customer, &doc! { "email": "<string of 11 characters>", "vip": "<boolean>" });
    }

    #[test]
    fn pointers_hide_the_values_that_they_name() {
        let rules = redaction("order.*", &["/customer/email", "/lines/*/price", "/none/x"], Reveal::Hidden);
        let shown = rules.payload("order.placed", &payload());
        let shown = shown.as_document().unwrap();
        assert_eq!(shown.get_document("customer").unwrap().get_str("email"), Ok("<string of 11 characters>"));
        assert_eq!(shown.get_document("customer").unwrap().get_bool("vip"), Ok(true));
        assert_eq!(shown.get_array("lines").unwrap()[1], doc! { "sku": "y", "price": "<number>" }.into());
        assert_eq!(shown.get_str("order"), Ok("o-1"));

        let other = rules.payload("invoice.sent", &payload()).to_string();
        assert!(!other.contains("o-1"), "no rule matches, so everything is hidden: {other}");
    }

    #[test]
    fn an_escaped_pointer_names_odd_fields() {
        let value: Bson = doc! { "a/b": { "c~d": 1 }, "": 2 }.into();
        let shown = redaction("*", &["/a~1b/c~0d", "/"], Reveal::Hidden).payload("t", &value);
        assert_eq!(shown, doc! { "a/b": { "c~d": "<number>" }, "": "<number>" }.into());
        let whole = redaction("*", &[""], Reveal::Hidden).payload("t", &value);
        assert_eq!(whole, doc! { "a/b": { "c~d": "<number>" }, "": "<number>" }.into());
    }

    #[test]
    fn revealing_shows_everything() {
        let rules = redaction("*", &[""], Reveal::Everything);
        assert_eq!(rules.payload("t", &payload()), payload());
    }

    #[test]
    fn a_pointer_without_a_slash_is_refused() {
        let pointers = ["customer".to_owned()];
        let refused = Redaction::new([("*", &pointers[..])], Reveal::Hidden).unwrap_err();
        assert!(refused.contains("/customer/email"), "{refused}");
    }
}
