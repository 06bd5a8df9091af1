//! Measures the time from a save until its message is received. The saves begin at a fixed rate, and the time of a
//! late save is counted from when it should have begun.

use std::time::Duration;

use document_outbox::{Mode, Store};
use futures::StreamExt;
use lapin::{
    options::{BasicCancelOptions, BasicConsumeOptions},
    types::FieldTable,
};

use super::savers::{Dual, Old, Ours, Saver, open_loop};
use crate::{
    baseline::{Classic, Confirmed, DualWrite},
    bed::Bed,
    figure::Figure,
    order::{Changed, Order},
    report::{Goal, Report, Row},
    result::Result,
    stats::{percentile, ratios},
};

const PER_SECOND: f64 = 200.0;
const BYTES: usize = 2_000;

pub(crate) async fn measure(bed: &Bed, report: &mut Report) -> Result<()> {
    let sides = Sides::make(bed).await?;

    // The p50 and p99 of this project, dual write and the classic outbox, with one value for each block.
    let mut p50: [Vec<f64>; 3] = Default::default();
    let mut p99: [Vec<f64>; 3] = Default::default();
    for block in 0..=bed.scale.blocks {
        for turn in 0..3 {
            let which = (block + turn) % 3;
            bed.purge().await?;

            let late = sides.run(bed, which).await?;
            if block > 0 {
                p50[which].push(percentile(&late, 50.0));
                p99[which].push(percentile(&late, 99.0));
            }
        }
    }

    let [ours, dual, classic] = p50;
    let [ours99, dual99, classic99] = p99;
    let detail = |ours: &[f64], theirs: &[f64]| {
        format!("{:.1} ms to {:.1} ms", percentile(ours, 50.0), percentile(theirs, 50.0))
    };

    let measured = "save → receiver, p50 at 200/s";
    let row = Row::new("receive-latency", measured, "transaction, polled every 100 ms");
    let row = row.goal(Goal::AtMost(0.1)).values("×", &ratios(&ours, &classic));
    report.add(row.detail(detail(&ours, &classic)));
    let row = Row::new("receive-latency-dual", measured, "dual write");
    report.add(row.values("×", &ratios(&ours, &dual)).detail(detail(&ours, &dual)));
    let row = Row::new("receive-latency-p99", "save → receiver, p99 at 200/s", "dual write");
    report.add(row.values("×", &ratios(&ours99, &dual99)).detail(detail(&ours99, &dual99)));

    report.draw(
        Figure::new("latency", "Save to receiver at 200 saves a second, open loop", " ms")
            .ours("p50", &ours)
            .theirs("p50, dual write (unsafe)", &dual)
            .theirs("p50, transaction, polled every 100 ms", &classic)
            .ours("p99", &ours99)
            .theirs("p99, dual write (unsafe)", &dual99)
            .theirs("p99, transaction, polled every 100 ms", &classic99),
    );
    Ok(())
}

/// The savers of this project, dual write and the classic outbox, each with as many documents as are saved in a block.
struct Sides {
    count: usize,
    store: Store<Order>,
    dual: DualWrite,
    classic: Classic,
    publisher: Confirmed,
}

impl Sides {
    async fn make(bed: &Bed) -> Result<Self> {
        let count = bed.scale.pick(300, 600);
        let inline = bed.inline(Mode::Background);
        let store = bed.orders(&inline, "latency_ours", count, BYTES).await?;
        let publisher = Confirmed::connect(bed).await?;
        let dual = DualWrite::new(bed.raw_orders("latency_dual", count, BYTES).await?, publisher.clone());
        let classic = Classic::new(bed, bed.raw_orders("latency_classic", count, BYTES).await?).await?;
        Ok(Self { count, store, dual, classic, publisher })
    }

    /// Measures how late the messages of one side were received, in ms.
    async fn run(&self, bed: &Bed, which: usize) -> Result<Vec<f64>> {
        match which {
            0 => {
                let late = received(bed, Ours::team(bed, &self.store, self.count, 1).await?).await?;
                bed.settled(&self.store.collection().clone_with_type()).await?;
                Ok(late)
            }
            1 => received(bed, Dual::team(&self.dual, self.count, 1, BYTES)).await,
            _ => {
                let poller = self.classic.start_poller(self.publisher.clone(), Duration::from_millis(100));
                let late = received(bed, Old::team(&self.classic, self.count, 1, BYTES)).await?;
                poller.stop().await?;
                Ok(late)
            }
        }
    }
}

/// Returns, for each save, the time in ms from when the save was due until its message was received.
async fn received<S: Saver>(bed: &Bed, savers: Vec<S>) -> Result<Vec<f64>> {
    let count = savers.len();
    let connection = bed.connect().await?;
    let channel = connection.create_channel().await?;
    let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
    let tag = "receiver";
    let mut messages =
        channel.basic_consume(bed.queue().into(), tag.into(), options, FieldTable::default()).await?;
    let receiving = async {
        let mut late = Vec::with_capacity(count);
        for _ in 0..count {
            let message = messages.next().await.ok_or("the receiver's channel ended")??;
            let now = bed.micros();
            let message: Changed = serde_json::from_slice(&message.data)?;
            late.push((now - message.at) as f64 / 1e3);
        }
        Ok::<_, crate::result::Failure>(late)
    };
    let receiving = async { tokio::time::timeout(Duration::from_mins(1), receiving).await? };
    let (late, ()) = futures::future::try_join(receiving, open_loop(bed, savers, PER_SECOND)).await?;
    channel.basic_cancel(tag.into(), BasicCancelOptions::default()).await?;
    Ok(late)
}
