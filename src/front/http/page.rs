//! The page at `/`: shows the content of `/debug/state`, and lets users browse keys and Lainlet's views.
//!
//! | path | answer |
//! |---|---|
//! | GET / | the page |
//! | GET /page/… | its style and its scripts |
//!
//! The page has no data of its own and is the same for everyone. It reads `/debug/state`, `/v1/…` and `/v2/…` with the
//! rights of its user's browser, and reports what it may not read. Called by `admin`. Always holds: all files are
//! compiled in, so no path leads to the file system. The browser loads nothing from other addresses and runs no other
//! scripts (see [`POLICY`]). A browser that has the current version is told so without sending it again.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use axum::{
    Router,
    response::{IntoResponse as _, Response},
    routing::get,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

/// What the browser may load for the page: its own files, and data from the relay. Nothing else, whatever keys and
/// values contain.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; \
     frame-ancestors 'none'",
);

/// A file of the page.
#[derive(Debug)]
struct Asset {
    path: &'static str,
    content_type: &'static str,
    content: &'static str,
}

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

macro_rules! asset {
    ($path:literal, $content_type:expr, $file:literal) => {
        Asset { path: $path, content_type: $content_type, content: include_str!(concat!("page/", $file)) }
    };
}

static ASSETS: &[Asset] = &[
    asset!("/", HTML, "index.html"),
    asset!("/page/style.css", CSS, "style.css"),
    asset!("/page/icon.svg", SVG, "icon.svg"),
    asset!("/page/main.js", SCRIPT, "main.js"),
    asset!("/page/dom.js", SCRIPT, "dom.js"),
    asset!("/page/live.js", SCRIPT, "live.js"),
    asset!("/page/overview.js", SCRIPT, "overview.js"),
    asset!("/page/chart.js", SCRIPT, "chart.js"),
    asset!("/page/connections.js", SCRIPT, "connections.js"),
    asset!("/page/keys.js", SCRIPT, "keys.js"),
    asset!("/page/views.js", SCRIPT, "views.js"),
];

/// The routes.
pub(super) fn router<S: Clone + Send + Sync + 'static>() -> Router<S> {
    ASSETS.iter().fold(Router::new(), |router, asset| {
        let tag = tag(asset.content);
        router.route(asset.path, get(async move |headers: HeaderMap| answer(asset, &tag, &headers)))
    })
}

/// A tag for a content. It is the same in every relay with that content.
fn tag(content: &str) -> HeaderValue {
    let mut hasher = DefaultHasher::new();
    content.hash(&mut hasher);
    HeaderValue::from_str(&format!("\"{:016x}\"", hasher.finish())).expect("hexadecimal digits")
}

fn answer(asset: &Asset, tag: &HeaderValue, asked: &HeaderMap) -> Response {
    let headers: [(HeaderName, HeaderValue); 6] = [
        (header::CONTENT_TYPE, HeaderValue::from_static(asset.content_type)),
        (header::ETAG, tag.clone()),
        // The browser checks each time whether its copy is current, because the page must fit the relay.
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    ];
    if has(asked, tag) {
        return (StatusCode::NOT_MODIFIED, headers).into_response();
    }
    (headers, asset.content).into_response()
}

/// Whether the client already has this content.
fn has(asked: &HeaderMap, tag: &HeaderValue) -> bool {
    let listed = asked.get_all(header::IF_NONE_MATCH).into_iter().filter_map(|value| value.to_str().ok());
    let mut tags = listed.flat_map(|value| value.split(',')).map(str::trim);
    tags.any(|one| one == "*" || one.strip_prefix("W/").unwrap_or(one).as_bytes() == tag.as_bytes())
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use http::{Method, Request};
    use http_body_util::BodyExt as _;
    use tower::ServiceExt as _;

    use super::*;

    async fn ask(method: Method, path: &str, if_none_match: Option<&str>) -> (StatusCode, HeaderMap, String) {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(tags) = if_none_match {
            request = request.header(header::IF_NONE_MATCH, tags);
        }
        let response =
            router::<()>().oneshot(request.body(Body::empty()).expect("a request")).await.expect("an answer");
        let (parts, body) = response.into_parts();
        let body = body.collect().await.expect("a body").to_bytes();
        (parts.status, parts.headers, String::from_utf8_lossy(&body).into_owned())
    }

    #[tokio::test]
    async fn every_file_has_the_policy_and_is_not_sent_twice() {
        for asset in ASSETS {
            let (status, headers, body) = ask(Method::GET, asset.path, None).await;
            assert_eq!((status, &*body), (StatusCode::OK, asset.content), "{}", asset.path);
            assert_eq!(headers[header::CONTENT_TYPE], asset.content_type);
            assert_eq!(headers[header::CONTENT_SECURITY_POLICY], POLICY);
            assert_eq!(headers[header::X_CONTENT_TYPE_OPTIONS], "nosniff");
            assert_eq!(headers[header::REFERRER_POLICY], "no-referrer");
            let tag = headers[header::ETAG].to_str().expect("a tag");
            for tags in [tag.to_owned(), format!("\"other\", W/{tag}"), "*".to_owned()] {
                let (status, headers, body) = ask(Method::GET, asset.path, Some(&tags)).await;
                assert_eq!((status, &*body), (StatusCode::NOT_MODIFIED, ""), "{}: {tags}", asset.path);
                assert!(headers.contains_key(header::ETAG) && headers.contains_key(header::CONTENT_SECURITY_POLICY));
            }
            assert_eq!(ask(Method::GET, asset.path, Some("\"other\"")).await.0, StatusCode::OK);
            let (status, headers, body) = ask(Method::HEAD, asset.path, None).await;
            assert_eq!((status, &*body), (StatusCode::OK, ""));
            assert_eq!(headers[header::CONTENT_LENGTH], asset.content.len().to_string());
            assert_eq!(ask(Method::POST, asset.path, None).await.0, StatusCode::METHOD_NOT_ALLOWED);
        }
    }

    /// A page that works on its author's machine may still need the network, or a script that the policy does not
    /// allow.
    #[test]
    fn the_page_wants_nothing_but_its_own_files() {
        let own = |target: &str| {
            ASSETS.iter().any(|asset| {
                let beside = target.strip_prefix("./").map(|name| format!("/page/{name}"));
                asset.path == beside.as_deref().unwrap_or(target)
            })
        };
        for Asset { path, content, .. } in ASSETS {
            for attribute in ["src=\"", "href=\"", "from \"", "import \"", "url("] {
                for rest in content.split(attribute).skip(1) {
                    let target = rest.split('"').next().unwrap_or_default();
                    let answered =
                        target == "/metrics" || target.starts_with("/debug/state") || target.starts_with('#');
                    assert!(own(target) || answered, "{path} wants {target}");
                }
            }
            let addresses = content.replace("http://www.w3.org/", "");
            assert!(!addresses.contains("://"), "{path} names an address");
            for barred in [
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "eval(",
                "Function(",
                "srcdoc",
                "<style",
                "style=",
                "javascript:",
                " onclick=",
                " onload=",
                " onerror=",
            ] {
                assert!(!content.contains(barred), "{path} has {barred}");
            }
        }
    }
}
