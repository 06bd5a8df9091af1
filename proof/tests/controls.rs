//! Controls of the model. Each test breaks a rule of the design on purpose, and passes only if the checker finds a counterexample
//! to the law that depends on the rule. Without these tests, a model in which every law holds would prove nothing.

use document_outbox::DeliveryOrder::{Ordered, Unordered};
use outbox_proof::{
    broken::Broken,
    laws::{P1_ANSWER, P1_PHANTOM, P2_LOSS, P3_EFFECT, P5_CALM, P7_LOW_WATER},
    proof::search,
    scenario::Scenario,
    scenarios::{self, Bounds::Short},
    world::Fate,
};

/// Breaks this rule in a scenario, and asserts that the search then finds a counterexample to this law.
fn breaks(scenario: Scenario, rule: Broken, law: &str) {
    let proof = search(scenario.broken(rule));
    let found: Vec<_> = proof.broken.iter().map(|(law, _)| *law).collect();
    assert!(found.contains(&law), "{rule:?} breaks {found:?} in {} states", proof.states);
    println!("{rule:?}: {} states until\n{}", proof.states, proof.broken[0].1);
}

#[test]
fn a_clear_before_the_confirm_loses_messages() {
    let scenario = scenarios::failing(Short, "refused", Fate::RefusedOnce, Ordered);
    breaks(scenario, Broken::ClearBeforeConfirm, P2_LOSS);
}

#[test]
fn a_position_saved_on_read_passes_messages() {
    breaks(scenarios::rescuing(Short), Broken::PositionSavedOnRead, P7_LOW_WATER);
}

#[test]
fn a_clear_by_replacing_loses_messages() {
    breaks(scenarios::cutting(Short), Broken::ClearByReplacing, P2_LOSS);
}

#[test]
fn a_dispatch_before_the_majority_publishes_phantoms() {
    breaks(scenarios::saving(Short), Broken::DispatchBeforeMajority, P1_PHANTOM);
}

#[test]
fn without_a_sweep_messages_are_left() {
    breaks(scenarios::delivering(Short), Broken::NoSweep, P5_CALM);
}

#[test]
fn any_acknowledgement_accepted_loses_unroutable_messages() {
    let scenario = scenarios::failing(Short, "unroutable", Fate::Unroutable, Unordered);
    breaks(scenario, Broken::AnyAckAccepted, P2_LOSS);
}

#[test]
fn an_owner_without_a_broker_leaves_messages() {
    breaks(scenarios::owning(Short), Broken::OwnerWithoutBroker, P5_CALM);
}

#[test]
fn an_unknown_outcome_taken_for_a_refusal_repeats_effects() {
    breaks(scenarios::saving(Short), Broken::UnknownIsRefusal, P1_ANSWER);
}

#[test]
fn a_refusal_that_hides_a_doubt_repeats_effects() {
    breaks(scenarios::saving(Short), Broken::DoubtForgotten, P1_ANSWER);
}

#[test]
fn undated_entries_that_are_forgotten_are_left() {
    breaks(scenarios::rescuing(Short), Broken::UndatedForgotten, P5_CALM);
}

#[test]
fn a_death_that_is_not_shown_leaves_messages() {
    let scenario = scenarios::failing(Short, "impossible", Fate::Impossible, Ordered);
    breaks(scenario, Broken::DeathHidden, P5_CALM);
}

#[test]
fn a_single_sweep_leaves_young_messages() {
    breaks(scenarios::losing_positions(Short), Broken::SweptOnce, P5_CALM);
}

#[test]
fn without_an_inbox_effects_are_repeated() {
    breaks(scenarios::receiving(Short), Broken::NoInbox, P3_EFFECT);
}
