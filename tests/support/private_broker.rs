//! Runs a RabbitMQ for one test, which the test can stop, deprive of memory and start again.

#![allow(clippy::pedantic, reason = "product code is held to these lints; a test may be short instead")]
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot continue fails")]

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

/// A broker that a copy of `scripts/services` runs in its own directory. The broker is removed when this value is
/// dropped or the process ends.
pub struct PrivateBroker {
    directory: PathBuf,
    guard: Child,
    pub uri: String,
}

impl PrivateBroker {
    /// Starts the broker on free ports, and returns when it answers.
    pub async fn start() -> Self {
        crate::isolation::assert_in("outage");
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
        let checkout = manifest.ancestors().find(|folder| folder.join("scripts/services").exists()).unwrap();
        let name = format!("broker-{}", uuid::Uuid::now_v7().simple());
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::create_dir_all(directory.join("scripts")).unwrap();
        for file in ["scripts/services", "docker-compose.yml"] {
            std::fs::copy(checkout.join(file), directory.join(file)).unwrap();
        }
        let mut broker = Self { guard: guard(&directory), directory, uri: String::new() };
        broker.services(&["up"]).await;
        let environment = broker.services(&["env"]).await;
        let uri = environment.lines().find_map(|line| line.strip_prefix("export OUTBOX_RABBITMQ_URI="));
        broker.uri = uri.expect("its URI is known").trim_matches('\'').to_owned();
        broker
    }

    pub async fn stop(&self) {
        self.services(&["stop", "rabbitmq"]).await;
    }

    /// Starts the broker again with its data, and returns when it answers.
    pub async fn start_again(&self) {
        self.services(&["start", "rabbitmq"]).await;
    }

    pub async fn rabbitmqctl(&self, arguments: &[&str]) {
        let all: Vec<_> = ["rabbitmqctl", "-q"].into_iter().chain(arguments.iter().copied()).collect();
        self.services(&all).await;
    }

    /// Raises the memory alarm, so that the broker accepts no messages.
    pub async fn raise_alarm(&self) {
        self.rabbitmqctl(&["set_vm_memory_high_watermark", "0"]).await;
    }

    pub async fn lift_alarm(&self) {
        self.rabbitmqctl(&["set_vm_memory_high_watermark", "0.4"]).await;
    }

    /// Runs the script with an external MongoDB, so that `up` starts only RabbitMQ.
    async fn services(&self, arguments: &[&str]) -> String {
        let output = tokio::process::Command::new(self.directory.join("scripts/services"))
            .args(arguments)
            .env_remove("OUTBOX_RABBITMQ_URI")
            .stdin(Stdio::null())
            .output()
            .await
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {said}");
        String::from_utf8(output.stdout).unwrap()
    }
}

/// Starts a process that removes the broker and its directory once this process ends. The end of this process, for any
/// reason, closes the other process's input.
fn guard(directory: &Path) -> Child {
    use std::os::unix::process::CommandExt;
    Command::new("sh")
        .args(["-c", r#"cat; "$0/scripts/services" clean; rm -rf "$0""#])
        .arg(directory)
        .env_remove("OUTBOX_RABBITMQ_URI")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // A signal that ends the test's process group must not end the script.
        .process_group(0)
        .spawn()
        .unwrap()
}

impl Drop for PrivateBroker {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        self.guard.wait().unwrap();
    }
}
