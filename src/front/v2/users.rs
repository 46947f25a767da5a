//! [`Users`]: identifies the user of a request if etcd has users, by exchanging HTTP Basic credentials for an etcd
//! token.
//!
//! Tokens are kept in `front::tokens`. For permissions, etcd decides about writes by the token. `front::access` asks it
//! about reads from memory, and repeatedly about open waits. Always holds: while etcd's authentication is off, nothing
//! is asked.

use std::{sync::Arc, task::Context};

use bytes::Bytes;
use futures_util::{FutureExt as _, future::BoxFuture};
use http::{HeaderMap, HeaderValue, header};

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
        tokens::{Tokens, basic},
    },
    hub::{Feed, FeedState},
    types::KeyRange,
};

/// See the module.
#[derive(Debug)]
pub(super) struct Users {
    access: Access,
    tokens: Tokens,
}

impl Users {
    pub(super) fn new(access: Access) -> Self {
        Self { access, tokens: Tokens::default() }
    }

    /// The token of the request's user; `None` if it names none, or if etcd's authentication is off.
    ///
    /// # Errors
    /// Returns 110 if etcd does not know the user.
    pub(super) async fn token_of(&self, v3: &V3, headers: &HeaderMap) -> Result<Option<HeaderValue>, Refusal> {
        match headers.get(header::AUTHORIZATION).filter(|_| !self.access.is_off()) {
            // Boxed, like below: while authentication is off, no request should need space for it.
            Some(credentials) => Box::pin(self.token(v3, credentials)).await.map(Some),
            None => Ok(None),
        }
    }

    /// Checks that a user may read a path and everything below it.
    ///
    /// # Errors
    /// Returns 110 if it may not, or if etcd does not answer.
    pub(super) async fn may_read(&self, user: &Client, path: &Bytes) -> Result<(), Refusal> {
        if self.access.is_off() {
            return Ok(());
        }
        Box::pin(async {
            for range in shown(path) {
                if !self.access.permits(user, &range).await {
                    return Err(denied());
                }
            }
            Ok(())
        })
        .await
    }

    /// A user's right to see changes at and below a path, while events come from `feed`.
    pub(super) fn right(&self, user: Client, path: &Bytes, feed: &Arc<Feed>) -> Right {
        if self.access.is_off() {
            return Right::Free(self.access.clone());
        }
        let (access, ranges, feed) = (self.access.clone(), shown(path), feed.clone());
        Right::Kept(Box::pin(async move {
            let look = |round| {
                let answers = access.check(&user, &ranges, round, Denials::Known);
                async move { looked(answers.await) }
            };
            if let Err(why) = access.keep(look, || feed.state() == FeedState::Live).await {
                tracing::warn!(why, "Ended a wait of v2: etcd did not confirm in time that its client may read it");
            }
        }))
    }

    /// How many directories above a path, from the top, a user may not read. A user that may read a directory may read
    /// those below it, so a few questions are enough for any number of them.
    pub(super) async fn unseen(&self, user: &Client, path: &[u8]) -> usize {
        let above: Vec<&[u8]> = ancestors(path).take(MAX_WRITTEN).collect();
        let sees = async |at: usize| self.may_read(user, &Bytes::copy_from_slice(above[at])).await.is_ok();
        let (mut unseen, mut seen) = (0, above.len());
        // Most users may read all of it.
        let mut look = 0;
        while unseen < seen {
            if sees(look).await {
                seen = look;
            } else {
                unseen = look + 1;
            }
            look = unseen + (seen - unseen) / 2;
        }
        unseen
    }

    /// Forgets the token of a request's credentials. Returns whether there was one.
    pub(super) fn forget(&self, headers: &HeaderMap) -> bool {
        headers.get(header::AUTHORIZATION).is_some_and(|credentials| self.tokens.forget(credentials))
    }

    async fn token(&self, v3: &V3, credentials: &HeaderValue) -> Result<HeaderValue, Refusal> {
        if let Some(token) = self.tokens.get(credentials) {
            return Ok(token);
        }
        let (name, password) = basic(credentials).ok_or_else(denied)?;
        let token = v3.authenticate(&name, &password).await?;
        self.tokens.keep(credentials, token.clone());
        Ok(token)
    }
}

/// Whether the client of an open wait may see changes.
pub(super) enum Right {
    /// It may while etcd's authentication is off. There are thousands of waits, so nothing is done for one before it
    /// has something to send.
    Free(Access),
    /// Ends when the client may no longer see changes, or when etcd does not confirm in time that it may.
    Kept(BoxFuture<'static, ()>),
    Lost,
}

impl Right {
    /// Whether it is lost for good. Otherwise the caller's task is woken when it is.
    pub(super) fn is_lost(&mut self, cx: &mut Context<'_>) -> bool {
        if let Self::Kept(kept) = self
            && kept.poll_unpin(cx).is_ready()
        {
            *self = Self::Lost;
        }
        matches!(self, Self::Lost)
    }

    /// Whether something may be sent now.
    pub(super) fn holds(&mut self) -> bool {
        if matches!(self, Self::Free(access) if !access.is_off()) {
            // The client repeats the request and then names its user.
            *self = Self::Lost;
        }
        !matches!(self, Self::Lost)
    }
}

/// A client as the user of a token.
pub(super) fn as_user(client: Client, token: Option<&HeaderValue>) -> Client {
    let mut named = HeaderMap::new();
    named.extend(token.map(|token| (header::AUTHORIZATION, token.clone())));
    Client { credentials: Credentials::of(&named), ..client }
}

/// The meaning of etcd's answers for an open wait.
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

/// What is visible at a path: the path itself and everything below it.
fn shown(path: &Bytes) -> [WireRange; 2] {
    [KeyRange::single(path.clone()), kids(path)].map(|range| WireRange::of(&range))
}

fn denied() -> Refusal {
    Refusal::new(110, "Insufficient credentials")
}
