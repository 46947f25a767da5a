//! [`Users`]: who a request comes from, where etcd has users: HTTP's Basic credentials become a token of etcd's.
//!
//! Not here: where tokens are kept, see `front::tokens`; and rights: etcd
//! decides about writes by the token, and `front::access` asks it about what is read from memory, and again and again about waits that are
//! open. Always holds: while etcd's authentication is off nothing is asked.

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

    /// The token of the user that the request names; `None` where it names none, or etcd's authentication is off.
    ///
    /// # Errors
    /// 110 where etcd does not know the user.
    pub(super) async fn token_of(&self, v3: &V3, headers: &HeaderMap) -> Result<Option<HeaderValue>, Refusal> {
        match headers.get(header::AUTHORIZATION).filter(|_| !self.access.is_off()) {
            // In a box, as below: where authentication is off, no request has to have room for it.
            Some(credentials) => Box::pin(self.token(v3, credentials)).await.map(Some),
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

    /// A user's right to be told what happens at a path and below it, while events come from `feed`.
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

    /// How many directories on the way to a path, from the top, a user may not read. Who may read a directory may read those below it, so
    /// etcd is asked a few times, however many there are.
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

    /// Forgets the token of the credentials in a request; whether there was one.
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

/// Whether the client of an open wait may be told what happens.
pub(super) enum Right {
    /// It may as long as etcd's authentication is off. There are thousands of waits, so nothing is done for one before there is something
    /// to tell.
    Free(Access),
    /// Ends when the client may not be told any more, or etcd does not confirm in time that it may.
    Kept(BoxFuture<'static, ()>),
    Lost,
}

impl Right {
    /// Whether it is lost for good. Else the caller's task is woken when it is.
    pub(super) fn is_lost(&mut self, cx: &mut Context<'_>) -> bool {
        if let Self::Kept(kept) = self
            && kept.poll_unpin(cx).is_ready()
        {
            *self = Self::Lost;
        }
        matches!(self, Self::Lost)
    }

    /// Whether something may be told now.
    pub(super) fn holds(&mut self) -> bool {
        if matches!(self, Self::Free(access) if !access.is_off()) {
            // The client asks again, as whom it says it is.
            *self = Self::Lost;
        }
        !matches!(self, Self::Lost)
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
