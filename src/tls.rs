//! Reads the certificate files for TLS and checks them before anything connects.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use mongodb::options::{ConnectionString, Tls};
use rustls::{
    RootCertStore,
    crypto::CryptoProvider,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject},
    },
    sign::CertifiedKey,
};

#[cfg(feature = "rustls-aws-lc")]
use rustls::crypto::aws_lc_rs as cryptography;
// If both features are on, use the library that the driver uses.
#[cfg(all(feature = "rustls-ring", not(feature = "rustls-aws-lc")))]
use rustls::crypto::ring as cryptography;

/// The PEM files for one TLS connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// A file with the only certificate authorities to trust for the server's certificate. Default: the system's
    /// authorities for RabbitMQ, Mozilla's for MongoDB.
    pub ca: Option<PathBuf>,
    /// The client certificate, followed by the intermediate certificates up to its authority.
    pub certificate: Option<PathBuf>,
    /// The unencrypted private key of the client certificate. May be the same file as the certificate.
    pub key: Option<PathBuf>,
}

/// The purpose of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::Display)]
pub enum TlsFile {
    /// [`TlsFiles::ca`].
    #[strum(serialize = "certificate of an authority")]
    Ca,
    /// [`TlsFiles::certificate`].
    #[strum(serialize = "certificate")]
    Certificate,
    /// [`TlsFiles::key`].
    #[strum(serialize = "key")]
    Key,
}

/// Why a TLS file can't be used, and how to repair it. The message never quotes the file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TlsFileError {
    /// The file doesn't exist, or this process may not read it.
    #[error("{} cannot be read ({reason}); put the {file} there in PEM format, readable by this process", path.display())]
    Unreadable {
        /// The purpose of the file.
        file: TlsFile,
        /// The path where the file is expected.
        path: PathBuf,
        /// The operating system's error.
        reason: String,
    },
    /// The file has no usable content of the expected kind.
    #[error("{} has no usable {file} ({reason}); put a {file} in PEM format there", path.display())]
    Unusable {
        /// The purpose of the file.
        file: TlsFile,
        /// The path of the file.
        path: PathBuf,
        /// Why the file can't be used.
        reason: String,
    },
    /// Only one of certificate and key was given.
    #[error("the matching {0} is missing; give both the certificate and its key, or neither")]
    Unpaired(TlsFile),
}

impl TlsFileError {
    /// The purpose of the file that must be repaired.
    #[must_use]
    pub fn file(&self) -> TlsFile {
        match self {
            Self::Unreadable { file, .. } | Self::Unusable { file, .. } | Self::Unpaired(file) => *file,
        }
    }
}

/// A certificate with its intermediate certificates, and its key.
pub(crate) type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

impl TlsFiles {
    /// Returns the files that a MongoDB URI names with `tlsCAFile` and `tlsCertificateKeyFile`. Names no files if the
    /// URI can't be parsed.
    ///
    /// These files are checked here because the driver accepts a CA file that contains no certificate, and then trusts
    /// no server. Also, the driver opens the certificate file only when the driver connects.
    #[must_use]
    pub fn of_mongodb(uri: &str) -> Self {
        match ConnectionString::parse(uri).map(|parsed| parsed.tls) {
            Ok(Some(Tls::Enabled(options))) => Self {
                ca: options.ca_file_path,
                certificate: options.cert_key_file_path.clone(),
                key: options.cert_key_file_path,
            },
            _ => Self::default(),
        }
    }

    /// Reads all files and checks that the key matches the certificate.
    ///
    /// # Errors
    /// [`TlsFileError`] for the first file that can't be used.
    pub fn check(&self) -> Result<(), TlsFileError> {
        self.authorities()?;
        self.identity()?;
        Ok(())
    }

    /// Returns the authorities to trust, at least one. `None` if no CA file was given.
    pub(crate) fn authorities(&self) -> Result<Option<Vec<CertificateDer<'static>>>, TlsFileError> {
        let Some(path) = &self.ca else {
            return Ok(None);
        };
        let certificates = certificates(TlsFile::Ca, path)?;
        match RootCertStore::empty().add_parsable_certificates(certificates.iter().cloned()) {
            (0, _) => Err(unusable(TlsFile::Ca, path, "none of its certificates can be parsed")),
            _ => Ok(Some(certificates)),
        }
    }

    /// Returns the client certificate to present. `None` if the client presents no certificate.
    pub(crate) fn identity(&self) -> Result<Option<Identity>, TlsFileError> {
        let (certificate, key) = match (&self.certificate, &self.key) {
            (None, None) => return Ok(None),
            (Some(_), None) => return Err(TlsFileError::Unpaired(TlsFile::Key)),
            (None, Some(_)) => return Err(TlsFileError::Unpaired(TlsFile::Certificate)),
            (Some(certificate), Some(key)) => (certificate, key),
        };
        let chain = certificates(TlsFile::Certificate, certificate)?;
        let bytes = read(TlsFile::Key, key)?;
        let der = PrivateKeyDer::from_pem_slice(&bytes)
            .map_err(|error| unusable(TlsFile::Key, key, what_pem_lacks(&error)))?;
        CertifiedKey::from_der(chain.clone(), der.clone_key(), &provider()).map_err(|error| {
            unusable(TlsFile::Key, key, &format!("together with the certificate: {error}"))
        })?;
        Ok(Some((chain, der)))
    }
}

/// Returns the cryptography library that the crate's features choose. Used by the other crates of this repository.
#[doc(hidden)]
pub fn provider() -> CryptoProvider {
    cryptography::default_provider()
}

fn certificates(file: TlsFile, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsFileError> {
    let bytes = read(file, path)?;
    let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match parsed {
        Ok(certificates) if certificates.is_empty() => {
            Err(unusable(file, path, what_pem_lacks(&pem::Error::NoItemsFound)))
        }
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(unusable(file, path, what_pem_lacks(&error))),
    }
}

fn read(file: TlsFile, path: &Path) -> Result<Vec<u8>, TlsFileError> {
    let unreadable =
        |error: io::Error| TlsFileError::Unreadable { file, path: path.into(), reason: error.to_string() };
    fs::read(path).map_err(unreadable)
}

fn unusable(file: TlsFile, path: &Path, reason: &str) -> TlsFileError {
    TlsFileError::Unusable { file, path: path.into(), reason: reason.into() }
}

/// Describes the error in our own words, because the parser's message quotes the file, which could be a key.
fn what_pem_lacks(error: &pem::Error) -> &'static str {
    match error {
        pem::Error::NoItemsFound => "no such section in the file",
        pem::Error::MissingSectionEnd { .. } => "the file ends in the middle of a section",
        _ => "the file is not PEM",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A certificate and its key, in PEM format.
    fn certificate() -> (String, String) {
        let rcgen::CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        (cert.pem(), signing_key.serialize_pem())
    }

    /// A temporary directory that is removed when dropped.
    struct Directory(PathBuf);

    impl Directory {
        fn create() -> Self {
            let path = std::env::temp_dir().join(format!("outbox-tls-{}", uuid::Uuid::now_v7().simple()));
            fs::create_dir(&path).unwrap();
            Self(path)
        }

        fn file(&self, name: &str, content: &str) -> Option<PathBuf> {
            let path = self.0.join(name);
            fs::write(&path, content).unwrap();
            Some(path)
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn matching_files_are_accepted_separate_or_combined() {
        let directory = Directory::create();
        let (certificate, key) = certificate();
        let ca = directory.file("ca.pem", &certificate);
        let both = directory.file("both.pem", &format!("{certificate}{key}"));
        let key = directory.file("key.pem", &key);
        for files in [
            TlsFiles::default(),
            TlsFiles { ca: ca.clone(), certificate: ca.clone(), key },
            TlsFiles { ca, certificate: both.clone(), key: both },
        ] {
            assert_eq!(files.check(), Ok(()), "{files:?}");
        }
    }

    #[test]
    fn an_unusable_file_is_named_but_never_quoted() {
        let directory = Directory::create();
        let (certificate, key) = certificate();
        let (_, other) = self::certificate();
        let good = directory.file("good.pem", &certificate);
        let key_file = directory.file("key.pem", &key);
        let cut = key.lines().take(2).collect::<Vec<_>>().join("\n");
        let no_der = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for (files, file, part) in [
            (
                TlsFiles { ca: Some("/nowhere/ca.pem".into()), ..Default::default() },
                TlsFile::Ca,
                "/nowhere/ca.pem cannot be read",
            ),
            (
                TlsFiles { ca: directory.file("empty", ""), ..Default::default() },
                TlsFile::Ca,
                "no such section",
            ),
            (TlsFiles { ca: key_file.clone(), ..Default::default() }, TlsFile::Ca, "no such section"),
            (
                TlsFiles { ca: directory.file("no", no_der), ..Default::default() },
                TlsFile::Ca,
                "can be parsed",
            ),
            (TlsFiles { certificate: good.clone(), ..Default::default() }, TlsFile::Key, "give both"),
            (TlsFiles { key: key_file, ..Default::default() }, TlsFile::Certificate, "give both"),
            (
                TlsFiles { certificate: good.clone(), key: directory.file("cut", &cut), ca: None },
                TlsFile::Key,
                "in the middle of a section",
            ),
            (
                TlsFiles { certificate: good, key: directory.file("other", &other), ca: None },
                TlsFile::Key,
                "together with the certificate",
            ),
        ] {
            let error = files.check().unwrap_err();
            assert_eq!(error.file(), file, "{error}");
            assert!(error.to_string().contains(part), "{error}");
            assert!(!error.to_string().contains(&key[40..60]), "{error}");
        }
    }

    #[test]
    fn files_in_mongodb_uris_match_the_drivers() {
        let files =
            TlsFiles::of_mongodb("mongodb://h/?tlsCAFile=%2Fetc%2Fca.pem&tlscertificatekeyfile=/etc/c.pem");
        let both = Some(PathBuf::from("/etc/c.pem"));
        assert_eq!(files, TlsFiles { ca: Some("/etc/ca.pem".into()), certificate: both.clone(), key: both });
        assert_eq!(TlsFiles::of_mongodb("mongodb://h/?tls=true"), TlsFiles::default());
        assert_eq!(TlsFiles::of_mongodb("no uri"), TlsFiles::default());
    }
}
