//! Batches requests that can be sent together. Requests that arrive while earlier batches are in flight form the next
//! batch.
//!
//! # Flow
//! There is no timer. A request that arrives while no batch is in flight is sent alone and at once, by the task that
//! made it. Other requests are queued, and a task sends them as soon as another batch may be sent. Only a few batches
//! are in flight at a time; if one of these batches takes long, another batch is sent anyway.
//!
//! # Caveats
//! The task that sends batches ends with the runtime on which the batcher was started. Requests that are still queued
//! at that time get no answer, and their callers notice that no answer will arrive.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use mongodb::Namespace;
use parking_lot::{Mutex, MutexGuard};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::{Instant, timeout_at},
};

/// Maximum number of batches in flight while each batch is quick. With only one batch, all callers would get in step:
/// first all of them save while the broker is idle, then all of them deliver while the database is idle.
const ABREAST: usize = 2;
/// Fewer requests than this are not split over several batches, because each batch has its own cost.
const WORTH_A_BATCH: usize = 16;
/// The time after which a batch no longer prevents other batches from being sent.
const PATIENCE: Duration = Duration::from_millis(50);
/// Maximum number of batches in flight while each batch takes long. A batch that has returned its permit doesn't count.
const MOST_IN_FLIGHT: usize = 32;

/// A request and the channel to its waiting caller.
#[derive(Debug)]
pub(crate) struct Asked<Q, A> {
    pub(crate) request: Q,
    answer: oneshot::Sender<A>,
}

impl<Q, A> Asked<Q, A> {
    pub(crate) fn new(request: Q) -> (Self, oneshot::Receiver<A>) {
        let (answer, answered) = oneshot::channel();
        (Self { request, answer }, answered)
    }

    /// Answers the request. The answer is dropped if the caller no longer waits.
    pub(crate) fn answer(self, answer: A) {
        let _gone = self.answer.send(answer);
    }

    /// Whether no caller waits for the answer any more.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.answer.is_closed()
    }
}

/// Collects requests and sends them in batches. Clones share the same queue. The task ends once the last clone is
/// dropped and everything has been sent.
pub(crate) struct Batcher<Q, A> {
    queue: mpsc::Sender<Asked<Q, A>>,
    batches: Arc<Batches>,
}

impl<Q, A> Clone for Batcher<Q, A> {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone(), batches: self.batches.clone() }
    }
}

impl<Q, A> fmt::Debug for Batcher<Q, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batcher").finish_non_exhaustive()
    }
}

impl<Q: Send + 'static, A: Send + 'static> Batcher<Q, A> {
    /// Starts a batcher whose batches have at most `most` requests. `send` sends one batch, answers its requests, and
    /// keeps the permit while the server works on the batch. Must be called inside a tokio runtime.
    pub(crate) fn start<S>(
        most: usize,
        send: impl Fn(Vec<Asked<Q, A>>, BatchPermit) -> S + Send + 'static,
    ) -> Self
    where
        S: Future<Output = ()> + Send + 'static,
    {
        let (queue, waiting) = mpsc::channel(most);
        let batches = Arc::new(Batches::default());
        tokio::spawn(run(batches.clone(), waiting, most, send));
        Self { queue, batches }
    }

    /// Returns a permit to send one request alone and at once, or `None` if other requests are in flight or waiting.
    pub(crate) fn permit_for_one(&self) -> Option<BatchPermit> {
        if self.queue.capacity() < self.queue.max_capacity() {
            return None;
        }
        self.batches.begin_alone()
    }

    /// Sends a request with the next batch. Returns `None` if the sending runtime has ended, so that no answer will
    /// arrive.
    pub(crate) async fn ask(&self, request: Q) -> Option<A> {
        let (asked, answered) = Asked::new(request);
        self.enqueue(asked).await;
        answered.await.ok()
    }

    /// Queues a request for the next batch. If the sending runtime has ended, the request is dropped.
    pub(crate) async fn enqueue(&self, asked: Asked<Q, A>) {
        let _ended = self.queue.send(asked).await;
    }
}

async fn run<Q, A, S>(
    batches: Arc<Batches>,
    mut queue: mpsc::Receiver<Asked<Q, A>>,
    most: usize,
    send: impl Fn(Vec<Asked<Q, A>>, BatchPermit) -> S,
) where
    S: Future<Output = ()> + Send + 'static,
{
    let in_flight = Arc::new(Semaphore::new(MOST_IN_FLIGHT));
    let mut taken = Vec::with_capacity(most);
    while queue.recv_many(&mut taken, most).await > 0 {
        batches.wait_until_free().await;
        recv_more(&mut queue, &mut taken, most).await;

        let permits = batches.begin(taken.len());
        let share = taken.len().div_ceil(permits.len());
        for mut permit in permits {
            // The semaphore is never closed.
            let Ok(counted) = in_flight.clone().acquire_owned().await else { return };
            permit.counted = Some(counted);
            tokio::spawn(send(taken.drain(..share.min(taken.len())).collect(), permit));
        }
    }
}

/// Adds the requests that are already queued, and the requests of tasks that are about to run. Without these additions,
/// when one batch wakes many tasks together, the first task would get a batch of its own and all others would wait for
/// that batch.
async fn recv_more<T>(queue: &mut mpsc::Receiver<T>, taken: &mut Vec<T>, most: usize) {
    let mut before = 0;
    while taken.len() > before && taken.len() < most {
        before = taken.len();
        tokio::task::yield_now().await;

        while taken.len() < most
            && let Ok(item) = queue.try_recv()
        {
            taken.push(item);
        }
    }
}

/// Groups the requests by collection, in the order of their arrival.
pub(crate) fn by_collection<Q, A>(
    batch: Vec<Asked<Q, A>>,
    namespace: impl Fn(&Q) -> &Namespace,
) -> impl Iterator<Item = Vec<Asked<Q, A>>> {
    let mut collections: BTreeMap<String, Vec<Asked<Q, A>>> = BTreeMap::new();
    for asked in batch {
        collections.entry(namespace(&asked.request).to_string()).or_default().push(asked);
    }
    collections.into_values()
}

/// The batches that are in flight.
#[derive(Debug, Default)]
struct Batches {
    state: Mutex<BatchesInFlight>,
    freed: Notify,
}

#[derive(Debug, Default)]
struct BatchesInFlight {
    /// The times at which the batches in flight began.
    since: Vec<Instant>,
    /// Whether the last batch had several requests. In that case more requests are about to arrive, and a single
    /// request should wait for them.
    was_shared: bool,
    /// Whether a batch waits to begin.
    is_wanted: bool,
}

/// Whether batches may begin now.
enum MayBegin {
    /// This many batches may begin, at least one.
    Now(usize),
    /// No batch may begin before this time, at which a batch in flight stops preventing other batches.
    NotBefore(Instant),
}

impl BatchesInFlight {
    fn may_begin(&self) -> MayBegin {
        let now = Instant::now();
        let mut quick = 0;
        let mut next: Option<Instant> = None;
        for since in &self.since {
            let overtaken = *since + PATIENCE;
            if overtaken > now {
                quick += 1;
                next = Some(next.map_or(overtaken, |next| next.min(overtaken)));
            }
        }

        match next {
            Some(overtaken) if quick >= ABREAST => MayBegin::NotBefore(overtaken),
            _ => MayBegin::Now(ABREAST - quick),
        }
    }
}

impl Batches {
    fn lock(&self) -> MutexGuard<'_, BatchesInFlight> {
        self.state.lock()
    }

    fn permit(self: &Arc<Self>, in_flight: &mut BatchesInFlight) -> BatchPermit {
        let since = Instant::now();
        in_flight.since.push(since);
        BatchPermit { batches: self.clone(), since, counted: None }
    }

    fn begin_alone(self: &Arc<Self>) -> Option<BatchPermit> {
        let mut in_flight = self.lock();
        if !in_flight.since.is_empty() || in_flight.was_shared || in_flight.is_wanted {
            return None;
        }
        Some(self.permit(&mut in_flight))
    }

    /// Waits until a batch may begin. The permit of another batch may belong to a future that is not polled, so the
    /// wait is limited.
    async fn wait_until_free(&self) {
        loop {
            let freed = self.freed.notified();
            let overtaken = {
                let mut in_flight = self.lock();
                let may_begin = in_flight.may_begin();
                in_flight.is_wanted = matches!(may_begin, MayBegin::NotBefore(_));
                match may_begin {
                    MayBegin::Now(_) => return,
                    MayBegin::NotBefore(overtaken) => overtaken,
                }
            };

            // The next iteration finds out whether a batch has ended, or no longer prevents other batches.
            let _ = timeout_at(overtaken, freed).await;
        }
    }

    /// Takes one permit for each batch in which this many requests are sent. There is at least one batch. There are no
    /// more batches than may begin now, and no more than the requests justify.
    fn begin(self: &Arc<Self>, requests: usize) -> Vec<BatchPermit> {
        let mut in_flight = self.lock();
        in_flight.was_shared = requests > 1;
        let most = match in_flight.may_begin() {
            MayBegin::Now(batches) => batches,
            MayBegin::NotBefore(_) => 1,
        };
        let batches = most.min(requests.div_ceil(WORTH_A_BATCH)).max(1);
        (0..batches).map(|_| self.permit(&mut in_flight)).collect()
    }
}

/// The permit of a batch in flight. The batch counts as in flight until this value is dropped.
pub(crate) struct BatchPermit {
    batches: Arc<Batches>,
    since: Instant,
    /// `None` if a request is sent alone.
    counted: Option<OwnedSemaphorePermit>,
}

impl Drop for BatchPermit {
    fn drop(&mut self) {
        let mut in_flight = self.batches.lock();
        if let Some(place) = in_flight.since.iter().position(|since| *since == self.since) {
            in_flight.since.swap_remove(place);
        }
        self.batches.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Creates a batcher that passes its batches to the test. The test ends a batch by dropping it.
    fn batcher() -> (Batcher<u32, ()>, mpsc::UnboundedReceiver<Batch>) {
        let (begun, sent) = mpsc::unbounded_channel();
        let batcher = Batcher::start(100, move |batch: Vec<Asked<u32, ()>>, permit| {
            let (hold, held) = oneshot::channel::<()>();
            let requests = batch.into_iter().map(|asked| asked.request).collect();
            begun.send(Batch { requests, _hold: hold }).unwrap();
            async move {
                let _permit = permit;
                drop(held.await);
            }
        });
        (batcher, sent)
    }

    fn asked(request: u32) -> Asked<u32, ()> {
        Asked::new(request).0
    }

    struct Batch {
        requests: Vec<u32>,
        _hold: oneshot::Sender<()>,
    }

    #[tokio::test(start_paused = true)]
    async fn requests_that_wait_are_sent_together() {
        let (batcher, mut sent) = batcher();
        batcher.enqueue(asked(1)).await;
        let first = sent.recv().await.unwrap();
        batcher.enqueue(asked(2)).await;
        let second = sent.recv().await.unwrap();
        for request in 3..=7 {
            batcher.enqueue(asked(request)).await;
        }
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert!(sent.try_recv().is_err(), "two batches are in flight");
        drop(first);
        let third = sent.recv().await.unwrap();
        assert_eq!(third.requests, [3, 4, 5, 6, 7]);
        assert_eq!(second.requests, [2]);
    }

    #[tokio::test(start_paused = true)]
    async fn many_requests_are_shared_out_over_free_batches() {
        let (batcher, mut sent) = batcher();
        for request in 0..20 {
            batcher.queue.try_send(asked(request)).unwrap();
        }
        let (one, other) = (sent.recv().await.unwrap(), sent.recv().await.unwrap());
        assert_eq!((one.requests.len(), other.requests.len()), (10, 10));
    }

    #[tokio::test(start_paused = true)]
    async fn a_single_request_goes_alone_when_idle() {
        let (batcher, mut sent) = batcher();
        let alone = batcher.permit_for_one().unwrap();
        assert!(batcher.permit_for_one().is_none(), "one batch is in flight");
        drop(alone);
        drop(batcher.permit_for_one().unwrap());
        for request in 0..3 {
            batcher.queue.try_send(asked(request)).unwrap();
        }
        assert!(batcher.permit_for_one().is_none(), "others wait");
        drop(sent.recv().await.unwrap());
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert!(batcher.permit_for_one().is_none(), "the last batch had several requests");
        batcher.enqueue(asked(4)).await;
        drop(sent.recv().await.unwrap());
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert!(batcher.permit_for_one().is_some(), "the last batch had one request");
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_that_takes_long_is_overtaken() {
        let (batcher, mut sent) = batcher();
        let _forgotten = batcher.permit_for_one().unwrap();
        batcher.enqueue(asked(1)).await;
        let _stuck = sent.recv().await.unwrap();
        let since = Instant::now();
        batcher.enqueue(asked(2)).await;
        let next = sent.recv().await.unwrap();
        assert_eq!(next.requests, [2]);
        assert_eq!(since.elapsed(), PATIENCE);
    }
}
