//! The transport of a connection: TCP, with or without TLS.
//!
//! The AMQP client has its own TLS feature, but that feature links 50 more crates, most of them for reading PKCS#12:
//! ciphers such as DES and RC2, X.509 parsers, big integers. None of these crates is needed here, because certificates
//! are PEM files, and rustls is linked for MongoDB anyway. So the client is built without TLS and gets a stream that is
//! already encrypted.

use std::{
    io::{self, Read, Write},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use async_rs::{Runtime, Tokio, traits::Reactor, util::RuntimeParts};
use futures::{AsyncRead, AsyncWrite, Stream};
use lapin::tcp::AsyncTcpStream;
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_util::compat::TokioAsyncReadCompatExt;

use crate::tls::{TlsFiles, provider};

/// The stream that the client uses, encrypted or not.
pub(super) type Wire = Box<dyn Duplex>;

/// The runtime that the client uses: Tokio, with this transport instead of a TCP stream.
pub(super) type Wired = Runtime<RuntimeParts<Tokio, Sockets>>;

pub(super) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// Tokio's timers and sockets.
#[derive(Clone, Debug)]
pub(super) struct Sockets(Tokio);

/// Returns the runtime of the calling task.
pub(super) fn runtime() -> Wired {
    let tokio = Tokio::current();
    Runtime::new(RuntimeParts::new(tokio.clone(), Sockets(tokio)))
}

/// Connects to the host, and encrypts the connection if `tls` is given.
pub(super) async fn connect(
    host: &str,
    port: u16,
    tls: Option<Arc<ClientConfig>>,
) -> io::Result<AsyncTcpStream<Wire>> {
    let stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;

    let Some(tls) = tls else {
        return Ok(AsyncTcpStream::Plain(Box::new(stream.compat())));
    };
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    let encrypted = TlsConnector::from(tls).connect(name, stream).await?;
    Ok(AsyncTcpStream::Plain(Box::new(encrypted.compat())))
}

/// Creates the TLS configuration with the trusted authorities and the client certificate. The error text is meant as
/// the end of a sentence.
pub(super) fn client_config(files: &TlsFiles) -> Result<Arc<ClientConfig>, String> {
    let mut roots = RootCertStore::empty();
    match files.authorities().map_err(|error| error.to_string())? {
        // The authorities of a CA file replace the system's authorities.
        Some(authorities) => roots.add_parsable_certificates(authorities),
        None => roots.add_parsable_certificates(authorities_of_this_machine()?),
    };

    let builder = ClientConfig::builder_with_provider(Arc::new(provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots);
    let config = match files.identity().map_err(|error| error.to_string())? {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).map_err(|error| error.to_string())?,
        None => builder.with_no_client_auth(),
    };
    Ok(Arc::new(config))
}

fn authorities_of_this_machine() -> Result<Vec<rustls::pki_types::CertificateDer<'static>>, String> {
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        let reason = found.errors.first().map_or_else(|| "none found".to_owned(), ToString::to_string);
        return Err(format!("this system has no trusted certificate authorities ({reason}); give a CA file"));
    }
    Ok(found.certs)
}

impl Reactor for Sockets {
    type TcpStream = Wire;
    type Sleep = <Tokio as Reactor>::Sleep;

    /// Never called, because the client does not register its own handles.
    fn register<H: Read + Write + Send + 'static>(
        &self,
        _: H,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        Err::<Wire, _>(io::ErrorKind::Unsupported.into())
    }

    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.0.sleep(duration)
    }

    fn interval(&self, duration: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.0.interval(duration)
    }

    fn tcp_connect_addr(
        &self,
        address: SocketAddr,
    ) -> impl Future<Output = io::Result<Self::TcpStream>> + Send + 'static {
        let connecting = self.0.tcp_connect_addr(address);
        async { connecting.await.map(|stream| Box::new(stream) as Wire) }
    }
}
