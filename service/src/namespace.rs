//! Patterns of namespaces: `shop.orders`, `shop.*`, `tenant_*.orders`, `audit.log@5m`.

use std::{fmt, str::FromStr, time::Duration};

use crate::quote::shown;

/// A pattern that selects collections by their names and the names of their databases:
/// `shop.orders`, `shop.*`, `tenant_*.orders`, `*.*`. With `@` and a duration appended, as in
/// `audit.log@5m`, the pattern gives its collections their own delay.
///
/// A `*` matches any number of characters, including none. A pattern that contains a `*` never matches the
/// server's own databases (`admin`, `config`, `local`) and collections (`system.…`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamespacePattern {
    database: Glob,
    collection: Glob,
    delay: Option<Duration>,
}

/// A name in which each `*` matches any characters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Glob(String);

/// The reason why a text is not a pattern, as a sentence that starts with the text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidPattern(String);

impl NamespacePattern {
    /// The part of the pattern that matches databases.
    #[must_use]
    pub fn database(&self) -> &Glob {
        &self.database
    }

    /// The part of the pattern that matches collections.
    #[must_use]
    pub fn collection(&self) -> &Glob {
        &self.collection
    }

    /// The delay after the `@`, if there is one.
    #[must_use]
    pub fn delay(&self) -> Option<Duration> {
        self.delay
    }

    /// Whether the pattern matches a collection.
    #[must_use]
    pub fn matches(&self, database: &str, collection: &str) -> bool {
        !is_the_servers(database)
            && !is_system(collection)
            && self.database.matches(database)
            && self.collection.matches(collection)
    }

    /// Whether the pattern matches every collection that `other` matches.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        self.database.covers(&other.database) && self.collection.covers(&other.collection)
    }

    /// Whether a collection can match both patterns.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.database.overlaps(&other.database) && self.collection.overlaps(&other.collection)
    }

    /// Whether any of the patterns matches a collection.
    #[must_use]
    pub fn any_matches(patterns: &[Self], database: &str, collection: &str) -> bool {
        patterns.iter().any(|pattern| pattern.matches(database, collection))
    }

    /// Whether a collection can match a pattern in each list.
    #[must_use]
    pub fn any_overlap(one: &[Self], other: &[Self]) -> bool {
        one.iter().any(|one| other.iter().any(|other| one.overlaps(other)))
    }
}

impl Glob {
    /// A pattern for names of any kind, in which each `*` matches any characters.
    pub fn new(pattern: impl Into<String>) -> Self {
        Self(pattern.into())
    }

    /// The pattern as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The exact name, if there is no `*`.
    #[must_use]
    pub fn exact(&self) -> Option<&str> {
        (!self.0.contains('*')).then_some(&self.0)
    }

    /// Whether the glob matches every name.
    #[must_use]
    pub fn is_any(&self) -> bool {
        self.0.chars().all(|c| c == '*')
    }

    /// Whether the glob matches a name.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        let (pattern, name) = (self.0.as_bytes(), name.as_bytes());
        // The place of the last `*` in the pattern, and the place in the name up to which that `*`
        // has matched so far.
        let mut star = None;
        let (mut p, mut n) = (0, 0);
        while n < name.len() {
            match pattern.get(p) {
                Some(b'*') => {
                    star = Some((p, n));
                    p += 1;
                }
                Some(byte) if *byte == name[n] => (p, n) = (p + 1, n + 1),
                _ => match star {
                    Some((at, reach)) => {
                        star = Some((at, reach + 1));
                        (p, n) = (at + 1, reach + 1);
                    }
                    None => return false,
                },
            }
        }
        pattern[p..].iter().all(|byte| *byte == b'*')
    }

    /// Whether this glob matches every name that `other` matches. Names contain no `*`, so a `*` in `other` can
    /// only be matched by a `*` in this glob.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        self.matches(&other.0)
    }

    /// Whether any name can match both this glob and `other`.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        // `reached[j]`: whether a single name can match both the part of this pattern that was read so far
        // and the first `j` bytes of `other`.
        let (a, b) = (self.0.as_bytes(), other.0.as_bytes());
        let mut reached = vec![false; b.len() + 1];
        for i in 0..=a.len() {
            let above = reached.clone();
            for j in 0..=b.len() {
                let own = i.checked_sub(1).map(|at| a[at]);
                let others = j.checked_sub(1).map(|at| b[at]);
                reached[j] = match (own, others) {
                    (None, None) => true,
                    (Some(b'*'), _) if above[j] => true,
                    (_, Some(b'*')) if reached[j - 1] => true,
                    (Some(b'*'), Some(_)) => reached[j - 1],
                    (Some(_), Some(b'*')) => above[j],
                    (Some(own), Some(others)) => own == others && above[j - 1],
                    _ => false,
                };
            }
        }
        reached[b.len()]
    }

    /// An anchored regular expression that matches the same names as this glob. In names with a line break,
    /// `.` matches the line break, and the anchors match only the ends of the name.
    #[must_use]
    pub fn regex(&self) -> String {
        let mut regex = String::from("(?s)^");
        for c in self.0.chars() {
            match c {
                '*' => regex.push_str(".*"),
                c if c.is_alphanumeric() || c == '_' => regex.push(c),
                c => regex.extend(['\\', c]),
            }
        }
        regex.push_str("\\z");
        regex
    }
}

impl fmt::Display for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for NamespacePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.database, self.collection)?;
        match self.delay {
            Some(delay) => write!(f, "@{}", written(delay)),
            None => Ok(()),
        }
    }
}

/// Formats a duration as in settings, without blanks: `1h30m`.
#[must_use]
pub fn written(duration: Duration) -> String {
    humantime::format_duration(duration).to_string().replace(' ', "")
}

impl NamespacePattern {
    /// Parses patterns separated by commas, such as `shop.*,stock.items@2s`.
    ///
    /// # Errors
    /// Returns the error of the first pattern that is invalid.
    pub fn list(text: &str) -> Result<Vec<Self>, InvalidPattern> {
        text.split(',').map(|pattern| pattern.trim().parse()).collect()
    }
}

impl FromStr for NamespacePattern {
    type Err = InvalidPattern;

    fn from_str(text: &str) -> Result<Self, InvalidPattern> {
        let invalid = |flaw: String| InvalidPattern(format!("{} {flaw}", shown(text)));
        let (names, delay) = split_delay(text).map_err(invalid)?;
        let Some((database, collection)) = names.split_once('.') else {
            let flaw = match names {
                "*" => "names no collection; write *.* for all collections of all databases",
                _ => "names no collection; write database.collection, or database.* for all of them",
            };
            return Err(invalid(flaw.into()));
        };
        check_database_pattern(database).map_err(|flaw| invalid(format!("has a database that {flaw}")))?;
        check_collection(collection).map_err(|flaw| invalid(format!("has a collection that {flaw}")))?;
        if names.len() > LONGEST_NAMESPACE {
            return Err(invalid(format!("is longer than the {LONGEST_NAMESPACE} bytes MongoDB allows")));
        }
        Ok(Self { database: Glob(database.into()), collection: Glob(collection.into()), delay })
    }
}

/// The text after the last `@` is a delay if it starts with a digit; otherwise it belongs to the name.
fn split_delay(text: &str) -> Result<(&str, Option<Duration>), String> {
    match text.rsplit_once('@') {
        Some((names, delay)) if delay.starts_with(|c: char| c.is_ascii_digit()) => {
            let parsed = humantime::parse_duration(delay);
            let parsed = parsed.map_err(|_| {
                format!("has {}, which is not a delay; write one as in shop.orders@15s", shown(delay))
            })?;
            Ok((names, Some(parsed)))
        }
        _ => Ok((text, None)),
    }
}

/// <https://www.mongodb.com/docs/manual/reference/limits/#naming-restrictions>
const LONGEST_DATABASE: usize = 63;
const LONGEST_NAMESPACE: usize = 255;

/// Checks the manual's rules for a database's name. Also refuses the server's own databases, which can't
/// have an outbox.
pub(crate) fn check_database_pattern(name: &str) -> Result<(), String> {
    if name.is_empty() {
        Err("has no name; write its name".into())
    } else if let Some(forbidden) = name.chars().find(|c| "/\\. \"$\0".contains(*c)) {
        Err(format!("has a {forbidden:?} in its name, which MongoDB does not allow"))
    } else if name.len() > LONGEST_DATABASE {
        Err(format!("has a name longer than the {LONGEST_DATABASE} bytes MongoDB allows"))
    } else if is_the_servers(name) {
        Err("is the server's own; name one of the application's".into())
    } else {
        Ok(())
    }
}

/// Checks the manual's rules for a collection's name.
fn check_collection(name: &str) -> Result<(), String> {
    if name.is_empty() {
        Err("has no name; write its name, or `*` for all".into())
    } else if let Some(forbidden) = name.chars().find(|c| "$\0".contains(*c)) {
        Err(format!("has a {forbidden:?} in its name, which MongoDB does not allow"))
    } else if is_system(name) {
        Err("is the server's own; name one of the application's".into())
    } else {
        Ok(())
    }
}

fn is_the_servers(database: &str) -> bool {
    ["admin", "config", "local"].contains(&database)
}

fn is_system(collection: &str) -> bool {
    collection.starts_with("system.")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> NamespacePattern {
        text.parse().unwrap()
    }

    #[test]
    fn a_pattern_names_one_collection_which_may_hold_dots() {
        let pattern = pattern("shop.orders.archive");
        assert_eq!(pattern.database().exact(), Some("shop"));
        assert_eq!(pattern.collection().exact(), Some("orders.archive"));
        assert_eq!(pattern.to_string(), "shop.orders.archive");
        assert!(pattern.matches("shop", "orders.archive"));
        assert!(!pattern.matches("shop", "orders"));
    }

    #[test]
    fn a_star_matches_any_characters() {
        for (text, means, not) in [
            ("shop.*", ["shop.orders", "shop.a.b"], ["stock.orders", "shops.orders"]),
            ("tenant_*.orders", ["tenant_7.orders", "tenant_.orders"], ["tenant.orders", "tenant_7.order"]),
            ("*.orders", ["a.orders", "b.orders"], ["admin.orders", "a.b.orders"]),
            ("shop.order_*_eu", ["shop.order_1_eu", "shop.order_x_eu_eu"], ["shop.order_eu", "shop.order_1"]),
            ("*.*", ["a.b", "c.d.e"], ["local.oplog.rs", "a.system.views"]),
        ] {
            let of = |name: &str| {
                let (database, collection) = name.split_once('.').unwrap();
                pattern(text).matches(database, collection)
            };
            assert!(means.into_iter().all(of) && !not.into_iter().any(of), "{text}");
            assert_eq!(pattern(text).to_string(), text);
        }
    }

    #[test]
    fn a_number_behind_the_at_sign_is_a_delay() {
        let delay = |text: &str| pattern(text).delay();
        assert_eq!(delay("shop.*@2s"), Some(Duration::from_secs(2)));
        assert_eq!(delay("shop.mail@home@1h30m"), Some(Duration::from_mins(90)));
        assert_eq!(delay("shop.mail@home"), None);
        assert!(pattern("shop.mail@home").matches("shop", "mail@home"));
        assert_eq!(pattern("shop.*@90m").to_string(), "shop.*@1h30m");
        assert_ne!(pattern("shop.*@2s"), pattern("shop.*"));
    }

    #[test]
    fn a_pattern_covers_those_it_includes() {
        for (wide, narrow) in [
            ("shop.*", "shop.orders"),
            ("*.orders", "tenant_*.orders@2s"),
            ("*.*", "*.order_*"),
            ("a.b*", "a.b*"),
        ] {
            assert!(pattern(wide).covers(&pattern(narrow)), "{wide} {narrow}");
        }
        for (one, other) in
            [("shop.orders", "shop.*"), ("*.orders", "shop.*"), ("a.*_b", "a.*"), ("a.x*", "a.*x")]
        {
            assert!(!pattern(one).covers(&pattern(other)), "{one} {other}");
        }
    }

    #[test]
    fn two_patterns_overlap_where_a_name_can_meet_both() {
        for (one, other, overlap) in [
            ("*.orders", "shop.*", true),
            ("a.x*", "a.*x", true),
            ("a.ab*", "a.a*c", true),
            ("a.*b*", "a.c*", true),
            ("a.ab*", "a.ac*", false),
            ("a.*b", "a.*c", false),
            ("shop.orders", "shop.stock", false),
            ("shop.*", "stock.*", false),
        ] {
            assert_eq!(pattern(one).overlaps(&pattern(other)), overlap, "{one} {other}");
            assert_eq!(pattern(other).overlaps(&pattern(one)), overlap, "{other} {one}");
        }
    }

    #[test]
    fn a_regular_expression_escapes_every_name() {
        assert_eq!(pattern("shop.a.b-*+").collection().regex(), r"(?s)^a\.b\-.*\+\z");
    }

    #[test]
    fn anything_else_is_refused_with_a_correction() {
        for (text, hint) in [
            ("shop", "write database.collection"),
            ("*", "write *.*"),
            (".orders", "a database that has no name"),
            ("shop.", "a collection that has no name"),
            ("my shop.orders", "has a ' ' in its name"),
            ("shop.$cmd", "has a '$' in its name"),
            ("shop.system.views", "the server's own"),
            ("local.oplog.rs", "the server's own"),
            ("shop.orders@2", "not a delay"),
            ("shop.orders@2 parsecs", "not a delay"),
            (&format!("{}.orders", "s".repeat(64)), "63 bytes"),
            (&format!("shop.{}", "o".repeat(255)), "255 bytes"),
        ] {
            let InvalidPattern(sentence) = text.parse::<NamespacePattern>().unwrap_err();
            assert!(sentence.contains(hint), "{sentence}");
        }
    }
}
