//! A daemon: its table of keys, and its run from reading settings to exit.

use std::{
    error::Error,
    io::{self, Write},
};

use crate::process::{
    error_chain::Chain,
    keys,
    log_line::to_stderr,
    settings::{Key, Problems, Program, Reader, Resolution, Resolved, Sources, resolve},
    shell::{self, Context, Exit, Shell},
};

/// A program that serves until a stop signal.
///
/// # Flow
/// Settings are resolved and validated. Then logging and HTTP start, and `serve` is called with the
/// settings and a [`Context`]. After SIGTERM or SIGINT the daemon is not ready, and `serve` has
/// `shutdown_grace` to end. Then HTTP ends, and the last traces are sent within the rest of the grace
/// period. The first log line has the name, the version and the effective settings; the last line says how
/// the daemon ended.
///
/// If the first arguments are `config check`, `config sample` or `config schema`, the daemon prints its
/// effective or possible settings and does not serve.
///
/// # Keys
/// The table consists of the keys that [`Daemon::keys`] adds and the shell's own keys: `config`,
/// `http_listen`, `log_format`, `log_filter` and `shutdown_grace`. `read` may read the shell's own keys, too.
///
/// # Errors
/// Problems of the settings and the output of `--help` are written to the terminal without log formatting;
/// an error of `serve` is logged together with its sources. See [`Exit`] for the exit codes.
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

impl Daemon {
    /// Creates a daemon with this name (`outbox-rescuer`), version (`env!("CARGO_PKG_VERSION")`) and
    /// purpose, in a sentence.
    #[must_use]
    pub fn new(name: &'static str, version: &'static str, about: &'static str) -> Self {
        let keys = vec![
            keys::http_listen(keys::HTTP_LISTEN),
            keys::log_format(),
            keys::log_filter(),
            keys::shutdown_grace(),
        ];
        Self { program: Program { name, version, about }, keys }
    }

    /// Puts `keys` before the shell's own keys. A key with the name of one of the shell's keys replaces that key,
    /// and must be of the same kind.
    #[must_use]
    pub fn keys(mut self, keys: impl IntoIterator<Item = Key>) -> Self {
        let mut keys: Vec<Key> = keys.into_iter().collect();
        self.keys.retain(|own| keys.iter().all(|key| key.name() != own.name()));
        keys.append(&mut self.keys);
        self.keys = keys;
        self
    }

    /// Runs with the settings of this process: its arguments, its environment, and the file that they
    /// name.
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

    /// Runs with the settings of `sources`.
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
        let resolved = match resolve(&self.program, &self.keys, sources) {
            Resolution::Run(resolved) => resolved,
            Resolution::Check(resolved) => return self.check(&resolved, read),
            Resolution::Print(text) => return print(&text),
        };

        let (settings, shell) = match read_all(&resolved, read) {
            Ok(read) => read,
            Err(problems) => return self.refuse(&problems, &resolved),
        };

        match shell::run(&self.program, &resolved, &shell, |context| serve(settings, context)) {
            Ok(exit) => exit,
            Err(error) => {
                self.complain(&Chain(&*error).to_string());
                Exit::Failed
            }
        }
    }

    /// Prints the effective settings and all problems.
    fn check<T>(&self, resolved: &Resolved, read: impl FnOnce(&mut Reader<'_>) -> T) -> Exit {
        let printed = print(&resolved.effective());
        if let Err(problems) = read_all(resolved, read) {
            return self.refuse(&problems, resolved);
        }

        for warning in resolved.warnings() {
            self.complain(warning);
        }
        printed
    }

    fn refuse(&self, problems: &Problems, resolved: &Resolved) -> Exit {
        self.complain(&problems.to_string());
        for warning in resolved.warnings() {
            self.complain(warning);
        }
        Exit::Misconfigured
    }

    /// Writes to standard error, before the log exists.
    fn complain(&self, text: &str) {
        to_stderr(format!("{}: {text}\n", self.program.name).as_bytes());
    }
}

/// Writes the output to standard output. A reader that stops early (`| head`) is not a failure.
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

fn read_all<T>(resolved: &Resolved, read: impl FnOnce(&mut Reader<'_>) -> T) -> Result<(T, Shell), Problems> {
    let mut reader = Reader::new(resolved);
    let shell = Shell::read(&mut reader);
    let settings = read(&mut reader);
    reader.finish((settings, shell))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemons_key_replaces_the_shells() {
        let daemon = Daemon::new("d", "1", "").keys([keys::shutdown_grace().with_default("5s")]);
        let graces: Vec<_> = daemon.keys.iter().filter(|key| key.name() == "shutdown_grace").collect();
        assert_eq!(graces.iter().map(|key| key.default()).collect::<Vec<_>>(), [Some("5s")]);
    }
}
