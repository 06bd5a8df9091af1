//! Opens one connection with one channel, and explains failures.

use std::{io, pin::Pin, sync::Arc, time::Duration};

use futures::{Stream, StreamExt};
use lapin::{
    Channel, Connection, ConnectionProperties, ErrorKind, Event,
    options::ConfirmSelectOptions,
    uri::{AMQPAuthority, AMQPUri},
};
use rustls::ClientConfig;
use tokio::time::timeout;

use crate::amqp::{
    settings::AmqpSettings,
    state::State,
    topology::Topology,
    transport,
    trouble::{Cause, Trouble, broker_said, code_of},
};

/// Maximum time for closing a connection.
const GOODBYE: Duration = Duration::from_secs(2);

/// What a supervisor needs to open its connections.
#[derive(Clone)]
pub(super) struct Plan {
    pub(super) settings: AmqpSettings,
    pub(super) topology: Topology,
    /// The end of the connection's name: `publisher`, `suspects` or `consumer`.
    pub(super) role: &'static str,
}

/// A connection, its channel with the topology applied, and the broker's notices about it.
pub(super) struct Link {
    pub(super) connection: Connection,
    pub(super) channel: Channel,
    pub(super) events: Pin<Box<dyn Stream<Item = Event> + Send>>,
}

impl From<Trouble> for State {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Unreachable(reason) => Self::Disconnected { reason },
            Trouble::Misconfigured(reason) => Self::Misconfigured { reason },
        }
    }
}

impl Plan {
    pub(super) fn name(&self) -> String {
        format!("{}/{}", self.settings.connection_name, self.role)
    }

    /// Opens a connection and a channel, and applies the topology. On a failure, closes everything and returns the
    /// reason.
    pub(super) async fn open(&self) -> Result<Link, Trouble> {
        let connection = self.connect().await?;
        let events = Box::pin(connection.events_listener());
        let channel = self.channel(&connection).await?;
        Ok(Link { connection, channel, events })
    }

    /// Opens a connection without channels.
    pub(super) async fn connect(&self) -> Result<Connection, Trouble> {
        self.in_time(self.dial()).await
    }

    /// Opens a channel and applies the topology over it.
    pub(super) async fn channel(&self, connection: &Connection) -> Result<Channel, Trouble> {
        self.in_time(async {
            let channel = connection.create_channel().await.map_err(|error| self.explain(&error))?;
            self.topology.apply(&channel).await?;
            Ok(channel)
        })
        .await
    }

    /// Opens a channel with publisher confirms.
    pub(super) async fn confirming_channel(&self, connection: &Connection) -> Result<Channel, Trouble> {
        self.in_time(async {
            let channel = connection.create_channel().await.map_err(|error| self.explain(&error))?;
            self.confirms(&channel).await?;
            Ok(channel)
        })
        .await
    }

    /// Turns on publisher confirms.
    pub(super) async fn confirms(&self, channel: &Channel) -> Result<(), Trouble> {
        let selected = channel.confirm_select(ConfirmSelectOptions::default());
        self.in_time(async { selected.await.map_err(|error| self.explain(&error)) }).await
    }

    /// Applies the topology again, over a separate channel, because the broker closes a channel on which it
    /// refuses a request.
    pub(super) async fn declare_again(&self, connection: &Connection) -> Result<(), Trouble> {
        let channel = self.channel(connection).await?;
        // The channel is no longer used, even if it doesn't close in time.
        let _ = timeout(GOODBYE, channel.close(200, "OK".into())).await;
        Ok(())
    }

    pub(super) async fn in_time<T>(
        &self,
        work: impl Future<Output = Result<T, Trouble>>,
    ) -> Result<T, Trouble> {
        let patience = self.settings.connect_timeout;
        match timeout(patience, work).await {
            Ok(done) => done,
            Err(_) => {
                Err(Trouble::Unreachable(format!("no answer from {} in {patience:?}", self.endpoint())))
            }
        }
    }

    async fn dial(&self) -> Result<Connection, Trouble> {
        let settings = &self.settings;
        let patience = settings.connect_timeout;
        let mut uri = settings.uri.clone();
        let heartbeat = settings.heartbeat.as_secs().clamp(1, u64::from(u16::MAX));
        uri.query.heartbeat.get_or_insert(u16::try_from(heartbeat).unwrap_or(u16::MAX));
        // The client's own recovery and retries stay off, which is the default, because the supervisor recovers and
        // retries.
        let options = ConnectionProperties::default().with_connection_name(self.name().into());
        let tls = settings.is_encrypted().then(|| self.tls()).transpose()?;
        Connection::connector(
            uri,
            transport::runtime(),
            // By default the client connects on a separate thread, which would outlive the timeout if packets are lost.
            async move |uri: AMQPUri, _| {
                let AMQPAuthority { host, port, .. } = &uri.authority;
                let connecting = transport::connect(host, *port, tls.clone());
                let connected = timeout(patience, connecting).await.map_err(|_| io::ErrorKind::TimedOut);
                Ok(connected.map_err(io::Error::from)??)
            },
            options,
        )
        .await
        .map_err(|error| self.explain(&error))
    }

    /// Creates the TLS configuration. This is done for each connection, because the files may have been renewed.
    fn tls(&self) -> Result<Arc<ClientConfig>, Trouble> {
        transport::client_config(&self.settings.tls).map_err(|reason| {
            Trouble::Misconfigured(format!(
                "cannot make an encrypted connection to {}: {reason}",
                self.endpoint()
            ))
        })
    }

    fn endpoint(&self) -> String {
        self.settings.endpoint()
    }

    pub(super) fn explain(&self, error: &lapin::Error) -> Trouble {
        let (endpoint, user, said) = (self.endpoint(), self.settings.user(), broker_said(error));
        match code_of(error) {
            Some(403) => Trouble::Misconfigured(format!(
                "{endpoint} refused user {user:?}: check the user, its password and its permissions ({said})"
            )),
            Some(530) => Trouble::Misconfigured(format!(
                "{endpoint} refused the virtual host: check that it exists and that user {user:?} may use it ({said})"
            )),
            _ => match tls_error(error) {
                Some(rustls::Error::InvalidCertificate(_)) => Trouble::Misconfigured(format!(
                    "the certificate of {endpoint} is not accepted: put the authority that signed it into the CA file (rabbitmq_ca_file), and use in the URI a host name for which the certificate was issued ({said})"
                )),
                Some(rustls::Error::AlertReceived(_)) => Trouble::Misconfigured(format!(
                    "{endpoint} refused the encrypted connection: it may require a client certificate; check the certificate and its key (rabbitmq_cert_file, rabbitmq_key_file) ({said})"
                )),
                Some(rustls::Error::InvalidMessage(_)) => Trouble::Misconfigured(format!(
                    "{endpoint} doesn't speak TLS: name the port for amqps, usually 5671 ({said})"
                )),
                _ => Trouble::Unreachable(format!("{endpoint}: {said}")),
            },
        }
    }
}

impl Link {
    /// Whether the client still considers the connection open.
    pub(super) fn alive(&self) -> bool {
        self.connection.status().connected() && self.channel.status().connected()
    }

    /// Closes the connection cleanly. If that takes too long, drops the connection.
    pub(super) async fn close(self) {
        close(&self.connection).await;
    }

    /// Waits for the next relevant event. Cancel safe.
    pub(super) async fn event(&mut self) -> ConnectionEvent {
        loop {
            match self.events.next().await {
                Some(Event::ConnectionBlocked(reason)) => return ConnectionEvent::Blocked(reason),
                Some(Event::ConnectionUnblocked) => return ConnectionEvent::Unblocked,
                Some(Event::Error(error)) => {
                    let reason = broker_said(&error);
                    return match Cause::of(&error) {
                        Cause::Channel(_) => ConnectionEvent::ChannelClosed(reason),
                        Cause::Connection(_) | Cause::Lost => ConnectionEvent::Lost(reason),
                    };
                }
                Some(_) => {}
                None => return ConnectionEvent::Lost("the connection ended".to_owned()),
            }
        }
    }
}

/// The broker's notices about a connection.
pub(super) enum ConnectionEvent {
    Blocked(String),
    Unblocked,
    /// The broker closed one of the connection's channels.
    ChannelClosed(String),
    Lost(String),
}

/// Closes a connection cleanly if possible.
pub(super) async fn close(connection: &Connection) {
    let _ = timeout(GOODBYE, connection.close(200, "OK".into())).await;
}

/// Returns the TLS error, if one is the cause.
fn tls_error(error: &lapin::Error) -> Option<&rustls::Error> {
    match error.kind() {
        ErrorKind::IOError(error) => error.get_ref()?.downcast_ref(),
        _ => None,
    }
}
