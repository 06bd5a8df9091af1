//! The refusals of the derives and their texts: each file of `ui/`, with the compiler's errors for it.
//!
//! Without serde's derives, whose own errors are not the point here. After a change of the texts,
//! `TRYBUILD=overwrite cargo test -p document-outbox-derive` writes them again; read them before you commit.

#[test]
fn each_refusal_says_what_to_do() {
    trybuild::TestCases::new().compile_fail("tests/ui/*.rs");
}
