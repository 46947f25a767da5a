//! [`Tokens`]: the tokens that etcd gave for HTTP Basic credentials, kept for a while under a hash of the credentials.
//!
//! Used by fronts whose clients send passwords instead of tokens: etcd's v2 API and keys over HTTP. Requesting a token
//! is elsewhere, and etcd decides about permissions by the token. Always holds: credentials are never kept or logged;
//! the number of tokens is bounded.

use std::{
    hash::{BuildHasher as _, RandomState},
    time::Duration,
};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use hashbrown::HashMap;
use http::HeaderValue;
use parking_lot::Mutex;
use tokio::time::Instant;

/// How long a token is used. etcd's simple tokens expire five minutes after their last use.
const KEPT: Duration = Duration::from_secs(60);
/// Most tokens at a time. Further users need a new token for each request.
const MOST: usize = 1_024;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Tokens {
    hasher: RandomState,
    tokens: Mutex<HashMap<u64, (Instant, HeaderValue)>>,
}

impl Tokens {
    /// The token for these credentials, if it may still be used.
    pub(super) fn get(&self, credentials: &HeaderValue) -> Option<HeaderValue> {
        let tokens = self.tokens.lock();
        let kept = tokens.get(&self.key(credentials)).filter(|(since, _)| since.elapsed() < KEPT);
        kept.map(|(_, token)| token.clone())
    }

    /// Keeps the token that etcd gave for these credentials.
    pub(super) fn keep(&self, credentials: &HeaderValue, token: HeaderValue) {
        let mut tokens = self.tokens.lock();
        if tokens.len() >= MOST {
            tokens.retain(|_, (since, _)| since.elapsed() < KEPT);
        }
        if tokens.len() < MOST {
            tokens.insert(self.key(credentials), (Instant::now(), token));
        }
    }

    /// Forgets the token of these credentials, which etcd may have forgotten too. Returns whether there was one.
    pub(super) fn forget(&self, credentials: &HeaderValue) -> bool {
        self.tokens.lock().remove(&self.key(credentials)).is_some()
    }

    fn key(&self, credentials: &HeaderValue) -> u64 {
        self.hasher.hash_one(credentials.as_bytes())
    }
}

/// Name and password, if these are Basic credentials.
pub(super) fn basic(credentials: &HeaderValue) -> Option<(String, String)> {
    let text = scheme(credentials.as_bytes(), b"Basic ")?;
    let text = String::from_utf8(BASE64_STANDARD.decode(text).ok()?).ok()?;
    text.split_once(':').map(|(name, password)| (name.to_owned(), password.to_owned()))
}

/// The part after the name of a scheme, which is not case-sensitive.
pub(super) fn scheme<'a>(credentials: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let (begin, rest) = credentials.split_at_checked(name.len())?;
    begin.eq_ignore_ascii_case(name).then(|| rest.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(text: &str) -> HeaderValue {
        HeaderValue::from_str(text).expect("a header value")
    }

    #[test]
    fn basic_credentials_are_a_name_and_a_password() {
        let of = |text: &str| basic(&header(text));
        let alice = || Some(("alice".to_owned(), "se:cret".to_owned()));
        assert_eq!(of("Basic YWxpY2U6c2U6Y3JldA=="), alice());
        assert_eq!(of("basic  YWxpY2U6c2U6Y3JldA=="), alice(), "schemes have no case");
        for wrong in ["Basic", "Basic ", "Basic !", "Basic YWxpY2U=", "Bearer YWxpY2U6c2U6Y3JldA==", "Basic /w=="] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn tokens_are_kept_for_a_while_and_there_are_never_too_many() {
        let tokens = Tokens::default();
        let user = |number: usize| header(&format!("Basic {number}"));
        for number in 0..=MOST {
            tokens.keep(&user(number), header("token"));
        }
        assert_eq!(tokens.get(&user(0)), Some(header("token")));
        assert_eq!(tokens.get(&user(MOST)), None, "there is no room for it");
        assert!(tokens.forget(&user(0)) && !tokens.forget(&user(0)));
        tokio::time::advance(KEPT).await;
        assert_eq!(tokens.get(&user(1)), None, "too old");
        tokens.keep(&user(MOST), header("new"));
        assert_eq!(tokens.get(&user(MOST)), Some(header("new")));
    }
}
