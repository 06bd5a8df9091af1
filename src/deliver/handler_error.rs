//! The failure of a function that handles a message.

use std::fmt;

/// A handler's failure. Its text is stored with the message and shown to operators, so it must not contain a
/// payload or a secret.
///
/// The operator `?` converts any error to [`Transient`](Self::Transient), with the texts of the error and of its
/// sources.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HandlerError {
    /// The handler may succeed later.
    Transient(String),
    /// The handler can never succeed. The message dies at once, unless another handler of the message
    /// failed with an error of another kind.
    Permanent(String),
    /// Something that the handler needs is unavailable, so other messages would fail too. No attempt is counted.
    Unavailable(String),
}

impl HandlerError {
    /// Creates an error for a handler that may succeed later.
    pub fn transient(reason: impl Into<String>) -> Self {
        Self::Transient(reason.into())
    }

    /// Creates an error for a handler that can never succeed.
    pub fn permanent(reason: impl Into<String>) -> Self {
        Self::Permanent(reason.into())
    }

    /// Creates an error for a handler that needs something that is unavailable.
    pub fn unavailable(reason: impl Into<String>) -> Self {
        Self::Unavailable(reason.into())
    }
}

// `HandlerError` itself does not implement `std::error::Error`, because that would overlap with this implementation.
impl<E: std::error::Error> From<E> for HandlerError {
    fn from(error: E) -> Self {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            let cause_text = cause.to_string();
            // Skip the source if the error's own text already contains the text of the source, which is the case for
            // many errors.
            if !text.contains(&cause_text) {
                text = format!("{text}: {cause_text}");
            }
            source = cause.source();
        }
        Self::Transient(text)
    }
}

impl fmt::Display for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Transient(reason) | Self::Permanent(reason) | Self::Unavailable(reason)) = self;
        f.write_str(reason)
    }
}
