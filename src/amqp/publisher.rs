//! Publishing in windows, with confirms.
//!
//! # Flow
//!
//! Callers hand their messages to the supervisor and wait. While one window is in flight the next one
//! gathers; when all confirms of the first are in, whatever waits goes out at once. So a lone message waits for
//! nothing and a thousand callers share round trips, without a timer.
//!
//! # What happens when it fails
//!
//! - The channel or the connection ends: what had no definite answer is unavailable and may have been sent,
//!   what still waited was not; a fresh connection is made.
//! - The confirms do not come in time: the same. If the broker is blocked the connection is kept, since a fresh
//!   one would not be told of the alarm, and replaced once the alarm is over.
//! - There is no connection: everything is unavailable at once. A connection that was made, with its channel
//!   and topology, is what ends this; nobody's message is the probe.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::{FutureExt, StreamExt, stream::FuturesUnordered};
use lapin::{
    BasicProperties, Channel, Confirmation,
    options::{BasicPublishOptions, ConfirmSelectOptions},
    types::{AMQPValue, FieldTable, LongString, ShortString},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, MissedTickBehavior, interval, sleep, timeout, timeout_at},
};

use super::{
    AmqpSettings, Publication, Published, State, Topology,
    backlog::{Backlog, Item, Request},
    connection::{Link, Plan, Trouble, Weather, broker_said, code_of},
    publication::Limits,
    state::{Board, Pauses, wait_closed, wait_ready},
    window::{Answer, Returned, judge},
};

/// Publishes messages and says what became of each. Clones share one connection, which ends with the last.
#[derive(Clone, Debug)]
pub struct Publisher {
    commands: mpsc::UnboundedSender<Command>,
    states: watch::Receiver<State>,
    known: Arc<Known>,
}

#[derive(Debug)]
enum Command {
    Publish(Request),
    Close,
}

/// Limits of the broker, as far as known by now.
#[derive(Debug)]
struct Known {
    body: AtomicUsize,
    frame: AtomicUsize,
}

impl Publisher {
    /// Starts connecting in the background and returns at once.
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    #[must_use]
    pub fn start(settings: AmqpSettings, topology: Topology) -> Self {
        let known = Arc::new(Known {
            body: AtomicUsize::new(settings.max_message_bytes),
            frame: AtomicUsize::new(FRAME_MAX),
        });
        let plan = Arc::new(Plan { settings, topology, role: "publisher" });
        let board = Board::new(plan.name());
        let states = board.watch();
        let (commands, inbox) = mpsc::unbounded_channel();
        let (backlog, abandoned) = (Backlog::default(), false);
        tokio::spawn(Supervisor { plan, inbox, board, known: known.clone(), backlog, abandoned }.run());
        Self { commands, states, known }
    }

    /// Publishes, and answers for each message in its place.
    ///
    /// Never fails and never waits for a connection. Waits for the window before, and for this one, each at most
    /// [`confirm_timeout`](AmqpSettings::confirm_timeout). Messages of one call go out in their order, but
    /// a failed one does not hold back those behind it. If this future is dropped, messages may still be published.
    pub async fn publish(&self, publications: Vec<Publication>) -> Vec<Published> {
        let limits = self.known.limits();
        let flaws: Vec<_> = publications.iter().map(|publication| publication.flaw(limits)).collect();
        let sound = publications.into_iter().zip(&flaws).filter(|(_, flaw)| flaw.is_none());
        let sound: Vec<_> = sound.map(|(publication, _)| publication).collect();
        let mut answers = self.hand_over(sound).await.into_iter();
        let mut lost = || Published::Unavailable { reason: GONE.to_owned(), maybe_sent: true };
        let refused = |reason| Published::Refused { reason };
        let answer =
            |flaw: Option<String>| flaw.map_or_else(|| answers.next().unwrap_or_else(&mut lost), refused);
        flaws.into_iter().map(answer).collect()
    }

    async fn hand_over(&self, publications: Vec<Publication>) -> Vec<Published> {
        let count = publications.len();
        let unavailable =
            |reason: String, maybe_sent| vec![Published::Unavailable { reason, maybe_sent }; count];
        if count == 0 {
            return Vec::new();
        }
        let state = self.states.borrow().clone();
        if state != State::Ready {
            return unavailable(state.to_string(), false);
        }
        let (reply, answers) = oneshot::channel();
        if self.commands.send(Command::Publish(Request { publications, reply })).is_err() {
            return unavailable(State::Closed.to_string(), false);
        }
        answers.await.unwrap_or_else(|_| unavailable(GONE.to_owned(), true))
    }

    /// Whether a message published now would be sent.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        *self.states.borrow() == State::Ready
    }

    /// Waits until ready. False once that can never be again, after [`close`](Self::close).
    pub async fn ready(&self) -> bool {
        wait_ready(self.states.clone()).await
    }

    /// The state, and every change of it from now on.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<State> {
        let mut states = self.states.clone();
        states.mark_unchanged();
        states
    }

    /// Publishes what was handed over before, then closes the connection, for all clones.
    pub async fn close(&self) {
        let _ = self.commands.send(Command::Close);
        wait_closed(self.states.clone()).await;
    }
}

impl Known {
    fn limits(&self) -> Limits {
        Limits { body: self.body.load(Ordering::Relaxed), frame: self.frame.load(Ordering::Relaxed) }
    }
}

/// A window closes at so many messages or bytes: enough to hide the round trip, small enough for its confirms
/// to come well within their time.
const WINDOW_MESSAGES: usize = 1000;
const WINDOW_BYTES: usize = 8 * 1024 * 1024;
/// RabbitMQ's default, until the first connection has negotiated.
const FRAME_MAX: usize = 131_072;
/// An idle connection is looked at this often, for ends that the client tells nobody of.
const PULSE: Duration = Duration::from_secs(1);
const GONE: &str = "the publisher has ended";

struct Supervisor {
    plan: Arc<Plan>,
    inbox: mpsc::UnboundedReceiver<Command>,
    board: Board,
    known: Arc<Known>,
    backlog: Backlog,
    /// A window was given up while blocked: its confirms may still come, so no other may follow on its channel.
    abandoned: bool,
}

/// Why a connection is no longer served.
enum End {
    Asked,
    Lost(String),
}

impl Supervisor {
    async fn run(mut self) {
        let settings = &self.plan.settings;
        let mut pauses = Pauses::new(settings.reconnect_min, settings.reconnect_max);
        loop {
            let Some(opened) = self.declining(open(self.plan.clone(), self.known.clone())).await else {
                break;
            };
            let lived = match opened {
                Ok(mut link) => {
                    let since = Instant::now();
                    self.board.post(State::Ready);
                    let end = self.serve(&mut link).await;
                    if let End::Lost(reason) = &end {
                        self.lost(reason);
                    }
                    let closed = self.declining(link.close()).await;
                    if closed.is_none() || matches!(end, End::Asked) {
                        break;
                    }
                    since.elapsed()
                }
                Err(trouble) => {
                    self.board.post(trouble.into());
                    Duration::ZERO
                }
            };
            let pause = pauses.after(lived);
            if self.declining(sleep(pause)).await.is_none() {
                break;
            }
        }
        self.board.post(State::Closed);
        self.inbox.close();
        while let Ok(command) = self.inbox.try_recv() {
            if let Command::Publish(request) = command {
                request.decline(&State::Closed.to_string());
            }
        }
    }

    /// Runs `work` while declining every request; none when asked to close.
    async fn declining<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        tokio::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return Some(done),
                command = self.inbox.recv() => match command {
                    Some(Command::Publish(request)) => request.decline(&self.board.state().to_string()),
                    Some(Command::Close) | None => return None,
                },
            }
        }
    }

    /// Publishes window after window until the connection is lost or nobody wants it any more.
    async fn serve(&mut self, link: &mut Link) -> End {
        self.abandoned = false;
        let mut closing = false;
        let mut pulse = interval(PULSE);
        pulse.set_missed_tick_behavior(MissedTickBehavior::Delay);
        if link.connection.status().blocked() {
            self.board.post(State::Blocked { reason: "noticed on connecting".to_owned() });
        }
        loop {
            closing |= self.gather().await;
            if closing && self.backlog.is_empty() {
                return End::Asked;
            }
            if self.backlog.is_empty() {
                tokio::select! {
                    biased;
                    weather = link.event() => if let Some(reason) = self.note(weather) {
                        return End::Lost(reason);
                    },
                    command = self.inbox.recv() => closing |= self.take(command),
                    _ = pulse.tick() => if !link.alive() {
                        return End::Lost("the connection ended".to_owned());
                    },
                }
                continue;
            }
            if let Err(reason) = self.publish(link).await {
                return End::Lost(reason);
            }
        }
    }

    /// Takes what waits in the inbox, up to a window; true when asked to close. With something to publish, those that are
    /// about to run come first: callers woken together would else make a window of the first alone.
    async fn gather(&mut self) -> bool {
        loop {
            let had = self.backlog.len();
            if had > 0 {
                tokio::task::yield_now().await;
            }
            while self.backlog.len() < WINDOW_MESSAGES {
                match self.inbox.try_recv() {
                    Ok(command) => {
                        if self.take(Some(command)) {
                            return true;
                        }
                    }
                    Err(_) => break,
                }
            }
            if self.backlog.len() == had || self.backlog.len() >= WINDOW_MESSAGES {
                return false;
            }
        }
    }

    fn take(&mut self, command: Option<Command>) -> bool {
        match command {
            Some(Command::Publish(request)) if self.blocked() => {
                request.decline(&self.board.state().to_string())
            }
            Some(Command::Publish(request)) => self.backlog.add(request),
            Some(Command::Close) | None => return true,
        }
        false
    }

    fn blocked(&self) -> bool {
        matches!(self.board.state(), State::Blocked { .. })
    }

    /// Posts what the broker tells; a reason when the connection is lost.
    fn note(&self, weather: Weather) -> Option<String> {
        match weather {
            Weather::Blocked(reason) => self.board.post(State::Blocked { reason }),
            Weather::Unblocked if self.abandoned => {
                return Some("replaced after an alarm of RabbitMQ".to_owned());
            }
            Weather::Unblocked => self.board.post(State::Ready),
            Weather::Lost(reason) => return Some(reason),
        }
        None
    }

    fn lost(&mut self, reason: &str) {
        let state = State::Disconnected { reason: reason.to_owned() };
        let told = state.to_string();
        self.board.post(state);
        self.backlog.decline(&told);
    }

    /// Publishes one window and answers for all of it; an error when the connection must be given up now.
    async fn publish(&mut self, link: &mut Link) -> Result<(), String> {
        let items = self.backlog.window(WINDOW_MESSAGES, WINDOW_BYTES);
        let channel = link.channel.clone();
        let outcome = {
            let flight = fly(&channel, &items, &self.plan.settings);
            tokio::pin!(flight);
            loop {
                tokio::select! {
                    biased;
                    outcome = &mut flight => break outcome,
                    weather = link.event() => if let Some(reason) = self.note(weather) {
                        // The confirms fail by themselves; this is for one that does not.
                        break timeout(PULSE, &mut flight).await.unwrap_or_else(|_| Outcome::nothing(&items, reason));
                    },
                }
            }
        };
        if let Some(limit) = outcome.body_limit {
            tracing::warn!(
                limit,
                "RabbitMQ allows smaller messages than max_message_bytes: longer ones are refused"
            );
            self.known.body.fetch_min(limit, Ordering::Relaxed);
        }
        let reason = outcome.failure;
        // Posted before anyone is answered: who was told of the failure finds the publisher not ready.
        if let Some(reason) = &reason {
            self.abandoned = self.blocked() && link.alive();
            if self.abandoned {
                self.backlog.decline(&self.board.state().to_string());
            } else {
                self.lost(reason);
            }
        }
        let ids: Vec<&str> = items.iter().map(|item| item.publication.message_id.as_str()).collect();
        let told = reason.as_deref().unwrap_or("RabbitMQ gave no answer that counts");
        let verdicts = judge(&ids, &outcome.answers, &outcome.returns, told);
        for (item, verdict) in items.iter().zip(verdicts) {
            self.backlog.settle(item, verdict);
        }
        reason.filter(|_| !self.abandoned).map_or(Ok(()), Err)
    }
}

async fn open(plan: Arc<Plan>, known: Arc<Known>) -> Result<Link, Trouble> {
    let link = plan.clone().open().await?;
    let selecting = link.channel.confirm_select(ConfirmSelectOptions::default());
    match timeout(plan.settings.connect_timeout, selecting).await {
        Ok(selected) => selected.map_err(|error| plan.explain(&error))?,
        Err(_) => {
            return Err(Trouble::Unreachable("confirms could not be turned on in time".to_owned()));
        }
    }
    let frame = usize::try_from(link.connection.configuration().frame_max()).unwrap_or(FRAME_MAX);
    known.frame.store(frame, Ordering::Relaxed);
    Ok(link)
}

/// What came back for one window.
struct Outcome {
    answers: Vec<Answer>,
    returns: Vec<Returned>,
    failure: Option<String>,
    /// The largest body the broker takes, if it just said so.
    body_limit: Option<usize>,
}

impl Outcome {
    fn nothing(items: &[Item], reason: String) -> Self {
        let answers = vec![Answer::Missing; items.len()];
        Self { answers, returns: Vec::new(), failure: Some(reason), body_limit: None }
    }

    fn note(&mut self, index: usize, confirmed: Result<Confirmation, lapin::Error>) {
        match confirmed {
            Ok(confirmation) => {
                self.answers[index] = match confirmation {
                    Confirmation::Ack(_) => Answer::Acked,
                    Confirmation::Nack(_) => Answer::Nacked,
                    Confirmation::NotRequested => Answer::Missing,
                };
                self.returns.extend(confirmation.take_message().map(|message| Returned {
                    message_id: message.properties.message_id().as_ref().map(ToString::to_string),
                    code: message.reply_code,
                    text: message.reply_text.to_string(),
                }));
            }
            Err(error) => {
                self.body_limit = self.body_limit.or_else(|| body_limit(&error));
                // The first to come names the cause; the broker's word is better than "invalid state".
                if self.failure.is_none() || code_of(&error).is_some() {
                    self.failure = Some(broker_said(&error));
                }
            }
        }
    }
}

/// Publishes all at once and collects every confirm.
async fn fly(channel: &Channel, items: &[Item], settings: &AmqpSettings) -> Outcome {
    let (app_id, patience) = (settings.app_id(), settings.confirm_timeout);
    let mut outcome = Outcome::nothing(items, String::new());
    outcome.failure = None;
    let deadline = Instant::now() + patience;
    let mut flights = FuturesUnordered::new();
    for (index, item) in items.iter().enumerate() {
        let mut publishing = Box::pin(async move { send(channel, &item.publication, app_id).await?.await });
        // The first poll hands it to the client: polled here, the messages go out in their order.
        match (&mut publishing).now_or_never() {
            Some(confirmed) => outcome.note(index, confirmed),
            None => flights.push(async move { (index, publishing.await) }),
        }
    }
    loop {
        match timeout_at(deadline, flights.next()).await {
            Ok(Some((index, confirmed))) => outcome.note(index, confirmed),
            Ok(None) => return outcome,
            Err(_) => {
                let reason = format!("{} messages were not confirmed in {patience:?}", flights.len());
                outcome.failure.get_or_insert(reason);
                return outcome;
            }
        }
    }
}

async fn send(
    channel: &Channel,
    publication: &Publication,
    app_id: &str,
) -> lapin::Result<lapin::PublisherConfirm> {
    let (exchange, key) = (publication.exchange.as_str().into(), publication.routing_key.as_str().into());
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    channel.basic_publish(exchange, key, options, &publication.body, properties(publication, app_id)).await
}

/// Every string was measured by [`Publication::flaw`] before: the client panics on long ones.
fn properties(publication: &Publication, app_id: &str) -> BasicProperties {
    let mut headers = FieldTable::default();
    for (name, value) in &publication.headers {
        headers.insert(
            ShortString::from(name.as_str()),
            AMQPValue::LongString(LongString::from(value.as_str())),
        );
    }
    let mut properties = BasicProperties::default()
        .with_content_type(publication.content_type.as_str().into())
        .with_message_id(publication.message_id.as_str().into())
        .with_app_id(app_id.into())
        .with_headers(headers)
        .with_delivery_mode(2);
    if let Some(message_type) = &publication.message_type {
        properties = properties.with_type(message_type.as_str().into());
    }
    if let Some(timestamp) = publication.timestamp {
        properties = properties.with_timestamp(timestamp);
    }
    if let Some(expiration) = publication.expiration {
        // In milliseconds, as text: AMQP leaves the form to the broker.
        properties = properties.with_expiration(expiration.as_millis().to_string().into());
    }
    properties
}

/// `message size 17 is larger than configured max size 16` and its like close the channel with 406.
fn body_limit(error: &lapin::Error) -> Option<usize> {
    let said = broker_said(error);
    let (_, limit) = said.split_once("larger than configured max size ")?;
    limit.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_body_is_learned_from_the_complaint_of_the_broker() {
        use lapin::protocol::{AMQPError, AMQPSoftError};
        let said = "PRECONDITION_FAILED - message size 1025 is larger than configured max size 1024";
        let error = AMQPError::new(AMQPSoftError::PRECONDITIONFAILED.into(), said.into());
        assert_eq!(body_limit(&lapin::ErrorKind::ProtocolError(error).into()), Some(1024));
    }
}
