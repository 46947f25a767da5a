//! TLS on both sides of the relay: real clients, good and bad certificates, changing files, and the identity of
//! clients.
//!
//! Always holds: the test creates the certificates. The test itself uses etcd's plain address, which exists beside the
//! one with TLS.

mod clients;
mod discovery;
mod faults;
mod identity;
mod reload;

use std::process::Stdio;

use tokio::process::Command;

use crate::support::{
    etcd::{Etcd, etcdctl},
    free_port,
    relay::{Relay, RelayCommand},
    tls::{Authority, Pair, flag},
};

/// An etcd that requires client certificates at its address with TLS.
pub(crate) struct SecureEtcd {
    etcd: Etcd,
    /// `host:port` with TLS.
    addr: String,
}

impl SecureEtcd {
    pub(crate) async fn start(ca: &Authority) -> Self {
        Self::start_with(ca, &[]).await
    }

    async fn start_with(ca: &Authority, more: &[&str]) -> Self {
        let addr = format!("127.0.0.1:{}", free_port());
        let Pair { cert, key, .. } = ca.pair("etcd");
        let flags = [
            format!("--listen-client-urls={{client-url}},https://{addr}"),
            flag("--cert-file", &cert),
            flag("--key-file", &key),
            flag("--trusted-ca-file", &ca.file()),
            "--client-cert-auth".to_owned(),
            "--bcrypt-cost=4".to_owned(),
        ];
        let flags: Vec<&str> = flags.iter().map(String::as_str).chain(more.iter().copied()).collect();
        Self { etcd: Etcd::start_with(&flags).await, addr }
    }

    /// A relay in front of it that presents `own`, with the whole key space as its feed.
    pub(crate) fn relay(&self, ca: &Authority, own: &Pair) -> RelayCommand {
        upstream(RelayCommand::serve(&[format!("https://{}", self.addr)]).prefix(""), ca, own)
    }
}

/// Adds the flags for the upstream.
fn upstream(command: RelayCommand, ca: &Authority, own: &Pair) -> RelayCommand {
    command.arg(&flag("--cacert", &ca.file())).arg(&flag("--cert", &own.cert)).arg(&flag("--key", &own.key))
}

/// A relay in front of an etcd without TLS that requires client certificates.
async fn mutual(etcd: &Etcd, ca: &Authority) -> Relay {
    let command = RelayCommand::serve(&[etcd.endpoint()]).prefix("").secure(&ca.pair("relay"));
    command.arg(&flag("--trusted-ca-file", &ca.file())).start().await
}

/// The output of `etcdctl` at `addr` with these certificates, or its error.
async fn ctl(addr: &str, ca: &Authority, pair: Option<&Pair>, args: &[&str]) -> Result<String, String> {
    let mut command = Command::new(etcdctl());
    command.env("ETCDCTL_API", "3").arg(format!("--endpoints=https://{addr}")).arg("--command-timeout=20s");
    command.arg(flag("--cacert", &ca.file()));
    if let Some(Pair { cert, key, .. }) = pair {
        command.arg(flag("--cert", cert)).arg(flag("--key", key));
    }
    let output = command.args(args).stdin(Stdio::null()).output().await.expect("etcdctl starts");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}
