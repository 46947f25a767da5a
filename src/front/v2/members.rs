//! `/v2/members`: lists and changes the members of the cluster.
//!
//! The members are etcd's, but with the URLs of the v2 API as client URLs: clients use what their first sync returns.
//! Always holds: ids are the cluster's; a change is made in etcd itself.

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, Response, header};
use http_body_util::BodyExt as _;
use serde::Serialize;
use serde_json::{Map, Value, error::Category};

use super::{
    reply::{self, V2Body, json, plain_error, wrong_method},
    store::V3,
};
use crate::{front::body::RequestBody, pb::etcdserverpb::Member};

/// The largest body that is read, which contains some URLs.
const MAX_BODY: usize = 64 << 10;

/// A member as it is shown.
#[derive(Debug, Serialize)]
struct Shown<'a> {
    id: String,
    name: &'a str,
    #[serde(rename = "peerURLs")]
    peer_urls: &'a [String],
    #[serde(rename = "clientURLs")]
    client_urls: &'a [String],
}

#[derive(Debug, Serialize)]
struct All<'a> {
    members: Vec<Shown<'a>>,
}

/// The status and text of an error.
type Wrong = (u16, String);

/// Answers a request for the part `below` `/v2/members`.
pub(super) async fn answer(
    v3: &V3,
    method: &Method,
    below: &str,
    headers: &HeaderMap,
    body: RequestBody,
    advertised: &[String],
) -> Response<V2Body> {
    let id = below.trim_start_matches('/');
    let answered = match *method {
        Method::GET => listed(v3, below, advertised).await,
        Method::POST => add(v3, headers, body).await,
        Method::PUT | Method::DELETE if id.is_empty() => return plain_error(405, "Method Not Allowed\n"),
        Method::PUT => update(v3, id, headers, body).await,
        Method::DELETE => remove(v3, id).await,
        _ => return wrong_method("GET,POST,DELETE,PUT"),
    };
    answered.unwrap_or_else(|(status, message)| reply::message(status, &message))
}

async fn listed(v3: &V3, below: &str, advertised: &[String]) -> Result<Response<V2Body>, Wrong> {
    if !matches!(below, "" | "/" | "/leader") {
        return Err((404, "Not found".to_owned()));
    }
    let members = v3.members().await.map_err(|status| (500, status.message().to_owned()))?.members;
    if below == "/leader" {
        let leader = v3.status().await.map_or(0, |status| status.leader);
        let leader = members.iter().find(|member| member.id == leader);
        let leader = leader.ok_or_else(|| (503, "During election".to_owned()))?;
        return Ok(line(200, &shown(leader, advertised)));
    }
    let members = members.iter().map(|member| shown(member, advertised)).collect();
    Ok(line(200, &All { members }))
}

async fn add(v3: &V3, headers: &HeaderMap, body: RequestBody) -> Result<Response<V2Body>, Wrong> {
    let urls = peer_urls(headers, body).await?;
    let added = v3.add_member(urls).await.map_err(|status| match status.message() {
        text if text.contains("Peer URLs already exists") => (409, "membership: peerURL exists".to_owned()),
        text if text.contains("member ID already exist") => (409, "membership: ID exists".to_owned()),
        _ => internal(&status),
    })?;
    let member = added.member.unwrap_or_default();
    // The new member has not published its client URLs yet.
    Ok(json(201, V2Body::whole(serde_json::to_vec(&shown(&member, &[])).unwrap_or_default())))
}

async fn update(v3: &V3, id: &str, headers: &HeaderMap, body: RequestBody) -> Result<Response<V2Body>, Wrong> {
    let number = number(id)?;
    let urls = peer_urls(headers, body).await?;
    v3.update_member(number, urls).await.map_err(|status| match status.message() {
        text if text.contains("member not found") => no_member(id),
        text if text.contains("Peer URLs already exists") => (409, "membership: peerURL exists".to_owned()),
        _ => internal(&status),
    })?;
    Ok(reply::bare(204))
}

async fn remove(v3: &V3, id: &str) -> Result<Response<V2Body>, Wrong> {
    v3.remove_member(number(id)?).await.map_err(|status| match status.message() {
        text if text.contains("member not found") => no_member(id),
        _ => internal(&status),
    })?;
    Ok(reply::bare(204))
}

fn number(id: &str) -> Result<u64, Wrong> {
    u64::from_str_radix(id, 16).map_err(|_| no_member(id))
}

fn no_member(id: &str) -> Wrong {
    (404, format!("No such member: {id}"))
}

/// etcd says no more than this; the reason is in the log.
fn internal(status: &tonic::Status) -> Wrong {
    if matches!(status.code(), tonic::Code::PermissionDenied | tonic::Code::Unauthenticated)
        || status.message().contains("user name is empty")
    {
        return (401, "Insufficient credentials".to_owned());
    }
    tracing::warn!(error = %status.message(), "A change of members through etcd's v2 API failed");
    (500, "Internal Server Error".to_owned())
}

/// The URLs in a request's body, checked like in etcd.
async fn peer_urls(headers: &HeaderMap, body: RequestBody) -> Result<Vec<String>, Wrong> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    if !kind.eq_ignore_ascii_case("application/json") {
        return Err((415, format!("Bad Content-Type {}, accept application/json", kind.to_ascii_lowercase())));
    }
    parse_urls(&read(body).await?).map_err(|why| (400, why))
}

async fn read(mut body: RequestBody) -> Result<Bytes, Wrong> {
    let mut text = BytesMut::new();
    while let Some(Ok(frame)) = body.frame().await {
        if let Ok(data) = frame.into_data() {
            if text.len() + data.len() > MAX_BODY {
                return Err((400, format!("etcd-relay: a body of more than {MAX_BODY} bytes")));
            }
            text.extend_from_slice(&data);
        }
    }
    Ok(text.freeze())
}

fn parse_urls(text: &[u8]) -> Result<Vec<String>, String> {
    let value: Value = serde_json::from_slice(text).map_err(|error| no_json(text, &error))?;
    let mismatch = |value: &Value, what: &str| Err(format!("json: cannot unmarshal {} into Go {what}", kind_of(value)));
    let urls = match value {
        Value::Null => Vec::new(),
        Value::Object(fields) => match named(fields, "peerURLs") {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Array(urls)) => urls,
            Some(other) => return mismatch(&other, "struct field .peerURLs of type []string"),
        },
        other => {
            return mismatch(&other, r#"value of type struct { PeerURLs []string "json:\"peerURLs\"" }"#);
        }
    };
    let mut read = Vec::new();
    for url in urls {
        match url {
            Value::String(url) => read.push(check(url.trim())?),
            other => return mismatch(&other, "struct field .peerURLs of type string"),
        }
    }
    if read.is_empty() {
        return Err("no valid URLs given".to_owned());
    }
    read.sort();
    Ok(read)
}

/// The error for a text that is not JSON. Errors at its beginning or after its end have the words of Go's library.
fn no_json(text: &[u8], error: &serde_json::Error) -> String {
    let lines = text.split_inclusive(|byte| *byte == b'\n');
    let before: usize = lines.take(error.line().saturating_sub(1)).map(<[u8]>::len).sum();
    let at = text.get(before + error.column().saturating_sub(1)).map(|byte| char::from(*byte).escape_default());
    let is_first = text[..text.len().min(before + error.column().saturating_sub(1))].trim_ascii().is_empty();
    match (error.classify(), at) {
        (Category::Eof, _) => "unexpected end of JSON input".to_owned(),
        (_, Some(at)) if is_first => format!("invalid character '{at}' looking for beginning of value"),
        (_, Some(at)) if error.to_string().starts_with("trailing characters") => {
            format!("invalid character '{at}' after top-level value")
        }
        _ => error.to_string(),
    }
}

/// The field of this name, or one that differs only in case, as in Go's library.
fn named(mut fields: Map<String, Value>, name: &str) -> Option<Value> {
    let other = || fields.keys().find(|key| key.eq_ignore_ascii_case(name)).cloned();
    let key = if fields.contains_key(name) { name.to_owned() } else { other()? };
    fields.remove(&key)
}

fn check(url: &str) -> Result<String, String> {
    let split = url.split_once("://").filter(|(scheme, _)| matches!(*scheme, "http" | "https" | "unix" | "unixs"));
    let (scheme, rest) = split.ok_or_else(|| format!("URL scheme must be http, https, unix, or unixs: {url}"))?;
    let (host, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
    let port = host.rsplit_once(':').filter(|(host, _)| !host.contains(':') || host.ends_with(']'));
    if let Some((_, port)) = port.filter(|(_, port)| !port.bytes().all(|byte| byte.is_ascii_digit())) {
        return Err(format!("parse \"{url}\": invalid port \":{port}\" after host"));
    }
    let has_port = port.is_some();
    if matches!(scheme, "http" | "https") && !has_port {
        return Err(format!("URL address does not have the form \"host:port\": {url}"));
    }
    if path.is_empty() { Ok(url.to_owned()) } else { Err(format!("URL must not contain a path: {url}")) }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn shown<'a>(member: &'a Member, client_urls: &'a [String]) -> Shown<'a> {
    Shown { id: format!("{:x}", member.id), name: &member.name, peer_urls: &member.peer_ur_ls, client_urls }
}

fn line(status: u16, value: &impl Serialize) -> Response<V2Body> {
    let mut text = serde_json::to_vec(value).unwrap_or_default();
    text.push(b'\n');
    json(status, V2Body::whole(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_checked_as_etcd_checks_them() {
        let wrong = |text: &str| parse_urls(text.as_bytes()).expect_err(text);
        for text in ["", r#"{"peerURLs":"#] {
            assert_eq!(wrong(text), "unexpected end of JSON input");
        }
        for text in ["{}", "null", r#"{"peerURLs":[]}"#, r#"{"peerURLs":null}"#] {
            assert_eq!(wrong(text), "no valid URLs given");
        }
        for (urls, why) in [
            (r#"["foo"]"#, "URL scheme must be http, https, unix, or unixs: foo"),
            (r#"["http://h:1/x"]"#, "URL must not contain a path: http://h:1/x"),
            (r#"["http://h"]"#, "URL address does not have the form \"host:port\": http://h"),
            (r#""http://h:1""#, "json: cannot unmarshal string into Go struct field .peerURLs of type []string"),
            (r#"["http://h:x"]"#, "parse \"http://h:x\": invalid port \":x\" after host"),
            ("[5]", "json: cannot unmarshal number into Go struct field .peerURLs of type string"),
        ] {
            assert_eq!(wrong(&format!(r#"{{"peerURLs":{urls}}}"#)), why);
        }
        for (text, why) in [
            (" x", "invalid character 'x' looking for beginning of value"),
            ("{}\n y", "invalid character 'y' after top-level value"),
            (
                "[]",
                r#"json: cannot unmarshal array into Go value of type struct { PeerURLs []string "json:\"peerURLs\"" }"#,
            ),
            (r#"{"peerurls":["ftp://h:1"]}"#, "URL scheme must be http, https, unix, or unixs: ftp://h:1"),
        ] {
            assert_eq!(wrong(text), why);
        }
        let sorted = parse_urls(br#"{"peerURLs":["https://[::1]:2","http://a:1"]}"#);
        assert_eq!(sorted, Ok(vec!["http://a:1".to_owned(), "https://[::1]:2".to_owned()]));
    }
}
