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
//! - Whatever waits is cleared in the end: when its time is over, and at once when a save that has taken it fails or is
//!   dropped, when somebody asks for its document, and when the last handle is gone.
//! - A save that has taken messages and is never finished, as in a future that nobody polls, does not keep them: they are
//!   cleared before their claim ends. That save's filter then matches nothing, and it writes again without them.
//! - A flush waits for what was there when it was called, and for nothing that came later.
//!
//! # Caveats
//! What waits when its process dies is delivered again, once its claim has ended. So it is with a process that ends without
//! closing its inline dispatcher, or whose runtime ends before: that is logged with how many messages it concerns.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::future::BoxFuture;
use tokio::{
    runtime::Handle,
    sync::Notify,
    time::{Instant, sleep_until},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{mongo::Delivered, stored::document_ref::DocumentRef};

/// Messages that may wait at a time, taken ones included until their time would be over, and documents that may be under way
/// to be cleared. With more, each is cleared at once by its delivery, which waits for it. So many messages a process can repeat
/// that ends without closing.
pub(crate) const MOST: usize = 16_384;
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
    /// Of the next message that comes to stay, and of the next clear.
    next: u64,
    /// Those that stay, by their number: waiting, or taken by a save that has not ended yet.
    staying: HashMap<u64, Staying>,
    /// Which of them waits, by its document.
    waiting: HashMap<Key, u64>,
    /// When each is due, in order. Some of them have gone since, or been taken.
    due: VecDeque<Due>,
    /// How many messages those are.
    messages: usize,
    /// Those that a save has taken, by when they must be cleared all the same.
    taken: BTreeSet<(Instant, u64)>,
    /// To be cleared at once.
    now: Vec<(u64, Key, Delivered)>,
    /// The clears that are under way, or about to be.
    going: BTreeSet<u64>,
    /// The same by their documents.
    going_of: HashMap<Key, Vec<u64>>,
    /// Nothing more may stay.
    closed: bool,
}

struct Staying {
    key: Key,
    delivered: Delivered,
    /// When its claim is as good as over.
    until: Instant,
}

struct Due {
    at: Instant,
    number: u64,
    messages: usize,
}

impl State {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn go(&mut self, key: Key, delivered: Delivered) {
        let number = self.number();
        self.going.insert(number);
        self.going_of.entry(key.clone()).or_default().push(number);
        self.now.push((number, key, delivered));
    }

    /// Clears one of those that stay, whether it waits or a save has taken it.
    fn go_number(&mut self, number: u64) {
        let Some(Staying { key, delivered, .. }) = self.forget(number) else { return };
        self.go(key, delivered);
    }

    /// One stays no longer.
    fn forget(&mut self, number: u64) -> Option<Staying> {
        let staying = self.staying.remove(&number)?;
        if self.waiting.get(&staying.key) == Some(&number) {
            self.waiting.remove(&staying.key);
        }
        self.taken.remove(&(staying.until, number));
        Some(staying)
    }

    fn go_all(&mut self) {
        let numbers: Vec<u64> = self.staying.keys().copied().collect();
        for number in numbers {
            self.go_number(number);
        }
    }

    /// What is to be cleared now, with all that is due until then.
    fn take_due(&mut self, until: Instant) -> Vec<(u64, Key, Delivered)> {
        while let Some(due) = self.due.pop_front_if(|due| due.at <= until) {
            self.messages -= due.messages;
            let is_taken = |staying: &Staying| self.taken.contains(&(staying.until, due.number));
            if !self.staying.get(&due.number).is_some_and(is_taken) {
                self.go_number(due.number);
            }
        }
        while let Some((at, number)) = self.taken.first().copied()
            && at <= until
        {
            self.go_number(number);
        }
        std::mem::take(&mut self.now)
    }

    /// When there is something to do next.
    fn next_due(&self) -> Option<Instant> {
        let due = self.due.front().map(|due| due.at);
        let taken = self.taken.first().map(|(at, _)| *at);
        due.into_iter().chain(taken).min()
    }

    fn went(&mut self, number: u64, key: &Key) {
        self.going.remove(&number);
        if let Some(numbers) = self.going_of.get_mut(key) {
            numbers.retain(|going| *going != number);
            if numbers.is_empty() {
                self.going_of.remove(key);
            }
        }
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
        tokio::spawn(run(Keeper { shared: shared.clone() }, gone.clone()));
        Self { shared, _last: Arc::new(gone.drop_guard()) }
    }

    /// Lets these wait; gives them back where they are better cleared at once. Their claim is as good as over at `until`.
    pub(crate) fn defer(&self, delivered: Delivered, until: Instant) -> Result<(), Delivered> {
        let mut state = self.shared.lock();
        let full = state.messages.max(state.going.len()) >= MOST;
        if state.closed || full || delivered.ids.len() > MOST_ENTRIES {
            return Err(delivered);
        }

        let key = Key::from(delivered.document.map_key());
        let number = state.number();
        let at = Instant::now() + self.shared.time;
        let messages = delivered.ids.len();
        state.messages += messages;
        state.due.push_back(Due { at, number, messages });
        state.staying.insert(number, Staying { key: key.clone(), delivered, until });
        if let Some(older) = state.waiting.insert(key, number) {
            state.go_number(older);
        }
        if state.due.len() == 1 || !state.now.is_empty() {
            self.shared.woken.notify_one();
        }
        Ok(())
    }

    /// How many entries wait in this document.
    pub(crate) fn count(&self, document: &DocumentRef) -> usize {
        let state = self.shared.lock();
        let staying = state.waiting.get(&*document.map_key()).and_then(|number| state.staying.get(number));
        staying.map_or(0, |staying| staying.delivered.ids.len())
    }

    /// Takes what waits in this document, for a save to take out of it.
    pub(crate) fn take(&self, document: &DocumentRef) -> Option<Taken> {
        let mut state = self.shared.lock();
        let number = state.waiting.remove(&*document.map_key())?;
        let staying = state.staying.get(&number)?;
        let (delivered, until) = (staying.delivered.clone(), staying.until);
        state.taken.insert((until, number));
        Some(Taken { number, delivered, shared: self.shared.clone() })
    }

    /// Waits until nothing that was delivered before stands in this document any more, as far as it can be cleared. What a
    /// save has taken is left to that save.
    pub(crate) async fn flush(&self, document: &DocumentRef) {
        let key = document.map_key();
        let before = {
            let mut state = self.shared.lock();
            if let Some(number) = state.waiting.get(&*key).copied() {
                state.go_number(number);
            }
            state.number()
        };
        self.shared.clear_now();
        let is_later = |number: &u64| *number > before;
        self.shared
            .gone(|state| state.going_of.get(&*key).is_none_or(|numbers| numbers.iter().all(is_later)))
            .await;
    }

    /// Waits until all that stays now has been cleared, what saves have taken included.
    pub(crate) async fn flush_all(&self) {
        let before = {
            let mut state = self.shared.lock();
            state.go_all();
            state.number()
        };
        self.shared.clear_now();
        self.shared.gone(|state| state.going.first().is_none_or(|number| *number > before)).await;
    }

    /// From now on nothing may stay: it is cleared by its delivery.
    pub(crate) fn close(&self) {
        self.shared.lock().closed = true;
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

    /// Clears what is to be cleared at once. Must be called inside a tokio runtime: any, the one that this was started on may
    /// have ended.
    fn clear_now(self: &Arc<Self>) {
        let due = std::mem::take(&mut self.lock().now);
        self.clear(due);
    }

    /// Clears in a task of its own: one document that somebody holds must not hold up the others that come to be due.
    fn clear(self: &Arc<Self>, due: Vec<(u64, Key, Delivered)>) {
        if due.is_empty() {
            return;
        }
        let shared = self.clone();
        let mut clears = Vec::with_capacity(due.len());
        let mut delivered = Vec::with_capacity(due.len());
        for (number, key, of_document) in due {
            clears.push((number, key));
            delivered.push(of_document);
        }
        let cleared = Cleared { shared, clears };
        tokio::spawn(async move {
            (cleared.shared.clear)(delivered).await;
            drop(cleared);
        });
    }
}

/// Tells that clears have ended, however they have.
struct Cleared {
    shared: Arc<Shared>,
    clears: Vec<(u64, Key)>,
}

impl Drop for Cleared {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        for (number, key) in self.clears.drain(..) {
            state.went(number, &key);
        }
        drop(state);
        self.shared.went.notify_waiters();
    }
}

/// Delivered messages that a save is to take out of their document. Dropped without [`done`](Taken::done), they are cleared at once.
pub(crate) struct Taken {
    number: u64,
    delivered: Delivered,
    shared: Arc<Shared>,
}

impl Taken {
    pub(crate) fn delivered(&self) -> &Delivered {
        &self.delivered
    }

    /// The save has taken them out.
    pub(crate) fn done(self) {
        self.shared.lock().forget(self.number);
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let keeper_is_gone = {
            let mut state = self.shared.lock();
            state.go_number(self.number);
            state.closed
        };
        self.shared.woken.notify_one();
        // Nobody else may be there to clear it.
        if keeper_is_gone && Handle::try_current().is_ok() {
            self.shared.clear_now();
        }
    }
}

/// The task that clears what is due.
struct Keeper {
    shared: Arc<Shared>,
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.closed = true;
        let left: usize = state.staying.values().map(|staying| staying.delivered.ids.len()).sum();
        if left > 0 {
            tracing::warn!(
                count = left,
                "the runtime ended before delivered messages were cleared: close the inline dispatcher before; they are \
                 delivered again unless it is flushed"
            );
        }
    }
}

async fn run(keeper: Keeper, gone: CancellationToken) {
    let shared = &keeper.shared;
    while !gone.is_cancelled() {
        let next = shared.lock().next_due();
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
        state.closed = true;
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

    /// The end of a claim that no test meets.
    fn far() -> Instant {
        Instant::now() + TIME * 1_000
    }

    fn documents(delivered: &[Delivered]) -> Vec<DocumentRef> {
        delivered.iter().map(|delivered| delivered.document.clone()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn those_whose_time_is_over_go_together() {
        let (linger, mut clears) = linger();
        let began = Instant::now();
        linger.defer(delivered(1), far()).unwrap();
        linger.defer(delivered(2), far()).unwrap();
        tokio::time::sleep(TIME / 2).await;
        linger.defer(delivered(3), far()).unwrap();
        assert_eq!(documents(&clears.recv().await.unwrap()), [document(1), document(2)]);
        assert_eq!(began.elapsed(), TIME);
        assert_eq!(documents(&clears.recv().await.unwrap()), [document(3)]);
        assert_eq!(began.elapsed(), TIME + TIME / 2);
    }

    #[tokio::test(start_paused = true)]
    async fn clears_taken_by_a_save_run_when_returned() {
        let (linger, mut clears) = linger();
        for id in [1, 2] {
            linger.defer(delivered(id), far()).unwrap();
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
    async fn a_document_noted_again_waits_its_full_time() {
        let (linger, mut clears) = linger();
        linger.defer(delivered(1), far()).unwrap();
        tokio::time::sleep(TIME / 2).await;
        linger.take(&document(1)).unwrap().done();
        let again = Instant::now();
        linger.defer(delivered(1), far()).unwrap();
        clears.recv().await.unwrap();
        assert_eq!(again.elapsed(), TIME);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_waits_only_for_its_documents_clear() {
        let (begun, mut clears) = mpsc::unbounded_channel();
        let linger = Linger::start(TIME, move |delivered| {
            let (hold, held) = tokio::sync::oneshot::channel::<()>();
            begun.send((documents(&delivered), hold)).unwrap();
            Box::pin(async move { drop(held.await) })
        });
        for id in [1, 2] {
            linger.defer(delivered(id), far()).unwrap();
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
    async fn a_save_that_nobody_finishes_keeps_nothing() {
        let (linger, mut clears) = linger();
        let claimed = Instant::now() + TIME * 3;
        linger.defer(delivered(1), claimed).unwrap();
        let forgotten = linger.take(&document(1)).unwrap();
        assert_eq!(documents(&clears.recv().await.unwrap()), [document(1)]);
        assert_eq!(Instant::now(), claimed, "it had as long as the claim holds");
        drop(forgotten);
        linger.flush_all().await;
        assert!(clears.try_recv().is_err(), "cleared once");

        linger.defer(delivered(2), far()).unwrap();
        let _forgotten = linger.take(&document(2)).unwrap();
        linger.flush_all().await;
        assert_eq!(documents(&clears.recv().await.unwrap()), [document(2)]);
    }

    /// Clears that began after the call are no concern of it.
    #[tokio::test(start_paused = true)]
    async fn a_flush_ends_while_others_go_on() {
        let (begun, mut clears) = mpsc::unbounded_channel();
        let linger = Linger::start(TIME, move |delivered| {
            let (hold, held) = tokio::sync::oneshot::channel::<()>();
            begun.send((documents(&delivered), hold)).unwrap();
            Box::pin(async move { drop(held.await) })
        });
        for of_one in [false, true] {
            linger.defer(delivered(1), far()).unwrap();
            let flushing = linger.clone();
            let flush = tokio::spawn(async move {
                match of_one {
                    true => flushing.flush(&document(1)).await,
                    false => flushing.flush_all().await,
                }
            });
            let (_, first) = clears.recv().await.unwrap();
            linger.defer(delivered(1), far()).unwrap();
            let (_, _second) = clears.recv().await.unwrap();
            drop(first);
            tokio::time::timeout(TIME * 100, flush).await.expect("the flush ends").unwrap();
        }
    }

    #[test]
    fn what_stays_is_flushed_after_its_runtime_has_ended() {
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let first = runtime();
        let (linger, mut clears) = first.block_on(async {
            let (linger, clears) = linger();
            linger.defer(delivered(1), far()).unwrap();
            tokio::task::yield_now().await;
            (linger, clears)
        });
        drop(first);
        assert!(linger.defer(delivered(2), far()).is_err(), "nobody would clear it");
        runtime().block_on(async {
            linger.flush_all().await;
            assert_eq!(documents(&clears.recv().await.unwrap()), [document(1)]);
        });
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_handle_and_closing_leave_nothing_behind() {
        let (linger, mut clears) = linger();
        linger.defer(delivered(1), far()).unwrap();
        linger.flush_all().await;
        assert_eq!(documents(&clears.recv().await.unwrap()), [document(1)]);
        linger.defer(delivered(2), far()).unwrap();
        drop(linger);
        assert_eq!(documents(&clears.recv().await.unwrap()), [document(2)]);
    }

    #[tokio::test(start_paused = true)]
    async fn there_is_an_end_to_how_much_waits() {
        let (linger, _clears) = linger();
        let many = Delivered { ids: vec![Uuid::new(); MOST_ENTRIES + 1], ..delivered(1) };
        assert!(linger.defer(many, far()).is_err());
        for _ in 0..MOST {
            linger.defer(delivered(2), far()).unwrap();
        }
        assert!(linger.defer(delivered(2), far()).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_being_cleared_counts_as_well() {
        let linger = Linger::start(TIME, |_| Box::pin(std::future::pending()));
        for id in 0..MOST {
            linger.defer(delivered(i32::try_from(id).unwrap()), far()).unwrap();
        }
        tokio::time::sleep(TIME * 2).await;
        assert!(linger.defer(delivered(-1), far()).is_err());
    }
}
