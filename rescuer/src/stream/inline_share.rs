//! Measures the share of changed documents that still have undelivered messages when the delay has passed.

use std::time::Duration;

use crate::observe::warning::Warning;

/// The share is judged each time this many documents have been counted.
const ENOUGH: usize = 200;

/// The documents counted since the share was last judged.
#[derive(Debug, Default)]
pub(super) struct InlineShare {
    undelivered: usize,
    of: usize,
}

impl InlineShare {
    /// Counts documents, and warns if some of them had undelivered messages. There is no warning if nearly all
    /// documents had undelivered messages, because then there is probably no inline dispatcher that could be too
    /// slow.
    pub(super) fn count(&mut self, undelivered: usize, of: usize, delay: Duration) -> Option<Warning> {
        self.undelivered += undelivered;
        self.of += of;
        if self.of < ENOUGH {
            return None;
        }

        let Self { undelivered, of } = std::mem::take(self);
        let is_more_than_a_few = undelivered * 20 > of;
        let is_less_than_most = undelivered * 5 < of * 4;
        if is_more_than_a_few && is_less_than_most {
            Some(Warning::InlineSlow { undelivered, of, delay })
        } else {
            None
        }
    }
}
