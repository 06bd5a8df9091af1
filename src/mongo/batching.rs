//! What comes while the last batch is under way goes together, as the next.
//!
//! No timer: what comes alone goes alone and at once, in the task that brings it. A few batches are under way at a time; one that
//! takes long is overtaken.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use mongodb::Namespace;
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc},
    time::{Instant, timeout_at},
};

/// Batches under way at a time, when each is quick. With one alone, all callers would end up in step: all in their save while
/// the broker idles, then all in their delivery while the database does.
const ABREAST: usize = 2;
/// Fewer requests than this are not shared out over several batches: each has a cost of its own.
const WORTH_A_TURN: usize = 16;
/// After this long a batch is overtaken.
const PATIENCE: Duration = Duration::from_millis(50);
/// Batches under way at a time, when each takes long. One that has given its place back no longer counts.
const MOST_UNDER_WAY: usize = 32;

/// Takes requests, one by one or in batches; clones share it. It ends with the last of them, once everything has gone.
#[derive(Debug)]
pub(crate) struct Lane<T> {
    requests: mpsc::Sender<T>,
    turns: Arc<Turns>,
}

impl<T> Clone for Lane<T> {
    fn clone(&self) -> Self {
        Self { requests: self.requests.clone(), turns: self.turns.clone() }
    }
}

impl<T: Send + 'static> Lane<T> {
    /// Batches hold at most `most` requests and are finished by `settle`, which holds the batch's place for as long as the
    /// server is busy with it. Must be called inside a tokio runtime.
    pub(crate) fn start<S>(most: usize, settle: impl Fn(Vec<T>, Place) -> S + Send + 'static) -> Self
    where
        S: Future<Output = ()> + Send + 'static,
    {
        let (requests, waiting) = mpsc::channel(most);
        let turns = Arc::new(Turns::default());
        tokio::spawn(run(turns.clone(), waiting, most, settle));
        Self { requests, turns }
    }

    /// The right to go alone and at once, where nobody else is under way.
    pub(crate) fn turn_for_one(&self) -> Option<Place> {
        let nobody_waits = self.requests.capacity() == self.requests.max_capacity();
        if !nobody_waits {
            return None;
        }
        let turn = self.turns.take_at_once()?;
        Some(Place { _turn: turn, _permit: None })
    }

    /// Joins a batch; false when the runtime has ended.
    pub(crate) async fn join(&self, request: T) -> bool {
        self.requests.send(request).await.is_ok()
    }
}

async fn run<T, S>(
    turns: Arc<Turns>,
    mut requests: mpsc::Receiver<T>,
    most: usize,
    settle: impl Fn(Vec<T>, Place) -> S,
) where
    S: Future<Output = ()> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(MOST_UNDER_WAY));
    let mut taken = Vec::with_capacity(most);
    while requests.recv_many(&mut taken, most).await > 0 {
        turns.wait().await;
        recv_more(&mut requests, &mut taken, most).await;
        let turns = turns.take(taken.len());
        let share = taken.len().div_ceil(turns.len());
        for turn in turns {
            // Never closed.
            let Ok(permit) = places.clone().acquire_owned().await else { return };
            let place = Place { _turn: turn, _permit: Some(permit) };
            tokio::spawn(settle(taken.drain(..share.min(taken.len())).collect(), place));
        }
    }
}

/// The requests of each collection, in the order they came.
pub(crate) fn by_collection<T>(
    requests: Vec<T>,
    namespace: impl Fn(&T) -> &Namespace,
) -> impl Iterator<Item = Vec<T>> {
    let mut collections: BTreeMap<String, Vec<T>> = BTreeMap::new();
    for request in requests {
        collections.entry(namespace(&request).to_string()).or_default().push(request);
    }
    collections.into_values()
}

/// Adds whatever waits, and what comes of tasks that are about to run: those woken together by the answers of one batch would
/// otherwise make a batch of the first alone, and all others wait for that.
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

/// Who is under way.
#[derive(Debug, Default)]
struct Turns {
    state: Mutex<UnderWay>,
    freed: Notify,
}

#[derive(Debug, Default)]
struct UnderWay {
    /// When each of them began.
    since: Vec<Instant>,
    /// Whether the last was of several: then others are about to come, and one should not go ahead of them.
    grouped: bool,
    /// Whether a batch waits for its turn.
    wanted: bool,
}

impl UnderWay {
    /// How many more may go, or when the first of those under way is overtaken.
    fn free(&self) -> Result<usize, Instant> {
        let now = Instant::now();
        let young = self.since.iter().map(|since| *since + PATIENCE).filter(|late| *late > now);
        match (ABREAST.saturating_sub(young.clone().count()), young.min()) {
            (0, Some(late)) => Err(late),
            (free, _) => Ok(free),
        }
    }
}

/// A batch's place among those under way, until dropped.
pub(crate) struct Place {
    _turn: Turn,
    /// None for one that goes alone.
    _permit: Option<OwnedSemaphorePermit>,
}

/// The right to be under way, until dropped.
struct Turn {
    turns: Arc<Turns>,
    since: Instant,
}

impl Turns {
    fn lock(&self) -> MutexGuard<'_, UnderWay> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(self: &Arc<Self>, under_way: &mut UnderWay) -> Turn {
        let since = Instant::now();
        under_way.since.push(since);
        Turn { turns: self.clone(), since }
    }

    fn take_at_once(self: &Arc<Self>) -> Option<Turn> {
        let mut under_way = self.lock();
        let free = under_way.since.is_empty() && !under_way.grouped && !under_way.wanted;
        free.then(|| self.begin(&mut under_way))
    }

    /// Waits until a turn is free. Whoever has one may have been forgotten in a future that nobody polls: it is overtaken.
    async fn wait(&self) {
        loop {
            let freed = self.freed.notified();
            let late = {
                let mut under_way = self.lock();
                let free = under_way.free();
                under_way.wanted = free.is_err();
                match free {
                    Ok(_) => return,
                    Err(late) => late,
                }
            };
            // Free or late, the next round will tell.
            let _ = timeout_at(late, freed).await;
        }
    }

    /// Turns for so many requests: those that are free and worth it, at least one.
    fn take(self: &Arc<Self>, count: usize) -> Vec<Turn> {
        let mut under_way = self.lock();
        under_way.grouped = count > 1;
        let turns = under_way.free().unwrap_or(1).min(count.div_ceil(WORTH_A_TURN)).max(1);
        (0..turns).map(|_| self.begin(&mut under_way)).collect()
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut under_way = self.turns.lock();
        if let Some(place) = under_way.since.iter().position(|since| *since == self.since) {
            under_way.since.swap_remove(place);
        }
        self.turns.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A lane whose batches are handed to the test, which sees them through by dropping them.
    fn lane() -> (Lane<u32>, mpsc::UnboundedReceiver<Batch>) {
        let (begun, batches) = mpsc::unbounded_channel();
        let lane = Lane::start(100, move |requests, place| {
            let (hold, held) = tokio::sync::oneshot::channel::<()>();
            begun.send(Batch { requests, _hold: hold }).unwrap();
            async move {
                let _place = place;
                drop(held.await);
            }
        });
        (lane, batches)
    }

    struct Batch {
        requests: Vec<u32>,
        _hold: tokio::sync::oneshot::Sender<()>,
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_while_others_are_under_way_goes_together() {
        let (lane, mut batches) = lane();
        lane.join(1).await;
        let first = batches.recv().await.unwrap();
        lane.join(2).await;
        let second = batches.recv().await.unwrap();
        for request in 3..=7 {
            lane.join(request).await;
        }
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert!(batches.try_recv().is_err(), "two are under way");
        drop(first);
        let third = batches.recv().await.unwrap();
        assert_eq!(third.requests, [3, 4, 5, 6, 7]);
        assert_eq!(second.requests, [2]);
    }

    #[tokio::test(start_paused = true)]
    async fn many_are_shared_out_over_the_turns_that_are_free() {
        let (lane, mut batches) = lane();
        for request in 0..20 {
            lane.requests.try_send(request).unwrap();
        }
        let (one, other) = (batches.recv().await.unwrap(), batches.recv().await.unwrap());
        assert_eq!((one.requests.len(), other.requests.len()), (10, 10));
    }

    #[tokio::test(start_paused = true)]
    async fn one_goes_alone_where_nobody_is_under_way_or_about_to_come() {
        let (lane, mut batches) = lane();
        let alone = lane.turn_for_one().unwrap();
        assert!(lane.turn_for_one().is_none(), "one is under way");
        drop(alone);
        drop(lane.turn_for_one().unwrap());
        for request in 0..3 {
            lane.requests.try_send(request).unwrap();
        }
        assert!(lane.turn_for_one().is_none(), "others wait");
        drop(batches.recv().await.unwrap());
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert!(lane.turn_for_one().is_none(), "the last had company");
        lane.join(4).await;
        drop(batches.recv().await.unwrap());
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert!(lane.turn_for_one().is_some(), "the last had none");
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_takes_long_is_overtaken() {
        let (lane, mut batches) = lane();
        let _forgotten = lane.turn_for_one().unwrap();
        lane.join(1).await;
        let _stuck = batches.recv().await.unwrap();
        let since = Instant::now();
        lane.join(2).await;
        let next = batches.recv().await.unwrap();
        assert_eq!(next.requests, [2]);
        assert_eq!(since.elapsed(), PATIENCE);
    }
}
