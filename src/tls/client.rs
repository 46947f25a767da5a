//! [`Client`]: the relay's side of TLS towards etcd: which members it trusts, and its own certificate.
//!
//! Not here: the addresses of members, see `source::dial`. Always holds: a member's certificate is signed by a trusted
//! authority, and has the name or address under which the member is configured, unless the operator has turned that
//! off.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use arc_swap::ArcSwap;
use metrics::counter;
use rustls::{
    ClientConfig, DigitallySignedStruct, HandshakeKind, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

use super::{
    Names, TlsError,
    files::{Contents, Digest},
    follow::follow,
    pem, provider,
    server::show,
};
use crate::telemetry::names::{self, Connect, TlsCertificate, TlsSide};

/// A connection to a member.
pub type ClientStream<T> = tokio_rustls::client::TlsStream<T>;

/// How to reach members over TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientOptions {
    /// Authorities for members' certificates; the system's if it is not set.
    pub cacert: Option<PathBuf>,
    /// The relay's own certificate and key, for members that require one.
    pub pair: Option<(PathBuf, PathBuf)>,
    /// Whether every certificate of a member is accepted.
    pub insecure_skip_verify: bool,
    /// The name that members' certificates must have; by default the name under which the member is configured. It is
    /// for members whose names were learned from DNS, where an attacker may have changed them.
    pub server_name: Option<String>,
}

/// The protocol on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaks {
    /// HTTP/1.1, which needs no announcement.
    Http1,
    /// HTTP/2, which newer members accept only if it is announced.
    Http2,
}

/// The relay's TLS client; see the module. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

struct Shared {
    options: ClientOptions,
    current: ArcSwap<Current>,
}

/// What new connections use.
struct Current {
    http1: Arc<ClientConfig>,
    http2: Arc<ClientConfig>,
    own: Option<Names>,
    /// When the first of the authorities in the file expires.
    ca_not_after: Option<SystemTime>,
    read: Digest,
}

impl Client {
    /// Reads the files, and the system's authorities if no others are configured. Blocks.
    ///
    /// # Errors
    /// If they cannot be used.
    pub fn load(options: ClientOptions) -> Result<Self, TlsError> {
        let contents = Contents::read(options.paths())?;
        let current = ArcSwap::from_pointee(Current::new(&options, &contents)?);
        Ok(Self { shared: Arc::new(Shared { options, current }) })
    }

    /// The common name in the relay's own certificate, by which etcd may know it.
    #[must_use]
    pub fn common_name(&self) -> Option<String> {
        self.shared.current.load().own.as_ref().and_then(Names::common).map(str::to_owned)
    }

    /// Whether the relay has a certificate to show to members that require one.
    #[must_use]
    pub fn has_certificate(&self) -> bool {
        self.shared.options.pair.is_some()
    }

    /// Performs the handshake with the member named `host`. Cancel safe: if it is dropped, the connection is closed.
    ///
    /// # Errors
    /// If the member cannot be trusted or does not speak TLS. The text says what to check.
    pub async fn connect<T>(&self, host: &str, stream: T, speaks: Speaks) -> io::Result<ClientStream<T>>
    where
        T: AsyncRead + AsyncWrite + Unpin,
    {
        let host = self.shared.options.server_name.as_deref().unwrap_or(host);
        let name = ServerName::try_from(host.to_owned()).map_err(|_| {
            io::Error::new(io::ErrorKind::InvalidInput, format!("`{host}` is not a name that TLS can use"))
        })?;
        let config = {
            let current = self.shared.current.load();
            match speaks {
                Speaks::Http1 => current.http1.clone(),
                Speaks::Http2 => current.http2.clone(),
            }
        };
        let connected = TlsConnector::from(config).connect(name, stream).await;
        let outcome = if connected.is_ok() { Connect::Ok } else { Connect::Error };
        counter!(names::TLS_UPSTREAM_HANDSHAKES, Connect::LABEL => outcome.as_str()).increment(1);
        let stream = connected.map_err(|error| explained(&error))?;
        if stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed) {
            tracing::trace!(host, "Resumed a TLS session");
        }
        Ok(stream)
    }

    /// Follows the files forever; spawn it as a task.
    pub async fn keep(self) {
        let shared = self.shared;
        let current = shared.current.load_full();
        current.show();
        follow(shared.options.paths(), current.read, TlsSide::Upstream, |contents| {
            let next = Current::new(&shared.options, contents)?;
            next.show();
            shared.current.store(Arc::new(next));
            Ok(())
        })
        .await;
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Client").field(&self.shared.options).finish()
    }
}

impl ClientOptions {
    fn paths(&self) -> impl Iterator<Item = &Path> {
        let pair = self.pair.iter().flat_map(|(cert, key)| [cert, key]);
        self.cacert.iter().chain(pair).map(PathBuf::as_path)
    }
}

impl Current {
    fn new(options: &ClientOptions, contents: &Contents) -> Result<Self, TlsError> {
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| TlsError::Nothing(error.to_string()))?;
        let mut ca_not_after = None;
        let builder = if options.insecure_skip_verify {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(Unverified(provider())))
        } else if let Some(path) = &options.cacert {
            let (roots, not_after) = pem::roots(contents, path)?;
            ca_not_after = not_after;
            builder.with_root_certificates(roots)
        } else {
            builder.with_root_certificates(system_roots()?)
        };
        let (mut config, own) = match &options.pair {
            None => (builder.with_no_client_auth(), None),
            Some((cert, key)) => {
                let chain = pem::certificates(contents, cert)?;
                let own = Names::of(&chain[0]);
                let config = builder.with_client_auth_cert(chain, pem::key(contents, key)?).map_err(|error| {
                    TlsError::Pair { cert: cert.clone(), key: key.clone(), cause: error.to_string() }
                })?;
                (config, Some(own))
            }
        };
        if own.as_ref().is_some_and(Names::has_ended) {
            tracing::warn!("The relay's certificate for etcd has expired, and etcd refuses it; renew it");
        }
        let http1 = Arc::new(config.clone());
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self { http1, http2: Arc::new(config), own, ca_not_after, read: contents.whole() })
    }

    /// Updates the metrics.
    fn show(&self) {
        show(TlsCertificate::Upstream, self.own.as_ref().map(Names::not_after));
        show(TlsCertificate::UpstreamCa, self.ca_not_after);
    }
}

/// The authorities that this machine trusts.
fn system_roots() -> Result<Arc<RootCertStore>, TlsError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        return Err(TlsError::NoRoots(found.errors.first().map(ToString::to_string).unwrap_or_default()));
    }
    Ok(Arc::new(roots))
}

/// The error with advice on what to check after a failed handshake.
fn explained(error: &io::Error) -> io::Error {
    let Some(cause) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) else {
        return io::Error::new(error.kind(), format!("TLS handshake: {error}"));
    };
    let look = match cause {
        rustls::Error::InvalidMessage(_) => "does the server speak TLS, or is it an http:// URL?",
        rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer) => {
            "is --cacert the authority of its certificate?"
        }
        rustls::Error::InvalidCertificate(_) => "check the member's certificate",
        rustls::Error::AlertReceived(_) => "check --cert and --key, and the member's log",
        _ => "check the member's log",
    };
    io::Error::new(error.kind(), format!("TLS handshake: {cause}; {look}"))
}

/// Trusts every member that proves to have the key of its certificate.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

/// The scheme of the certificates that etcd makes with `--auto-tls`. ring cannot check it. If every certificate is
/// accepted, a check would only show that the member has the key of whatever certificate it sent.
const UNKNOWN_TO_RING: SignatureScheme = SignatureScheme::ECDSA_NISTP521_SHA512;

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        if signature.scheme == UNKNOWN_TO_RING {
            return Ok(HandshakeSignatureValid::assertion());
        }
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        if signature.scheme == UNKNOWN_TO_RING {
            return Ok(HandshakeSignatureValid::assertion());
        }
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let mut schemes = self.0.signature_verification_algorithms.supported_schemes();
        schemes.push(UNKNOWN_TO_RING);
        schemes
    }
}
