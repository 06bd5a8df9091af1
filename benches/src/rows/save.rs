//! A save by itself: how much longer than the driver's own write of the same bytes.

use std::time::{Duration, Instant};

use document_outbox::{Mode, event::Event};
use mongodb::bson::doc;
use tokio::sync::broadcast;

use super::savers::{Ours, Saver};
use crate::{
    Result,
    baseline::majority,
    bed::{Bed, id},
    order::{Order, Stored},
    report::{Goal, Report, Row},
    stats::{percentile, ratios},
};

/// One saver, alternating with the raw write; nothing else is under way while either runs.
pub(crate) async fn measure(bed: &Bed, report: &mut Report) -> Result<()> {
    let count = bed.scale.pick(80, 400);
    let inline = bed.inline(Mode::Background, true);
    let store = bed.orders(&inline, "save_ours", count, 2_000).await?;
    let raw = bed.raw_orders("save_raw", count, 2_000).await?.clone_with_type::<Stored>();
    let mut stored: Vec<_> = (0..count).map(|n| Stored::new(Order::new(id(n), 2_000), 1)).collect();
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    // The first block is for warming up.
    for block in 0..=bed.scale.blocks {
        let mut team = Ours::team(bed, &store, count, 1).await?;
        let mut events = inline.events().subscribe();
        let (mut saves, mut writes) = (Vec::new(), Vec::new());
        for (saver, stored) in team.iter_mut().zip(&mut stored) {
            let began = Instant::now();
            saver.save(0).await?;
            saves.push(began.elapsed().as_secs_f64());
            delivered(&mut events).await?;
            // For the clear.
            tokio::time::sleep(Duration::from_millis(3)).await;
            stored.change();
            let began = Instant::now();
            raw.replace_one(doc! { "_id": &stored.id }, &*stored).write_concern(majority()).await?;
            writes.push(began.elapsed().as_secs_f64());
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        if block > 0 {
            ours.push(percentile(&saves, 50.0) * 1e3);
            theirs.push(percentile(&writes, 50.0) * 1e3);
        }
        bed.settled(&store.collection().clone_with_type()).await?;
    }
    let detail = format!("{:.2} ms, raw {:.2} ms", percentile(&ours, 50.0), percentile(&theirs, 50.0));
    let row = Row::new("save-latency", "save, 1 saver, p50", "raw replace_one of the same bytes");
    report.add(row.goal(Goal::AtMost(1.05)).values("×", &ratios(&ours, &theirs)).detail(detail));
    Ok(())
}

async fn delivered(events: &mut broadcast::Receiver<Event>) -> Result<()> {
    loop {
        if let Event::Delivered { .. } = events.recv().await? {
            return Ok(());
        }
    }
}
