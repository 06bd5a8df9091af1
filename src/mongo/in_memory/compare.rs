//! Compares values in the order in which a MongoDB server sorts them.
//!
//! A value of one type is never equal to a value of another type, except that all numbers are one type. Fields of a
//! document have an order, so two documents with the same fields in another order differ.

use std::cmp::Ordering;

use mongodb::bson::{Bson, Document};

/// Whether a server considers these values equal.
pub(super) fn equal(one: &Bson, other: &Bson) -> bool {
    compare(one, other) == Ordering::Equal
}

/// Whether these values have the same type, where all numbers are one type. Only such values can be less or greater in
/// a filter.
pub(super) fn is_same_type(one: &Bson, other: &Bson) -> bool {
    rank(one) == rank(other)
}

/// Compares two values, first by their types.
pub(super) fn compare(one: &Bson, other: &Bson) -> Ordering {
    rank(one).cmp(&rank(other)).then_with(|| compare_same_type(one, other))
}

/// The place of a value's type in the order of types.
/// <https://www.mongodb.com/docs/manual/reference/bson-type-comparison-order/>
fn rank(value: &Bson) -> u8 {
    match value {
        Bson::MinKey => 0,
        Bson::Undefined => 1,
        Bson::Null => 2,
        Bson::Int32(_) | Bson::Int64(_) | Bson::Double(_) | Bson::Decimal128(_) => 3,
        Bson::String(_) | Bson::Symbol(_) => 4,
        Bson::Document(_) => 5,
        Bson::Array(_) => 6,
        Bson::Binary(_) => 7,
        Bson::ObjectId(_) => 8,
        Bson::Boolean(_) => 9,
        Bson::DateTime(_) => 10,
        Bson::Timestamp(_) => 11,
        Bson::RegularExpression(_) => 12,
        Bson::DbPointer(_) => 13,
        Bson::JavaScriptCode(_) => 14,
        Bson::JavaScriptCodeWithScope(_) => 15,
        Bson::MaxKey => 16,
    }
}

fn compare_same_type(one: &Bson, other: &Bson) -> Ordering {
    match (one, other) {
        (Bson::Document(one), Bson::Document(other)) => compare_documents(one, other),
        (Bson::Array(one), Bson::Array(other)) => compare_arrays(one, other),
        (Bson::String(one) | Bson::Symbol(one), Bson::String(other) | Bson::Symbol(other)) => one.cmp(other),
        (Bson::Binary(one), Bson::Binary(other)) => {
            let of = |binary: &mongodb::bson::Binary| (binary.bytes.len(), u8::from(binary.subtype));
            of(one).cmp(&of(other)).then_with(|| one.bytes.cmp(&other.bytes))
        }
        (Bson::ObjectId(one), Bson::ObjectId(other)) => one.cmp(other),
        (Bson::Boolean(one), Bson::Boolean(other)) => one.cmp(other),
        (Bson::DateTime(one), Bson::DateTime(other)) => one.cmp(other),
        (Bson::Timestamp(one), Bson::Timestamp(other)) => one.cmp(other),
        _ if rank(one) == rank(&Bson::Int32(0)) => compare_numbers(one, other),
        // The remaining types have no order that a test depends on, but they can be equal.
        _ => one.to_string().cmp(&other.to_string()),
    }
}

fn compare_documents(one: &Document, other: &Document) -> Ordering {
    for ((name, value), (other_name, other_value)) in one.iter().zip(other) {
        let fields = rank(value)
            .cmp(&rank(other_value))
            .then_with(|| name.cmp(other_name))
            .then_with(|| compare(value, other_value));
        if fields != Ordering::Equal {
            return fields;
        }
    }
    one.len().cmp(&other.len())
}

fn compare_arrays(one: &[Bson], other: &[Bson]) -> Ordering {
    for (value, other_value) in one.iter().zip(other) {
        let elements = compare(value, other_value);
        if elements != Ordering::Equal {
            return elements;
        }
    }
    one.len().cmp(&other.len())
}

/// A number, in the form in which it is compared.
enum Number {
    Whole(i64),
    Fraction(f64),
}

fn number(value: &Bson) -> Number {
    match value {
        Bson::Int32(number) => Number::Whole(i64::from(*number)),
        Bson::Int64(number) => Number::Whole(*number),
        Bson::Double(number) => Number::Fraction(*number),
        other => Number::Fraction(other.to_string().parse().unwrap_or(f64::NAN)),
    }
}

fn compare_numbers(one: &Bson, other: &Bson) -> Ordering {
    match (number(one), number(other)) {
        (Number::Whole(one), Number::Whole(other)) => one.cmp(&other),
        (Number::Whole(one), Number::Fraction(other)) => compare_mixed(one, other),
        (Number::Fraction(one), Number::Whole(other)) => compare_mixed(other, one).reverse(),
        (Number::Fraction(one), Number::Fraction(other)) => compare_fractions(one, other),
    }
}

/// A server sorts the value that is not a number before all numbers.
fn compare_fractions(one: f64, other: f64) -> Ordering {
    let of_no_number = (!one.is_nan()).cmp(&!other.is_nan());
    one.partial_cmp(&other).unwrap_or(of_no_number)
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "the cast of the fraction is checked to be in range, and its fractional part is compared separately"
)]
fn compare_mixed(whole: i64, fraction: f64) -> Ordering {
    const BEYOND: f64 = 9_223_372_036_854_775_808.0;
    if fraction.is_nan() || fraction < -BEYOND {
        Ordering::Greater
    } else if fraction >= BEYOND {
        Ordering::Less
    } else {
        whole.cmp(&(fraction as i64)).then_with(|| compare_fractions(0.0, fraction.fract()))
    }
}

#[cfg(test)]
mod tests {
    use mongodb::bson::{Uuid, doc};

    use super::*;

    #[test]
    fn numbers_are_equal_whatever_their_type() {
        assert!(equal(&Bson::Int32(1), &Bson::Int64(1)) && equal(&Bson::Int64(1), &Bson::Double(1.0)));
        assert!(!equal(&Bson::Int32(1), &Bson::String("1".into())));
        assert_eq!(compare(&Bson::Int64(i64::MAX), &Bson::Double(9.3e18)), Ordering::Less);
        assert_eq!(compare(&Bson::Double(-1.5), &Bson::Int32(-1)), Ordering::Less);
        assert_eq!(compare(&Bson::Double(f64::NAN), &Bson::Int32(i32::MIN)), Ordering::Less);
    }

    #[test]
    fn documents_are_equal_only_in_the_same_order() {
        let of = |document: Document| Bson::Document(document);
        assert!(equal(&of(doc! { "a": 1, "b": 2_i64 }), &of(doc! { "a": 1_i64, "b": 2 })));
        assert!(!equal(&of(doc! { "a": 1, "b": 2 }), &of(doc! { "b": 2, "a": 1 })));
        assert!(!equal(&of(doc! { "a": 1 }), &of(doc! { "a": 1, "b": 2 })));
    }

    #[test]
    fn a_uuid_differs_from_its_bytes_of_another_subtype() {
        let uuid = Uuid::new();
        let bytes = uuid.bytes().to_vec();
        let generic = mongodb::bson::Binary { subtype: mongodb::bson::spec::BinarySubtype::Generic, bytes };
        assert!(equal(&uuid.into(), &uuid.into()));
        assert!(!equal(&uuid.into(), &Bson::Binary(generic)));
    }
}
