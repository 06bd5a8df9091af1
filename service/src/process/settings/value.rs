//! Converts the text of a setting to its value.

use std::{ops::RangeInclusive, time::Duration};

use super::{
    key::{Check, Key, Kind},
    uri::Uri,
};
use crate::{
    namespace::{InvalidPattern, NamespacePattern},
    quote::shown,
    suggestion::did_you_mean,
};

/// The value of a key. There is no `Debug`, because a text may be a password that was given to the wrong
/// key.
#[derive(Clone, PartialEq)]
pub(super) enum Value {
    Uri(Uri),
    Duration(Duration),
    Integer(u64),
    Boolean(bool),
    Choice(String),
    Text(String),
    List(Vec<String>),
    Namespaces(Vec<NamespacePattern>),
}

impl Value {
    /// Parses `text` according to the kind of its key. Each error is a sentence.
    pub(super) fn parse(text: &str, kind: &Kind) -> Result<Self, Vec<String>> {
        let one = match kind {
            Kind::Uri(scheme) => Uri::parse(text, *scheme).map(Self::Uri),
            Kind::Duration(bounds) => duration(text, bounds).map(Self::Duration),
            Kind::Integer(bounds) => integer(text, bounds).map(Self::Integer),
            Kind::Boolean => boolean(text).map(Self::Boolean),
            Kind::Choice(names) => choice(text, names).map(Self::Choice),
            Kind::Text(check) => checked(text, *check).map(Self::Text),
            Kind::List(check) => return list(text, |item| checked(item, *check)).map(Self::List),
            Kind::Namespaces => return list(text, pattern).map(Self::Namespaces),
        };
        one.map_err(|sentence| vec![sentence])
    }

    /// The value of a key. An empty text is accepted only if the key's default is empty as well.
    pub(super) fn of(key: &Key, text: &str) -> Result<Self, Vec<String>> {
        match Self::empty(key.kind()) {
            Some(empty) if text.is_empty() && key.default() == Some("") => Ok(empty),
            _ if text.is_empty() => Err(vec![format!("is empty; give it a {}", key.kind().noun())]),
            _ => Self::parse(text, key.kind()),
        }
    }

    /// The value of an empty text; `None` if a key of this kind can't be empty.
    fn empty(kind: &Kind) -> Option<Self> {
        match kind {
            Kind::Text(_) => Some(Self::Text(String::new())),
            Kind::List(_) => Some(Self::List(Vec::new())),
            Kind::Namespaces => Some(Self::Namespaces(Vec::new())),
            _ => None,
        }
    }
}

fn duration(text: &str, bounds: &RangeInclusive<Duration>) -> Result<Duration, String> {
    if text.parse::<f64>().is_ok() {
        return Err(format!("{} has no unit; write it as in 250ms, 15s or 1h", shown(text)));
    }
    let value = humantime::parse_duration(text)
        .map_err(|_| format!("{} is not a duration; write it as in 250ms, 15s or 1h", shown(text)))?;
    within(value, bounds, |bound| humantime::format_duration(bound).to_string(), text)
}

fn integer(text: &str, bounds: &RangeInclusive<u64>) -> Result<u64, String> {
    let value = text.parse().map_err(|_| {
        format!(
            "{} is not a whole number; write one from {} to {}",
            shown(text),
            bounds.start(),
            bounds.end()
        )
    })?;
    within(value, bounds, |bound| bound.to_string(), text)
}

fn within<T: Copy + PartialOrd>(
    value: T,
    bounds: &RangeInclusive<T>,
    print: impl Fn(T) -> String,
    text: &str,
) -> Result<T, String> {
    if value < *bounds.start() {
        Err(format!("{} is too small; the minimum is {}", shown(text), print(*bounds.start())))
    } else if value > *bounds.end() {
        Err(format!("{} is too large; the maximum is {}", shown(text), print(*bounds.end())))
    } else {
        Ok(value)
    }
}

fn boolean(text: &str) -> Result<bool, String> {
    text.parse().map_err(|_| format!("{} is neither true nor false; write one of them", shown(text)))
}

fn choice(text: &str, names: &[&'static str]) -> Result<String, String> {
    if names.contains(&text) {
        return Ok(text.into());
    }
    let hint = did_you_mean(text, names.iter().copied());
    Err(format!("{} is not a choice{hint}; write one of {}", shown(text), names.join(", ")))
}

fn pattern(text: &str) -> Result<NamespacePattern, String> {
    text.parse().map_err(|invalid: InvalidPattern| invalid.to_string())
}

fn checked(text: &str, check: Check) -> Result<String, String> {
    check(text).map(|()| text.into()).map_err(|flaw| format!("{} {flaw}", shown(text)))
}

/// Parses items separated by commas. An empty item is an error, and a repeated item is dropped.
fn list<T: PartialEq>(text: &str, item: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>, Vec<String>> {
    let (mut items, mut sentences) = (Vec::new(), Vec::new());
    for text in text.split(',').map(str::trim) {
        match item(text) {
            _ if text.is_empty() => sentences.push("has an empty item; drop the spare comma".into()),
            Ok(item) if items.contains(&item) => {}
            Ok(item) => items.push(item),
            Err(sentence) => sentences.push(sentence),
        }
    }
    if sentences.is_empty() { Ok(items) } else { Err(sentences) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANY_DURATION: RangeInclusive<Duration> = Duration::ZERO..=Duration::MAX;

    #[test]
    fn durations_carry_their_unit() {
        for (text, millis) in
            [("250ms", 250), ("15s", 15_000), ("1h", 3_600_000), ("1h 30m", 5_400_000), ("0s", 0)]
        {
            assert_eq!(duration(text, &ANY_DURATION), Ok(Duration::from_millis(millis)));
        }
    }

    #[test]
    fn a_plain_number_is_not_a_duration() {
        for text in ["15", "0", "1.5", "-3"] {
            let sentence = duration(text, &ANY_DURATION).unwrap_err();
            assert_eq!(sentence, format!("{text:?} has no unit; write it as in 250ms, 15s or 1h"));
        }
        assert!(duration("soon", &ANY_DURATION).unwrap_err().contains("is not a duration"));
        assert!(duration("-3s", &ANY_DURATION).unwrap_err().contains("is not a duration"));
    }

    #[test]
    fn bounds_are_inclusive_and_named() {
        let bounds = Duration::from_secs(1)..=Duration::from_mins(1);
        assert!(duration("1s", &bounds).is_ok() && duration("60s", &bounds).is_ok());
        assert_eq!(duration("999ms", &bounds).unwrap_err(), r#""999ms" is too small; the minimum is 1s"#);
        assert_eq!(duration("61s", &bounds).unwrap_err(), r#""61s" is too large; the maximum is 1m"#);
        assert_eq!(integer("0", &(1..=9)).unwrap_err(), r#""0" is too small; the minimum is 1"#);
        assert_eq!(
            integer("-1", &(1..=9)).unwrap_err(),
            r#""-1" is not a whole number; write one from 1 to 9"#
        );
    }

    #[test]
    fn a_slip_in_a_choice_is_recognised() {
        assert_eq!(choice("off", &["declare", "off"]), Ok("off".into()));
        assert_eq!(
            choice("decalre", &["declare", "off"]).unwrap_err(),
            r#""decalre" is not a choice (did you mean declare?); write one of declare, off"#
        );
    }

    #[test]
    fn each_bad_item_of_a_list_has_its_sentence() {
        let sentences = Value::parse("shop.orders, stock,,shop.$cmd", &Kind::Namespaces).err();
        assert_eq!(sentences.map(|sentences| sentences.len()), Some(3));
    }

    #[test]
    fn a_repeated_item_counts_once() {
        let Ok(Value::Namespaces(patterns)) = Value::parse("shop.*, shop.*", &Kind::Namespaces) else {
            panic!("not parsed")
        };
        assert_eq!(patterns.len(), 1);
    }
}
