//! Registers one instance of a service in etcd while this program runs:
//!
//!     cargo run --example register -- web http://10.0.0.1:8080
//!
//! The key `/services/web/INSTANCE` has a lease, so it is deleted within TTL seconds after this program dies, and at
//! once when it is stopped. See `../README.md` for the rules that this follows.

#![expect(clippy::print_stdout, reason = "a program that speaks to its user")]

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use etcd_client::{Error, PutOptions};
use tokio::time::{sleep, timeout};

use crate::etcd::{Backoff, Etcd, in_words, setting, told_to_stop};

mod etcd;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [service, address] = &arguments[..] else {
        bail!("usage: register SERVICE ADDRESS (environment: ETCD_ENDPOINTS, TTL in seconds, INSTANCE)");
    };
    let host = std::fs::read_to_string("/etc/hostname").unwrap_or_else(|_| "host".to_owned());
    let instance = setting("INSTANCE", &format!("{}-{}", host.trim(), std::process::id()));
    let ttl: u32 =
        setting("TTL", "10").parse().ok().filter(|ttl| *ttl >= 2).context("TTL must be 2 or more seconds")?;
    let mut registration = Registration {
        etcd: Etcd::connect().await?,
        name: format!("{service}/{instance}"),
        value: address.clone(),
        ttl: Duration::from_secs(ttl.into()),
        lease: None,
    };
    let ended = tokio::select! {
        ended = registration.keep() => ended,
        () = told_to_stop() => Ok(()),
    };
    registration.leave().await;
    ended
}

/// A key that exists while its process runs.
struct Registration {
    etcd: Etcd,
    name: String,
    value: String,
    ttl: Duration,
    lease: Option<i64>,
}

impl Registration {
    /// Registers, and keeps the registration forever. Fails only if the endpoints cannot be used at all.
    async fn keep(&mut self) -> anyhow::Result<()> {
        // An attempt, and the longest pause before the next one, take a fifth of the TTL each. The next renewal is due
        // after a third. So there is time for a server that does not answer, and then for another one, before the lease
        // ends.
        let mut backoff = Backoff::new(self.ttl / 5);
        let mut failed_since = None;
        loop {
            let error = match timeout(self.ttl / 5, self.renew()).await {
                Ok(Ok(())) => {
                    if let Some(since) = failed_since.take() {
                        println!("etcd answers again, after {:.1} s", Instant::elapsed(&since).as_secs_f64());
                    }
                    backoff.reset();
                    sleep(self.ttl / 3).await;
                    continue;
                }
                Ok(Err(error)) if is_lease_gone(&error) => {
                    println!("the lease is gone: registering again");
                    self.lease = None;
                    continue;
                }
                Ok(Err(error)) => in_words(&error.into()),
                Err(_) => "no answer in time".to_owned(),
            };
            // It is not known now whether the lease still lives. etcd will say so when it answers again.
            if failed_since.is_none() {
                failed_since = Some(Instant::now());
                println!("no answer from etcd, trying again: {error}");
            }
            self.etcd.move_on().await?;
            sleep(backoff.pause()).await;
        }
    }

    /// Makes sure that the lease lives and that the key is there, with this lease. Each step may be repeated, so a
    /// failure halfway does no harm.
    async fn renew(&mut self) -> Result<(), Error> {
        let client = &mut self.etcd.client;
        let lease = match self.lease {
            Some(lease) => {
                client.lease_keep_alive(lease).await?;
                lease
            }
            None => {
                let seconds = i64::try_from(self.ttl.as_secs()).expect("it was 32 bits");
                *self.lease.insert(client.lease_grant(seconds, None).await?.id())
            }
        };
        // The key may be gone although the lease lives: deleted by hand, or missing in a cluster that was restored from a backup.
        let key = format!("/services/{}", self.name);
        let found = client.get(key.clone(), None).await?;
        if found.kvs().first().is_some_and(|kv| kv.lease() == lease && kv.value() == self.value.as_bytes()) {
            return Ok(());
        }
        let put = client.put(key, self.value.clone(), Some(PutOptions::new().with_lease(lease))).await?;
        let revision = put.header().map_or(0, |header| header.revision());
        let (name, ttl) = (&self.name, self.ttl.as_secs());
        println!("registered {name} at revision {revision}, with lease {lease:x} and a TTL of {ttl} s");
        Ok(())
    }

    /// Deletes the key at once, by revoking its lease. If etcd does not answer, the lease ends by itself.
    async fn leave(&mut self) {
        let name = &self.name;
        if let Some(lease) = self.lease {
            let revoked = timeout(self.ttl / 5, self.etcd.client.lease_revoke(lease)).await;
            let error = match revoked {
                Ok(Err(error)) if !is_lease_gone(&error) => in_words(&error.into()),
                Err(_) => "no answer in time".to_owned(),
                Ok(_) => return println!("left {name}"),
            };
            return println!("left {name} without an answer from etcd: it goes within {:?} ({error})", self.ttl);
        }
        println!("left {name}");
    }
}

/// etcd does not know the lease: it has expired, was revoked, or is not in the backup that etcd was restored from.
fn is_lease_gone(error: &Error) -> bool {
    match error {
        Error::LeaseKeepAliveError(_) => true,
        Error::GRpcStatus(status) => status.message() == "etcdserver: requested lease not found",
        _ => false,
    }
}
