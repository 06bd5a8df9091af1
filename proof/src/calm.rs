//! Calm runs: runs in which no more faults happen, every process takes its steps in turn, and time passes only when no actor
//! has a step left.
//!
//! From each state that the search reaches, a calm run must deliver everything within a limited number of ticks. A calm run has
//! one fixed order of steps, whereas the search tries all orders.

use std::{collections::HashMap, fmt};

use parking_lot::Mutex;

use crate::{actor::Name, laws::is_drained, state::State, world::Tick};

/// The maximum number of steps in one tick of a calm run.
const STEPS_A_TICK: usize = 500;

/// The results of all calm runs, stored for each state that a calm run has visited.
pub struct Calm {
    within: Tick,
    /// For each state, the number of ticks until everything was delivered, or `None` if this took too long. The key is the
    /// fingerprint of the state.
    known: Mutex<HashMap<u64, Option<Tick>>>,
}

impl fmt::Debug for Calm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Calm").field("within", &self.within).finish_non_exhaustive()
    }
}

impl Calm {
    pub fn new(within: Tick) -> Self {
        Self { within, known: Mutex::default() }
    }

    /// Whether a calm run from this state delivers everything in time.
    pub fn ends(&self, state: &State) -> bool {
        self.ticks(state).is_some_and(|ticks| ticks <= self.within)
    }

    /// The number of ticks that the longest calm run took.
    pub fn longest(&self) -> Tick {
        self.known.lock().values().copied().flatten().max().unwrap_or(0)
    }

    /// The number of different states that calm runs have visited.
    pub fn states(&self) -> usize {
        self.known.lock().len()
    }

    fn ticks(&self, state: &State) -> Option<Tick> {
        let mut path = Vec::new();
        let mut state = state.clone();
        state.faults_left = 0;
        state.world.broker.reconnect();

        // The number of ticks from the end of the path until everything is delivered, if an earlier run has found it.
        let mut rest = None;
        let mut steps = 0;
        loop {
            let print = state.fingerprint();
            if let Some(known) = self.known.lock().get(&print).copied() {
                rest = known;
                break;
            }
            path.push((print, state.world.now));

            if let Some((actor, step)) = next(&state) {
                steps += 1;
                if steps > STEPS_A_TICK {
                    break;
                }
                state.take(actor, step);
                continue;
            }
            if is_drained(&state.world) {
                rest = Some(0);
                break;
            }
            steps = 0;
            let began = path.first().map_or(0, |(_, now)| *now);
            if state.world.now - began > self.within {
                break;
            }
            state.world.tick();
        }

        self.note(&path, state.world.now, rest)
    }

    /// Records the result of a run for every state on its path.
    fn note(&self, path: &[(u64, Tick)], end: Tick, rest: Option<Tick>) -> Option<Tick> {
        let mut known = self.known.lock();
        let mut ticks = rest;
        for (print, now) in path.iter().rev() {
            ticks = rest.map(|rest| rest + (end - now));
            known.insert(*print, ticks);
        }
        ticks
    }

    /// Describes a calm run in words.
    pub fn tell(&self, state: &State) -> Vec<String> {
        let mut state = state.clone();
        state.faults_left = 0;
        state.world.broker.reconnect();
        let began = state.world.now;
        let (mut told, mut steps) = (Vec::new(), 0);
        loop {
            if let Some((actor, step)) = next(&state) {
                steps += 1;
                if steps > STEPS_A_TICK {
                    told.push("it never rests".into());
                    return told;
                }
                told.push(state.actors[actor].describe(step, actor, &state.world));
                state.take(actor, step);
                continue;
            }
            if is_drained(&state.world) {
                told.push(format!("all is delivered after {} ticks", state.world.now - began));
                return told;
            }
            if state.world.now - began > self.within {
                told.push(format!("not all is delivered after {} ticks", self.within));
                return told;
            }
            steps = 0;
            state.world.tick();
            told.push(format!("time: tick {}", state.world.now));
        }
    }
}

/// The next step of a run without faults.
fn next(state: &State) -> Option<(Name, usize)> {
    for (name, actor) in state.actors.iter().enumerate() {
        if actor.count(name, &state.world) > 0 {
            return Some((name, 0));
        }
    }
    None
}
