//! The record that an outside observer makes: which messages arrived, how many times and in which order, and which answers the
//! callers got.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    document::{EntryId, Intent, Token},
    time::Tick,
};

/// The final answer that a caller got for an intent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Told {
    Applied,
    /// Nothing was written.
    Refused,
    Unknown,
}

/// The claim under which a message was published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Claimed {
    pub token: Token,
    pub until: Tick,
}

/// The record of all events that matter to the laws.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Ledger {
    /// The number of times that each message arrived.
    arrived: BTreeMap<EntryId, u8>,
    /// The messages that may arrive again, because something failed after they were published and before the majority had the
    /// writes that clear these messages.
    doubted: BTreeSet<EntryId>,
    published_under: BTreeMap<EntryId, Claimed>,
    told: BTreeMap<Intent, Told>,
    /// A time in the oplog. For each change up to this time, either the broker has confirmed the commands that the change needs,
    /// or a full sweep is still to come.
    pub dealt_with: u8,
    /// The forbidden events that happened.
    pub wrongs: BTreeSet<&'static str>,
}

/// Recorded in `wrongs` when a message is published before the majority has its save.
pub const PHANTOM: &str = "a message was published whose save the majority does not have";
/// Recorded in `wrongs` when a message is published again without a reason that promise P3 names.
pub const UNEXCUSED: &str = "a message was repeated outside of the named windows";
/// Recorded in `wrongs` when a message arrives before an earlier message of its document.
pub const OVERTAKEN: &str = "a message overtook an earlier one";
/// Recorded in `wrongs` when a save reports a conflict although no one else saved the document.
pub const FALSE_CONFLICT: &str = "a conflict was reported although there was no other save";

impl Ledger {
    /// Records that a message has reached the broker. `before` lists the messages that should have arrived earlier.
    pub fn arrives(
        &mut self,
        id: EntryId,
        claimed: Claimed,
        now: Tick,
        is_committed: bool,
        before: &[EntryId],
    ) {
        if !is_committed {
            self.wrongs.insert(PHANTOM);
        }

        let count = self.arrived.entry(id).or_default();
        *count += 1;
        if *count == 1 && !before.is_empty() {
            self.wrongs.insert(OVERTAKEN);
        }
        if *count > 1 {
            // A repeat is allowed if the claim of the earlier publish has ended, or if something failed.
            let has_ended = self.published_under.get(&id).is_some_and(|before| before.until <= now);
            if !self.doubted.contains(&id) && !has_ended {
                self.wrongs.insert(UNEXCUSED);
            }
        }
        self.doubted.remove(&id);
        self.published_under.insert(id, claimed);
    }

    pub fn has_arrived(&self, id: EntryId) -> bool {
        self.arrived.contains_key(&id)
    }

    /// The highest number of times that any one message arrived.
    pub fn most_copies(&self) -> u8 {
        self.arrived.values().copied().max().unwrap_or(0)
    }

    /// Notes that a repeat of this message now has a reason.
    pub fn doubt(&mut self, id: EntryId) {
        if self.has_arrived(id) {
            self.doubted.insert(id);
        }
    }

    pub fn tell(&mut self, intent: Intent, told: Told) {
        self.told.insert(intent, told);
    }

    pub fn told(&self) -> impl Iterator<Item = (Intent, Told)> {
        self.told.iter().map(|(intent, told)| (*intent, *told))
    }
}
