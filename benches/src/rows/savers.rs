//! Defines the savers, each with its own documents, and the two ways to run them: in a closed loop or at a
//! fixed rate.

use std::time::{Duration, Instant};

use document_outbox::{Dispatch, Loaded, Store, dispatch::Disposition, store::Saved};
use futures::future::try_join_all;
use mongodb::bson::Uuid;

use crate::{
    baseline::{ByHand, Classic, DualWrite},
    bed::{Bed, id},
    order::Order,
    result::Result,
};

/// Saves one of its documents with a message, and completes once the message is delivered.
pub(crate) trait Saver: Send + 'static {
    fn save(&mut self, at: i64) -> impl Future<Output = Result<()>> + Send;
}

/// Number of documents of one saver. They are saved in turn, so that consecutive saves are of different documents.
pub(crate) const DOCUMENTS: usize = 8;

pub(crate) struct Ours {
    pub(crate) store: Store<Order>,
    pub(crate) documents: Vec<Loaded<Order>>,
    pub(crate) messages: usize,
    pub(crate) next: usize,
}

impl Ours {
    pub(crate) async fn team(bed: &Bed, store: &Store<Order>, size: usize, each: usize) -> Result<Vec<Self>> {
        let mut loaded = bed.load(store, size * each).await?.into_iter();
        let saver = |_| Self {
            store: store.clone(),
            documents: loaded.by_ref().take(each).collect(),
            messages: 1,
            next: 0,
        };
        Ok((0..size).map(saver).collect())
    }
}

impl Saver for Ours {
    async fn save(&mut self, at: i64) -> Result<()> {
        self.next = (self.next + 1) % self.documents.len();
        let document = &mut self.documents[self.next];
        document.send(at, self.messages);
        let receipt = match self.store.save(document).await? {
            Saved::Applied(receipt) => receipt,
            other => return Err(format!("a save ended as {other:?}").into()),
        };
        match receipt.dispatch {
            Dispatch::Background | Dispatch::Off => Ok(()),
            Dispatch::Settled(settled) if settled.iter().all(|(_, end)| *end == Disposition::Delivered) => {
                Ok(())
            }
            other => Err(format!("a message was not delivered: {other:?}").into()),
        }
    }
}

pub(crate) struct Dual {
    pub(crate) way: DualWrite,
    pub(crate) documents: Vec<Order>,
    pub(crate) messages: usize,
    pub(crate) next: usize,
}

impl Dual {
    pub(crate) fn team(way: &DualWrite, size: usize, each: usize, bytes: usize) -> Vec<Self> {
        let documents = |saver: usize| own_documents(saver, each, bytes);
        (0..size)
            .map(|saver| Self { way: way.clone(), documents: documents(saver), messages: 1, next: 0 })
            .collect()
    }
}

impl Saver for Dual {
    async fn save(&mut self, at: i64) -> Result<()> {
        self.next = (self.next + 1) % self.documents.len();
        self.way.save(&mut self.documents[self.next], at, self.messages).await
    }
}

pub(crate) struct Hand {
    way: ByHand,
    documents: Vec<(Order, Option<Uuid>)>,
    next: usize,
}

impl Hand {
    pub(crate) fn team(way: &ByHand, size: usize, each: usize, bytes: usize) -> Vec<Self> {
        let documents =
            |saver| own_documents(saver, each, bytes).into_iter().map(|order| (order, None)).collect();
        (0..size).map(|saver| Self { way: way.clone(), documents: documents(saver), next: 0 }).collect()
    }
}

impl Saver for Hand {
    async fn save(&mut self, at: i64) -> Result<()> {
        self.next = (self.next + 1) % self.documents.len();
        let (order, etag) = &mut self.documents[self.next];
        self.way.save(order, etag, at).await
    }
}

pub(crate) struct Old {
    pub(crate) way: Classic,
    pub(crate) documents: Vec<Order>,
    pub(crate) next: usize,
}

impl Old {
    pub(crate) fn team(way: &Classic, size: usize, each: usize, bytes: usize) -> Vec<Self> {
        let documents = |saver: usize| own_documents(saver, each, bytes);
        (0..size).map(|saver| Self { way: way.clone(), documents: documents(saver), next: 0 }).collect()
    }
}

impl Saver for Old {
    async fn save(&mut self, at: i64) -> Result<()> {
        self.next = (self.next + 1) % self.documents.len();
        self.way.save(&mut self.documents[self.next], at).await
    }
}

fn own_documents(saver: usize, each: usize, bytes: usize) -> Vec<Order> {
    (0..each).map(|n| Order::new(id(saver * each + n), bytes)).collect()
}

/// Runs savers that each begin the next save when the last one has ended. Returns the number of saves and the time
/// taken.
pub(crate) async fn closed_loop<S: Saver>(savers: &mut Vec<S>, time: Duration) -> Result<(f64, Duration)> {
    let began = Instant::now();
    let run = |mut saver: S| {
        tokio::spawn(async move {
            let mut done = 0.0;
            while began.elapsed() < time {
                saver.save(0).await?;
                done += 1.0;
            }
            Ok::<_, crate::result::Failure>((saver, done))
        })
    };
    let ended = try_join_all(savers.drain(..).map(run)).await?;
    let took = began.elapsed();
    let mut done = 0.0;
    for end in ended {
        let (saver, saves) = end?;
        savers.push(saver);
        done += saves;
    }
    Ok((done, took))
}

/// Begins a save at fixed intervals, whether or not earlier saves have ended. Each saver saves once.
pub(crate) async fn open_loop<S: Saver>(bed: &Bed, savers: Vec<S>, per_second: f64) -> Result<()> {
    let mut running = Vec::new();
    let mut ticks = tokio::time::interval(Duration::from_secs_f64(1.0 / per_second));
    // Late ticks fire at once, and the time of a late save is counted from when it should have begun.
    let (begun, first) = (bed.micros(), ticks.tick().await);
    let mut due = first;
    for mut saver in savers {
        let at = begun + i64::try_from(due.duration_since(first).as_micros())?;
        running.push(tokio::spawn(async move { saver.save(at).await }));
        due = ticks.tick().await;
    }
    for save in running {
        save.await??;
    }
    Ok(())
}
