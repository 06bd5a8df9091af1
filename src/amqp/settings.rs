//! Settings for connecting to the broker.

use std::{fmt, time::Duration};

use lapin::uri::{AMQPScheme, AMQPUri};

use crate::amqp::publish::publication::SHORT_STRING;
use crate::tls::{TlsFileError, TlsFiles};

/// The broker's address, and the timeouts and limits of its connections.
///
/// `Debug` shows the endpoint and the user, never the password.
#[derive(Clone)]
pub struct AmqpSettings {
    pub(super) uri: AMQPUri,
    pub(super) tls: TlsFiles,
    /// The connection's name in the broker's list of connections, followed by `/publisher` or `/consumer`. Also sent
    /// with every message as the AMQP property `app_id`. Default: `document-outbox`.
    pub connection_name: String,
    /// Timeout for connecting, and for each request to the broker except publishing. Default: 10 s.
    pub connect_timeout: Duration,
    /// Timeout for publishing one window and receiving all its confirms. Default: 15 s.
    pub confirm_timeout: Duration,
    /// The AMQP heartbeat, in whole seconds. A connection that is silent for twice this long is considered dead. A
    /// `heartbeat` in the URI takes precedence. Default: 15 s.
    pub heartbeat: Duration,
    /// The first pause before reconnecting. Default: 100 ms.
    pub reconnect_min: Duration,
    /// The longest pause before reconnecting. Default: 5 s.
    pub reconnect_max: Duration,
    /// Maximum size of a message body. Longer bodies are refused without being sent, because the broker would close the
    /// channel. The broker's own limit, `max_message_size`, applies to shorter bodies. Default: 16 MiB, the default of
    /// RabbitMQ 4.
    pub max_message_bytes: usize,
    /// The interval at which an idle consumer checks whether its queue has messages that should have been delivered.
    /// Default: 30 s.
    pub consumer_check: Duration,
}

/// The problem with a broker's URI. The text never contains any part of the URI.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AmqpSettingsError {
    /// The scheme is neither `amqp` nor `amqps`.
    #[error("the RabbitMQ URI must begin with amqp:// or amqps://")]
    Scheme,
    /// There is no host between the scheme and the path.
    #[error("the RabbitMQ URI names no host: write amqp://user:password@host:5672/%2f")]
    Host,
    /// There are several hosts between the scheme and the path.
    #[error(
        "the RabbitMQ URI names several hosts, but a connection can have only one: give the name of a load balancer, or a DNS name with the addresses of all nodes; percent-encode '@' and ',' in a password"
    )]
    SeveralHosts,
    /// The path is only `/`, which names the virtual host with the empty name.
    #[error(
        "the RabbitMQ URI ends in '/', which names a virtual host with an empty name: write /%2f for the default virtual host, or leave out the slash"
    )]
    EmptyVhost,
    /// Any other problem, with the parser's text.
    #[error(
        "the RabbitMQ URI cannot be parsed ({0}): write amqp://user:password@host:5672/%2f, and percent-encode \
         special characters of the user, the password and the virtual host"
    )]
    Malformed(String),
}

impl AmqpSettings {
    /// Returns the default settings for a broker at `uri`, such as `amqp://user:password@host:5672/%2f`.
    ///
    /// The path of the URI is the percent-encoded virtual host. `amqps` means TLS, with the system's root certificates
    /// or those given to [`with_tls`](Self::with_tls).
    ///
    /// # Errors
    /// [`AmqpSettingsError`], which says what is wrong with the URI without repeating any of it.
    pub fn new(uri: &str) -> Result<Self, AmqpSettingsError> {
        Ok(Self {
            uri: parse(uri.trim())?,
            tls: TlsFiles::default(),
            connection_name: "document-outbox".to_owned(),
            connect_timeout: Duration::from_secs(10),
            confirm_timeout: Duration::from_secs(15),
            heartbeat: Duration::from_secs(15),
            reconnect_min: Duration::from_millis(100),
            reconnect_max: Duration::from_secs(5),
            max_message_bytes: 16 * 1024 * 1024,
            consumer_check: Duration::from_secs(30),
        })
    }

    /// Sets the [`connection_name`](Self::connection_name).
    #[must_use]
    pub fn named(mut self, connection_name: impl Into<String>) -> Self {
        self.connection_name = connection_name.into();
        self
    }

    /// Sets the certificates for `amqps`: the authority that signed the broker's certificate, and a client certificate.
    ///
    /// The files are read here to check them, and again for each connection, so that renewed certificates are used
    /// without a restart.
    ///
    /// # Errors
    /// [`TlsFileError`] for the first file that can't be used.
    pub fn with_tls(mut self, files: TlsFiles) -> Result<Self, TlsFileError> {
        files.check()?;
        self.tls = files;
        Ok(self)
    }

    /// Returns host, port and virtual host, for logs.
    #[must_use]
    pub fn endpoint(&self) -> String {
        let AMQPUri { authority, vhost, .. } = &self.uri;
        let host = &authority.host;
        let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        let vhost = if vhost == "/" { String::new() } else { format!(" (virtual host {vhost:?})") };
        format!("{host}:{}{vhost}", authority.port)
    }

    /// Returns the connection's name, cut to the length of an AMQP short string.
    pub(super) fn app_id(&self) -> &str {
        &self.connection_name[..self.connection_name.floor_char_boundary(SHORT_STRING)]
    }

    pub(super) fn is_encrypted(&self) -> bool {
        self.uri.scheme == AMQPScheme::AMQPS
    }

    pub(super) fn user(&self) -> &str {
        &self.uri.authority.userinfo.username
    }
}

impl fmt::Debug for AmqpSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AmqpSettings")
            .field("endpoint", &self.endpoint())
            .field("user", &self.user())
            .field("encrypted", &self.is_encrypted())
            .field("tls", &self.tls)
            .field("connection_name", &self.connection_name)
            .field("connect_timeout", &self.connect_timeout)
            .field("confirm_timeout", &self.confirm_timeout)
            .field("heartbeat", &self.heartbeat)
            .field("reconnect_min", &self.reconnect_min)
            .field("reconnect_max", &self.reconnect_max)
            .field("max_message_bytes", &self.max_message_bytes)
            .field("consumer_check", &self.consumer_check)
            .finish_non_exhaustive()
    }
}

fn parse(text: &str) -> Result<AMQPUri, AmqpSettingsError> {
    // Detect the most likely mistakes in the URI first, because the client's parser quotes the whole URI in some of its
    // errors.
    let rest = text
        .strip_prefix("amqp://")
        .or_else(|| text.strip_prefix("amqps://"))
        .ok_or(AmqpSettingsError::Scheme)?;
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = authority.rsplit('@').next().unwrap_or_default();
    if host.is_empty() || host.starts_with(':') {
        return Err(AmqpSettingsError::Host);
    }
    let first = authority.split('@').nth(1).unwrap_or(host);
    if host.contains([',', ';']) || first.contains(',') {
        return Err(AmqpSettingsError::SeveralHosts);
    }
    let mut uri: AMQPUri = text.parse().map_err(AmqpSettingsError::Malformed)?;
    if uri.vhost.is_empty() {
        return Err(AmqpSettingsError::EmptyVhost);
    }
    // The client accepts only names and IPv4 addresses as hosts; for an IPv6 address the client would connect to
    // localhost.
    if let Some((address, _)) = host.strip_prefix('[').and_then(|host| host.split_once(']')) {
        address.clone_into(&mut uri.authority.host);
    }
    Ok(uri)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uri(text: &str) -> AMQPUri {
        AmqpSettings::new(text).unwrap().uri
    }

    #[test]
    fn vhosts_are_percent_decoded_and_default_to_slash() {
        assert_eq!(uri("amqp://guest:guest@localhost:5672/%2f").vhost, "/");
        assert_eq!(uri("amqp://localhost").vhost, "/");
        assert_eq!(uri("amqp://localhost/team%2Fshop").vhost, "team/shop");
        assert_eq!(uri("amqp://user:s3,cret@localhost").authority.userinfo.password, "s3,cret");
    }

    #[test]
    fn an_ipv6_host_is_dialed_as_given() {
        assert_eq!(uri("amqp://u:p@[2001:db8::7]:5673/%2f").authority.host, "2001:db8::7");
        assert_eq!(AmqpSettings::new("amqp://[::1]").unwrap().endpoint(), "[::1]:5672");
    }

    #[test]
    fn a_wrong_uri_is_refused_without_quoting_it() {
        for (text, expected) in [
            ("", AmqpSettingsError::Scheme),
            ("s3cret", AmqpSettingsError::Scheme),
            ("user:s3cret@host", AmqpSettingsError::Scheme),
            ("http://user:s3cret@host", AmqpSettingsError::Scheme),
            ("amqp:user:s3cret@host", AmqpSettingsError::Scheme),
            ("amqp://", AmqpSettingsError::Host),
            ("amqp:///%2f", AmqpSettingsError::Host),
            ("amqp://user:s3cret@/", AmqpSettingsError::Host),
            ("amqp://user:s3cret@host/", AmqpSettingsError::EmptyVhost),
            ("amqp://user:s3cret@a,b/%2f", AmqpSettingsError::SeveralHosts),
            ("amqp://user:s3cret@a:5672,b:5672/%2f", AmqpSettingsError::SeveralHosts),
            ("amqp://user:s3cret@a,amqp://user:s3cret@b/%2f", AmqpSettingsError::SeveralHosts),
            ("amqp://user:s3cret@a,user:s3cret@b/%2f", AmqpSettingsError::SeveralHosts),
            ("amqps://a;b", AmqpSettingsError::SeveralHosts),
        ] {
            let error = AmqpSettings::new(text).unwrap_err();
            assert_eq!(error, expected, "{text}");
            assert!(!error.to_string().contains("s3cret"));
        }
        for text in ["amqp://user:s3cret#x@host", "amqp://user:s3cret@host:port/%2f", "amqp://u:%ff@h/"] {
            let error = AmqpSettings::new(text).unwrap_err();
            assert!(matches!(error, AmqpSettingsError::Malformed(_)), "{text}: {error}");
            assert!(!error.to_string().contains("s3cret"), "{error}");
        }
    }

    #[test]
    fn long_names_are_cut_between_characters() {
        let named = |name: &str| AmqpSettings::new("amqp://rabbit").unwrap().named(name);
        assert_eq!(named("orders").app_id(), "orders");
        assert_eq!(named(&"ä".repeat(200)).app_id(), "ä".repeat(127));
    }

    #[test]
    fn debug_shows_the_endpoint_and_never_the_password() {
        let settings = AmqpSettings::new("amqps://shop:s3cret@rabbit/orders").unwrap();
        let shown = format!("{settings:?}");
        assert!(
            shown.contains("rabbit:5671") && shown.contains("shop") && shown.contains("orders"),
            "{shown}"
        );
        assert!(!shown.contains("s3cret"), "{shown}");
    }
}
