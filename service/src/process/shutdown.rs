//! The signals that end a daemon.

use std::{io, process, time::Duration};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

/// Signals that follow each other within this time count as one.
const ONE_SIGNAL: Duration = Duration::from_secs(1);

/// Listens for SIGTERM and SIGINT from now on. The first signal cancels the token. A later signal of either
/// kind ends the process at once. The exit code is then 143 or 130, the code that a shell reports for a
/// process that was killed by the signal.
///
/// Signals within a second of the first count as the same request: a terminal signals the whole process
/// group, and a wrapper in that group also forwards its own signal.
///
/// Must be called within a Tokio runtime. On Windows, Ctrl-C is the only signal.
///
/// # Errors
/// Returns an error if the operating system refuses to deliver the signals.
pub fn signal() -> io::Result<CancellationToken> {
    let mut signals = Signals::listen()?;
    let token = CancellationToken::new();
    let cancelled = token.clone();
    tokio::spawn(async move {
        let first = signals.next().await;
        let since = Instant::now();
        info!(
            signal = first.name,
            "stopping; another signal after at least one second ends the process at once"
        );
        cancelled.cancel();

        let mut later = signals.next().await;
        while since.elapsed() < ONE_SIGNAL {
            info!(signal = later.name, "this signal is treated as a repeat of the previous signal");
            later = signals.next().await;
        }
        error!(signal = later.name, "a second signal ended the process before its work was done");
        process::exit(later.exit_code);
    });
    Ok(token)
}

struct Signal {
    name: &'static str,
    exit_code: i32,
}

const INTERRUPT: Signal = Signal { name: "SIGINT", exit_code: 130 };

#[cfg(unix)]
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn listen() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.interrupt.recv() => INTERRUPT,
            _ = self.terminate.recv() => Signal { name: "SIGTERM", exit_code: 143 },
        }
    }
}

#[cfg(windows)]
struct Signals(tokio::signal::windows::CtrlC);

#[cfg(windows)]
impl Signals {
    fn listen() -> io::Result<Self> {
        tokio::signal::windows::ctrl_c().map(Self)
    }

    async fn next(&mut self) -> Signal {
        self.0.recv().await;
        INTERRUPT
    }
}
