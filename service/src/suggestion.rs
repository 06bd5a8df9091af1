//! Suggests corrections, as in "did you mean …?".

/// The candidate closest to the misspelled `given`. The candidate may differ from `given` in case, in `-`
/// instead of `_`, or in at most a third of the letters.
fn nearest<'a>(given: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let given = normal(given);
    let allowed = (given.chars().count() / 3).max(1);
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&given, &normal(candidate)), candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Returns a text such as ` (did you mean delay?)`, or an empty text if no candidate is close.
pub fn did_you_mean<'a>(given: &str, candidates: impl IntoIterator<Item = &'a str>) -> String {
    nearest(given, candidates).map(|name| format!(" (did you mean {name}?)")).unwrap_or_default()
}

fn normal(name: &str) -> String {
    // All variables share a prefix, which doesn't make two of them similar.
    let bare = name.trim_start_matches('-').trim_start_matches("OUTBOX_");
    bare.replace('-', "_").to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: [&str; 3] = ["delay", "shutdown_grace", "mongodb_uri"];

    #[test]
    fn a_slip_of_the_finger_finds_its_key() {
        assert_eq!(nearest("delya", KEYS), Some("delay"));
        assert_eq!(nearest("Shutdown-Grace", KEYS), Some("shutdown_grace"));
        assert_eq!(nearest("mongo_uri", KEYS), Some("mongodb_uri"));
    }

    #[test]
    fn a_word_unlike_all_keys_finds_none() {
        assert_eq!(nearest("colour", KEYS), None);
        assert_eq!(nearest("OUTBOX_COLOUR", ["OUTBOX_CONFIG", "OUTBOX_DELAY"]), None);
        assert_eq!(nearest("", KEYS), None);
    }
}
