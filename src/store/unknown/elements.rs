//! Matches the elements of a changed array with the elements of the old array.
//!
//! # Flow
//! Elements are matched by these steps, in order. Each step handles only elements that the earlier steps left
//! unmatched:
//! 1. Elements that are equal in all fields that the struct knows are matched by the longest common subsequence. Then
//!    equal elements that have moved are matched.
//! 2. Elements whose keys have the same value are matched, if that value is unique. The key is the declared field, or
//!    `_id` or `id` if no field is declared.
//! 3. Elements with the same index are matched, if the arrays have equal length, both neighbours are recognised at
//!    unchanged indexes, and the keys don't differ.
//!
//! # Caveats
//! Equal elements at the beginning and at the end of both arrays are matched first. For the remaining elements, the
//! longest common subsequence takes time and memory in proportion to the product of the two lengths. Above a limit this
//! step is skipped, and equal elements are matched in the order in which they occur. The result differs only if several
//! elements are equal to each other.

use std::collections::{HashMap, VecDeque};

use mongodb::bson::{RawBsonRef, RawDocument};

/// The fields that identify elements if no key is declared. The first of these fields that an element has is used.
const USUAL_KEYS: [&str; 2] = ["_id", "id"];

/// Maximum number of pairs that the longest common subsequence may compare.
const MOST_PAIRS: usize = 250_000;

/// Returns, for each element of the current array, the matching element of the old array.
pub(super) fn recognise(
    before: &[RawBsonRef<'_>],
    now: &[RawBsonRef<'_>],
    key: Option<&str>,
) -> Vec<Option<usize>> {
    let mut found = Recognised::none(before.len(), now.len());

    let (numbers_before, numbers_now) = numbered(before, now);
    found.equal_ones(&numbers_before, &numbers_now);
    if found.is_complete() {
        return found.now;
    }

    found.by_key(before, now, key);
    if before.len() == now.len() {
        found.between_recognised_ones(before, now, key);
    }
    found.now
}

/// For each element of the array that the struct writes, returns the stored element from which the struct has read
/// that element. `agrees` decides whether its second argument can have been read from its first.
pub(super) fn read_from(
    stored: &[RawBsonRef<'_>],
    known: &[RawBsonRef<'_>],
    key: Option<&str>,
    agrees: impl Fn(RawBsonRef<'_>, RawBsonRef<'_>) -> bool,
) -> Vec<Option<usize>> {
    let mut found = Recognised::none(stored.len(), known.len());
    for place in 0..stored.len().min(known.len()) {
        if agrees(stored[place], known[place]) {
            found.pair(place, place);
        }
    }
    if found.is_complete() {
        return found.now;
    }

    // The struct keeps the elements in another order, as a set does, or has left out some of them.
    found.by_key(stored, known, key);

    let (stored_rest, known_rest) = found.rest();
    found.in_order(&stored_rest, &known_rest, |i, j| agrees(stored[i], known[j]));
    if stored.len() == known.len() {
        // The struct changes the remaining values when it reads them. For example, a struct may remove the spaces
        // around a text.
        for place in 0..known.len() {
            if found.is_free(place) {
                found.pair(place, place);
            }
        }
    }
    found.now
}

/// Assigns a number to each value, so that documents and arrays can be compared by number: equal values have equal
/// numbers. Values of other types can't contain unknown fields, so all values of one such type share a number.
fn numbered<'a>(before: &[RawBsonRef<'a>], now: &[RawBsonRef<'a>]) -> (Vec<usize>, Vec<usize>) {
    let mut numbers = HashMap::new();
    let before = before.iter().map(|value| number_of(*value, &mut numbers)).collect();
    let now = now.iter().map(|value| number_of(*value, &mut numbers)).collect();
    (before, now)
}

fn number_of<'a>(value: RawBsonRef<'a>, numbers: &mut HashMap<(u8, &'a [u8]), usize>) -> usize {
    let bytes = match value {
        RawBsonRef::Document(document) => document.as_bytes(),
        RawBsonRef::Array(array) => array.as_bytes(),
        _ => &[],
    };
    let next = numbers.len();
    *numbers.entry((value.element_type() as u8, bytes)).or_insert(next)
}

struct Recognised {
    /// For each old element, its match in the current array.
    before: Vec<Option<usize>>,
    /// For each current element, its match in the old array.
    now: Vec<Option<usize>>,
}

impl Recognised {
    fn none(before: usize, now: usize) -> Self {
        Self { before: vec![None; before], now: vec![None; now] }
    }

    fn pair(&mut self, before: usize, now: usize) {
        self.before[before] = Some(now);
        self.now[now] = Some(before);
    }

    fn is_complete(&self) -> bool {
        self.now.iter().all(Option::is_some)
    }

    /// The unmatched elements of the old and the current array.
    fn rest(&self) -> (Vec<usize>, Vec<usize>) {
        (unpaired(&self.before), unpaired(&self.now))
    }

    fn is_free(&self, place: usize) -> bool {
        self.before[place].is_none() && self.now[place].is_none()
    }

    fn equal_ones(&mut self, before: &[usize], now: &[usize]) {
        let shorter = before.len().min(now.len());
        let head = (0..shorter).take_while(|place| before[*place] == now[*place]).count();
        for place in 0..head {
            self.pair(place, place);
        }

        for back in 1..=shorter - head {
            let (last_before, last_now) = (before.len() - back, now.len() - back);
            if before[last_before] != now[last_now] {
                break;
            }
            self.pair(last_before, last_now);
        }

        let (rest_before, rest_now) = self.rest();
        if rest_before.len().saturating_mul(rest_now.len()) <= MOST_PAIRS {
            for (i, j) in longest_common_subsequence(&rest_before, &rest_now, |i, j| before[i] == now[j]) {
                self.pair(i, j);
            }
        }
        self.moved_ones(before, now);
    }

    /// Matches the remaining equal elements in their order, even if their indexes differ.
    fn moved_ones(&mut self, before: &[usize], now: &[usize]) {
        let (rest_before, rest_now) = self.rest();
        let mut places: HashMap<usize, VecDeque<usize>> = HashMap::new();
        for place in rest_before {
            places.entry(before[place]).or_default().push_back(place);
        }
        for place in rest_now {
            if let Some(found) = places.get_mut(&now[place]).and_then(VecDeque::pop_front) {
                self.pair(found, place);
            }
        }
    }

    /// Matches each current element with the next equal old element, in order, within the limit on pairs.
    fn in_order(&mut self, before: &[usize], now: &[usize], same: impl Fn(usize, usize) -> bool) {
        let (mut compared, mut next) = (0, 0);
        for place in now {
            for nth in (next..before.len()).chain(0..next) {
                if self.before[before[nth]].is_some() {
                    continue;
                }
                compared += 1;
                if compared > MOST_PAIRS {
                    return;
                }
                if same(before[nth], *place) {
                    self.pair(before[nth], *place);
                    next = nth + 1;
                    break;
                }
            }
        }
    }

    fn by_key(&mut self, before: &[RawBsonRef<'_>], now: &[RawBsonRef<'_>], declared: Option<&str>) {
        // A key that occurs twice identifies no element, even if one of the two elements is already recognised.
        let (keys_before, keys_now) = (unique_keys(before, declared), unique_keys(now, declared));
        for (key, now) in keys_now {
            let before = keys_before.get(&key).copied();
            if let Some(before) = before
                && self.before[before].is_none()
                && self.now[now].is_none()
            {
                self.pair(before, now);
            }
        }
    }

    fn between_recognised_ones(
        &mut self,
        before: &[RawBsonRef<'_>],
        now: &[RawBsonRef<'_>],
        declared: Option<&str>,
    ) {
        // The ends of the array count as neighbours that haven't moved.
        let mut in_place = vec![true; now.len() + 2];
        for place in 0..now.len() {
            in_place[place + 1] = self.now[place] == Some(place);
        }

        for place in 0..now.len() {
            let is_between = in_place[place] && in_place[place + 2];
            if is_between && self.is_free(place) && !have_other_keys(before[place], now[place], declared) {
                self.pair(place, place);
            }
        }
    }
}

/// The places of elements without a match.
fn unpaired(places: &[Option<usize>]) -> Vec<usize> {
    (0..places.len()).filter(|place| places[*place].is_none()).collect()
}

/// Whether the keys prove that these are two different elements.
fn have_other_keys(before: RawBsonRef<'_>, now: RawBsonRef<'_>, declared: Option<&str>) -> bool {
    match (key_of(before, declared), key_of(now, declared)) {
        (Some(before), Some(now)) => before != now,
        _ => false,
    }
}

/// The keys that occur exactly once, with the places of their elements.
fn unique_keys(elements: &[RawBsonRef<'_>], declared: Option<&str>) -> HashMap<String, usize> {
    let mut places: HashMap<String, Option<usize>> = HashMap::new();
    for (place, element) in elements.iter().enumerate() {
        if let Some(key) = key_of(*element, declared) {
            places.entry(key).and_modify(|place| *place = None).or_insert(Some(place));
        }
    }
    places.into_iter().filter_map(|(key, place)| Some((key, place?))).collect()
}

/// The name and value of an element's key as text. Equal keys give equal text.
fn key_of(element: RawBsonRef<'_>, declared: Option<&str>) -> Option<String> {
    let RawBsonRef::Document(element) = element else { return None };
    match declared {
        Some(name) => key_named(element, name),
        None => USUAL_KEYS.into_iter().find_map(|name| key_named(element, name)),
    }
}

fn key_named(element: &RawDocument, name: &str) -> Option<String> {
    Some(format!("{name}: {}", value_of(element, name)?))
}

fn value_of(element: &RawDocument, name: &str) -> Option<String> {
    match element.get(name).ok().flatten()? {
        RawBsonRef::Null | RawBsonRef::Undefined => None,
        // A number may be written with a type other than the type with which it was read.
        RawBsonRef::Int32(number) => Some(number.to_string()),
        RawBsonRef::Int64(number) => Some(number.to_string()),
        RawBsonRef::Double(number) => Some(number.to_string()),
        value => Some(format!("{value:?}")),
    }
}

/// Finds the pairs of the longest common subsequence by dynamic programming.
fn longest_common_subsequence(
    before: &[usize],
    now: &[usize],
    same: impl Fn(usize, usize) -> bool,
) -> Vec<(usize, usize)> {
    // For each pair of places, the length of the longest common subsequence after these places.
    let width = now.len() + 1;
    let mut longest = vec![0_u32; (before.len() + 1) * width];
    for i in (0..before.len()).rev() {
        for j in (0..now.len()).rev() {
            longest[i * width + j] = if same(before[i], now[j]) {
                longest[(i + 1) * width + j + 1] + 1
            } else {
                longest[(i + 1) * width + j].max(longest[i * width + j + 1])
            };
        }
    }

    let mut pairs = Vec::new();
    let (mut i, mut j) = (0, 0);
    while i < before.len() && j < now.len() {
        if same(before[i], now[j]) {
            pairs.push((before[i], now[j]));
            (i, j) = (i + 1, j + 1);
        } else if longest[(i + 1) * width + j] >= longest[i * width + j + 1] {
            i += 1;
        } else {
            j += 1;
        }
    }
    pairs
}

#[cfg(test)]
mod tests {
    use mongodb::bson::{Bson, Document, RawDocumentBuf, doc};

    use super::*;
    use crate::encoding::codec;

    fn raw(elements: &[Document]) -> RawDocumentBuf {
        codec::encode(&doc! { "a": elements.iter().cloned().map(Bson::from).collect::<Vec<_>>() }).unwrap()
    }

    fn elements(raw: &RawDocumentBuf) -> Vec<RawBsonRef<'_>> {
        raw.get_array("a").unwrap().into_iter().map(Result::unwrap).collect()
    }

    fn found(before: &[Document], now: &[Document], key: Option<&str>) -> Vec<Option<usize>> {
        let (before, now) = (raw(before), raw(now));
        recognise(&elements(&before), &elements(&now), key)
    }

    fn lines(numbers: &[i32]) -> Vec<Document> {
        numbers.iter().map(|number| doc! { "n": *number }).collect()
    }

    #[test]
    fn equal_elements_are_recognised_around_added_and_removed_ones() {
        assert_eq!(found(&lines(&[1, 2]), &lines(&[1, 2, 3]), None), [Some(0), Some(1), None]);
        assert_eq!(found(&lines(&[1, 2, 3]), &lines(&[1, 3]), None), [Some(0), Some(2)]);
        assert_eq!(found(&lines(&[1, 2]), &lines(&[0, 1, 2]), None), [None, Some(0), Some(1)]);
        assert_eq!(found(&lines(&[]), &lines(&[1]), None), [None]);
        assert_eq!(found(&lines(&[1]), &lines(&[]), None), []);
    }

    #[test]
    fn of_equal_elements_those_in_order_are_taken() {
        // The first 7 was removed. A match by order alone would mistake it for the remaining 7.
        let found = found(&lines(&[7, 1, 7, 2]), &lines(&[1, 7, 9]), None);
        assert_eq!(found, [Some(1), Some(2), None]);
    }

    #[test]
    fn equal_elements_that_have_moved_are_recognised() {
        assert_eq!(found(&lines(&[1, 2, 3]), &lines(&[3, 1, 2]), None), [Some(2), Some(0), Some(1)]);
        assert_eq!(found(&lines(&[1, 2]), &lines(&[2, 1]), None), [Some(1), Some(0)]);
    }

    #[test]
    fn a_key_is_recognised_once_at_any_place() {
        let keyed = |keys: &[(&str, i32)]| -> Vec<Document> {
            keys.iter().map(|(key, n)| doc! { "sku": *key, "n": *n }).collect()
        };
        let (before, now) = (keyed(&[("a", 1), ("b", 2)]), keyed(&[("b", 3), ("a", 4), ("c", 1)]));
        assert_eq!(found(&before, &now, Some("sku")), [Some(1), Some(0), None]);
        assert_eq!(found(&before, &now, None), [None, None, None]);
        let twice = keyed(&[("a", 3), ("a", 4), ("c", 1)]);
        assert_eq!(found(&before, &twice, Some("sku")), [None, None, None]);
    }

    #[test]
    fn without_a_declared_key_an_id_is_one() {
        for name in ["_id", "id"] {
            let before = [doc! { name: 1, "n": 1 }, doc! { name: 2, "n": 2 }];
            let now = [doc! { name: 2, "n": 5 }, doc! { name: 1, "n": 6 }];
            assert_eq!(found(&before, &now, None), [Some(1), Some(0)], "{name}");
            // An element with a different id at the same index is a different element.
            assert_eq!(found(&before[..1], &now[..1], None), [None], "{name}");
        }
    }

    #[test]
    fn a_changed_element_is_recognised_between_recognised_neighbours() {
        assert_eq!(found(&lines(&[1, 2, 3]), &lines(&[1, 9, 3]), None), [Some(0), Some(1), Some(2)]);
        assert_eq!(found(&lines(&[1]), &lines(&[9]), None), [Some(0)]);
        assert_eq!(found(&lines(&[1, 2, 3]), &lines(&[8, 9, 3]), None), [None, None, Some(2)]);
        assert_eq!(found(&lines(&[1, 2, 3]), &lines(&[1, 9]), None), [Some(0), None]);
    }

    #[test]
    fn above_the_bound_equal_elements_are_still_recognised() {
        let before: Vec<i32> = (0..2_000).collect();
        let mut now: Vec<i32> = (1_000..2_000).chain(0..1_000).collect();
        now[500] = -1;
        let found = found(&lines(&before), &lines(&now), None);
        assert_eq!(found[500], None);
        let recognised = found.iter().zip(&now).filter(|(found, _)| found.is_some());
        assert!(recognised.clone().all(|(found, now)| found.unwrap() == usize::try_from(*now).unwrap()));
        assert_eq!(recognised.count(), 1_999);
    }
}
