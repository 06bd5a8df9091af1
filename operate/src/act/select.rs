//! Selects the messages of an act, and shows them before anything happens.

use serde::Serialize;

use super::{Act, ActRequest, Force, HIGHEST_CEILING, Target};
use crate::{Operator, error::OperateError, list::Row, state::MessageState};

/// The number of messages that a preview shows.
const SAMPLE: usize = 20;
/// The reason for which messages are left out of a replay unless it is named.
const CRASHED: &str = "crashed";

/// What an act would do.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Preview {
    /// The act.
    pub act: Act,
    /// The number of messages that it takes, at most one more than the ceiling.
    pub messages: usize,
    /// Whether there are more messages than the ceiling allows.
    pub is_above_ceiling: bool,
    /// The first of the messages.
    pub sample: Vec<Row>,
    /// Messages that meet the query and are left out; only the first ones.
    pub skipped: Vec<Skipped>,
    /// What to know before the act, in sentences.
    pub warnings: Vec<String>,
}

/// A message that is left out.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Skipped {
    /// The message.
    pub message: Row,
    /// Why.
    pub because: String,
}

/// The messages of an act.
#[derive(Debug, Default)]
pub(super) struct Selection {
    pub(super) targets: Vec<Target>,
    pub(super) skipped: Vec<Skipped>,
    pub(super) is_above_ceiling: bool,
}

impl Operator {
    /// Shows which messages an act takes. Nothing is written.
    pub async fn preview(&self, request: &ActRequest) -> Result<Preview, OperateError> {
        let selection = self.select(request).await?;
        let sample = selection.targets.iter().take(SAMPLE).map(|target| target.shown.clone());
        Ok(Preview {
            act: request.act,
            messages: selection.targets.len(),
            is_above_ceiling: selection.is_above_ceiling,
            sample: sample.collect(),
            warnings: warnings(request.act),
            skipped: selection.skipped,
        })
    }

    pub(super) async fn select(&self, request: &ActRequest) -> Result<Selection, OperateError> {
        check(request)?;
        let mut query = request.query.clone();
        // With ids, messages in another state are found as well, so that the answer names their state.
        if query.states.is_empty() && query.ids.is_empty() {
            query.states = request.act.takes().to_vec();
        }

        let mut selection = Selection::default();
        let mut lister = self.lister(query, None, request.scan).await?;
        while let Some((document, row)) = lister.next_message().await? {
            if let Some(because) = why_not(request, &row) {
                if selection.skipped.len() < SAMPLE {
                    selection.skipped.push(Skipped { message: row, because });
                }
                continue;
            }
            if selection.targets.len() == request.ceiling {
                selection.is_above_ceiling = true;
                break;
            }
            selection.targets.push(Target { document, shown: row });
        }
        Ok(selection)
    }
}

fn check(request: &ActRequest) -> Result<(), OperateError> {
    if request.query.is_empty() {
        return Err(OperateError::Forbidden(
            "a query without conditions would take every message; name ids, or give conditions".to_owned(),
        ));
    }
    if request.act == Act::Release && request.force == Force::Never {
        return Err(OperateError::Forbidden(
            "a claim that has not ended belongs to a process that may still deliver the message, so a release can \
             deliver it twice; accept that with --force"
                .to_owned(),
        ));
    }
    if request.ceiling == 0 || request.ceiling > HIGHEST_CEILING {
        return Err(OperateError::Argument(format!("the ceiling must be between 1 and {HIGHEST_CEILING}")));
    }
    Ok(())
}

/// Why an act does not take a message.
fn why_not(request: &ActRequest, row: &Row) -> Option<String> {
    let act = request.act;
    if !act.takes().contains(&row.state) {
        let states: Vec<&str> = act.takes().iter().map(|state| state.as_str()).collect();
        return Some(format!("it is {}; {act} takes messages that are {}", row.state, states.join(" or ")));
    }

    if act == Act::Kill && row.claimed_by.is_some() {
        return Some(
            "its claim has ended, but the claim's holder may still deliver it; try again when a worker has taken it over"
                .to_owned(),
        );
    }

    let is_crashed = row.dead_reason.as_deref() == Some(CRASHED);
    let is_named =
        !request.query.ids.is_empty() || request.query.reasons.iter().any(|reason| reason == CRASHED);
    if act == Act::Replay && row.state == MessageState::Dead && is_crashed && !is_named {
        return Some(
            "it ended the processes that delivered it; name it by its id, or with reason:crashed".to_owned(),
        );
    }
    None
}

fn warnings(act: Act) -> Vec<String> {
    let warning = match act {
        Act::Replay => {
            "A replayed message keeps its id: a receiver whose inbox still has that id ignores it, and a receiver \
             whose record of it has expired applies it again."
        }
        Act::Discard => "The messages are kept in the archive, from which they can be restored.",
        Act::Kill => {
            "A dead message no longer blocks the later messages of its document, which may overtake it."
        }
        Act::Release => "If the holder of a claim still works, its message is delivered twice.",
        Act::Restore | Act::Reveal => return Vec::new(),
    };
    vec![warning.to_owned()]
}
