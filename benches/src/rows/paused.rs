//! Measures how long a save takes when no other save runs, for a saver that pauses between its saves.

use std::time::{Duration, Instant};

use document_outbox::Mode;

use super::savers::{DOCUMENTS, Dual, Ours, Saver};
use crate::{
    baseline::{Confirmed, DualWrite},
    bed::Bed,
    report::{Goal, Report, Row},
    result::Result,
    stats::{percentile, ratios},
};

const BYTES: usize = 2_000;
/// The pause between two saves of one saver.
const PAUSE: Duration = Duration::from_millis(50);
/// Number of savers that take turns in each pause.
const SIDES: u32 = 3;

pub(crate) async fn measure(bed: &Bed, report: &mut Report) -> Result<()> {
    let mut at_confirm = saver(bed, Mode::AwaitConfirm, "paused_confirm").await?;
    let mut at_clear = saver(bed, Mode::Await, "paused_clear").await?;
    let orders = bed.raw_orders("paused_dual", DOCUMENTS, BYTES).await?;
    let mut dual = Dual::team(&DualWrite::new(orders, Confirmed::connect(bed).await?), 1, DOCUMENTS, BYTES);

    let rounds = bed.scale.pick(40, 80);
    let mut rates: [Vec<f64>; 3] = Default::default();
    // The first block is only for warming up.
    for block in 0..=bed.scale.blocks {
        bed.purge().await?;
        let mut took = [Duration::ZERO; 3];
        for _ in 0..rounds {
            took[0] += save_and_pause(&mut at_confirm[0]).await?;
            took[1] += save_and_pause(&mut at_clear[0]).await?;
            took[2] += save_and_pause(&mut dual[0]).await?;
        }
        if block > 0 {
            for (rates, took) in rates.iter_mut().zip(took) {
                rates.push(f64::from(rounds) / took.as_secs_f64());
            }
        }
    }
    bed.purge().await?;

    let [at_confirm, at_clear, dual] = rates;
    let row = |id: &str, note: &str, ours: &[f64]| {
        let measured = format!("save → confirmed, 1 saver, 50 ms between saves, {note}");
        let each = |rates: &[f64]| 1e3 / percentile(rates, 50.0);
        let detail = format!("{:.2} ms to {:.2} ms a save", each(ours), each(&dual));
        Row::new(id, measured, "dual write").values("×", &ratios(ours, &dual)).detail(detail)
    };
    let goal = Goal::AtLeast(0.85);
    report.add(row("paused-at-confirm", "answered at the confirm", &at_confirm).goal(goal));
    report.add(row("paused", "answered at the clear", &at_clear));
    Ok(())
}

async fn saver(bed: &Bed, mode: Mode, collection: &str) -> Result<Vec<Ours>> {
    let store = bed.orders(&bed.inline(mode), collection, DOCUMENTS, BYTES).await?;
    Ours::team(bed, &store, 1, DOCUMENTS).await
}

/// Measures how long a save takes, then waits. The other savers of the row save during the rest of this
/// saver's pause.
async fn save_and_pause(saver: &mut impl Saver) -> Result<Duration> {
    let began = Instant::now();
    saver.save(0).await?;
    let took = began.elapsed();

    tokio::time::sleep(PAUSE / SIDES).await;
    Ok(took)
}
