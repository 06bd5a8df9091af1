//! The events as an outside observer sees them: which messages arrived, how often and in what order, and the answers that callers got.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    document::{EntryId, Intent, Token},
    time::Tick,
};

/// The final answer that the caller of a save got about an intent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Told {
    Applied,
    /// Nothing was written.
    Refused,
    Unknown,
}

/// The claim that a message was published under.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Claimed {
    pub token: Token,
    pub until: Tick,
}

/// The ledger.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Ledger {
    /// How often each message arrived.
    arrived: BTreeMap<EntryId, u8>,
    /// Those that may arrive again, because something failed between their publish and the majority's commit of their clear.
    doubted: BTreeSet<EntryId>,
    published_under: BTreeMap<EntryId, Claimed>,
    told: BTreeMap<Intent, Told>,
    /// The time in the oplog until which every change was checked and its commands confirmed, or which a full sweep is owed for.
    pub dealt_with: u8,
    /// What must not happen, and did.
    pub wrongs: BTreeSet<&'static str>,
}

/// A message of a save that was never committed.
pub const PHANTOM: &str = "a message was published whose save the majority does not have";
/// A message that arrived again without a named reason.
pub const UNEXCUSED: &str = "a message was repeated outside of the named windows";
/// A message that arrived before an earlier one.
pub const OVERTAKEN: &str = "a message overtook an earlier one";
/// A save that was reported as a conflict without another save.
pub const FALSE_CONFLICT: &str = "a conflict was reported although there was no other save";

impl Ledger {
    /// A message reaches the broker.
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
            // The claim of the holder before has ended, or something failed.
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

    /// How often the message that arrived most often did.
    pub fn most_copies(&self) -> u8 {
        self.arrived.values().copied().max().unwrap_or(0)
    }

    /// From now on a repeat of this message has a reason.
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
