//! The process around a daemon: its runtime, log, probes, signals and exit.

use std::{
    error::Error,
    process::{ExitCode, Termination},
    thread,
    time::Duration,
};

use tokio::{
    runtime::Runtime,
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::process::{
    error_chain::Chain,
    http::{Bound, Listen},
    metrics::Exporter,
    probes::Probes,
    settings::{Program, Reader, Resolved},
    shutdown,
    telemetry::{self, LogFormat},
    traces::Traces,
};

/// The time in which tasks that `serve` did not wait for may reach their next await point.
const LAST_TASKS: Duration = Duration::from_secs(1);
/// The maximum number of threads. A daemon waits for its servers most of the time, so it needs no more,
/// even on a machine with many cores.
const MOST_THREADS: usize = 4;

type Failure = Box<dyn Error + Send + Sync>;

/// The resources that a daemon receives for serving.
#[derive(Debug)]
pub struct Context {
    /// Cancelled by SIGTERM or SIGINT.
    pub stop: CancellationToken,
    /// The handle through which the daemon reports its readiness and its state.
    pub probes: Probes,
}

/// How a daemon ended; to be returned by `main`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The daemon stopped on request, or printed the requested output: exit code 0.
    Clean = 0,
    /// The daemon failed, or did not stop within `shutdown_grace`: exit code 1.
    Failed = 1,
    /// The settings have problems, so the program made no connection: exit code 2.
    Misconfigured = 2,
}

impl Termination for Exit {
    fn report(self) -> ExitCode {
        ExitCode::from(self as u8)
    }
}

/// The settings of the shell.
pub(crate) struct Shell {
    http_listen: Listen,
    log_format: LogFormat,
    log_filter: String,
    shutdown_grace: Duration,
}

impl Shell {
    pub(crate) fn read(reader: &mut Reader<'_>) -> Self {
        Self {
            // If the value is not an address, that was already reported as a problem.
            http_listen: reader.string("http_listen").parse().unwrap_or(Listen(None)),
            log_format: reader.choice("log_format"),
            log_filter: reader.string("log_filter"),
            shutdown_grace: reader.duration("shutdown_grace"),
        }
    }
}

/// Runs `serve` until it ends, or until the grace period after a signal is over. Returns `Err` if `serve`
/// could not be called.
pub(crate) fn run<F, E>(
    program: &Program,
    resolved: &Resolved,
    shell: &Shell,
    serve: impl FnOnce(Context) -> F,
) -> Result<Exit, Failure>
where
    F: Future<Output = Result<(), E>>,
    E: Into<Failure>,
{
    // Every part that can fail is set up before the first line of the log.
    let runtime = runtime()?;
    let (traces, spans) = Traces::start(program, runtime.handle())?;
    telemetry::init_with(shell.log_format, &shell.log_filter, spans)?;
    let bound = shell.http_listen.0.map(Bound::to).transpose()?;
    let stop = {
        let _entered = runtime.enter();
        shutdown::signal()?
    };

    info!(version = program.version, settings = %resolved.summary(), "{} started", program.name);
    for warning in resolved.warnings() {
        warn!("{warning}");
    }
    if Traces::are_missing() {
        warn!(
            "OTEL_EXPORTER_OTLP_ENDPOINT is set, but no traces are sent because this program is built without otlp"
        );
    }

    let probes = Probes::new(*program, stop.clone());
    runtime.spawn(probes.clone().beat());
    let http = match bound {
        Some(bound) => Some(bound.answer(probes.clone(), Exporter::install(program)?)?),
        None => None,
    };
    if let Some(http) = &http {
        info!(address = %http, "probes, metrics and status are served");
    }

    let serving = serve(Context { stop: stop.clone(), probes });
    let (ended, deadline) = runtime.block_on(until_stopped(serving, &stop, shell.shutdown_grace));

    // Probes are answered until the end, and report the stop.
    if let Some(http) = http {
        http.stop();
    }
    traces.flush(deadline.saturating_duration_since(Instant::now()));
    runtime.shutdown_timeout(LAST_TASKS);

    Ok(report(program.name, ended.map(|result| result.map_err(Into::into)), shell))
}

fn runtime() -> std::io::Result<Runtime> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    tokio::runtime::Builder::new_multi_thread().worker_threads(cores.min(MOST_THREADS)).enable_all().build()
}

/// Returns the result of `serve`, or `None` if `serve` ran for longer than the grace period after a stop.
/// Also returns the time by which the rest of the process has to end.
async fn until_stopped<T>(
    serve: impl Future<Output = T>,
    stop: &CancellationToken,
    grace: Duration,
) -> (Option<T>, Instant) {
    let mut serve = std::pin::pin!(serve);
    tokio::select! {
        ended = &mut serve => return (Some(ended), Instant::now() + grace),
        () = stop.cancelled() => {}
    }

    let deadline = Instant::now() + grace;
    (timeout_at(deadline, serve).await.ok(), deadline)
}

fn report(name: &str, ended: Option<Result<(), Failure>>, shell: &Shell) -> Exit {
    match ended {
        Some(Ok(())) => {
            info!("{name} stopped");
            Exit::Clean
        }
        Some(Err(cause)) => {
            error!(error = %Chain(&*cause), "{name} failed");
            Exit::Failed
        }
        None => {
            error!(shutdown_grace = ?shell.shutdown_grace, "{name} did not stop in time and was ended");
            Exit::Failed
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future;

    use super::*;

    const GRACE: Duration = Duration::from_secs(25);

    #[tokio::test(start_paused = true)]
    async fn what_ends_before_the_signal_is_reported() {
        assert_eq!(until_stopped(future::ready(7), &CancellationToken::new(), GRACE).await.0, Some(7));
    }

    #[tokio::test(start_paused = true)]
    async fn unfinished_work_has_the_grace_to_end() {
        let stop = CancellationToken::new();
        stop.cancel();
        let work = |needs| async move {
            tokio::time::sleep(needs).await;
            7
        };
        assert_eq!(until_stopped(work(Duration::from_millis(24_999)), &stop, GRACE).await.0, Some(7));
        assert_eq!(until_stopped(work(GRACE + Duration::from_secs(1)), &stop, GRACE).await.0, None);
    }

    #[tokio::test(start_paused = true)]
    async fn the_grace_begins_with_the_signal() {
        let stop = CancellationToken::new();
        let signalled = stop.clone();
        tokio::spawn(async move {
            tokio::time::sleep(100 * GRACE).await;
            signalled.cancel();
        });
        let work = tokio::time::sleep(100 * GRACE + GRACE / 2);
        assert_eq!(until_stopped(work, &stop, GRACE).await.0, Some(()));
    }
}
