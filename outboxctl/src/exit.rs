//! The exit codes, which scripts can rely on.

use std::process::ExitCode;

use outbox_operate::OperateError;

use crate::output::OutputError;

/// How the program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Everything was done.
    Done = 0,
    /// An error, or a problem that `doctor` found.
    Failed = 1,
    /// The command line, the query or the settings have a mistake.
    Usage = 2,
    /// Nothing matched.
    NothingMatched = 3,
    /// A part was done.
    Partly = 4,
    /// It was refused: it would read a whole collection, or a privilege is missing.
    Refused = 5,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command has no result.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The settings have problems.
    #[error("{0}")]
    Settings(String),
    /// An argument has a wrong form.
    #[error("{0}")]
    Argument(String),
    /// An operation failed.
    #[error(transparent)]
    Operation(#[from] OperateError),
    /// The result could not be written.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// There is no such message or document.
    #[error("{0}")]
    NotFound(String),
}

impl Failure {
    /// The exit code.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Settings(_)
            | Self::Argument(_)
            | Self::Operation(
                OperateError::Query(_) | OperateError::Argument(_) | OperateError::PageToken(_),
            ) => Exit::Usage,
            Self::Operation(
                OperateError::NeedsScan { .. } | OperateError::Refused { .. } | OperateError::Forbidden(_),
            ) => Exit::Refused,
            Self::NotFound(_) | Self::Operation(OperateError::NotFound(_)) => Exit::NothingMatched,
            Self::Operation(_) | Self::Output(_) => Exit::Failed,
        }
    }
}
