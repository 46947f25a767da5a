//! [`Server`]: the relay's side of TLS towards its clients: its own certificate, and which clients' certificates it
//! accepts.
//!
//! Not here: the port, see `front::listen`. Always holds:
//! - if there are trusted authorities, each client has a certificate of one of them, as in etcd; it is neither expired
//!   nor revoked, and has one of the allowed names if there are any;
//! - a session is resumed only under the authorities and revocation lists under which it began, and only until the
//!   client's certificate expires;
//! - no data is accepted before the handshake has ended (no 0-RTT), so nothing can be replayed.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use metrics::gauge;
use rcgen::{CertificateParams, KeyPair};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, HandshakeKind, RootCertStore, ServerConfig,
    SignatureScheme,
    client::{danger::HandshakeSignatureValid, verify_server_name},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime},
    server::{
        NoServerSessionStorage, ParsedCertificate, ProducesTickets, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;

use super::{
    HandshakeError, Names, Suites, TlsError,
    files::{Contents, Digest},
    follow::follow,
    handshakes::Handshakes,
    pem,
};
use crate::telemetry::names::{self as metric_names, TlsCertificate, TlsSide};

/// The protocols that clients may speak over TLS. For clients that announce none, the first bytes decide, as without
/// TLS.
const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];
/// Tickets after a handshake. A client uses one for its next connection, and gets another one then.
const TICKETS: usize = 1;

/// A connection to a client.
pub type ServerStream<T> = tokio_rustls::server::TlsStream<T>;

/// How to serve TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerOptions {
    /// The relay's own certificate.
    pub source: Source,
    /// Authorities for clients' certificates. If there are any, each client must have a certificate.
    pub trusted_ca: Option<PathBuf>,
    /// Revoked certificates.
    pub crl: Option<PathBuf>,
    /// Names of which a client's certificate must have one; an empty list allows all.
    pub allowed_hostnames: Vec<String>,
    /// The versions and cipher suites.
    pub suites: Suites,
}

/// Where the relay's own certificate comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// From files.
    Files {
        /// The certificate, and those between it and its authority.
        cert: PathBuf,
        /// Its key.
        key: PathBuf,
    },
    /// Made for these names at the start, and self-signed.
    SelfSigned {
        /// Host names and addresses.
        hosts: Vec<String>,
        /// How long it is valid.
        validity: Duration,
    },
}

/// The relay's TLS server; see the module. Cheap to clone.
#[derive(Clone)]
pub struct Server {
    shared: Arc<Shared>,
}

struct Shared {
    options: ServerOptions,
    current: ArcSwap<Current>,
    handshakes: OnceLock<Handshakes>,
}

/// What new handshakes use.
struct Current {
    config: Arc<ServerConfig>,
    trust: Trust,
    own: Names,
    read: Digest,
}

/// Which clients are accepted. Their tickets are valid as long as this does not change.
#[derive(Clone)]
struct Trust {
    verifier: Arc<dyn ClientCertVerifier>,
    tickets: Arc<dyn ProducesTickets>,
    /// When the first of the authorities expires.
    not_after: Option<SystemTime>,
    read: Digest,
}

/// A client whose handshake succeeded.
#[derive(Debug)]
pub struct Accepted<T> {
    /// The connection.
    pub stream: ServerStream<T>,
    /// The names in its certificate, if it had to have one.
    pub names: Option<Arc<Names>>,
    /// Whether it resumed an earlier session.
    pub resumed: bool,
}

impl Server {
    /// Reads the files. Blocks.
    ///
    /// # Errors
    /// If they cannot be used.
    pub fn load(options: ServerOptions) -> Result<Self, TlsError> {
        let contents = Contents::read(options.paths())?;
        let current = Current::new(&options, &contents, None)?;
        let current = ArcSwap::from_pointee(current);
        Ok(Self { shared: Arc::new(Shared { options, current, handshakes: OnceLock::new() }) })
    }

    /// Starts the threads for handshakes, unless they run already.
    ///
    /// # Errors
    /// If the system gives no threads.
    pub fn start(&self) -> io::Result<()> {
        if self.shared.handshakes.get().is_none() {
            let started = Handshakes::start()?;
            // Another call may have been faster; these threads are then dropped.
            let _ = self.shared.handshakes.set(started);
        }
        Ok(())
    }

    /// Whether clients need a certificate.
    #[must_use]
    pub fn asks_for_certificates(&self) -> bool {
        self.shared.options.trusted_ca.is_some()
    }

    /// An acceptor without the threads and the limits of [`Self::handshake`]. It is meant for comparisons, not for
    /// serving.
    #[must_use]
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.shared.current.load().config.clone())
    }

    /// Performs the handshake with a client that has begun one. Cancel safe: if it is dropped, the connection is
    /// closed.
    ///
    /// # Errors
    /// If there is no usable connection. The client was told why, as far as TLS can express it.
    ///
    /// # Panics
    /// If it is called before [`Self::start`].
    pub async fn handshake<T>(&self, stream: T) -> Result<Accepted<T>, HandshakeError>
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let acceptor = self.acceptor();
        let handshakes = self.shared.handshakes.get().expect("a port starts them before it accepts");
        handshakes
            .run(async move {
                let stream = acceptor.accept(stream).await.map_err(|error| told(&error))?;
                let (_, session) = stream.get_ref();
                let resumed = session.handshake_kind() == Some(HandshakeKind::Resumed);
                let certificate = session.peer_certificates().and_then(<[_]>::first);
                let names = certificate.map(|certificate| Arc::new(Names::of(certificate)));
                if resumed && names.as_ref().is_some_and(|names| names.has_ended()) {
                    return Err(HandshakeError::Refused("it has expired since the session began".to_owned()));
                }
                Ok(Accepted { stream, names, resumed })
            })
            .await?
    }

    /// Follows the files forever; spawn it as a task.
    pub async fn keep(self) {
        let shared = self.shared;
        let current = shared.current.load_full();
        current.show();
        follow(shared.options.paths(), current.read, TlsSide::Port, |contents| {
            let before = shared.current.load_full();
            let next = Current::new(&shared.options, contents, Some(&before))?;
            next.show();
            shared.current.store(Arc::new(next));
            Ok(())
        })
        .await;
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Server").field(&self.shared.options).finish()
    }
}

impl ServerOptions {
    fn paths(&self) -> impl Iterator<Item = &Path> {
        let pair = match &self.source {
            Source::Files { cert, key } => [Some(cert), Some(key)],
            Source::SelfSigned { .. } => [None, None],
        };
        pair.into_iter().flatten().chain(self.trust_paths()).map(PathBuf::as_path)
    }

    fn trust_paths(&self) -> impl Iterator<Item = &PathBuf> {
        self.trusted_ca.iter().chain(&self.crl)
    }
}

impl Current {
    fn new(options: &ServerOptions, contents: &Contents, before: Option<&Self>) -> Result<Self, TlsError> {
        let read = contents.digest(options.trust_paths().map(PathBuf::as_path));
        let trust = match before {
            Some(before) if before.trust.read == read => before.trust.clone(),
            _ => Trust::new(options, contents, read)?,
        };
        let builder = ServerConfig::builder_with_provider(options.suites.provider()?)
            .with_protocol_versions(&options.suites.versions())
            .map_err(|error| TlsError::Nothing(error.to_string()))?
            .with_client_cert_verifier(trust.verifier.clone());
        let with = |(chain, key): (Vec<CertificateDer<'static>>, _)| {
            let own = Names::of(&chain[0]);
            let config = builder.clone().with_single_cert(chain, key).map_err(|error| options.source.unfit(&error))?;
            Ok::<_, TlsError>((config, own))
        };
        let (mut config, own) = match (&options.source, before) {
            (Source::Files { cert, key }, _) => with((pem::certificates(contents, cert)?, pem::key(contents, key)?))?,
            (Source::SelfSigned { hosts, validity }, None) => with(self_signed(hosts, *validity)?)?,
            // A self-signed certificate is made once, and kept when the authorities for clients change.
            (Source::SelfSigned { .. }, Some(before)) => {
                (builder.with_cert_resolver(before.config.cert_resolver.clone()), before.own.clone())
            }
        };
        if own.has_ended() {
            tracing::warn!("The relay's certificate has expired, and clients refuse it; renew it");
        }
        config.alpn_protocols = ALPN.map(<[u8]>::to_vec).to_vec();
        config.ticketer = trust.tickets.clone();
        config.send_tls13_tickets = TICKETS;
        // The clients keep their tickets; the relay keeps nothing of a connection that has ended.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(Self { config: Arc::new(config), trust, own, read: contents.whole() })
    }

    /// Updates the metrics.
    fn show(&self) {
        show(TlsCertificate::Port, Some(self.own.not_after()));
        show(TlsCertificate::PortCa, self.trust.not_after);
    }
}

impl Source {
    fn unfit(&self, error: &rustls::Error) -> TlsError {
        match self {
            Self::Files { cert, key } => {
                TlsError::Pair { cert: cert.clone(), key: key.clone(), cause: error.to_string() }
            }
            Self::SelfSigned { .. } => TlsError::Generate(error.to_string()),
        }
    }
}

impl Trust {
    fn new(options: &ServerOptions, contents: &Contents, read: Digest) -> Result<Self, TlsError> {
        let tickets = rustls::crypto::ring::Ticketer::new().map_err(|error| TlsError::Generate(error.to_string()))?;
        let Some(path) = &options.trusted_ca else {
            return Ok(Self { verifier: WebPkiClientVerifier::no_client_auth(), tickets, not_after: None, read });
        };
        let (roots, not_after) = pem::roots(contents, path)?;
        let verifier = verifier(options, contents, path, roots)?;
        Ok(Self { verifier, tickets, not_after, read })
    }
}

fn verifier(
    options: &ServerOptions,
    contents: &Contents,
    path: &Path,
    roots: Arc<RootCertStore>,
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let mut builder = WebPkiClientVerifier::builder_with_provider(roots, options.suites.provider()?);
    let mut blamed = path;
    if let Some(crl) = &options.crl {
        blamed = crl;
        // As in etcd, a certificate that no list mentions is not revoked.
        builder = builder.with_crls(pem::revocation_lists(contents, crl)?).allow_unknown_revocation_status();
    }
    let inner =
        builder.build().map_err(|error| TlsError::Trust { path: blamed.to_owned(), cause: error.to_string() })?;
    if options.allowed_hostnames.is_empty() {
        return Ok(inner);
    }
    let hostnames = options
        .allowed_hostnames
        .iter()
        .map(|name| {
            ServerName::try_from(name.clone())
                .map_err(|_| TlsError::Trust { path: path.to_owned(), cause: format!("`{name}` is not a host name") })
        })
        .collect::<Result<_, _>>()?;
    Ok(Arc::new(Hostnames { inner, hostnames }))
}

/// Accepts only clients whose certificate has one of some host names.
#[derive(Debug)]
struct Hostnames {
    inner: Arc<dyn ClientCertVerifier>,
    hostnames: Vec<ServerName<'static>>,
}

impl ClientCertVerifier for Hostnames {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.inner.verify_client_cert(end_entity, intermediates, now)?;
        let certificate = ParsedCertificate::try_from(end_entity)?;
        if self.hostnames.iter().any(|name| verify_server_name(&certificate, name).is_ok()) {
            Ok(verified)
        } else {
            Err(CertificateError::NotValidForName.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.inner.client_auth_mandatory()
    }

    fn offer_client_auth(&self) -> bool {
        self.inner.offer_client_auth()
    }
}

/// A self-signed certificate for some hosts, and its key.
fn self_signed(
    hosts: &[String],
    validity: Duration,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
    let failed = |error: rcgen::Error| TlsError::Generate(error.to_string());
    let mut params = CertificateParams::new(hosts).map_err(failed)?;
    params.distinguished_name.push(rcgen::DnType::CommonName, "etcd-relay");
    let now = SystemTime::now();
    // Clocks may differ a little.
    params.not_before = (now - Duration::from_secs(3600)).into();
    params.not_after = (now + validity).into();
    let key = KeyPair::generate().map_err(failed)?;
    let certificate = params.self_signed(&key).map_err(failed)?;
    Ok((vec![certificate.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into())))
}

/// What a failed handshake shows about the client.
fn told(error: &io::Error) -> HandshakeError {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(error @ (rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented)) => {
            HandshakeError::Refused(error.to_string())
        }
        Some(error) => HandshakeError::Failed(error.to_string()),
        None => HandshakeError::Failed(error.to_string()),
    }
}

/// Sets the metric of a certificate's expiry; zero if there is no certificate.
pub(super) fn show(certificate: TlsCertificate, not_after: Option<SystemTime>) {
    let since = |at: SystemTime| at.duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
    gauge!(metric_names::TLS_CERTIFICATE_NOT_AFTER, TlsCertificate::LABEL => certificate.as_str())
        .set(not_after.map_or(0.0, since));
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_certificate_that_the_relay_made_stays_the_same_when_the_authorities_of_clients_change() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let authority = || {
            let key = KeyPair::generate().expect("a key");
            let params = CertificateParams::new(Vec::new()).expect("no names");
            fs::write(file.path(), params.self_signed(&key).expect("a certificate").pem()).expect("written");
        };
        authority();
        let options = ServerOptions {
            source: Source::SelfSigned { hosts: vec!["localhost".to_owned()], validity: Duration::from_secs(3600) },
            trusted_ca: Some(file.path().to_owned()),
            crl: None,
            allowed_hostnames: Vec::new(),
            suites: Suites::default(),
        };
        let now = |before: Option<&Current>| {
            Current::new(&options, &Contents::read(options.paths()).expect("a file"), before).expect("usable files")
        };
        let first = now(None);
        authority();
        let second = now(Some(&first));
        assert_ne!(first.trust.read, second.trust.read);
        assert!(Arc::ptr_eq(&first.config.cert_resolver, &second.config.cert_resolver));
    }
}
