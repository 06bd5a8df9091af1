//! How many of the documents that changed are still undelivered when they are as old as the delay.

use std::time::Duration;

use crate::observe::warning::Warning;

/// This many documents make a share.
const ENOUGH: usize = 200;

/// The documents since the share was last judged.
#[derive(Debug, Default)]
pub(super) struct InlineShare {
    undelivered: usize,
    of: usize,
}

impl InlineShare {
    /// Counts documents. Warns when some of them were undelivered: if nearly all were, there is no inline
    /// dispatcher that could be too slow.
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
