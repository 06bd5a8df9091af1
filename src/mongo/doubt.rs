//! Decides what follows for the statements of a command that got no clear answer. The repeats themselves are made
//! elsewhere.
//!
//! A statement may be reported as not written only if no try can have executed it. An error answers only the last try;
//! an earlier try may have executed the statement although its answer was lost. A statement that an earlier try may
//! have executed is *in doubt*.

use crate::mongo::error_codes::Verdict;

/// The next step after a command that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterFailure {
    /// No statement was ever sent. Each statement gets the error as its answer.
    NotSent,
    /// The command was refused, and no statement was executed. Each statement is sent alone.
    Refused,
    /// The command may have been executed. Its statements are in doubt, and the command is repeated.
    InDoubt,
    /// The outcome of an earlier try is unknown. The command is repeated.
    Repeat,
    /// The outcome of an earlier try is unknown, and the refusal may concern only one of the statements. The statements
    /// are repeated one by one.
    RepeatApart,
}

/// Decides the next step from the error of this try, and from whether an earlier try left the statements in
/// doubt.
pub fn after_failure(error: Verdict, is_in_doubt: bool) -> AfterFailure {
    match error {
        Verdict::Unknown => AfterFailure::InDoubt,
        Verdict::NotSent if is_in_doubt => AfterFailure::Repeat,
        Verdict::NotSent => AfterFailure::NotSent,
        Verdict::Duplicate | Verdict::TooLarge | Verdict::Refused if is_in_doubt => AfterFailure::RepeatApart,
        Verdict::Duplicate | Verdict::TooLarge | Verdict::Refused => AfterFailure::Refused,
    }
}

/// The outcome of a statement that got no clear answer by its deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GivenUp {
    /// The statement may have been executed.
    Unknown,
    /// The statement was never sent.
    NotSent,
}

/// Returns the outcome, which depends on whether a try left the statement in doubt.
pub fn given_up(is_in_doubt: bool) -> GivenUp {
    if is_in_doubt { GivenUp::Unknown } else { GivenUp::NotSent }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_does_not_decide_an_earlier_try() {
        for refusal in [Verdict::Refused, Verdict::TooLarge, Verdict::Duplicate] {
            assert_eq!(after_failure(refusal, false), AfterFailure::Refused);
            assert_eq!(after_failure(refusal, true), AfterFailure::RepeatApart);
        }
        assert_eq!(after_failure(Verdict::NotSent, false), AfterFailure::NotSent);
        assert_eq!(after_failure(Verdict::NotSent, true), AfterFailure::Repeat);
        assert_eq!(after_failure(Verdict::Unknown, false), AfterFailure::InDoubt);
        assert_eq!((given_up(true), given_up(false)), (GivenUp::Unknown, GivenUp::NotSent));
    }
}
