//! Compares docs/ with a service's own output. Included by the tests of both services.

#![allow(clippy::pedantic, reason = "product code is held to these lints; a test may be short instead")]

use std::{collections::BTreeMap, fs, path::Path, process::Command};

/// Returns variables and defaults from `--help`.
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

/// Returns variables and defaults from the tables under the headings for both services and for `service`.
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

/// Checks that the output of `config sample` or `config schema` equals `file` in the repository.
pub(crate) fn assert_is_committed(binary: &str, what: &str, file: &str) {
    let printed = Command::new(binary).args(["config", what]).output().unwrap().stdout;
    let committed = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(file)).unwrap();
    assert!(
        printed == committed,
        "{file} differs from the program's output: write it again with `{binary} config {what} >{file}`"
    );
}

/// The reader may close the output early, or the disk may be full. Neither may cause a panic.
pub(crate) fn assert_output_may_end(binary: &str) {
    for (script, code) in [
        ("\"$0\" config sample >&-", 0),
        ("set -o pipefail; { sleep 0.1; \"$0\" config schema; } | :", 0),
        ("\"$0\" --help >/dev/full", 1),
        ("\"$0\" config check --watch shop >/dev/full 2>/dev/full", 2),
    ] {
        let status = Command::new("bash").args(["-c", script, binary]).env_clear().status().unwrap();
        assert_eq!(status.code(), Some(code), "{script}");
    }
}

/// Runs `config check` with this MongoDB URI. Returns the exit code and everything it printed.
pub(crate) fn check(binary: &str, mongodb: &str, rabbitmq: &str) -> (Option<i32>, String) {
    let output = Command::new(binary)
        .args(["config", "check"])
        .env_clear()
        .env("OUTBOX_MONGODB_URI", mongodb)
        .env("OUTBOX_RABBITMQ_URI", rabbitmq)
        .env("OUTBOX_WATCH", "shop.*")
        .output()
        .unwrap();
    let printed = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(printed).unwrap())
}

/// A URI that MongoDB's driver or the AMQP client refuses is reported as a problem of the settings, in a sentence that
/// shows no secret.
pub(crate) fn assert_uris_are_judged(binary: &str) {
    const BROKER: &str = "amqp://u:hunter2@localhost/%2f";
    const DATABASE: &str = "mongodb://u:hunter2@h/?replicaSet=rs0";

    for refused in [
        "mongodb://h/?compressors=lz4",
        "mongodb://h/?maxPoolSize=abc",
        "mongodb://h/?readPreference=nearby",
        "mongodb://h/?w=-1",
        "mongodb://h/?proxyHost=p",
        "mongodb://u:p@[bad",
        "mongodb://app:2024?hunter2@db1",
        "mongodb://h/?tls=yes",
        "mongodb+srv://h:27017",
        "mongodb://h/?authMechanismProperties=NAME=hunter2",
    ] {
        let (code, printed) = check(binary, refused, BROKER);
        assert_eq!(code, Some(2), "{refused}: {printed}");
        assert!(
            printed.contains("OUTBOX_MONGODB_URI: ") && !printed.contains("hunter2"),
            "{refused}: {printed}"
        );
        assert!(!printed.contains("Error {") && !printed.contains("InvalidArgument"), "{refused}: {printed}");
    }

    let (code, printed) = check(binary, "mongodb://h/?compressors=zstd,zlib,snappy", BROKER);
    assert_eq!(code, Some(0), "{printed}");
    let (code, printed) = check(binary, DATABASE, "amqp://u:hunter2@localhost/%2f?heartbeat=abc");
    assert_eq!(code, Some(2), "{printed}");
    assert!(!printed.contains("hunter2"), "{printed}");
}
