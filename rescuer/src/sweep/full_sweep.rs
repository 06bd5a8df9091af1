//! Holds requests for full sweeps, which also find entries without a date.

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

/// A margin for small differences between clocks.
const MARGIN: Duration = Duration::from_secs(1);

/// The requests for full sweeps. The stream makes them, and the sweep fulfils them.
pub(crate) struct FullSweep {
    term: Arc<Term>,
    wanted: AtomicBool,
    /// Collections that the next round must read fully, whether or not a full round is requested.
    owed: Mutex<HashSet<Namespace>>,
    wake: Notify,
}

impl FullSweep {
    pub(crate) fn new(term: Arc<Term>) -> Self {
        Self { term, wanted: AtomicBool::new(false), owed: Mutex::default(), wake: Notify::new() }
    }

    /// Requests a full sweep now.
    pub(crate) fn request(&self) {
        self.postpone();
        self.wake.notify_one();
    }

    /// Requests a full sweep now, and another one when documents that are too young now are old enough.
    pub(crate) fn request_twice(self: &Arc<Self>) {
        self.request();
        self.request_later();
    }

    /// Requests a full sweep for the time when every document that exists now is as old as the delay.
    pub(crate) fn request_later(self: &Arc<Self>) {
        let wish = self.clone();
        tokio::spawn(async move {
            if wish.term.sleep(wish.term.plan.delay + MARGIN).await.is_ok() {
                wish.request();
            }
        });
    }

    /// Requests a full sweep in the next round.
    pub(crate) fn postpone(&self) {
        self.wanted.store(true, Ordering::Release);
    }

    /// Clears the request for a full sweep. Returns whether there was a request.
    pub(crate) fn take(&self) -> bool {
        self.wanted.swap(false, Ordering::AcqRel)
    }

    /// Records that the stream has skipped changes of this collection: the next round must read it fully.
    pub(crate) fn request_collection(&self, namespace: &Namespace) {
        self.owed.lock().insert(namespace.clone());
    }

    /// Takes the collections that must be read fully, and clears the list.
    pub(crate) fn take_requested(&self) -> HashSet<Namespace> {
        std::mem::take(&mut *self.owed.lock())
    }

    /// Waits for a request.
    pub(crate) async fn requested(&self) {
        self.wake.notified().await;
    }
}
