//! The process around a daemon.

use std::{
    error::Error,
    fmt,
    io::{self, Write},
    process::{ExitCode, Termination},
    thread,
    time::Duration,
};

use tokio::{
    runtime::{Handle, Runtime},
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::{
    http::{Bound, Listen},
    keys,
    log_line::to_stderr,
    metrics::Exporter,
    probes::Probes,
    settings::{Key, Problems, Program, Reader, Resolution, Resolved, Sources, resolve},
    shutdown,
    telemetry::{self, LogFormat},
};

#[cfg(feature = "otlp")]
use crate::otlp::Traces;

/// What is there in place of the export of traces in a build without it.
#[cfg(not(feature = "otlp"))]
enum Traces {}

#[cfg(not(feature = "otlp"))]
impl Traces {
    fn flush(self, _: Duration) {}
}

/// A program that serves until it is told to stop.
///
/// # Flow
/// Settings are resolved and validated; logging and HTTP start; `serve` is called with the settings and a [`Context`]. From
/// SIGTERM or SIGINT on it is not ready and has `shutdown_grace` to end. Then HTTP ends, and the last traces are sent within
/// what is left of the grace. The first log line holds name, version and effective settings, the last one how it ended.
///
/// With `config check`, `config sample` or `config schema` for its first arguments it says what its settings are, or can be,
/// and serves nothing.
///
/// # Keys
/// The table is what [`Daemon::keys`] takes, and the shell's own: `config`, `http_listen`, `log_format`, `log_filter`
/// and `shutdown_grace`. `read` may read those too.
///
/// # Errors
/// Settings problems and what `--help` prints go to the terminal as they are; an error of `serve` is logged with its
/// sources. See [`Exit`] for what the process ends with.
///
/// # Example
/// ```no_run
/// use std::{io, time::Duration};
///
/// use outbox_service::{Context, Daemon, Exit, Key, Kind, NamespacePattern, Reader, Uri, keys};
///
/// struct Settings {
///     mongodb: Uri,
///     watch: Vec<NamespacePattern>,
///     delay: Duration,
/// }
///
/// const DAY: Duration = Duration::from_secs(86_400);
///
/// fn read(read: &mut Reader<'_>) -> Settings {
///     let (delay, grace) = (read.duration("delay"), read.duration("shutdown_grace"));
///     if grace > delay {
///         read.problem(&["shutdown_grace", "delay"], "must not be longer than delay; shorten it");
///     }
///     Settings { mongodb: read.uri("mongodb_uri"), watch: read.namespaces("watch"), delay }
/// }
///
/// async fn serve(settings: Settings, context: Context) -> io::Result<()> {
///     println!("{} patterns, {:?} late, at {}", settings.watch.len(), settings.delay, settings.mongodb);
///     context.stop.cancelled().await;
///     Ok(())
/// }
///
/// fn main() -> Exit {
///     let delay = Key::new("delay", Kind::Duration(Duration::from_secs(1)..=DAY), "How late the stream is read.");
///     Daemon::new("outbox-rescuer", env!("CARGO_PKG_VERSION"), "Finds what inline dispatch left behind.")
///         .keys([keys::mongodb_uri(), keys::watch(), delay.with_default("15s")])
///         .run(read, serve)
/// }
/// ```
#[derive(Clone, Debug)]
pub struct Daemon {
    program: Program,
    keys: Vec<Key>,
}

/// What a daemon is given to serve with.
#[derive(Debug)]
pub struct Context {
    /// Cancelled by SIGTERM or SIGINT.
    pub stop: CancellationToken,
    /// Where it reports whether it is ready, and how it stands.
    pub probes: Probes,
}

/// How a daemon ended; `main` returns it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It stopped when told to, or printed what was asked for: exit code 0.
    Clean = 0,
    /// It failed, or did not stop within `shutdown_grace`: exit code 1.
    Failed = 1,
    /// Its settings have problems; nothing was connected: exit code 2.
    Misconfigured = 2,
}

impl Termination for Exit {
    fn report(self) -> ExitCode {
        ExitCode::from(self as u8)
    }
}

/// What the shell itself needs to know.
struct Shell {
    http_listen: Listen,
    log_format: LogFormat,
    log_filter: String,
    shutdown_grace: Duration,
}

impl Daemon {
    /// A daemon of this name (`outbox-rescuer`), version (`env!("CARGO_PKG_VERSION")`) and purpose, in a sentence.
    pub fn new(name: &'static str, version: &'static str, about: &'static str) -> Self {
        let keys = vec![
            keys::http_listen(keys::HTTP_LISTEN),
            keys::log_format(),
            keys::log_filter(),
            keys::shutdown_grace(),
        ];
        Self { program: Program { name, version, about }, keys }
    }

    /// Puts `keys` before those of the shell. One of the same name takes the place of the shell's, and has to be of
    /// the same kind.
    #[must_use]
    pub fn keys(mut self, keys: impl IntoIterator<Item = Key>) -> Self {
        let mut keys: Vec<Key> = keys.into_iter().collect();
        self.keys.retain(|own| keys.iter().all(|key| key.name() != own.name()));
        keys.append(&mut self.keys);
        self.keys = keys;
        self
    }

    /// Runs on the settings of this process: its arguments, its environment, the file they name.
    pub fn run<T, F, E>(
        self,
        read: impl FnOnce(&mut Reader<'_>) -> T,
        serve: impl FnOnce(T, Context) -> F,
    ) -> Exit
    where
        F: Future<Output = Result<(), E>>,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        self.run_from(&Sources::of_process(), read, serve)
    }

    /// Runs on the settings of `sources`.
    pub fn run_from<T, F, E>(
        self,
        sources: &Sources,
        read: impl FnOnce(&mut Reader<'_>) -> T,
        serve: impl FnOnce(T, Context) -> F,
    ) -> Exit
    where
        F: Future<Output = Result<(), E>>,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let (resolved, only_check) = match resolve(&self.program, &self.keys, sources) {
            Resolution::Run(resolved) => (resolved, false),
            Resolution::Check(resolved) => (resolved, true),
            Resolution::Print(text) => return print(&text),
        };
        let (settings, shell) = match read_all(&resolved, read) {
            Ok(read) => read,
            Err(problems) => {
                if only_check {
                    print(&resolved.effective());
                }
                self.complain(&problems.to_string());
                for warning in resolved.warnings() {
                    self.complain(warning);
                }
                return Exit::Misconfigured;
            }
        };

        if only_check {
            let exit = print(&resolved.effective());
            for warning in resolved.warnings() {
                self.complain(warning);
            }
            return exit;
        }

        match self.serve(&resolved, &shell, |context| serve(settings, context)) {
            Ok(exit) => exit,
            Err(error) => {
                self.complain(&Chain(&*error).to_string());
                Exit::Failed
            }
        }
    }

    /// Writes to standard error, before there is a log.
    fn complain(&self, text: &str) {
        to_stderr(format!("{}: {text}\n", self.program.name).as_bytes());
    }

    /// `Err` for what kept `serve` from being called.
    fn serve<F, E>(
        &self,
        resolved: &Resolved,
        shell: &Shell,
        serve: impl FnOnce(Context) -> F,
    ) -> Result<Exit, Box<dyn Error + Send + Sync>>
    where
        F: Future<Output = Result<(), E>>,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let runtime = runtime()?;
        let traces = self.start_telemetry(shell, runtime.handle())?;
        let bound = shell.http_listen.0.map(Bound::to).transpose()?;
        let stop = {
            let _entered = runtime.enter();
            shutdown::signal()?
        };
        info!(version = self.program.version, settings = %resolved.summary(), "{} started", self.program.name);
        resolved.warnings().iter().for_each(|warning| warn!("{warning}"));
        if cfg!(not(feature = "otlp")) && telemetry::collector().is_some() {
            warn!(
                "no traces are sent, although OTEL_EXPORTER_OTLP_ENDPOINT is set: this program is built without otlp"
            );
        }
        let probes = Probes::new(self.program, stop.clone());
        runtime.spawn(probes.clone().beat());
        let http = match bound {
            Some(bound) => Some(bound.answer(probes.clone(), Exporter::install(&self.program)?)?),
            None => None,
        };
        if let Some(http) = &http {
            info!(address = %http, "probes, metrics and status are served");
        }
        let serving = serve(Context { stop: stop.clone(), probes });
        let (ended, deadline) = runtime.block_on(until_stopped(serving, &stop, shell.shutdown_grace));
        if let Some(http) = http {
            http.stop();
        }
        if let Some(traces) = traces {
            traces.flush(deadline.saturating_duration_since(Instant::now()));
        }
        runtime.shutdown_timeout(LAST_TASKS);
        Ok(self.report(ended.map(|result| result.map_err(Into::into)), shell))
    }

    #[cfg(feature = "otlp")]
    fn start_telemetry(
        &self,
        shell: &Shell,
        runtime: &Handle,
    ) -> Result<Option<Traces>, Box<dyn Error + Send + Sync>> {
        let started = telemetry::collector()
            .map(|endpoint| Traces::start(&self.program, &endpoint, runtime))
            .transpose()?;
        let (traces, spans) = started.unzip();
        telemetry::init_with(shell.log_format, &shell.log_filter, spans)?;
        Ok(traces)
    }

    #[cfg(not(feature = "otlp"))]
    fn start_telemetry(
        &self,
        shell: &Shell,
        _: &Handle,
    ) -> Result<Option<Traces>, Box<dyn Error + Send + Sync>> {
        telemetry::init(shell.log_format, &shell.log_filter)?;
        Ok(None)
    }

    fn report(&self, ended: Option<Result<(), Box<dyn Error + Send + Sync>>>, shell: &Shell) -> Exit {
        let name = self.program.name;
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
                error!(shutdown_grace = ?shell.shutdown_grace, "{name} did not stop in time and was cut off");
                Exit::Failed
            }
        }
    }
}

/// Writes what was asked for to standard output. A reader that has seen enough (`| head`) is no failure.
fn print(text: &str) -> Exit {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());

    match written {
        Ok(()) => Exit::Clean,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Clean,
        Err(error) => {
            to_stderr(format!("standard output can't be written to: {error}\n").as_bytes());
            Exit::Failed
        }
    }
}

/// How long tasks that `serve` left behind may take to reach their next await point.
const LAST_TASKS: Duration = Duration::from_secs(1);

fn read_all<T>(resolved: &Resolved, read: impl FnOnce(&mut Reader<'_>) -> T) -> Result<(T, Shell), Problems> {
    let mut reader = Reader::new(resolved);
    let shell = Shell {
        // Where it is no address, that is a problem already.
        http_listen: reader.string("http_listen").parse().unwrap_or(Listen(None)),
        log_format: reader.choice("log_format"),
        log_filter: reader.string("log_filter"),
        shutdown_grace: reader.duration("shutdown_grace"),
    };
    let settings = read(&mut reader);
    reader.finish((settings, shell))
}

fn runtime() -> std::io::Result<Runtime> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    tokio::runtime::Builder::new_multi_thread().worker_threads(cores.min(4)).enable_all().build()
}

/// What `serve` came to; `None` if it went on for longer than `grace` after `stop`. And until when everything else has to end.
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

/// An error and its sources on one line.
struct Chain<'a>(&'a (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(cause) = source {
            write!(f, ": {cause}")?;
            source = cause.source();
        }
        Ok(())
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
    async fn work_in_hand_has_the_grace_to_end() {
        let stop = CancellationToken::new();
        stop.cancel();
        let work = |needs| async move {
            tokio::time::sleep(needs).await;
            7
        };
        assert_eq!(until_stopped(work(GRACE - Duration::from_millis(1)), &stop, GRACE).await.0, Some(7));
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

    #[test]
    fn a_daemons_key_replaces_the_shells() {
        let daemon = Daemon::new("d", "1", "").keys([keys::shutdown_grace().with_default("5s")]);
        let graces: Vec<_> = daemon.keys.iter().filter(|key| key.name() == "shutdown_grace").collect();
        assert_eq!(graces.iter().map(|key| key.default()).collect::<Vec<_>>(), [Some("5s")]);
    }

    #[test]
    fn an_error_prints_its_sources_on_one_line() {
        #[derive(Debug, thiserror::Error)]
        #[error("can't start")]
        struct Outer(#[source] std::io::Error);

        let error = Outer(std::io::Error::other("no disk"));
        assert_eq!(Chain(&error).to_string(), "can't start: no disk");
    }
}
