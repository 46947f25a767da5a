//! [`Callers`]: identifies the client of a request and decides whether the request is answered.
//!
//! While etcd's authentication is on, a request needs a user. Basic credentials are exchanged for one of etcd's tokens;
//! a token that a client got from etcd is passed on. etcd decides later what the user may read, as for gRPC. While
//! authentication is off, `--keys-from` decides by the address.
//!
//! Always holds: a request continues with an etcd token in its headers, or without any credentials. A browser on this
//! machine cannot be used by a page whose name merely resolves to this machine.

use std::time::Duration;

use http::{HeaderMap, HeaderValue, StatusCode, header, request::Parts};
use tokio::time::timeout;
use tonic::{Request, Status};

use super::reply::Failure;
use crate::{
    front::{
        access::{Access, Auth},
        client::Client,
        http::audience::{Audience, Gate},
        listen::ClientAddr,
        tokens::{Tokens, basic, scheme},
    },
    pb::etcdserverpb::{AuthenticateRequest, auth_client::AuthClient},
    rpc::{Caller, GrpcService},
};

/// How long a request waits until it is known whether authentication is on.
const KNOWN_PATIENCE: Duration = Duration::from_secs(5);
/// Timeout for etcd's check of a password.
const PATIENCE: Duration = Duration::from_secs(7);

const NO_USER: &str = "etcd's authentication is on: name a user with Basic credentials (curl -u NAME:PASSWORD), or send a token that etcd gave out \
                       (Authorization: Bearer TOKEN)";
const NO_SUCH_SCHEME: &str = "these Basic credentials cannot be read: they are base64 of NAME:PASSWORD, in UTF-8";

/// See the module.
#[derive(Debug)]
pub(super) struct Callers {
    pub(super) access: Access,
    /// Where etcd checks passwords.
    pub(super) calls: GrpcService,
    /// Who may read while authentication is off.
    pub(super) gate: Gate,
    tokens: Tokens,
}

impl Callers {
    pub(super) fn new(access: Access, calls: GrpcService, gate: Gate) -> Self {
        Self { access, calls, gate, tokens: Tokens::default() }
    }

    /// Replaces the credentials in `parts` by what etcd accepts.
    ///
    /// # Errors
    /// Fails if the request is not answered.
    pub(super) async fn admit(&self, parts: &mut Parts) -> Result<(), Failure> {
        let forbidden = |text: String| Failure::new(StatusCode::FORBIDDEN, text.trim_end());
        let addr = ClientAddr::of(&parts.extensions);
        let refusal = self.gate.refusal(parts.uri.path(), addr, &parts.headers);
        if self.gate.audience == Audience::Nobody {
            return refusal.map_or(Ok(()), |text| Err(forbidden(text)));
        }
        let credentials = parts.headers.remove(header::AUTHORIZATION);
        // Another name of the same header, which browsers do not use.
        parts.headers.remove("token");
        match self.access.wait_known(KNOWN_PATIENCE).await {
            Auth::Unknown => {
                return Err(Failure::unavailable(
                    "etcd-relay: cannot check whether etcd's authentication is on; retry",
                ));
            }
            Auth::Off => {
                if let Some(text) = refusal.or_else(|| self.gate.borrowed_name(&parts.uri, &parts.headers, addr)) {
                    return Err(forbidden(text));
                }
                return Ok(());
            }
            Auth::On => {}
        }
        let Some(credentials) = credentials else { return Err(Failure::new(StatusCode::UNAUTHORIZED, NO_USER)) };
        let token = self.token(&credentials, parts).await?;
        parts.headers.insert(header::AUTHORIZATION, token);
        Ok(())
    }

    /// Forgets the token of these credentials, which etcd no longer knows. Returns whether a new token may help.
    pub(super) fn forget(&self, credentials: Option<&HeaderValue>) -> bool {
        credentials.is_some_and(|credentials| self.tokens.forget(credentials))
    }

    async fn token(&self, credentials: &HeaderValue, parts: &Parts) -> Result<HeaderValue, Failure> {
        let unreadable = || Failure::new(StatusCode::UNAUTHORIZED, NO_SUCH_SCHEME);
        if let Some(token) = scheme(credentials.as_bytes(), b"Bearer ") {
            return secret(token).ok_or_else(unreadable);
        }
        if scheme(credentials.as_bytes(), b"Basic ").is_none() {
            // As in etcd's own gateway.
            return secret(credentials.as_bytes()).ok_or_else(unreadable);
        }
        if let Some(token) = self.tokens.get(credentials) {
            return Ok(token);
        }
        let (name, password) = basic(credentials).ok_or_else(unreadable)?;
        let mut request = Request::new(AuthenticateRequest { name, password });
        let client = Client::of(&HeaderMap::new(), &parts.extensions).key();
        Caller::of_client(client).mark(request.extensions_mut());
        let mut client = AuthClient::new(self.calls.clone());
        let answer = timeout(PATIENCE, client.authenticate(request)).await;
        let answer = answer.unwrap_or_else(|_| Err(Status::unavailable("etcdserver: request timed out")));
        let token = answer.map_err(|status| Failure::from(&status))?.into_inner().token;
        let unusable = || Failure::unavailable("etcd-relay: etcd gave a token that cannot be sent back");
        let token = secret(token.as_bytes()).ok_or_else(unusable)?;
        self.tokens.keep(credentials, token.clone());
        Ok(token)
    }
}

fn secret(token: &[u8]) -> Option<HeaderValue> {
    let mut token = HeaderValue::from_bytes(token).ok().filter(|token| !token.is_empty())?;
    token.set_sensitive(true);
    Some(token)
}
