//! What all three programs need: the connection to etcd, pauses between attempts, and a stop signal.
//!
//! One connection to one endpoint at a time: when a call fails or gets no answer, the caller moves on to the next endpoint.
//! (`etcd-client` can spread calls over several endpoints, but goes on sending calls to one that is frozen.)

use std::{env, time::Duration};

use etcd_client::{Client, ConnectOptions, Error};
use tokio::signal::unix::{SignalKind, signal};

/// A connection to one of `ETCD_ENDPOINTS`: relays, members of etcd, or both.
pub(crate) struct Etcd {
    endpoints: Vec<String>,
    pub(crate) client: Client,
}

impl Etcd {
    /// Returns at once. The connection is made when it is needed.
    pub(crate) async fn connect() -> anyhow::Result<Self> {
        let list = setting("ETCD_ENDPOINTS", "http://127.0.0.1:23790");
        let mut endpoints: Vec<String> = list.split(',').map(str::to_owned).collect();
        // Clients start at different endpoints, so that no endpoint gets all of them.
        fastrand::shuffle(&mut endpoints);
        let client = Self::open(&endpoints[0]).await?;
        Ok(Self { endpoints, client })
    }

    /// Moves on to the next endpoint.
    pub(crate) async fn move_on(&mut self) -> anyhow::Result<()> {
        self.endpoints.rotate_left(1);
        self.client = Self::open(&self.endpoints[0]).await?;
        Ok(())
    }

    async fn open(endpoint: &str) -> anyhow::Result<Client> {
        let options = ConnectOptions::new()
            .with_connect_timeout(Duration::from_secs(2))
            // A server that is frozen, or behind a broken network, does not close connections: only pings notice it.
            // etcd ends connections that send more than one ping in five seconds.
            .with_keep_alive(Duration::from_secs(10), Duration::from_secs(5))
            .with_keep_alive_while_idle(true)
            // The member must know a leader: one that is cut off from the others would stay silent.
            .with_require_leader(true);
        Ok(Client::connect([endpoint], Some(options)).await?)
    }
}

/// The pause before the next attempt. It doubles with each failure, and differs from client to client, so that a thousand
/// clients that lost the same server do not come back in the same instant.
pub(crate) struct Backoff {
    longest: Duration,
    next: Duration,
}

impl Backoff {
    pub(crate) fn new(longest: Duration) -> Self {
        Self { longest, next: Duration::ZERO }
    }

    /// How long to wait now.
    pub(crate) fn pause(&mut self) -> Duration {
        self.next = (2 * self.next).max(Duration::from_millis(100)).min(self.longest);
        self.next.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    /// Call this when an attempt has succeeded.
    pub(crate) fn reset(&mut self) {
        self.next = Duration::ZERO;
    }
}

/// Describes a failed call.
pub(crate) fn in_words(error: &anyhow::Error) -> String {
    match error.downcast_ref() {
        Some(Error::GRpcStatus(status)) => status.message().to_owned(),
        _ => format!("{error:#}"),
    }
}

/// A variable of the environment, or its default.
pub(crate) fn setting(name: &str, default: &str) -> String {
    env::var(name).ok().filter(|value| !value.is_empty()).unwrap_or_else(|| default.to_owned())
}

/// Completes at SIGTERM or Ctrl-C.
pub(crate) async fn told_to_stop() {
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        // If no handler can be installed, the signals end the process by themselves.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
