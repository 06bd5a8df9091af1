//! Consumes every message of the bed's queue, and marks the numbers that the messages carry.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use futures::StreamExt;
use lapin::{
    options::{BasicConsumeOptions, BasicQosOptions},
    types::FieldTable,
};
use serde::Deserialize;
use tokio::task::AbortHandle;

use crate::{bed::Bed, result::Result};

/// The part of a message that identifies it.
#[derive(Deserialize)]
struct Numbered {
    at: u64,
}

/// The numbers received so far. Its size is fixed, so that it doesn't appear as a leak.
pub(crate) struct Received {
    marks: Arc<[AtomicU64]>,
    count: Arc<AtomicU64>,
    repeats: Arc<AtomicU64>,
    /// Whether a message carried a number that was never sent.
    foreign: Arc<AtomicBool>,
    consumer: AbortHandle,
    _connection: lapin::Connection,
}

impl Received {
    /// Consumes messages with the numbers 0 to `capacity` - 1.
    pub(crate) async fn start(bed: &Bed, capacity: u64) -> Result<Self> {
        let marks: Arc<[AtomicU64]> = (0..capacity.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        let connection = bed.connect().await?;
        let channel = connection.create_channel().await?;
        channel.basic_qos(1_000, BasicQosOptions::default()).await?;
        let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let (queue, tag) = (bed.queue().into(), "limits".into());
        let mut messages = channel.basic_consume(queue, tag, options, FieldTable::default()).await?;

        let (count, repeats) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let foreign = Arc::new(AtomicBool::new(false));
        let consumer = tokio::spawn({
            let (marks, count, repeats, foreign) =
                (marks.clone(), count.clone(), repeats.clone(), foreign.clone());
            async move {
                while let Some(Ok(message)) = messages.next().await {
                    let Ok(Numbered { at }) = serde_json::from_slice(&message.data) else { continue };
                    let Some(mark) = usize::try_from(at / 64).ok().and_then(|place| marks.get(place)) else {
                        foreign.store(true, Ordering::Relaxed);
                        continue;
                    };
                    let bit = 1 << (at % 64);
                    if mark.fetch_or(bit, Ordering::Relaxed) & bit == 0 {
                        count.fetch_add(1, Ordering::Relaxed);
                    } else {
                        repeats.fetch_add(1, Ordering::Relaxed);
                    }
                }
                // The channel must live as long as its consumer.
                drop(channel);
            }
        })
        .abort_handle();
        Ok(Self { marks, count, repeats, foreign, consumer, _connection: connection })
    }

    /// Number of different messages received.
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    pub(crate) fn repeats(&self) -> u64 {
        self.repeats.load(Ordering::Relaxed)
    }

    /// Whether every number below `sent` was received, and no other number.
    pub(crate) fn is_exactly(&self, sent: u64) -> bool {
        let has = |number: u64| {
            usize::try_from(number / 64)
                .ok()
                .and_then(|place| self.marks.get(place))
                .is_some_and(|mark| mark.load(Ordering::Relaxed) & (1 << (number % 64)) != 0)
        };
        self.count() == sent && !self.foreign.load(Ordering::Relaxed) && (0..sent).all(has)
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        self.consumer.abort();
    }
}
