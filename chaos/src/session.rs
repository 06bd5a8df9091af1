//! Makes many runs on servers that are started once.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use clap::Args;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::timeout,
};

use crate::{
    control::Control,
    record::Record,
    report::report,
    run::{Plan, run},
    servers::{Cluster, Set},
    system::Servers,
};

/// A run that takes longer than this counts as failed. On a machine with idle processors, a run takes less than a minute.
const LONGEST_RUN: Duration = Duration::from_mins(8);

/// Options of the subcommand `storm`.
#[derive(Debug, Args)]
pub(crate) struct Session {
    /// Number of runs; each run uses the next seed.
    #[arg(long, default_value_t = 1)]
    runs: u64,
    /// The seed of the first run.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Appends a line for each run to this file, and skips seeds that the file already has for this commit.
    #[arg(long)]
    resume: Option<PathBuf>,
    /// Uses only faults whose name contains this word; may be repeated.
    #[arg(long)]
    only: Vec<String>,
    /// Breaks the engine on purpose; the session then fails if no run finds the defect.
    #[arg(long)]
    control: Option<Control>,
    /// Adds a control run at the end, with a deliberately faulty engine that clears messages before their confirm. The
    /// session fails if the control run loses no messages.
    #[arg(long)]
    with_control: bool,
    /// Begins no run later than this many seconds after the start of the session.
    #[arg(long)]
    within: Option<u64>,
    /// Ends the session after the first bad run.
    #[arg(long)]
    stop_at_bad: bool,
    /// The folder of the checkout.
    #[arg(long)]
    checkout: PathBuf,
    /// The folder with the binaries.
    #[arg(long)]
    binaries: PathBuf,
    /// The URI of the three-node MongoDB set.
    #[arg(long)]
    mongodb: String,
}

/// Makes all runs of a session. The exit code is 1 if a run was bad or, when the session breaks the engine on purpose, if no run
/// was bad.
pub(crate) async fn sit(session: &Session) -> Result<ExitCode> {
    let mut interrupted = signal(SignalKind::interrupt())?;
    let mut terminated = signal(SignalKind::terminate())?;
    // On a signal the harness heals the MongoDB set and ends. All processes and RabbitMQ nodes of the session end together with
    // the harness.
    tokio::select! {
        ended = sit_through(session) => ended,
        _ = interrupted.recv() => heal_and_leave(session).await,
        _ = terminated.recv() => heal_and_leave(session).await,
    }
}

async fn heal_and_leave(session: &Session) -> Result<ExitCode> {
    eprintln!("chaos: stopping; healing the MongoDB set");
    let set = Set::reach(&session.mongodb, session.checkout.clone()).await?;
    timeout(Duration::from_mins(1), set.heal()).await.context("the set can't be healed in time")??;
    Ok(ExitCode::from(130))
}

async fn sit_through(session: &Session) -> Result<ExitCode> {
    let begun = Instant::now();
    let home = session.checkout.join(".services/chaos");
    std::fs::create_dir_all(&home)?;
    let commit = commit_of(&session.checkout);
    let done = match &session.resume {
        Some(file) => done_before(file, &commit)?,
        None => HashSet::new(),
    };

    let set = Set::reach(&session.mongodb, session.checkout.clone()).await?;
    set.heal().await?;
    let cluster = Cluster::boot(home.join(format!("rabbitmq-{}", std::process::id()))).await?;
    let users: Vec<_> =
        crate::actors::ALL.iter().flat_map(|actor| actor.names()).map(|name| (*name).to_owned()).collect();
    cluster.add_users(&users).await?;
    println!("servers ready after {:.0} s", begun.elapsed().as_secs_f64());
    let servers = Servers {
        set: Arc::new(set),
        cluster: Arc::new(cluster),
        binaries: session.binaries.clone(),
        control: session.control,
    };

    let mut bad = 0;
    let mut ran = 0;
    for seed in (session.seed..session.seed + session.runs).filter(|seed| !done.contains(seed)) {
        let is_over = session.within.is_some_and(|seconds| begun.elapsed() > Duration::from_secs(seconds));
        if is_over || (bad > 0 && session.stop_at_bad) {
            break;
        }
        ran += 1;
        bad += usize::from(
            !run_one(session, &servers, seed, &home, &commit).await?.is_some_and(|record| record.good),
        );
    }

    println!("{ran} runs, {bad} bad");
    if session.with_control && !finds_the_broken_engine(session, &servers, &home, &commit).await? {
        println!("an engine that clears before the confirm was not found out");
        return Ok(ExitCode::FAILURE);
    }
    let is_as_wanted = if session.control.is_some() { bad > 0 } else { bad == 0 };
    if session.control.is_some() && bad == 0 {
        println!("the broken engine was not found out");
    }
    Ok(if is_as_wanted { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Makes a run in which applications clear messages before RabbitMQ's confirm, and no queue is bound. Returns whether the run
/// reports lost messages.
async fn finds_the_broken_engine(
    session: &Session,
    servers: &Servers,
    home: &Path,
    commit: &str,
) -> Result<bool> {
    println!("now an engine that clears before the confirm, which must lose messages");
    let servers = Servers { control: Some(Control::ClearBeforeConfirm), ..servers.clone() };
    let seed = session.seed;
    let folder = home.join("control");
    let plan =
        Plan { seed, only: vec!["binding".to_owned()], folder: folder.clone(), commit: commit.to_owned() };
    let record =
        timeout(LONGEST_RUN, run(&servers, &plan)).await.context("the control isn't done in time")??;
    println!("{}", record.sentence());
    let _ = std::fs::remove_dir_all(&folder);
    Ok(record.lost > 0)
}

/// Makes one run, and returns its record; `None` if the harness itself failed.
async fn run_one(
    session: &Session,
    servers: &Servers,
    seed: u64,
    home: &Path,
    commit: &str,
) -> Result<Option<Record>> {
    let folder = home.join(format!("seed-{seed}"));
    let plan = Plan { seed, only: session.only.clone(), folder: folder.clone(), commit: commit.to_owned() };
    let ran = timeout(LONGEST_RUN, run(servers, &plan)).await;
    let record = match ran {
        Ok(Ok(record)) => record,
        // The harness itself failed. The run is reported as bad, and is not repeated.
        Ok(Err(error)) => {
            println!("seed {seed:>5} BAD  {error:#}; kept in {}", folder.display());
            return Ok(None);
        }
        Err(_) => {
            println!("seed {seed:>5} BAD  not done after {LONGEST_RUN:?}; kept in {}", folder.display());
            return Ok(None);
        }
    };

    println!("{}", record.sentence());
    for problem in &record.problems {
        println!("    {problem}");
    }
    if let Some(file) = &session.resume {
        record.append(file)?;
    }
    if record.good {
        let _ = std::fs::remove_dir_all(&folder);
    } else {
        std::fs::write(folder.join("record.json"), serde_json::to_string_pretty(&record)?)?;
        println!(
            "    kept in {}; the same plan again: scripts/chaos --runs 1 --seed {seed}",
            folder.display()
        );
    }
    Ok(Some(record))
}

/// Returns the seeds that this commit has already run.
fn done_before(file: &Path, commit: &str) -> Result<HashSet<u64>> {
    let records = Record::read_all(file)?;
    Ok(records.into_iter().filter(|record| record.commit == commit).map(|record| record.seed).collect())
}

fn commit_of(checkout: &Path) -> String {
    let ask = |arguments: &[&str]| {
        let output = Command::new("git").arg("-C").arg(checkout).args(arguments).output().ok()?;
        String::from_utf8(output.stdout).ok().map(|text| text.trim().to_owned())
    };
    let commit = ask(&["rev-parse", "--short=10", "HEAD"]).unwrap_or_default();
    let is_clean =
        ask(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|changes| changes.is_empty());
    if is_clean { commit } else { format!("{commit}+") }
}

/// Prints a table of the runs in these files.
pub(crate) fn show_report(files: &[PathBuf]) -> Result<ExitCode> {
    let mut records = Vec::new();
    for file in files {
        records.extend(Record::read_all(file)?);
    }
    print!("{}", report(&records));
    Ok(ExitCode::SUCCESS)
}
