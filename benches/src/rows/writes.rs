//! Measures the number of database writes for each message.

use std::time::{Duration, Instant};

use document_outbox::Mode;
use futures::future::try_join_all;

use super::savers::{DOCUMENTS, Ours, closed_loop};
use crate::{
    bed::{Bed, id},
    counters::Counters,
    report::{Goal, Report, Row},
    result::Result,
};

pub(crate) async fn measure(bed: &Bed, report: &mut Report) -> Result<()> {
    const SAVERS: usize = 16;
    /// The pause between two saves of the same document. The measurement makes many saves, so that the
    /// separate clear after the last save counts little.
    const PAUSE: Duration = Duration::from_millis(200);
    const TIME: Duration = Duration::from_secs(3);
    let store = bed.orders(&bed.inline(Mode::Await), "writes", SAVERS * DOCUMENTS, 2_000).await?;
    let mut savers = Ours::team(bed, &store, SAVERS, DOCUMENTS).await?;
    let mut each = Vec::new();
    for _ in 0..bed.scale.blocks {
        let before = Counters::take(bed).await?;
        let (saves, _) = closed_loop(&mut savers, bed.scale.loop_time).await?;
        each.push(before.until_now(bed).await?.documents_written as f64 / saves);
    }
    let row = Row::new("writes", "database writes per message", "–");
    // The result also includes a few writes that the servers make on their own.
    report
        .add(row.goal(Goal::AtMost(2.0)).values("", &each.iter().copied().map(rounded).collect::<Vec<_>>()));

    let inline = bed.inline_with(Mode::Background, |builder| builder.defer_clears(Duration::from_secs(1)));
    let store = bed.orders(&inline, "again", SAVERS, 2_000).await?;
    let mut each = Vec::new();
    for _ in 0..bed.scale.blocks {
        let before = Counters::take(bed).await?;
        let began = Instant::now();
        let save_often = |n: usize| {
            let store = &store;
            async move {
                let mut saves = 0.0;
                while began.elapsed() < TIME {
                    store.update(&id(n), |order| order.send(0, 1)).await?;
                    saves += 1.0;
                    tokio::time::sleep(PAUSE).await;
                }
                Ok::<f64, crate::result::Failure>(saves)
            }
        };
        let saves: f64 = try_join_all((0..SAVERS).map(save_often)).await?.iter().sum();
        bed.settled(&store.collection().clone_with_type()).await?;
        each.push(rounded(before.until_now(bed).await?.documents_written as f64 / saves));
    }
    let row =
        Row::new("writes-again", "the same, documents saved again within a second, deferred clears", "–");
    report.add(row.goal(Goal::AtMost(1.1)).values("", &each));
    Ok(())
}

/// Rounds to hundredths.
fn rounded(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}
