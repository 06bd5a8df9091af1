//! Defers clears: delivered messages stay in their document until the next save of that document removes them, or until
//! a time limit after which they are cleared together.
//!
//! # Flow
//! ```text
//! confirmed ─▶ deferred ─┬─ a save of the same document takes it ─┬─ saved ──▶ gone, without a write of its own
//!                        │                                        └─ not ──┐
//!                        └─ its time is over, it is in the way, closing ───┴─▶ cleared
//! ```
//!
//! # Guarantees
//! - Every deferred message is eventually cleared, no later than when its time limit is reached. A deferred message is
//!   cleared earlier if a save that has taken the message fails or is dropped, if the document is flushed, or if the
//!   last handle is dropped.
//! - If a save has taken messages and never finishes, for example because its future is not polled, the messages are
//!   still cleared before their claim ends. If the save continues later, its filter matches nothing, and the save
//!   writes again without removing those messages.
//! - A flush waits for the messages that were deferred when the flush was called, and not for later messages.
//!
//! # Caveats
//! If a process dies, messages whose clear was deferred are delivered again once their claim has ended. The messages
//! are also delivered again if the process ends without closing its inline dispatcher, or if the runtime ends before
//! the dispatcher is closed. In the last case, the number of messages is logged.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use futures::future::BoxFuture;
use parking_lot::{Mutex, MutexGuard};
use tokio::{
    runtime::Handle,
    sync::Notify,
    time::{Instant, sleep_until},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{dispatch::clears_under_way::MOST_ENTRIES, mongo::Delivered, stored::document_ref::DocumentRef};

/// Maximum number of deferred messages, including those that a save has taken, and maximum number of documents being
/// cleared. Above this limit, each delivery clears its messages at once and waits until they are cleared. If a process
/// ends without closing its inline dispatcher, up to this many messages can be repeated.
pub(crate) const MOST: usize = 16_384;

type Key = Arc<[u8]>;
type Clear = dyn Fn(Vec<Delivered>) -> BoxFuture<'static, ()> + Send + Sync;

/// The deferred messages of a process. Clones share them.
#[derive(Clone)]
pub(crate) struct DeferredClears {
    queue: Arc<Queue>,
    _last: Arc<DropGuard>,
}

struct Queue {
    time: Duration,
    state: Mutex<QueueState>,
    /// Notified when a message was deferred, or when messages must be cleared at once.
    woken: Notify,
    /// Notified when a clear has ended.
    went: Notify,
    clear: Box<Clear>,
}

#[derive(Default)]
struct QueueState {
    /// The number last given to a deferred message or to a clear.
    next: u64,
    /// The deferred messages by number: messages that wait, and messages that were taken by a save that has not ended
    /// yet.
    deferred: HashMap<u64, Deferred>,
    /// The numbers of the waiting messages, by document.
    waiting: HashMap<Key, u64>,
    /// The times at which deferred messages are due, in order. Some of the messages may have been removed, or taken by
    /// a save, in the meantime.
    due: VecDeque<DueClear>,
    /// Number of messages in `due`.
    messages: usize,
    /// The messages that a save has taken, by the time at which they must be cleared even if that save has not ended.
    taken: BTreeSet<(Instant, u64)>,
    /// The messages to clear at once.
    now: Vec<(u64, Key, Delivered)>,
    /// The numbers of the clears that are in progress or about to begin.
    going: BTreeSet<u64>,
    /// The numbers of the clears in `going`, by document.
    going_of: HashMap<Key, Vec<u64>>,
    /// Whether deferring has stopped, so that no more clears may be deferred.
    closed: bool,
}

struct Deferred {
    key: Key,
    delivered: Delivered,
    /// The time from which the claim is treated as ended.
    until: Instant,
}

struct DueClear {
    at: Instant,
    number: u64,
    messages: usize,
}

impl QueueState {
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

    /// Clears the deferred message with this number, whether the message waits or a save has taken it.
    fn go_number(&mut self, number: u64) {
        let Some(Deferred { key, delivered, .. }) = self.forget(number) else { return };
        self.go(key, delivered);
    }

    /// Removes a message from the deferred messages.
    fn forget(&mut self, number: u64) -> Option<Deferred> {
        let deferred = self.deferred.remove(&number)?;
        if self.waiting.get(&deferred.key) == Some(&number) {
            self.waiting.remove(&deferred.key);
        }
        self.taken.remove(&(deferred.until, number));
        Some(deferred)
    }

    fn go_all(&mut self) {
        let numbers: Vec<u64> = self.deferred.keys().copied().collect();
        for number in numbers {
            self.go_number(number);
        }
    }

    /// Takes the messages to clear now, including all that are due before `until`.
    fn take_due(&mut self, until: Instant) -> Vec<(u64, Key, Delivered)> {
        while let Some(due) = self.due.pop_front_if(|due| due.at <= until) {
            self.messages -= due.messages;
            let is_taken = |deferred: &Deferred| self.taken.contains(&(deferred.until, due.number));
            if !self.deferred.get(&due.number).is_some_and(is_taken) {
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

    /// The time at which the next work is due.
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

impl DeferredClears {
    /// Starts a task that calls `clear` for messages that have waited for `time`. Must be called inside a tokio
    /// runtime.
    pub(crate) fn start(
        time: Duration,
        clear: impl Fn(Vec<Delivered>) -> BoxFuture<'static, ()> + Send + Sync + 'static,
    ) -> Self {
        let queue = Arc::new(Queue {
            time,
            state: Mutex::default(),
            woken: Notify::new(),
            went: Notify::new(),
            clear: Box::new(clear),
        });
        let gone = CancellationToken::new();
        tokio::spawn(run(ClearTask { queue: queue.clone() }, gone.clone()));
        Self { queue, _last: Arc::new(gone.drop_guard()) }
    }

    /// Defers the clear of these messages, or returns the messages if they must be cleared at once. From `until` on,
    /// the claim of the messages is treated as ended.
    pub(crate) fn defer(&self, delivered: Delivered, until: Instant) -> Result<(), Delivered> {
        let mut state = self.queue.lock();
        let full = state.messages.max(state.going.len()) >= MOST;
        if state.closed || full || delivered.ids.len() > MOST_ENTRIES {
            return Err(delivered);
        }

        let key = Key::from(delivered.document.map_key());
        let number = state.number();
        let at = Instant::now() + self.queue.time;
        let messages = delivered.ids.len();

        state.messages += messages;
        state.due.push_back(DueClear { at, number, messages });
        state.deferred.insert(number, Deferred { key: key.clone(), delivered, until });
        if let Some(older) = state.waiting.insert(key, number) {
            state.go_number(older);
        }

        if state.due.len() == 1 || !state.now.is_empty() {
            self.queue.woken.notify_one();
        }
        Ok(())
    }

    /// Number of deferred entries in this document.
    pub(crate) fn count(&self, document: &DocumentRef) -> usize {
        let state = self.queue.lock();
        let deferred = state.waiting.get(&*document.map_key()).and_then(|number| state.deferred.get(number));
        deferred.map_or(0, |deferred| deferred.delivered.ids.len())
    }

    /// Takes the waiting messages of this document, so that a save can remove them.
    pub(crate) fn take(&self, document: &DocumentRef) -> Option<Taken> {
        let mut state = self.queue.lock();
        let number = state.waiting.remove(&*document.map_key())?;
        let deferred = state.deferred.get(&number)?;
        let (delivered, until) = (deferred.delivered.clone(), deferred.until);
        state.taken.insert((until, number));
        Some(Taken { number, delivered, queue: self.queue.clone() })
    }

    /// Waits until the delivered messages have left this document, as far as they can be cleared. Messages
    /// that a save has taken are left to that save.
    pub(crate) async fn flush(&self, document: &DocumentRef) {
        let key = document.map_key();
        let before = {
            let mut state = self.queue.lock();
            if let Some(number) = state.waiting.get(&*key).copied() {
                state.go_number(number);
            }
            state.number()
        };

        self.queue.clear_now();
        let is_later = |number: &u64| *number > before;
        self.queue
            .gone(|state| state.going_of.get(&*key).is_none_or(|numbers| numbers.iter().all(is_later)))
            .await;
    }

    /// Waits until all messages that are deferred now have been cleared, including those that saves have
    /// taken.
    pub(crate) async fn flush_all(&self) {
        let before = {
            let mut state = self.queue.lock();
            state.go_all();
            state.number()
        };

        self.queue.clear_now();
        self.queue.gone(|state| state.going.first().is_none_or(|number| *number > before)).await;
    }

    /// Stops deferring clears. From now on each delivery clears its own messages.
    pub(crate) fn close(&self) {
        self.queue.lock().closed = true;
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock()
    }

    async fn gone(&self, is_gone: impl Fn(&QueueState) -> bool) {
        loop {
            let went = self.went.notified();
            if is_gone(&self.lock()) {
                return;
            }
            went.await;
        }
    }

    /// Clears the messages that are to be cleared at once. Must be called inside a tokio runtime, but not necessarily
    /// inside the runtime on which `start` was called, because that runtime may have ended.
    fn clear_now(self: &Arc<Self>) {
        let due = std::mem::take(&mut self.lock().now);
        self.clear(due);
    }

    /// Clears in a separate task, because one locked document must not delay other documents that become due.
    fn clear(self: &Arc<Self>, due: Vec<(u64, Key, Delivered)>) {
        if due.is_empty() {
            return;
        }

        let queue = self.clone();
        let mut clears = Vec::with_capacity(due.len());
        let mut delivered = Vec::with_capacity(due.len());
        for (number, key, of_document) in due {
            clears.push((number, key));
            delivered.push(of_document);
        }

        let cleared = EndedClears { queue, clears };
        tokio::spawn(async move {
            (cleared.queue.clear)(delivered).await;
            drop(cleared);
        });
    }
}

/// Records, when dropped, that clears have ended, whatever their result.
struct EndedClears {
    queue: Arc<Queue>,
    clears: Vec<(u64, Key)>,
}

impl Drop for EndedClears {
    fn drop(&mut self) {
        let mut state = self.queue.lock();
        for (number, key) in self.clears.drain(..) {
            state.went(number, &key);
        }
        drop(state);
        self.queue.went.notify_waiters();
    }
}

/// Delivered messages that a save will remove from their document. If this value is dropped without a call to
/// [`done`](Taken::done), the messages are cleared at once.
pub(crate) struct Taken {
    number: u64,
    delivered: Delivered,
    queue: Arc<Queue>,
}

impl Taken {
    pub(crate) fn delivered(&self) -> &Delivered {
        &self.delivered
    }

    /// Records that the save has removed the messages.
    pub(crate) fn done(self) {
        self.queue.lock().forget(self.number);
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let task_is_gone = {
            let mut state = self.queue.lock();
            state.go_number(self.number);
            state.closed
        };
        self.queue.woken.notify_one();
        // If the task is gone, clear here; otherwise the messages might never be cleared.
        if task_is_gone && Handle::try_current().is_ok() {
            self.queue.clear_now();
        }
    }
}

/// The task that clears messages when they are due.
struct ClearTask {
    queue: Arc<Queue>,
}

impl Drop for ClearTask {
    fn drop(&mut self) {
        let mut state = self.queue.lock();
        state.closed = true;
        let left: usize = state.deferred.values().map(|deferred| deferred.delivered.ids.len()).sum();
        if left > 0 {
            tracing::warn!(
                count = left,
                "the runtime ended before delivered messages were cleared; they are delivered again unless the inline dispatcher is flushed. Close the inline dispatcher before the runtime ends"
            );
        }
    }
}

async fn run(task: ClearTask, gone: CancellationToken) {
    let queue = &task.queue;
    while !gone.is_cancelled() {
        let next = queue.lock().next_due();
        let is_due = async {
            match next {
                Some(due) => sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = is_due => {}
            () = queue.woken.notified() => {}
            () = gone.cancelled() => {}
        }

        // Also clear messages that are due soon.
        let now = Instant::now();
        let any = next.is_some_and(|due| due <= now);
        let until = if any { now + queue.time / 4 } else { now };
        let due = queue.lock().take_due(until);
        queue.clear(due);
    }

    let left = {
        let mut state = queue.lock();
        state.closed = true;
        state.go_all();
        std::mem::take(&mut state.now)
    };
    queue.clear(left);
}

#[cfg(test)]
mod tests {
    use mongodb::{Namespace, bson::Uuid};
    use tokio::sync::mpsc;

    use super::*;
    use crate::mongo::Overtaken;

    const TIME: Duration = Duration::from_secs(1);

    /// Creates deferred clears that hand the cleared messages to the test.
    fn deferred_clears() -> (DeferredClears, mpsc::UnboundedReceiver<Vec<Delivered>>) {
        let (cleared, clears) = mpsc::unbounded_channel();
        let deferred = DeferredClears::start(TIME, move |delivered| {
            let cleared = cleared.clone();
            Box::pin(async move { cleared.send(delivered).unwrap() })
        });
        (deferred, clears)
    }

    fn document(id: i32) -> DocumentRef {
        DocumentRef::by_id(Namespace::new("shop", "orders"), id)
    }

    fn delivered(id: i32) -> Delivered {
        Delivered {
            document: document(id),
            token: format!("p/{id}"),
            ids: vec![Uuid::new()],
            overtaken: Overtaken::default(),
        }
    }

    /// The end of a claim, later than any test runs.
    fn far() -> Instant {
        Instant::now() + TIME * 1_000
    }

    fn documents(delivered: &[Delivered]) -> Vec<DocumentRef> {
        delivered.iter().map(|delivered| delivered.document.clone()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn those_whose_time_is_over_go_together() {
        let (deferred, mut clears) = deferred_clears();
        let began = Instant::now();
        deferred.defer(delivered(1), far()).unwrap();
        deferred.defer(delivered(2), far()).unwrap();
        tokio::time::sleep(TIME / 2).await;
        deferred.defer(delivered(3), far()).unwrap();
        assert_eq!(documents(&clears.recv().await.unwrap()), [document(1), document(2)]);
        assert_eq!(began.elapsed(), TIME);
        assert_eq!(documents(&clears.recv().await.unwrap()), [document(3)]);
        assert_eq!(began.elapsed(), TIME + TIME / 2);
    }

    #[tokio::test(start_paused = true)]
    async fn clears_taken_by_a_save_run_when_returned() {
        let (deferred, mut clears) = deferred_clears();
        for id in [1, 2] {
            deferred.defer(delivered(id), far()).unwrap();
        }
        deferred.take(&document(1)).unwrap().done();
        assert!(deferred.take(&document(1)).is_none());
        let began = Instant::now();
        drop(deferred.take(&document(2)).unwrap());
        assert_eq!(documents(&clears.recv().await.unwrap()), [document(2)]);
        assert_eq!(began.elapsed(), Duration::ZERO);
        drop(deferred);
        assert!(clears.recv().await.is_none(), "nothing is left");
    }

    #[tokio::test(start_paused = true)]
    async fn a_document_noted_again_waits_its_full_time() {
        let (deferred, mut clears) = deferred_clears();
        deferred.defer(delivered(1), far()).unwrap();
        tokio::time::sleep(TIME / 2).await;
        deferred.take(&document(1)).unwrap().done();
        let again = Instant::now();
        deferred.defer(delivered(1), far()).unwrap();
        clears.recv().await.unwrap();
        assert_eq!(again.elapsed(), TIME);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_waits_only_for_its_documents_clear() {
        let (begun, mut clears) = mpsc::unbounded_channel();
        let deferred = DeferredClears::start(TIME, move |delivered| {
            let (hold, held) = tokio::sync::oneshot::channel::<()>();
            begun.send((documents(&delivered), hold)).unwrap();
            Box::pin(async move { drop(held.await) })
        });
        for id in [1, 2] {
            deferred.defer(delivered(id), far()).unwrap();
        }
        let (flushing, asked) = (deferred.clone(), document(1));
        let flush = tokio::spawn(async move { flushing.flush(&asked).await });
        let (cleared, hold) = clears.recv().await.unwrap();
        assert_eq!(cleared, [document(1)]);
        tokio::task::yield_now().await;
        assert!(!flush.is_finished());
        drop(hold);
        flush.await.unwrap();
        deferred.flush(&document(3)).await;
        assert_eq!(deferred.count(&document(2)), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn an_unfinished_save_keeps_no_clear() {
        let (deferred, mut clears) = deferred_clears();
        let claimed = Instant::now() + TIME * 3;
        deferred.defer(delivered(1), claimed).unwrap();
        let forgotten = deferred.take(&document(1)).unwrap();
        assert_eq!(documents(&clears.recv().await.unwrap()), [document(1)]);
        assert_eq!(Instant::now(), claimed, "a taken message is kept until shortly before its claim ends");
        drop(forgotten);
        deferred.flush_all().await;
        assert!(clears.try_recv().is_err(), "cleared once");

        deferred.defer(delivered(2), far()).unwrap();
        let _forgotten = deferred.take(&document(2)).unwrap();
        deferred.flush_all().await;
        assert_eq!(documents(&clears.recv().await.unwrap()), [document(2)]);
    }

    /// A flush does not wait for clears that began after the call.
    #[tokio::test(start_paused = true)]
    async fn a_flush_ends_while_others_continue() {
        let (begun, mut clears) = mpsc::unbounded_channel();
        let deferred = DeferredClears::start(TIME, move |delivered| {
            let (hold, held) = tokio::sync::oneshot::channel::<()>();
            begun.send((documents(&delivered), hold)).unwrap();
            Box::pin(async move { drop(held.await) })
        });
        for of_one in [false, true] {
            deferred.defer(delivered(1), far()).unwrap();
            let flushing = deferred.clone();
            let flush = tokio::spawn(async move {
                if of_one {
                    flushing.flush(&document(1)).await;
                } else {
                    flushing.flush_all().await;
                }
            });
            let (_, first) = clears.recv().await.unwrap();
            deferred.defer(delivered(1), far()).unwrap();
            let (_, _second) = clears.recv().await.unwrap();
            drop(first);
            tokio::time::timeout(TIME * 100, flush).await.expect("the flush ends").unwrap();
        }
    }

    #[test]
    fn deferred_clears_are_flushed_after_its_runtime_has_ended() {
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let first = runtime();
        let (deferred, mut clears) = first.block_on(async {
            let (deferred, clears) = deferred_clears();
            deferred.defer(delivered(1), far()).unwrap();
            tokio::task::yield_now().await;
            (deferred, clears)
        });
        drop(first);
        assert!(deferred.defer(delivered(2), far()).is_err(), "it would never be cleared");
        runtime().block_on(async {
            deferred.flush_all().await;
            assert_eq!(documents(&clears.recv().await.unwrap()), [document(1)]);
        });
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_handle_and_closing_clear_everything() {
        let (deferred, mut clears) = deferred_clears();
        deferred.defer(delivered(1), far()).unwrap();
        deferred.flush_all().await;
        assert_eq!(documents(&clears.recv().await.unwrap()), [document(1)]);
        deferred.defer(delivered(2), far()).unwrap();
        drop(deferred);
        assert_eq!(documents(&clears.recv().await.unwrap()), [document(2)]);
    }

    #[tokio::test(start_paused = true)]
    async fn there_is_an_end_to_how_much_waits() {
        let (deferred, _clears) = deferred_clears();
        let many = Delivered { ids: vec![Uuid::new(); MOST_ENTRIES + 1], ..delivered(1) };
        assert!(deferred.defer(many, far()).is_err());
        for _ in 0..MOST {
            deferred.defer(delivered(2), far()).unwrap();
        }
        assert!(deferred.defer(delivered(2), far()).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn clears_in_flight_count_too() {
        let deferred = DeferredClears::start(TIME, |_| Box::pin(std::future::pending()));
        for id in 0..MOST {
            deferred.defer(delivered(i32::try_from(id).unwrap()), far()).unwrap();
        }
        tokio::time::sleep(TIME * 2).await;
        assert!(deferred.defer(delivered(-1), far()).is_err());
    }
}
