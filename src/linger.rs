//! Delivered messages that stay in their document a little longer: the next save of that document takes them out, or all that
//! have stayed their time are cleared together.
//!
//! # Flow
//! ```text
//! confirmed ─▶ waits ─┬─ a save of the same document takes it ─┬─ saved ──▶ gone, without a write of its own
//!                     │                                        └─ not ──┐
//!                     └─ its time is over, it is in the way, closing ───┴─▶ cleared
//! ```
//!
//! # Guarantees
//! Whatever waits is cleared in the end: when its time is over, and at once where a save that has taken it fails or is dropped,
//! where somebody asks for its document, and when the last handle is gone.
//!
//! # Caveats
//! What waits when its process dies is delivered again, once its claim has ended. So it is with a process that ends without
//! closing its inline dispatcher.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::future::BoxFuture;
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{DocumentRef, clears::Delivered};

/// Clears that may wait at a time, taken ones included until their time would be over, and documents that may be under way to be
/// cleared. With more, each is cleared at once by its delivery, which waits for it.
const MOST: usize = 16_384;
/// A save names each entry that it takes out by its place; more are cleared at once.
const MOST_ENTRIES: usize = 16;

type Key = Arc<[u8]>;
type Clear = dyn Fn(Vec<Delivered>) -> BoxFuture<'static, ()> + Send + Sync;

/// Clones share what waits.
#[derive(Clone)]
pub(crate) struct Linger {
    shared: Arc<Shared>,
    _last: Arc<DropGuard>,
}

struct Shared {
    time: Duration,
    state: Mutex<State>,
    /// There is something to wait for, or to do at once.
    woken: Notify,
    /// Something has been cleared.
    went: Notify,
    clear: Box<Clear>,
}

#[derive(Default)]
struct State {
    waiting: HashMap<Key, Waiting>,
    /// When each is due, in order. Some of them have been taken since.
    due: VecDeque<(Instant, Key)>,
    /// To be cleared at once.
    now: Vec<(Key, Delivered)>,
    /// How many are being cleared, or about to be, of each document.
    going: HashMap<Key, usize>,
}

struct Waiting {
    due: Instant,
    delivered: Delivered,
}

impl State {
    fn go(&mut self, key: Key, delivered: Delivered) {
        *self.going.entry(key.clone()).or_default() += 1;
        self.now.push((key, delivered));
    }

    fn go_all(&mut self) {
        for (key, waiting) in std::mem::take(&mut self.waiting) {
            self.go(key, waiting.delivered);
        }
    }

    /// What is to be cleared now, with all that is due until then.
    fn take_due(&mut self, until: Instant) -> Vec<(Key, Delivered)> {
        while let Some((due, key)) = self.due.pop_front_if(|(due, _)| *due <= until) {
            if self.waiting.get(&key).is_some_and(|waiting| waiting.due == due)
                && let Some(waiting) = self.waiting.remove(&key)
            {
                self.go(key, waiting.delivered);
            }
        }
        std::mem::take(&mut self.now)
    }
}

impl Linger {
    /// What waits for `time` is cleared by `clear`. Must be called inside a tokio runtime.
    pub(crate) fn start(
        time: Duration,
        clear: impl Fn(Vec<Delivered>) -> BoxFuture<'static, ()> + Send + Sync + 'static,
    ) -> Self {
        let shared = Arc::new(Shared {
            time,
            state: Mutex::default(),
            woken: Notify::new(),
            went: Notify::new(),
            clear: Box::new(clear),
        });
        let gone = CancellationToken::new();
        tokio::spawn(run(shared.clone(), gone.clone()));
        Self { shared, _last: Arc::new(gone.drop_guard()) }
    }

    /// Lets these wait; gives them back where they are better cleared at once.
    pub(crate) fn defer(&self, delivered: Delivered) -> Result<(), Delivered> {
        let mut state = self.shared.lock();
        if delivered.ids.len() > MOST_ENTRIES || state.due.len().max(state.going.len()) >= MOST {
            return Err(delivered);
        }
        let key = Key::from(delivered.document.map_key());
        let due = Instant::now() + self.shared.time;
        if let Some(older) = state.waiting.insert(key.clone(), Waiting { due, delivered }) {
            state.go(key.clone(), older.delivered);
        }
        state.due.push_back((due, key));
        if state.due.len() == 1 || !state.now.is_empty() {
            self.shared.woken.notify_one();
        }
        Ok(())
    }

    /// How many entries wait in this document.
    pub(crate) fn count(&self, document: &DocumentRef) -> usize {
        let state = self.shared.lock();
        state.waiting.get(&*document.map_key()).map_or(0, |waiting| waiting.delivered.ids.len())
    }

    /// Takes what waits in this document, for a save to take out of it.
    pub(crate) fn take(&self, document: &DocumentRef) -> Option<Taken> {
        let (key, waiting) = self.shared.lock().waiting.remove_entry(&*document.map_key())?;
        Some(Taken { key, delivered: Some(waiting.delivered), shared: self.shared.clone() })
    }

    /// Waits until nothing that was delivered before stands in this document any more, as far as it can be cleared.
    pub(crate) async fn flush(&self, document: &DocumentRef) {
        let key = document.map_key();
        {
            let mut state = self.shared.lock();
            if let Some((key, waiting)) = state.waiting.remove_entry(&*key) {
                state.go(key, waiting.delivered);
                self.shared.woken.notify_one();
            }
        }
        self.shared.gone(|state| !state.going.contains_key(&*key)).await;
    }

    /// Waits until all that waits has been cleared.
    pub(crate) async fn flush_all(&self) {
        self.shared.lock().go_all();
        self.shared.woken.notify_one();
        self.shared.gone(|state| state.going.is_empty()).await;
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn gone(&self, is_gone: impl Fn(&State) -> bool) {
        loop {
            let went = self.went.notified();
            if is_gone(&self.lock()) {
                return;
            }
            went.await;
        }
    }

    /// Clears in a task of its own: one document that somebody holds must not hold up the others that come to be due.
    fn clear(self: &Arc<Self>, due: Vec<(Key, Delivered)>) {
        if due.is_empty() {
            return;
        }
        let shared = self.clone();
        let (keys, delivered): (Vec<_>, _) = due.into_iter().unzip();
        let cleared = Cleared { shared, keys };
        tokio::spawn(async move {
            (cleared.shared.clear)(delivered).await;
            drop(cleared);
        });
    }
}

/// Tells that clears have ended, however they have.
struct Cleared {
    shared: Arc<Shared>,
    keys: Vec<Key>,
}

impl Drop for Cleared {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        for key in self.keys.drain(..) {
            if let Some(count) = state.going.get_mut(&key) {
                *count -= 1;
                if *count == 0 {
                    state.going.remove(&key);
                }
            }
        }
        drop(state);
        self.shared.went.notify_waiters();
    }
}

/// Delivered messages that a save is to take out of their document. Dropped without [`done`](Taken::done), they are cleared at once.
pub(crate) struct Taken {
    key: Key,
    delivered: Option<Delivered>,
    shared: Arc<Shared>,
}

impl Taken {
    pub(crate) fn delivered(&self) -> Option<&Delivered> {
        self.delivered.as_ref()
    }

    /// The save has taken them out.
    pub(crate) fn done(mut self) {
        self.delivered = None;
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if let Some(delivered) = self.delivered.take() {
            self.shared.lock().go(self.key.clone(), delivered);
            self.shared.woken.notify_one();
        }
    }
}

async fn run(shared: Arc<Shared>, gone: CancellationToken) {
    while !gone.is_cancelled() {
        let next = shared.lock().due.front().map(|(due, _)| *due);
        let is_due = async {
            match next {
                Some(due) => sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = is_due => {}
            () = shared.woken.notified() => {}
            () = gone.cancelled() => {}
        }
        // Those that are due soon go along, where any goes.
        let now = Instant::now();
        let any = next.is_some_and(|due| due <= now);
        let until = if any { now + shared.time / 4 } else { now };
        let due = shared.lock().take_due(until);
        shared.clear(due);
    }
    let left = {
        let mut state = shared.lock();
        state.go_all();
        std::mem::take(&mut state.now)
    };
    shared.clear(left);
}

#[cfg(test)]
mod tests {
    use mongodb::{Namespace, bson::Uuid};
    use tokio::sync::mpsc;

    use super::*;

    const TIME: Duration = Duration::from_secs(1);

    /// What is cleared is handed to the test.
    fn linger() -> (Linger, mpsc::UnboundedReceiver<Vec<Delivered>>) {
        let (cleared, clears) = mpsc::unbounded_channel();
        let linger = Linger::start(TIME, move |delivered| {
            let cleared = cleared.clone();
            Box::pin(async move { cleared.send(delivered).unwrap() })
        });
        (linger, clears)
    }

    fn document(id: i32) -> DocumentRef {
        DocumentRef::by_id(Namespace::new("shop", "orders"), id)
    }

    fn delivered(id: i32) -> Delivered {
        Delivered { document: document(id), token: format!("p/{id}"), ids: vec![Uuid::new()] }
    }

    fn documents(delivered: &[Delivered]) -> Vec<DocumentRef> {
        delivered.iter().map(|delivered| delivered.document.clone()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn those_whose_time_is_over_go_together() {
        let (linger, mut clears) = linger();
        let began = Instant::now();
        linger.defer(delivered(1)).unwrap();
        linger.defer(delivered(2)).unwrap();
        tokio::time::sleep(TIME / 2).await;
        linger.defer(delivered(3)).unwrap();
        assert_eq!(documents(&clears.recv().await.unwrap()), [document(1), document(2)]);
        assert_eq!(began.elapsed(), TIME);
        assert_eq!(documents(&clears.recv().await.unwrap()), [document(3)]);
        assert_eq!(began.elapsed(), TIME + TIME / 2);
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_save_has_taken_out_is_not_cleared_and_what_it_gives_back_is_at_once() {
        let (linger, mut clears) = linger();
        for id in [1, 2] {
            linger.defer(delivered(id)).unwrap();
        }
        linger.take(&document(1)).unwrap().done();
        assert!(linger.take(&document(1)).is_none());
        let began = Instant::now();
        drop(linger.take(&document(2)).unwrap());
        assert_eq!(documents(&clears.recv().await.unwrap()), [document(2)]);
        assert_eq!(began.elapsed(), Duration::ZERO);
        drop(linger);
        assert!(clears.recv().await.is_none(), "nothing is left");
    }

    #[tokio::test(start_paused = true)]
    async fn a_document_that_is_taken_and_comes_again_has_its_time_anew() {
        let (linger, mut clears) = linger();
        linger.defer(delivered(1)).unwrap();
        tokio::time::sleep(TIME / 2).await;
        linger.take(&document(1)).unwrap().done();
        let again = Instant::now();
        linger.defer(delivered(1)).unwrap();
        clears.recv().await.unwrap();
        assert_eq!(again.elapsed(), TIME);
    }

    #[tokio::test(start_paused = true)]
    async fn asking_for_a_document_waits_for_its_clear_and_for_no_other() {
        let (begun, mut clears) = mpsc::unbounded_channel();
        let linger = Linger::start(TIME, move |delivered| {
            let (hold, held) = tokio::sync::oneshot::channel::<()>();
            begun.send((documents(&delivered), hold)).unwrap();
            Box::pin(async move { drop(held.await) })
        });
        for id in [1, 2] {
            linger.defer(delivered(id)).unwrap();
        }
        let (flushing, asked) = (linger.clone(), document(1));
        let flush = tokio::spawn(async move { flushing.flush(&asked).await });
        let (cleared, hold) = clears.recv().await.unwrap();
        assert_eq!(cleared, [document(1)]);
        tokio::task::yield_now().await;
        assert!(!flush.is_finished());
        drop(hold);
        flush.await.unwrap();
        linger.flush(&document(3)).await;
        assert_eq!(linger.count(&document(2)), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_handle_and_closing_leave_nothing_behind() {
        let (linger, mut clears) = linger();
        linger.defer(delivered(1)).unwrap();
        linger.flush_all().await;
        assert_eq!(documents(&clears.recv().await.unwrap()), [document(1)]);
        linger.defer(delivered(2)).unwrap();
        drop(linger);
        assert_eq!(documents(&clears.recv().await.unwrap()), [document(2)]);
    }

    #[tokio::test(start_paused = true)]
    async fn there_is_an_end_to_how_much_waits() {
        let (linger, _clears) = linger();
        let many = Delivered { ids: vec![Uuid::new(); MOST_ENTRIES + 1], ..delivered(1) };
        assert!(linger.defer(many).is_err());
        for _ in 0..MOST {
            linger.defer(delivered(2)).unwrap();
        }
        assert!(linger.defer(delivered(2)).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_being_cleared_counts_as_well() {
        let linger = Linger::start(TIME, |_| Box::pin(std::future::pending()));
        for id in 0..MOST {
            linger.defer(delivered(i32::try_from(id).unwrap())).unwrap();
        }
        tokio::time::sleep(TIME * 2).await;
        assert!(linger.defer(delivered(-1)).is_err());
    }
}
