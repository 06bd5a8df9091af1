//! Runs the two services as processes, from the release binaries in the folder of this program and with the
//! suite's own settings.

use std::process::Stdio;

use tokio::process::{Child, Command};

use crate::{bed::Bed, counters, result::Result};

/// A running service. The process is killed when this value is dropped.
pub(crate) struct Service {
    child: Child,
}

impl Service {
    /// Starts a service on the collections of `database`. `settings` are environment variables without the prefix
    /// `OUTBOX_`.
    pub(crate) fn start(bed: &Bed, name: &str, database: &str, settings: &[(&str, String)]) -> Result<Self> {
        let program = std::env::current_exe()?.with_file_name(name);
        let mut command = Command::new(&program);
        command
            .env_clear()
            .env("OUTBOX_MONGODB_URI", &bed.mongodb_uri)
            .env("OUTBOX_RABBITMQ_URI", &bed.rabbitmq_uri)
            .env("OUTBOX_WATCH", format!("{database}.*"))
            .env("OUTBOX_STATE_DATABASE", bed.state().name())
            .env("OUTBOX_COMMANDS_EXCHANGE", bed.commands())
            .env("OUTBOX_COMMANDS_QUEUE", bed.commands())
            .env("OUTBOX_LOG_FILTER", "warn")
            .env("OUTBOX_HTTP_LISTEN", "127.0.0.1:0")
            .envs(settings.iter().map(|(key, value)| (format!("OUTBOX_{key}"), value)))
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let child = command.spawn().map_err(|error| format!("{}: {error}", program.display()))?;
        Ok(Self { child })
    }

    pub(crate) fn pid(&self) -> Result<String> {
        Ok(self.child.id().ok_or("a service has ended")?.to_string())
    }

    pub(crate) fn cpu_seconds(&self) -> Result<f64> {
        Ok(counters::cpu(&self.pid()?).ok_or("a service has ended")?)
    }

    pub(crate) fn peak_memory_mib(&self) -> Result<f64> {
        Ok(counters::peak_memory(&self.pid()?).ok_or("a service has ended")?)
    }

    pub(crate) async fn stop(mut self) -> Result<()> {
        Ok(self.child.kill().await?)
    }
}
