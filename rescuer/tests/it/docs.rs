//! The documentation has every setting of `outbox-rescuer`, and no other.

use std::process::Command;

#[test]
fn the_documentation_lists_exactly_the_settings_and_their_defaults() {
    let said = crate::configuration::of_help(env!("CARGO_BIN_EXE_outbox-rescuer"));
    assert!(said.contains_key("OUTBOX_DELAY"), "{said:?}");
    assert_eq!(crate::configuration::of_documentation("outbox-rescuer"), said);
}

#[test]
fn the_documented_sample_and_schema_are_the_printed_ones() {
    let binary = env!("CARGO_BIN_EXE_outbox-rescuer");
    crate::configuration::assert_is_committed(binary, "sample", "docs/outbox-rescuer.toml");
    crate::configuration::assert_is_committed(binary, "schema", "docs/outbox-rescuer.schema.json");
}

#[test]
fn the_sample_has_no_problems() {
    let binary = env!("CARGO_BIN_EXE_outbox-rescuer");
    let sample = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/outbox-rescuer.toml");
    let check =
        Command::new(binary).args(["config", "check", "--config", sample]).env_clear().output().unwrap();
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));
}

#[test]
fn output_that_ends_early_causes_no_panic() {
    crate::configuration::assert_output_may_end(env!("CARGO_BIN_EXE_outbox-rescuer"));
}

#[test]
fn the_parts_that_use_a_uri_judge_it() {
    crate::configuration::assert_uris_are_judged(env!("CARGO_BIN_EXE_outbox-rescuer"));
}
