//! Checks whether some document size or number of messages makes saves disproportionately slow.

use std::time::{Duration, Instant};

use document_outbox::Mode;
use mongodb::bson::doc;

use super::savers::{Dual, Ours, Saver, closed_loop};
use crate::{
    baseline::{Confirmed, DualWrite, majority},
    bed::{Bed, id},
    figure::Figure,
    order::{Order, Stored},
    report::{Goal, Report, Row},
    result::Result,
    stats::{percentile, ratios},
};

/// Pairs of a document size in bytes and a number of messages per save. All cases are compared with the first.
const CASES: [(usize, usize); 7] =
    [(2_000, 1), (1_000, 1), (10_000, 1), (100_000, 1), (1_000_000, 1), (2_000, 10), (2_000, 100)];

pub(crate) async fn measure(bed: &Bed, report: &mut Report) -> Result<()> {
    let (mut saves, mut flows) = (Vec::new(), Vec::new());
    for (bytes, messages) in CASES {
        saves.push(save(bed, bytes, messages).await?);
        flows.push(flow(bed, bytes, messages).await?);
    }

    let mut figure = Figure::new("sizes", "By size and messages: saves a second, this to dual write", "×");
    for (nth, (bytes, messages)) in CASES.into_iter().enumerate() {
        let name = name(bytes, messages);
        let row = Row::new(
            format!("size-save-{bytes}-{messages}"),
            format!("save, p50, {name}"),
            "raw replace_one",
        );
        report.add(row.values("×", &saves[nth]));

        let row = Row::new(
            format!("size-flow-{bytes}-{messages}"),
            format!("save → cleared, {name}"),
            "dual write",
        );
        report.add(row.values("×", &flows[nth]));
        figure = figure.ours(name, &flows[nth]);
    }
    report.draw(figure);

    // The worst time is the largest one, and the worst rate is the smallest one.
    let row = Row::new(
        "sizes-save",
        "save, p50, 1 kB to 1 MB, 1 to 100 messages: the worst",
        "the ratio to raw at 2 kB",
    );
    report.add(row.goal(Goal::AtMost(1.2)).values("×", &worst(&saves, |time| time)));
    let row = Row::new(
        "sizes-flow",
        "save → cleared, the same sizes: the worst",
        "the ratio to dual write at 2 kB",
    );
    report.add(row.goal(Goal::AtLeast(0.8)).values("×", &worst(&flows, |rate| -rate)));
    Ok(())
}

fn name(bytes: usize, messages: usize) -> String {
    let size =
        if bytes < 1_000_000 { format!("{} kB", bytes / 1_000) } else { format!("{} MB", bytes / 1_000_000) };
    let plural = if messages == 1 { "" } else { "s" };
    format!("{size}, {messages} message{plural}")
}

/// Returns the case whose median, relative to the first case, is the worst.
fn worst(cases: &[Vec<f64>], badness: fn(f64) -> f64) -> Vec<f64> {
    let mut relative: Vec<_> = cases[1..].iter().map(|case| ratios(case, &cases[0])).collect();
    relative
        .sort_by(|one, other| badness(percentile(one, 50.0)).total_cmp(&badness(percentile(other, 50.0))));
    relative.pop().unwrap_or_default()
}

/// Measures the time of a save without delivery, divided by the time of a raw write of the same bytes, for each block.
async fn save(bed: &Bed, bytes: usize, messages: usize) -> Result<Vec<f64>> {
    let count = bed.scale.pick(12, 40);
    let store = bed.orders(&bed.inline(Mode::Off), "size_ours", count, bytes).await?;
    let raw = bed.raw_orders("size_raw", count, bytes).await?.clone_with_type::<Stored>();
    let mut stored: Vec<_> = (0..count).map(|n| Stored::new(Order::new(id(n), bytes), messages)).collect();
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for block in 0..=bed.scale.blocks {
        store.collection().update_many(doc! {}, doc! { "$set": { "outbox": [] } }).await?;
        let mut team = Ours::team(bed, &store, count, 1).await?;
        let (mut saves, mut writes) = (Vec::new(), Vec::new());
        for (saver, stored) in team.iter_mut().zip(&mut stored) {
            saver.messages = messages;
            let began = Instant::now();
            saver.save(0).await?;
            saves.push(began.elapsed().as_secs_f64());

            stored.change();
            let began = Instant::now();
            raw.replace_one(doc! { "_id": &stored.id }, &*stored).write_concern(majority()).await?;
            writes.push(began.elapsed().as_secs_f64());
        }
        if block > 0 {
            ours.push(percentile(&saves, 50.0));
            theirs.push(percentile(&writes, 50.0));
        }
    }
    Ok(ratios(&ours, &theirs))
}

/// Measures the rate of saves whose messages are confirmed and cleared, divided by the rate of dual writes, for each
/// block.
async fn flow(bed: &Bed, bytes: usize, messages: usize) -> Result<Vec<f64>> {
    const SAVERS: usize = 8;
    const EACH: usize = 2;
    let time = bed.scale.pick(Duration::from_millis(300), Duration::from_secs(1));
    let store = bed.orders(&bed.inline(Mode::Await), "size_flow", SAVERS * EACH, bytes).await?;
    let way = bed.raw_orders("size_dual", SAVERS * EACH, bytes).await?;
    let way = DualWrite::new(way, Confirmed::connect(bed).await?);
    let mut ours = Ours::team(bed, &store, SAVERS, EACH).await?;
    let mut dual = Dual::team(&way, SAVERS, EACH, bytes);
    for saver in &mut ours {
        saver.messages = messages;
    }
    for saver in &mut dual {
        saver.messages = messages;
    }

    let mut rates: [Vec<f64>; 2] = Default::default();
    for block in 0..=bed.scale.blocks {
        for turn in 0..2 {
            bed.purge().await?;
            let which = (block + turn) % 2;
            let (saves, took) = match which {
                0 => closed_loop(&mut ours, time).await?,
                _ => closed_loop(&mut dual, time).await?,
            };
            if block > 0 {
                rates[which].push(saves / took.as_secs_f64());
            }
        }
    }
    bed.purge().await?;
    let [ours, dual] = rates;
    Ok(ratios(&ours, &dual))
}
