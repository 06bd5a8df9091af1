use std::collections::BTreeMap;

use mongodb::bson::{Bson, Document, RawDocumentBuf, doc};

use super::{
    carry::Dropped,
    find::{Search, unknown},
    path::Keys,
};
use crate::{
    encoding::codec,
    store::{error::Error, fields::changes},
};

const KEYS: Keys = &[("lines", "sku"), ("groups.lines", "sku")];

fn raw(document: &Document) -> RawDocumentBuf {
    codec::encode(document).unwrap()
}

/// Returns the fields that a save of `now` sets, and the dropped unknown fields, for an aggregate that was stored as
/// `stored` and read as `before`.
fn saved(stored: &Document, before: &Document, now: &Document) -> (Document, Dropped) {
    let (stored, before, now) = (raw(stored), raw(before), raw(now));
    let found = unknown(&stored, &before, KEYS, &mut Search::default()).unwrap();
    let changes = changes(&before, &now, &found, KEYS).unwrap();
    (codec::to_document(&changes.set.build()).unwrap(), changes.dropped)
}

#[test]
fn unknown_fields_inside_a_changed_sub_document_survive() {
    let stored = doc! { "address": { "street": "a", "geo": { "x": 1, "y": 2 }, "note": "kept", "gone": 1 } };
    let before = doc! { "address": { "street": "a", "geo": { "x": 1 }, "gone": 1 } };
    let now = doc! { "address": { "street": "b", "geo": { "x": 5 } } };
    let expected = doc! { "address": { "street": "b", "geo": { "x": 5, "y": 2 }, "note": "kept" } };
    assert_eq!(saved(&stored, &before, &now), (expected, Dropped::new()));
}

#[test]
fn unknown_fields_of_recognised_elements_survive() {
    let stored =
        doc! { "lines": [{ "sku": "a", "qty": 1, "discount": 5 }, { "sku": "b", "qty": 1, "gift": true }] };
    let before = doc! { "lines": [{ "sku": "a", "qty": 1 }, { "sku": "b", "qty": 1 }] };
    let now =
        doc! { "lines": [{ "sku": "b", "qty": 2 }, { "sku": "c", "qty": 1 }, { "sku": "a", "qty": 1 }] };
    let expected = doc! { "lines": [
        { "sku": "b", "qty": 2, "gift": true }, { "sku": "c", "qty": 1 }, { "sku": "a", "qty": 1, "discount": 5 },
    ] };
    assert_eq!(saved(&stored, &before, &now), (expected, Dropped::new()));
}

#[test]
fn arrays_inside_elements_are_compared() {
    let group =
        |lines: Bson| doc! { "groups": [{ "name": "g", "lines": lines }, { "name": "h", "lines": [] }] };
    let line = |sku: &str, qty: i32| doc! { "sku": sku, "qty": qty };
    let stored_lines = vec![
        Bson::from(doc! { "sku": "a", "qty": 1, "x": 1 }),
        doc! { "sku": "b", "qty": 1, "x": [{ "y": 2 }] }.into(),
    ];
    let before = group(vec![line("a", 1), line("b", 1)].into());
    let now = group(vec![line("b", 9), line("a", 8)].into());
    let (set, dropped) = saved(&group(stored_lines.into()), &before, &now);
    let expected = vec![
        Bson::from(doc! { "sku": "b", "qty": 9, "x": [{ "y": 2 }] }),
        doc! { "sku": "a", "qty": 8, "x": 1 }.into(),
    ];
    assert_eq!((set, dropped), (group(expected.into()), Dropped::new()));
}

#[test]
fn elements_of_arrays_in_arrays_are_recognised() {
    let stored = doc! { "rows": [[{ "a": 1, "u": 1 }], [{ "a": 2, "u": 2 }, { "a": 3, "u": 3 }]] };
    let before = doc! { "rows": [[{ "a": 1 }], [{ "a": 2 }, { "a": 3 }]] };
    let now = doc! { "rows": [[{ "a": 1 }], [{ "a": 9 }, { "a": 3 }], []] };
    // The second row has changed, and a third row makes the lengths differ.
    let (set, dropped) = saved(&stored, &before, &now);
    assert_eq!(set, doc! { "rows": [[{ "a": 1, "u": 1 }], [{ "a": 9 }, { "a": 3 }], []] });
    assert_eq!(dropped, Dropped::from([("rows.u".into(), 2)]));
    let now = doc! { "rows": [[{ "a": 1 }], [{ "a": 9 }, { "a": 3 }]] };
    let (set, dropped) = saved(&stored, &before, &now);
    assert_eq!(set, doc! { "rows": [[{ "a": 1, "u": 1 }], [{ "a": 9, "u": 2 }, { "a": 3, "u": 3 }]] });
    assert_eq!(dropped, Dropped::new());
}

#[test]
fn dropped_fields_count_unless_their_element_was_removed() {
    let stored = doc! { "tags": [{ "a": 1, "u": 1 }, { "a": 2, "u": { "v": 1 } }, { "a": 3, "u": 1 }] };
    let before = doc! { "tags": [{ "a": 1 }, { "a": 2 }, { "a": 3 }] };
    let removed = doc! { "tags": [{ "a": 3 }] };
    let (set, dropped) = saved(&stored, &before, &removed);
    assert_eq!((set, dropped), (doc! { "tags": [{ "a": 3, "u": 1 }] }, Dropped::new()));
    let changed = doc! { "tags": [{ "a": 8 }, { "a": 9 }, { "a": 3 }] };
    let (set, dropped) = saved(&stored, &before, &changed);
    assert_eq!(set, doc! { "tags": [{ "a": 8 }, { "a": 9 }, { "a": 3, "u": 1 }] });
    assert_eq!(dropped, Dropped::from([("tags.u".into(), 2)]));
}

#[test]
fn reordered_or_converted_elements_are_matched() {
    // The document has a set with its own order, numbers that are wider in the struct, and a default that isn't stored.
    let stored = doc! { "set": [{ "a": 1, "u": 1 }, { "a": 2, "u": 2 }, { "a": 3, "u": 3 }] };
    let before = doc! { "set": [{ "a": 3_i64, "d": 0 }, { "a": 1_i64, "d": 0 }, { "a": 2_i64, "d": 0 }] };
    let now = doc! { "set": [{ "a": 3_i64, "d": 0 }, { "a": 2_i64, "d": 0 }] };
    let (set, dropped) = saved(&stored, &before, &now);
    let expected = doc! { "set": [{ "a": 3_i64, "d": 0, "u": 3 }, { "a": 2_i64, "d": 0, "u": 2 }] };
    assert_eq!((set, dropped), (expected, Dropped::new()));
}

#[test]
fn elements_unknown_to_the_struct_count_when_dropped() {
    let stored = doc! { "kinds": [{ "k": "a" }, { "k": "unheard of" }, { "k": "b", "u": 1 }] };
    let before = doc! { "kinds": [{ "k": "a" }, { "k": "b" }] };
    let (set, dropped) = saved(&stored, &before, &doc! { "kinds": [{ "k": "b" }] });
    assert_eq!(set, doc! { "kinds": [{ "k": "b", "u": 1 }] });
    assert_eq!(dropped, Dropped::from([("kinds".into(), 1)]));
}

#[test]
fn an_unreadable_unknown_field_refuses_the_save() {
    let mut bytes = raw(&doc! { "address": { "street": "a", "geo": "#" } }).as_bytes().to_vec();
    let place = bytes.iter().position(|byte| *byte == b'#').unwrap();
    bytes[place] = 0xff;
    let stored = RawDocumentBuf::from_bytes(bytes).unwrap();
    let (before, now) = (doc! { "address": { "street": "a" } }, doc! { "address": { "street": "b" } });
    let found = unknown(&stored, &raw(&before), KEYS, &mut Search::default()).unwrap();
    let error = changes(&raw(&before), &raw(&now), &found, KEYS).unwrap_err();
    assert!(matches!(&error, Error::UnreadableField { field } if field == "address.geo"), "{error}");
}

/// An aggregate with nested arrays. Every element has an id, and the names of unknown fields begin with `u`.
struct Generated {
    random: fastrand::Rng,
    next: i32,
}

impl Generated {
    fn below(&mut self, end: usize) -> usize {
        self.random.usize(..end)
    }

    fn document(&mut self, depth: usize) -> Document {
        self.next += 1;
        let mut document = doc! { "id": self.next, "n": self.random.i32(0..3) };
        for name in ["u1", "u2"] {
            if self.below(2) == 0 {
                let value = self.below(100) as i64;
                document.insert(name, value);
            }
        }
        if depth > 0 {
            let inner = self.document(depth - 1);
            document.insert("inner", inner);
            let elements: Vec<Bson> = (0..self.below(5)).map(|_| self.document(depth - 1).into()).collect();
            document.insert("elements", elements);
        }
        document
    }

    /// Changes a document in the ways in which an application might change it.
    fn change(&mut self, document: &mut Document, depth: usize) {
        if self.below(3) == 0 {
            document.insert("n", self.random.i32(0..3));
        }
        if depth == 0 {
            return;
        }
        if let Ok(inner) = document.get_document_mut("inner") {
            self.change(inner, depth - 1);
        }
        let Ok(elements) = document.get_array_mut("elements") else { return };
        for element in elements.iter_mut() {
            if let Some(element) = element.as_document_mut() {
                self.change(element, depth - 1);
            }
        }
        match self.below(5) {
            0 => self.random.shuffle(elements),
            1 if !elements.is_empty() => _ = elements.remove(self.random.usize(..elements.len())),
            2 => {
                let place = self.random.usize(..=elements.len());
                elements.insert(place, known(&self.document(depth - 1)).into());
            }
            _ => {}
        }
    }
}

/// Returns the document as the struct writes it.
fn known(document: &Document) -> Document {
    let known = document.iter().filter(|(name, _)| !name.starts_with('u'));
    known.map(|(name, value)| (name.clone(), known_value(value))).collect()
}

fn known_value(value: &Bson) -> Bson {
    match value {
        Bson::Document(document) => known(document).into(),
        Bson::Array(elements) => Bson::Array(elements.iter().map(known_value).collect()),
        other => other.clone(),
    }
}

/// Returns the value with its fields sorted by name.
fn sorted(value: &Bson) -> Bson {
    match value {
        Bson::Document(document) => {
            let fields: BTreeMap<_, _> = document.iter().collect();
            let sorted = fields.into_iter().map(|(name, value)| (name.clone(), sorted(value)));
            sorted.collect::<Document>().into()
        }
        Bson::Array(elements) => Bson::Array(elements.iter().map(sorted).collect()),
        other => other.clone(),
    }
}

/// After any change, a save writes the same values that a struct with all of the fields would write.
#[test]
fn elements_with_ids_keep_their_unknown_fields() {
    let mut generated = Generated { random: fastrand::Rng::with_seed(20_251_126), next: 0 };
    for _ in 0..200 {
        let mut stored = doc! { "root": generated.document(3) };
        let mut before = known(&stored);
        let mut found = unknown(&raw(&stored), &raw(&before), &[], &mut Search::default()).unwrap();
        for _ in 0..3 {
            let mut after = stored.clone();
            generated.change(after.get_document_mut("root").unwrap(), 3);
            let now = known(&after);
            let changes = changes(&raw(&before), &raw(&now), &found, &[]).unwrap();
            assert_eq!(changes.dropped, Dropped::new());
            let set = codec::to_document(&changes.set.build()).unwrap();
            let written = set.get("root").or(stored.get("root")).unwrap();
            assert_eq!(sorted(written), sorted(after.get("root").unwrap()));

            // The state for the next save equals what a load would find.
            for (field, unknown) in changes.unknown {
                match unknown {
                    Some(unknown) => found.insert(field, unknown),
                    None => found.remove(&field),
                };
            }
            (stored, before) = (after, now);
            assert_eq!(found, unknown(&raw(&stored), &raw(&before), &[], &mut Search::default()).unwrap());
        }
    }
}
