//! URIs that contain a password, and the parts of them that may be shown.

use std::{fmt, net::IpAddr};

/// The kind of server that a URI names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// `mongodb://` or `mongodb+srv://`.
    MongoDb,
    /// `amqp://` or `amqps://`.
    Amqp,
}

impl Scheme {
    pub(super) fn prefixes(self) -> [&'static str; 2] {
        match self {
            Self::MongoDb => ["mongodb://", "mongodb+srv://"],
            Self::Amqp => ["amqp://", "amqps://"],
        }
    }

    pub(super) fn example(self) -> &'static str {
        match self {
            Self::MongoDb => "mongodb://host:27017/?replicaSet=rs0",
            Self::Amqp => "amqps://user:password@host:5671/%2f",
        }
    }
}

/// A connection string. `Debug` and `Display` show it without its password and without the value of any
/// parameter that isn't known to be harmless; only [`Uri::expose`] returns the whole URI.
#[derive(Clone, PartialEq, Eq)]
pub struct Uri(String);

impl Uri {
    /// The whole connection string, for the driver only.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether every host is this machine: `localhost`, a loopback address, or a Unix socket.
    pub fn is_local(&self) -> bool {
        let rest = self.0.split_once("://").map_or("", |(_, rest)| rest);
        let (authority, _) = split_authority(rest);
        let hosts = authority.rsplit_once('@').map_or(authority, |(_, hosts)| hosts);
        !self.0.starts_with("mongodb+srv://") && hosts.split(',').all(is_local)
    }

    /// Whether the URI requests TLS. `mongodb+srv://` and any TLS option request it, unless `tls=false` is
    /// set.
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        let said = self.parameters().find(|(name, _)| name == "tls" || name == "ssl");
        match said {
            _ if self.0.starts_with("amqp") => self.0.starts_with("amqps://"),
            Some((_, value)) => value == "true",
            None => {
                self.0.starts_with("mongodb+srv://")
                    || self.parameters().any(|(name, _)| name.starts_with("tls"))
            }
        }
    }

    /// The parameter that disables the check of MongoDB's certificate, if the URI has one.
    #[must_use]
    pub fn skips_verification(&self) -> Option<&'static str> {
        let given = |wanted: &str| {
            self.parameters().any(|(name, value)| name.eq_ignore_ascii_case(wanted) && value != "false")
        };
        ["tlsInsecure", "tlsAllowInvalidCertificates", "tlsAllowInvalidHostnames"]
            .into_iter()
            .find(|name| given(name))
    }

    /// The name in lower case, and the value, of each parameter.
    fn parameters(&self) -> impl Iterator<Item = (String, &str)> {
        let parameters = self.0.split_once('?').map_or("", |(_, parameters)| parameters);
        let pairs = parameters.split(['?', '#', '&', ';']).filter_map(|piece| piece.split_once('='));
        pairs.map(|(name, value)| (name.to_ascii_lowercase(), value))
    }

    /// Checks the scheme and the shape; the driver checks the rest. The errors are sentences that quote no
    /// part of the URI.
    pub(crate) fn parse(text: &str, scheme: Scheme) -> Result<Self, String> {
        let [plain, other] = scheme.prefixes();
        let rest = text.strip_prefix(plain).or_else(|| text.strip_prefix(other));
        let Some(rest) = rest else {
            return Err(format!(
                "is not a valid URI (its value is not shown); start it with {plain} or {other}, as in {}",
                scheme.example()
            ));
        };
        match flaw(rest) {
            Some(flaw) => Err(format!("{flaw}; write it as in {}", scheme.example())),
            None => Ok(Self(text.into())),
        }
    }

    /// The value that [`Reader`](super::reader::Reader) returns instead of an invalid URI.
    pub(super) fn absent() -> Self {
        Self(String::new())
    }
}

/// The problem of a URI, given the part after its scheme.
fn flaw(rest: &str) -> Option<&'static str> {
    let (authority, tail) = split_authority(rest);
    let (user_info, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
    if rest.contains(|c: char| c.is_whitespace() || c.is_control()) {
        Some("contains white space; percent-encode it (a space is %20)")
    } else if user_info.contains('@') || user_info.matches(':').count() > 1 {
        Some("has a user name or password with `@` or `:` in it; percent-encode them as %40 and %3A")
    } else if !authority.contains('@') && tail.contains('@') && is_cut_off(hosts, tail) {
        Some(
            "has a user name or password with `/`, `?` or `#` in it; percent-encode them as %2F, %3F and %23",
        )
    } else if hosts.split(',').any(str::is_empty) {
        Some("names no host")
    } else if hosts.split(',').any(has_no_number_for_port) {
        Some("has a port that is not a number; if it is a password, add the missing host after it")
    } else {
        None
    }
}

fn split_authority(rest: &str) -> (&str, &str) {
    rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()))
}

/// Whether `tail` contains the `@` that ends the user name and the password. In this case a special character
/// in the password has ended `hosts` too early, and the beginning of the password appears to be a port. An
/// `@` in the value of a harmless option doesn't count.
fn is_cut_off(hosts: &str, tail: &str) -> bool {
    let (path, options) = tail.split_once('?').unwrap_or((tail, ""));
    if path.contains('@') {
        return true;
    }

    let behind_address = hosts.rsplit_once(']').map_or(hosts, |(_, port)| port);
    let is_an_option = |piece: &str| piece.split_once('=').is_some_and(|(name, _)| is_harmless(name));
    let mut strange = options.split('&').filter(|piece| piece.contains('@') && !is_an_option(piece));

    behind_address.contains(':') && strange.next().is_some()
}

/// Whether a host has a port that is not a number. An IPv6 address is in brackets.
fn has_no_number_for_port(host: &str) -> bool {
    let behind_address = host.rsplit_once(']').map_or(host, |(_, port)| port);
    behind_address.split_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_err())
}

/// Whether a host, written with its port as in a URI, is this machine.
fn is_local(host: &str) -> bool {
    let host = host.to_ascii_lowercase();
    // A single colon begins the port; an IPv6 address is in brackets.
    let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => host.split(':').next().unwrap_or_default(),
    };
    if let Ok(address) = name.parse::<IpAddr>() {
        return address.to_canonical().is_loopback();
    }

    #[expect(clippy::case_sensitive_file_extension_comparisons, reason = "it is in lower case")]
    let is_socket = name.ends_with(".sock");
    is_socket || name == "localhost" || name.ends_with(".localhost")
}

const MASK: &str = "***";

/// Parameters of MongoDB and AMQP URIs that contain no secret, in lower case. The values of all other
/// parameters are masked, so a misspelled parameter is masked, too.
const HARMLESS: [&str; 40] = [
    "appname",
    "auth_mechanism",
    "authmechanism",
    "authsource",
    "cacertfile",
    "certfile",
    "channel_max",
    "compressors",
    "connection_timeout",
    "connecttimeoutms",
    "directconnection",
    "frame_max",
    "heartbeat",
    "heartbeatfrequencyms",
    "journal",
    "loadbalanced",
    "localthresholdms",
    "maxconnecting",
    "maxidletimems",
    "maxpoolsize",
    "maxstalenessseconds",
    "minpoolsize",
    "readconcernlevel",
    "readpreference",
    "readpreferencetags",
    "replicaset",
    "retryreads",
    "retrywrites",
    "serverselectiontimeoutms",
    "sockettimeoutms",
    "srvmaxhosts",
    "srvservicename",
    "ssl",
    "tls",
    "tlsallowinvalidcertificates",
    "tlscafile",
    "tlscertificatekeyfile",
    "tlsinsecure",
    "w",
    "wtimeoutms",
];

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((scheme, rest)) = self.0.split_once("://") else {
            return f.write_str(MASK);
        };
        let (authority, tail) = split_authority(rest);
        write!(f, "{scheme}://")?;
        // If the URI has an `@` in another place, an apparent host can be a part of a password.
        if flaw(rest).is_some() || tail.contains('@') {
            return f.write_str(MASK);
        }
        match authority.split_once('@') {
            Some((user_info, hosts)) => match user_info.split_once(':') {
                Some((user, _)) => write!(f, "{user}:{MASK}@{hosts}")?,
                None => write!(f, "{user_info}@{hosts}")?,
            },
            None => f.write_str(authority)?,
        }
        let (path, parameters) = tail.split_at(tail.find(['?', '#']).unwrap_or(tail.len()));
        f.write_str(path)?;
        parameters.split_inclusive(['?', '#', '&', ';']).try_for_each(|piece| write_parameter(f, piece))
    }
}

/// Whether the value of this parameter contains no secret. The case of the name doesn't matter.
pub(crate) fn is_harmless(name: &str) -> bool {
    HARMLESS.contains(&name.to_ascii_lowercase().as_str())
}

/// Writes one `key=value` with its terminating separator.
fn write_parameter(f: &mut fmt::Formatter<'_>, piece: &str) -> fmt::Result {
    let (parameter, separator) = piece.split_at(piece.trim_end_matches(['?', '#', '&', ';']).len());
    match parameter.split_once('=') {
        Some((key, _)) if is_harmless(key) => f.write_str(parameter)?,
        Some((key, _)) => write!(f, "{key}={MASK}")?,
        None if parameter.is_empty() => {}
        None => f.write_str(MASK)?,
    }
    f.write_str(separator)
}

impl fmt::Debug for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Uri({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mongodb(text: &str) -> Result<Uri, String> {
        Uri::parse(text, Scheme::MongoDb)
    }

    #[test]
    fn a_uri_shows_its_user_hosts_and_harmless_parameters() {
        let uri = mongodb("mongodb://app:hunter2@a:27017,b:27017/shop?replicaSet=rs0&w=majority").unwrap();
        assert_eq!(uri.to_string(), "mongodb://app:***@a:27017,b:27017/shop?replicaSet=rs0&w=majority");
        assert_eq!(format!("{uri:?}"), format!("Uri({uri})"));
        assert_eq!(uri.expose(), "mongodb://app:hunter2@a:27017,b:27017/shop?replicaSet=rs0&w=majority");
    }

    #[test]
    fn a_uri_without_secrets_is_shown_whole() {
        for text in [
            "mongodb://127.0.0.1:27117/?replicaSet=rs0",
            "mongodb+srv://cluster.example.com",
            "mongodb://[::1]:27017/",
        ] {
            assert_eq!(mongodb(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_password_is_shown_in_no_place() {
        for text in [
            "mongodb://u:hunter2@h",
            "mongodb://u:@h/?tlsCertificateKeyFilePassword=hunter2",
            "mongodb://h/?TLSCERTIFICATEKEYFILEPASSWORD=hunter2&w=1",
            "mongodb://h/?authMechanismProperties=AWS_SESSION_TOKEN:hunter2,ENVIRONMENT:hunter2",
            "mongodb://h/?tlsCertificateKeyFilePaswsord=hunter2",
            "mongodb://h/?%70assword=hunter2",
            "mongodb://h/?proxyPassword=x@hunter2",
            "mongodb://h/?proxyPassword=hunter2@x&w=1",
            "mongodb://h?hunter2",
            "mongodb://h/#hunter2",
            "mongodb://h/?w=1#hunter2",
            "mongodb://h/?w=1;password=hunter2",
        ] {
            let uri = mongodb(text).unwrap();
            assert!(!format!("{uri} {uri:?}").contains("hunter2"), "{uri}");
        }
    }

    #[test]
    fn a_malformed_uri_is_refused_without_quoting_it() {
        for (text, reason) in [
            ("hunter2", "start it with mongodb://"),
            ("amqp://u:hunter2@h", "start it with mongodb://"),
            ("mongodb://", "names no host"),
            ("mongodb://u:hunter2@", "names no host"),
            ("mongodb://u:hunter2", "port that is not a number"),
            ("mongodb://u:p@hunter2@h", "%40"),
            ("mongodb://u:p:hunter2@h", "%3A"),
            ("mongodb://u:p/hunter2@h", "%2F"),
            ("mongodb://u:p hunter2@h", "%20"),
            ("mongodb://app:2024?hunter2@db1", "%3F"),
            ("mongodb://app:2024?x=hunter2@db1/", "%3F"),
            ("mongodb://app:2024#hunter2@db1", "%23"),
        ] {
            let sentence = mongodb(text).unwrap_err();
            assert!(sentence.contains(reason), "{sentence}");
            assert!(!sentence.contains("hunter2"), "{sentence}");
        }
    }

    #[test]
    fn a_uri_is_local_if_all_its_hosts_are() {
        for text in [
            "mongodb://localhost",
            "mongodb://u:p@127.0.0.1:27017,LOCALHOST:27018/shop",
            "mongodb://[::1]:27017",
            "mongodb://[::ffff:127.0.0.1]",
            "mongodb://%2Ftmp%2Fmongodb-27017.sock",
            "mongodb://rabbit.localhost",
        ] {
            assert!(mongodb(text).unwrap().is_local(), "{text}");
        }
        for text in [
            "mongodb://mongo",
            "mongodb://127.0.0.1,10.0.0.7",
            "mongodb://localhost@mongo",
            "mongodb://localhost.example.com",
            "mongodb://127.0.0.1.example.com",
            "mongodb://[2001:db8::7]",
            "mongodb://0.0.0.0",
            "mongodb://mongo/?x=localhost",
            "mongodb+srv://localhost",
        ] {
            assert!(!mongodb(text).unwrap().is_local(), "{text}");
        }
    }

    #[test]
    fn a_uri_is_encrypted_where_the_driver_would_encrypt() {
        for (text, encrypted) in [
            ("mongodb://h", false),
            ("mongodb://h/?tls=true", true),
            ("mongodb://h/?w=1&SSL=true", true),
            ("mongodb://h/?tlsCAFile=/ca.pem", true),
            ("mongodb+srv://h.example.com", true),
            ("mongodb+srv://h.example.com/?tls=false", false),
        ] {
            assert_eq!(mongodb(text).unwrap().is_encrypted(), encrypted, "{text}");
        }
        let amqp = |text| Uri::parse(text, Scheme::Amqp).unwrap().is_encrypted();
        assert!(amqp("amqps://h") && !amqp("amqp://h/?tls=true"));
    }

    #[test]
    fn what_skips_verification_is_named() {
        let skips = |text| mongodb(text).unwrap().skips_verification();
        assert_eq!(skips("mongodb://h/?tlsInsecure=true"), Some("tlsInsecure"));
        assert_eq!(skips("mongodb://h/?w=1&TLSINSECURE=true"), Some("tlsInsecure"));
        assert_eq!(
            skips("mongodb://h/?tlsAllowInvalidCertificates=true"),
            Some("tlsAllowInvalidCertificates")
        );
        assert_eq!(skips("mongodb://h/?tlsInsecure=false&tls=true"), None);
    }

    #[test]
    fn even_an_unchecked_uri_keeps_its_password() {
        for text in ["hunter2", "amqp://u:hunter2", "amqp://u:p/hunter2@h", "amqp://u:p?hunter2@h"] {
            assert!(!Uri(text.into()).to_string().contains("hunter2"));
        }
    }

    #[test]
    fn rabbitmq_takes_amqp_with_and_without_tls() {
        assert!(Uri::parse("amqp://guest:guest@127.0.0.1:5672/%2f", Scheme::Amqp).is_ok());
        assert!(Uri::parse("amqps://rabbit/?heartbeat=10", Scheme::Amqp).is_ok());
        assert!(Uri::parse("https://rabbit:15672", Scheme::Amqp).is_err());
    }
}
