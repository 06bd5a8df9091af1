//! Creates a broker user who has permission to publish only with some routing keys.

#![allow(clippy::pedantic, reason = "product code is held to these lints; a test may be short instead")]
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot continue fails")]

use std::{path::Path, process::Command};

/// A broker user that is removed when this value is dropped. Its password equals its name.
pub struct RestrictedUser {
    name: String,
    uri: String,
}

impl RestrictedUser {
    /// Creates a user with all permissions on the broker that `scripts/services` started at this URI.
    pub async fn create(name: &str, broker: &str) -> Self {
        let host = broker.rsplit('@').next().unwrap();
        let user = Self { name: name.to_owned(), uri: format!("amqp://{name}:{name}@{host}") };
        user.eval("ok = rabbit_auth_backend_internal:add_user(U, U, <<\"test\">>)").await;
        user.may_write_to_exchanges(".*").await;
        user
    }

    pub fn uri(&self) -> &str {
        &self.uri
    }

    pub async fn may_write_to_exchanges(&self, pattern: &str) {
        self.eval(&format!(
            r#"ok = rabbit_auth_backend_internal:set_permissions(U, <<"/">>, <<".*">>, <<"{pattern}">>, <<".*">>, <<"test">>)"#
        ))
        .await;
    }

    /// Lets the user publish to this exchange only with routing keys that match `pattern`.
    pub async fn may_write(&self, exchange: &str, pattern: &str) {
        self.eval(&format!(
            r#"ok = rabbit_auth_backend_internal:set_topic_permissions(U, <<"/">>, <<"{exchange}">>, <<"{pattern}">>, <<".*">>, <<"test">>)"#
        ))
        .await;
    }

    async fn eval(&self, expression: &str) {
        let expression = format!(r#"U = <<"{}">>, {expression}."#, self.name);
        tokio::task::spawn_blocking(move || rabbitmqctl(&["-q", "eval", &expression])).await.unwrap();
    }
}

impl Drop for RestrictedUser {
    fn drop(&mut self) {
        rabbitmqctl(&["-q", "delete_user", &self.name]);
    }
}

/// Runs a command on the broker that `scripts/services` started.
pub fn rabbitmqctl(arguments: &[&str]) -> String {
    // This directory belongs to the checkout whose servers the tests use. The script for the servers is in the same
    // checkout.
    let directory =
        std::env::var("OUTBOX_TEST_SERVICES_DIR").expect(r#"run `eval "$(scripts/services env)"`"#);
    let script = Path::new(&directory).join("../scripts/services");
    let output = Command::new(&script).arg("rabbitmqctl").args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
