//! The signals that end a daemon.

use std::{io, process, time::Duration};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

/// Signals closer together are one.
const ONE_SIGNAL: Duration = Duration::from_secs(1);

/// Listens for SIGTERM and SIGINT from now on. The first cancels the token; a later one, of either kind, ends the process
/// at once with 143 or 130, as a shell reports a process those signals killed.
///
/// Signals within a second of the first count as one with it: a terminal signals the whole process group, and a wrapper in
/// that group passes its own signal on.
///
/// Must be called within a Tokio runtime. On Windows, Ctrl-C takes the place of both.
///
/// # Errors
/// If the operating system refuses to deliver the signals.
pub fn signal() -> io::Result<CancellationToken> {
    let mut signals = Signals::listen()?;
    let token = CancellationToken::new();
    let cancelled = token.clone();
    tokio::spawn(async move {
        let first = signals.next().await;
        let since = Instant::now();
        info!(
            signal = first.name,
            "stopping; another signal, a second from now or later, ends the process at once"
        );
        cancelled.cancel();

        let mut later = signals.next().await;
        while since.elapsed() < ONE_SIGNAL {
            info!(signal = later.name, "counts as the same request as the signal before");
            later = signals.next().await;
        }
        error!(signal = later.name, "ended before its work was done");
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
