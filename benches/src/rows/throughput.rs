//! Save, confirmed delivery and clear, as fast as they go with so many savers.

use std::time::{Duration, Instant};

use document_outbox::Mode;

use super::savers::{DOCUMENTS, Dual, Old, Ours, closed_loop};
use crate::{
    Result,
    baseline::{Classic, Confirmed, DualWrite},
    bed::Bed,
    counters::Counters,
    figure::Figure,
    report::{Goal, Report, Row},
    stats::{percentile, ratios},
};

const BYTES: usize = 2_000;

pub(crate) async fn measure(bed: &Bed, report: &mut Report) -> Result<()> {
    let mut figure = Figure::new("throughput", "Saved, confirmed, cleared: documents of 2 kB a second", "/s");
    for (savers, goal) in [(1, 0.97), (64, 2.0), (256, 3.0)] {
        let Rates { ours, single, dual, classic } = rates(bed, report, savers).await?;
        let detail = |ours: &[f64], theirs: &[f64]| {
            format!("{:.0}/s to {:.0}/s", percentile(ours, 50.0), percentile(theirs, 50.0))
        };
        let plural = if savers == 1 { "" } else { "s" };
        let measured = format!("save → confirmed → cleared, {savers} saver{plural}");
        let row = Row::new(format!("throughput-{savers}"), &measured, "dual write");
        report.add(
            row.goal(Goal::AtLeast(goal)).values("×", &ratios(&ours, &dual)).detail(detail(&ours, &dual)),
        );
        figure = figure
            .ours(format!("{savers} savers"), &ours)
            .ours(format!("{savers} savers, without group commit"), &single)
            .theirs(format!("{savers} savers, dual write (unsafe)"), &dual);
        let row =
            Row::new(format!("ungrouped-{savers}"), format!("{measured}, group commit off"), "dual write");
        report.add(row.values("×", &ratios(&single, &dual)).detail(detail(&single, &dual)));
        if let Some(classic) = classic {
            let row = Row::new(format!("classic-{savers}"), &measured, "transaction, poller with batch 1000");
            let row = row.goal(Goal::AtLeast(5.0)).values("×", &ratios(&ours, &classic));
            report.add(row.detail(detail(&ours, &classic)));
            figure = figure.theirs(format!("{savers} savers, transaction and poller"), &classic);
        }
    }
    report.draw(figure);
    Ok(())
}

/// Saves a second, a block each.
struct Rates {
    ours: Vec<f64>,
    single: Vec<f64>,
    dual: Vec<f64>,
    classic: Option<Vec<f64>>,
}

async fn rates(bed: &Bed, report: &mut Report, savers: usize) -> Result<Rates> {
    let count = savers * DOCUMENTS;
    let (grouped, single) = (bed.inline(Mode::Await, true), bed.inline(Mode::Await, false));
    let grouped = bed.orders(&grouped, "grouped", count, BYTES).await?;
    let single = bed.orders(&single, "single", count, BYTES).await?;
    let mut grouped = Ours::team(bed, &grouped, savers, DOCUMENTS).await?;
    let mut single = Ours::team(bed, &single, savers, DOCUMENTS).await?;
    let publisher = Confirmed::connect(bed).await?;
    let dual = DualWrite::new(bed.raw_orders("dual", count, BYTES).await?, publisher.clone());
    let mut dual = Dual::team(&dual, savers, DOCUMENTS, BYTES);
    bed.database.collection::<()>("classic_outbox").drop().await?;
    let way = Classic::new(bed, bed.raw_orders("classic", count, BYTES).await?).await?;
    let mut classic = Old::team(&way, savers, DOCUMENTS, BYTES);
    let with_classic = savers == 64;

    let time = bed.scale.loop_time;
    let mut rates: [Vec<f64>; 4] = Default::default();
    let mut counted: [Option<Counters>; 4] = Default::default();
    let mut done: [f64; 4] = Default::default();
    // The first block is for warming up. The order turns from block to block.
    for block in 0..=bed.scale.blocks {
        for turn in 0..4 {
            let which = (block + turn) % 4;
            if which == 3 && !with_classic {
                continue;
            }
            bed.purge().await?;
            let last = block == bed.scale.blocks;
            let before = if last { Some(Counters::take(bed).await?) } else { None };
            let (saves, took) = match which {
                0 => closed_loop(&mut grouped, time).await?,
                1 => closed_loop(&mut single, time).await?,
                2 => closed_loop(&mut dual, time).await?,
                _ => {
                    let poller = way.start_poller(publisher.clone(), Duration::from_millis(5));
                    let began = Instant::now();
                    let (saves, _) = closed_loop(&mut classic, time).await?;
                    while !way.is_empty().await? {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                    let took = began.elapsed();
                    poller.stop().await?;
                    (saves, took)
                }
            };
            if let Some(before) = before {
                counted[which] = Some(before.until_now(bed).await?);
                done[which] = saves;
            }
            if block > 0 {
                rates[which].push(saves / took.as_secs_f64());
            }
        }
    }
    let names = ["this", "this, group commit off", "dual write", "transaction and poller"];
    for ((name, counted), done) in names.iter().zip(counted).zip(done) {
        if let Some(counted) = counted {
            report.count(format!("{name}, {savers} savers"), done, counted);
        }
    }
    bed.purge().await?;
    let [ours, single, dual, classic] = rates;
    Ok(Rates { ours, single, dual, classic: with_classic.then_some(classic) })
}
