//! How clients connect to a server and identify themselves: [`connect`], [`Token`].
//!
//! There are no retries here. A server may be away for a while, which its clients notice in time.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use tonic::{
    Request,
    transport::{Channel, Endpoint},
};

use crate::support::client::WatchStream;

/// A server that accepts no connection within this time is away.
const CONNECT: Duration = Duration::from_secs(1);
/// A client's deadline for one call.
pub const DEADLINE: Duration = Duration::from_secs(5);

/// The user of the clients while authentication is on, shared by all clients.
#[derive(Clone, Debug, Default)]
pub struct Token(Arc<Mutex<Option<String>>>);

impl Token {
    /// Sets the token for later calls.
    pub fn set(&self, token: String) {
        *self.0.lock() = Some(token);
    }

    /// A watch stream with the token.
    pub fn stream(&self, channel: Channel) -> WatchStream {
        let token = self.0.lock().clone();
        let metadata: Vec<_> = token.iter().map(|token| ("token", token.as_str())).collect();
        WatchStream::over(channel, &metadata)
    }

    /// A request with the token.
    pub fn on<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(token) = &*self.0.lock() {
            request.metadata_mut().insert("token", token.parse().expect("a token is ASCII"));
        }
        request
    }
}

/// Opens a separate connection.
pub async fn connect(endpoint: &str) -> Option<Channel> {
    target(endpoint).connect().await.ok()
}

/// A connection that is opened when it is needed, and again after it broke.
pub fn lasting(endpoint: &str) -> Channel {
    target(endpoint).connect_lazy()
}

fn target(endpoint: &str) -> Endpoint {
    Endpoint::from_shared(endpoint.to_owned()).expect("a URL").connect_timeout(CONNECT).tcp_nodelay(true)
}
