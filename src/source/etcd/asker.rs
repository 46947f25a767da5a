//! [`Asker`]: the questions to one member that are asked all the time: what its revision is, and whether it answers.
//!
//! They are encoded once, and go over the pool's short calls without etcd's client library, since every linearizable
//! read waits for one. The relay's rarer requests use that library (`etcd`). Not here: which member is asked, how long
//! it may take, and what follows from the answer. Always holds: a question with a name carries the token of the relay's
//! user, if there is one and authentication is on; when the member refuses the token, the relay authenticates once for
//! all who wait, and asks once more.

use std::sync::Arc;

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue,
    header::{self, HeaderName},
};
use parking_lot::Mutex;
use tokio::sync::Mutex as Turns;
use tonic::{Code, Status};

use super::{Identity, is_auth_off};
use crate::{
    pb::etcdserverpb::{AuthenticateRequest, AuthenticateResponse, RangeRequest, RangeResponse},
    source::pool::{Pool, framed},
    types::Revision,
};

const RANGE: &str = "/etcdserverpb.KV/Range";
const AUTHENTICATE: &str = "/etcdserverpb.Auth/Authenticate";
const TOKEN: HeaderName = HeaderName::from_static("token");
/// A member without a leader refuses the question at once, instead of letting it wait.
const NEEDS_LEADER: HeaderName = HeaderName::from_static("hasleader");

/// The questions, encoded. All of them count one key, so their answers have nothing but a header and a number.
#[derive(Clone, Debug)]
pub(super) struct Questions {
    key: Bytes,
    /// What the revision is that the cluster agrees on.
    pub(super) current: Bytes,
    /// What the member itself has.
    pub(super) serializable: Bytes,
}

impl Questions {
    /// About a key that the relay may read.
    pub(super) fn new(key: &Bytes) -> Self {
        let question = RangeRequest { key: key.clone(), count_only: true, ..RangeRequest::default() };
        let current = framed(&question);
        let serializable = framed(&RangeRequest { serializable: true, ..question });
        Self { key: key.clone(), current, serializable }
    }

    /// The same as `current`, which the cluster refuses if it does not have `revision`.
    pub(super) fn at(&self, revision: Option<Revision>) -> Bytes {
        let Some(revision) = revision else { return self.current.clone() };
        let (key, revision) = (self.key.clone(), revision.get());
        framed(&RangeRequest { key, revision, count_only: true, ..RangeRequest::default() })
    }
}

/// Asks one member; see the module.
#[derive(Debug)]
pub(super) struct Asker {
    pool: Pool,
    identity: Option<Identity>,
    nameless: HeaderMap,
    /// What the questions with a name carry; `None` before the first one, and when the token is not valid any more.
    pass: Mutex<Option<Arc<Pass>>>,
    /// Held while the relay authenticates.
    authenticating: Turns<()>,
}

/// The fields of a question.
#[derive(Debug)]
struct Pass {
    fields: HeaderMap,
    has_token: bool,
}

impl Asker {
    pub(super) fn new(pool: Pool, identity: Option<Identity>) -> Self {
        let nameless = HeaderMap::from_iter([
            (header::TE, HeaderValue::from_static("trailers")),
            (header::CONTENT_TYPE, HeaderValue::from_static("application/grpc")),
            (NEEDS_LEADER, HeaderValue::from_static("true")),
        ]);
        Self { pool, identity, nameless, pass: Mutex::default(), authenticating: Turns::default() }
    }

    /// Asks as the relay's user. Cancel safe.
    ///
    /// # Errors
    /// The member's status, or one that says why there is no answer.
    pub(super) async fn ask(&self, question: Bytes) -> Result<RangeResponse, Status> {
        let pass = self.pass().await?;
        match self.pool.ask(RANGE, &pass.fields, question.clone()).await {
            Err(status) if status.code() == Code::Unauthenticated && pass.has_token => {
                self.pass.lock().take_if(|known| Arc::ptr_eq(known, &pass));
                let renewed = self.pass().await?;
                self.pool.ask(RANGE, &renewed.fields, question).await
            }
            answer => answer,
        }
    }

    /// Asks without a name. Cancel safe.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub(super) async fn ask_nameless(&self, question: Bytes) -> Result<RangeResponse, Status> {
        self.pool.ask(RANGE, &self.nameless, question).await
    }

    /// Makes the next question with a name authenticate again.
    pub(super) fn forget_token(&self) {
        *self.pass.lock() = None;
    }

    /// What a question with a name carries.
    async fn pass(&self) -> Result<Arc<Pass>, Status> {
        if let Some(known) = self.known() {
            return Ok(known);
        }
        let _turn = self.authenticating.lock().await;
        if let Some(known) = self.known() {
            return Ok(known);
        }
        let token = match &self.identity {
            Some(identity) => self.authenticate(identity).await?,
            None => None,
        };
        let mut fields = self.nameless.clone();
        let has_token = token.is_some();
        fields.extend(token.map(|token| (TOKEN, token)));
        let pass = Arc::new(Pass { fields, has_token });
        *self.pass.lock() = Some(pass.clone());
        Ok(pass)
    }

    fn known(&self) -> Option<Arc<Pass>> {
        self.pass.lock().clone()
    }

    /// A token for the relay's user. There are no users while authentication is off: once it is on, questions without a
    /// token are refused, and then it is asked for one again.
    async fn authenticate(&self, identity: &Identity) -> Result<Option<HeaderValue>, Status> {
        let (name, password) = (identity.user.clone(), identity.password.clone());
        let request = framed(&AuthenticateRequest { name, password });
        match self.pool.ask::<AuthenticateResponse>(AUTHENTICATE, &self.nameless, request).await {
            Ok(AuthenticateResponse { token, .. }) => {
                let token = HeaderValue::from_maybe_shared(Bytes::from(token));
                token.map(Some).map_err(|_| Status::internal("the token has characters that a header cannot have"))
            }
            Err(status) if is_auth_off(&status) => Ok(None),
            Err(status) => Err(status),
        }
    }
}
