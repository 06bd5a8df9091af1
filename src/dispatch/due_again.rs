//! Decides when entries that are released undelivered are due again.

use mongodb::bson::{DateTime, Uuid};

use crate::stored::entry::Entry;

/// Returns the dates at which released entries are due, each date with the ids of the entries that get this date.
/// `None` means that the entries get no date. A scheduled or postponed entry gets its date from before the claim, if
/// that date is known.
///
/// The date is never this process's own time, because to a process whose clock is behind, the entry would appear
/// scheduled, and the next entry would overtake it. Entries that were due when they were sent are due by every clock,
/// so they can all share the earliest date.
pub fn due_again(entries: &[&Entry], now: DateTime) -> Vec<(Option<DateTime>, Vec<Uuid>)> {
    let mut sent: Option<(DateTime, Vec<Uuid>)> = None;
    let mut others: Vec<(Option<DateTime>, Vec<Uuid>)> = Vec::new();
    for entry in entries {
        // If the entry had a claim before, or was saved with a claim, its stored date is the end of that claim, so the
        // stored date is not used.
        let before = entry.available_at.filter(|_| entry.claimed_by.is_none());
        match (before, entry.created_at) {
            (Some(at), Some(created_at)) if at > created_at => add(&mut others, Some(at), entry.id),
            (_, Some(created_at)) => {
                let (due, ids) = sent.get_or_insert_with(|| (now, Vec::new()));
                *due = created_at.min(*due);
                ids.push(entry.id);
            }
            (before, None) => add(&mut others, before, entry.id),
        }
    }

    others.extend(sent.map(|(due, ids)| (Some(due), ids)));
    others
}

fn add(dates: &mut Vec<(Option<DateTime>, Vec<Uuid>)>, date: Option<DateTime>, id: Uuid) {
    match dates.iter_mut().find(|(known, _)| *known == date) {
        Some((_, ids)) => ids.push(id),
        None => dates.push((date, vec![id])),
    }
}
