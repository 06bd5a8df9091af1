//! The verdict of a command without a clean answer on its statements, kept apart from the repeats that follow.
//!
//! "Nothing was written" may only be said of a statement that is certain not to have been executed. An error answers one try;
//! an earlier one may have been executed, and its answer lost. Such a statement is *in doubt*.

use crate::mongo::error_codes::Verdict;

/// What follows a command that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterFailure {
    /// No statement has left: each can have the error at once.
    NotSent,
    /// The command was refused, and no statement was executed: each goes alone.
    Refused,
    /// The command may have been executed: its statements are in doubt, and it is repeated.
    InDoubt,
    /// The outcome of an earlier try is unknown: the command is repeated.
    Repeat,
    /// The same, and the refusal may concern one statement of several: they are repeated one by one.
    RepeatApart,
}

/// Decides by what the error says of this try, and by whether an earlier one left its statements in doubt.
pub fn after_failure(error: Verdict, is_in_doubt: bool) -> AfterFailure {
    match error {
        Verdict::Unknown => AfterFailure::InDoubt,
        Verdict::NotSent if is_in_doubt => AfterFailure::Repeat,
        Verdict::NotSent => AfterFailure::NotSent,
        Verdict::Duplicate | Verdict::TooLarge | Verdict::Refused if is_in_doubt => AfterFailure::RepeatApart,
        Verdict::Duplicate | Verdict::TooLarge | Verdict::Refused => AfterFailure::Refused,
    }
}

/// The verdict on a statement that had no clean answer by its deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GivenUp {
    /// It may have been executed.
    Unknown,
    /// It never left.
    NotSent,
}

/// Decides by whether a try left the statement in doubt.
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
