//! What is stored in an aggregate but unknown to its struct, so that setting a field doesn't drop it.
//!
//! A save sets whole top-level fields. Unknown fields beside them need no memory, because no save touches them; those inside a
//! field that is set are put back, in sub-documents at their path, in arrays with the element that they belong to.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    sync::{Mutex, PoisonError},
};

use mongodb::bson::{Bson, Document, RawArray, RawBsonRef, RawDocument};

use super::{
    elements::{read_from, recognise},
    fields::{broken, elements, text},
};
use crate::store::error::Error;

/// So many paths are logged once each; names of a map's entries may be part of them.
const MOST_PATHS: usize = 1_000;

/// Keys of elements that an aggregate declares: a path, and the field of the elements there.
pub(super) type Keys = &'static [(&'static str, &'static str)];

/// Something unknown inside a stored value.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Unknown {
    /// A field that the struct has no place for.
    Field(Bson),
    /// In a sub-document, by the names of its fields.
    Fields(BTreeMap<String, Unknown>),
    /// In an array, by the place of the element in the array as the struct writes it.
    Elements {
        elements: BTreeMap<usize, Unknown>,
        /// How many elements the struct has left out.
        left_out: usize,
    },
    /// It can't be told, because some bytes there aren't BSON that can be written back, such as text that isn't UTF-8.
    Unreadable,
}

/// What a save writes into a field, and what of it the struct doesn't know.
pub(super) struct Carried {
    pub(super) value: Bson,
    pub(super) unknown: Option<Unknown>,
}

/// Unknown fields that went with elements that could not be recognised, by path.
pub(super) type Dropped = BTreeMap<String, usize>;

/// What a comparison of a stored document with its struct keeps beside its result.
#[derive(Debug, Default)]
pub(super) struct Search {
    /// Paths of stored fields that the struct has read under another name, so that they aren't unknown.
    pub(super) renamed: BTreeSet<String>,
    /// Paths of unknown fields beside which the struct has a field that isn't stored: it may have read the one for the other.
    pub(super) candidates: BTreeSet<String>,
}

/// What is unknown inside each top-level field. `known` is the aggregate as read from `stored` and written again.
pub(super) fn unknown(
    stored: &RawDocument,
    known: &RawDocument,
    keys: Keys,
    search: &mut Search,
) -> Result<BTreeMap<String, Unknown>, Error> {
    let stored = by_name(stored);
    let mut found = BTreeMap::new();
    for (name, known) in elements(known)? {
        if let Some(Some(stored)) = stored.get(name)
            && let Some(inside) = inside(*stored, known, &Path::of(name, keys), search)
        {
            found.insert(name.to_owned(), inside);
        }
    }
    Ok(found)
}

fn inside(
    stored: RawBsonRef<'_>,
    known: RawBsonRef<'_>,
    path: &Path<'_>,
    search: &mut Search,
) -> Option<Unknown> {
    match (stored, known) {
        (RawBsonRef::Document(stored), RawBsonRef::Document(known)) => {
            inside_document(stored, known, path, search)
        }
        (RawBsonRef::Array(stored), RawBsonRef::Array(known)) => inside_array(stored, known, path, search),
        _ => None,
    }
}

fn inside_document(
    stored: &RawDocument,
    known: &RawDocument,
    path: &Path<'_>,
    search: &mut Search,
) -> Option<Unknown> {
    if stored.as_bytes() == known.as_bytes() {
        return None;
    }
    let known = by_name(known);
    let has_more = {
        let stored = by_name(stored);
        known.keys().any(|name| !stored.contains_key(name))
    };
    let mut found = BTreeMap::new();
    for element in stored.iter_elements() {
        let Ok(element) = element else { return Some(Unknown::Unreadable) };
        let name = text(element.key());
        let unknown = match (known.get(name), element.value()) {
            (Some(Some(known)), Ok(stored)) => inside(stored, *known, &path.then(name), search),
            (None, Ok(stored)) => {
                if has_more {
                    let path = path.then(name).to_string();
                    if search.renamed.contains(&path) {
                        continue;
                    }
                    search.candidates.insert(path);
                }
                Some(Bson::try_from(stored).map_or(Unknown::Unreadable, Unknown::Field))
            }
            _ => Some(Unknown::Unreadable),
        };
        if let Some(unknown) = unknown {
            found.entry(name.to_owned()).or_insert(unknown);
        }
    }
    (!found.is_empty()).then_some(Unknown::Fields(found))
}

fn inside_array(
    stored: &RawArray,
    known: &RawArray,
    path: &Path<'_>,
    search: &mut Search,
) -> Option<Unknown> {
    if stored.as_bytes() == known.as_bytes() {
        return None;
    }
    let (Ok(stored), Ok(known)) = (values(stored), values(known)) else {
        return Some(Unknown::Unreadable);
    };
    let read_from = read_from(&stored, &known, path.key(), agrees);
    let mut found = BTreeMap::new();
    let mut read = 0;
    for (place, from) in read_from.into_iter().enumerate() {
        let Some(from) = from else { continue };
        read += 1;
        if let Some(unknown) = inside(stored[from], known[place], path, search) {
            found.insert(place, unknown);
        }
    }
    let left_out = stored.len() - read;
    (!found.is_empty() || left_out > 0).then_some(Unknown::Elements { elements: found, left_out })
}

/// Whether a struct that has read the first can have written the second: it may have dropped fields, filled absent ones with
/// defaults, and changed the type of numbers.
fn agrees(stored: RawBsonRef<'_>, known: RawBsonRef<'_>) -> bool {
    match (stored, known) {
        (RawBsonRef::Document(stored), RawBsonRef::Document(known)) => {
            let stored = by_name(stored);
            let mut known = known.iter();
            known.all(|element| {
                let Ok((name, known)) = element else { return false };
                match stored.get(text(name)) {
                    Some(Some(stored)) => agrees(*stored, known),
                    Some(None) => false,
                    None => true,
                }
            })
        }
        (RawBsonRef::Array(stored), RawBsonRef::Array(known)) => match (values(stored), values(known)) {
            (Ok(stored), Ok(known)) => {
                stored.len() == known.len()
                    && stored.iter().zip(&known).all(|(stored, known)| agrees(*stored, *known))
            }
            _ => false,
        },
        (stored, known) => stored == known || number(stored).is_some_and(|it| number(known) == Some(it)),
    }
}

fn number(value: RawBsonRef<'_>) -> Option<f64> {
    match value {
        RawBsonRef::Int32(number) => Some(number.into()),
        RawBsonRef::Int64(number) => Some(number as f64),
        RawBsonRef::Double(number) => Some(number),
        _ => None,
    }
}

/// A value of the aggregate with what was unknown in it before.
pub(super) fn carry(
    unknown: &Unknown,
    before: RawBsonRef<'_>,
    now: RawBsonRef<'_>,
    path: &Path<'_>,
    dropped: &mut Dropped,
) -> Result<Carried, Error> {
    match (unknown, before, now) {
        (Unknown::Fields(fields), RawBsonRef::Document(before), RawBsonRef::Document(now)) => {
            carry_fields(fields, before, now, path, dropped)
        }
        (Unknown::Elements { elements, left_out }, RawBsonRef::Array(before), RawBsonRef::Array(now)) => {
            if *left_out > 0 {
                *dropped.entry(path.to_string()).or_default() += left_out;
            }
            carry_elements(elements, before, now, path, dropped)
        }
        (Unknown::Unreadable, ..) => Err(Error::UnreadableField { field: path.to_string() }),
        // It is another kind of value now: what was in it is removed.
        _ => Ok(Carried { value: owned(now)?, unknown: None }),
    }
}

fn carry_fields(
    unknown: &BTreeMap<String, Unknown>,
    before: &RawDocument,
    now: &RawDocument,
    path: &Path<'_>,
    dropped: &mut Dropped,
) -> Result<Carried, Error> {
    let before = by_name(before);
    let mut document = Document::new();
    let mut left = BTreeMap::new();
    for (name, now) in elements(now)? {
        let (Some(inside), Some(Some(before))) = (unknown.get(name), before.get(name)) else {
            document.insert(name, owned(now)?);
            continue;
        };
        let carried = carry(inside, *before, now, &path.then(name), dropped)?;
        document.insert(name, carried.value);
        if let Some(inside) = carried.unknown {
            left.insert(name.to_owned(), inside);
        }
    }

    for (name, unknown) in unknown {
        if document.contains_key(name) || before.contains_key(name.as_str()) {
            continue;
        }
        match unknown {
            Unknown::Field(value) => {
                document.insert(name, value.clone());
                left.insert(name.clone(), unknown.clone());
            }
            _ => return Err(Error::UnreadableField { field: path.then(name).to_string() }),
        }
    }
    let unknown = (!left.is_empty()).then_some(Unknown::Fields(left));
    Ok(Carried { value: document.into(), unknown })
}

fn carry_elements(
    unknown: &BTreeMap<usize, Unknown>,
    before: &RawArray,
    now: &RawArray,
    path: &Path<'_>,
    dropped: &mut Dropped,
) -> Result<Carried, Error> {
    let (before, now) = (values(before)?, values(now)?);
    let recognised = recognise(&before, &now, path.key());
    let mut array = Vec::with_capacity(now.len());
    let mut left = BTreeMap::new();
    for (place, now) in now.iter().enumerate() {
        let was = recognised[place];
        let Some((was, inside)) = was.and_then(|was| Some((was, unknown.get(&was)?))) else {
            array.push(owned(*now)?);
            continue;
        };
        let carried = carry(inside, before[was], *now, path, dropped)?;
        array.push(carried.value);
        if let Some(inside) = carried.unknown {
            left.insert(place, inside);
        }
    }

    // Where every element is recognised, the others were removed on purpose.
    if recognised.iter().any(Option::is_none) {
        let kept: BTreeSet<usize> = recognised.into_iter().flatten().collect();
        let lost = unknown.iter().filter(|(place, _)| !kept.contains(place));
        lost.for_each(|(_, unknown)| unknown.count(path, dropped));
    }
    let unknown = (!left.is_empty()).then_some(Unknown::Elements { elements: left, left_out: 0 });
    Ok(Carried { value: array.into(), unknown })
}

impl Unknown {
    /// Adds every unknown field to those that were dropped.
    fn count(&self, path: &Path<'_>, dropped: &mut Dropped) {
        match self {
            Self::Field(_) | Self::Unreadable => *dropped.entry(path.to_string()).or_default() += 1,
            Self::Fields(fields) => {
                fields.iter().for_each(|(name, unknown)| unknown.count(&path.then(name), dropped));
            }
            Self::Elements { elements, left_out } => {
                if *left_out > 0 {
                    *dropped.entry(path.to_string()).or_default() += left_out;
                }
                elements.values().for_each(|unknown| unknown.count(path, dropped));
            }
        }
    }
}

/// Warns of each path once in this process.
pub(super) fn warn_of(namespace: &mongodb::Namespace, dropped: &Dropped) {
    static WARNED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    for path in dropped.keys() {
        let path = format!("{namespace}: {path}");
        let mut warned = WARNED.lock().unwrap_or_else(PoisonError::into_inner);
        if warned.len() < MOST_PATHS && warned.insert(path.clone()) {
            tracing::warn!(
                field = path,
                "a save dropped a field that the struct doesn't know, because the array element it was in changed and \
                 could not be recognised; declare a key of the elements in `Document::ELEMENT_KEYS`"
            );
        }
    }
}

/// Where a value is: names of fields, with dots. An element of an array is where the array is.
pub(super) struct Path<'a> {
    parent: Option<&'a Path<'a>>,
    name: &'a str,
    keys: Keys,
}

impl<'a> Path<'a> {
    pub(super) fn of(name: &'a str, keys: Keys) -> Self {
        Self { parent: None, name, keys }
    }

    fn then(&'a self, name: &'a str) -> Self {
        Self { parent: Some(self), name, keys: self.keys }
    }

    /// The key declared for elements here.
    fn key(&self) -> Option<&'static str> {
        if self.keys.is_empty() {
            return None;
        }
        let path = self.to_string();
        self.keys.iter().find(|(of, _)| *of == path).map(|(_, key)| *key)
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            write!(f, "{parent}.")?;
        }
        f.write_str(self.name)
    }
}

/// The fields of a document by name, the first of several with one name; none where a value can't be read.
pub(super) fn by_name(document: &RawDocument) -> HashMap<&str, Option<RawBsonRef<'_>>> {
    let mut fields = HashMap::new();
    for element in document.iter_elements().flatten() {
        let name = text(element.key());
        fields.entry(name).or_insert(element.value().ok());
    }
    fields
}

fn values(array: &RawArray) -> Result<Vec<RawBsonRef<'_>>, Error> {
    array.into_iter().map(|value| value.map_err(|error| broken(&error))).collect()
}

fn owned(value: RawBsonRef<'_>) -> Result<Bson, Error> {
    Bson::try_from(value).map_err(|error| broken(&error))
}

#[cfg(test)]
mod tests {
    use mongodb::bson::{RawDocumentBuf, doc};

    use super::{super::fields::changes, *};
    use crate::encoding::codec;

    const KEYS: Keys = &[("lines", "sku"), ("groups.lines", "sku")];

    fn raw(document: &Document) -> RawDocumentBuf {
        codec::encode(document).unwrap()
    }

    /// What a save of `now` sets, of an aggregate that was `stored` and read as `before`; and what it dropped.
    fn saved(stored: &Document, before: &Document, now: &Document) -> (Document, Dropped) {
        let (stored, before, now) = (raw(stored), raw(before), raw(now));
        let found = unknown(&stored, &before, KEYS, &mut Search::default()).unwrap();
        let changes = changes(&before, &now, &found, KEYS).unwrap();
        (changes.set, changes.dropped)
    }

    #[test]
    fn unknown_fields_inside_a_changed_sub_document_survive() {
        let stored =
            doc! { "address": { "street": "a", "geo": { "x": 1, "y": 2 }, "note": "kept", "gone": 1 } };
        let before = doc! { "address": { "street": "a", "geo": { "x": 1 }, "gone": 1 } };
        let now = doc! { "address": { "street": "b", "geo": { "x": 5 } } };
        let expected = doc! { "address": { "street": "b", "geo": { "x": 5, "y": 2 }, "note": "kept" } };
        assert_eq!(saved(&stored, &before, &now), (expected, Dropped::new()));
    }

    #[test]
    fn unknown_fields_of_recognised_elements_survive() {
        let stored = doc! { "lines": [{ "sku": "a", "qty": 1, "discount": 5 }, { "sku": "b", "qty": 1, "gift": true }] };
        let before = doc! { "lines": [{ "sku": "a", "qty": 1 }, { "sku": "b", "qty": 1 }] };
        let now =
            doc! { "lines": [{ "sku": "b", "qty": 2 }, { "sku": "c", "qty": 1 }, { "sku": "a", "qty": 1 }] };
        let expected = doc! { "lines": [
            { "sku": "b", "qty": 2, "gift": true }, { "sku": "c", "qty": 1 }, { "sku": "a", "qty": 1, "discount": 5 },
        ] };
        assert_eq!(saved(&stored, &before, &now), (expected, Dropped::new()));
    }

    #[test]
    fn arrays_inside_elements_are_looked_into() {
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
        // The second row has changed, and a third one makes the lengths differ.
        let (set, dropped) = saved(&stored, &before, &now);
        assert_eq!(set, doc! { "rows": [[{ "a": 1, "u": 1 }], [{ "a": 9 }, { "a": 3 }], []] });
        assert_eq!(dropped, Dropped::from([("rows.u".into(), 2)]));
        let now = doc! { "rows": [[{ "a": 1 }], [{ "a": 9 }, { "a": 3 }]] };
        let (set, dropped) = saved(&stored, &before, &now);
        assert_eq!(set, doc! { "rows": [[{ "a": 1, "u": 1 }], [{ "a": 9, "u": 2 }, { "a": 3, "u": 3 }]] });
        assert_eq!(dropped, Dropped::new());
    }

    #[test]
    fn dropped_fields_are_counted_by_path_but_not_those_of_removed_elements() {
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
    fn elements_are_found_in_what_a_struct_has_reordered_or_converted() {
        // A set with an order of its own; numbers that are wider in the struct; a default that isn't stored.
        let stored = doc! { "set": [{ "a": 1, "u": 1 }, { "a": 2, "u": 2 }, { "a": 3, "u": 3 }] };
        let before = doc! { "set": [{ "a": 3_i64, "d": 0 }, { "a": 1_i64, "d": 0 }, { "a": 2_i64, "d": 0 }] };
        let now = doc! { "set": [{ "a": 3_i64, "d": 0 }, { "a": 2_i64, "d": 0 }] };
        let (set, dropped) = saved(&stored, &before, &now);
        let expected = doc! { "set": [{ "a": 3_i64, "d": 0, "u": 3 }, { "a": 2_i64, "d": 0, "u": 2 }] };
        assert_eq!((set, dropped), (expected, Dropped::new()));
    }

    #[test]
    fn elements_that_a_struct_leaves_out_are_counted_when_they_are_dropped() {
        let stored = doc! { "kinds": [{ "k": "a" }, { "k": "unheard of" }, { "k": "b", "u": 1 }] };
        let before = doc! { "kinds": [{ "k": "a" }, { "k": "b" }] };
        let (set, dropped) = saved(&stored, &before, &doc! { "kinds": [{ "k": "b" }] });
        assert_eq!(set, doc! { "kinds": [{ "k": "b", "u": 1 }] });
        assert_eq!(dropped, Dropped::from([("kinds".into(), 1)]));
    }

    #[test]
    fn what_cannot_be_written_back_is_not_lost() {
        let mut bytes = raw(&doc! { "address": { "street": "a", "geo": "#" } }).as_bytes().to_vec();
        let place = bytes.iter().position(|byte| *byte == b'#').unwrap();
        bytes[place] = 0xff;
        let stored = RawDocumentBuf::from_bytes(bytes).unwrap();
        let (before, now) = (doc! { "address": { "street": "a" } }, doc! { "address": { "street": "b" } });
        let found = unknown(&stored, &raw(&before), KEYS, &mut Search::default()).unwrap();
        let error = changes(&raw(&before), &raw(&now), &found, KEYS).unwrap_err();
        assert!(matches!(&error, Error::UnreadableField { field } if field == "address.geo"), "{error}");
    }

    /// An aggregate with arrays in arrays, whose every element has an id; unknown fields begin with `u`.
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
                let elements: Vec<Bson> =
                    (0..self.below(5)).map(|_| self.document(depth - 1).into()).collect();
                document.insert("elements", elements);
            }
            document
        }

        /// Changes a document as an application may.
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

    /// As the struct writes it.
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

    /// Fields in the order of their names.
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

    /// A save of any change writes what an application would that knew every field.
    #[test]
    fn of_elements_with_ids_no_save_loses_or_revives_a_field() {
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
                let written = changes.set.get("root").or(stored.get("root")).unwrap();
                assert_eq!(sorted(written), sorted(after.get("root").unwrap()));

                // What is remembered for the next save is what a load would find.
                for (field, unknown) in changes.unknown {
                    match unknown {
                        Some(unknown) => found.insert(field, unknown),
                        None => found.remove(&field),
                    };
                }
                (stored, before) = (after, now);
                assert_eq!(
                    found,
                    unknown(&raw(&stored), &raw(&before), &[], &mut Search::default()).unwrap()
                );
            }
        }
    }
}
