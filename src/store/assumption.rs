//! Decides whether a save may assume that the outbox is empty, although entries were counted in the outbox.

/// Number of wrong assumptions after which the pause between assumptions stops growing.
const MOST_WRONG: u32 = 6;

/// Decides whether a save may assume that the outbox is empty, although entries were counted in the outbox. Entries
/// that this aggregate's own saves wrote are usually delivered and cleared soon after. The save's filter verifies the
/// assumption. A wrong assumption costs two extra round trips, so each wrong assumption doubles the number of later
/// saves that don't assume an empty outbox.
#[derive(Debug, Default)]
pub(super) struct Assumption {
    /// Number of counted entries that this process has begun to deliver.
    dispatched: usize,
    wrong: u32,
    saves_without: u64,
}

impl Assumption {
    /// Whether the save may assume that all `held` entries have been delivered and cleared.
    pub(super) fn covers(&mut self, held: usize) -> bool {
        if held > self.dispatched {
            return false;
        }
        if self.saves_without > 0 {
            self.saves_without -= 1;
            return false;
        }
        true
    }

    /// Notes that this process has begun to deliver this many more of the counted entries.
    pub(super) fn has_dispatched(&mut self, entries: usize) {
        self.dispatched += entries;
    }

    pub(super) fn was_right(&mut self) {
        *self = Self::default();
    }

    pub(super) fn was_wrong(&mut self) {
        self.wrong = (self.wrong + 1).min(MOST_WRONG);
        self.saves_without = 1 << self.wrong;
    }
}
