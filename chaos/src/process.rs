//! Runs programs as processes that faults can kill and pause, and starts them again.

use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI32, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command},
    sync::mpsc,
    task::JoinHandle,
    time::{sleep, timeout},
};

/// The words that a process logs when one of its claims expired (`CLAIM_LOST`), and when several of its claims expired
/// (`CLAIMS_LOST`). The log line with `CLAIMS_LOST` does not name the documents.
pub(crate) const CLAIM_LOST: &str = "a claim expired during delivery";
pub(crate) const CLAIMS_LOST: &str = "claims expired during delivery";
/// The library that gives a process its own clock.
const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";
/// How long a process may take to end after SIGTERM.
const GOODBYE: Duration = Duration::from_secs(12);

/// A program, and the arguments, environment and folder with which it is started.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    pub(crate) arguments: Vec<String>,
    pub(crate) environment: Vec<(String, String)>,
    /// The folder with the log and the clock of the process.
    pub(crate) folder: PathBuf,
}

/// A process that is started again whenever it ends, until `stop` is called.
pub(crate) struct Process {
    pub(crate) name: String,
    /// The id of the running process; 0 while no process runs.
    pub(crate) pid: Arc<AtomicI32>,
    program: Program,
    state: Arc<Watched>,
    keeper: Mutex<Option<JoinHandle<()>>>,
    orders: mpsc::UnboundedSender<String>,
}

struct Watched {
    is_ending: AtomicBool,
    kills: Mutex<Vec<Instant>>,
    /// Descriptions of the times when the process ended unexpectedly, with the exit codes.
    surprises: Mutex<Vec<String>>,
    /// The log lines of the process that count as evidence, each with its time.
    said: Mutex<Vec<(Instant, String)>>,
    starts: Mutex<Vec<Instant>>,
}

/// Sends SIGKILL to the process with this id; does nothing when the id is 0.
pub(crate) fn kill_now(pid: &AtomicI32) {
    signal(pid.load(Ordering::SeqCst), Signal::KILL);
}

fn signal(pid: i32, signal: Signal) -> bool {
    // An id of 0 or less would address a group of processes, and 1 is init.
    let pid = (pid > 1).then(|| Pid::from_raw(pid)).flatten();
    pid.is_some_and(|pid| kill_process(pid, signal).is_ok())
}

/// Sends SIGKILL to the server with this process id. Returns whether the server existed.
pub(crate) fn kill_server(pid: i32) -> bool {
    signal(pid, Signal::KILL)
}

/// Returns a command for a child process. The operating system kills the child when this process ends, even if this process is
/// killed.
pub(crate) fn bound_to_us(path: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(path).process_group(0).kill_on_drop(true);
    command
}

/// Whether this machine has the library that gives a process its own clock.
pub(crate) fn has_clocks() -> bool {
    Path::new(FAKETIME).exists()
}

impl Process {
    /// Starts the program, and starts it again whenever it has ended. Each line that the program prints is sent to `lines`.
    pub(crate) fn start(
        program: Program,
        pid: Arc<AtomicI32>,
        lines: mpsc::UnboundedSender<(String, String)>,
    ) -> Result<Self> {
        set_clock(&program, 0)?;
        let state = Arc::new(Watched {
            is_ending: AtomicBool::default(),
            kills: Mutex::default(),
            surprises: Mutex::default(),
            said: Mutex::default(),
            starts: Mutex::default(),
        });
        let (orders, ordered) = mpsc::unbounded_channel();
        let keeper = tokio::spawn(keep(program.clone(), pid.clone(), state.clone(), lines, ordered));
        let keeper = Mutex::new(Some(keeper));
        Ok(Self { name: program.name.clone(), pid, program, state, keeper, orders })
    }

    /// Sends SIGKILL to the process. Returns whether the process existed.
    pub(crate) fn kill(&self) -> bool {
        self.state.kills.lock().push(Instant::now());
        signal(self.pid.load(Ordering::SeqCst), Signal::KILL)
    }

    pub(crate) fn pause(&self) -> bool {
        signal(self.pid.load(Ordering::SeqCst), Signal::STOP)
    }

    pub(crate) fn wake(&self) -> bool {
        signal(self.pid.load(Ordering::SeqCst), Signal::CONT)
    }

    /// Whether the operating system reports the process as stopped by a signal.
    pub(crate) fn is_paused(&self) -> bool {
        let status = format!("/proc/{}/stat", self.pid.load(Ordering::SeqCst));
        let text = std::fs::read_to_string(status).unwrap_or_default();
        text.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T'))
    }

    /// Sets the clock of the process ahead by this many seconds, or behind if the number is negative.
    pub(crate) fn set_clock(&self, seconds: i64) -> Result<()> {
        set_clock(&self.program, seconds)
    }

    /// Writes a line to the standard input of the process.
    pub(crate) fn order(&self, line: &str) {
        let _ = self.orders.send(line.to_owned());
    }

    /// How many times the process was started.
    pub(crate) fn starts(&self) -> usize {
        self.state.starts.lock().len()
    }

    /// Whether the process was killed between `from` and `until`.
    pub(crate) fn has_ended(&self, from: Instant, until: Instant) -> bool {
        self.state.kills.lock().iter().any(|at| (from..=until).contains(at))
    }

    /// Whether the process logged, between `from` and `until`, a line that contains both texts, `what` and `of`.
    pub(crate) fn said(&self, what: &str, of: &str, from: Instant, until: Instant) -> bool {
        let said = self.state.said.lock();
        said.iter().any(|(at, line)| (from..=until).contains(at) && line.contains(what) && line.contains(of))
    }

    /// Returns descriptions of the times when the process ended unexpectedly.
    pub(crate) fn surprises(&self) -> Vec<String> {
        self.state.surprises.lock().clone()
    }

    /// Sends SIGTERM to the process, and SIGKILL if it does not end in time. Returns whether SIGKILL was needed.
    pub(crate) async fn stop(&self) -> bool {
        self.state.is_ending.store(true, Ordering::SeqCst);
        self.wake();
        signal(self.pid.load(Ordering::SeqCst), Signal::TERM);
        let Some(mut keeper) = self.keeper.lock().take() else { return false };
        if timeout(GOODBYE, &mut keeper).await.is_ok() {
            return false;
        }
        self.kill();
        let _ = timeout(GOODBYE, keeper).await;
        true
    }
}

fn set_clock(program: &Program, seconds: i64) -> Result<()> {
    let file = clock_file(program);
    let fresh = file.with_extension("new");
    std::fs::write(&fresh, format!("{seconds:+}"))?;
    std::fs::rename(&fresh, &file).with_context(|| format!("the clock of {}", program.name))
}

/// Removes the files that libfaketime leaves in shared memory when the process that uses it is killed.
fn forget_clock(pid: i32) {
    for name in ["faketime_shm", "sem.faketime_sem"] {
        let _ = std::fs::remove_file(format!("/dev/shm/{name}_{pid}"));
    }
}

fn clock_file(program: &Program) -> PathBuf {
    program.folder.join(format!("{}.clock", program.name))
}

async fn keep(
    program: Program,
    pid: Arc<AtomicI32>,
    state: Arc<Watched>,
    lines: mpsc::UnboundedSender<(String, String)>,
    mut orders: mpsc::UnboundedReceiver<String>,
) {
    while !state.is_ending.load(Ordering::SeqCst) {
        let (mut child, input, output) = match spawn(&program) {
            Ok(spawned) => spawned,
            Err(error) => {
                state.surprises.lock().push(format!("{}: {error:#}", program.name));
                return;
            }
        };
        state.starts.lock().push(Instant::now());
        if let Some(log) = child.stderr.take() {
            tokio::spawn(keep_log(program.clone(), log, state.clone()));
        }
        pid.store(child.id().and_then(|id| i32::try_from(id).ok()).unwrap_or(0), Ordering::SeqCst);

        let ended = live(&program.name, &mut child, input, output, &lines, &mut orders).await;
        forget_clock(pid.swap(0, Ordering::SeqCst));
        if ended == Ended::Killed {
            state.kills.lock().push(Instant::now());
        } else if !state.is_ending.load(Ordering::SeqCst) {
            state.surprises.lock().push(format!("{} ended by itself: {ended:?}", program.name));
        }
        // The harness waits before it starts the program again, as an orchestrator would.
        sleep(Duration::from_millis(300)).await;
    }
}

/// Writes each line that a process logs to the process's log file. Also notes each line that counts as evidence, with its time.
async fn keep_log(program: Program, log: ChildStderr, state: Arc<Watched>) {
    let file = program.folder.join(format!("{}.log", program.name));
    let Ok(mut file) = File::options().create(true).append(true).open(file) else { return };
    let mut lines = BufReader::new(log).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if [CLAIM_LOST, CLAIMS_LOST].iter().any(|text| line.contains(text)) {
            state.said.lock().push((Instant::now(), line.clone()));
        }
        let _ = writeln!(file, "{line}");
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Ended {
    Killed,
    ByItself(Option<i32>),
}

/// Passes on the lines that a process prints, and the orders for the process, until the process ends. Returns how the process
/// ended.
async fn live(
    name: &str,
    child: &mut Child,
    mut input: ChildStdin,
    output: ChildStdout,
    lines: &mpsc::UnboundedSender<(String, String)>,
    orders: &mut mpsc::UnboundedReceiver<String>,
) -> Ended {
    use std::os::unix::process::ExitStatusExt;

    let mut printed = BufReader::new(output).lines();
    let mut is_open = true;
    loop {
        tokio::select! {
            line = printed.next_line(), if is_open => match line {
                Ok(Some(line)) => {
                    let _ = lines.send((name.to_owned(), line));
                }
                _ => is_open = false,
            },
            Some(order) = orders.recv() => {
                let _ = input.write_all(format!("{order}\n").as_bytes()).await;
            }
            // Waits for the end of the process only after all its output was read.
            ended = child.wait(), if !is_open => {
                return match ended.ok() {
                    Some(status) if status.signal() == Some(9) => Ended::Killed,
                    Some(status) => Ended::ByItself(status.code()),
                    None => Ended::ByItself(None),
                };
            }
        }
    }
}

fn spawn(program: &Program) -> Result<(Child, ChildStdin, ChildStdout)> {
    let mut command = bound_to_us(&program.path);
    command
        .args(&program.arguments)
        .envs(program.environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    if has_clocks() {
        // A fault sets only the date wrong; the monotonic clock of the process stays correct.
        command
            .env("LD_PRELOAD", FAKETIME)
            .env("FAKETIME_TIMESTAMP_FILE", clock_file(program))
            .env("FAKETIME_NO_CACHE", "1")
            .env("FAKETIME_DISABLE_SHM", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .env("DONT_FAKE_MONOTONIC", "1");
    }
    let mut child =
        command.spawn().with_context(|| format!("{} can't be started", program.path.display()))?;
    let input = child.stdin.take().context("it has an input")?;
    let output = child.stdout.take().context("it has an output")?;
    Ok((child, input, output))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_evidence_is_logged_in_these_words() {
        let library = Path::new(env!("CARGO_MANIFEST_DIR")).join("../src");
        let read = |file: &str| std::fs::read_to_string(library.join(file)).unwrap();

        let (report, clears) = (read("dispatch/report.rs"), read("mongo/clears.rs"));
        assert!(report.contains(CLAIM_LOST));
        assert!(clears.contains(CLAIMS_LOST));
    }
}
