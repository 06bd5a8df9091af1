//! Cleans up after a test that fails.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]
#![allow(clippy::unwrap_used, reason = "what cannot be cleaned up is reported by a panic")]

use std::{pin::Pin, time::Duration};

type CleanUp = dyn FnOnce() -> Pin<Box<dyn Future<Output = ()>>> + Send + Sync;

/// The time limit of the cleanup, so that a failed test ends even if a server doesn't answer.
const LONGEST: Duration = Duration::from_secs(10);

/// Cleans up if this value is dropped by a panic. A test that passes does its own cleanup.
pub struct OnPanic(Option<Box<CleanUp>>);

impl OnPanic {
    pub fn new<F: Future<Output = ()> + 'static>(
        clean_up: impl FnOnce() -> F + Send + Sync + 'static,
    ) -> Self {
        Self(Some(Box::new(|| Box::pin(clean_up()))))
    }

    /// Drops all databases whose names begin with this prefix.
    pub fn drop_databases(uri: String, prefix: String) -> Self {
        Self::new(move || async move {
            let client = mongodb::Client::with_uri_str(&uri).await.unwrap();
            for name in client.list_database_names().await.unwrap() {
                if name.starts_with(&prefix) {
                    client.database(&name).drop().await.unwrap();
                }
            }
        })
    }
}

impl Drop for OnPanic {
    /// The cleanup has its own thread and runtime, because the test's runtime may have ended.
    fn drop(&mut self) {
        let Some(clean_up) = self.0.take_if(|_| std::thread::panicking()) else { return };
        let cleaning = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let _ = runtime.block_on(async { tokio::time::timeout(LONGEST, clean_up()).await });
        });
        let _ = cleaning.join();
    }
}
