//! Measures the throughput of save, confirmed delivery and clear with different numbers of savers.

use std::time::{Duration, Instant};

use document_outbox::{InlineDispatcher, Mode};

use super::savers::{DOCUMENTS, Dual, Hand, Old, Ours, closed_loop};
use crate::{
    baseline::{ByHand, Classic, Confirmed, DualWrite, Safety},
    bed::Bed,
    counters::Counters,
    figure::Figure,
    report::{Goal, Report, Row},
    result::Result,
    stats::{percentile, ratios},
};

const BYTES: usize = 2_000;

const OURS: &str = "this";
const AT_CONFIRM: &str = "this, answered at the confirm";
const DEFERRED: &str = "this, deferred clears";
const UNGROUPED: &str = "this, group commit off";
const BY_HAND: &str = "the same by hand, unchecked";
const BY_HAND_AS_SAFE: &str = "the same by hand, as safe";
const DUAL: &str = "dual write";
const CLASSIC: &str = "transaction, poller with batch 1000";

pub(crate) async fn measure(bed: &Bed, report: &mut Report) -> Result<()> {
    let mut figure = Figure::new("throughput", "Saved, confirmed, cleared: documents of 2 kB a second", "/s");
    for savers in [1, 64, 256] {
        let sides = rates(bed, report, savers).await?;
        let row = |name: &str, note: &str, ours: &str, baseline: &str| {
            row(&sides, savers, &format!("{name}-{savers}"), note, (ours, baseline))
        };

        let (of_one, of_many) =
            if savers == 1 { (Goal::AtLeast(0.85), Goal::None) } else { (Goal::None, Goal::AtLeast(0.95)) };

        report.add(row("to-by-hand-as-safe", "", OURS, BY_HAND_AS_SAFE).goal(of_many));
        report.add(row("to-by-hand", "", OURS, BY_HAND).goal(of_many));
        report.add(row("at-confirm", ", answered at the confirm", AT_CONFIRM, DUAL).goal(of_one));
        report.add(row("throughput", "", OURS, DUAL));
        report.add(row("deferred-clears", ", deferred clears", DEFERRED, DUAL));
        report.add(row("by-hand", ", by hand", BY_HAND, DUAL));
        report.add(row("ungrouped", ", group commit off", UNGROUPED, DUAL));
        if savers == 64 {
            report.add(row("classic", "", OURS, CLASSIC));
        }

        for side in &sides {
            let label = format!("{savers} savers, {}", side.name);
            figure = if side.name.starts_with(OURS) {
                figure.ours(label, &side.rates)
            } else {
                figure.theirs(label, &side.rates)
            };
        }
    }

    report.draw(figure);
    Ok(())
}

/// Creates the row that compares the saves per second of the side `ours` with those of the side `baseline`.
fn row(sides: &[Side], savers: usize, id: &str, note: &str, (ours, baseline): (&str, &str)) -> Row {
    let (ours, theirs) = (rates_of(sides, ours), rates_of(sides, baseline));
    let plural = if savers == 1 { "" } else { "s" };
    let measured = format!("save → confirmed → cleared, {savers} saver{plural}{note}");
    let detail = format!("{:.0}/s to {:.0}/s", percentile(ours, 50.0), percentile(theirs, 50.0));
    Row::new(id, measured, baseline).values("×", &ratios(ours, theirs)).detail(detail)
}

fn rates_of<'a>(sides: &'a [Side], name: &str) -> &'a [f64] {
    match sides.iter().find(|side| side.name == name) {
        Some(side) => &side.rates,
        None => &[],
    }
}

/// One side of the comparison: this library in one of its modes, or a baseline. `rates` has its saves per
/// second, one value for each block.
struct Side {
    name: &'static str,
    savers: Savers,
    rates: Vec<f64>,
}

enum Savers {
    Ours(InlineDispatcher, Vec<Ours>),
    ByHand(Vec<Hand>),
    Dual(Vec<Dual>),
    Classic(Box<Classic>, Confirmed, Vec<Old>),
}

impl Savers {
    /// Returns the number of saves that have ended, and the time taken.
    async fn run(&mut self, time: Duration) -> Result<(f64, Duration)> {
        let began = Instant::now();
        let (saves, _) = match self {
            Self::Ours(inline, savers) => {
                let done = closed_loop(savers, time).await?;
                inline.flush().await;
                done
            }
            Self::ByHand(savers) => closed_loop(savers, time).await?,
            Self::Dual(savers) => closed_loop(savers, time).await?,
            Self::Classic(way, publisher, savers) => {
                let poller = way.start_poller(publisher.clone(), Duration::from_millis(5));
                let done = closed_loop(savers, time).await?;
                while !way.is_empty().await? {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                poller.stop().await?;
                done
            }
        };
        Ok((saves, began.elapsed()))
    }
}

/// Measures every side, block by block.
async fn rates(bed: &Bed, report: &mut Report, savers: usize) -> Result<Vec<Side>> {
    let mut sides = sides(bed, savers).await?;
    let count = sides.len();
    // The first block is only for warming up. The order of the sides rotates from block to block.
    for block in 0..=bed.scale.blocks {
        for turn in 0..count {
            let side = &mut sides[(block + turn) % count];
            bed.purge().await?;

            let before = Counters::take(bed).await?;
            let (saves, took) = side.savers.run(bed.scale.loop_time).await?;
            if block > 0 {
                side.rates.push(saves / took.as_secs_f64());
            }
            if block == bed.scale.blocks {
                report.count(format!("{}, {savers} savers", side.name), saves, before.until_now(bed).await?);
            }
        }
    }

    bed.purge().await?;
    Ok(sides)
}

/// Creates the savers of every side, each with its own documents.
async fn sides(bed: &Bed, savers: usize) -> Result<Vec<Side>> {
    let count = savers * DOCUMENTS;
    let mut sides = Vec::new();
    let publisher = Confirmed::connect(bed).await?;
    let ways = [
        (OURS, bed.inline(Mode::Await)),
        (AT_CONFIRM, bed.inline(Mode::AwaitConfirm)),
        (DEFERRED, bed.inline_with(Mode::Await, |builder| builder.defer_clears(Duration::from_secs(1)))),
        (UNGROUPED, bed.inline_with(Mode::Await, |builder| builder.group_commit(false))),
    ];
    for (n, (name, inline)) in ways.into_iter().enumerate() {
        let store = bed.orders(&inline, &format!("ours_{n}"), count, BYTES).await?;
        let team = Ours::team(bed, &store, savers, DOCUMENTS).await?;
        sides.push(Side { name, savers: Savers::Ours(inline, team), rates: Vec::new() });
    }
    let by_hand =
        [(BY_HAND, "by_hand", Safety::Unchecked), (BY_HAND_AS_SAFE, "by_hand_as_safe", Safety::AsSafe)];
    for (name, collection, safety) in by_hand {
        let store = bed.orders(&bed.inline(Mode::Off), collection, count, BYTES).await?;
        let way = ByHand::new(bed, store.collection().clone_with_type(), safety).await?;
        let team = Hand::team(&way, savers, DOCUMENTS, BYTES);
        sides.push(Side { name, savers: Savers::ByHand(team), rates: Vec::new() });
    }
    let way = DualWrite::new(bed.raw_orders("dual", count, BYTES).await?, publisher.clone());
    let team = Dual::team(&way, savers, DOCUMENTS, BYTES);
    sides.push(Side { name: DUAL, savers: Savers::Dual(team), rates: Vec::new() });
    if savers == 64 {
        bed.database.collection::<()>("classic_outbox").drop().await?;
        let way = Classic::new(bed, bed.raw_orders("classic", count, BYTES).await?).await?;
        let team = Old::team(&way, savers, DOCUMENTS, BYTES);
        let savers = Savers::Classic(Box::new(way), publisher, team);
        sides.push(Side { name: CLASSIC, savers, rates: Vec::new() });
    }

    Ok(sides)
}
