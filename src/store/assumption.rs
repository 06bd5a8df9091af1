//! Whether a save may assume that an outbox is empty although entries were counted.

/// After this many wrong assumptions the pause grows no more.
const MOST_WRONG: u32 = 6;

/// Whether a save may assume that the outbox is empty although entries were counted: those that this
/// aggregate's own saves wrote are mostly delivered and cleared soon after. The save's filter decides; a
/// wrong assumption costs two more round trips, so after each one, twice as many saves are made without it.
#[derive(Debug, Default)]
pub(super) struct Assumption {
    /// How many of the counted entries this process has begun to deliver.
    dispatched: usize,
    wrong: u32,
    saves_without: u64,
}

impl Assumption {
    /// Whether all of this many entries may have been delivered meanwhile.
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

    /// This process has begun to deliver more of them.
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
