//! The keys of a helper attribute: `#[message(type = "order.paid")]`, `#[aggregate(outbox)]`.

use proc_macro2::Span;
use syn::{Attribute, Error, LitStr, Meta, Path, Result, meta::ParseNestedMeta, spanned::Spanned};

use crate::suggestion::did_you_mean;

/// A key that a helper attribute accepts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Key {
    pub(crate) name: &'static str,
    pub(crate) takes: Takes,
}

/// The value of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Takes {
    /// No value: the key alone is enough.
    Nothing,
    /// One text.
    Text,
    /// A string. The key can be given any number of times, each time with one string.
    Texts,
}

/// The keys that were given.
#[derive(Default)]
pub(crate) struct Options {
    given: Vec<Given>,
}

struct Given {
    key: &'static str,
    span: Span,
    text: Option<LitStr>,
}

impl Options {
    /// Reads all attributes with the name `helper`.
    ///
    /// # Errors
    /// An error for each key that is unknown or given twice, and for each value that its key doesn't accept.
    pub(crate) fn read(attributes: &[Attribute], helper: &str, keys: &[Key]) -> Result<Self> {
        let mut options = Self::default();
        let mut problems = Problems::default();

        for attribute in attributes.iter().filter(|attribute| attribute.path().is_ident(helper)) {
            if !matches!(attribute.meta, Meta::List(_)) {
                problems.add(attribute.span(), format!("write keys in parentheses: `#[{helper}(…)]`"));
                continue;
            }
            // Continue after a wrong key, so that later mistakes are reported too.
            let read = attribute.parse_nested_meta(|meta| {
                match options.given(&meta, helper, keys)? {
                    Ok(given) => options.given.push(given),
                    Err(problem) => problems.push(problem),
                }
                Ok(())
            });
            if let Err(syntax) = read {
                problems.push(syntax);
            }
        }

        problems.none_or(options)
    }

    /// Reads one key. The outer error is a syntax error, after which the rest of the attribute can't be read.
    fn given(&self, meta: &ParseNestedMeta, helper: &str, keys: &[Key]) -> Result<Result<Given>> {
        let name = written(&meta.path);
        let span = meta.path.span();
        let text =
            if meta.input.peek(syn::Token![=]) { Some(meta.value()?.parse::<LitStr>()?) } else { None };

        let Some(key) = keys.iter().find(|key| key.name == name) else {
            let candidates = keys.iter().map(|key| key.name);
            let known: Vec<_> = keys.iter().map(|key| format!("`{}`", key.name)).collect();
            let hint = did_you_mean(&name, candidates);
            let known = known.join(", ");
            return Ok(Err(Error::new(
                span,
                format!("unknown key `{name}` of `#[{helper}(…)]`{hint}; the known keys are {known}"),
            )));
        };
        if key.takes != Takes::Texts && self.given.iter().any(|given| given.key == key.name) {
            return Ok(Err(Error::new(span, format!("`{name}` is given twice"))));
        }

        match (&text, key.takes) {
            (Some(text), Takes::Nothing) => {
                Ok(Err(Error::new(text.span(), format!("`{name}` takes no value"))))
            }
            (None, Takes::Text | Takes::Texts) => {
                Ok(Err(Error::new(span, format!("`{name}` takes a string: `{name} = \"…\"`"))))
            }
            _ => Ok(Ok(Given { key: key.name, span, text })),
        }
    }

    /// Returns the text of a key.
    pub(crate) fn text(&self, key: &str) -> Option<&LitStr> {
        self.texts(key).next()
    }

    /// Returns the texts of a key that may be given more than once.
    pub(crate) fn texts(&self, key: &str) -> impl Iterator<Item = &LitStr> {
        self.given.iter().filter(move |given| given.key == key).filter_map(|given| given.text.as_ref())
    }

    /// Returns the source location of a key, if the key was given.
    pub(crate) fn place(&self, key: &str) -> Option<Span> {
        self.given.iter().find(|given| given.key == key).map(|given| given.span)
    }

    /// Returns the path of `document-outbox`, which is the value of the key `crate` or the default.
    pub(crate) fn library(&self) -> Result<Path> {
        match self.text("crate") {
            Some(path) => path.parse(),
            None => Ok(syn::parse_quote!(::document_outbox)),
        }
    }
}

/// Collects errors, so that all of them are reported.
#[derive(Debug, Default)]
pub(crate) struct Problems {
    all: Option<Error>,
}

impl Problems {
    pub(crate) fn add(&mut self, span: Span, sentence: impl std::fmt::Display) {
        self.push(Error::new(span, sentence));
    }

    pub(crate) fn push(&mut self, problem: Error) {
        match &mut self.all {
            Some(all) => all.combine(problem),
            None => self.all = Some(problem),
        }
    }

    /// Returns the value of a result. If the result is an error, collects the error and returns the default.
    pub(crate) fn or_default<T: Default>(&mut self, result: Result<T>) -> T {
        self.some(result).unwrap_or_default()
    }

    /// Returns the value of a result. If the result is an error, collects the error and returns `None`.
    pub(crate) fn some<T>(&mut self, result: Result<T>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(problem) => {
                self.push(problem);
                None
            }
        }
    }

    /// Returns the value, if no problem was collected.
    pub(crate) fn none_or<T>(self, value: T) -> Result<T> {
        match self.all {
            Some(problems) => Err(problems),
            None => Ok(value),
        }
    }
}

/// Returns a path as it is written in the source. A key is usually one word.
fn written(path: &Path) -> String {
    let segments: Vec<_> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
    segments.join("::")
}
