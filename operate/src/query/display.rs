//! Writes a query as text that can be read again.

use std::fmt::{self, Write};

use super::{Attempts, Moment, Query};
use crate::text;

impl fmt::Display for Query {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut conditions = Vec::new();
        let mut add = |field: &str, values: Vec<String>| {
            if !values.is_empty() {
                let values: Vec<String> = values.iter().map(|value| written(value)).collect();
                conditions.push(format!("{field}:{}", values.join(",")));
            }
        };

        add("type", self.types.iter().map(ToString::to_string).collect());
        add("state", self.states.iter().map(ToString::to_string).collect());
        add("reason", self.reasons.clone());
        add("error", self.errors.clone());
        add("doc", self.documents.clone());
        add("id", self.ids.iter().map(ToString::to_string).collect());
        add("collection", self.collections.iter().map(ToString::to_string).collect());
        add("since", self.since.iter().map(|moment| moment_text(*moment)).collect());
        add("until", self.until.iter().map(|moment| moment_text(*moment)).collect());
        add("attempts", self.attempts.iter().map(|range| range_text(*range)).collect());
        for (name, values) in &self.headers {
            add(&format!("header.{name}"), values.clone());
        }
        f.write_str(&conditions.join(" "))
    }
}

fn moment_text(moment: Moment) -> String {
    match moment {
        Moment::At(date) => text::date(date),
        Moment::Ago(ago) => outbox_service::written(ago),
    }
}

fn range_text(Attempts { least, most }: Attempts) -> String {
    if least == most {
        least.to_string()
    } else if most == i64::from(u32::MAX) && least == 0 {
        ">=0".to_owned()
    } else if most == i64::from(u32::MAX) {
        format!(">{}", least - 1)
    } else if most < 0 {
        "<0".to_owned()
    } else {
        format!("{least}..{most}")
    }
}

/// A value, quoted if needed.
fn written(value: &str) -> String {
    let is_plain = !value.is_empty() && !value.contains(|c: char| c.is_whitespace() || ",\"".contains(c));
    if is_plain {
        return value.to_owned();
    }
    let mut quoted = String::from("\"");
    for c in value.chars() {
        if matches!(c, '"' | '\\') {
            quoted.push('\\');
        }
        // Writing to a string never fails.
        let _ = quoted.write_char(c);
    }
    quoted.push('"');
    quoted
}
