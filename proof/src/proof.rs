//! The search of a scenario, and the result of the search.

use std::{
    fmt::Write,
    time::{Duration, Instant},
};

use stateright::{Checker, HasDiscoveries, Model};

use crate::{model::OutboxModel, scenario::Scenario};

/// The result of a search.
#[derive(Debug)]
pub struct Proof {
    pub name: &'static str,
    /// The laws that were broken, each with the steps that broke it.
    pub broken: Vec<(&'static str, String)>,
    pub states: usize,
    /// The number of different states that calm runs have visited.
    pub calm_states: usize,
    pub depth: usize,
    /// The longest time that a calm run took, in ticks.
    pub longest: u8,
    pub took: Duration,
}

/// Searches a scenario until every state was visited or a law is broken.
pub fn search(scenario: Scenario) -> Proof {
    let (name, began) = (scenario.name, Instant::now());
    let model = OutboxModel::new(scenario);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let checker =
        model.checker().threads(threads).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();

    let model = checker.model();
    let mut broken = Vec::new();
    for (law, path) in checker.discoveries() {
        let mut text = String::new();
        let steps = path.into_vec();
        for (state, action) in &steps {
            if let Some(action) = action {
                let _ = writeln!(text, "  {}", model.describe(state, *action));
            }
        }
        if let Some((state, _)) = steps.last()
            && law == crate::laws::P5_CALM
        {
            text.push_str("  then, without faults:\n");
            for step in model.calm.tell(state) {
                let _ = writeln!(text, "    {step}");
            }
        }
        broken.push((law, text));
    }

    Proof {
        name,
        broken,
        states: checker.unique_state_count(),
        calm_states: model.calm.states(),
        depth: checker.max_depth(),
        longest: model.calm.longest(),
        took: began.elapsed(),
    }
}
