//! Requests for a full sweep: one that also finds entries without a date.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use mongodb::Namespace;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::leadership::term::Term;

/// A margin for clocks that differ a little.
const MARGIN: Duration = Duration::from_secs(1);

/// Shared by the stream, which requests, and the sweep, which fulfils.
pub(crate) struct FullSweep {
    term: Arc<Term>,
    wanted: AtomicBool,
    /// Collections whose part is requested for the next round, whether or not a whole round is.
    owed: Mutex<HashSet<Namespace>>,
    wake: Notify,
}

impl FullSweep {
    pub(crate) fn new(term: Arc<Term>) -> Self {
        Self { term, wanted: AtomicBool::new(false), owed: Mutex::default(), wake: Notify::new() }
    }

    /// Wants one now.
    pub(crate) fn request(&self) {
        self.postpone();
        self.wake.notify_one();
    }

    /// Requests one now, and another when documents that are too young now are old enough.
    pub(crate) fn request_twice(self: &Arc<Self>) {
        self.request();
        self.request_later();
    }

    /// Requests one for when today's documents are as old as the delay.
    pub(crate) fn request_later(self: &Arc<Self>) {
        let wish = self.clone();
        tokio::spawn(async move {
            if wish.term.sleep(wish.term.plan.delay + MARGIN).await.is_ok() {
                wish.request();
            }
        });
    }

    /// Requests one in the next round.
    pub(crate) fn postpone(&self) {
        self.wanted.store(true, Ordering::Release);
    }

    /// Takes the request, if there is one.
    pub(crate) fn take(&self) -> bool {
        self.wanted.swap(false, Ordering::AcqRel)
    }

    /// The stream has skipped changes of this collection: its part of a full round has to find them.
    pub(crate) fn request_collection(&self, namespace: &Namespace) {
        self.owed.lock().insert(namespace.clone());
    }

    /// Takes the collections whose part was requested.
    pub(crate) fn take_requested(&self) -> HashSet<Namespace> {
        std::mem::take(&mut *self.owed.lock())
    }

    /// Waits for a request.
    pub(crate) async fn requested(&self) {
        self.wake.notified().await;
    }
}
