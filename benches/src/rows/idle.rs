//! Measures the processor time of the two services while they are idle.

use std::time::{Duration, Instant};

use crate::{
    bed::Bed,
    report::{Goal, Report, Row},
    result::Result,
    services::Service,
};

pub(crate) async fn measure(bed: &Bed, report: &mut Report) -> Result<()> {
    let names = ["outbox-rescuer", "outbox-dispatcher"];
    let exchange = ("MESSAGES_EXCHANGE", bed.exchange());
    let mut services = Vec::new();
    for name in names {
        let settings = if name == "outbox-dispatcher" { std::slice::from_ref(&exchange) } else { &[] };
        services.push(Service::start(bed, name, bed.name(), settings)?);
    }
    // During this pause the services connect, and the rescuer sweeps twice.
    tokio::time::sleep(bed.scale.pick(Duration::from_secs(4), Duration::from_secs(10))).await;
    let mut percent: [Vec<f64>; 2] = Default::default();
    for _ in 0..bed.scale.blocks {
        let began = Instant::now();
        let mut before = Vec::new();
        for service in &services {
            before.push(service.cpu_seconds()?);
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
        for (index, service) in services.iter().enumerate() {
            let used = service.cpu_seconds()? - before[index];
            percent[index].push(used / began.elapsed().as_secs_f64() * 100.0);
        }
    }
    for (index, service) in services.into_iter().enumerate() {
        let name = names[index].trim_start_matches("outbox-");
        let row = Row::new(format!("idle-{name}"), format!("idle {name}, of a core"), "–");
        let memory = format!("{:.0} MiB at its peak", service.peak_memory_mib()?);
        report.add(row.goal(Goal::AtMost(0.5)).values(" %", &percent[index]).detail(memory));
        service.stop().await?;
    }
    Ok(())
}
