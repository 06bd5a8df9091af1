//! Judges a run: compares the messages that should have arrived with the messages that did arrive.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::Duration,
};

use serde::Serialize;
use uuid::Uuid;

use super::{
    evidence::Evidence,
    log::Save,
    windows::{Message, Window, window},
};
use crate::proxy::{Answer, Publish};
/// Outcomes that report to the application that the save was not written.
const NOTHING_WRITTEN: [&str; 7] =
    ["unchanged", "conflict", "gone", "exists", "unavailable", "refused", "full"];
/// How many duplicates of each window the report describes.
const EXAMPLES: usize = 3;
/// How many problems of each kind the report describes.
const TOLD: usize = 5;
/// A save counts as answerable only if a write of the probe that began after the save reached a majority within this time after
/// the start of the save.
const ANSWER: Duration = Duration::from_secs(10);

/// The verdict on a run.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Verdict {
    pub(crate) saves: usize,
    pub(crate) outcomes: BTreeMap<String, usize>,
    pub(crate) committed: usize,
    pub(crate) delivered: usize,
    pub(crate) duplicates: BTreeMap<Window, usize>,
    pub(crate) lost: usize,
    pub(crate) phantoms: usize,
    pub(crate) misreported: usize,
    pub(crate) order_violations: usize,
    pub(crate) died: usize,
    /// `answerable`: the number of saves that were made while a majority could answer. `indeterminate`: how many of these saves
    /// had an unknown outcome.
    pub(crate) answerable: usize,
    pub(crate) indeterminate: usize,
    pub(crate) problems: Vec<String>,
    /// Descriptions of how a few duplicates of each window were published.
    pub(crate) examples: BTreeMap<Window, Vec<String>>,
}

/// Judges a run by all observations of it.
pub(crate) fn judge(seen: &Evidence<'_>) -> Verdict {
    let received: HashSet<_> = seen.receipts.iter().map(|receipt| receipt.id).collect();
    let mut verdict = Verdict {
        saves: seen.saves.len(),
        committed: seen.truth.committed.len(),
        delivered: seen.truth.committed.intersection(&received).count(),
        died: seen.died.len(),
        ..Verdict::default()
    };

    for save in &seen.saves {
        judge_save(save, seen, &mut verdict);
    }
    judge_losses(seen, &received, &mut verdict);
    judge_phantoms(seen, &received, &mut verdict);
    judge_order(seen, &mut verdict);
    judge_duplicates(seen, &mut verdict);
    verdict
}

/// Checks that the outcome which an application reported for a save is true.
fn judge_save(save: &Save, seen: &Evidence<'_>, verdict: &mut Verdict) {
    let outcome = save.end.as_ref().map_or("cut_off", |(_, outcome)| outcome);
    *verdict.outcomes.entry(outcome.to_owned()).or_default() += 1;

    let is_committed = save.ids.iter().any(|id| seen.truth.committed.contains(id));
    if outcome == "applied" && !is_committed && !seen.was_dropped(save) {
        verdict.lost += save.ids.len();
        verdict.tell("lost", || format!("an applied save of {} is not in the document", save.document));
    }
    if NOTHING_WRITTEN.contains(&outcome) && is_committed {
        verdict.misreported += 1;
        verdict.tell("misreported", || format!("{}: {outcome}, and it was written", save.document));
    }

    let Some((ended, _)) = &save.end else { return };
    let is_hit = seen.is_hit(save.begun, *ended, |target| target == save.process);
    if !is_hit && seen.sightings.majority_answered(save.begun, ANSWER) {
        verdict.answerable += 1;
        verdict.indeterminate += usize::from(outcome == "unknown");
    }
}

fn judge_losses(seen: &Evidence<'_>, received: &HashSet<Uuid>, verdict: &mut Verdict) {
    for ((collection, document), sent) in &seen.truth.documents {
        for id in sent {
            if !received.contains(id) && !seen.truth.waiting.contains(id) {
                verdict.lost += 1;
                verdict.tell("lost", || {
                    format!("{id} of {collection} {document} left its outbox and never came")
                });
            }
        }
    }
}

/// Counts received messages that belong to no committed save.
fn judge_phantoms(seen: &Evidence<'_>, received: &HashSet<Uuid>, verdict: &mut Verdict) {
    let owners = owners(seen);
    for id in received.difference(&seen.truth.committed) {
        // The documents of a dropped collection are gone, so the harness cannot check whether its messages were committed.
        let is_excused = owners.get(id).is_some_and(|save| seen.was_dropped(save));
        if !is_excused {
            verdict.phantoms += 1;
            verdict.tell("phantom", || format!("{id} was received, and no committed save sent it"));
        }
    }
}

/// Returns the save that sent each message.
fn owners<'a>(seen: &'a Evidence<'_>) -> HashMap<Uuid, &'a Save> {
    let mut owners = HashMap::new();
    for save in &seen.saves {
        for id in &save.ids {
            owners.insert(*id, save);
        }
    }
    owners
}

/// Compares the order in which messages were first received with their order in the document. Later messages may overtake a dead
/// message, except in the collection where a dead message blocks later messages of its document.
fn judge_order(seen: &Evidence<'_>, verdict: &mut Verdict) {
    let mut first = HashMap::new();
    for (place, receipt) in seen.receipts.iter().enumerate() {
        first.entry(receipt.id).or_insert(place);
    }
    for ((collection, document), sent) in &seen.truth.documents {
        if collection == "unordered" {
            continue;
        }
        let keeps_place = |id: &&Uuid| collection == "dead_blocks" || !seen.died.contains_key(*id);
        let places: Vec<_> =
            sent.iter().filter(keeps_place).filter_map(|id| first.get(id).copied()).collect();
        let broken = places.windows(2).filter(|pair| pair[0] > pair[1]).count();
        if broken > 0 {
            verdict.order_violations += broken;
            verdict.tell("order", || format!("{collection} {document}: received at places {places:?}"));
        }
    }
}

fn judge_duplicates(seen: &Evidence<'_>, verdict: &mut Verdict) {
    let mut copies: HashMap<Uuid, usize> = HashMap::new();
    let mut known = HashSet::new();
    for receipt in &seen.receipts {
        // If RabbitMQ itself delivers a copy again, the copy is not a duplicate that the product published.
        let is_new = known.insert(receipt.id);
        if is_new || !receipt.is_redelivered {
            *copies.entry(receipt.id).or_default() += 1;
        }
    }

    let owners = owners(seen);
    for (id, copies) in copies.into_iter().filter(|(_, copies)| *copies > 1) {
        let publishes = seen.traffic.publishes(id);
        let document = owners.get(&id).map_or("", |save| save.document.as_str());
        let message = Message { id, document };
        let mut windows = Vec::new();
        for pair in publishes.windows(2) {
            windows.extend(window(&message, &pair[0], &pair[1], seen));
        }
        // All copies of a message are counted under one window: the worst window that explains any of the copies, or
        // `Outside` if no window explains a copy.
        let worst = windows.iter().max().copied().unwrap_or(Window::Outside);
        *verdict.duplicates.entry(worst).or_default() += copies - 1;
        let shown: Vec<_> = publishes.iter().map(|publish| shown(publish, seen)).collect();
        let sentence = format!("{id} came {copies} times: {}", shown.join("; "));
        if worst == Window::Outside {
            verdict.tell("outside", || sentence.clone());
        }
        let examples = verdict.examples.entry(worst).or_default();
        if examples.len() < EXAMPLES {
            examples.push(sentence);
        }
    }
}

fn shown(publish: &Publish, seen: &Evidence<'_>) -> String {
    let at = |time| seen.timeline.at(time);
    let answer = match publish.answer {
        Answer::None => "no answer".to_owned(),
        Answer::Confirmed(time) => format!("confirmed {:.3}", at(time)),
        Answer::Refused(time) => format!("refused {:.3}", at(time)),
        Answer::Returned(time) => format!("returned {:.3}", at(time)),
    };
    format!("{:.3} by {}, {answer}", at(publish.at), publish.process)
}

impl Verdict {
    fn tell(&mut self, kind: &str, problem: impl FnOnce() -> String) {
        let told = self.problems.iter().filter(|told| told.starts_with(kind)).count();
        if told < TOLD {
            self.problems.push(format!("{kind}: {}", problem()));
        }
    }

    pub(crate) fn outside(&self) -> usize {
        self.duplicates.get(&Window::Outside).copied().unwrap_or_default()
    }

    /// Whether every promise was kept.
    pub(crate) fn is_good(&self) -> bool {
        self.lost + self.phantoms + self.misreported + self.order_violations + self.outside() == 0
    }
}
