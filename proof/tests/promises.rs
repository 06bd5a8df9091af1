//! Tests that the promises hold in every scenario, within the short bounds.

use outbox_proof::{
    proof::search,
    scenarios::{Bounds, all},
};

/// Runs the searches one after the other, because each search uses all cores.
#[test]
fn the_promises_hold_in_every_scenario() {
    let mut broken = Vec::new();
    for scenario in all(Bounds::Short) {
        let proof = search(scenario);
        println!(
            "{}: {} states, depth {}, at most {} ticks, {:.1} s",
            proof.name,
            proof.states,
            proof.depth,
            proof.longest,
            proof.took.as_secs_f64()
        );
        for (law, path) in proof.broken {
            broken.push(format!("{}: {law}\n{path}", proof.name));
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}
