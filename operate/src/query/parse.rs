//! Reads a query. Each error points at the place in the text and says what to write instead.

use std::{fmt, ops::Range, str::FromStr, time::Duration};

use mongodb::bson::{DateTime, Uuid};
use outbox_service::{Glob, NamespacePattern, did_you_mean};
use strum::VariantNames;

use super::{Attempts, Moment, Query};
use crate::state::MessageState;

const FIELDS: [&str; 10] =
    ["type", "state", "reason", "error", "doc", "id", "collection", "since", "until", "attempts"];
const HEADER: &str = "header.";
/// The longest text that a message about an error quotes.
const QUOTED: usize = 40;

/// Why a text is not a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueryError {
    /// The whole text.
    pub text: String,
    /// The part with the mistake, in bytes.
    pub place: Range<usize>,
    /// The mistake, and what to write instead.
    pub sentence: String,
}

impl std::error::Error for QueryError {}

/// Shows the sentence, and below it the text with the place marked.
impl fmt::Display for QueryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let before = self.text[..self.place.start].chars().count();
        let marked = self.text[self.place.clone()].chars().count().max(1);
        let line: String = self.text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();

        writeln!(f, "{}", self.sentence)?;
        writeln!(f, "  {line}")?;
        write!(f, "  {}{}", " ".repeat(before), "^".repeat(marked))
    }
}

/// One condition of the text: a field and its values.
struct Condition {
    field: String,
    field_place: Range<usize>,
    values: Vec<Item>,
}

/// A value, without its quotes.
struct Item {
    text: String,
    place: Range<usize>,
}

/// A mistake at a place in the text.
struct Flaw {
    place: Range<usize>,
    sentence: String,
}

impl FromStr for Query {
    type Err = QueryError;

    fn from_str(text: &str) -> Result<Self, QueryError> {
        let of_flaw =
            |flaw: Flaw| QueryError { text: text.to_owned(), place: flaw.place, sentence: flaw.sentence };

        let mut reader = TextReader { text, at: 0 };
        let mut query = Self::default();
        let mut seen = Vec::new();
        while let Some(condition) = reader.condition().map_err(of_flaw)? {
            if seen.contains(&condition.field) {
                let sentence = format!(
                    "`{}` is given twice; write its values in one condition, separated by commas",
                    cut(&condition.field)
                );
                return Err(of_flaw(Flaw { place: condition.field_place, sentence }));
            }
            seen.push(condition.field.clone());
            query.add(condition).map_err(of_flaw)?;
        }
        Ok(query)
    }
}

impl Query {
    fn add(&mut self, condition: Condition) -> Result<(), Flaw> {
        let Condition { field, field_place, values } = condition;
        if let Some(name) = field.strip_prefix(HEADER) {
            if name.is_empty() {
                return flaw(field_place, "a header has a name, as in header.tenant:south");
            }
            self.headers.push((name.to_owned(), texts(values)));
            return Ok(());
        }

        match field.as_str() {
            "type" => self.types = values.into_iter().map(|item| Glob::new(item.text)).collect(),
            "state" => self.states = each(values, state)?,
            "reason" => self.reasons = texts(values),
            "error" => self.errors = texts(values),
            "doc" => self.documents = texts(values),
            "id" => self.ids = each(values, id)?,
            "collection" => self.collections = each(values, collection)?,
            "since" => self.since = Some(one(values, moment)?),
            "until" => self.until = Some(one(values, moment)?),
            "attempts" => self.attempts = Some(one(values, attempts)?),
            _ => return Err(Flaw { place: field_place, sentence: unknown(&field) }),
        }
        Ok(())
    }
}

fn unknown(field: &str) -> String {
    let meant = did_you_mean(field, FIELDS);
    format!(
        "there is no field `{}`{meant}; the fields are {} and {HEADER}NAME",
        cut(field),
        FIELDS.join(", ")
    )
}

fn texts(values: Vec<Item>) -> Vec<String> {
    values.into_iter().map(|item| item.text).collect()
}

fn each<T>(values: Vec<Item>, read: fn(&str) -> Result<T, String>) -> Result<Vec<T>, Flaw> {
    values
        .into_iter()
        .map(|item| read(&item.text).map_err(|sentence| Flaw { place: item.place, sentence }))
        .collect()
}

fn one<T>(values: Vec<Item>, read: fn(&str) -> Result<T, String>) -> Result<T, Flaw> {
    let mut values = values.into_iter();
    // A condition has at least one value.
    let Some(first) = values.next() else { return flaw(0..0, "a value is missing") };
    if let Some(second) = values.next() {
        return flaw(second.place, "this field takes only one value");
    }
    read(&first.text).map_err(|sentence| Flaw { place: first.place, sentence })
}

fn state(text: &str) -> Result<MessageState, String> {
    text.parse().map_err(|_| {
        let meant = did_you_mean(text, MessageState::VARIANTS.iter().copied());
        format!(
            "there is no state `{}`{meant}; the states are {}",
            cut(text),
            MessageState::VARIANTS.join(", ")
        )
    })
}

fn id(text: &str) -> Result<Uuid, String> {
    Uuid::parse_str(text).map_err(|_| {
        format!(
            "`{}` is not a UUID; write all of the id, as in 018bcfe5-6878-7e5e-9d8b-1f5a4d6a9c11",
            cut(text)
        )
    })
}

fn collection(text: &str) -> Result<NamespacePattern, String> {
    let pattern: NamespacePattern =
        text.parse().map_err(|invalid: outbox_service::InvalidPattern| invalid.to_string())?;
    if pattern.delay().is_some() {
        return Err("a collection in a query has no delay; leave out the part from the @ on".to_owned());
    }
    Ok(pattern)
}

fn moment(text: &str) -> Result<Moment, String> {
    if let Ok(ago) = humantime::parse_duration(text) {
        return Ok(Moment::Ago(whole_millis(ago)));
    }
    let date = DateTime::parse_rfc3339_str(text).or_else(|_| {
        // A day is its beginning, in UTC.
        DateTime::parse_rfc3339_str(format!("{text}T00:00:00Z"))
    });
    date.map(Moment::At).map_err(|_| {
        format!(
            "`{}` is not a time; write a duration before now (90m, 24h, 7d), a day (2026-01-31), or a time in UTC \
             (2026-01-31T12:00:00Z)",
            cut(text)
        )
    })
}

/// The dates of entries have milliseconds.
fn whole_millis(duration: Duration) -> Duration {
    Duration::from_millis(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

fn attempts(text: &str) -> Result<Attempts, String> {
    let number = |digits: &str| -> Result<i64, String> {
        digits.parse::<u32>().map(i64::from).map_err(|_| {
            format!("`{}` is not a number of attempts; write 3, >3, >=3, <3, <=3 or 2..5", cut(text))
        })
    };

    let most = i64::from(u32::MAX);
    if let Some(digits) = text.strip_prefix(">=") {
        Ok(Attempts { least: number(digits)?, most })
    } else if let Some(digits) = text.strip_prefix('>') {
        Ok(Attempts { least: number(digits)? + 1, most })
    } else if let Some(digits) = text.strip_prefix("<=") {
        Ok(Attempts { least: 0, most: number(digits)? })
    } else if let Some(digits) = text.strip_prefix('<') {
        Ok(Attempts { least: 0, most: number(digits)? - 1 })
    } else if let Some((least, most)) = text.split_once("..") {
        Ok(Attempts { least: number(least)?, most: number(most)? })
    } else {
        let exact = number(text)?;
        Ok(Attempts { least: exact, most: exact })
    }
}

/// Splits a text into conditions.
struct TextReader<'a> {
    text: &'a str,
    /// The place of the next character.
    at: usize,
}

impl TextReader<'_> {
    fn peek(&self) -> Option<char> {
        self.text[self.at..].chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let next = self.peek()?;
        self.at += next.len_utf8();
        Some(next)
    }

    /// Reads the next condition; `None` at the end of the text.
    fn condition(&mut self) -> Result<Option<Condition>, Flaw> {
        while self.peek().is_some_and(char::is_whitespace) {
            self.next();
        }
        if self.peek().is_none() {
            return Ok(None);
        }

        let start = self.at;
        while self.peek().is_some_and(|c| c != ':' && !c.is_whitespace()) {
            self.next();
        }
        let field_place = start..self.at;
        let field = self.text[field_place.clone()].to_owned();
        if self.peek() != Some(':') {
            return flaw(field_place, without_field(&field));
        }
        self.next();

        let mut values = vec![self.item(&field)?];
        while self.peek() == Some(',') {
            self.next();
            values.push(self.item(&field)?);
        }
        match self.peek() {
            Some(c) if !c.is_whitespace() => {
                flaw(self.at..self.at + c.len_utf8(), "a blank is missing between two conditions")
            }
            _ => Ok(Some(Condition { field, field_place, values })),
        }
    }

    /// Reads one value.
    fn item(&mut self, field: &str) -> Result<Item, Flaw> {
        let start = self.at;
        if self.peek() == Some('"') {
            return self.quoted(start);
        }
        while self.peek().is_some_and(|c| c != ',' && c != '"' && !c.is_whitespace()) {
            self.next();
        }

        let place = start..self.at;
        if place.is_empty() {
            let sentence =
                format!("`{}:` has no value here; write it directly after the colon or comma", cut(field));
            return flaw(place, sentence);
        }
        Ok(Item { text: self.text[place.clone()].to_owned(), place })
    }

    fn quoted(&mut self, start: usize) -> Result<Item, Flaw> {
        self.next();
        let mut text = String::new();
        loop {
            match self.next() {
                Some('"') => return Ok(Item { text, place: start..self.at }),
                Some('\\') => match self.next() {
                    Some(c @ ('"' | '\\')) => text.push(c),
                    _ => {
                        return flaw(
                            start..self.at,
                            "after a backslash in quotes comes a quote or a backslash",
                        );
                    }
                },
                Some(c) => text.push(c),
                None => return flaw(start..self.at, "the quote is not closed"),
            }
        }
    }
}

fn without_field(word: &str) -> String {
    if Uuid::parse_str(word).is_ok() {
        return format!("write id:{word} to search for an id");
    }
    if word.parse::<MessageState>().is_ok() {
        return format!("write state:{word} to search for a state");
    }
    format!("`{}` has no field; write FIELD:VALUE, for example type:order.placed or doc:o-1", cut(word))
}

fn flaw<T>(place: Range<usize>, sentence: impl Into<String>) -> Result<T, Flaw> {
    Err(Flaw { place, sentence: sentence.into() })
}

/// The beginning of a text, on one line.
fn cut(text: &str) -> String {
    let mut short: String = text.chars().take(QUOTED).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}
