//! [`Users`]: who a request comes from, where etcd has users: HTTP's Basic credentials become a token of etcd's.
//!
//! A token is kept for a while under a hash of the credentials, which are kept nowhere and never logged. Not here: rights; etcd
//! decides about writes by the token, and `front::access` asks it about what is read from memory, and again and again about waits that are
//! open. Always holds: while etcd's authentication is off nothing is asked.

use std::{
    hash::{BuildHasher as _, RandomState},
    sync::Arc,
    time::Duration,
};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use hashbrown::HashMap;
use http::{HeaderMap, HeaderValue, header};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{
    answer::Refusal,
    operation::MAX_DEPTH as MAX_WRITTEN,
    path::{ancestors, kids},
    store::V3,
};
use crate::{
    front::{
        access::{Access, Denials, Look, Refused, WireRange},
        client::{Client, Credentials},
    },
    hub::{Feed, FeedState},
    types::KeyRange,
};

/// How long a token is used: etcd's simple tokens live for five minutes after their last use.
const KEPT: Duration = Duration::from_secs(60);
/// Users that are known at a time.
const MOST: usize = 1_024;

/// See the module.
#[derive(Debug)]
pub(super) struct Users {
    access: Access,
    hasher: RandomState,
    tokens: Mutex<HashMap<u64, (Instant, HeaderValue)>>,
}

impl Users {
    pub(super) fn new(access: Access) -> Self {
        Self { access, hasher: RandomState::new(), tokens: Mutex::default() }
    }

    /// The token of the user that the request names; `None` where it names none, or etcd's authentication is off.
    ///
    /// # Errors
    /// 110 where etcd does not know the user.
    pub(super) async fn token_of(&self, v3: &V3, headers: &HeaderMap) -> Result<Option<HeaderValue>, Refusal> {
        match headers.get(header::AUTHORIZATION).filter(|_| !self.access.is_off()) {
            Some(credentials) => self.token(v3, credentials).await.map(Some),
            None => Ok(None),
        }
    }

    /// Whether a user may read a path and all below it.
    ///
    /// # Errors
    /// 110 where not, or where etcd cannot say.
    pub(super) async fn may_read(&self, user: &Client, path: &Bytes) -> Result<(), Refusal> {
        if self.access.is_off() {
            return Ok(());
        }
        for range in shown(path) {
            if !self.access.permits(user, &range).await {
                return Err(denied());
            }
        }
        Ok(())
    }

    /// Ends when a user may not read a path and all below it any more, or etcd does not confirm it in time while events come from `feed`.
    pub(super) fn lost(&self, user: Client, path: &Bytes, feed: Arc<Feed>) -> BoxFuture<'static, ()> {
        let (access, ranges) = (self.access.clone(), shown(path));
        Box::pin(async move {
            let look = |round| {
                let answers = access.check(&user, &ranges, round, Denials::Known);
                async move { looked(answers.await) }
            };
            if let Err(why) = access.keep(look, || feed.state() == FeedState::Live).await {
                tracing::warn!(why, "Ended a wait of v2: etcd did not confirm in time that its client may read it");
            }
        })
    }

    /// How many directories on the way to a path, from the top, a user may not read.
    pub(super) async fn unseen(&self, user: &Client, path: &[u8]) -> usize {
        let mut unseen = 0;
        for above in ancestors(path).take(MAX_WRITTEN) {
            if self.may_read(user, &Bytes::copy_from_slice(above)).await.is_ok() {
                break;
            }
            unseen += 1;
        }
        unseen
    }

    /// Forgets the token of the credentials in a request; whether there was one.
    pub(super) fn forget(&self, headers: &HeaderMap) -> bool {
        let Some(credentials) = headers.get(header::AUTHORIZATION) else { return false };
        self.tokens.lock().remove(&self.hasher.hash_one(credentials.as_bytes())).is_some()
    }

    async fn token(&self, v3: &V3, credentials: &HeaderValue) -> Result<HeaderValue, Refusal> {
        let key = self.hasher.hash_one(credentials.as_bytes());
        if let Some((_, token)) = self.tokens.lock().get(&key).filter(|(since, _)| since.elapsed() < KEPT) {
            return Ok(token.clone());
        }
        let basic = credentials.as_bytes().strip_prefix(b"Basic ").ok_or_else(denied)?;
        let text =
            BASE64_STANDARD.decode(basic).ok().and_then(|text| String::from_utf8(text).ok()).ok_or_else(denied)?;
        let (name, password) = text.split_once(':').ok_or_else(denied)?;
        let token = v3.authenticate(name, password).await?;
        let mut tokens = self.tokens.lock();
        if tokens.len() >= MOST {
            tokens.retain(|_, (since, _)| since.elapsed() < KEPT);
        }
        if tokens.len() < MOST {
            tokens.insert(key, (Instant::now(), token.clone()));
        }
        Ok(token)
    }
}

/// A client as the user that a token is of.
pub(super) fn as_user(client: Client, token: Option<&HeaderValue>) -> Client {
    let mut named = HeaderMap::new();
    named.extend(token.map(|token| (header::AUTHORIZATION, token.clone())));
    Client { credentials: Credentials::of(&named), ..client }
}

/// What etcd's answers for an open wait mean.
fn looked(answers: Vec<Result<(), Refused>>) -> Look {
    match answers.into_iter().find_map(Result::err) {
        None => Look::Confirmed,
        Some(Refused::Denied(denial)) => {
            tracing::info!(reason = denial.reason(), "Ended a wait of v2 that its client may no longer read");
            Look::Ended
        }
        Some(Refused::Unanswerable(why) | Refused::Unknown(why)) => Look::Unknown(why),
    }
}

/// What is shown at a path: it, and all below it.
fn shown(path: &Bytes) -> [WireRange; 2] {
    [KeyRange::single(path.clone()), kids(path)].map(|range| WireRange::of(&range))
}

fn denied() -> Refusal {
    Refusal::new(110, "Insufficient credentials")
}
