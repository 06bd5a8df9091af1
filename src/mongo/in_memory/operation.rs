//! The operations of update operators on one field.

use std::cmp::Ordering;

use mongodb::bson::{Bson, DateTime, Document};

use super::{
    compare::{compare, equal},
    filter::{self, operators_of},
    refused::{BAD_VALUE, FAILED_TO_PARSE, Refused, TYPE_MISMATCH},
};

/// The operation of an update operator on one field.
#[derive(Debug, Clone)]
pub(super) enum Operation {
    Set(Bson),
    Unset,
    /// Adds a number.
    Inc(Bson),
    Mul(Bson),
    /// Sets the value if it is less than the stored value.
    Min(Bson),
    Max(Bson),
    /// Appends values to an array.
    Push(Vec<Bson>),
    /// Appends the values that the array doesn't have.
    AddToSet(Vec<Bson>),
    /// Removes the elements that are equal to the value, or that meet the condition.
    Pull(Bson),
    /// Removes the elements that are equal to one of the values.
    PullAll(Vec<Bson>),
    /// Removes the last element, or the first one if the number is negative.
    Pop(Bson),
}

/// The result of an operation on a field.
pub(super) enum Edit {
    Keep,
    Set(Bson),
    Remove,
}

impl Operation {
    /// Builds the operation of an operator on one field.
    pub(super) fn of(operator: &str, operand: &Bson, now: DateTime) -> Result<Self, Refused> {
        Ok(match operator {
            "$set" => Self::Set(operand.clone()),
            "$unset" => Self::Unset,
            "$inc" => Self::Inc(number(operand)?),
            "$mul" => Self::Mul(number(operand)?),
            "$min" => Self::Min(operand.clone()),
            "$max" => Self::Max(operand.clone()),
            "$push" => Self::Push(each(operator, operand)?),
            "$addToSet" => Self::AddToSet(each(operator, operand)?),
            "$pull" => Self::Pull(pulled(operand)?),
            "$pullAll" => Self::PullAll(array(operand)?.clone()),
            "$pop" => Self::Pop(number(operand)?),
            "$currentDate" if *operand == Bson::Boolean(true) => Self::Set(Bson::DateTime(now)),
            other => return Err(Refused::not_interpreted(format_args!("`{other}` in an update"))),
        })
    }

    /// Whether the operation creates a field that doesn't exist.
    pub(super) fn creates(&self) -> bool {
        !matches!(self, Self::Unset | Self::Pull(_) | Self::PullAll(_) | Self::Pop(_))
    }

    /// Whether the operation may have a path that leads through a value without fields.
    pub(super) fn ignores_dead_ends(&self) -> bool {
        matches!(self, Self::Unset)
    }

    /// Applies the operation to a field's value. `None` means that there is no such field.
    pub(super) fn edit(&self, stored: Option<&Bson>) -> Result<Edit, Refused> {
        let Some(stored) = stored else { return self.edit_absent() };
        let edit = match self {
            Self::Set(value) => Edit::Set(value.clone()),
            Self::Unset => Edit::Remove,
            Self::Inc(by) => Edit::Set(add(stored, by)?),
            Self::Mul(by) => Edit::Set(multiply(stored, by)?),
            Self::Min(value) if compare(value, stored) == Ordering::Less => Edit::Set(value.clone()),
            Self::Max(value) if compare(value, stored) == Ordering::Greater => Edit::Set(value.clone()),
            Self::Min(_) | Self::Max(_) => Edit::Keep,
            Self::Push(values) => {
                let mut elements = array(stored)?.clone();
                elements.extend(values.iter().cloned());
                Edit::Set(Bson::Array(elements))
            }
            Self::AddToSet(values) => Edit::Set(Bson::Array(with_missing(array(stored)?, values))),
            Self::Pull(condition) => {
                let mut elements = array(stored)?.clone();
                elements.retain(|element| !is_pulled(element, condition));
                Edit::Set(Bson::Array(elements))
            }
            Self::PullAll(values) => {
                let mut elements = array(stored)?.clone();
                elements.retain(|element| !values.iter().any(|value| equal(value, element)));
                Edit::Set(Bson::Array(elements))
            }
            Self::Pop(end) => match stored {
                Bson::Array(elements) => Edit::Set(Bson::Array(popped(elements, end))),
                _ => return Err(Refused::new(TYPE_MISMATCH, "$pop needs a field that is an array")),
            },
        };
        Ok(edit)
    }

    fn edit_absent(&self) -> Result<Edit, Refused> {
        Ok(match self {
            Self::Set(value) | Self::Inc(value) | Self::Min(value) | Self::Max(value) => {
                Edit::Set(value.clone())
            }
            Self::Mul(by) => Edit::Set(multiply(&Bson::Int32(0), by)?),
            Self::Push(values) => Edit::Set(Bson::Array(values.clone())),
            Self::AddToSet(values) => Edit::Set(Bson::Array(with_missing(&[], values))),
            Self::Unset | Self::Pull(_) | Self::PullAll(_) | Self::Pop(_) => Edit::Keep,
        })
    }
}

fn array(value: &Bson) -> Result<&Vec<Bson>, Refused> {
    value.as_array().ok_or_else(|| Refused::new(BAD_VALUE, "the operator needs a field that is an array"))
}

/// The values that `$push` and `$addToSet` append: one value, or all values of `$each`.
fn each(operator: &str, operand: &Bson) -> Result<Vec<Bson>, Refused> {
    let Some(modifiers) = operators_of(operand) else { return Ok(vec![operand.clone()]) };
    if let Some(other) = modifiers.keys().find(|name| *name != "$each") {
        return Err(Refused::not_interpreted(format_args!("`{other}` of `{operator}`")));
    }
    match modifiers.get("$each") {
        Some(Bson::Array(values)) => Ok(values.clone()),
        _ => Err(Refused::new(BAD_VALUE, format!("the argument to $each in {operator} must be an array"))),
    }
}

fn number(operand: &Bson) -> Result<Bson, Refused> {
    match operand {
        Bson::Int32(_) | Bson::Int64(_) | Bson::Double(_) => Ok(operand.clone()),
        Bson::Decimal128(_) => Err(Refused::not_interpreted("arithmetic with Decimal128")),
        other => Err(Refused::new(
            TYPE_MISMATCH,
            format!("cannot calculate with the non-numeric argument {other}"),
        )),
    }
}

fn add(stored: &Bson, by: &Bson) -> Result<Bson, Refused> {
    calculate(stored, by, i64::checked_add, |one, other| one + other)
}

fn multiply(stored: &Bson, by: &Bson) -> Result<Bson, Refused> {
    calculate(stored, by, i64::checked_mul, |one, other| one * other)
}

/// Calculates in whole numbers if both are whole. The result has 32 bits if both numbers have 32 bits and it fits.
fn calculate(
    stored: &Bson,
    by: &Bson,
    whole: fn(i64, i64) -> Option<i64>,
    fraction: fn(f64, f64) -> f64,
) -> Result<Bson, Refused> {
    let (stored, by) = (number(stored)?, number(by)?);
    let (Some(one), Some(other)) = (whole_number(&stored), whole_number(&by)) else {
        return Ok(Bson::Double(fraction(fraction_of(&stored), fraction_of(&by))));
    };

    let Some(result) = whole(one, other) else {
        return Err(Refused::new(BAD_VALUE, "the result does not fit into 64 bits"));
    };
    let is_short = matches!((&stored, &by), (Bson::Int32(_), Bson::Int32(_)));
    match i32::try_from(result) {
        Ok(short) if is_short => Ok(Bson::Int32(short)),
        _ => Ok(Bson::Int64(result)),
    }
}

fn whole_number(value: &Bson) -> Option<i64> {
    match value {
        Bson::Int32(number) => Some(i64::from(*number)),
        Bson::Int64(number) => Some(*number),
        _ => None,
    }
}

#[allow(clippy::cast_precision_loss, reason = "a server loses the same precision")]
fn fraction_of(value: &Bson) -> f64 {
    match value {
        Bson::Double(number) => *number,
        other => whole_number(other).unwrap_or(0) as f64,
    }
}

fn with_missing(stored: &[Bson], values: &[Bson]) -> Vec<Bson> {
    let mut elements = stored.to_vec();
    for value in values {
        if !elements.iter().any(|element| equal(element, value)) {
            elements.push(value.clone());
        }
    }
    elements
}

/// Checks the operand of `$pull`.
fn pulled(operand: &Bson) -> Result<Bson, Refused> {
    match (operators_of(operand), operand) {
        (None, Bson::Document(filter)) => filter::check(filter)?,
        _ => filter::check_condition(operand)?,
    }
    Ok(operand.clone())
}

fn is_pulled(element: &Bson, condition: &Bson) -> bool {
    if operators_of(condition).is_some() {
        // A condition on the elements themselves, as in `{ $pull: { numbers: { $gt: 5 } } }`.
        let of = |value: &Bson| Document::from_iter([("element".into(), value.clone())]);
        return filter::matches(&of(condition), &of(element));
    }
    match (condition, element) {
        (Bson::Document(filter), Bson::Document(document)) => filter::matches(filter, document),
        (Bson::Document(_), _) => false,
        (value, element) => equal(value, element),
    }
}

fn popped(stored: &[Bson], end: &Bson) -> Vec<Bson> {
    let is_first = compare(end, &Bson::Int32(0)) == Ordering::Less;
    let left = if is_first { stored.get(1..) } else { stored.split_last().map(|(_, rest)| rest) };
    left.unwrap_or_default().to_vec()
}

/// The operators of an update with the fields of each.
pub(super) fn operators(update: &Document) -> Result<Vec<(&String, &Document)>, Refused> {
    let mut operators = Vec::new();
    for (operator, fields) in update {
        if !operator.starts_with('$') {
            return Err(Refused::new(FAILED_TO_PARSE, format!("`{operator}` is not an update operator")));
        }
        let Some(fields) = fields.as_document() else {
            let text = format!("the fields of `{operator}` must be a document");
            return Err(Refused::new(FAILED_TO_PARSE, text));
        };
        operators.push((operator, fields));
    }
    Ok(operators)
}
