//! Compares docs/ with what a service says of itself. Included by the tests of both services.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

/// Variable and default, as `--help` has them.
pub(crate) fn of_help(binary: &str) -> BTreeMap<String, String> {
    let output = Command::new(binary).arg("--help").output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    let bracketed = help.lines().filter_map(|line| line.trim().strip_prefix("[env: "));
    let key = |line: &str| {
        let env = line.split([']', ',']).next().unwrap_or_default();
        let default = line.split("[default: ").nth(1).and_then(|rest| rest.split(']').next());
        let required = if line.contains("[required]") { "required" } else { "" };
        (env.to_owned(), default.unwrap_or(required).to_owned())
    };
    bracketed.map(key).collect()
}

/// Variable and default, as the tables have them under the heading for both services and this one.
pub(crate) fn of_documentation(service: &str) -> BTreeMap<String, String> {
    let text = include_str!("../../docs/configuration.md");
    let sections = text.split("\n## ").filter(|section| {
        let heading = section.lines().next().unwrap_or_default();
        heading == "Both services" || heading == service
    });
    let rows = sections.flat_map(str::lines).filter_map(|line| line.strip_prefix("| `"));
    let key = |row: &str| {
        let cells: Vec<&str> = row.split('|').map(|cell| cell.trim().trim_matches('`')).collect();
        assert_eq!(cells[1], format!("OUTBOX_{}", cells[0].to_uppercase()), "one name in three spellings");
        (cells[1].to_owned(), cells[2].to_owned())
    };
    rows.map(key).collect()
}

/// What `config sample` or `config schema` prints is in this file of the repository.
pub(crate) fn assert_is_committed(binary: &str, what: &str, file: &str) {
    let printed = Command::new(binary).args(["config", what]).output().unwrap().stdout;
    let committed = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(file)).unwrap();
    assert!(
        printed == committed,
        "{file} is not what is printed: write it anew with `{binary} config {what} >{file}`"
    );
}
