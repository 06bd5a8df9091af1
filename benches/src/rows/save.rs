//! Measures how much longer a single save takes than the driver's own write of the same bytes. Also measures
//! how much an update that is not awaited slows the next write, because the clear of one save slows the next
//! save in the same way.

use std::time::{Duration, Instant};

use document_outbox::{Mode, observe::Event};
use mongodb::{Collection, bson::doc, options::WriteConcern};
use tokio::sync::broadcast;

use super::savers::{Ours, Saver};
use crate::{
    baseline::majority,
    bed::{Bed, id},
    order::{Order, Stored},
    report::{Goal, Report, Row},
    result::Result,
    stats::{percentile, ratios},
};

/// Measures one saver in alternation with the raw write. No other work runs at the same time.
pub(crate) async fn measure(bed: &Bed, report: &mut Report) -> Result<()> {
    let count = bed.scale.pick(80, 400);
    let inline = bed.inline(Mode::Background);
    let store = bed.orders(&inline, "save_ours", count, 2_000).await?;
    let raw = bed.raw_orders("save_raw", count, 2_000).await?.clone_with_type::<Stored>();
    let mut stored: Vec<_> = (0..count).map(|n| Stored::new(Order::new(id(n), 2_000), 1)).collect();
    let (mut ours, mut theirs, mut behind) = (Vec::new(), Vec::new(), Vec::new());
    let mut updates = Vec::new();
    // The first block is only for warming up.
    for block in 0..=bed.scale.blocks {
        let mut team = Ours::team(bed, &store, count, 1).await?;
        let mut events = inline.subscribe();
        let (mut saves, mut writes, mut writes_behind) = (Vec::new(), Vec::new(), Vec::new());
        for (saver, stored) in team.iter_mut().zip(&mut stored) {
            let began = Instant::now();
            saver.save(0).await?;
            saves.push(began.elapsed().as_secs_f64());

            delivered(&mut events).await?;
            // The clear that follows the save ends during this pause.
            tokio::time::sleep(Duration::from_millis(3)).await;

            writes.push(replace(&raw, stored).await?);
            tokio::time::sleep(Duration::from_millis(3)).await;

            // Send an update without awaiting it, as a clear is sent. Then send the next write at once.
            let began = Instant::now();
            let cleared = doc! { "$inc": { "cleared": 1 } };
            let waits_for_nothing = WriteConcern::nodes(1);
            raw.update_one(doc! { "_id": &stored.id }, cleared).write_concern(waits_for_nothing).await?;
            updates.push(began.elapsed().as_secs_f64());
            writes_behind.push(replace(&raw, stored).await?);
            tokio::time::sleep(Duration::from_millis(3)).await;
        }

        if block > 0 {
            ours.push(percentile(&saves, 50.0) * 1e3);
            theirs.push(percentile(&writes, 50.0) * 1e3);
            behind.push(percentile(&writes_behind, 50.0) * 1e3);
        }
        bed.settled(&store.collection().clone_with_type()).await?;
    }

    let detail = format!("{:.2} ms, raw {:.2} ms", percentile(&ours, 50.0), percentile(&theirs, 50.0));
    let row = Row::new("save-latency", "save, 1 saver, p50", "raw replace_one of the same bytes");
    report.add(row.goal(Goal::AtMost(1.05)).values("×", &ratios(&ours, &theirs)).detail(detail));
    let row =
        Row::new("save-behind", "raw replace_one right behind an update with w: 1, p50", "raw replace_one");
    let detail =
        format!("{:.2} ms; the update {:.2} ms", percentile(&behind, 50.0), percentile(&updates, 50.0) * 1e3);
    report.add(row.values("×", &ratios(&behind, &theirs)).detail(detail));
    Ok(())
}

/// Measures the seconds that the driver needs to replace a changed document.
async fn replace(raw: &Collection<Stored>, stored: &mut Stored) -> Result<f64> {
    stored.change();
    let began = Instant::now();
    raw.replace_one(doc! { "_id": &stored.id }, &*stored).write_concern(majority()).await?;
    Ok(began.elapsed().as_secs_f64())
}

async fn delivered(events: &mut broadcast::Receiver<Event>) -> Result<()> {
    loop {
        if let Event::Delivered { .. } = events.recv().await? {
            return Ok(());
        }
    }
}
