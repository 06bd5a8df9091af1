//! The observations of a run, and functions that answer questions from the observations.

use std::{collections::HashMap, time::Instant};

use uuid::Uuid;

use super::{
    history::History,
    log::{Receipt, Save},
    truth::Truth,
};
use crate::{
    probe::Sightings,
    process::Process,
    proxy::Traffic,
    timeline::{Span, Timeline},
};

/// All observations of a run.
pub(crate) struct Evidence<'a> {
    pub(crate) saves: Vec<Save>,
    pub(crate) receipts: Vec<Receipt>,
    /// For each message that was dead: the times at which the harness replayed the message.
    pub(crate) died: HashMap<Uuid, Vec<Instant>>,
    pub(crate) drops: Vec<(String, Instant)>,
    pub(crate) truth: Truth,
    pub(crate) history: History,
    pub(crate) spans: Vec<Span>,
    pub(crate) sightings: Sightings,
    pub(crate) traffic: Traffic,
    pub(crate) timeline: Timeline,
    pub(crate) processes: Vec<&'a Process>,
}

impl Evidence<'_> {
    pub(super) fn process_ended(&self, name: &str, from: Instant, until: Instant) -> bool {
        self.processes.iter().any(|process| process.name == name && process.has_ended(from, until))
    }

    /// Whether a process logged the words `what` about this document between `from` and `until`.
    pub(super) fn said(&self, name: &str, what: &str, document: &str, from: Instant, until: Instant) -> bool {
        self.processes.iter().any(|process| process.name == name && process.said(what, document, from, until))
    }

    pub(super) fn was_replayed(&self, id: Uuid, from: Instant, until: Instant) -> bool {
        self.died.get(&id).is_some_and(|times| times.iter().any(|at| (from..=until).contains(at)))
    }

    pub(super) fn primary_changed(&self, from: Instant, until: Instant) -> bool {
        self.sightings.primary_changed(from, until)
    }

    /// Whether MongoDB or the machine was too slow between `from` and `until`, or a fault hit MongoDB or the named process in
    /// that time.
    pub(super) fn was_hindered(&self, name: &str, from: Instant, until: Instant) -> bool {
        self.sightings.was_slow(from, until)
            || self.is_hit(from, until, |target| target == name || target.starts_with("mongodb"))
    }

    pub(super) fn is_hit(&self, from: Instant, until: Instant, is_meant: impl Fn(&str) -> bool) -> bool {
        let (from, until) = (self.timeline.at(from), self.timeline.at(until));
        let overlaps = |span: &&Span| span.from <= until && span.until >= from;
        self.spans.iter().filter(overlaps).any(|span| span.took && is_meant(&span.target))
    }

    /// Whether the collection in which this save was made was dropped after the save began.
    pub(super) fn was_dropped(&self, save: &Save) -> bool {
        self.drops.iter().any(|(collection, at)| *collection == save.collection && save.begun <= *at)
    }
}
