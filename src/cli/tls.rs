//! TLS flags for clients and for etcd, and the settings made from them, for `serve` and `grpc-proxy start`.
//!
//! Always holds: files are read here, so an unusable file ends the start before a port is bound. A flag without effect
//! is refused, because the user would believe that it protects something.

use std::{path::PathBuf, time::Duration};

use clap::Args;

use super::{Exit, listen::ListenUrl};
use crate::tls::{self, ClientOptions, ServerOptions, Source, Suites, Version};

/// How long a certificate of `--auto-tls` is valid, as in etcd.
const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);

#[derive(Debug, Default, Args)]
#[command(next_help_heading = "TLS for clients")]
pub(super) struct PortTls {
    /// File with the server certificate in PEM form, followed by any intermediate certificates. All TLS files are read
    /// again when they change
    #[arg(long, env = "ETCD_RELAY_CERT_FILE", value_name = "FILE", requires = "key_file", conflicts_with = "auto_tls")]
    pub(super) cert_file: Option<PathBuf>,

    /// File with the private key of --cert-file
    #[arg(long, env = "ETCD_RELAY_KEY_FILE", value_name = "FILE", requires = "cert_file")]
    pub(super) key_file: Option<PathBuf>,

    /// File with the certificate authorities for clients. Each client at an https:// address then needs a certificate
    /// from one of them
    #[arg(long, env = "ETCD_RELAY_TRUSTED_CA_FILE", value_name = "FILE")]
    pub(super) trusted_ca_file: Option<PathBuf>,

    /// Require client certificates, as in etcd. It needs --trusted-ca-file, which already requires them
    #[arg(long, env = "ETCD_RELAY_CLIENT_CERT_AUTH", requires = "trusted_ca_file")]
    pub(super) client_cert_auth: bool,

    /// File with revoked client certificates: lists in PEM form, or one list in DER form. Open connections are kept
    #[arg(long, env = "ETCD_RELAY_CLIENT_CRL_FILE", value_name = "FILE", requires = "trusted_ca_file")]
    pub(super) client_crl_file: Option<PathBuf>,

    /// Host names of which a client certificate must have one. Repeatable, or separated by commas. Default: any
    #[arg(
        long,
        env = "ETCD_RELAY_CLIENT_CERT_ALLOWED_HOSTNAME",
        value_name = "NAME",
        value_delimiter = ',',
        requires = "trusted_ca_file"
    )]
    pub(super) client_cert_allowed_hostname: Vec<String>,

    /// Cipher suites of TLS 1.2, in order of preference. Repeatable, or separated by commas. Those of TLS 1.3 are
    /// always on. Default: all supported suites
    #[arg(long, env = "ETCD_RELAY_CIPHER_SUITES", value_name = "SUITE", value_delimiter = ',')]
    pub(super) cipher_suites: Vec<String>,

    /// Oldest TLS version that clients may use: TLS1.2 or TLS1.3. Default: TLS1.2
    #[arg(long, env = "ETCD_RELAY_TLS_MIN_VERSION", value_name = "VERSION")]
    pub(super) tls_min_version: Option<Version>,

    /// Newest TLS version that clients may use: TLS1.2 or TLS1.3. Default: TLS1.3
    #[arg(long, env = "ETCD_RELAY_TLS_MAX_VERSION", value_name = "VERSION")]
    pub(super) tls_max_version: Option<Version>,

    /// Serve TLS with a self-signed certificate, generated at each start and not stored. It protects against
    /// eavesdropping, but clients cannot verify the server
    #[arg(long, env = "ETCD_RELAY_AUTO_TLS")]
    pub(super) auto_tls: bool,

    /// Validity of the certificate of `--auto-tls`, in years.
    #[arg(skip)]
    pub(super) years: Option<u32>,
}

impl PortTls {
    /// Whether there is a certificate, from a file or generated.
    pub(super) fn is_given(&self) -> bool {
        self.cert_file.is_some() || self.key_file.is_some() || self.auto_tls
    }

    /// Whether the certificate is generated at the start.
    pub(super) fn is_auto(&self) -> bool {
        self.auto_tls
    }

    /// The TLS settings for those of `urls` that use https://; `None` if there are none.
    pub(super) fn server(&self, urls: &[ListenUrl]) -> Result<Option<tls::Server>, Exit> {
        let usage = |text: &str| Exit::Usage(text.to_owned());
        let is_secure = urls.iter().any(|url| url.0.secure);
        let is_told = self.is_given()
            || self.trusted_ca_file.is_some()
            || self.client_crl_file.is_some()
            || !self.cipher_suites.is_empty()
            || self.tls_min_version.is_some()
            || self.tls_max_version.is_some();
        if !is_secure {
            return if is_told {
                Err(usage(
                    "flags for TLS are given (--cert-file, --auto-tls or others), but no listen address begins with \
                     https://",
                ))
            } else {
                Ok(None)
            };
        }
        let source = match (&self.cert_file, &self.key_file) {
            (Some(cert), Some(key)) => Source::Files { cert: cert.clone(), key: key.clone() },
            (None, None) if self.auto_tls => {
                let years = self.years.unwrap_or(1).clamp(1, 100);
                Source::SelfSigned { hosts: hosts(urls), validity: YEAR * years }
            }
            (None, None) => return Err(usage("https:// needs --cert-file and --key-file, or --auto-tls")),
            _ => return Err(usage("--cert-file and --key-file belong together; give both or neither")),
        };
        let suites = self.suites()?;
        let options = ServerOptions {
            source,
            trusted_ca: self.trusted_ca_file.clone(),
            crl: self.client_crl_file.clone(),
            allowed_hostnames: self.client_cert_allowed_hostname.clone(),
            suites,
        };
        if options.trusted_ca.is_none() && options.crl.is_some() {
            return Err(usage(
                "--client-crl-file needs --trusted-ca-file: without it, clients are not asked for \
                certificates",
            ));
        }
        let flags = "--cert-file, --key-file, --trusted-ca-file, --client-crl-file";
        tls::Server::load(options).map(Some).map_err(|error| Exit::Usage(format!("{flags}: {error}")))
    }

    fn suites(&self) -> Result<Suites, Exit> {
        let all = Suites::default();
        let (min, max) = (self.tls_min_version.unwrap_or(all.min), self.tls_max_version.unwrap_or(all.max));
        if min > max {
            return Err(Exit::Usage("--tls-min-version is newer than --tls-max-version".to_owned()));
        }
        if min > Version::Tls12 && !self.cipher_suites.is_empty() {
            return Err(Exit::Usage("--cipher-suites is for TLS 1.2, which --tls-min-version turns off".to_owned()));
        }
        Suites::new(min, max, self.cipher_suites.iter().map(|name| name.trim()))
            .map_err(|error| Exit::Usage(format!("--cipher-suites: {error}")))
    }
}

/// The host names and addresses for which a generated certificate is valid.
fn hosts(urls: &[ListenUrl]) -> Vec<String> {
    let mut hosts = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    hosts.extend(rustix::system::uname().nodename().to_str().ok().filter(|name| !name.is_empty()).map(str::to_owned));
    hosts.extend(urls.iter().map(|url| url.0.addr.ip()).filter(|ip| !ip.is_unspecified()).map(|ip| ip.to_string()));
    hosts.sort_unstable();
    hosts.dedup();
    hosts
}

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "TLS to etcd")]
pub(super) struct UpstreamTls {
    /// File with the certificate authorities for members with https://, in PEM form. Default: those that this machine
    /// trusts
    #[arg(long, env = "ETCD_RELAY_CACERT", value_name = "FILE")]
    pub(super) cacert: Option<PathBuf>,

    /// File with the relay's client certificate in PEM form, for members that require one, followed by any intermediate
    /// certificates. Forwarded calls never act as the user named in it
    #[arg(long, env = "ETCD_RELAY_CERT", value_name = "FILE", requires = "key")]
    pub(super) cert: Option<PathBuf>,

    /// File with the private key of --cert
    #[arg(long, env = "ETCD_RELAY_KEY", value_name = "FILE", requires = "cert")]
    pub(super) key: Option<PathBuf>,

    /// Accept any certificate from a member. Anyone between the relay and etcd can then read and change everything
    #[arg(long, env = "ETCD_RELAY_INSECURE_SKIP_TLS_VERIFY")]
    pub(super) insecure_skip_tls_verify: bool,
}

impl UpstreamTls {
    /// Whether any of the flags was given.
    pub(super) fn is_given(&self) -> bool {
        self.cacert.is_some() || self.cert.is_some() || self.key.is_some() || self.insecure_skip_tls_verify
    }

    /// The TLS client settings for the URLs of the flag `named`; `None` if none uses https://. Certificates must be
    /// valid for `server_name`, if it is given.
    pub(super) fn client(
        self,
        is_secure: bool,
        named: &str,
        server_name: Option<String>,
        warnings: &mut Vec<String>,
    ) -> Result<Option<tls::Client>, Exit> {
        if !is_secure {
            if self.is_given() {
                return Err(Exit::Usage(format!(
                    "--cacert, --cert, --key and --insecure-skip-tls-verify need an https:// URL, but {named} has none"
                )));
            }
            return Ok(None);
        }
        let pair = match (self.cert, self.key) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            _ => return Err(Exit::Usage("--cert and --key belong together; give both or neither".to_owned())),
        };
        if self.insecure_skip_tls_verify {
            warnings.push(
                "--insecure-skip-tls-verify: anyone between the relay and etcd can read and change everything"
                    .to_owned(),
            );
        }
        let insecure_skip_verify = self.insecure_skip_tls_verify;
        let options = ClientOptions { cacert: self.cacert, pair, insecure_skip_verify, server_name };
        let client =
            tls::Client::load(options).map_err(|error| Exit::Usage(format!("--cacert, --cert, --key: {error}")))?;
        if let Some(name) = client.common_name() {
            warnings.push(format!(
                "the common name of --cert is `{name}`. If etcd's authentication is on, the relay reads its feeds as \
                 that user, unless --upstream-user sets another. Calls of clients never act as that user"
            ));
        }
        Ok(Some(client))
    }
}
