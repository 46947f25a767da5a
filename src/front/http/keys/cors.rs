//! [`Cors`]: which origins' pages may read the answers in a browser.
//!
//! Who is answered is decided in `caller`. Always holds: without the flag, no header is sent. Origins that are not
//! listed get no header. Credentials stored by a browser are allowed only for listed origins, never for all origins.

use std::str::FromStr;

use http::{HeaderMap, HeaderValue, Uri, header};
use thiserror::Error;

const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, OPTIONS");
const ASKED_WITH: HeaderValue =
    HeaderValue::from_static("Authorization, Last-Event-ID, Cache-Control, If-None-Match, Content-Type");
const SHOWN: HeaderValue = HeaderValue::from_static("X-Etcd-Index, ETag, Retry-After, WWW-Authenticate");
/// How long a browser may remember the answer, in seconds.
const REMEMBERED: HeaderValue = HeaderValue::from_static("600");

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Cors {
    /// No origin: browsers hide answers from pages of other origins.
    #[default]
    Off,
    /// Any origin, but without credentials stored by the browser.
    Any,
    /// Only these origins.
    Origins(Vec<HeaderValue>),
}

/// An origin, or all origins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// `*`
    Any,
    /// In the form that browsers use, such as `https://example.org:8443`.
    One(HeaderValue),
}

/// A value that is not an origin.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error(
    "an origin is a scheme and a host, such as https://example.org or http://localhost:3000, without a path; or * for all"
)]
pub struct NoOrigin;

impl FromStr for Origin {
    type Err = NoOrigin;

    fn from_str(text: &str) -> Result<Self, NoOrigin> {
        if text == "*" {
            return Ok(Self::Any);
        }
        let uri: Uri = text.parse().map_err(|_| NoOrigin)?;
        let has_path = text.matches('/').count() > 2 || uri.query().is_some();
        if uri.scheme().is_none()
            || uri.authority().is_none_or(|authority| authority.as_str().contains('@'))
            || has_path
        {
            return Err(NoOrigin);
        }
        // Browsers write origins in lower case.
        HeaderValue::try_from(text.to_ascii_lowercase()).map(Self::One).map_err(|_| NoOrigin)
    }
}

impl FromIterator<Origin> for Cors {
    fn from_iter<T: IntoIterator<Item = Origin>>(origins: T) -> Self {
        let mut named = Vec::new();
        for origin in origins {
            match origin {
                Origin::Any => return Self::Any,
                Origin::One(origin) => named.push(origin),
            }
        }
        if named.is_empty() { Self::Off } else { Self::Origins(named) }
    }
}

impl Cors {
    /// Adds headers to the answer to a request with the headers `asked`.
    pub(super) fn mark(&self, asked: &HeaderMap, answer: &mut HeaderMap) {
        let origin = match self {
            Self::Off => return,
            Self::Any => HeaderValue::from_static("*"),
            Self::Origins(origins) => {
                answer.append(header::VARY, HeaderValue::from_static("Origin"));
                let Some(origin) = asked.get(header::ORIGIN).filter(|origin| origins.contains(origin)) else { return };
                answer.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
                origin.clone()
            }
        };
        answer.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        answer.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, SHOWN);
    }

    /// Adds headers to the answer to a browser's preflight request.
    pub(super) fn mark_preflight(&self, asked: &HeaderMap, answer: &mut HeaderMap) {
        self.mark(asked, answer);
        if answer.contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN) {
            answer.remove(header::ACCESS_CONTROL_EXPOSE_HEADERS);
            answer.insert(header::ACCESS_CONTROL_ALLOW_METHODS, METHODS);
            answer.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, ASKED_WITH);
            answer.insert(header::ACCESS_CONTROL_MAX_AGE, REMEMBERED);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marked(cors: &str, origin: Option<&'static str>) -> (Option<String>, bool) {
        let cors: Cors = cors.split(',').filter_map(|origin| origin.parse::<Origin>().ok()).collect();
        let mut asked = HeaderMap::new();
        asked.extend(origin.map(|origin| (header::ORIGIN, HeaderValue::from_static(origin))));
        let mut answer = HeaderMap::new();
        cors.mark(&asked, &mut answer);
        let allowed = answer.get(header::ACCESS_CONTROL_ALLOW_ORIGIN);
        let allowed = allowed.map(|allowed| allowed.to_str().expect("text").to_owned());
        (allowed, answer.contains_key(header::ACCESS_CONTROL_ALLOW_CREDENTIALS))
    }

    #[test]
    fn an_origin_is_told_that_it_may_and_others_nothing() {
        let one = "https://a.example";
        assert_eq!(marked("", Some(one)), (None, false));
        assert_eq!(marked("*", Some(one)), (Some("*".to_owned()), false));
        assert_eq!(marked("https://b.example,*", Some(one)), (Some("*".to_owned()), false));
        assert_eq!(marked("https://A.example,http://b", Some(one)), (Some(one.to_owned()), true));
        for other in [None, Some("https://a.example.org"), Some("http://a.example"), Some("null")] {
            assert_eq!(marked(one, other), (None, false), "{other:?}");
        }
    }

    #[test]
    fn an_origin_is_a_scheme_and_a_host() {
        for right in ["*", "https://a", "http://a:1", "http://[::1]:3000", "chrome-extension://abc"] {
            assert!(right.parse::<Origin>().is_ok(), "{right}");
        }
        for wrong in [
            "",
            "a",
            "a.example",
            "https://",
            "https://a/",
            "https://a/b",
            "https://a?b",
            "https://u@a",
            "null",
            "ä://b",
        ] {
            assert_eq!(wrong.parse::<Origin>(), Err(NoOrigin), "{wrong}");
        }
    }
}
