//! How clients get to a server and say who they are: [`connect`], [`Token`].
//!
//! Not here: patience. A server may be away for a while, which its clients find out in time.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use tonic::{
    Request,
    transport::{Channel, Endpoint},
};

use crate::support::client::WatchStream;

/// A server that takes no connection for as long is away.
const CONNECT: Duration = Duration::from_secs(1);
/// A client's deadline for one call.
pub const DEADLINE: Duration = Duration::from_secs(5);

/// The user that clients are, while authentication is on; shared by all.
#[derive(Clone, Debug, Default)]
pub struct Token(Arc<Mutex<Option<String>>>);

impl Token {
    /// From now on.
    pub fn set(&self, token: String) {
        *self.0.lock() = Some(token);
    }

    /// A watch stream with it.
    pub fn stream(&self, channel: Channel) -> WatchStream {
        let token = self.0.lock().clone();
        let metadata: Vec<_> = token.iter().map(|token| ("token", token.as_str())).collect();
        WatchStream::over(channel, &metadata)
    }

    /// A request with it.
    pub fn on<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(token) = &*self.0.lock() {
            request.metadata_mut().insert("token", token.parse().expect("a token is ASCII"));
        }
        request
    }
}

/// A connection of its own.
pub async fn connect(endpoint: &str) -> Option<Channel> {
    target(endpoint).connect().await.ok()
}

/// A connection that is made when it is needed, and again after it broke.
pub fn lasting(endpoint: &str) -> Channel {
    target(endpoint).connect_lazy()
}

fn target(endpoint: &str) -> Endpoint {
    Endpoint::from_shared(endpoint.to_owned()).expect("a URL").connect_timeout(CONNECT).tcp_nodelay(true)
}
