//! Quotes a value in a sentence for users.

/// A value in the form in which a problem may quote it: on one line, and not too long. The value is not
/// quoted at all if it could be a URI or a private key that was given to the wrong key.
pub(crate) fn shown(value: &str) -> String {
    const LONGEST: usize = 60;
    if value.contains("//") || value.contains('@') || value.contains("-----BEGIN") {
        return "the value (not shown, it could hold a password)".into();
    }
    match value.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{:?}…", &value[..end]),
        None => format!("{value:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quoted_value_is_short_and_harmless() {
        assert_eq!(shown("a\nb"), r#""a\nb""#);
        assert!(shown(&"ä".repeat(500)).len() < 150);
        assert!(!shown("amqp://guest:hunter2@rabbit").contains("hunter2"));
        assert!(!shown("hunter2@rabbit").contains("hunter2"));
        assert!(!shown("-----BEGIN PRIVATE KEY-----\nhunter2").contains("hunter2"));
    }
}
