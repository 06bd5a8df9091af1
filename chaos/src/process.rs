//! Programs as processes that are killed, paused, and started again.

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

/// The words that a process logs when a claim of its own ran out, and when several did, without their documents.
pub(crate) const CLAIM_LOST: &str = "a claim expired during delivery";
pub(crate) const CLAIMS_LOST: &str = "claims expired during delivery";
/// The clock of a process that has one of its own.
const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";
/// How long a process may take to end when it is asked to.
const GOODBYE: Duration = Duration::from_secs(12);

/// How to start a process.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    pub(crate) arguments: Vec<String>,
    pub(crate) environment: Vec<(String, String)>,
    /// Where its log and its clock are.
    pub(crate) folder: PathBuf,
}

/// A process that is started again whenever it ends, until it has to stop.
pub(crate) struct Process {
    pub(crate) name: String,
    /// The number of the running process; 0 while none runs.
    pub(crate) pid: Arc<AtomicI32>,
    program: Program,
    state: Arc<Watched>,
    keeper: Mutex<Option<JoinHandle<()>>>,
    orders: mpsc::UnboundedSender<String>,
}

struct Watched {
    is_ending: AtomicBool,
    kills: Mutex<Vec<Instant>>,
    /// Unexpected ends, with the exit code.
    surprises: Mutex<Vec<String>>,
    /// What it logged that counts as evidence.
    said: Mutex<Vec<(Instant, String)>>,
    starts: Mutex<Vec<Instant>>,
}

/// Sends SIGKILL to the process of this number, if there is one.
pub(crate) fn kill_now(pid: &AtomicI32) {
    signal(pid.load(Ordering::SeqCst), Signal::KILL);
}

fn signal(pid: i32, signal: Signal) -> bool {
    // 0 and below mean groups.
    let pid = (pid > 1).then(|| Pid::from_raw(pid)).flatten();
    pid.is_some_and(|pid| kill_process(pid, signal).is_ok())
}

/// SIGKILL, SIGSTOP and SIGCONT for a server by its number.
pub(crate) fn kill_server(pid: i32) -> bool {
    signal(pid, Signal::KILL)
}

/// A command that ends with this process, however that ends.
pub(crate) fn bound_to_us(path: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(path).process_group(0).kill_on_drop(true);
    command
}

/// Whether processes can have clocks of their own here.
pub(crate) fn has_clocks() -> bool {
    Path::new(FAKETIME).exists()
}

impl Process {
    /// Starts it, and again whenever it has ended. Each line that it prints goes to `lines`.
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

    /// SIGKILL.
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

    /// Whether the system has stopped it.
    pub(crate) fn is_paused(&self) -> bool {
        let status = format!("/proc/{}/stat", self.pid.load(Ordering::SeqCst));
        let text = std::fs::read_to_string(status).unwrap_or_default();
        text.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T'))
    }

    /// Sets its clock off by this many seconds, ahead or behind.
    pub(crate) fn set_clock(&self, seconds: i64) -> Result<()> {
        set_clock(&self.program, seconds)
    }

    /// A line for its standard input.
    pub(crate) fn order(&self, line: &str) {
        let _ = self.orders.send(line.to_owned());
    }

    /// Starts since the beginning; more than one after a kill.
    pub(crate) fn starts(&self) -> usize {
        self.state.starts.lock().len()
    }

    /// Whether it ended, however, in this time.
    pub(crate) fn has_ended(&self, from: Instant, until: Instant) -> bool {
        self.state.kills.lock().iter().any(|at| (from..=until).contains(at))
    }

    /// Whether it logged in this time a line with both of these texts.
    pub(crate) fn said(&self, what: &str, of: &str, from: Instant, until: Instant) -> bool {
        let said = self.state.said.lock();
        said.iter().any(|(at, line)| (from..=until).contains(at) && line.contains(what) && line.contains(of))
    }

    /// Unexpected ends.
    pub(crate) fn surprises(&self) -> Vec<String> {
        self.state.surprises.lock().clone()
    }

    /// Asks it to end, and forces it when it doesn't. Returns whether force was needed.
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

/// Takes away what libfaketime leaves of a process that was killed.
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
        // As an orchestrator would.
        sleep(Duration::from_millis(300)).await;
    }
}

/// Writes what a process logs to its file, and notes what counts as evidence when it is said.
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

/// From its start to its end.
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
            // Only once everything that it printed was read.
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
        // Only the date is ever off: the monotonic clock stays right.
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
