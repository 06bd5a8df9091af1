//! Formats an error together with its sources.

use std::{error::Error, fmt};

/// An error and its sources on one line.
pub(crate) struct Chain<'a>(pub(crate) &'a (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;

        let mut source = self.0.source();
        while let Some(cause) = source {
            write!(f, ": {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_prints_its_sources_on_one_line() {
        #[derive(Debug, thiserror::Error)]
        #[error("can't start")]
        struct Outer(#[source] std::io::Error);

        let error = Outer(std::io::Error::other("no disk"));
        assert_eq!(Chain(&error).to_string(), "can't start: no disk");
    }
}
