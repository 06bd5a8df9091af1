//! Gives the state of a rescuer to `/status` and `/readyz`. Events update the state; reading it queries no
//! server.

use std::{fmt, sync::Arc};

use super::{reporter::Reporter, snapshot::Snapshot};

/// Gives the state of a rescuer. Cloning and reading are cheap, because no server is queried.
#[derive(Clone)]
pub struct Status {
    name: Arc<str>,
    streams: Vec<Arc<Reporter>>,
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Status").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Status {
    pub(crate) fn new(name: Arc<str>, streams: Vec<Arc<Reporter>>) -> Self {
        Self { name, streams }
    }

    /// The current state.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let mut streams = Vec::with_capacity(self.streams.len());
        let mut not_ready = Vec::new();
        for stream in &self.streams {
            streams.push(stream.status());
            not_ready.extend(stream.not_ready());
        }

        Snapshot { name: self.name.to_string(), streams, not_ready }
    }
}
