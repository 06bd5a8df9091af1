//! Checks a connection string with the driver before any connection, and reports problems without any part
//! of a secret.

use std::{
    pin::pin,
    task::{Context, Poll, Waker},
};

use mongodb::{
    error::{Error, ErrorKind},
    options::{ClientOptions, ConnectionString, HostInfo},
};

use crate::process::settings::{self, Uri};

/// The reason why the driver would refuse the URI, as a sentence that continues from the name of
/// the key; `None` if the driver accepts the URI.
///
/// The driver's own text names the flaw but may quote a value, or something that the driver mistakes for a
/// value: for example, a password that contains a `?` ends up among the options. So the driver's text is
/// passed on only if it contains no part of the URI that could be secret.
pub(crate) fn refusal(uri: &Uri) -> Option<String> {
    let text = uri.expose();
    let error = parse(text).err()?;

    let culprits = culprits(text);
    let subject = match culprits.as_slice() {
        [] => "is refused by MongoDB's driver".to_owned(),
        [one] => format!("has the option {one}, which MongoDB's driver refuses"),
        several => {
            format!("has the options {}, which MongoDB's driver refuses together", several.join(" and "))
        }
    };

    Some(match harmless_words(&error, text) {
        Some(words) => format!("{subject}: {words}"),
        None if culprits.is_empty() => format!(
            "{subject}; percent-encode special characters in the user name and the password (`:` is %3A, \
             `/` %2F, `?` %3F, `@` %40)"
        ),
        None => format!("{subject}; correct the value, which is not shown, or leave it out"),
    })
}

/// Parses the URI as the driver does, except that `mongodb+srv` names are not resolved.
fn parse(text: &str) -> Result<(), Error> {
    let parsed = ConnectionString::parse(text)?;
    if matches!(parsed.host_info, HostInfo::DnsRecord(_)) {
        return Ok(());
    }

    // Without a name to resolve, the first poll returns the result.
    let options = pin!(ClientOptions::parse(parsed).into_future());
    match options.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(options) => options.map(drop),
        Poll::Pending => Ok(()),
    }
}

/// The names of the options that cause the refusal, spelled as in the URI: without any one of these options,
/// the driver would accept the URI. Empty if there is no such option, or if a name could be a part of a
/// password.
fn culprits(text: &str) -> Vec<&str> {
    let Some((before, options)) = text.split_once('?') else {
        return Vec::new();
    };
    if options.contains('@') {
        return Vec::new();
    }

    let pieces: Vec<&str> = options.split('&').collect();
    let mut names: Vec<&str> = Vec::new();
    for (place, piece) in pieces.iter().enumerate() {
        if let Some((name, _)) = piece.split_once('=')
            && !names.contains(&name)
            && parse(&without(before, &pieces, place)).is_ok()
        {
            names.push(name);
        }
    }
    names
}

/// The URI without the option at `place`.
fn without(before: &str, options: &[&str], place: usize) -> String {
    let mut kept = options.to_vec();
    kept.remove(place);
    if kept.is_empty() { before.to_owned() } else { format!("{before}?{}", kept.join("&")) }
}

/// The driver's text, unless it contains a word of the user name, of the password, or of an option's value
/// that is not plainly harmless.
fn harmless_words(error: &Error, text: &str) -> Option<String> {
    let ErrorKind::InvalidArgument { message, .. } = error.kind.as_ref() else {
        return None;
    };
    let rest = text.split_once("://").map_or("", |(_, rest)| rest);
    let (before, options) = rest.split_once('?').unwrap_or((rest, ""));
    if options.contains('@') {
        return None;
    }

    let said = message.to_lowercase();
    let credentials = before.rsplit_once('@').map_or("", |(credentials, _)| credentials);
    // Without credentials in the URI, an apparent host can be a password whose `@` was forgotten.
    let hidden = if credentials.is_empty() { before } else { credentials };
    let values = options.split('&').filter_map(|piece| match piece.split_once('=') {
        Some((name, value)) => (!settings::is_harmless(name)).then_some(value),
        None => Some(piece),
    });
    let quotes_one = std::iter::once(hidden)
        .chain(values)
        .flat_map(|text| text.split(|c: char| !c.is_alphanumeric()))
        .any(|word| !word.is_empty() && has_word(&said, &word.to_lowercase()));

    (!quotes_one).then(|| message.clone())
}

/// Whether `text` contains `word` as a whole word.
fn has_word(text: &str, word: &str) -> bool {
    text.split(|c: char| !c.is_alphanumeric()).any(|other| other == word)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::settings::Scheme;

    fn refused(text: &str) -> Option<String> {
        refusal(&Uri::parse(text, Scheme::MongoDb).unwrap())
    }

    #[test]
    fn what_the_driver_takes_is_not_refused() {
        for text in [
            "mongodb://127.0.0.1:27117/?replicaSet=rs0",
            "mongodb://app:p%40ss@a:27017,b/shop?w=majority&readPreference=primary&maxPoolSize=50",
            "mongodb://h/?compressors=zstd,zlib,snappy&zlibCompressionLevel=3",
            "mongodb+srv://u:p@cluster.example.com/?appName=orders",
            "mongodb://h:27017/?appName=a@b",
        ] {
            assert_eq!(refused(text), None, "{text}");
        }
    }

    #[test]
    fn what_the_driver_refuses_is_named_by_its_option() {
        for (text, option) in [
            ("mongodb://h/?maxPoolSize=abc", "maxPoolSize"),
            ("mongodb://h/?readPreference=nearby", "readPreference"),
            ("mongodb://h/?w=-1", "w"),
            ("mongodb://h/?proxyHost=p", "proxyHost"),
            ("mongodb://h/?tls=yes", "tls"),
            ("mongodb://h/?replicaset=rs0&foo=1", "foo"),
            ("mongodb://h/?authMechanism=X", "authMechanism"),
            ("mongodb://h/?compressors=lz4", "compressors"),
            ("mongodb://h/?socketTimeoutMS=1", "socketTimeoutMS"),
            ("mongodb://h/?maxPoolSize=0", "maxPoolSize"),
            ("mongodb://a,b/?directConnection=true", "directConnection"),
            ("mongodb://h/?heartbeatFrequencyMS=1", "heartbeatFrequencyMS"),
            ("mongodb://h/?w=1&w=2", "w"),
        ] {
            let sentence = refused(text).expect(text);
            assert!(sentence.contains(&format!(" {option}, which")), "{text}: {sentence}");
        }
    }

    #[test]
    fn a_flaw_of_the_hosts_is_a_sentence_too() {
        for text in [
            "mongodb://u:p@[bad",
            "mongodb+srv://h:27017",
            "mongodb+srv://a,b",
            "mongodb://u:p%zz@h",
            "mongodb://h:0",
        ] {
            let sentence = refused(text).expect(text);
            assert!(sentence.starts_with("is refused by MongoDB's driver"), "{text}: {sentence}");
        }
    }

    #[test]
    fn no_piece_of_a_secret_is_quoted() {
        for text in [
            "mongodb://u:p@h/?authMechanismProperties=AWS_SESSION_TOKEN=hunter2",
            "mongodb://u:p@h/?authMechanismProperties=hunter2",
            "mongodb://u:p@h/?uuidRepresentation=hunter2",
            "mongodb://u:p@h/?tlsCertificateKeyFilePassword=hunter2",
            "mongodb://u:p@h/?proxyHost=x&proxyPort=hunter2",
            "mongodb://hunter2:p%zz@h",
            "mongodb://u:hunter2%zz@h",
            "mongodb://u:20?x=hunter2&y=hunter2",
            "mongodb://u:20?hunter2",
        ] {
            let sentence = refused(text).expect(text);
            assert!(!sentence.contains("hunter2"), "{text}: {sentence}");
        }
    }
}
