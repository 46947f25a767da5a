//! [`Authority`]: certificates for tests, good ones and each kind of bad one, and connections with them.
//!
//! Always holds: each test creates new certificates, and their files are removed with it.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use hyper_util::rt::TokioIo;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber,
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::{Channel, Endpoint};

use super::eventually;

/// A certificate authority, with a folder for files.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: TempDir,
}

/// A certificate and its key, as files.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The certificate's file.
    pub cert: PathBuf,
    /// The key's file.
    pub key: PathBuf,
    /// The serial number by which it can be revoked.
    pub serial: u64,
}

/// The content of a certificate.
#[derive(Clone, Debug)]
pub struct Leaf<'a> {
    /// The common name; empty for none.
    pub common: &'a str,
    /// Host names and addresses.
    pub hosts: &'a [&'a str],
    /// Its validity, in seconds from now.
    pub lasts: (i64, i64),
    /// The serial number by which it can be revoked.
    pub serial: u64,
}

impl Default for Leaf<'_> {
    fn default() -> Self {
        Self { common: "", hosts: &["localhost", "127.0.0.1"], lasts: (-3600, 86_400), serial: 1 }
    }
}

/// Seconds from now.
fn at(seconds: i64) -> SystemTime {
    let by = Duration::from_secs(seconds.unsigned_abs());
    if seconds < 0 { SystemTime::now() - by } else { SystemTime::now() + by }
}

impl Authority {
    /// Creates an authority with this name.
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a certificate");
        let folder = tempfile::Builder::new().prefix("etcd-relay-test-").tempdir().expect("a temporary folder");
        let authority = Self { issuer, folder };
        authority.write("ca.pem", &authority.issuer.pem());
        authority
    }

    /// The file with its own certificate.
    pub fn file(&self) -> PathBuf {
        self.path("ca.pem")
    }

    /// The path of a file with this name.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A valid certificate for this machine, without a common name.
    pub fn pair(&self, file: &str) -> Pair {
        self.issue(file, &Leaf::default())
    }

    /// Issues a certificate, in files that begin with `file`.
    pub fn issue(&self, file: &str, leaf: &Leaf<'_>) -> Pair {
        let hosts: Vec<String> = leaf.hosts.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(hosts).expect("names");
        params.distinguished_name = DistinguishedName::new();
        if !leaf.common.is_empty() {
            params.distinguished_name.push(DnType::CommonName, leaf.common);
        }
        params.not_before = at(leaf.lasts.0).into();
        params.not_after = at(leaf.lasts.1).into();
        params.serial_number = Some(SerialNumber::from(leaf.serial));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate().expect("a key");
        let cert = params.signed_by(&key, &self.issuer).expect("a certificate");
        Pair {
            cert: self.write(&format!("{file}.pem"), &cert.pem()),
            key: self.write(&format!("{file}.key"), &key.serialize_pem()),
            serial: leaf.serial,
        }
    }

    /// Writes a file with the revocation of these certificates.
    pub fn revoke(&self, file: &str, serials: &[u64]) -> PathBuf {
        let params = CertificateRevocationListParams {
            this_update: at(-60).into(),
            next_update: at(86_400).into(),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials
                .iter()
                .map(|serial| RevokedCertParams {
                    serial_number: SerialNumber::from(*serial),
                    revocation_time: at(-60).into(),
                    reason_code: None,
                    invalidity_date: None,
                })
                .collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = params.signed_by(&self.issuer).expect("a list").pem().expect("PEM");
        self.write(file, &list)
    }

    /// Writes a file atomically.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let (path, draft) = (self.path(name), self.path(&format!(".{name}.new")));
        fs::write(&draft, text).expect("written");
        fs::rename(&draft, &path).expect("renamed");
        path
    }

    /// The configuration of a client that trusts this authority and presents `pair`.
    pub fn client(&self, pair: Option<&Pair>) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).expect("a certificate");
        let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots);
        let mut config = match pair {
            None => builder.with_no_client_auth(),
            Some(Pair { cert, key, .. }) => {
                let chain = vec![CertificateDer::from_pem_file(cert).expect("a certificate")];
                let key = PrivateKeyDer::from_pem_file(key).expect("a key");
                builder.with_client_auth_cert(chain, key).expect("a pair")
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        config
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("folder", &self.folder).finish_non_exhaustive()
    }
}

/// A flag that names a file.
pub fn flag(name: &str, file: &Path) -> String {
    format!("{name}={}", file.display())
}

/// Makes a handshake with `addr` (`host:port`).
pub async fn connect(addr: &str, config: &Arc<ClientConfig>) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(addr).await?;
    let name = ServerName::try_from("127.0.0.1").expect("a name");
    TlsConnector::from(config.clone()).connect(name, stream).await
}

/// A connection for gRPC to `addr` (`host:port`).
pub async fn channel(addr: &str, config: ClientConfig) -> Channel {
    let config = Arc::new(config);
    let addr = addr.to_owned();
    let connector = tower::service_fn({
        let addr = addr.clone();
        move |_: http::Uri| {
            let (addr, config) = (addr.clone(), config.clone());
            async move { connect(&addr, &config).await.map(TokioIo::new) }
        }
    });
    let endpoint = Endpoint::from_shared(format!("http://{addr}")).expect("a URL");
    eventually(&format!("{addr} shakes hands"), async || endpoint.connect_with_connector(connector.clone()).await.ok())
        .await
}
