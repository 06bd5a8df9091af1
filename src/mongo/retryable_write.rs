//! Sends retryable writes: one command is repeated until each of its statements has a clear answer.
//!
//! # Flow
//! A command is a *retryable write*: if it is repeated in the same session with the same transaction number, the server
//! executes only the statements that it has not executed before, and its reply covers all of them.
//! 1. *Execute.* The command has a time limit of one second on the server and waits only briefly for the majority.
//! 2. *Decide.* If it is unclear what was executed (no answer, or an interruption), the command is repeated. It is also
//!    repeated if some statements matched and others did not, because the reply to the repeat shows which ones matched.
//! 3. *Wait.* Executed statements wait for the majority without holding a connection or a
//!    [permit](crate::mongo::batching::BatchPermit), see [`majority`](crate::mongo::majority).
//!
//! # Guarantees
//! - The answer "nothing was written" is given only if a statement was never sent, or if a clear reply states that the
//!   statement was not executed. If the whole command is refused, an earlier try may still have been executed.
//! - A statement without a clear answer by its deadline counts as unknown.
//! - A document that is locked, for example by an open transaction, doesn't delay other documents. Once a command has
//!   taken one second on the server, its statements are sent one by one, and statements on locked documents are sent
//!   last. No connection is held between tries.
//!
//! # Caveats
//! Replies from mongos have no optime, so the command is repeated with a longer wait for the majority.

use std::{collections::VecDeque, time::Duration};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use mongodb::{
    Client, Namespace,
    bson::{Document, doc},
    error::{Error as DriverError, ErrorKind},
};
use tokio::time::{Instant, sleep, timeout_at};

use crate::{
    encoding::codec,
    mongo::{
        batching::BatchPermit,
        concern::MAJORITY_TIMEOUT,
        deadline::no_answer,
        departure::leave_for_a_server,
        doubt::{AfterFailure, GivenUp, after_failure, given_up},
        error_codes,
        majority::{Majority, MajorityState, OpTime},
        reply::{OUT_OF_TIME, Reply, Said},
        session::{Session, Sessions},
        statement::WriteOutcome,
        write_command::{Retry, WriteCommand, WriteKind, millis},
        write_request::AskedWrite,
    },
};

/// The server's time limit for a command. A command that takes longer has met a locked document.
const LONGEST: Duration = Duration::from_secs(1);
/// The server's time limit for a statement that is sent alone because a document of its batch is locked.
const LONGEST_APART: Duration = Duration::from_millis(100);
/// The time that a command waits for the majority while it holds its connection.
const BRIEFLY: Duration = Duration::from_millis(250);
/// The pause before a locked document is retried.
const HELD_PAUSE: Duration = Duration::from_millis(10);
/// The first pause before a command is repeated for a reason other than a locked document.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Sends retryable writes, which share sessions and one view of the majority.
pub(crate) struct RetryableWrites {
    pub(crate) client: Client,
    sessions: Sessions,
    majority: Majority,
}

impl RetryableWrites {
    pub(crate) fn new(client: Client) -> Self {
        Self { sessions: Sessions::new(client.clone()), majority: Majority::new(client.clone()), client }
    }

    /// Sends writes of one kind on one collection and answers each. Returns the writes that were refused as a whole and
    /// have certainly not been executed.
    pub(crate) async fn send(&self, writes: Vec<AskedWrite>, permit: Option<BatchPermit>) -> Vec<AskedWrite> {
        let Some(first) = writes.first() else { return writes };
        let (kind, namespace) = (first.request.kind, first.request.namespace.clone());
        let mut deadline = first.request.deadline;
        for write in &writes {
            deadline = deadline.max(write.request.deadline);
        }

        // All statements share the session's next transaction number. If there is no session, no statement was sent.
        let session = match self.sessions.take().await {
            Ok(session) => session,
            Err(error) => {
                for write in writes {
                    write.answer(WriteOutcome::Failed(error_codes::not_sent(error.to_string())));
                }
                return Vec::new();
            }
        };

        let mut batch = Batch {
            shared: self,
            session,
            kind,
            namespace,
            open: (0..).zip(writes).map(|(place, write)| Open::new(place, write)).collect(),
            executed: Vec::new(),
            written_at: None,
            refused: Vec::new(),
            manner: SendForm::default(),
            permit,
            pauses: pauses(),
            deadline,
            is_foreign: false,
            last_error: None,
        };
        batch.run().await;

        // If another program has used one of the session's transaction numbers, the whole session is unusable.
        if !batch.is_foreign {
            self.sessions.put_back(batch.session);
        }
        batch.refused
    }
}

fn pauses() -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(FIRST_PAUSE)
        .with_max_delay(LONGEST_PAUSE)
        .with_jitter()
        .without_max_times()
        .build()
}

/// A statement that has no answer yet.
struct Open {
    /// The statement's id in every command of the batch.
    place: i32,
    write: AskedWrite,
    /// Whether a command without a clear reply may have executed the statement.
    in_doubt: bool,
    /// Whether the statement took too long when it was sent alone.
    is_held: bool,
}

impl Open {
    fn new(place: i32, write: AskedWrite) -> Self {
        Self { place, write, in_doubt: false, is_held: false }
    }

    fn has_left(&self) -> bool {
        self.write.request.departure.has_left()
    }
}

/// How the next command is sent.
#[derive(Default, Clone, Copy)]
struct SendForm {
    /// Whether each statement is sent alone.
    apart: bool,
    /// Whether the command is repeated only to find out which statements matched.
    asking: bool,
    /// Whether to wait fully for the majority, because no reply contains the optime.
    patient: bool,
}

struct Batch<'a> {
    shared: &'a RetryableWrites,
    session: Session,
    kind: WriteKind,
    namespace: Namespace,
    open: VecDeque<Open>,
    /// The executed statements, each with the outcome to report once the majority has the write.
    executed: Vec<(Open, WriteOutcome)>,
    /// The optime that the majority must reach before the executed statements are answered.
    written_at: Option<OpTime>,
    refused: Vec<AskedWrite>,
    manner: SendForm,
    /// The permit, kept while the server works on the batch.
    permit: Option<BatchPermit>,
    pauses: ExponentialBackoff,
    deadline: Instant,
    /// Whether another program used the session's transaction number for this batch.
    is_foreign: bool,
    last_error: Option<DriverError>,
}

/// The next step after a command.
enum NextTry {
    AtOnce,
    Pause(Duration),
    GiveUp,
}

impl Batch<'_> {
    async fn run(&mut self) {
        loop {
            self.open.retain(|open| !open.write.is_abandoned());

            // Statements on locked documents are sent last, so that the answers of other statements don't wait for
            // them.
            if !self.executed.is_empty() && self.open.front().is_none_or(|open| open.is_held) {
                self.confirm().await;
                continue;
            }
            if self.open.is_empty() {
                return;
            }

            match self.step().await {
                NextTry::AtOnce => {}
                NextTry::Pause(pause) if Instant::now() + pause < self.deadline => sleep(pause).await,
                NextTry::Pause(_) | NextTry::GiveUp => return self.give_up(),
            }
        }
    }

    /// Sends a command and evaluates its outcome.
    async fn step(&mut self) -> NextTry {
        let count = if self.manner.apart { 1 } else { self.open.len() };
        let is_first = !self.open.iter().any(Open::has_left);

        let sent = match timeout_at(self.deadline, self.send(count)).await {
            Ok(sent) => sent.and_then(|reply| Reply::read(&reply)),
            Err(_elapsed) => {
                self.doubt(count);
                return NextTry::GiveUp;
            }
        };

        match sent {
            Ok(reply) if is_first && reply.is_repeated() => {
                // Another program has used the transaction number, so the answers are not about these statements.
                self.is_foreign = true;
                self.doubt(count);
                self.last_error = Some(error_codes::lost("the server treated a new write as a repeated one"));
                NextTry::GiveUp
            }
            Ok(reply) => self.heard(reply, count),
            Err(error) => {
                let next = self.failed(&error, count);
                self.last_error = Some(error);
                next
            }
        }
    }

    /// Handles a reply.
    fn heard(&mut self, reply: Reply, count: usize) -> NextTry {
        let asking = std::mem::take(&mut self.manner.asking);
        let places: Vec<i32> = self.open.iter().take(count).map(|open| open.place).collect();
        let is_repeated = reply.is_repeated();

        // If the majority has not acknowledged yet, keep the answer until the majority has reached the reply's optime.
        // A reply without an optime is inconclusive.
        if let Some(concern) = &reply.concern {
            self.last_error = Some(error_codes::lost(&concern.text));
            self.doubt(count);
            match reply.written_at {
                Some(at) if concern.is_late => {
                    self.written_at = Some(self.written_at.map_or(at, |before| before.max(at)));
                }
                _ => {
                    self.manner.patient |= concern.is_late;
                    return self.pause();
                }
            }
        }

        match reply.of(&places) {
            Said::Each(each) => self.note(each),
            Said::Some => {
                self.doubt(count);
                // If the server doesn't report which statements were repeated, send the statements one by one.
                self.manner.apart |= asking && !is_repeated;
                self.manner.asking = !asking;
                NextTry::AtOnce
            }
            Said::Nonsense => {
                self.doubt(count);
                self.last_error = Some(error_codes::lost("the reply's counts are inconsistent"));
                self.pause()
            }
        }
    }

    /// Answers the statements of this command, or keeps the outcomes until the majority has the writes.
    fn note(&mut self, each: Vec<Option<WriteOutcome>>) -> NextTry {
        let mut interrupted = false;
        for outcome in each {
            let Some(mut open) = self.open.pop_front() else { break };
            match outcome {
                // The majority may not have the write yet.
                Some(outcome) if self.written_at.is_some() => self.executed.push((open, outcome)),
                Some(outcome) => open.write.answer(outcome),
                None => {
                    interrupted = true;
                    open.in_doubt = true;
                    self.open.push_back(open);
                }
            }
        }

        if interrupted { self.pause() } else { NextTry::AtOnce }
    }

    /// Handles a missing reply, or a reply that refuses the whole command.
    fn failed(&mut self, error: &DriverError, count: usize) -> NextTry {
        let is_in_doubt = self.open.iter().take(count).any(|open| open.in_doubt);
        // The client was shut down, so an answer will never arrive.
        if matches!(*error.kind, ErrorKind::Shutdown) {
            return NextTry::GiveUp;
        }

        match after_failure(error_codes::verdict(error), is_in_doubt) {
            AfterFailure::Repeat => self.pause(),
            AfterFailure::NotSent => {
                for open in self.open.drain(..count) {
                    open.write.answer(WriteOutcome::Failed(error.clone()));
                }
                NextTry::AtOnce
            }
            AfterFailure::InDoubt => {
                self.doubt(count);
                if error_codes::code(error) != Some(OUT_OF_TIME) {
                    return self.pause();
                }

                // Move a statement on a locked document behind the other statements.
                if self.manner.apart || count == 1 {
                    self.open.front_mut().into_iter().for_each(|open| open.is_held = true);
                    self.open.rotate_left(1);
                }
                self.manner.apart = true;
                NextTry::Pause(HELD_PAUSE)
            }
            AfterFailure::RepeatApart => {
                self.manner.apart = true;
                self.open.rotate_left(1);
                self.pause()
            }
            AfterFailure::Refused => {
                self.refused.extend(self.open.drain(..count).map(|open| open.write));
                NextTry::AtOnce
            }
        }
    }

    /// Waits until the majority has the executed statements, and answers these statements.
    async fn confirm(&mut self) {
        self.permit = None;
        let executed = std::mem::take(&mut self.executed);
        let Some(written_at) = self.written_at.take() else { return };

        match timeout_at(self.deadline, self.shared.majority.wait(written_at)).await {
            Ok(MajorityState::Lasts) => {
                for (open, outcome) in executed {
                    open.write.answer(outcome);
                }
            }
            // Repeat the statements; the new primary either has executed them already or executes them now.
            Ok(MajorityState::NewTerm) => self.open.extend(executed.into_iter().map(|(open, _)| open)),
            Err(_elapsed) => {
                for (open, outcome) in executed {
                    open.write.answer(unless_it_may_last(outcome, self.last_error.as_ref()));
                }
            }
        }
    }

    async fn send(&mut self, count: usize) -> Result<Document, DriverError> {
        let (concern, longest) = self.concern();
        let mut statements = Vec::with_capacity(count);
        let mut places = Vec::with_capacity(count);
        let mut leaving = Vec::with_capacity(count);
        for open in self.open.iter().take(count) {
            statements.push(open.write.request.statement.as_ref());
            places.push(open.place);
            leaving.push(open.write.request.departure.clone());
        }

        let command = WriteCommand {
            kind: self.kind,
            collection: &self.namespace.coll,
            statements,
            retry: Some(Retry { number: self.session.number, places }),
            concern,
            longest,
        };
        let command = codec::encode(&command).map_err(|error| error_codes::unencodable(error.to_string()))?;

        let database = self.shared.client.database(&self.namespace.db);
        let session = &mut self.session.session;
        let criteria = leave_for_a_server(leaving);
        database.run_raw_command(command).session(session).selection_criteria(criteria).await
    }

    /// Returns the write concern and the server's time limit for the next command.
    fn concern(&self) -> (Document, Duration) {
        let is_held = self.open.front().is_some_and(|open| open.is_held);
        let longest = if self.manner.apart && !is_held { LONGEST_APART } else { LONGEST };
        if self.manner.patient {
            (majority_within(MAJORITY_TIMEOUT), MAJORITY_TIMEOUT + LONGEST)
        } else if self.manner.asking {
            (doc! { "w": 1 }, longest)
        } else if self.manner.apart {
            // The statements wait for the majority together, after each has been executed.
            (majority_within(Duration::from_millis(1)), longest)
        } else {
            (majority_within(BRIEFLY), longest)
        }
    }

    /// Marks the first `count` statements that were sent as possibly executed.
    fn doubt(&mut self, count: usize) {
        for open in self.open.iter_mut().take(count) {
            open.in_doubt |= open.has_left();
        }
    }

    fn pause(&mut self) -> NextTry {
        NextTry::Pause(self.pauses.next().unwrap_or(LONGEST_PAUSE))
    }

    /// Answers the remaining statements as unknown, because no clear reply arrived in time.
    fn give_up(&mut self) {
        let error = self.last_error.take().unwrap_or_else(|| error_codes::lost(no_answer()));
        for (open, outcome) in std::mem::take(&mut self.executed) {
            open.write.answer(unless_it_may_last(outcome, Some(&error)));
        }

        for open in std::mem::take(&mut self.open) {
            let outcome = match given_up(open.in_doubt) {
                GivenUp::Unknown => WriteOutcome::Unknown(error.clone()),
                GivenUp::NotSent => WriteOutcome::Failed(error_codes::not_sent(error.to_string())),
            };
            open.write.answer(outcome);
        }
    }
}

fn majority_within(time: Duration) -> Document {
    doc! { "w": "majority", "wtimeout": millis(time) }
}

/// Returns the outcome of a write that the majority did not confirm in time.
fn unless_it_may_last(outcome: WriteOutcome, error: Option<&DriverError>) -> WriteOutcome {
    match outcome {
        WriteOutcome::Done => {
            WriteOutcome::Unknown(error.cloned().unwrap_or_else(|| error_codes::lost(no_answer())))
        }
        other => other,
    }
}
