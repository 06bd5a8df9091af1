//! One run: all processes start, the storm strikes, the servers are healed, and every outbox must become empty.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use tokio::time::sleep;

use crate::{
    actors::Role,
    ledger::{Evidence, History, Truth, Verdict, Window, filled_outboxes, judge, replay_dead},
    probe::Probe,
    record::Record,
    settings,
    storm::{Track, plan, rage},
    system::{Servers, System},
    timeline::time_in_force,
};

/// How long each application's first message may take to arrive. The time is long enough for a machine that compiles programs at
/// the same time.
const WARM_UP: Duration = Duration::from_secs(90);

/// The parameters of a run.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    /// The run uses only faults whose name contains one of these words, or all faults if there are no words.
    pub(crate) only: Vec<String>,
    pub(crate) folder: PathBuf,
    pub(crate) commit: String,
}

/// The outcome of the wait for empty outboxes after a storm.
struct Drained {
    stuck: u64,
    healed_after: Duration,
    after: Duration,
}

pub(crate) async fn run(servers: &Servers, wanted: &Plan) -> Result<Record> {
    let begun = Instant::now();
    let system = System::set_up(servers.clone(), wanted.seed, wanted.folder.clone()).await?;
    let probe = Probe::start(servers.set.clone());
    let tracks = plan(wanted.seed, &wanted.only);
    let told = act(&system, &tracks).await;
    let (storm, failures, drained) = match told {
        Ok(told) => told,
        Err(error) => {
            system.strike().await;
            return Err(error);
        }
    };

    let evidence = Evidence {
        saves: system.ledger.saves(),
        receipts: system.ledger.receipts(),
        died: system.ledger.died(),
        drops: system.ledger.drops(),
        truth: Truth::read(&system.database()).await?,
        history: History::read(&servers.set, &system.placement.database, system.timeline.begun()).await?,
        spans: system.timeline.spans(),
        sightings: probe.sightings(),
        traffic: system.traffic.clone(),
        timeline: system.timeline.clone(),
        processes: system.participants.iter().map(|participant| &participant.process).collect(),
    };
    let verdict = judge(&evidence);
    let mut problems = failures;
    for participant in &system.participants {
        problems.extend(participant.process.surprises());
    }
    if drained.stuck > 0 {
        problems.push(format!("stuck: {} documents after {:?}", drained.stuck, settings::DRAIN));
    }

    let mut record = recorded(wanted, verdict, &drained, system.timeline.spans(), storm);
    problems.extend(system.strike().await);
    record.good = record.good && drained.stuck == 0 && problems.is_empty();
    record.problems.extend(problems);
    record.took = begun.elapsed().as_secs_f64();
    Ok(record)
}

/// Waits for the first messages, runs the storm, and then waits until every outbox is empty.
async fn act(system: &System, tracks: &[Track]) -> Result<(Duration, Vec<String>, Drained)> {
    warm_up(system).await?;
    let storm = Instant::now();
    let failures = rage(system, tracks).await;
    let storm = storm.elapsed();
    let drained = drain(system).await?;
    Ok((storm, failures, drained))
}

/// Waits until a message of every application was delivered.
async fn warm_up(system: &System) -> Result<()> {
    let begun = Instant::now();
    loop {
        let received = system.ledger.received();
        let saves = system.ledger.saves();
        let has_arrived = |name: &str| {
            saves.iter().any(|save| save.process == name && save.ids.iter().any(|id| received.contains(id)))
        };
        if system.of_role(Role::Application).all(|participant| has_arrived(participant.name())) {
            return Ok(());
        }
        if begun.elapsed() > WARM_UP {
            bail!(
                "not every application has had a message delivered after {WARM_UP:?}; see {}",
                system.placement.folder.display()
            );
        }
        sleep(Duration::from_millis(100)).await;
    }
}

/// Heals processes and servers, and waits until every outbox is empty and every committed message was received.
async fn drain(system: &System) -> Result<Drained> {
    let begun = Instant::now();
    system.heal_processes();
    quiet(system);
    let (set, cluster) = tokio::join!(system.servers.set.heal(), system.servers.cluster.heal());
    set.context("the MongoDB set")?;
    cluster.context("the RabbitMQ cluster")?;
    system.receiver.bind().await.context("the harness's queue")?;
    let healed_after = begun.elapsed();

    let whole = Instant::now();
    let database = system.database();
    let mut filled = 0;
    while whole.elapsed() < settings::DRAIN {
        quiet(system);
        // In production an operator would replay the messages that died in the storm. Here the harness replays them.
        if replay_dead(&database, &system.ledger).await.is_ok()
            && let Ok(now) = filled_outboxes(&database).await
        {
            filled = now;
            if filled == 0 && everything_came(system).await {
                return Ok(Drained { stuck: 0, healed_after, after: whole.elapsed() });
            }
        }
        sleep(Duration::from_millis(250)).await;
    }
    Ok(Drained { stuck: filled, healed_after, after: whole.elapsed() })
}

/// Whether the harness has received every committed message.
async fn everything_came(system: &System) -> bool {
    let Ok(truth) = Truth::read(&system.database()).await else { return false };
    truth.committed.is_subset(&system.ledger.received())
}

/// Orders all applications to make no more saves. The harness repeats this order, because an application that was started after
/// an earlier order has not received it.
fn quiet(system: &System) {
    for participant in system.of_role(Role::Application) {
        participant.process.order("quiet");
    }
}

fn recorded(
    wanted: &Plan,
    verdict: Verdict,
    drained: &Drained,
    timeline: Vec<crate::timeline::Span>,
    storm: Duration,
) -> Record {
    let good = verdict.is_good();
    let text =
        |window: &Window| serde_json::to_value(window).ok().and_then(|name| name.as_str().map(str::to_owned));
    let duplicates: BTreeMap<_, _> =
        verdict.duplicates.iter().map(|(window, count)| (text(window).unwrap_or_default(), *count)).collect();
    let examples = verdict
        .examples
        .into_iter()
        .map(|(window, shown)| (text(&window).unwrap_or_default(), shown))
        .collect();
    Record {
        good,
        examples,
        seed: wanted.seed,
        commit: wanted.commit.clone(),
        saves: verdict.saves,
        outcomes: verdict.outcomes,
        committed: verdict.committed,
        delivered: verdict.delivered,
        duplicates,
        lost: verdict.lost,
        phantoms: verdict.phantoms,
        misreported: verdict.misreported,
        order_violations: verdict.order_violations,
        stuck: drained.stuck,
        died: verdict.died,
        answerable: verdict.answerable,
        indeterminate: verdict.indeterminate,
        healed_in: drained.healed_after.as_secs_f64(),
        drained_in: drained.after.as_secs_f64(),
        storm: storm.as_secs_f64(),
        in_force: time_in_force(&timeline).as_secs_f64(),
        took: 0.0,
        problems: verdict.problems,
        timeline,
    }
}
