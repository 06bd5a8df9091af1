//! Patterns of namespaces: `shop.orders`, `shop.*`.

use std::{fmt, str::FromStr};

use super::shown;

/// One collection, `shop.orders`, or all collections of one database, `shop.*`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamespacePattern {
    database: String,
    collection: Option<String>,
}

/// Why a text is no pattern, in a sentence that starts with the text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidPattern(String);

impl NamespacePattern {
    /// The database.
    pub fn database(&self) -> &str {
        &self.database
    }

    /// The collection; `None` means all of the database.
    pub fn collection(&self) -> Option<&str> {
        self.collection.as_deref()
    }

    /// Whether a collection is one of those meant.
    pub fn matches(&self, database: &str, collection: &str) -> bool {
        self.database == database && self.collection.as_deref().is_none_or(|named| named == collection)
    }

    /// Whether there can be a collection that both mean.
    pub fn overlaps(&self, other: &Self) -> bool {
        let collections = self.collection().zip(other.collection());
        self.database == other.database && collections.is_none_or(|(one, another)| one == another)
    }
}

impl fmt::Display for NamespacePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.database, self.collection.as_deref().unwrap_or("*"))
    }
}

impl FromStr for NamespacePattern {
    type Err = InvalidPattern;

    fn from_str(text: &str) -> Result<Self, InvalidPattern> {
        let invalid = |flaw: String| InvalidPattern(format!("{} {flaw}", shown(text)));
        let Some((database, collection)) = text.split_once('.') else {
            let flaw = match text {
                "*" => "names no database; write database.* for each database",
                _ => "names no collection; write database.collection, or database.* for all of them",
            };
            return Err(invalid(flaw.into()));
        };
        if database.contains('*') {
            return Err(invalid(
                "has `*` for its database; name the databases one by one, as in shop.*".into(),
            ));
        }
        check_database(database).map_err(|flaw| invalid(format!("has a database that {flaw}")))?;
        if collection != "*" {
            check_collection(collection).map_err(|flaw| invalid(format!("has a collection that {flaw}")))?;
        }
        if text.len() > LONGEST_NAMESPACE {
            return Err(invalid(format!("is longer than the {LONGEST_NAMESPACE} bytes MongoDB allows")));
        }
        Ok(Self { database: database.into(), collection: (collection != "*").then(|| collection.into()) })
    }
}

/// <https://www.mongodb.com/docs/manual/reference/limits/#naming-restrictions>
const LONGEST_DATABASE: usize = 63;
const LONGEST_NAMESPACE: usize = 255;

/// The manual's rules for a database's name, but for the server's own databases: they take no outbox.
pub(crate) fn check_database(name: &str) -> Result<(), String> {
    if name.is_empty() {
        Err("has no name; write its name".into())
    } else if let Some(forbidden) = name.chars().find(|c| "/\\. \"$*\0".contains(*c)) {
        Err(format!("has a {forbidden:?} in its name; MongoDB allows none"))
    } else if name.len() > LONGEST_DATABASE {
        Err(format!("has a name longer than the {LONGEST_DATABASE} bytes MongoDB allows"))
    } else if ["admin", "config", "local"].contains(&name) {
        Err("is the server's own; name one of the application's".into())
    } else {
        Ok(())
    }
}

/// The manual's rules for a collection's name, but for `*`, which would look like a pattern.
fn check_collection(name: &str) -> Result<(), String> {
    if name.is_empty() {
        Err("has no name; write its name, or `*` for all".into())
    } else if name.contains('*') {
        Err("mixes `*` with letters; `*` stands alone and means all of the database".into())
    } else if let Some(forbidden) = name.chars().find(|c| "$\0".contains(*c)) {
        Err(format!("has a {forbidden:?} in its name; MongoDB allows none"))
    } else if name.starts_with("system.") {
        Err("is the server's own; name one of the application's".into())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_names_one_collection_which_may_hold_dots() {
        let pattern: NamespacePattern = "shop.orders.archive".parse().unwrap();
        assert_eq!((pattern.database(), pattern.collection()), ("shop", Some("orders.archive")));
        assert_eq!(pattern.to_string(), "shop.orders.archive");
        assert!(pattern.matches("shop", "orders.archive"));
        assert!(!pattern.matches("shop", "orders"));
    }

    #[test]
    fn a_star_means_all_collections_of_one_database() {
        let pattern: NamespacePattern = "shop.*".parse().unwrap();
        assert_eq!((pattern.collection(), pattern.to_string().as_str()), (None, "shop.*"));
        assert!(pattern.matches("shop", "orders"));
        assert!(!pattern.matches("stock", "orders"));
    }

    #[test]
    fn anything_else_is_refused_with_what_to_write_instead() {
        for (text, hint) in [
            ("shop", "write database.collection"),
            ("*", "names no database"),
            ("*.*", "name the databases one by one"),
            ("*.orders", "name the databases one by one"),
            ("sh*p.orders", "name the databases one by one"),
            ("shop.ord*", "`*` stands alone"),
            (".orders", "a database that has no name"),
            ("shop.", "a collection that has no name"),
            ("my shop.orders", "has a ' ' in its name"),
            ("shop.$cmd", "has a '$' in its name"),
            ("shop.system.views", "the server's own"),
            ("local.oplog.rs", "the server's own"),
            (&format!("{}.orders", "s".repeat(64)), "63 bytes"),
            (&format!("shop.{}", "o".repeat(255)), "255 bytes"),
        ] {
            let InvalidPattern(sentence) = text.parse::<NamespacePattern>().unwrap_err();
            assert!(sentence.contains(hint), "{sentence}");
        }
    }
}
