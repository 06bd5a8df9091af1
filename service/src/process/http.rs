//! Probes, metrics and status over HTTP.
//!
//! # Flow
//! A separate thread with its own runtime answers requests, so that it answers even if the daemon's runtime
//! is stuck, and until the daemon has finished. A connection serves one request and ends within seconds, and
//! the number of connections is bounded. At the maximum number of connections, a new connection replaces the
//! oldest one that has not sent its request, so that slow clients can't block a probe. No connection is
//! replaced in its first tenth of a second. Otherwise, clients that reconnect as soon as they are dropped
//! would replace a probe's connection before the probe's request is read.
//!
//! # Caveats
//! The server asks for no password and shows no secret. It listens on the local machine unless a setting
//! changes this.

use std::{
    collections::VecDeque,
    convert::Infallible,
    fmt, io,
    net::{SocketAddr, TcpListener},
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::TcpStream,
    task::{AbortHandle, JoinSet},
    time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::process::{
    metrics::{Exporter, UPKEEP},
    probes::Probes,
};

/// Enough connections for probes, scrapers and people at the same time.
const CONNECTIONS: usize = 32;
/// How long a connection keeps its place even if other connections wait for a place. With this value, 200 slow
/// clients delay a probe by less than a second.
const UNDISTURBED: Duration = Duration::from_millis(100);
const HEADERS_WITHIN: Duration = Duration::from_secs(5);
const CONNECTION_WITHIN: Duration = Duration::from_secs(10);
/// The maximum size of a request's head, in bytes. Hyper accepts no smaller maximum.
const LONGEST_HEAD: usize = 8 * 1024;
/// How long unfinished answers may take when the process stops.
const LAST_ANSWERS: Duration = Duration::from_millis(500);
const AFTER_REFUSAL: Duration = Duration::from_millis(100);

const NO_ADDRESS: &str =
    "is not an address; write an IP address and a port as in 127.0.0.1:9464 or [::]:9464, or off";

/// The value of `http_listen`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Listen(pub(crate) Option<SocketAddr>);

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self(None));
        }

        match text.parse() {
            Ok(address) => Ok(Self(Some(address))),
            Err(_) => Err(NO_ADDRESS.into()),
        }
    }
}

/// The server can't listen.
#[derive(Debug, thiserror::Error)]
#[error(
    "http_listen: cannot listen on {address}; free this address, choose another one, or set http_listen to off"
)]
pub(crate) struct ListenError {
    address: SocketAddr,
    source: io::Error,
}

/// A listening socket that doesn't answer requests yet.
pub(crate) struct Bound {
    listener: TcpListener,
    address: SocketAddr,
}

impl Bound {
    pub(crate) fn to(address: SocketAddr) -> Result<Self, ListenError> {
        Self::bind(address).map_err(|source| ListenError { address, source })
    }

    fn bind(address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(Self { address: listener.local_addr()?, listener })
    }

    /// Answers until [`Server::stop`].
    pub(crate) fn answer(self, probes: Probes, exporter: Exporter) -> io::Result<Server> {
        let Self { listener, address } = self;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let pages = Arc::new(Pages { probes, exporter });

        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let thread = thread::Builder::new().name("http".into()).spawn(move || {
            runtime.block_on(async {
                match tokio::net::TcpListener::from_std(listener) {
                    Ok(listener) => serve(listener, pages, stopped).await,
                    Err(error) => tracing::error!(%error, "the HTTP server on http_listen has ended"),
                }
            });
        })?;

        Ok(Server { address, stop, thread })
    }
}

/// The thread that answers.
pub(crate) struct Server {
    address: SocketAddr,
    stop: CancellationToken,
    thread: JoinHandle<()>,
}

impl Server {
    /// Ends the thread. No client can delay this.
    pub(crate) fn stop(self) {
        self.stop.cancel();
        // `join` fails only if the thread panicked. The panic has already been logged.
        let _ = self.thread.join();
    }
}

/// The address on which the server listens, for the log.
impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(f)
    }
}

async fn serve(listener: tokio::net::TcpListener, pages: Arc<Pages>, stop: CancellationToken) {
    let mut connections = OpenConnections::default();
    let mut upkeep = interval(UPKEEP);
    upkeep.set_missed_tick_behavior(MissedTickBehavior::Delay);

    loop {
        let room = connections.room();
        let accept = async {
            sleep_until(room).await;
            listener.accept().await
        };
        tokio::select! {
            () = stop.cancelled() => break,
            _ = upkeep.tick() => pages.exporter.upkeep(),
            () = connections.one_ended() => {}
            accepted = accept => match accepted {
                Ok((stream, _)) => connections.add(stream, &pages),
                Err(error) => {
                    debug!(%error, "a connection was not accepted");
                    sleep(AFTER_REFUSAL).await;
                }
            },
        }
    }

    let _ = timeout(LAST_ANSWERS, connections.all_ended()).await;
}

/// The open connections, the oldest first.
#[derive(Default)]
struct OpenConnections {
    tasks: JoinSet<()>,
    open: VecDeque<Open>,
}

struct Open {
    task: AbortHandle,
    since: Instant,
    /// Whether the request has arrived, so that only the answer remains to be sent.
    asked: Arc<AtomicBool>,
}

impl OpenConnections {
    /// The time at which another connection gets a place. If all places are taken, this is when the
    /// slowest connection has had its place for long enough.
    fn room(&mut self) -> Instant {
        self.open.retain(|open| !open.task.is_finished());
        if self.open.len() < CONNECTIONS {
            return Instant::now();
        }
        let slowest = self.open.get(self.slowest());
        slowest.map_or_else(Instant::now, |open| open.since + UNDISTURBED)
    }

    fn add(&mut self, stream: TcpStream, pages: &Arc<Pages>) {
        if self.open.len() >= CONNECTIONS
            && let Some(slowest) = self.open.remove(self.slowest())
        {
            slowest.task.abort();
        }

        let asked = Arc::new(AtomicBool::new(false));
        let task = self.tasks.spawn(connection(stream, pages.clone(), asked.clone()));
        self.open.push_back(Open { task, since: Instant::now(), asked });
    }

    /// The oldest connection that has not sent a request. If all connections have sent one, this is
    /// the oldest connection of all, whose client does not read the answer.
    fn slowest(&self) -> usize {
        let silent = self.open.iter().position(|open| !open.asked.load(Ordering::Relaxed));
        silent.unwrap_or(0)
    }

    /// Waits until a connection has ended; waits forever if none is open.
    async fn one_ended(&mut self) {
        if self.tasks.join_next().await.is_none() {
            std::future::pending::<()>().await;
        }
    }

    async fn all_ended(&mut self) {
        while self.tasks.join_next().await.is_some() {}
    }
}

async fn connection(stream: TcpStream, pages: Arc<Pages>, asked: Arc<AtomicBool>) {
    let answer = service_fn(|request: Request<Incoming>| {
        asked.store(true, Ordering::Relaxed);
        let response = pages.answer(request.method(), request.uri().path());
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .keep_alive(false)
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_WITHIN)
        .max_buf_size(LONGEST_HEAD)
        .serve_connection(TokioIo::new(stream), answer);
    // The result is ignored, because the client has already received an error as its answer, or its
    // connection has ended.
    let _ = timeout(CONNECTION_WITHIN, connection).await;
}

struct Pages {
    probes: Probes,
    exporter: Exporter,
}

impl Pages {
    fn answer(&self, method: &Method, path: &str) -> Response<Full<Bytes>> {
        if *method != Method::GET && *method != Method::HEAD {
            let mut refused = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
            refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return refused;
        }

        match path {
            "/livez" if self.probes.is_alive() => text(StatusCode::OK, "alive\n"),
            "/livez" => text(StatusCode::SERVICE_UNAVAILABLE, "the runtime is stuck\n"),
            "/readyz" => match self.probes.not_ready() {
                reasons if reasons.is_empty() => text(StatusCode::OK, "ready\n"),
                reasons => text(StatusCode::SERVICE_UNAVAILABLE, reasons.join("\n") + "\n"),
            },
            "/metrics" => {
                page(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", self.exporter.render())
            }
            "/status" => page(StatusCode::OK, "application/json", format!("{:#}\n", self.probes.status())),
            _ => text(StatusCode::NOT_FOUND, "the paths are /livez, /readyz, /metrics and /status\n"),
        }
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    page(status, "text/plain; charset=utf-8", body)
}

fn page(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn http_listen_is_an_address_or_off() {
        assert_eq!("off".parse(), Ok(Listen(None)));
        assert_eq!("[::1]:80".parse(), Ok(Listen(Some(SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], 80))))));
        for text in ["localhost:9464", "9464", "127.0.0.1", "on", ""] {
            assert!(text.parse::<Listen>().unwrap_err().contains("127.0.0.1:9464"), "{text}");
        }
    }
}
