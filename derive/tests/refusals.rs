//! What the derives refuse, and in which words: each file of `ui/` beside the errors that the compiler shows for it.
//!
//! Without serde's derives, whose own errors are not the point here. After a change of the words, `TRYBUILD=overwrite cargo test
//! -p document-outbox-derive` writes them anew, to be read before they are committed.

#[test]
fn each_refusal_says_what_to_do() {
    trybuild::TestCases::new().compile_fail("tests/ui/*.rs");
}
