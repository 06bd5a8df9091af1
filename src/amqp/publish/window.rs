//! Derives the outcome of each message of a window from the broker's answers, which may arrive in any order.
//!
//! The broker answers an unroutable message twice: it returns the message and then acknowledges it. The client attaches
//! a returned message to whichever confirm completes next, which may belong to another message. So the outcomes are
//! derived, and the next window starts, only after every confirm of the window has arrived or was given up. Returned
//! messages are matched by message id alone.

use std::collections::HashMap;

use crate::amqp::publish::publication::Published;

/// The broker's answer for one message of the window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Confirm {
    /// The broker has the message, or has returned it.
    Acked,
    /// The broker refuses the message.
    Nacked,
    /// There is no usable answer, because of a timeout or because the channel ended.
    Missing,
}

/// A message that the broker returned, attached to any confirm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Returned {
    /// The message's own id, if it has one.
    pub message_id: Option<String>,
    /// The broker's reply code.
    pub code: u16,
    /// The broker's reply text.
    pub text: String,
}

/// Returns the outcome of each message. `ids` are unique, and `answers` are in the order of `ids`. `failure` says why
/// answers are missing, if any are.
pub fn judge(ids: &[&str], answers: &[Confirm], returns: &[Returned], failure: &str) -> Vec<Published> {
    let returned: HashMap<&str, &Returned> =
        returns.iter().filter_map(|returned| Some((returned.message_id.as_deref()?, returned))).collect();
    let doubt = doubt(ids, answers, returns, &returned);
    let unknown = |reason: &str| Published::Unavailable { reason: reason.to_owned(), maybe_sent: true };
    let verdict = |(id, answer): (&&str, &Confirm)| match (returned.get(id), answer) {
        (Some(returned), _) => Published::Unroutable { code: returned.code, text: returned.text.clone() },
        (None, Confirm::Nacked) => Published::Nacked,
        (None, Confirm::Missing) => unknown(failure),
        (None, Confirm::Acked) => doubt.map_or(Published::Confirmed, unknown),
    };
    ids.iter().zip(answers).map(verdict).collect()
}

/// Returns the reason if, in this window, an acknowledgement without a returned message does not prove delivery.
fn doubt(
    ids: &[&str],
    answers: &[Confirm],
    returns: &[Returned],
    returned: &HashMap<&str, &Returned>,
) -> Option<&'static str> {
    let ours = returned.keys().filter(|id| ids.contains(id)).count();
    if ours < returns.len() {
        return Some("RabbitMQ returned a message that is not in the window");
    }
    // The client attaches at most one returned message to each acknowledgement. If message B was returned but has no
    // acknowledgement, its return was attached to the acknowledgement of another message A. Then A may have been
    // returned too, because the return of A may still wait in the client.
    let borrowed =
        |(id, answer): (&&str, &Confirm)| *answer == Confirm::Missing && returned.contains_key(*id);
    if ids.iter().zip(answers).any(borrowed) {
        return Some("the connection ended while returned messages were still coming in");
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn returned(id: Option<&str>) -> Returned {
        Returned { message_id: id.map(str::to_owned), code: 312, text: "NO_ROUTE".into() }
    }

    fn unroutable() -> Published {
        Published::Unroutable { code: 312, text: "NO_ROUTE".into() }
    }

    fn unknown(published: &Published) -> bool {
        matches!(published, Published::Unavailable { maybe_sent: true, .. })
    }

    #[test]
    fn a_return_counts_for_its_id_under_any_confirm() {
        let answers = [Confirm::Acked, Confirm::Acked, Confirm::Acked];
        let verdicts = judge(&["1", "2", "3"], &answers, &[returned(Some("2"))], "");
        assert_eq!(verdicts, [Published::Confirmed, unroutable(), Published::Confirmed]);
    }

    #[test]
    fn several_returned_messages_in_any_order_are_each_matched() {
        let answers = [Confirm::Acked, Confirm::Acked, Confirm::Acked];
        let verdicts = judge(&["1", "2", "3"], &answers, &[returned(Some("3")), returned(Some("1"))], "");
        assert_eq!(verdicts, [unroutable(), Published::Confirmed, unroutable()]);
    }

    #[test]
    fn nacks_and_missing_confirms_are_kept_apart() {
        let answers = [Confirm::Nacked, Confirm::Missing, Confirm::Acked];
        let verdicts = judge(&["1", "2", "3"], &answers, &[], "the channel ended");
        assert_eq!(verdicts[0], Published::Nacked);
        assert_eq!(
            verdicts[1],
            Published::Unavailable { reason: "the channel ended".into(), maybe_sent: true }
        );
        assert_eq!(verdicts[2], Published::Confirmed);
    }

    #[test]
    fn an_unknown_return_distrusts_all_acknowledgements() {
        for stranger in [returned(None), returned(Some("9"))] {
            let verdicts = judge(&["1", "2"], &[Confirm::Acked, Confirm::Nacked], &[stranger], "");
            assert!(unknown(&verdicts[0]), "{verdicts:?}");
            assert_eq!(verdicts[1], Published::Nacked);
        }
    }

    #[test]
    fn an_acknowledgement_carrying_an_unanswered_return_is_distrusted() {
        // The broker returns messages 2 and 3. The acknowledgement of message 3 carries the return of message 2. Then
        // the connection ends before the return of message 3 is seen.
        let answers = [Confirm::Missing, Confirm::Missing, Confirm::Acked];
        let verdicts = judge(&["1", "2", "3"], &answers, &[returned(Some("2"))], "lost");
        assert!(unknown(&verdicts[0]) && unknown(&verdicts[2]), "{verdicts:?}");
        assert_eq!(verdicts[1], unroutable());
    }
}
