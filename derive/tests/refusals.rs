//! Tests what the derive macros refuse. Each file in `ui/` is compiled and must fail with the expected errors.
//!
//! The files don't use serde's derive macros, whose own errors are not the subject here. After a change of the texts,
//! `TRYBUILD=overwrite cargo test -p document-outbox-derive` rewrites the expected errors; read them before you commit.

#[test]
fn each_refusal_says_what_to_do() {
    trybuild::TestCases::new().compile_fail("tests/ui/*.rs");
}
