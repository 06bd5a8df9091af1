//! Plans a storm, and carries out the plan. The plan is drawn from the seed before the storm begins, so a seed always gives the
//! same plan.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use futures::future::join_all;
use tokio::time::sleep;

use crate::{
    faults::{self, Blow, Effect, Fault, Scope},
    settings,
    system::System,
    timeline::Span,
};

/// A blow lasts at least `SHORTEST`, and longer by a random time of up to `SPREAD`.
const SHORTEST: Duration = Duration::from_millis(500);
const SPREAD: Duration = Duration::from_secs(3);
/// The number of blows in a track.
const BLOWS: usize = 24;
/// The longest pause between two blows of a track.
const PAUSE: Duration = Duration::from_secs(1);
/// A blow has failed if the blow and the repair of its damage together take longer than this.
const PATIENCE: Duration = Duration::from_mins(2);

/// A sequence of faults that strike one after the other. The tracks of a storm are concurrent.
pub(crate) type Track = Vec<Planned>;

/// One strike (blow) of a fault, and the pause before it.
pub(crate) struct Planned {
    pub(crate) fault: &'static dyn Fault,
    pub(crate) pause: Duration,
    pub(crate) blow: Blow,
}

/// Draws the tracks of a seed. If `only` has any words, only faults whose name contains one of these words are drawn.
pub(crate) fn plan(seed: u64, only: &[String]) -> Vec<Track> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut by_scope: HashMap<Scope, Vec<&'static dyn Fault>> = HashMap::new();
    for fault in faults::ALL {
        if only.is_empty() || only.iter().any(|word| fault.name().contains(word.as_str())) {
            by_scope.entry(fault.scope()).or_default().push(*fault);
        }
    }

    let mut tracks = Vec::new();
    for scope in [Scope::Process, Scope::Mongo, Scope::Broker, Scope::Data] {
        let mut faults = by_scope.remove(&scope).unwrap_or_default();
        // Some runs have no faults of this scope, so that the faults of other scopes have more effect. Faults of processes are in
        // every run.
        let is_calm = scope != Scope::Process && only.is_empty() && random.u8(0..6) == 0;
        if faults.is_empty() || is_calm {
            continue;
        }
        in_turn(seed, &mut faults);
        tracks.push(draw(&faults, &mut random));
    }
    tracks
}

/// Orders the faults of a track. Consecutive seeds share one shuffled order of the faults, and each seed begins one fault later
/// in this order than the seed before. The reason is that a storm has time for only a few faults, but over many seeds each fault
/// must strike equally often.
fn in_turn(seed: u64, faults: &mut [&'static dyn Fault]) {
    let count = faults.len() as u64;
    fastrand::Rng::with_seed(seed / count).shuffle(faults);
    faults.rotate_left(usize::try_from(seed % count).unwrap_or_default());
}

/// Draws more blows than a storm has time for. The faults take turns.
fn draw(faults: &[&'static dyn Fault], random: &mut fastrand::Rng) -> Track {
    let mut track = Vec::new();
    for fault in faults.iter().cycle().take(BLOWS) {
        let pause = PAUSE.mul_f64(random.f64());
        let length = SHORTEST + SPREAD.mul_f64(random.f64());
        track.push(Planned { fault: *fault, pause, blow: Blow { length, seed: random.u64(..) } });
    }
    track
}

/// Runs the tracks concurrently until the storm ends. Returns the blows that took too long.
pub(crate) async fn rage(system: &System, tracks: &[Track]) -> Vec<String> {
    let end = Instant::now() + settings::STORM;
    let raging = tracks.iter().map(|track| follow(system, track, end));
    let failures = join_all(raging).await.into_iter().flatten().collect();
    sleep(end.saturating_duration_since(Instant::now())).await;
    failures
}

async fn follow(system: &System, track: &Track, end: Instant) -> Vec<String> {
    let mut failures = Vec::new();
    for planned in track {
        sleep(planned.pause).await;
        if Instant::now() >= end {
            break;
        }

        let from = system.timeline.now();
        let struck = tokio::time::timeout(PATIENCE, planned.fault.strike(system, planned.blow)).await;
        let effect = match struck {
            Ok(Ok(effect)) => effect,
            // A fault may fail because another fault has taken its target. Such a strike counts as a strike without an effect.
            Ok(Err(error)) => Effect::new("", false, format!("{error:#}")),
            Err(_) => {
                failures.push(format!("{} took longer than {PATIENCE:?}", planned.fault.name()));
                Effect::new("", false, "not done in time")
            }
        };
        system.timeline.add(Span {
            fault: planned.fault.name().to_owned(),
            target: effect.target,
            from,
            until: system.timeline.now(),
            took: effect.took,
            evidence: effect.evidence,
        });
    }
    failures
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(seed: u64) -> Vec<Vec<&'static str>> {
        let tracks = plan(seed, &[]);
        tracks.iter().map(|track| track.iter().map(|planned| planned.fault.name()).collect()).collect()
    }

    #[test]
    fn a_seed_has_one_plan() {
        assert_eq!(names(7), names(7));
        assert_ne!(names(7), names(8));
    }

    #[test]
    fn a_hundred_seeds_draw_every_fault_often() {
        let mut drawn: HashMap<_, usize> = HashMap::new();
        for name in (0..100).flat_map(names).flatten() {
            *drawn.entry(name).or_default() += 1;
        }

        for fault in faults::ALL {
            assert!(drawn.get(fault.name()).is_some_and(|drawn| *drawn >= 20), "{}", fault.name());
        }
    }
}
