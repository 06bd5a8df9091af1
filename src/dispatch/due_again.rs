//! When entries that are released undelivered are due again.

use mongodb::bson::{DateTime, Uuid};

use crate::stored::entry::Entry;

/// When released entries are due: the date that each had before the claim, as far as it is known; `None`
/// means without a date. Entries with the same date are grouped.
///
/// Never this process's own time: for a process whose clock is behind, the entry would appear scheduled, and
/// the next would overtake it. An entry that was due when it was sent is due by every clock, so all of those
/// can share the earliest date.
pub fn due_again(entries: &[&Entry], now: DateTime) -> Vec<(Option<DateTime>, Vec<Uuid>)> {
    let mut sent: Option<(DateTime, Vec<Uuid>)> = None;
    let mut others: Vec<(Option<DateTime>, Vec<Uuid>)> = Vec::new();
    for entry in entries {
        // The date of an earlier claim, or of the claim that the entry was born with, is the time at which
        // that claim ends.
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
