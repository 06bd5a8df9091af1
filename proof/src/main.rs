//! Searches the scenarios and reports the result of each scenario. scripts/prove starts this program.

use std::process::ExitCode;

use clap::Parser;
use outbox_proof::{
    proof::search,
    scenarios::{Bounds, all},
};

/// Search the model of document-outbox for an order of steps and faults that breaks a promise.
#[derive(Debug, Parser)]
struct Arguments {
    /// Allows one more fault in each scenario, which takes much longer.
    #[arg(long)]
    deep: bool,
    /// Searches only the scenarios whose names contain one of these words.
    names: Vec<String>,
}

fn main() -> ExitCode {
    let Arguments { deep, names } = Arguments::parse();
    let bounds = if deep { Bounds::Deep } else { Bounds::Short };
    let is_asked = |name: &str| names.is_empty() || names.iter().any(|word| name.contains(word.as_str()));

    println!(
        "{:<22} {:>11} {:>11} {:>6} {:>7} {:>8}",
        "scenario", "states", "calm", "depth", "ticks", "seconds"
    );
    let mut code = ExitCode::SUCCESS;
    for scenario in all(bounds).into_iter().filter(|scenario| is_asked(scenario.name)) {
        let proof = search(scenario);
        println!(
            "{:<22} {:>11} {:>11} {:>6} {:>7} {:>8.1}",
            proof.name,
            proof.states,
            proof.calm_states,
            proof.depth,
            proof.longest,
            proof.took.as_secs_f64()
        );
        for (law, path) in proof.broken {
            println!("BROKEN: {law}\n{path}");
            code = ExitCode::FAILURE;
        }
    }
    code
}
