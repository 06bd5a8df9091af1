//! Decides whether a message meets a query.

use document_outbox::internal::{Entry, Slot};
use mongodb::bson::DateTime;

use super::{Moment, Query};
use crate::state::MessageState;

impl Query {
    /// Whether an element of an outbox meets the conditions on messages. The conditions on documents and collections
    /// are not checked here.
    pub fn matches(&self, slot: &Slot, now: DateTime) -> bool {
        let state = MessageState::of_slot(slot, now);
        if !self.includes(state) {
            return false;
        }
        slot.entry().is_none_or(|entry| self.matches_entry(entry, now))
    }

    fn matches_entry(&self, entry: &Entry, now: DateTime) -> bool {
        is_any(&self.types, |glob| glob.matches(&entry.message_type))
            && is_any(&self.ids, |id| *id == entry.id)
            && is_any(&self.reasons, |reason| entry.dead.as_ref().is_some_and(|dead| dead.reason == *reason))
            && is_any(&self.errors, |text| has_error(entry, text))
            && self.attempts.is_none_or(|range| (range.least..=range.most).contains(&entry.attempts))
            && self
                .headers
                .iter()
                .all(|(name, values)| entry.headers.get(name).is_some_and(|value| values.contains(value)))
            && self.is_in_time(entry, now)
    }

    fn is_in_time(&self, entry: &Entry, now: DateTime) -> bool {
        if self.since.is_none() && self.until.is_none() {
            return true;
        }
        let at = entry.dead.as_ref().map(|dead| dead.at).or(entry.created_at);
        at.is_some_and(|at| {
            self.since.is_none_or(|since| at >= since.at(now))
                && self.until.is_none_or(|until| at <= until.at(now))
        })
    }

    /// The limits of the time at which a message died or was sent.
    pub(crate) fn limits(&self, now: DateTime) -> (DateTime, DateTime) {
        let since = self.since.map_or(DateTime::MIN, |since| since.at(now));
        let until = self.until.map_or_else(Moment::end_of_time, |until| until.at(now));
        (since, until)
    }
}

/// Whether there is no condition, or one of its values meets it.
fn is_any<T>(values: &[T], meets: impl Fn(&T) -> bool) -> bool {
    values.is_empty() || values.iter().any(meets)
}

fn has_error(entry: &Entry, text: &str) -> bool {
    let Some(error) = &entry.last_error else { return false };
    error.to_lowercase().contains(&text.to_lowercase())
}
