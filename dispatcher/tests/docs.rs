//! docs/configuration.md has every setting of `outbox-dispatcher`, and no other.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../../tests/support/configuration.rs"]
mod configuration;

#[test]
fn the_documentation_has_every_setting_with_its_default_and_no_other() {
    let said = configuration::of_help(env!("CARGO_BIN_EXE_outbox-dispatcher"));
    assert!(said.contains_key("OUTBOX_CLAIM_LEASE"), "{said:?}");
    assert_eq!(configuration::of_documentation("outbox-dispatcher"), said);
}
