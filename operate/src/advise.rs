//! Advises on the delay: which one keeps an objective, with which margin, and what breaks first.
//!
//! The formulas are those of docs/tuning-the-delay.md, "How late is late". Times are settings. The state of the
//! servers is measured.

use std::time::Duration;

use serde::Serialize;

use crate::{Operator, error::OperateError, status::CommandQueueState, text};

/// The shortest delay that the rescuer accepts.
const SHORTEST_DELAY: Duration = Duration::from_secs(1);

/// The times of the system, with the names of docs/tuning-the-delay.md.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Times {
    /// D, `delay` of the rescuer.
    pub delay: Duration,
    /// L, the inline lease of the application.
    pub inline_lease: Duration,
    /// C, `claim_lease` of the dispatcher.
    pub claim_lease: Duration,
    /// S, `sweep_interval` of the rescuer.
    pub sweep_interval: Duration,
}

impl Default for Times {
    /// The defaults of the services and of the library.
    fn default() -> Self {
        Self {
            delay: Duration::from_secs(15),
            inline_lease: Duration::from_secs(10),
            claim_lease: Duration::from_mins(1),
            sweep_interval: Duration::from_secs(10),
        }
    }
}

/// What the servers show now.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Measured {
    /// The time since when the longest due message is due.
    #[serde(serialize_with = "text::as_millis")]
    pub due_for: Option<Duration>,
    /// The time that the oplog covers; `None` if it is unknown or complete.
    #[serde(serialize_with = "text::as_millis")]
    pub oplog: Option<Duration>,
    /// The age of the oldest position.
    #[serde(serialize_with = "text::as_millis")]
    pub position_age: Option<Duration>,
    /// The number of waiting commands.
    pub commands: Option<u32>,
}

/// A case of docs/tuning-the-delay.md.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Case {
    /// The case.
    pub name: &'static str,
    /// How late a message is at most.
    #[serde(serialize_with = "millis")]
    pub late: Duration,
    /// Whether that is within the objective.
    pub is_kept: bool,
    /// The distance from the objective.
    #[serde(serialize_with = "millis")]
    pub margin: Duration,
    /// The longest delay that keeps the objective; `None` if no delay does.
    #[serde(serialize_with = "text::as_millis")]
    pub longest_delay: Option<Duration>,
}

/// The advice.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Advice {
    /// The objective: how late a message may be.
    #[serde(serialize_with = "millis")]
    pub objective: Duration,
    /// The times on which the advice is based.
    pub times: Times,
    /// What was measured.
    pub measured: Measured,
    /// The cases, the one that breaks first at the beginning.
    pub cases: Vec<Case>,
    /// The advice in sentences.
    pub sentences: Vec<String>,
}

fn millis<S: serde::Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    text::as_millis(&Some(*duration), serializer)
}

impl Operator {
    /// Advises on the delay for this objective.
    pub async fn advise(&self, objective: Duration, times: Times) -> Result<Advice, OperateError> {
        let status = self.status().await?;
        let ages = status.streams.iter().filter_map(|stream| Some(text::since(status.at?, stream.position?)));
        let commands = status.commands.as_ref().and_then(|queue| match queue.state {
            CommandQueueState::Exists { ready, .. } => Some(ready),
            _ => None,
        });
        let measured = Measured {
            due_for: crate::status::due_for(&status),
            oplog: status.oplog.limit(),
            position_age: ages.max(),
            commands,
        };
        Ok(advice(objective, times, measured))
    }
}

/// The advice for these times and measurements.
pub fn advice(objective: Duration, times: Times, measured: Measured) -> Advice {
    let Times { delay, inline_lease, claim_lease, sweep_interval } = times;
    let one_crash = if inline_lease < delay { delay } else { delay.max(inline_lease + sweep_interval) };
    let second = inline_lease.max(claim_lease) + sweep_interval;

    // With a longer delay than the inline lease, the stream finds the message at the delay.
    let longest_after_one = if inline_lease < objective { Some(objective) } else { None };
    let mut cases = vec![
        case("an application dies", one_crash, objective, longest_after_one),
        case(
            "a worker dies too, during the recovery",
            delay + second,
            objective,
            objective.checked_sub(second),
        ),
    ];
    cases.sort_by_key(|case| {
        (case.is_kept, if case.is_kept { case.margin } else { Duration::MAX.saturating_sub(case.margin) })
    });

    let sentences = sentences(objective, times, &measured, &cases);
    Advice { objective, times, measured, cases, sentences }
}

fn case(name: &'static str, late: Duration, objective: Duration, longest: Option<Duration>) -> Case {
    Case {
        name,
        late,
        is_kept: late <= objective,
        margin: late.abs_diff(objective),
        longest_delay: longest.filter(|delay| *delay >= SHORTEST_DELAY),
    }
}

fn sentences(objective: Duration, times: Times, measured: &Measured, cases: &[Case]) -> Vec<String> {
    let mut sentences = Vec::new();
    if let Some(first) = cases.first() {
        let margin = text::duration(first.margin);
        sentences.push(if first.is_kept {
            format!(
                "The objective is kept in every case; the smallest margin is {margin}, if {}.",
                first.name
            )
        } else {
            format!(
                "The objective breaks first in this case: if {}, a message is late by {margin} more than allowed.",
                first.name
            )
        });
        sentences.push(match first.longest_delay {
            Some(delay) if delay != times.delay => {
                format!("In that case, a delay of up to {} keeps it.", text::duration(delay))
            }
            Some(_) => "In that case, this is also the longest delay that keeps it.".to_owned(),
            None => format!(
                "No delay keeps it in that case, because the leases and the sweep alone take {}: shorten the claim \
                 lease.",
                text::duration(times.inline_lease.max(times.claim_lease) + times.sweep_interval)
            ),
        });
    }

    if times.inline_lease >= times.delay {
        sentences.push(
            "The inline lease should be shorter than the delay; otherwise the stream finds messages still claimed."
                .to_owned(),
        );
    }
    if let Some(window) = measured.oplog
        && times.delay * 2 >= window
    {
        sentences.push(format!(
            "The oplog covers only {}, less than twice the delay: enlarge it.",
            text::duration(window)
        ));
    }
    if let Some(late) = measured.due_for.filter(|late| *late > objective) {
        sentences.push(format!(
            "Now the objective is missed: a message has been due for {}. See the runbook \"Backlog\".",
            text::duration(late)
        ));
    }
    sentences.push(
        "The time in the command queue, retries and outages of a server are added to these figures."
            .to_owned(),
    );
    sentences
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// The figures of docs/tuning-the-delay.md, "Three examples".
    #[test]
    fn the_documented_examples_give_the_documented_figures() {
        let minute = Times { claim_lease: seconds(30), ..Times::default() };
        let late = |advice: &Advice, name: &str| {
            advice.cases.iter().find(|case| case.name.contains(name)).unwrap().late
        };
        let advised = advice(seconds(60), minute, Measured::default());
        assert_eq!(late(&advised, "application"), seconds(15));
        assert_eq!(late(&advised, "worker"), seconds(55));
        assert_eq!(advised.cases[0].margin, seconds(5), "the second crash breaks first");
        assert_eq!(advised.cases[0].longest_delay, Some(seconds(20)));

        let short = Times {
            delay: seconds(2),
            inline_lease: Duration::from_millis(1500),
            claim_lease: seconds(5),
            sweep_interval: seconds(1),
        };
        let advised = advice(seconds(5), short, Measured::default());
        assert_eq!((late(&advised, "application"), late(&advised, "worker")), (seconds(2), seconds(8)));
        assert!(!advised.cases[0].is_kept);
        assert_eq!(advised.cases[0].longest_delay, None, "the leases alone take longer");
    }

    #[test]
    fn an_inline_lease_above_the_delay_waits_for_the_sweep() {
        let times = Times { inline_lease: seconds(20), ..Times::default() };
        let advised = advice(seconds(120), times, Measured::default());
        let one = advised.cases.iter().find(|case| case.name.contains("application")).unwrap();
        assert_eq!(one.late, seconds(30));
        assert!(advised.sentences.iter().any(|sentence| sentence.contains("shorter than the delay")));
    }

    #[test]
    fn measurements_that_break_the_objective_are_reported() {
        let measured =
            Measured { due_for: Some(seconds(300)), oplog: Some(seconds(20)), ..Measured::default() };
        let advised = advice(seconds(60), Times::default(), measured);
        let text = advised.sentences.join(" ");
        assert!(text.contains("due for 5m00s") && text.contains("covers only 20s"), "{text}");
    }
}
