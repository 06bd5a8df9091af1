//! The documentation has every setting of `outbox-dispatcher`, and no other.

use std::process::Command;

use crate::configuration;

#[test]
fn docs_list_every_setting_with_its_default() {
    let said = configuration::of_help(env!("CARGO_BIN_EXE_outbox-dispatcher"));
    assert!(said.contains_key("OUTBOX_CLAIM_LEASE"), "{said:?}");
    assert_eq!(configuration::of_documentation("outbox-dispatcher"), said);
}

#[test]
fn docs_have_the_printed_sample_and_schema() {
    let binary = env!("CARGO_BIN_EXE_outbox-dispatcher");
    configuration::assert_is_committed(binary, "sample", "docs/outbox-dispatcher.toml");
    configuration::assert_is_committed(binary, "schema", "docs/outbox-dispatcher.schema.json");
}

#[test]
fn the_sample_has_no_problems() {
    let binary = env!("CARGO_BIN_EXE_outbox-dispatcher");
    let sample = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/outbox-dispatcher.toml");
    let check =
        Command::new(binary).args(["config", "check", "--config", sample]).env_clear().output().unwrap();
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));
}

#[test]
fn output_that_ends_early_causes_no_panic() {
    configuration::assert_output_may_end(env!("CARGO_BIN_EXE_outbox-dispatcher"));
}

#[test]
fn the_parts_that_use_a_uri_judge_it() {
    configuration::assert_uris_are_judged(env!("CARGO_BIN_EXE_outbox-dispatcher"));
}
