//! Gives every input of the fuzz corpora to the functions that `scripts/fuzz` tests. These tests run on a stable toolchain,
//! whereas the fuzzer needs a nightly one.

#![allow(clippy::unwrap_used, reason = "a test that cannot continue fails")]

use std::{fs, path::Path};

use outbox_proof::targets::TARGETS;

#[test]
fn every_input_in_the_corpora_is_handled() {
    let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
    assert_eq!(
        fs::read_dir(&corpora).unwrap().count(),
        TARGETS.len(),
        "the folder must hold one corpus for each target and nothing else"
    );
    for (name, target) in TARGETS {
        let inputs = fs::read_dir(corpora.join(name)).unwrap();
        let read = inputs.map(|input| target(&fs::read(input.unwrap().path()).unwrap())).count();
        assert!(read >= 5, "{name} has {read} seeds");
    }
}

#[test]
fn every_target_can_be_fuzzed() {
    let manifest =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/Cargo.toml")).unwrap();
    for (name, _) in TARGETS {
        assert!(manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")), "{name}");
    }
}
