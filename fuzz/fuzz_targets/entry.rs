#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| outbox_proof::targets::entry(bytes));
