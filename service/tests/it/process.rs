//! Tests a daemon as a process: its exit codes, its reaction to signals, and its output.
//!
//! The process is this test binary itself, which runs `the_daemon_that_the_tests_start` alone.

use std::{
    env,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{self, Child, ChildStderr, Command, Stdio},
    sync::{
        Barrier,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use outbox_service::{Context, Daemon, Report, Sources, keys};
use serde_json::{Value, json};

/// A time longer than any step of a test takes. A test that waits this long has failed.
const PATIENCE: Duration = Duration::from_mins(1);

/// The environment variable that selects the daemon's behaviour while it serves.
const BEHAVIOUR: &str = "TEST_BEHAVIOUR";

/// The last line that was received.
struct Told(String);

impl Report for Told {
    fn not_ready(&self) -> Vec<String> {
        (self.0 != "ready").then(|| self.0.clone()).into_iter().collect()
    }

    fn status(&self) -> Value {
        json!({ "told": self.0 })
    }
}

/// The next word from the test; empty at the end of input.
fn next_word() -> String {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    line.trim().to_owned()
}

async fn serve(behaviour: String, Context { stop, probes }: Context) -> Result<(), std::io::Error> {
    match behaviour.as_str() {
        "fails" => return Err(std::io::Error::other("the broker is gone")),
        "talks" => {
            tracing::warn!(target: "lapin::returned_messages", "a returned message: hunter2");
            tracing::trace!(target: "lapin::channels", "a frame: hunter2");
            tracing::debug!(target: "lapin::channels", "a channel opens");
            return Err(std::io::Error::other("done talking"));
        }
        "is written to" => {
            let id = "o-1\n2030-01-01T00:00:00Z ERROR outbox_dispatcher: forged\r2030\u{2028}2030";
            tracing::warn!(document = %id, error = ?id, "an id of somebody else's");
            tracing::info_span!("deliver", document = id).in_scope(|| tracing::warn!("inside: {id}"));
            let _ = tokio::spawn(async move { panic!("{id}") }).await;
            return Err(std::io::Error::other(id));
        }
        "never ends" => std::future::pending().await,
        "obeys" => loop {
            let word = tokio::task::spawn_blocking(next_word).await.unwrap();
            match word.as_str() {
                "wait for the stop" => stop.cancelled().await,
                "end" => break,
                _ => probes.report(Told(word.clone())),
            }
            tracing::info!("done: {word}");
        },
        "traces" => {
            let span = tracing::info_span!("deliver", otel.name = "deliver orders");
            span.in_scope(|| {
                tracing::info!(step.number = 7, "a step");
                tracing::warn!(target: "lapin::returned_messages", "a returned message: hunter2");
                tracing::trace!(target: "lapin::channels", "a frame: hunter2");
            });
        }
        "records" => {
            metrics::counter!("outbox_test_total").increment(3);
            metrics::histogram!("outbox_test_seconds").record(0.3);
            tracing::info!("recorded");
            stop.cancelled().await;
        }
        "gets stuck" => {
            let workers = tokio::runtime::Handle::current().metrics().num_workers();
            for _ in 0..workers {
                tokio::spawn(async {
                    loop {
                        thread::park();
                    }
                });
            }
            std::future::pending::<()>().await;
        }
        _ => stop.cancelled().await,
    }
    Ok(())
}

#[test]
#[ignore = "the process that the other tests start"]
fn the_daemon_that_the_tests_start() {
    let Ok(behaviour) = env::var(BEHAVIOUR) else {
        return;
    };
    let args = env::var("TEST_ARGS").unwrap_or_default();
    let mut sources = Sources::of_process();
    sources.args = args.split_whitespace().map(Into::into).collect();
    let exit = Daemon::new("outbox-test", "1.2.3", "Tests the shell.").keys([keys::mongodb_uri()]).run_from(
        &sources,
        |read| read.uri("mongodb_uri"),
        |_uri, context| serve(behaviour, context),
    );
    process::exit(exit as i32);
}

struct Running {
    child: Child,
    stderr: BufReader<ChildStderr>,
}

fn start(behaviour: &str, args: &str) -> Running {
    start_with(behaviour, args, &[])
}

fn start_with(behaviour: &str, args: &str, env: &[(&str, &str)]) -> Running {
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["process::the_daemon_that_the_tests_start", "--exact", "--ignored", "--nocapture"])
        .env_clear()
        .env(BEHAVIOUR, behaviour)
        .env("TEST_ARGS", args)
        .env("OUTBOX_MONGODB_URI", "mongodb://app:hunter2@db")
        .env("OUTBOX_MONGODB_URL", "hunter2")
        .env("OUTBOX_HTTP_LISTEN", "127.0.0.1:0")
        .envs(env.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let stderr = BufReader::new(child.stderr.take().unwrap());
    Running { child, stderr }
}

impl Running {
    fn line_with(&mut self, part: &str) -> String {
        loop {
            let mut line = String::new();
            assert_ne!(self.stderr.read_line(&mut line).unwrap(), 0, "ended without a line with {part:?}");
            if line.contains(part) {
                return line;
            }
        }
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }

    /// Sends a word to a daemon with the behaviour "obeys", and returns once the daemon has obeyed.
    fn tell(&mut self, word: &str) {
        writeln!(self.child.stdin.as_ref().unwrap(), "{word}").unwrap();
        self.line_with(&format!("done: {word}"));
    }

    /// The address of the daemon's probes.
    fn address(&mut self) -> SocketAddr {
        let line = self.line_with("probes, metrics and status are served");
        line.trim().rsplit_once("address=").unwrap().1.parse().unwrap()
    }

    /// The exit code, and the rest of standard error.
    fn end(mut self) -> (Option<i32>, String) {
        let mut rest = String::new();
        self.stderr.read_to_string(&mut rest).unwrap();
        (self.child.wait().unwrap().code(), rest)
    }

    /// The complete output of the daemon.
    fn printed(mut self) -> String {
        let mut printed = String::new();
        self.child.stdout.take().unwrap().read_to_string(&mut printed).unwrap();
        self.child.wait().unwrap();
        printed
    }
}

/// Kills the daemon, so that no daemon outlives its test even if the test fails.
impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The status line, the headers and the body of an answer.
struct Answer {
    head: String,
    body: String,
}

fn send(address: SocketAddr, request: &str) -> Answer {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    Answer { head: head.to_lowercase(), body: body.to_owned() }
}

fn get(address: SocketAddr, path: &str) -> Answer {
    send(address, &format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n"))
}

#[track_caller]
fn assert_answers(address: SocketAddr, path: &str, status: u16, body: &str) {
    let answer = get(address, path);
    assert!(answer.head.starts_with(&format!("http/1.1 {status} ")), "{path}: {}", answer.head);
    assert_eq!(answer.body, body, "{path}");
}

#[test]
fn a_signal_stops_the_daemon_cleanly() {
    for signal in ["TERM", "INT"] {
        let mut daemon = start("stops", "");
        daemon.line_with("outbox-test started");
        daemon.signal(signal);
        daemon.line_with(&format!("SIG{signal}"));
        let (code, rest) = daemon.end();
        assert_eq!(code, Some(0));
        assert!(rest.contains("outbox-test stopped"), "{rest}");
    }
}

#[test]
fn a_later_signal_ends_the_process_at_once() {
    for (signal, expected) in [("TERM", 143), ("INT", 130)] {
        let mut daemon = start("never ends", "");
        daemon.line_with("outbox-test started");
        daemon.signal("TERM");
        daemon.line_with("stopping");
        // Signals within a second of the first count as the same request; one of these signals comes
        // later.
        while daemon.child.try_wait().unwrap().is_none() {
            daemon.signal(signal);
            thread::sleep(Duration::from_millis(50));
        }
        let (code, rest) = daemon.end();
        assert_eq!(code, Some(expected), "{rest}");
        assert!(rest.contains("a second signal ended the process before its work was done"), "{rest}");
    }
}

/// A terminal signals the whole process group, and a wrapper in that group also forwards the signal
/// that it gets.
#[test]
fn signals_within_a_second_count_as_one() {
    let mut daemon = start("never ends", "");
    daemon.line_with("outbox-test started");
    let first = Instant::now();
    daemon.signal("INT");
    daemon.line_with("stopping");
    daemon.signal("TERM");
    // After a longer time, the second signal may have arrived too late to count as a repeat.
    if first.elapsed() < Duration::from_millis(500) {
        daemon.line_with("treated as a repeat of the previous signal");
        assert!(daemon.child.try_wait().unwrap().is_none());
    }
}

#[test]
fn work_beyond_the_grace_is_cut_off() {
    let mut daemon = start("never ends", "--shutdown-grace 1ms");
    daemon.line_with("outbox-test started");
    daemon.signal("TERM");
    let (code, rest) = daemon.end();
    assert_eq!(code, Some(1));
    assert!(rest.contains("did not stop in time"), "{rest}");
}

#[test]
fn a_failure_is_logged_with_its_cause() {
    let (code, log) = start("fails", "").end();
    assert_eq!(code, Some(1));
    assert!(log.contains("outbox-test failed") && log.contains("the broker is gone"), "{log}");
}

#[test]
fn settings_problems_are_reported_before_anything_starts() {
    let (code, told) = start("stops", "--shutdown-grace=5 --log-filter debg --log-fromat json").end();
    assert_eq!(code, Some(2));
    assert!(told.contains("The settings have 3 problems:"), "{told}");
    assert!(told.contains("--log-fromat: ") && told.contains("--log-filter: "), "{told}");
    assert!(told.contains("OUTBOX_MONGODB_URL is ignored"), "{told}");
    assert!(!told.contains("started") && !told.contains("hunter2"), "{told}");
}

#[test]
fn help_is_printed_and_ends_the_process() {
    let (code, log) = start("fails", "--help").end();
    assert_eq!((code, log.as_str()), (Some(0), ""));
}

#[test]
fn the_first_line_has_settings_without_secrets() {
    let mut daemon = start("stops", "");
    let line = daemon.line_with("outbox-test started");
    for part in ["1.2.3", "mongodb_uri=mongodb://app:***@db (OUTBOX_MONGODB_URI)", "shutdown_grace=25s"] {
        assert!(line.contains(part), "{part} in {line}");
    }
    assert!(!line.contains("\u{1b}["), "coloured although the output is not a terminal: {line:?}");
    daemon.signal("TERM");
    let (_, rest) = daemon.end();
    assert!(rest.contains("WARN") && rest.contains("OUTBOX_MONGODB_URL is ignored"), "{rest}");
    assert!(!line.contains("hunter2") && !rest.contains("hunter2"), "{line}{rest}");
}

#[test]
fn json_logs_are_one_object_a_line() {
    let mut daemon = start("stops", "--log-format json");
    let line = daemon.line_with("outbox-test started");
    assert!(line.starts_with('{') && line.ends_with("}\n"), "{line}");
    assert!(
        line.contains(r#""message":"outbox-test started""#) && line.contains(r#""version":"1.2.3""#),
        "{line}"
    );
    daemon.signal("TERM");
    assert_eq!(daemon.end().0, Some(0));
}

#[test]
fn the_amqp_clients_logs_show_no_secret() {
    for format in ["text", "json"] {
        let (_, rest) = start("talks", &format!("--log-format {format} --log-filter trace")).end();
        assert!(rest.contains("a channel opens"), "{rest}");
        assert!(!rest.contains("hunter2"), "{rest}");
    }
}

/// P8: text from another source can't forge a log record.
#[test]
fn no_value_begins_a_log_line() {
    for format in ["text", "json"] {
        let (code, log) = start("is written to", &format!("--log-format {format}")).end();
        assert_eq!(code, Some(1), "{log}");
        assert_eq!(log.matches("forged").count(), log.matches("outbox_dispatcher: forged").count(), "{log}");
        assert!(log.contains("a task panicked"), "{log}");

        let now = format!("{}-", 1970 + std::time::UNIX_EPOCH.elapsed().unwrap().as_secs() / 31_556_952);
        for line in log.lines() {
            let own =
                if format == "text" { line.starts_with(&now) } else { line.starts_with("{\"timestamp\"") };
            assert!(own, "{line:?} in {log}");
        }
    }
}

/// Standard error may be full or closed, for example after a supervisor has ended.
#[test]
fn an_unread_log_causes_no_panic() {
    for (args, redirect, code) in [
        ("--log-fromat json", "2>/dev/full", 2),
        ("--log-fromat json", "2>&-", 2),
        ("--log-filter trace", "2>/dev/full", 1),
        ("--log-filter trace --log-format json", "2>/dev/full", 1),
    ] {
        let script = format!(
            "exec \"$0\" process::the_daemon_that_the_tests_start --exact --ignored --nocapture {redirect}"
        );
        let status = Command::new("bash")
            .args(["-c", &script])
            .arg(env::current_exe().unwrap())
            .env(BEHAVIOUR, "is written to")
            .env("TEST_ARGS", args)
            .env("OUTBOX_MONGODB_URI", "mongodb://db")
            .env("OUTBOX_HTTP_LISTEN", "off")
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert_eq!(status.code(), Some(code), "{args} {redirect}");
    }
}

/// Thirty-two silent clients occupy all connections.
#[test]
fn silent_clients_keep_no_probe_waiting() {
    let mut daemon = start("obeys", "");
    let address = daemon.address();

    let silent: Vec<TcpStream> = (0..32).map(|_| TcpStream::connect(address).unwrap()).collect();
    assert_answers(address, "/livez", 200, "alive\n");

    // Only the oldest connection was closed to make room; the other connections were not closed by a timeout.
    let is_open = |mut client: &TcpStream| {
        client.set_nonblocking(true).unwrap();
        client.read(&mut [0; 1]).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
    };
    assert!(!is_open(&silent[0]));
    assert!(silent[1..].iter().all(is_open));
}

/// 64 clients send half a request, and reconnect as soon as their connections are closed.
#[test]
#[ignore = "stress: run by scripts/stress"]
fn stress_slow_clients_keep_no_probe_waiting() {
    let mut daemon = start("obeys", "");
    let address = daemon.address();
    let is_over = AtomicBool::new(false);
    let connected = Barrier::new(65);
    let is_answered = |_: &usize| {
        let answer = std::panic::catch_unwind(|| get(address, "/livez"));
        answer.is_ok_and(|answer| answer.body == "alive\n")
    };
    let answered = thread::scope(|scope| {
        for _ in 0..64 {
            scope.spawn(|| {
                let mut slow = half_a_request(address);
                connected.wait();
                while !is_over.load(Ordering::Relaxed) {
                    // Returns when the connection is closed.
                    let _ = slow.as_mut().map(|slow| slow.read(&mut [0; 1]));
                    slow = half_a_request(address);
                }
            });
        }
        connected.wait();
        let answered = (0..20).filter(is_answered).count();
        is_over.store(true, Ordering::Relaxed);
        answered
    });
    assert_eq!(answered, 20);
}

fn half_a_request(address: SocketAddr) -> std::io::Result<TcpStream> {
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(b"GET /livez HTTP/1.1\r\n")?;
    Ok(stream)
}

#[test]
fn a_daemon_is_ready_until_it_stops() {
    let mut daemon = start("obeys", "");
    let address = daemon.address();
    assert_answers(address, "/readyz", 503, "starting\n");
    assert_answers(address, "/livez", 200, "alive\n");
    daemon.tell("the broker is gone");
    assert_answers(address, "/readyz", 503, "the broker is gone\n");
    daemon.tell("ready");
    assert_answers(address, "/readyz", 200, "ready\n");
    daemon.signal("TERM");
    daemon.tell("wait for the stop");
    assert_answers(address, "/readyz", 503, "stopping\n");
    assert_answers(address, "/livez", 200, "alive\n");
    assert!(get(address, "/metrics").body.contains("outbox_build_info"));
}

#[test]
fn a_slow_client_does_not_delay_a_stop() {
    let mut daemon = start("obeys", "--shutdown-grace 1h");
    let mut slow = TcpStream::connect(daemon.address()).unwrap();
    slow.write_all(b"GET /metrics HTTP/1.1\r\nHost: te").unwrap();
    daemon.signal("TERM");
    daemon.tell("wait for the stop");
    writeln!(daemon.child.stdin.as_ref().unwrap(), "end").unwrap();
    let (code, rest) = daemon.end();
    assert_eq!(code, Some(0), "{rest}");
    // The connection was closed by the end of the daemon, not by an answer.
    let mut answer = String::new();
    assert!(slow.read_to_string(&mut answer).is_err() || answer.is_empty(), "{answer}");
}

#[test]
fn the_status_is_json_with_what_the_daemon_reports() {
    let mut daemon = start("obeys", "");
    let address = daemon.address();
    daemon.tell("ready");
    let answer = get(address, "/status");
    assert!(answer.head.contains("content-type: application/json"), "{}", answer.head);
    let status: Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!(
        (&status["service"], &status["version"], &status["ready"], &status["not_ready"], &status["told"]),
        (&json!("outbox-test"), &json!("1.2.3"), &json!(true), &json!([]), &json!("ready"))
    );
}

#[test]
fn metrics_are_prometheus_text_with_wide_buckets() {
    let mut daemon = start("records", "");
    let address = daemon.address();
    daemon.line_with("recorded");
    let answer = get(address, "/metrics");
    assert!(answer.head.contains("content-type: text/plain; version=0.0.4"), "{}", answer.head);
    for line in [
        "# HELP outbox_build_info Always 1; the labels give the running service and version.",
        "# TYPE outbox_build_info gauge",
        r#"outbox_build_info{service="outbox-test",version="1.2.3"} 1"#,
        "# TYPE outbox_test_total counter",
        "outbox_test_total 3",
        "# TYPE outbox_test_seconds histogram",
        r#"outbox_test_seconds_bucket{le="0.001"} 0"#,
        r#"outbox_test_seconds_bucket{le="0.5"} 1"#,
        r#"outbox_test_seconds_bucket{le="3600"} 1"#,
        "outbox_test_seconds_sum 0.3",
    ] {
        assert!(answer.body.lines().any(|found| found == line), "{line} in {}", answer.body);
    }
    if cfg!(target_os = "linux") {
        assert!(answer.body.contains("\nprocess_resident_memory_bytes "), "{}", answer.body);
    }
}

#[test]
fn only_get_and_head_are_answered() {
    let mut daemon = start("obeys", "");
    let address = daemon.address();
    let head = send(address, "HEAD /livez HTTP/1.1\r\nHost: test\r\n\r\n");
    assert!(head.head.starts_with("http/1.1 200") && head.body.is_empty(), "{}{}", head.head, head.body);
    let post = send(address, "POST /livez HTTP/1.1\r\nHost: test\r\nContent-Length: 2\r\n\r\nhi");
    assert!(post.head.starts_with("http/1.1 405") && post.head.contains("allow: get, head"), "{}", post.head);
    assert!(get(address, "/").head.starts_with("http/1.1 404"));
    let long = format!("GET /livez HTTP/1.1\r\nHost: {}\r\n\r\n", "x".repeat(100_000));
    let mut stream = TcpStream::connect(address).unwrap();
    // The request may be refused before it is completely written, and then the refusal may be lost with
    // the connection.
    let _ = stream.write_all(long.as_bytes());
    let mut refusal = String::new();
    let _ = stream.read_to_string(&mut refusal);
    assert!(refusal.is_empty() || refusal.starts_with("HTTP/1.1 431"), "{refusal}");
    assert_answers(address, "/livez", 200, "alive\n");
}

#[test]
fn a_daemon_whose_runtime_is_stuck_is_not_alive() {
    let mut daemon = start("gets stuck", "");
    let address = daemon.address();
    let deadline = Instant::now() + PATIENCE;
    while get(address, "/livez").head.starts_with("http/1.1 200") {
        assert!(Instant::now() < deadline, "still alive");
        thread::sleep(Duration::from_millis(200));
    }
    assert_answers(address, "/livez", 503, "the runtime is stuck\n");
    assert!(get(address, "/metrics").head.starts_with("http/1.1 200"));
}

#[test]
fn a_port_in_use_is_reported_before_anything_starts() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let (code, told) = start("stops", &format!("--http-listen {address}")).end();
    assert_eq!(code, Some(1), "{told}");
    assert!(told.contains(&format!("http_listen: cannot listen on {address}; free this address")), "{told}");
    assert!(!told.contains("outbox-test started"), "{told}");
}

#[test]
fn http_can_be_off() {
    let mut daemon = start("stops", "--http-listen off");
    daemon.line_with("outbox-test started");
    daemon.signal("TERM");
    let (code, rest) = daemon.end();
    assert_eq!(code, Some(0));
    assert!(!rest.contains("are served"), "{rest}");
}

#[test]
fn the_settings_can_be_checked_without_serving() {
    let checked = start("fails", "config check --shutdown-grace 5s").printed();
    for line in [
        r#"mongodb_uri = "mongodb://app:***@db"  # OUTBOX_MONGODB_URI"#,
        r#"shutdown_grace = "5s"                 # --shutdown-grace"#,
        r#"log_filter = "info"                   # default"#,
    ] {
        assert!(checked.lines().any(|found| found == line), "{line} in {checked}");
    }
    let (code, told) = start("fails", "config check --shutdown-grace 5 --mongodb-uri hunter2").end();
    assert_eq!(code, Some(2));
    assert!(told.contains("2 problems") && told.contains("OUTBOX_MONGODB_URL is ignored"), "{told}");
    assert!(!told.contains("hunter2"), "{told}");
}

#[test]
fn an_unknown_config_command_is_refused_with_a_list() {
    for args in ["config", "config chekc", "config chekc --shutdown-grace 5s"] {
        let (code, told) = start("fails", args).end();
        assert_eq!(code, Some(2), "{told}");
        assert!(told.contains("config check, config sample or config schema"), "{told}");
        assert!(!told.contains("is missing"), "{told}");
    }
}

#[cfg(feature = "otlp")]
mod traces {
    use std::sync::mpsc;

    use super::*;

    /// Runs a daemon that traces, and returns the head and the body of what its collector received.
    fn traced(args: &str, path: &str, env: &[(&str, &str)]) -> (String, Vec<u8>) {
        let collector = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}{path}", collector.local_addr().unwrap());
        let variable = if path.is_empty() {
            "OTEL_EXPORTER_OTLP_ENDPOINT"
        } else {
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
        };
        let (sender, received) = mpsc::channel();
        thread::spawn(move || sender.send(receive(&collector, "200 OK")));
        let (code, log) = start_with("traces", args, &[&[(variable, endpoint.as_str())], env].concat()).end();
        assert_eq!(code, Some(0), "{log}");
        received.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("no trace was sent before the end: {log}"))
    }

    /// Handles one request to a collector, and answers it with this status.
    fn receive(collector: &TcpListener, status: &str) -> (String, Vec<u8>) {
        let (stream, _) = collector.accept().unwrap();
        let mut stream = BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert_ne!(stream.read_line(&mut head).unwrap(), 0, "{head}");
        }
        let head = head.to_lowercase();
        let length = head.split("content-length: ").nth(1).and_then(|rest| rest.lines().next()).unwrap();
        let mut body = vec![0; length.parse().unwrap()];
        stream.read_exact(&mut body).unwrap();
        write!(stream.get_mut(), "HTTP/1.1 {status}\r\nContent-Length: 7\r\n\r\nhunter2").unwrap();
        (head, body)
    }

    /// Protobuf contains strings unchanged.
    fn has(body: &[u8], text: &str) -> bool {
        body.windows(text.len()).any(|window| window == text.as_bytes())
    }

    #[test]
    fn spans_reach_the_collector_without_messages() {
        // The next scheduled export is an hour away, so only the flush sends.
        let (head, body) = traced("--log-filter trace", "", &[("OTEL_BSP_SCHEDULE_DELAY", "3600000")]);
        assert!(head.starts_with("post /v1/traces") && head.contains("application/x-protobuf"), "{head}");
        for part in [
            "service.name",
            "outbox-test",
            "service.version",
            "1.2.3",
            "deliver orders",
            "a step",
            "step.number",
        ] {
            assert!(has(&body, part), "{part} in {}", String::from_utf8_lossy(&body));
        }
        assert!(!has(&body, "hunter2"), "{}", String::from_utf8_lossy(&body));
    }

    #[test]
    fn the_variables_of_the_specification_name_the_service() {
        let env = [
            ("OTEL_SERVICE_NAME", "shop-rescuer"),
            ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=staging"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "x-team=shop"),
        ];
        let (head, body) = traced("", "/v1/traces", &env);
        assert!(head.starts_with("post /v1/traces"), "{head}");
        assert!(head.contains("x-team: shop"), "{head}");
        for part in ["shop-rescuer", "staging", "1.2.3"] {
            assert!(has(&body, part), "{part} in {}", String::from_utf8_lossy(&body));
        }
    }

    #[test]
    fn the_last_traces_are_sent_once_http_has_ended() {
        let collector = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", collector.local_addr().unwrap());
        let env =
            [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()), ("OTEL_BSP_SCHEDULE_DELAY", "3600000")];
        let mut daemon = start_with("traces", "", &env);
        let address = daemon.address();
        // The flush made this connection, and waits for an answer.
        let (stream, _) = collector.accept().unwrap();
        assert!(TcpStream::connect(address).is_err(), "HTTP has ended");
        drop(stream);
        drop(collector);
        let (code, log) = daemon.end();
        assert_eq!(code, Some(0), "{log}");
    }

    #[test]
    fn a_silent_collector_delays_no_stop() {
        let collector = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", collector.local_addr().unwrap());
        let env = [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str())];
        let (code, log) = start_with("traces", "--shutdown-grace 100ms", &env).end();
        assert_eq!(code, Some(0), "{log}");
        assert!(log.contains("the last traces were not sent"), "{log}");
    }

    #[test]
    fn a_refusing_collector_is_logged_without_its_address() {
        let collector = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://user:hunter2@{}", collector.local_addr().unwrap());
        thread::spawn(move || receive(&collector, "401 Unauthorized"));
        let env = [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str())];
        let (code, log) = start_with("traces", "--log-filter trace", &env).end();
        assert_eq!(code, Some(0), "{log}");
        assert!(log.contains("HTTP export failed with status code: 401"), "{log}");
        assert!(!log.contains("hunter2"), "{log}");
    }

    #[test]
    fn an_invalid_endpoint_is_refused_without_quoting_it() {
        let env = [("OTEL_EXPORTER_OTLP_ENDPOINT", "ht tp://user:hunter2@collector")];
        let (code, told) = start_with("traces", "", &env).end();
        assert_eq!(code, Some(1), "{told}");
        assert!(told.contains("OTEL_EXPORTER_OTLP_ENDPOINT") && !told.contains("hunter2"), "{told}");
    }

    #[test]
    fn no_trace_is_sent_if_the_specification_forbids_it() {
        let collector = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", collector.local_addr().unwrap());
        for off in [("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none")] {
            let env = [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()), off];
            assert_eq!(start_with("traces", "", &env).end().0, Some(0));
        }
        collector.set_nonblocking(true).unwrap();
        assert!(collector.accept().is_err(), "there was no connection");
    }
}

#[cfg(not(feature = "otlp"))]
#[test]
fn a_build_without_export_warns_when_configured() {
    let env = [("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")];
    let (_, log) = start_with("fails", "", &env).end();
    assert!(log.contains("OTEL_EXPORTER_OTLP_ENDPOINT is set, but no traces are sent"), "{log}");
}
