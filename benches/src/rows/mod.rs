//! The rows of the table, in the table's order.

mod burn_down;
mod idle;
mod latency;
mod paused;
mod rescuer;
mod save;
mod savers;
mod sizes;
mod throughput;
mod writes;

use crate::{bed::Bed, report::Report, result::Result};

/// Measures all rows, or those whose names have a requested prefix.
pub(crate) async fn measure(bed: &Bed, only: &[String], report: &mut Report) -> Result<()> {
    let wanted = |name: &str| {
        let wanted = only.is_empty() || only.iter().any(|only| name.starts_with(only.as_str()));
        if wanted {
            eprintln!("{name}");
        }
        wanted
    };
    if wanted("save") {
        save::measure(bed, report).await?;
    }
    if wanted("throughput") {
        throughput::measure(bed, report).await?;
    }
    if wanted("paused") {
        paused::measure(bed, report).await?;
    }
    if wanted("latency") {
        latency::measure(bed, report).await?;
    }
    if wanted("burn-down") {
        burn_down::measure(bed, report).await?;
    }
    if wanted("drain") {
        rescuer::drain(bed, report).await?;
    }
    if wanted("timeliness") {
        rescuer::timeliness(bed, report).await?;
    }
    if wanted("memory") {
        rescuer::memory(bed, report).await?;
    }
    if wanted("idle") {
        idle::measure(bed, report).await?;
    }
    if wanted("writes") {
        writes::measure(bed, report).await?;
    }
    if wanted("sizes") {
        sizes::measure(bed, report).await?;
    }
    Ok(())
}
