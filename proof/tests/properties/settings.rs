//! Properties of settings: a file is read, printed, and read again.

use outbox_proof::targets::{check_settings, settings_keys};
use outbox_service::{Key, Kind};
use proptest::prelude::*;

/// Generates a value that a key accepts, in the notation of the file.
fn value_of(key: &Key) -> BoxedStrategy<String> {
    match key.kind() {
        Kind::Duration(bounds) => {
            let (from, to) = (bounds.start().as_millis(), bounds.end().as_millis().min(1 << 40));
            (u64::try_from(from).unwrap()..=u64::try_from(to).unwrap())
                .prop_map(|millis| {
                    format!("\"{}\"", humantime::format_duration(std::time::Duration::from_millis(millis)))
                })
                .boxed()
        }
        Kind::Integer(bounds) => bounds.clone().prop_map(|number| number.to_string()).boxed(),
        Kind::Boolean => any::<bool>().prop_map(|value| value.to_string()).boxed(),
        Kind::Choice(names) => {
            prop::sample::select(names.to_vec()).prop_map(|name| format!("\"{name}\"")).boxed()
        }
        Kind::Namespaces => {
            let pattern = ("[a-z*]{1,6}", "[a-z*.]{0,5}[a-z*]", prop::option::of(1..100_000u32)).prop_map(
                |(database, collection, seconds)| match seconds {
                    Some(seconds) => format!("\"t{database}.t{collection}@{seconds}s\""),
                    None => format!("\"t{database}.t{collection}\""),
                },
            );
            prop::collection::vec(pattern, 1..4)
                .prop_map(|patterns| format!("[{}]", patterns.join(", ")))
                .boxed()
        }
        Kind::List(_) => prop::collection::vec(
            "[!-+.-?A-~\u{7f}é]{1,5}".prop_filter("hidden", |text| !text.contains("//")),
            1..3,
        )
        .prop_map(|texts| {
            format!("[{}]", texts.iter().map(|text| literal(text)).collect::<Vec<_>>().join(", "))
        })
        .boxed(),
        Kind::Text(_) | Kind::Uri(_) => Just(literal(key.default().unwrap_or("text"))).boxed(),
    }
}

fn literal(text: &str) -> String {
    // A JSON string is also a TOML string, except that TOML requires the character U+007F to be escaped too.
    serde_json::Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}

/// Generates a file with values for some of the keys.
fn any_file() -> impl Strategy<Value = Vec<(&'static str, String)>> {
    let lines: Vec<_> = settings_keys()
        .iter()
        .map(|key| {
            let name = key.name();
            let line = value_of(key).prop_map(move |value| (name, value));
            if key.default().is_none() { line.prop_map(Some).boxed() } else { prop::option::of(line).boxed() }
        })
        .collect();
    lines.prop_map(|lines| lines.into_iter().flatten().collect())
}

fn text(lines: &[(&str, String)]) -> String {
    lines
        .iter()
        .flat_map(|(name, value)| {
            [
                name, " = ", value, "
",
            ]
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, ..ProptestConfig::default() })]

    #[test]
    fn what_the_check_prints_is_a_file_of_the_same_settings(file in any_file()) {
        let printed = check_settings(&text(&file)).unwrap_or_else(|problems| panic!("{problems}"));
        let (given, printed): (toml::Table, toml::Table) = (text(&file).parse().unwrap(), printed.parse().unwrap());
        prop_assert_eq!(printed.len(), settings_keys().len());
        for (name, value) in given {
            prop_assert_eq!(&printed[&name], &value, "{}", name);
        }
    }

    #[test]
    fn an_unknown_key_is_refused_by_its_name(file in any_file(), name in "[a-z_]{1,24}", value in any::<i32>()) {
        prop_assume!(settings_keys().iter().all(|key| key.name() != name));
        let problems = check_settings(&format!("{}{name} = {value}\n", text(&file))).unwrap_err();
        prop_assert_eq!(problems.0.len(), 1);
        prop_assert!(problems.to_string().contains(&format!("outbox.toml:{name}: is not a setting")), "{}", problems);
    }

    #[test]
    fn any_text_is_settings_or_problems(text in "([a-z_]{1,16} ?= ?(\"[^\"]{0,12}\"|[0-9]{1,6}|true|\\[.{0,6}\\])\n){0,4}") {
        outbox_proof::targets::settings(text.as_bytes());
    }
}
