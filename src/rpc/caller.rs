//! [`Caller`]: the client that a call to etcd is charged to, in the extensions of its request.
//!
//! Fronts put it there, one for all requests of a connection, and whatever forwards a request reads it. Always holds: a
//! request without one is the relay's own.

use std::sync::Arc;

use http::Extensions;
use tokio_util::sync::CancellationToken;

use crate::types::ClientKey;

/// See the module. Requests carry a reference to it.
#[derive(Debug)]
pub struct Caller {
    /// The client that the request is charged to.
    pub client: ClientKey,
    /// Cancelled when the client's connection is asked to leave; `None` without a connection.
    pub leave: Option<CancellationToken>,
}

impl Caller {
    /// A caller without a connection.
    #[must_use]
    pub fn of_client(client: ClientKey) -> Arc<Self> {
        Arc::new(Self { client, leave: None })
    }

    /// Marks a request as one of this caller's.
    pub fn mark(self: &Arc<Self>, extensions: &mut Extensions) {
        extensions.insert(self.clone());
    }

    /// The client that a request is charged to.
    #[must_use]
    pub fn client_of(extensions: &Extensions) -> ClientKey {
        extensions.get::<Arc<Self>>().map_or(ClientKey::RELAY, |caller| caller.client)
    }

    /// Cancelled when the connection of a request is asked to leave. Without a connection it is `otherwise`.
    #[must_use]
    pub fn leave_of(extensions: &Extensions, otherwise: &CancellationToken) -> CancellationToken {
        Self::leave(extensions.get::<Arc<Self>>().map(|caller| &**caller), otherwise)
    }

    /// The same for a caller.
    #[must_use]
    pub fn leave(caller: Option<&Self>, otherwise: &CancellationToken) -> CancellationToken {
        caller.and_then(|caller| caller.leave.as_ref()).unwrap_or(otherwise).clone()
    }
}
