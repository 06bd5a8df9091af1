//! The connections to MongoDB and RabbitMQ, which both services need. The MongoDB driver and the AMQP client
//! check the settings before anything connects.

use std::time::Duration;

use document_outbox::{
    amqp::AmqpSettings,
    tls::{TlsFile, TlsFiles},
};
use mongodb::{Client, error::Error, options::ClientOptions};

use crate::process::{
    mongodb_uri,
    settings::{Reader, Uri},
    transport,
};

/// How long the driver may search for a server before an attempt counts as failed. Attempts are
/// repeated without limit. The time is short because a stop signal takes effect only between two
/// attempts.
const TRY: Duration = Duration::from_secs(5);

/// The settings for reaching MongoDB and RabbitMQ. Nothing connects yet.
#[derive(Debug)]
pub struct Connections {
    name: &'static str,
    mongodb: Uri,
    /// RabbitMQ's settings; `None` only if there is also a problem that keeps the program from starting.
    pub rabbitmq: Option<AmqpSettings>,
}

impl Connections {
    /// Reads `mongodb_uri`, `rabbitmq_uri` and the keys of [`keys::transport`](crate::keys::transport),
    /// and reports their problems. The connections are named `name`.
    pub fn read(read: &mut Reader<'_>, name: &'static str) -> Self {
        transport::check(read);

        let mongodb = read.uri("mongodb_uri");
        if let Some(sentence) = mongodb_uri::refusal(&mongodb) {
            read.problem(&["mongodb_uri"], sentence);
        } else if let Err(error) = TlsFiles::of_mongodb(mongodb.expose()).check() {
            read.problem(&["mongodb_uri"], format!("names an unusable file for TLS: {error}"));
        }

        Self { name, mongodb, rabbitmq: rabbitmq(read, name) }
    }

    /// A MongoDB client, which connects when it is first used. Logs a warning if the connection is not
    /// encrypted.
    ///
    /// # Errors
    /// Returns an error if a `mongodb+srv` name can't be looked up, or if the name's records contradict the
    /// URI.
    pub async fn mongodb(&self) -> Result<Client, Error> {
        transport::warn_of_plain_mongodb(&self.mongodb);

        let mut options = ClientOptions::parse(self.mongodb.expose()).await?;
        options.app_name.get_or_insert_with(|| self.name.into());
        options.server_selection_timeout.get_or_insert(TRY);
        options.connect_timeout.get_or_insert(TRY);

        Client::with_options(options)
    }
}

fn rabbitmq(read: &mut Reader<'_>, name: &str) -> Option<AmqpSettings> {
    let uri = read.uri("rabbitmq_uri");
    let settings = match AmqpSettings::new(uri.expose()) {
        Ok(settings) => Some(settings.named(name)),
        Err(error) => {
            read.problem(&["rabbitmq_uri"], error.to_string());
            None
        }
    };

    let files = TlsFiles {
        ca: read.path("rabbitmq_ca_file"),
        certificate: read.path("rabbitmq_cert_file"),
        key: read.path("rabbitmq_key_file"),
    };
    // Problems of the files are reported in addition to a problem of the URI.
    let checked = match settings {
        Some(settings) => settings.with_tls(files).map(Some),
        None => files.check().map(|()| None),
    };

    checked.unwrap_or_else(|error| {
        let key = match error.file() {
            TlsFile::Ca => "rabbitmq_ca_file",
            TlsFile::Certificate => "rabbitmq_cert_file",
            TlsFile::Key => "rabbitmq_key_file",
        };
        read.problem(&[key], error.to_string());
        None
    })
}
