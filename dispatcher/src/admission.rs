//! Decides which deliveries are commands for this worker.
//!
//! Any user that can publish to the commands exchange can write anything there. So a delivery is refused
//! unless it is exactly a command for a watched collection. An admitted command grants no rights: it only
//! makes a worker read a document that the worker would read anyway.

use document_outbox::command::{COMMAND_TYPE, CommandError, ProcessDocumentMessages};
use mongodb::Namespace;
use outbox_service::NamespacePattern;

/// The maximum length of a name that a refusal quotes, in characters.
const LONGEST: usize = 80;

/// Why a delivery was rejected. If names in the body could be parsed, the text quotes them; it quotes
/// nothing else from the body.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The AMQP property `type` is not the type of commands.
    #[error("the property `type` is not `{COMMAND_TYPE}`")]
    WrongType,
    /// The body is not a command.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// This worker does not watch the collection. Contains the collection's shortened name.
    #[error("the collection {0} is not watched")]
    NotWatched(String),
}

/// Parses a delivery as a command for one of the watched collections.
pub(crate) fn admit(
    message_type: Option<&str>,
    body: &[u8],
    watch: &[NamespacePattern],
) -> Result<ProcessDocumentMessages, Refusal> {
    if message_type.is_some_and(|text| text != COMMAND_TYPE) {
        return Err(Refusal::WrongType);
    }

    let command = ProcessDocumentMessages::from_json(body)?;
    let namespace = &command.document.namespace;
    if !NamespacePattern::any_matches(watch, &namespace.db, &namespace.coll) {
        return Err(Refusal::NotWatched(shown(namespace)));
    }

    Ok(command)
}

/// Shortens a name from an untrusted source to one short line.
fn shown(namespace: &Namespace) -> String {
    let text: String = namespace.to_string().chars().take(LONGEST).collect();
    format!("{text:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: &[u8] =
        br#"{"database":"shop","collection":"orders","document_key":{"_id":"secret"},"reason":"sweep"}"#;

    fn ask(message_type: Option<&str>, watch: &str) -> Result<(), Refusal> {
        admit(message_type, BODY, &[watch.parse().unwrap()]).map(drop)
    }

    #[test]
    fn a_command_may_have_no_other_type() {
        assert_eq!(ask(None, "shop.orders"), Ok(()));
        assert_eq!(ask(Some(COMMAND_TYPE), "shop.*"), Ok(()));
        assert_eq!(ask(Some("DropDatabase"), "shop.*"), Err(Refusal::WrongType));
    }

    #[test]
    fn an_unwatched_collection_is_refused_by_name() {
        let refusal = ask(None, "shop.stock").unwrap_err();
        assert_eq!(refusal.to_string(), r#"the collection "shop.orders" is not watched"#);
    }

    #[test]
    fn a_foreign_name_stays_on_one_line() {
        let text = shown(&Namespace::new("shop", format!("a\nb{}", "x".repeat(500))));
        assert!(!text.contains('\n') && text.len() < 100, "{text}");
    }
}
