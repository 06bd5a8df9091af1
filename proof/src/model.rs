//! The model that the checker searches, in which steps and faults happen in every possible order.

use stateright::{Model, Property};

use crate::{
    actor::{AnyActor, Name},
    actors::clock::Clock,
    calm::Calm,
    laws::{
        self, FALSE_CONFLICT, OVERTAKEN, P1_ANSWER, P1_ATOMIC, P1_PHANTOM, P2_LOSS, P3_EFFECT, P3_ONCE,
        P3_WINDOWS, P4_ORDER, P5_CALM, P6_CONFLICT, P7_LOW_WATER, PHANTOM, UNEXCUSED,
    },
    scenario::Scenario,
    state::State,
};

/// One thing that can happen next: a step of an actor, a fault, or the passing of a tick.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    Step { actor: Name, step: usize },
    Fault { fault: usize, target: Name },
    Tick,
}

/// A scenario in the form that the checker needs.
#[derive(Debug)]
pub struct OutboxModel {
    pub scenario: Scenario,
    pub calm: Calm,
}

impl OutboxModel {
    pub fn new(scenario: Scenario) -> Self {
        let calm = Calm::new(scenario.within);
        Self { scenario, calm }
    }

    /// Describes an action in words.
    pub fn describe(&self, state: &State, action: Action) -> String {
        match action {
            Action::Step { actor, step } => state.actors[actor].describe(step, actor, &state.world),
            Action::Fault { fault, target } => {
                format!("FAULT {} at {target}", self.scenario.faults[fault].name())
            }
            Action::Tick => format!("time: tick {}", state.world.now + 1),
        }
    }
}

impl Model for OutboxModel {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![self.scenario.begin()]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for (name, actor) in state.actors.iter().enumerate() {
            for step in 0..actor.count(name, &state.world) {
                actions.push(Action::Step { actor: name, step });
            }
        }

        let waits = self.scenario.is_prompt && !actions.is_empty();
        if !waits && Clock.count(0, &state.world) > 0 {
            actions.push(Action::Tick);
        }

        if state.faults_left > 0 {
            for (number, fault) in self.scenario.faults.iter().enumerate() {
                for target in fault.targets(state) {
                    actions.push(Action::Fault { fault: number, target });
                }
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut next = last.clone();
        match action {
            Action::Step { actor, step } => next.take(actor, step),
            Action::Tick => next.world.tick(),
            Action::Fault { fault, target } => {
                if !self.scenario.faults[fault].strike(target, &mut next) {
                    return None;
                }
                next.faults_left -= 1;
            }
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut laws = vec![
            Property::always(P1_ATOMIC, |_, state: &State| {
                laws::is_atomic(&state.world.mongo.primary) && laws::is_atomic(&state.world.mongo.majority)
            }),
            Property::always(P1_PHANTOM, |_, state: &State| !state.world.ledger.wrongs.contains(PHANTOM)),
            Property::always(P1_ANSWER, |_, state: &State| laws::answers_are_true(&state.world)),
            Property::always(P2_LOSS, |_, state: &State| laws::nothing_is_lost(&state.world)),
            Property::always(P3_WINDOWS, |_, state: &State| !state.world.ledger.wrongs.contains(UNEXCUSED)),
            Property::always(P4_ORDER, |_, state: &State| !state.world.ledger.wrongs.contains(OVERTAKEN)),
            Property::always(P5_CALM, |model: &Self, state: &State| model.calm.ends(state)),
            Property::always(P7_LOW_WATER, |_, state: &State| laws::position_is_low_water(&state.world)),
            Property::always(P6_CONFLICT, |_, state: &State| {
                !state.world.ledger.wrongs.contains(FALSE_CONFLICT)
            }),
        ];
        if self.scenario.faults.is_empty() && self.scenario.is_prompt {
            laws.push(Property::always(P3_ONCE, |_, state: &State| state.world.ledger.most_copies() <= 1));
        }
        if self.scenario.setting.has_receivers {
            laws.push(Property::always(P3_EFFECT, |_, state: &State| laws::effects_are_single(&state.world)));
        }
        laws
    }
}
