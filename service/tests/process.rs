//! A daemon as a process: its exit codes, its signals, what it writes.
//!
//! The process is this test binary itself, told to run `the_daemon` alone.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::{
    env,
    io::{BufRead, BufReader, Read},
    process::{self, Child, ChildStderr, Command, Stdio},
};

use outbox_service::{CancellationToken, Daemon, Sources, keys};

/// What the daemon does once it serves.
const BEHAVIOUR: &str = "TEST_BEHAVIOUR";

async fn serve(behaviour: String, stop: CancellationToken) -> Result<(), std::io::Error> {
    match behaviour.as_str() {
        "fails" => return Err(std::io::Error::other("the broker is gone")),
        "talks" => {
            tracing::warn!(target: "lapin::returned_messages", "a returned message: hunter2");
            tracing::trace!(target: "lapin::channels", "a frame: hunter2");
            tracing::debug!(target: "lapin::channels", "a channel opens");
            return Err(std::io::Error::other("done talking"));
        }
        "lingers" => std::future::pending().await,
        _ => stop.cancelled().await,
    }
    Ok(())
}

#[test]
#[ignore = "the process that the other tests start"]
fn the_daemon() {
    let Ok(behaviour) = env::var(BEHAVIOUR) else {
        return;
    };
    let args = env::var("TEST_ARGS").unwrap_or_default();
    let mut sources = Sources::of_process();
    sources.args = args.split_whitespace().map(Into::into).collect();
    let exit = Daemon::new("outbox-test", "1.2.3", "Tests the shell.").keys([keys::mongodb_uri()]).run_from(
        &sources,
        |read| read.uri("mongodb_uri"),
        |_uri, stop| serve(behaviour, stop),
    );
    process::exit(exit as i32);
}

struct Running {
    child: Child,
    stderr: BufReader<ChildStderr>,
}

fn start(behaviour: &str, args: &str) -> Running {
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["the_daemon", "--exact", "--ignored", "--nocapture"])
        .env_clear()
        .env(BEHAVIOUR, behaviour)
        .env("TEST_ARGS", args)
        .env("OUTBOX_MONGODB_URI", "mongodb://app:hunter2@db")
        .env("OUTBOX_MONGODB_URL", "hunter2")
        .stdout(Stdio::null())
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

    /// The exit code and what was left to read of standard error.
    fn end(mut self) -> (Option<i32>, String) {
        let mut rest = String::new();
        self.stderr.read_to_string(&mut rest).unwrap();
        (self.child.wait().unwrap().code(), rest)
    }
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
fn a_second_signal_ends_the_process_at_once() {
    for (signal, expected) in [("TERM", 143), ("INT", 130)] {
        let mut daemon = start("lingers", "");
        daemon.line_with("outbox-test started");
        daemon.signal("TERM");
        daemon.line_with("stopping");
        daemon.signal(signal);
        let (code, rest) = daemon.end();
        assert_eq!(code, Some(expected), "{rest}");
        assert!(rest.contains("ended before work in hand was done"), "{rest}");
    }
}

#[test]
fn what_outlasts_the_grace_is_cut_off_and_counts_as_failed() {
    let mut daemon = start("lingers", "--shutdown-grace 1ms");
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
fn settings_problems_are_told_before_anything_starts() {
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
fn the_first_line_holds_name_version_and_settings_without_secrets() {
    let mut daemon = start("stops", "");
    let line = daemon.line_with("outbox-test started");
    for part in ["1.2.3", "mongodb_uri=mongodb://app:***@db (OUTBOX_MONGODB_URI)", "shutdown_grace=25s"] {
        assert!(line.contains(part), "{part} in {line}");
    }
    assert!(!line.contains("\u{1b}["), "coloured though no terminal: {line:?}");
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
fn the_amqp_clients_logs_show_no_message_and_no_login_at_any_level() {
    for format in ["text", "json"] {
        let (_, rest) = start("talks", &format!("--log-format {format} --log-filter trace")).end();
        assert!(rest.contains("a channel opens"), "{rest}");
        assert!(!rest.contains("hunter2"), "{rest}");
    }
}
