//! Decides which connections may be unencrypted.
//!
//! | connection | on this machine | to another machine |
//! |---|---|---|
//! | `amqp://` | allowed | refused: it sends the password and every message unencrypted |
//! | MongoDB with `tlsInsecure` or a similar option | allowed | refused: encryption without a check of the server protects little |
//! | MongoDB without TLS | allowed | allowed with a warning: SCRAM shows no password, and many replica sets are protected by their network |
//! | `amqps://`, MongoDB with TLS | allowed | allowed |
//!
//! `allow_insecure = true` allows the refused connections. The addresses that a MongoDB replica set
//! reports for its other members are not checked.

use crate::process::settings::{Reader, Uri};

const PLAIN_AMQP: &str = "begins with amqp://, which sends the password and every message unencrypted to \
     another machine; write amqps:// (rabbitmq_ca_file can name your own certificate authority), or set \
     allow_insecure = true if the network is trusted";
const PLAIN_WITH_FILES: &str = "is set, but rabbitmq_uri begins with amqp://, which is not encrypted; write amqps:// there, \
     or leave this out";
const PLAIN_MONGODB: &str = "mongodb_uri names another machine without TLS, so documents are sent \
     unencrypted; add tls=true, and tlsCAFile for your own certificate authority";

/// Reports connections in `mongodb_uri` and `rabbitmq_uri` that are refused, and TLS files that an
/// unencrypted connection would not use.
pub fn check(read: &mut Reader<'_>) {
    let (mongodb, rabbitmq) = (read.uri("mongodb_uri"), read.uri("rabbitmq_uri"));
    if !rabbitmq.is_encrypted() {
        for name in ["rabbitmq_ca_file", "rabbitmq_cert_file", "rabbitmq_key_file"] {
            if read.path(name).is_some() {
                read.problem(&[name, "rabbitmq_uri"], PLAIN_WITH_FILES);
            }
        }
    }

    // The following checks concern connections that others could read or answer.
    if read.boolean("allow_insecure") {
        return;
    }

    if !rabbitmq.is_encrypted() && !rabbitmq.is_local() {
        read.problem(&["rabbitmq_uri"], PLAIN_AMQP);
    }
    if let Some(parameter) = mongodb.skips_verification().filter(|_| !mongodb.is_local()) {
        let sentence = format!(
            "has {parameter}, so any server could pose as MongoDB; remove it and set tlsCAFile to the authority \
                     that signed the server's certificate, or set allow_insecure = true"
        );
        read.problem(&["mongodb_uri"], sentence);
    }
}

/// Logs a warning if MongoDB is on another machine and not encrypted.
pub fn warn_of_plain_mongodb(mongodb: &Uri) {
    if !mongodb.is_encrypted() && !mongodb.is_local() {
        tracing::warn!("{PLAIN_MONGODB}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::{
        keys,
        settings::{Key, Program, Resolution, Sources, resolve},
    };

    fn problems(settings: &[(&str, &str)]) -> Vec<String> {
        let table: Vec<Key> =
            [keys::mongodb_uri(), keys::rabbitmq_uri()].into_iter().chain(keys::transport()).collect();
        let env = settings.iter().map(|(name, value)| (name.into(), value.into())).collect();
        let sources = Sources { args: vec![], env, read_file: |_| Err(std::io::ErrorKind::NotFound.into()) };
        let Resolution::Run(resolved) =
            resolve(&Program { name: "p", version: "1", about: "" }, &table, &sources)
        else {
            panic!("nothing to print")
        };
        let mut reader = Reader::new(&resolved);
        check(&mut reader);
        let problems = reader.finish(()).err().map(|problems| problems.0).unwrap_or_default();
        problems.iter().map(ToString::to_string).collect()
    }

    const PLAIN: (&str, &str) = ("OUTBOX_RABBITMQ_URI", "amqp://u:hunter2@rabbit/%2f");
    const LOCAL: (&str, &str) = ("OUTBOX_RABBITMQ_URI", "amqp://u:hunter2@localhost/%2f");
    const ENCRYPTED: (&str, &str) = ("OUTBOX_RABBITMQ_URI", "amqps://u:hunter2@rabbit/%2f");
    const MONGODB: (&str, &str) = ("OUTBOX_MONGODB_URI", "mongodb://mongo/?replicaSet=rs0");
    const INSECURE: (&str, &str) = ("OUTBOX_MONGODB_URI", "mongodb://u:hunter2@mongo/?tlsInsecure=true");

    #[test]
    fn unprotected_connections_are_refused_with_a_remedy() {
        let told = problems(&[PLAIN, INSECURE]);
        assert_eq!(told.len(), 2, "{told:?}");
        for (told, key, remedy) in [
            (&told[0], "OUTBOX_RABBITMQ_URI: begins with amqp://", "write amqps://"),
            (&told[1], "OUTBOX_MONGODB_URI: has tlsInsecure", "tlsCAFile"),
        ] {
            assert!(told.starts_with(key) && told.contains(remedy), "{told}");
            assert!(told.contains("allow_insecure = true") && !told.contains("hunter2"), "{told}");
        }
    }

    #[test]
    fn encrypted_local_and_allowed_connections_are_accepted() {
        assert_eq!(problems(&[ENCRYPTED, MONGODB]), [""; 0]);
        assert_eq!(problems(&[LOCAL, MONGODB]), [""; 0]);
        assert_eq!(problems(&[LOCAL, ("OUTBOX_MONGODB_URI", "mongodb://[::1]/?tlsInsecure=true")]), [""; 0]);
        assert_eq!(problems(&[PLAIN, INSECURE, ("OUTBOX_ALLOW_INSECURE", "true")]), [""; 0]);
    }

    #[test]
    fn tls_files_for_plain_connections_are_refused() {
        let told = problems(&[LOCAL, MONGODB, ("OUTBOX_RABBITMQ_CA_FILE", "/ca.pem")]);
        assert!(told.len() == 1 && told[0].starts_with("OUTBOX_RABBITMQ_CA_FILE: is set, but"), "{told:?}");
        assert_eq!(problems(&[ENCRYPTED, MONGODB, ("OUTBOX_RABBITMQ_CA_FILE", "/ca.pem")]), [""; 0]);
    }
}
