//! Tests that would disturb others are in separate modules, so that they run alone. Tests in `outage` break,
//! block or boot servers, tests in `fail_point` set MongoDB's fail points, and tests in `secured` boot
//! servers with passwords and TLS.

#![allow(clippy::pedantic, reason = "product code is held to these lints; a test may be short instead")]

/// Fails a test that disturbs other tests but is not in a module for such tests. Called by the helpers that cause
/// disturbances.
pub(crate) fn assert_in(module: &str) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or_default(); // libtest names the thread after the test
    let path = format!("::{test}");
    assert!(
        path.contains(&format!("::{module}::")),
        "{test} disturbs others: move it into a module `{module}`"
    );
}
