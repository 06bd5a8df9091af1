//! Describes the machine of the measurement.

use std::fs;

use mongodb::bson::doc;
use serde::Serialize;

use crate::{bed::Bed, result::Result};

#[derive(Debug, Clone, Serialize)]
pub(crate) struct Machine {
    cpu: String,
    cores: usize,
    memory_gib: f64,
    kernel: String,
    /// The load averages over 1, 5 and 15 min when the run began.
    load: String,
    mongodb: String,
    rabbitmq: String,
    document_outbox: &'static str,
    quick: bool,
}

impl Machine {
    pub(crate) async fn look(bed: &Bed) -> Result<Self> {
        let build = bed.client.database("admin").run_command(doc! { "buildInfo": 1 }).await?;
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let after = |text: &str, name: &str| {
            let line =
                text.lines().find(|line| line.starts_with(name)).and_then(|line| line.split(':').nth(1));
            line.unwrap_or_default().trim().to_owned()
        };
        let memory = after(&read("/proc/meminfo"), "MemTotal").replace(" kB", "");
        Ok(Self {
            cpu: after(&read("/proc/cpuinfo"), "model name"),
            cores: std::thread::available_parallelism()?.get(),
            memory_gib: (memory.parse::<f64>().unwrap_or_default() / 1024.0 / 1024.0).round(),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            load: read("/proc/loadavg").split_whitespace().take(3).collect::<Vec<_>>().join(" "),
            mongodb: build.get_str("version").unwrap_or_default().to_owned(),
            // The client does not expose the broker's version.
            rabbitmq: std::env::var("OUTBOX_BENCH_RABBITMQ_VERSION").unwrap_or_else(|_| "?".into()),
            document_outbox: env!("CARGO_PKG_VERSION"),
            quick: bed.scale.quick,
        })
    }

    pub(crate) fn line(&self) -> String {
        format!(
            "{} cores of {}, {} GiB, Linux {}, load {}; MongoDB {}, RabbitMQ {}, document-outbox {}{}",
            self.cores,
            self.cpu,
            self.memory_gib,
            self.kernel,
            self.load,
            self.mongodb,
            self.rabbitmq,
            self.document_outbox,
            if self.quick { "; --quick" } else { "" },
        )
    }
}
